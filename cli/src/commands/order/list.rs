use clap::Args;
use muster_model::FleetName;
use serde::Serialize;

use super::OrderView;
use crate::args::FleetArg;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::orders::Surroundings;
use crate::output::{Page, Report};

/// List the orders that wait for approvals, with those that expired or were taken back not long ago.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster order list
  muster order list --fleet demo --output json")]
pub(crate) struct List {
    #[command(flatten)]
    fleet: FleetArg,
}

impl List {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let pending = session.orders(&fleet).await?;
        let it = Surroundings::of(&session, &fleet).await?;
        let orders = pending.iter().map(|order| OrderView::of(&session, order, &it)).collect();
        env.ui.report(&Listed { fleet, orders })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    fleet: FleetName,
    orders: Vec<OrderView>,
}

impl Report for Listed {
    const SCHEMA: &'static str = "muster.orders/1";

    fn print(&self, page: &mut Page) {
        if self.orders.is_empty() {
            page.line(format_args!("no order of {} waits for approvals", self.fleet));
            return;
        }
        let header = ["ORDER", "ROLLOUT", "TO", "APPROVALS", "STATE", "UNTIL"];
        page.table(header, self.orders.iter().map(OrderView::row).collect());
        page.gap();
        page.line("Next: muster order show ID, then muster approve ID");
    }
}
