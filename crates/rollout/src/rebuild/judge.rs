//! Where a fleet stands, by the word of all its hosts.

use std::collections::BTreeMap;

use muster_model::{Blocker, Code, Digest, Epoch, HostName, Mandate, Member, Membership, RolloutId, Roster};

use super::testimony::{Promise, Testimony, Told};
use crate::gate;
use crate::host::{History, Serving};

/// Rollouts and epochs beyond this are made up: whoever leads counts on from the greatest one that a host tells of.
pub(crate) const NUMBER_MAX: u64 = 1 << 48;

/// What the records of all hosts come to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// The epoch that the fleet is at.
    pub epoch: Epoch,
    /// Its manifest.
    pub serving: Option<Digest>,
    /// The newest rollout that some host knows.
    pub last_k: RolloutId,
    /// The last rollout when the fleet was halted, if it is.
    pub halted: Option<RolloutId>,
    /// The rollout that began this epoch, while hosts are still to open it.
    pub opened: Option<Promise>,
    /// The rollout that some host has closed for: it can only go forward.
    pub decided: Option<Promise>,
}

/// Works out where the fleet stands. What is missing, or does not fit together, is a blocker: nothing is guessed.
///
/// A rollout for which some host has closed was decided, and goes forward. One for which hosts are armed and nobody has closed may
/// have been decided by the coordinator that was lost, but nobody can act on that any more: every host has durably left it. It is
/// given up.
pub fn judge(
    roster: &Roster,
    mandate: &Mandate,
    told: &BTreeMap<HostName, Testimony>,
) -> Result<Verdict, Vec<Blocker>> {
    let heard = hear(roster, mandate, told)?;
    let epoch = epoch_of(&heard);
    let opened = newest(heard.iter().filter_map(|it| it.mode.towards(epoch)));
    let coming = newest(heard.iter().filter_map(|it| it.mode.towards(epoch.next())));
    let some_are_off = roster.hosts().iter().any(|member| mandate.fenced.binary_search(&member.name).is_ok());
    let decided = coming.filter(|promise| {
        is_decided(&heard, promise) || (some_are_off && could_open_over_all(&heard, promise))
    });
    let blockers: Vec<Blocker> =
        heard.iter().filter_map(|it| contradiction(it, epoch, opened, decided)).collect();
    if !blockers.is_empty() {
        return Err(blockers);
    }
    let serving = release_of(&heard, epoch, opened)?;
    let parked = roster.parked().iter().filter_map(|it| told.get(&it.name));
    let known = heard.iter().copied().chain(parked);
    let known = known.flat_map(|it| it.mode.promises().map(|it| it.k).chain([it.last_k]));
    // A halt that reached only some is theirs: rebuilding stops nothing that is served.
    let is_dark = heard.iter().all(|it| it.serving.is_none());
    let halted = heard.iter().filter_map(|it| it.halted).max().filter(|_| is_dark);
    Ok(Verdict { epoch, serving, last_k: known.max().unwrap_or_default(), halted, opened, decided })
}

/// Those who must be heard, if all of them were.
fn hear<'a>(
    roster: &Roster,
    mandate: &Mandate,
    told: &'a BTreeMap<HostName, Testimony>,
) -> Result<Vec<&'a Testimony>, Vec<Blocker>> {
    let mut heard = Vec::with_capacity(roster.hosts().len());
    let mut blockers = Vec::new();
    for Member { name, .. } in roster.hosts() {
        match (told.get(name), mandate.fenced.binary_search(name).is_ok()) {
            (Some(testimony), false) => match distrust(roster, testimony).or_else(|| behind(testimony)) {
                Some(blocker) => blockers.push(blocker),
                None => heard.push(testimony),
            },
            (None, false) => blockers.push(gate::missing(name)),
            (Some(_), true) => {
                let detail = "the operators state that its machine is off, and it is connected";
                blockers.push(Blocker::host(Code::RemovalNeedsEvidence, name, detail));
            }
            (None, true) => {}
        }
    }
    blockers.extend(roster.parked().iter().filter_map(|it| unparked(roster, mandate, told, &it.name)));
    if blockers.is_empty() { Ok(heard) } else { Err(blockers) }
}

/// Why a host that the roster parks could still serve: the roster that was lost may not have held yet, and then nobody else
/// knows whether the host has closed.
fn unparked(
    roster: &Roster,
    mandate: &Mandate,
    told: &BTreeMap<HostName, Testimony>,
    host: &HostName,
) -> Option<Blocker> {
    if mandate.fenced.binary_search(host).is_ok() {
        return None;
    }
    let Some(testimony) = told.get(host) else { return Some(gate::missing(host)) };
    let has_closed = matches!(testimony.membership, Membership::Excluded(_)) && testimony.serving.is_none();
    let detail = "the roster parks it, and it has not closed yet";
    let open = || Blocker::host(Code::RemovalNeedsEvidence, host, detail);
    distrust(roster, testimony).or_else(|| (!has_closed).then(open))
}

