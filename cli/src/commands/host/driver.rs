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
            (DriverName::Supervise, false) => supervised(self.command),
            (DriverName::Link, false) => {
                Err(usage("--command is only for --driver supervise", "add `--driver supervise`"))
            }
            (DriverName::Supervise, true) => {
                Err(usage("--driver supervise needs a command", "add `--command PROGRAM [ARGUMENT]…`"))
            }
        }
    }
}

/// No shell reads the command. One word with blanks in it is a command line that was quoted: there is no program of that
/// name, and the first flip would show it by leaving the fleet dark.
fn supervised(command: Vec<String>) -> Result<Driver, CliError> {
    if let [line] = command.as_slice()
        && line.contains(char::is_whitespace)
    {
        return Err(CliError::Usage {
            what: format!("no shell reads --command, so `{line}` would be the name of one program"),
            next: format!(
                "leave out the quotes: `--command {line}`, as the last option; or ask for a shell: \
                 `--command sh -c '{line}'`"
            ),
        });
    }
    Ok(Driver::Supervise { command, stop_timeout_ms: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_command_line_is_refused_with_what_to_write() {
        let driver = |words: &[&str]| {
            let command = words.iter().map(|word| (*word).to_owned()).collect();
            DriverArgs { driver: DriverName::Supervise, command }.driver()
        };
        let quoted = driver(&["sleep 100"]).unwrap_err();
        assert!(quoted.next().is_some_and(|next| next.contains("`--command sleep 100`")), "{quoted}");
        assert!(driver(&["sleep", "100"]).is_ok());
        assert!(driver(&["./bin/server"]).is_ok());
        assert!(driver(&["sh", "-c", "exec sleep 100"]).is_ok());
    }
}
