//! The first roster of a local fleet: all its hosts.

use muster_model::{BootGatePolicy, ClockPolicy, Member, Policy, Roster, RosterRevision};
use muster_proto::v1;
use muster_trust::{Signer, sign};

use super::fleet::LocalFleet;
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::provision::hosts;

/// Signs and applies revision 1, unless the coordinator knows the fleet already.
pub(super) async fn apply(session: &Session, fleet: &LocalFleet) -> Result<(), CliError> {
    let doing = format!("apply the first roster of {}", fleet.name);
    let mut client = session.operations();
    let known = Box::pin(answer("list the fleets", client.list_fleets(v1::ListFleetsRequest {}))).await?;
    if known.fleets.iter().any(|known| known.fleet == fleet.name.as_str()) {
        return Ok(());
    }
    let members = hosts(&fleet.dir)?
        .into_iter()
        .filter(|bundle| fleet.hosts.contains(&bundle.name))
        .map(|bundle| Member { name: bundle.name, attestation_key: bundle.attestation_key });
    // The hosts' links lie in the fleet's folder, which a reboot does not empty. All hosts are this machine, so that they
    // pause together, and with them the coordinator.
    let (boot_gate, clock) = (BootGatePolicy::Optional, ClockPolicy::Any);
    let policy = Policy { boot_gate, clock, timing: fleet.timing() };
    let roster = Roster::new(fleet.name.clone(), RosterRevision(1), policy, members.collect())
        .map_err(|source| CliError::Document { doing: doing.clone(), source })?;
    let key = session.context().operator_key()?;
    let signers: [&dyn Signer; 1] = [&*key];
    let envelope = sign(&roster, &signers).map_err(CliError::trust(doing.as_str()))?;
    let request = v1::ApplyRosterRequest { envelope: envelope.raw().to_vec(), fenced: Vec::new() };
    Box::pin(answer(&doing, client.apply_roster(request))).await?;
    Ok(())
}
