//! Rosters.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_audit::{Entry, Kind};
use muster_model::{Code, Digest, HostName, Refusal, Roster, RosterRevision, SigningRole};
use muster_proto::v1;
use muster_rollout::fleet::NextRoster;
use muster_trust::Authentic;

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
    let verified = verify(shared, &envelope)?;
    take(shared, verified, operator).await
}

/// The same for one that a joiner's key has made longer. Nobody applies with it what operators have signed.
pub(super) async fn add(
    shared: &Arc<Shared>,
    envelope: Vec<u8>,
    joiner: &str,
) -> Result<v1::AddHostsResponse, Refusal> {
    let verified = verify(shared, &envelope)?;
    let roster = verified.document();
    if roster.additions().is_none() {
        let detail = "no joiner's key has signed this roster; operators apply what they sign";
        return Err(Refusal::of(Code::NotAllowed, detail));
    }
    let room = room(shared, roster);
    let v1::ApplyRosterResponse { fleet, revision, hosts, .. } = take(shared, verified, joiner).await?;
    Ok(v1::AddHostsResponse { fleet, revision, hosts, room })
}

/// What joiners have added to a fleet's roster and may still add; nothing where they may not and have not.
pub(super) fn additions(shared: &Shared, roster: &Roster) -> Option<v1::RosterAdditions> {
    let room = room(shared, roster);
    let added = roster.additions();
    if room == 0 && added.is_none() {
        return None;
    }
    let hosts = added.into_iter().flat_map(|additions| &additions.hosts);
    Some(v1::RosterAdditions {
        base_revision: added.map_or_else(|| roster.revision(), |additions| additions.base_revision).0,
        hosts: hosts.map(|member| member.name.as_str().to_owned()).collect(),
        room,
    })
}

fn verify(shared: &Shared, envelope: &[u8]) -> Result<Authentic<Roster>, Refusal> {
    let invalid = |error| Refusal::of(Code::SignatureInvalid, chain(&error));
    shared.root().verify_roster(envelope, shared.machine.unix_time()).map_err(invalid)
}

