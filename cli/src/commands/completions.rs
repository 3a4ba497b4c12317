use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::args::Cli;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Write the completions of a shell to stdout.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster completions bash > /etc/bash_completion.d/muster")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "muster", &mut script);
        env.ui.raw(&script)?;
        Ok(Exit::Proven)
    }
}
