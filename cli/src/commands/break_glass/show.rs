use std::path::PathBuf;

use clap::Args;

use super::token::{TokenView, read};
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Show what a token allows, for whom and until when, and who has signed it.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster break-glass show glass.json")]
pub(crate) struct Show {
    /// The token
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Show {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let root = env.context()?.trust_root()?;
        let held = read(&root, &self.file)?;
        env.ui.report(&TokenView::new(&root, &held, self.file))?;
        Ok(Exit::Proven)
    }
}
