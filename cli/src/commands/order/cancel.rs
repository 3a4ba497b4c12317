use clap::Args;
use muster_model::{Digest, FleetName};
use muster_proto::v1;
use serde::Serialize;

use crate::args::FleetArg;
use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::orders::OrderName;
use crate::output::{Page, Report, Tone};

/// Take an order back that waits for approvals: no rollout begins with it any more, whoever has signed it.
///
/// Any operator may, alone. It keeps nobody from proposing the same again; a rollout that has begun is given up with
/// `muster abort`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster order cancel 5f0c2a91")]
pub(crate) struct Cancel {
    /// The order: its digest, or at least 8 hex digits of it
    #[arg(value_name = "ID")]
    order: OrderName,
    #[command(flatten)]
    fleet: FleetArg,
}

impl Cancel {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let order = session.order(&fleet, &self.order).await?.id();
        let request = v1::CancelOrderRequest { fleet: fleet.to_string(), id: order.as_bytes().to_vec() };
        let mut client = session.operations();
        Box::pin(answer(&format!("cancel the order {order}"), client.cancel_order(request))).await?;
        env.ui.report(&Cancelled { fleet, order })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Cancelled {
    fleet: FleetName,
    order: Digest,
}

impl Report for Cancelled {
    const SCHEMA: &'static str = "muster.order-cancelled/1";

    fn print(&self, page: &mut Page) {
        page.toned(Tone::Good, format_args!("the order {} of {} was taken back", self.order, self.fleet));
    }
}
