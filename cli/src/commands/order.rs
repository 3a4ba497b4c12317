//! `muster order`: the orders that wait for approvals.

mod cancel;
mod list;
mod show;
mod view;

use clap::Subcommand;

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

pub(super) use view::{Approvals, OrderView};

/// See and take back orders that wait until enough operators have signed them.
#[derive(Debug, Subcommand)]
pub(crate) enum OrderCommand {
    List(list::List),
    Show(show::Show),
    Cancel(cancel::Cancel),
}

impl OrderCommand {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::List(list) => Box::pin(list.run(env)).await,
            Self::Show(show) => Box::pin(show.run(env)).await,
            Self::Cancel(cancel) => Box::pin(cancel.run(env)).await,
        }
    }
}
