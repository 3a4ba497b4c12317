//! Rosters.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_audit::{Entry, Kind};
use muster_model::{Code, HostName, Refusal, RosterRevision};
use muster_proto::v1;
use muster_rollout::fleet::NextRoster;

use super::blocking;
use crate::coordinator::Shared;
use crate::fleet::FleetHandle;
use crate::status::{blob_refusal, chain};

/// Verifies a roster and makes it the fleet's next one; the first makes the fleet.
pub(super) async fn apply(
    shared: &Arc<Shared>,
    envelope: Vec<u8>,
    operator: &str,
) -> Result<v1::ApplyRosterResponse, Refusal> {
    let invalid = |error| Refusal::of(Code::SignatureInvalid, chain(&error));
    let verified = shared.root().verify_roster(&envelope, shared.machine.unix_time()).map_err(invalid)?;
    let (digest, name) = (verified.payload_digest(), verified.envelope_digest());
    let roster = verified.into_document();
    let fenced: BTreeSet<HostName> = roster.fenced().iter().map(|fence| fence.host.clone()).collect();
    let answer = v1::ApplyRosterResponse {
        fleet: roster.fleet().as_str().to_owned(),
        revision: roster.revision().0,
        hosts: u32::try_from(roster.hosts().len()).unwrap_or(u32::MAX),
    };
    let documents = shared.documents.clone();
    blocking(&shared.machine, move || documents.put(name, &envelope).map_err(|error| blob_refusal(&error)))
        .await?;
    let is_solo = shared.root().root().role(muster_model::SigningRole::Operator).threshold < 2;
    let solo = if is_solo { "; solo mode: one operator alone could sign it" } else { "" };
    let applied = shared.audit.entry(Kind::Roster, operator).of_fleet(roster.fleet()).with("roster", name);
    shared
        .audit(vec![applied.saying(format!("revision {}, {} hosts{solo}", answer.revision, answer.hosts))])
        .await?;
    match shared.fleet(roster.fleet()) {
        Some(fleet) => fleet.apply_roster(NextRoster { roster, digest, envelope: name, fenced }).await?,
        None if roster.revision() == RosterRevision(1) => {
            let shared = Arc::clone(shared);
            // To its end, even if whoever asked goes away: a fleet that is durable is led.
            let found = tokio::spawn(async move { shared.found(roster, digest, name).await });
            found.await.map_err(|error| super::ended_inside(&error))??;
        }
        None => {
            let detail = format!("a fleet begins with revision 1 of its roster, not {}", roster.revision());
            return Err(Refusal::of(Code::RosterChanged, detail));
        }
    }
    Ok(answer)
}

/// What a roster that holds states of hosts that serve nothing any more, for the audit log.
pub(super) fn fences(shared: &Shared, envelope: &[u8], operator: &str) -> Option<Entry> {
    let verified = shared.root().verify_roster(envelope, shared.machine.unix_time()).ok()?;
    let (roster, signers) = (verified.document(), verified.signers());
    if roster.fenced().is_empty() {
        return None;
    }
    let hosts = roster.fenced().iter().map(|fence| &fence.host);
    let reasons: Vec<String> =
        roster.fenced().iter().map(|it| format!("{}: {}", it.host, it.reason)).collect();
    let by: Vec<String> = signers.iter().map(ToString::to_string).collect();
    let solo = if signers.len() < 2 { "; solo mode: one operator alone stated it" } else { "" };
    tracing::warn!(fleet = %roster.fleet(), operator, ?reasons, "operators state that hosts serve nothing any more");
    let entry = shared.audit.entry(Kind::Fence, operator).of_fleet(roster.fleet()).of_hosts(hosts);
    let said = format!("{}; signed by {}{solo}", reasons.join(", "), by.join(" and "));
    Some(entry.with("roster", verified.envelope_digest()).saying(said))
}

/// The envelope of the roster in force.
pub(super) async fn show(shared: &Arc<Shared>, fleet: &FleetHandle) -> Result<Vec<u8>, Refusal> {
    let (documents, envelope) = (shared.documents.clone(), fleet.roster().envelope);
    blocking(&shared.machine, move || documents.read(envelope).map_err(|error| blob_refusal(&error))).await
}
