//! `muster coordinator`: what operators do when there is a new coordinator.

mod mandate;
mod rebuild;
mod sign;

use clap::Subcommand;

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Have a new coordinator, or one that was restored from a backup, lead a fleet.
#[derive(Debug, Subcommand)]
pub(crate) enum CoordinatorCommand {
    Rebuild(rebuild::Rebuild),
    Sign(sign::Sign),
}

impl CoordinatorCommand {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Rebuild(rebuild) => Box::pin(rebuild.run(env)).await,
            Self::Sign(sign) => sign.run(env).await,
        }
    }
}
