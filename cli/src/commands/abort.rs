use clap::Args;
use muster_model::FleetName;
use muster_proto::v1;
use serde::Serialize;

use crate::args::FleetArg;
use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// Give up the rollout that is under way, as long as it is not decided. The old release goes on being served.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster abort
  muster abort 7 --fleet demo")]
pub(crate) struct Abort {
    /// The number of the rollout, to be sure to abort no other [default: whichever is under way]
    #[arg(value_name = "K", value_parser = clap::value_parser!(u64).range(1..))]
    k: Option<u64>,
    #[command(flatten)]
    fleet: FleetArg,
}

impl Abort {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let doing = match self.k {
            Some(k) => format!("abort rollout {k} of {fleet}"),
            None => format!("abort the rollout of {fleet}"),
        };
        let request = v1::AbortRequest { fleet: fleet.to_string(), k: self.k.unwrap_or(0) };
        let mut client = session.operations();
        let aborted = answer(&doing, client.abort(request)).await?;
        env.ui.report(&Aborted { fleet, rollout: aborted.k })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Aborted {
    fleet: FleetName,
    rollout: u64,
}

impl Report for Aborted {
    const SCHEMA: &'static str = "muster.abort/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, rollout } = self;
        page.toned(
            Tone::Good,
            format_args!("rollout {rollout} of {fleet} is aborted; what was served is served on"),
        );
    }
}