async fn take(
    shared: &Arc<Shared>,
    verified: Authentic<Roster>,
    who: &str,
) -> Result<v1::ApplyRosterResponse, Refusal> {
    let (digest, name) = (verified.payload_digest(), verified.envelope_digest());
    let (envelope, said) = (Arc::clone(verified.raw()), said(shared, &verified));
    let roster = verified.into_document();
    let fenced: BTreeSet<HostName> = roster.fenced().iter().map(|fence| fence.host.clone()).collect();
    let mut answer = v1::ApplyRosterResponse {
        coming: false,
        awaited: Vec::new(),
        fleet: roster.fleet().as_str().to_owned(),
        revision: roster.revision().0,
        hosts: u32::try_from(roster.hosts().len()).unwrap_or(u32::MAX),
    };
    let documents = shared.documents.clone();
    blocking(&shared.machine, move || documents.put(name, &envelope).map_err(|error| blob_refusal(&error)))
        .await?;
    let applied = shared.audit.entry(Kind::Roster, who).of_fleet(roster.fleet()).with("roster", name);
    shared.audit(vec![applied.saying(said)]).await?;
    match shared.fleet(roster.fleet()) {
        Some(fleet) => {
            let next = NextRoster { roster, digest, envelope: name, fenced };
            let revision = next.roster.revision();
            if let Err(refusal) = fleet.apply_roster(next).await {
                return Err(collision(shared, &fleet, (revision, name), refusal).await);
            }
            let coming = fleet.view().await?.coming;
            let coming = coming.filter(|(coming, _)| coming.revision().0 == answer.revision);
            answer.coming = coming.is_some();
            let awaited = coming.into_iter().flat_map(|(_, awaited)| awaited);
            answer.awaited = awaited.map(|host| host.as_str().to_owned()).collect();
        }
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

/// Says who came first, if a roster was refused because another has taken its revision.
async fn collision(
    shared: &Shared,
    fleet: &FleetHandle,
    (revision, envelope): (RosterRevision, Digest),
    refusal: Refusal,
) -> Refusal {
    let present = fleet.roster();
    let (last, last_envelope) = present.coming.unwrap_or((present.roster, present.envelope));
    if refusal.code() != Some(Code::RosterChanged) || revision > last.revision() {
        return refusal;
    }
    let first = last_roster(shared, last_envelope).await;
    let by = first.map(|entry| format!(" by {} ({})", entry.who, entry.detail)).unwrap_or_default();
    let detail = if last_envelope == envelope {
        format!("this very roster was handed in before{by}")
    } else {
        format!(
            "this roster has revision {revision}, and revision {} was handed in before{by}: look at `muster roster show`, \
             and draft yours again from that, or give the same command once more",
            last.revision()
        )
    };
    Refusal::of(Code::RosterChanged, detail)
}

/// How many of the newest entries of the audit log are looked through for who handed a roster in.
const ENTRIES_LOOKED_THROUGH: u64 = 2_000;

/// The entry of the roster with this envelope, by whoever handed it in.
async fn last_roster(shared: &Shared, envelope: Digest) -> Option<Entry> {
    let size = shared.audit.checkpoint().checkpoint().size;
    let mut from = size.saturating_sub(ENTRIES_LOOKED_THROUGH);
    while from < size {
        let read = shared.audit.read(from).await.ok().filter(|read| !read.is_empty())?;
        let entries = read.iter().zip(from..).filter_map(|(bytes, place)| Entry::parse(bytes, place).ok());
        let is_it = |it: &Entry| it.kind == Kind::Roster && it.documents.get("roster") == Some(&envelope);
        if let Some(entry) = entries.into_iter().find(is_it) {
            return Some(entry);
        }
        from += read.len() as u64;
    }
    None
}

/// How many more hosts joiners may add, by the root in force.
fn room(shared: &Shared, roster: &Roster) -> u32 {
    shared.root().root().joiners.as_ref().map_or(0, |joiners| joiners.room(roster))
}

/// The most hosts that an entry of the audit log names.
const NAMED_MAX: usize = 32;

/// What the audit log says of a roster: of one that joiners made longer, who, whom, to what, and how far they may go.
fn said(shared: &Shared, verified: &Authentic<Roster>) -> String {
    let (root, roster) = (shared.root(), verified.document());
    let aside = match (roster.parked().len(), roster.retired().len()) {
        (0, 0) => String::new(),
        (parked, retired) => format!(", {parked} parked, {retired} retired"),
    };
    let what = format!("revision {}, {} hosts{aside}", roster.revision(), roster.hosts().len());
    let (Some(added), Some(limits)) = (roster.additions(), &root.root().joiners) else {
        let is_solo = root.root().role(SigningRole::Operator).threshold < 2;
        let solo = if is_solo { "; solo mode: one operator alone could sign it" } else { "" };
        return format!("{what}{solo}");
    };
    let names: Vec<&str> = added.hosts.iter().take(NAMED_MAX).map(|member| member.name.as_str()).collect();
    let more = added.hosts.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let by: Vec<String> = verified.signers().iter().map(ToString::to_string).collect();
    format!(
        "{what}; the joiners {} have added {}{more} to revision {}; they may go to {} hosts, {} more",
        by.join(" and "),
        names.join(", "),
        added.base_revision,
        limits.hosts_max,
        limits.room(roster),
    )
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

/// The envelopes of the roster in force, and of the coming one.
pub(super) async fn show(
    shared: &Arc<Shared>,
    fleet: &FleetHandle,
) -> Result<v1::ShowRosterResponse, Refusal> {
    let (documents, rosters) = (shared.documents.clone(), fleet.roster());
    let read = move || -> Result<_, Refusal> {
        let read = |envelope| documents.read(envelope).map_err(|error| blob_refusal(&error));
        let coming_envelope = rosters.coming.map(|(_, envelope)| read(envelope)).transpose()?;
        Ok(v1::ShowRosterResponse { envelope: read(rosters.envelope)?, coming_envelope })
    };
    blocking(&shared.machine, read).await
}
