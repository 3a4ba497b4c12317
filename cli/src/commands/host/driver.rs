use clap::{Args, ValueEnum};

use crate::error::CliError;
use crate::provision::Driver;

/// How a host serves.
#[derive(Debug, Clone, Args)]
pub(crate) struct DriverArgs {
    /// How the service is run
    #[arg(long, value_enum, default_value_t = DriverName::Link)]
    driver: DriverName,
    /// The command that the guard supervises, in the release's folder; everything that follows belongs to it
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DriverName {
    /// There is only the link
    Link,
    /// The guard runs `--command`
    Supervise,
}

impl DriverArgs {
    /// The driver, once both options fit together.
    pub(crate) fn driver(self) -> Result<Driver, CliError> {
        let usage = |what: &str, next: &str| CliError::Usage { what: what.to_owned(), next: next.to_owned() };
        match (self.driver, self.command.is_empty()) {
            (DriverName::Link, true) => Ok(Driver::Link),
            (DriverName::Supervise, false) => Ok(Driver::Supervise { command: self.command }),
            (DriverName::Link, false) => {
                Err(usage("--command is only for --driver supervise", "add `--driver supervise`"))
            }
            (DriverName::Supervise, true) => {
                Err(usage("--driver supervise needs a command", "add `--command PROGRAM [ARGUMENT]…`"))
            }
        }
    }
}
