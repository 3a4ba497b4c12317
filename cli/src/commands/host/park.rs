use clap::Args;
use muster_model::HostPlace;

use super::place::{Leaving, Moved, Outcome, in_no_roster};
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
    #[command(flatten)]
    host: Leaving,
}

impl Park {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let file = self.host.file("park");
        let Leaving { name, fleet, reason, fenced, timeout, .. } = self.host;
        let fleet = session.fleet(fleet.fleet).await?;
        let mut next = Next::of(&session, &fleet).await?;
        let was_asked = match next.before().place(&name) {
            Some(HostPlace::Serving) => false,
            Some(HostPlace::Parked) => true,
            Some(HostPlace::Retired) | None => return Err(in_no_roster(&name, &fleet)),
        };
        let revision = if was_asked && !fenced {
            // It was asked before: what is left is to wait for it.
            next.before().revision()
        } else {
            next.park(&name, &reason);
            if fenced {
                next.state_off(&name, &reason);
            }
            match next.hand_in(&session, &file).await? {
                HandedIn::Applied { revision } => revision,
                HandedIn::Drafted { file, approvals } => {
                    env.ui.report(&Moved::drafted(fleet, name, "park", file, approvals))?;
                    return Ok(Exit::Proven);
                }
            }
        };
        let is_done = |status: &muster_proto::v1::FleetStatus| is_parked(status, revision, &name);
        let status = until(env, &session, &fleet, timeout, is_done).await?;
        env.ui.report(&Moved::of(fleet, name, "park", Outcome::Parked, &status))?;
        Ok(Exit::Proven)
    }
}
