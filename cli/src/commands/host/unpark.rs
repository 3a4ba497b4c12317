use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use muster_model::{Blocker, Code, HostName, HostPlace};
use muster_proto::{convert, v1};

use super::place::{Moved, Outcome, TIMEOUT, in_no_roster};
use crate::args::{FleetArg, duration};
use crate::commands::Env;
use crate::commands::roster::{HandedIn, Next, Wait, is_listed, until};
use crate::error::CliError;
use crate::exit::Exit;

/// Have a parked host serve again, with a signed roster, and wait until it does.
///
/// It comes back dark, measures the release that the others serve by then, and is admitted. Deploy that release first if the host
/// does not have it. Also takes back a host that was asked to close and has not answered.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster host unpark host-5")]
pub(crate) struct Unpark {
    /// The host
    #[arg(value_name = "NAME")]
    name: HostName,
    #[command(flatten)]
    fleet: FleetArg,
    /// How long to wait until it serves
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = TIMEOUT)]
    timeout: Duration,
    /// Where several operators must sign: write the roster to this file [default: unpark-NAME.json]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Unpark {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let mut next = Next::of(&session, &fleet).await?;
        let revision = match next.before().place(&self.name) {
            // It was taken back before: what is left is to wait for it.
            Some(HostPlace::Serving) => next.before().revision(),
            Some(HostPlace::Retired) | None => return Err(in_no_roster(&self.name, &fleet)),
            Some(HostPlace::Parked) => {
                next.unpark(&self.name);
                let file = self.out.unwrap_or_else(|| format!("unpark-{}.json", self.name).into());
                match next.hand_in(&session, &file).await? {
                    HandedIn::Applied { revision } => revision,
                    HandedIn::Drafted { file, approvals } => {
                        env.ui.report(&Moved::drafted(fleet, self.name, "unpark", file, approvals))?;
                        return Ok(Exit::Proven);
                    }
                }
            }
        };
        let serves = |status: &v1::FleetStatus| {
            is_listed(status, revision, &self.name)
                .and_then(|()| serves(status, &self.name).map_err(Wait::For))
        };
        let status = until(env, &session, &fleet, self.timeout, serves).await?;
        env.ui.report(&Moved::of(fleet, self.name, "unpark", Outcome::Serving, &status))?;
        Ok(Exit::Proven)
    }
}

/// Whether the host serves what the others do, or why not yet.
fn serves(status: &v1::FleetStatus, name: &HostName) -> Result<(), Vec<Blocker>> {
    let host = status.hosts.iter().find(|host| host.host == name.as_str());
    let is_there = host.is_some_and(|host| {
        host.connected && (status.epoch == 0 || host.serving_epoch == Some(status.epoch))
    });
    if is_there {
        return Ok(());
    }
    let told = host.and_then(|host| convert::blockers(host.blockers.clone()).ok()).unwrap_or_default();
    Err(if told.is_empty() {
        vec![Blocker::host(Code::HostDark, name, "it was not admitted yet")]
    } else {
        told
    })
}
