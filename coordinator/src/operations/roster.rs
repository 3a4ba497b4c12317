//! Rosters.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_audit::{Entry, Kind};
use muster_daemon::crash_point;
use muster_model::{Code, Digest, HostName, Refusal, Roster, RosterRevision, SigningRole};
use muster_proto::v1;
use muster_rollout::fleet::{FleetRecord, NextRoster};
use muster_trust::Authentic;

use super::blocking;
use crate::coordinator::Shared;
use crate::fleet::FleetHandle;
use crate::status::{blob_refusal, chain};

/// Verifies a roster and makes it the fleet's next one; the first makes the fleet.
///
/// To its end, even if whoever asked goes away: what is in the audit log is done, or the log says that it is not.
pub(super) async fn apply(
    shared: &Arc<Shared>,
    envelope: Vec<u8>,
    operator: &str,
) -> Result<v1::ApplyRosterResponse, Refusal> {
    let (shared, who) = (Arc::clone(shared), operator.to_owned());
    let applied = tokio::spawn(async move {
        let mut stated = None;
        let taken = match verify(&shared, &envelope) {
            Ok(verified) => take(&shared, verified, &who, &mut stated).await,
            Err(refusal) => Err(refusal),
        };
        super::audit::settled(&shared, &who, "apply a roster", stated, taken).await
    });
    applied.await.map_err(|error| super::ended_inside(&error))?
}

/// The same for one that a joiner's key has made longer. Nobody applies with it what operators have signed.
pub(super) async fn add(
    shared: &Arc<Shared>,
    envelope: Vec<u8>,
    joiner: &str,
) -> Result<v1::AddHostsResponse, Refusal> {
    let (shared, who) = (Arc::clone(shared), joiner.to_owned());
    let added = tokio::spawn(async move {
        let added = add_now(&shared, &envelope, &who).await;
        super::audit::settled(&shared, &who, "add hosts", None, added).await
    });
    added.await.map_err(|error| super::ended_inside(&error))?
}

async fn add_now(
    shared: &Arc<Shared>,
    envelope: &[u8],
    joiner: &str,
) -> Result<v1::AddHostsResponse, Refusal> {
    let verified = verify(shared, envelope)?;
    let roster = verified.document();
    if roster.additions().is_none() {
        let detail = "no joiner's key has signed this roster; operators apply what they sign";
        return Err(Refusal::of(Code::NotAllowed, detail));
    }
    let room = room(shared, roster);
    // What is added follows what operators have signed, who alone state that machines are off.
    let v1::ApplyRosterResponse { fleet, revision, hosts, .. } =
        take(shared, verified, joiner, &mut None).await?;
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

/// Takes a roster on. What would be refused now leaves no trace but the refusal; what is taken is in the audit log before. Where an
/// entry of the log states that machines are off is put into `stated`.
async fn take(
    shared: &Arc<Shared>,
    verified: Authentic<Roster>,
    who: &str,
    stated: &mut Option<u64>,
) -> Result<v1::ApplyRosterResponse, Refusal> {
    let (digest, name) = (verified.payload_digest(), verified.envelope_digest());
    let fences = fences(shared, &verified, who);
    let (envelope, mut said) = (Arc::clone(verified.raw()), said(shared, &verified));
    let roster = verified.into_document();
    let fenced: BTreeSet<HostName> = roster.fenced().iter().map(|fence| fence.host.clone()).collect();
    let (fleet_name, revision) = (roster.fleet().clone(), roster.revision());
    let mut answer = v1::ApplyRosterResponse {
        coming: false,
        awaited: Vec::new(),
        fleet: fleet_name.as_str().to_owned(),
        revision: revision.0,
        hosts: u32::try_from(roster.hosts().len()).unwrap_or(u32::MAX),
    };
    let fleet = shared.fleet(&fleet_name);
    let next = NextRoster { roster, digest, envelope: name, fenced };
    match &fleet {
        Some(fleet) => {
            if let Err(refusal) = fleet.rehearse_roster(next.clone()).await {
                return Err(collision(shared, fleet, (revision, name), refusal).await);
            }
            said.push_str(&orders_that_end(shared, &fleet.view().await?.record));
        }
        None if revision == RosterRevision(1) => shared.may_found(&fleet_name)?,
        None => {
            let detail = format!("a fleet begins with revision 1 of its roster, not {revision}");
            return Err(Refusal::of(Code::RosterChanged, detail));
        }
    }
    let documents = shared.documents.clone();
    blocking(&shared.machine, move || documents.put(name, &envelope).map_err(|error| blob_refusal(&error)))
        .await?;
    let handed_in = shared.audit.entry(Kind::Roster, who).of_fleet(&fleet_name).with("roster", name);
    let is_stating = fences.is_some();
    let entries = fences.into_iter().chain([handed_in.saying(said)]).collect();
    *stated = Some(shared.audit(entries).await?).filter(|_| is_stating);
    crash_point("coordinator.roster.said");
    match fleet {
        Some(fleet) => {
            if let Err(refusal) = fleet.apply_roster(next).await {
                return Err(collision(shared, &fleet, (revision, name), refusal).await);
            }
            crash_point("coordinator.roster.taken");
            let coming = fleet.view().await?.coming;
            let coming = coming.filter(|(coming, _)| coming.revision().0 == answer.revision);
            answer.coming = coming.is_some();
            let awaited = coming.into_iter().flat_map(|(_, awaited)| awaited);
            answer.awaited = awaited.map(|host| host.as_str().to_owned()).collect();
        }
        None => shared.found(next.roster, digest, name).await?,
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
            "this roster has revision {revision}, and revision {} was handed in before{by}; the next one is {}: look at \
             `muster roster show`, and draft yours again from that, or give the same command once more",
            last.revision(),
            last.revision().next()
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

/// Orders that wait are bound to the roster in force, with its N: under another one none of them is begun. What is kept until the
/// fleet has settled ends them then.
fn orders_that_end(shared: &Shared, record: &FleetRecord) -> String {
    let bound = super::orders::bound_to_roster(shared, record);
    if bound.is_empty() {
        return String::new();
    }
    let named: Vec<String> = bound.iter().map(ToString::to_string).collect();
    let revision = record.roster.revision;
    format!(
        "; orders that wait for rollout {} are for revision {revision}, and end once it holds",
        named.join(", ")
    )
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

/// What a roster states of hosts that serve nothing any more, for the audit log.
fn fences(shared: &Shared, verified: &Authentic<Roster>, operator: &str) -> Option<Entry> {
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