/// Why a host's word cannot be used, whatever the others say.
fn distrust(roster: &Roster, it: &Testimony) -> Option<Blocker> {
    if it.history == History::Lost {
        let detail = "its journal was damaged, so that it cannot say what it promised";
        return Some(Blocker::host(Code::HistoryLost, &it.host, detail));
    }
    if it.greatest_number() > NUMBER_MAX {
        let detail = format!("it tells of a rollout or an epoch beyond {NUMBER_MAX}, which no fleet reaches");
        return Some(Blocker::host(Code::HistoryLost, &it.host, detail));
    }
    if let Some(k) = it.closing {
        let detail = format!("it is closing for rollout {k}, and cannot say yet that it has");
        return Some(Blocker::host(Code::HostSilent, &it.host, detail));
    }
    if it.roster_revision > roster.revision() {
        let detail = format!(
            "it has seen revision {} of the roster, and the mandate is for revision {}",
            it.roster_revision,
            roster.revision()
        );
        return Some(Blocker::host(Code::RosterChanged, &it.host, detail));
    }
    None
}

/// A host that an earlier roster left out goes by the mandate's once it has seen it.
fn behind(it: &Testimony) -> Option<Blocker> {
    let Membership::Excluded(by) = it.membership else { return None };
    let detail = format!("it goes by revision {by} of the roster, which leaves it out");
    Some(Blocker::host(Code::RosterChanged, &it.host, detail))
}

/// The newest epoch that was opened to some host.
///
/// What hosts serve was opened, and so was what a host waited for when a later rollout came. Where there is neither, all are closed
/// and what they closed from is the newest.
fn epoch_of(heard: &[&Testimony]) -> Epoch {
    let served = heard.iter().filter_map(|it| it.mode.serving()).map(|serving| serving.epoch);
    let passed = heard.iter().filter_map(|it| it.mode.opened_to_others()).map(|promise| promise.epoch);
    let opened = served.chain(passed).max();
    let closed = heard.iter().filter_map(|it| match it.mode {
        Told::Closed { next, .. } => Some(Epoch(next.epoch.0.saturating_sub(1))),
        Told::Serve(_) | Told::Armed { .. } => None,
    });
    opened.or_else(|| closed.max()).unwrap_or_default()
}

/// The promise of the newest rollout.
fn newest(promises: impl Iterator<Item = Promise>) -> Option<Promise> {
    promises.max_by_key(|promise| promise.k)
}

/// Whether a rollout must go forward: some host has closed for it and has no way back, or its guard was told to flip at an
/// instant. A host that was dark when it armed is closed as well, and can be told that the rollout was given up.
fn is_decided(heard: &[&Testimony], promise: &Promise) -> bool {
    heard.iter().any(|it| match &it.mode {
        Told::Closed { next, fallback: None, .. } | Told::Armed { next, set: true, .. } => {
            next.k == promise.k
        }
        Told::Serve(_) | Told::Armed { .. } | Told::Closed { .. } => false,
    })
}

/// Whether the coordinator that was lost, if it is not, can still open a host that nobody hears: it may have decided, that host may
/// have closed, and the order lets all that are heard lapse. The rollout goes forward then, so that there is one way only.
fn could_open_over_all(heard: &[&Testimony], promise: &Promise) -> bool {
    heard.len() <= promise.max_lapsed as usize
        && heard.iter().all(|it| it.mode.towards(promise.epoch) == Some(*promise))
}

/// Why what a host says cannot be, given what the others say.
fn contradiction(
    it: &Testimony,
    epoch: Epoch,
    opened: Option<Promise>,
    decided: Option<Promise>,
) -> Option<Blocker> {
    let set_back = |detail: String| Some(Blocker::host(Code::RolledBackDisk, &it.host, detail));
    if let Some(decided) = decided
        && it.mode.towards(decided.epoch) != Some(decided)
    {
        let k = decided.k;
        return set_back(format!("others have closed for rollout {k}, for which it must have armed as well"));
    }
    let waits = it.mode.towards(epoch);
    if waits.is_some() && waits != opened {
        return set_back(format!("it waits for another epoch {epoch} than the others"));
    }
    let has_no_history =
        it.last_k == RolloutId(0) && it.mode == Told::Serve(Serving { epoch: Epoch(0), release: None });
    // One that was left out for a while did not take part in what the others did.
    let is_new = has_no_history || it.membership == Membership::Returned;
    let is_at = it.mode.serving().is_some_and(|serving| serving.epoch == epoch);
    let closed_from = it.mode.serving().is_none() && it.mode.towards(epoch.next()).is_some();
    if is_new || is_at || waits.is_some() || closed_from {
        return None;
    }
    let at = it.mode.serving().map_or_else(
        || "it is closed".to_owned(),
        |serving| format!("it is settled on epoch {}", serving.epoch),
    );
    set_back(format!("{at}, and others have reached epoch {epoch}, which needed it"))
}

/// The release of the epoch, on which all must agree.
fn release_of(
    heard: &[&Testimony],
    epoch: Epoch,
    opened: Option<Promise>,
) -> Result<Option<Digest>, Vec<Blocker>> {
    let named = |it: &Testimony| {
        let serving = it.mode.serving().filter(|serving| serving.epoch == epoch);
        serving.and_then(|serving| serving.release)
    };
    let reference = opened.map(|it| it.release).or_else(|| heard.iter().find_map(|it| named(it)));
    let Some(reference) = reference else { return Ok(None) };
    let others =
        heard.iter().filter_map(|it| named(it).filter(|found| *found != reference).map(|found| (it, found)));
    let blockers: Vec<Blocker> = others
        .map(|(it, found)| Blocker {
            expected: Some(reference.to_string()),
            measured: Some(found.to_string()),
            ..Blocker::host(
                Code::Mismatch,
                &it.host,
                format!("hosts do not agree on which release epoch {epoch} is"),
            )
        })
        .collect();
    if blockers.is_empty() { Ok(Some(reference)) } else { Err(blockers) }
}
