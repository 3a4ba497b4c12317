use clap::Args;

use super::OrderView;
use crate::args::FleetArg;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::orders::{OrderName, Surroundings};

/// Show everything that an order says, who has signed it, and why it could not be begun now.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster order show 5f0c2a91")]
pub(crate) struct Show {
    /// The order: its digest, or at least 8 hex digits of it
    #[arg(value_name = "ID")]
    order: OrderName,
    #[command(flatten)]
    fleet: FleetArg,
}

impl Show {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let pending = session.order(&fleet, &self.order).await?;
        let it = Surroundings::of(&session, &fleet).await?;
        let view = OrderView::of(&session, &pending, &it).with_changes(&session, &pending, &it).await?;
        env.ui.report(&view)?;
        Ok(Exit::Proven)
    }
}
