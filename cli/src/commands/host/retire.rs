use clap::Args;
use muster_model::{FleetName, HostPlace};
use muster_proto::v1;

use super::place::{Leaving, Moved, Outcome, in_no_roster};
use crate::commands::Env;
use crate::commands::roster::{HandedIn, Next, holds, is_parked, until};
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;

/// Have a host leave for good: it is parked first, then listed as retired, and its certificates are revoked.
///
/// Its name is kept in the roster, and comes back only if an operator names it (`muster roster draft NAME…`, or `roster propose`
/// once it has enrolled anew) with another attestation key. Its certificates are revoked where the coordinator issues them, unless
/// another fleet of this coordinator lists the host. Where several operators must sign, each of the two steps leaves a file.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster host retire host-5 --reason \"sold\"")]
pub(crate) struct Retire {
    #[command(flatten)]
    host: Leaving,
}

impl Retire {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.host.fleet.fleet.clone()).await?;
        loop {
            let mut next = Next::of(&session, &fleet).await?;
            let revision = next.before().revision();
            let step = match next.before().place(&self.host.name) {
                Some(HostPlace::Serving) if !self.host.fenced => {
                    next.park(&self.host.name, &self.host.reason);
                    "park"
                }
                Some(HostPlace::Serving | HostPlace::Parked) => {
                    // It has closed, or nothing proves it but the statement.
                    if !self.host.fenced {
                        let name = &self.host.name;
                        until(env, &session, &fleet, self.host.timeout, |it| is_parked(it, revision, name))
                            .await?;
                    }
                    if self.host.fenced {
                        next.state_off(&self.host.name, &self.host.reason);
                    }
                    next.retire(&self.host.name, &self.host.reason);
                    "retire"
                }
                Some(HostPlace::Retired) => {
                    let status =
                        until(env, &session, &fleet, self.host.timeout, |it| holds(it, revision)).await?;
                    let revoked = self.revoke(env, &session, &fleet, &status).await?;
                    let mut moved = Moved::of(fleet, self.host.name, "retire", Outcome::Retired, &status);
                    moved.certificates_revoked = revoked;
                    env.ui.report(&moved)?;
                    return Ok(Exit::Proven);
                }
                None => return Err(in_no_roster(&self.host.name, &fleet)),
            };
            let file = self.host.file(step);
            match next.hand_in(&session, &file).await? {
                HandedIn::Applied { .. } => {}
                HandedIn::Drafted { file, approvals } => {
                    env.ui.report(&Moved::drafted(fleet, self.host.name, step, file, approvals))?;
                    return Ok(Exit::Proven);
                }
            }
        }
    }

    /// Revokes its certificates where there is an issuer, and no other fleet needs them.
    async fn revoke(
        &self,
        env: &Env,
        session: &Session,
        fleet: &FleetName,
        status: &v1::FleetStatus,
    ) -> Result<Option<u32>, CliError> {
        let issuer = status.coordinator_certificate.as_ref().and_then(|it| it.issuer_expires_unix_ms);
        if issuer.is_none() {
            env.ui
                .warn("the coordinator issues no certificates: have whoever issued this host's revoke them");
            return Ok(None);
        }
        let mut client = session.operations();
        let fleets = answer("list the fleets", client.list_fleets(v1::ListFleetsRequest {})).await?;
        for other in fleets.fleets.iter().filter(|it| it.fleet != fleet.as_str()) {
            let Ok(other) = FleetName::new(&other.fleet) else { continue };
            let roster = Box::pin(session.last_roster(&other)).await?;
            if matches!(
                roster.document().place(&self.host.name),
                Some(HostPlace::Serving | HostPlace::Parked)
            ) {
                env.ui.warn(format_args!(
                    "{other} lists {} as well: its certificates stay good",
                    self.host.name
                ));
                return Ok(None);
            }
        }
        let (host, reason) = (self.host.name.to_string(), self.host.reason.clone());
        // There is an issuer: a new token lets the host in again.
        let request = v1::EvictHostRequest { host, reason, for_good: false };
        let evicted =
            answer(&format!("revoke the certificates of {}", self.host.name), client.evict_host(request))
                .await?;
        Ok(Some(evicted.certificates))
    }
}
