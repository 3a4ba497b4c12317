//! Where a fleet stands, by the word of all its hosts.

use std::collections::{BTreeMap, BTreeSet};

use muster_model::{
    Blocker, Code, Digest, Epoch, HostName, HostPlace, Mandate, Member, Membership, RolloutId, Roster,
};

use super::testimony::{Promise, Stopped, Testimony, Told};
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

/// The rosters before the mandate's, as far as hosts keep them.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// The last one that is known to have held: who was in none of its rollouts is new.
    pub held: &'a Roster,
    /// Later ones that only hosts keep which do not serve: they may have held as well.
    pub later: &'a [&'a Roster],
}

impl<'a> Before<'a> {
    /// One roster, and none after it.
    pub fn only(held: &'a Roster) -> Self {
        Self { held, later: &[] }
    }
}

/// Works out where the fleet stands. What is missing, or does not fit together, is a blocker: nothing is guessed.
///
/// Who served under a roster before the mandate's, or may have, must be heard as well.
///
/// A rollout for which some host has closed was decided, and goes forward. One for which hosts are armed and nobody has closed may
/// have been decided by the coordinator that was lost, but nobody can act on that any more: every host has durably left it. It is
/// given up.
pub fn judge(
    roster: &Roster,
    mandate: &Mandate,
    before: Before<'_>,
    told: &BTreeMap<HostName, Testimony>,
) -> Result<Verdict, Vec<Blocker>> {
    let heard = hear(roster, mandate, told);
    let Before { held: before, later } = before;
    let earlier = later.iter().copied().chain([before]);
    let dropped: BTreeSet<HostName> = earlier.flat_map(|earlier| dropped(earlier, roster)).cloned().collect();
    let aside = hear_aside(roster, mandate, &dropped, told);
    let (heard, aside) = match (heard, aside) {
        (Ok(heard), Ok(aside)) => (heard, aside),
        (heard, aside) => {
            let blockers = [heard.err(), aside.err()].into_iter().flatten().flatten();
            return Err(blockers.collect());
        }
    };
    // Those who do not serve any more may have been the first to close, or to open.
    let all: Vec<&Testimony> = heard.iter().chain(&aside).copied().collect();
    let epoch = epoch_of(&heard, &all);
    // Whom an earlier roster has left out is opened by no promise: it is admitted.
    let members = heard.iter().filter(|it| it.membership.is_member());
    let opened = newest(members.filter_map(|it| it.mode.towards(epoch)));
    let coming = newest(heard.iter().filter_map(|it| it.mode.towards(epoch.next())));
    let some_are_off = !mandate.fenced.is_empty() || dropped.iter().any(|host| !told.contains_key(host));
    let decided = coming.filter(|promise| {
        is_decided(&all, promise) || (some_are_off && could_open_over_all(before, &heard, &aside, promise))
    });
    let blockers: Vec<Blocker> =
        heard.iter().filter_map(|it| contradiction(before, it, epoch, opened, decided)).collect();
    if !blockers.is_empty() {
        return Err(blockers);
    }
    let serving = release_of(&all, epoch, opened)?;
    let known = all.iter().flat_map(|it| it.mode.promises().map(|it| it.k).chain([it.last_k]));
    // A halt that reached only some is theirs: rebuilding stops nothing that is served.
    let is_dark = heard.iter().all(|it| it.serving.is_none());
    let halted = heard.iter().filter_map(|it| it.halted).max().filter(|_| is_dark);
    let last_k = known.max().unwrap_or_default();
    Ok(Verdict { epoch, serving, last_k, halted, opened, decided })
}

