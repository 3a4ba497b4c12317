//! `muster roster`: the signed set of hosts.

mod add;
mod apply;
mod aside;
mod draft;
mod file;
mod hand_in;
mod policy;
mod propose;
mod show;
mod sign;
mod wait;

use clap::Subcommand;

pub(super) use hand_in::{HandedIn, Next};
pub(super) use wait::{Wait, holds, is_listed, is_parked, until};

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Show and change the signed set of hosts of a fleet.
#[derive(Debug, Subcommand)]
pub(crate) enum RosterCommand {
    Draft(draft::Draft),
    Propose(propose::Propose),
    Sign(sign::Sign),
    Apply(apply::Apply),
    Add(add::Add),
    Show(show::Show),
}

impl RosterCommand {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Draft(draft) => Box::pin(draft.run(env)).await,
            Self::Propose(propose) => Box::pin(propose.run(env)).await,
            Self::Sign(sign) => Box::pin(sign.run(env)).await,
            Self::Apply(apply) => Box::pin(apply.run(env)).await,
            Self::Add(add) => Box::pin(add.run(env)).await,
            Self::Show(show) => Box::pin(show.run(env)).await,
        }
    }
}
