use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use serde::Serialize;

use crate::args::Cli;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report};

/// Write the manual pages of all commands to a folder.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster man --out /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// The folder; it is made if it does not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Man {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        std::fs::create_dir_all(&self.out).map_err(CliError::file("make", self.out.as_path()))?;
        clap_mangen::generate_to(Cli::command(), &self.out)
            .map_err(CliError::file("write", self.out.as_path()))?;
        env.ui.report(&Written { dir: self.out })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Written {
    dir: PathBuf,
}

impl Report for Written {
    const SCHEMA: &'static str = "muster.man/1";

    fn print(&self, page: &mut Page) {
        page.line(format_args!("wrote the manual pages to {}", self.dir.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(Cli::command(), dir.path()).unwrap();
        fn pages(command: &clap::Command, name: &str, found: &mut Vec<String>) {
            found.push(format!("{name}.1"));
            command.get_subcommands().for_each(|inner| {
                pages(inner, &format!("{name}-{}", inner.get_name()), found);
            });
        }
        let mut wanted = Vec::new();
        pages(&Cli::command(), "muster", &mut wanted);
        assert!(wanted.iter().any(|page| page == "muster-dev-stop.1"), "{wanted:?}");
        for page in wanted {
            let text = std::fs::read_to_string(dir.path().join(&page)).unwrap_or_default();
            assert!(text.contains(".SH DESCRIPTION"), "{page}");
        }
    }
}
