//! `muster receipt`: the portable proof of one flip.

mod show;
mod summary;
mod verify;

use clap::Subcommand;

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Show and verify the proof of a flip.
#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptCommand {
    Show(show::Show),
    Verify(verify::Verify),
}

impl ReceiptCommand {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Show(show) => Box::pin(show.run(env)).await,
            Self::Verify(verify) => verify.run(env),
        }
    }
}
