//! `muster break-glass`: tokens with which a host starts what its fleet serves when there is no coordinator, and what follows.

mod issue;
mod settle;
mod settlement;
mod show;
mod sign;
mod token;

use clap::Subcommand;

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Prepare for the case that a host is dark and there is no coordinator: tokens that let it start what its fleet serves.
#[derive(Debug, Subcommand)]
pub(crate) enum BreakGlass {
    Issue(issue::Issue),
    Sign(sign::Sign),
    Show(show::Show),
    Settle(settle::Settle),
}

impl BreakGlass {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Issue(issue) => Box::pin(issue.run(env)).await,
            Self::Sign(sign) => sign.run(env),
            Self::Show(show) => show.run(env),
            Self::Settle(settle) => Box::pin(settle.run(env)).await,
        }
    }
}
