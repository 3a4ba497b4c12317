use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use muster_model::{HostName, HostPlace};

use super::place::{Moved, Outcome, TIMEOUT, in_no_roster};
use crate::args::{FleetArg, duration};
use crate::commands::Env;
use crate::commands::roster::{HandedIn, Next, is_parked, until};
use crate::error::CliError;
use crate::exit::Exit;

/// Have a host serve nothing for a while, with a signed roster that parks it, and wait until it has closed.
///
/// The others serve on, and flip without it from then on: N shrinks once the host has proven that it is closed. It stays
/// connected, is shown as parked, and gets the bytes of releases. Where several operators must sign, a file is left for them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster host park host-5 --reason rattling
  muster host park host-5 --fenced --reason unplugged")]
pub(crate) struct Park {
    /// The host
    #[arg(value_name = "NAME")]
    name: HostName,
    #[command(flatten)]
    fleet: FleetArg,
    /// Why, for whoever looks. It is signed
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// State that its machine is off or wiped: it need not answer. Be sure: nothing else keeps it from serving
    #[arg(long)]
    fenced: bool,
    /// How long to wait until it has closed
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = TIMEOUT)]
    timeout: Duration,
    /// Where several operators must sign: write the roster to this file [default: park-NAME.json]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Park {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let mut next = Next::of(&session, &fleet).await?;
        let was_asked = match next.before().place(&self.name) {
            Some(HostPlace::Serving) => false,
            Some(HostPlace::Parked) => true,
            Some(HostPlace::Retired) | None => return Err(in_no_roster(&self.name, &fleet)),
        };
        let file = self.out.unwrap_or_else(|| format!("park-{}.json", self.name).into());
        let revision = if was_asked && !self.fenced {
            // It was asked before: what is left is to wait for it.
            next.before().revision()
        } else {
            next.park(&self.name, &self.reason);
            if self.fenced {
                next.state_off(&self.name, &self.reason);
            }
            match next.hand_in(&session, &file).await? {
                HandedIn::Applied { revision } => revision,
                HandedIn::Drafted { file, approvals } => {
                    env.ui.report(&Moved::drafted(fleet, self.name, "park", file, approvals))?;
                    return Ok(Exit::Proven);
                }
            }
        };
        let is_done = |status: &muster_proto::v1::FleetStatus| is_parked(status, revision, &self.name);
        let status = until(env, &session, &fleet, self.timeout, is_done).await?;
        env.ui.report(&Moved::of(fleet, self.name, "park", Outcome::Parked, &status))?;
        Ok(Exit::Proven)
    }
}