/// The machines that one roster has serve, and that a later one neither has serve nor parks: some of them may serve.
fn dropped<'a>(before: &'a Roster, next: &Roster) -> impl Iterator<Item = &'a HostName> {
    let is_parked = |it: &Member| {
        next.parked_host(&it.name).is_some_and(|parked| parked.attestation_key == it.attestation_key)
    };
    let gone = before.hosts().iter().filter(move |it| next.member(&it.name) != Some(*it) && !is_parked(it));
    gone.map(|member| &member.name)
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
            (Some(testimony), false) => {
                match distrust(roster, testimony).or_else(|| behind(roster, testimony)) {
                    Some(blocker) => blockers.push(blocker),
                    None => heard.push(testimony),
                }
            }
            (None, false) => blockers.push(gate::missing(name)),
            (Some(_), true) => {
                let detail = "the operators state that its machine is off, and it is connected";
                blockers.push(Blocker::host(Code::RemovalNeedsEvidence, name, detail));
            }
            (None, true) => {}
        }
    }
    if blockers.is_empty() { Ok(heard) } else { Err(blockers) }
}

/// Those whom the roster does not have serve: whether it ever held is not known, so they may. Each has closed, or is stated to be
/// off. One that is connected is not.
fn hear_aside<'a>(
    roster: &Roster,
    mandate: &Mandate,
    dropped: &BTreeSet<HostName>,
    told: &'a BTreeMap<HostName, Testimony>,
) -> Result<Vec<&'a Testimony>, Vec<Blocker>> {
    // The statement of a roster is about the machine that leaves with it, that of a mandate about one that is not heard.
    let is_stated = |host: &HostName| roster.fenced().iter().any(|fence| fence.host == *host);
    let is_off = |host: &HostName| mandate.fenced.binary_search(host).is_ok();
    let mut heard = Vec::new();
    let mut blockers = Vec::new();
    let mut listen = |testimony: &'a Testimony| -> Result<(), Blocker> {
        if let Some(blocker) = distrust(roster, testimony).or_else(|| not_closed(testimony)) {
            return Err(blocker);
        }
        heard.push(testimony);
        Ok(())
    };
    for host in roster.parked().iter().map(|it| &it.name) {
        let outcome = match told.get(host) {
            Some(testimony) => listen(testimony),
            None if is_off(host) => Ok(()),
            None => Err(gate::missing(host)),
        };
        blockers.extend(outcome.err());
    }
    for host in dropped {
        // Whoever comes with a name that is listed is the machine with the key that is listed.
        let outcome = match told.get(host).filter(|_| roster.place(host).is_none_or(is_gone)) {
            Some(testimony) => listen(testimony),
            None if is_stated(host) || is_off(host) => Ok(()),
            None => {
                let revision = roster.revision();
                let detail = format!(
                    "its machine served under an earlier roster, revision {revision} leaves it out, and nothing proves that \
                     it has closed: start it, or state that it is off"
                );
                Err(Blocker::host(Code::RemovalNeedsEvidence, host, detail))
            }
        };
        blockers.extend(outcome.err());
    }
    let is_listed = |host: &&HostName| roster.place(host).is_some() || dropped.contains(host);
    blockers.extend(mandate.fenced.iter().filter(|host| !is_listed(host)).map(|host| {
        let detail = "the mandate states that it is off, and no roster that is known lists it";
        Blocker::host(Code::RosterChanged, host, detail)
    }));
    if blockers.is_empty() { Ok(heard) } else { Err(blockers) }
}

fn is_gone(place: HostPlace) -> bool {
    match place {
        HostPlace::Retired => true,
        HostPlace::Serving | HostPlace::Parked => false,
    }
}

