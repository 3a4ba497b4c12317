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
        env.ui.raw(&script(self.shell))?;
        Ok(Exit::Proven)
    }
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "muster", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_completed() {
        fn names(command: &clap::Command, path: &str, found: &mut Vec<String>) {
            for inner in command.get_subcommands() {
                // A dash is written as what stands between two commands.
                let path = format!("{path}__subcmd__{}", inner.get_name().replace('-', "__subcmd__"));
                found.push(path.clone());
                names(inner, &path, found);
            }
        }
        let mut wanted = Vec::new();
        names(&Cli::command(), "muster", &mut wanted);
        let bash = String::from_utf8(script(Shell::Bash)).unwrap();
        assert!(wanted.iter().any(|name| name.ends_with("__dev__subcmd__stop")), "{wanted:?}");
        for name in wanted {
            assert!(bash.contains(&format!("{name})")), "{name}");
        }
        for shell in [Shell::Zsh, Shell::Fish] {
            assert!(String::from_utf8(script(shell)).unwrap().contains("readmit"));
        }
    }
}