/// Why a host that the roster does not have serve could still serve: nobody else knows whether it has closed.
fn not_closed(it: &Testimony) -> Option<Blocker> {
    match (it.membership, it.stopped) {
        (Membership::Excluded(_), Stopped::Proven) => None,
        (Membership::Excluded(_) | Membership::Member | Membership::Returned, _) => {
            let detail = "the roster does not have it serve, and it has not closed yet";
            Some(Blocker::host(Code::RemovalNeedsEvidence, &it.host, detail))
        }
    }
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

/// A host that an earlier roster left out, and this one has serve again, has closed for that one. It is shown this one once that holds:
/// until then it keeps what it has closed for, which a rollout that goes forward may need.
fn behind(roster: &Roster, it: &Testimony) -> Option<Blocker> {
    let Membership::Excluded(by) = it.membership else { return None };
    if by < roster.revision() {
        let detail = format!("it was left out by revision {by} of the roster, and has not closed yet");
        return not_closed(it).map(|blocker| Blocker { detail, ..blocker });
    }
    let detail = format!("it goes by revision {by} of the roster, which leaves it out");
    Some(Blocker::host(Code::RosterChanged, &it.host, detail))
}

/// The newest epoch that was opened to some host.
///
/// What hosts serve was opened, and so was what a host waited for when a later rollout came. Where there is neither, all are closed
/// and what they closed from is the newest. A host that is new tells nothing of that.
fn epoch_of(heard: &[&Testimony], all: &[&Testimony]) -> Epoch {
    let known = all.iter().filter(|it| !has_no_history(it));
    let served = known.filter_map(|it| it.mode.serving()).map(|serving| serving.epoch);
    let passed = all.iter().filter_map(|it| it.mode.opened_to_others()).map(|promise| promise.epoch);
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
///
/// Who is new was none of that rollout's N. Of those who do not serve any more, or were left out, that is not known, and one that has
/// returned has forgotten it.
fn could_open_over_all(
    before: &Roster,
    heard: &[&Testimony],
    aside: &[&Testimony],
    promise: &Promise,
) -> bool {
    let is_bound = |it: &&Testimony| it.mode.towards(promise.epoch) == Some(*promise);
    let is_free = |it: &&Testimony| !is_bound(it) && !is_new(before, it);
    let bound = heard.iter().chain(aside).filter(|it| is_bound(it)).count();
    bound <= promise.max_lapsed as usize && !heard.iter().any(is_free)
}

/// Whether a host did not take part in what the others did: it has come since the roster that held, or was left out for a while.
fn is_new(before: &Roster, it: &Testimony) -> bool {
    (has_no_history(it) && before.position(&it.host).is_none()) || !it.membership.is_member()
}

/// Whether a host has never served, nor promised anything.
fn has_no_history(it: &Testimony) -> bool {
    it.last_k == RolloutId(0) && it.mode == Told::Serve(Serving { epoch: Epoch(0), release: None })
}

/// Why what a host says cannot be, given what the others say.
fn contradiction(
    before: &Roster,
    it: &Testimony,
    epoch: Epoch,
    opened: Option<Promise>,
    decided: Option<Promise>,
) -> Option<Blocker> {
    let set_back = |detail: String| Some(Blocker::host(Code::RolledBackDisk, &it.host, detail));
    if let Some(decided) = decided
        && it.mode.towards(decided.epoch) != Some(decided)
        && !is_new(before, it)
    {
        let k = decided.k;
        return set_back(format!("others have closed for rollout {k}, for which it must have armed as well"));
    }
    // What it was promised is of the time before it was left out.
    if !it.membership.is_member() {
        return None;
    }
    let waits = it.mode.towards(epoch);
    if waits.is_some() && waits != opened {
        return set_back(format!("it waits for another epoch {epoch} than the others"));
    }
    let is_at = it.mode.serving().is_some_and(|serving| serving.epoch == epoch);
    let closed_from = it.mode.serving().is_none() && it.mode.towards(epoch.next()).is_some();
    // It may not have been admitted yet, or its machine was made anew.
    if has_no_history(it) || is_new(before, it) || is_at || waits.is_some() || closed_from {
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
    all: &[&Testimony],
    epoch: Epoch,
    opened: Option<Promise>,
) -> Result<Option<Digest>, Vec<Blocker>> {
    let named = |it: &Testimony| {
        let serving = it.mode.serving().filter(|serving| serving.epoch == epoch);
        serving.and_then(|serving| serving.release)
    };
    let reference = opened.map(|it| it.release).or_else(|| all.iter().find_map(|it| named(it)));
    let Some(reference) = reference else { return Ok(None) };
    let others =
        all.iter().filter_map(|it| named(it).filter(|found| *found != reference).map(|found| (it, found)));
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
