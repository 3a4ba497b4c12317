//! Membership: a signed roster takes the place of the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_model::{Blocker, Code, HostName, Member, Membership, Refusal, Roster, RosterRevision, Verified};

use super::record::{ComingRoster, Offers, Phase, roster_ref};
use super::{Fleet, Host, NextRoster, Out, Step};

/// When a roster can take the place of the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    /// It is kept until then.
    Later,
}

impl Fleet {
    /// "The roster changes only in SETTLED, or as a removal in OPENED."
    ///
    /// A host that was offered unleased service cannot leave here: that needs proof that it no longer serves. One that
    /// has closed, or whose lease has lapsed, and that was offered nothing since, can. One that is parked gives the proof itself:
    /// until it has, the roster is kept, and so is one that comes during a rollout and has nobody leave. Whoever joins with a
    /// removal in OPENED joins there: what is kept must not stand in the way of what the fleet needs to settle.
    pub fn apply_roster(&mut self, next: NextRoster) -> Result<Step, Refusal> {
        let NextRoster { roster, digest, envelope, fenced } = next;
        if roster.fleet() != &self.record.fleet {
            let detail = format!("this roster is for the fleet {}", roster.fleet());
            return Err(Refusal::of(Code::FleetUnknown, detail));
        }
        // A host that claims to know more than this coordinator can be put out, or its word would bind the fleet for good.
        let is_listed = |host| roster.position(host).is_some() || roster.parked_host(host).is_some();
        if let Some((_, blocker)) = self.ahead().find(|(host, _)| is_listed(*host)) {
            return Err(Refusal::because(blocker.clone()));
        }
        let when = self.when(&roster)?;
        let expected = self.next_revision();
        if roster.revision() != expected {
            let detail =
                format!("this roster has revision {}; the next one is {expected}", roster.revision());
            return Err(Refusal::of(Code::RosterChanged, detail));
        }
        self.check_agents(&roster)?;
        self.check_additions(&roster)?;
        self.check_retired(&roster)?;
        self.check_statements(&roster, &fenced)?;
        let fenced = self.fences(&roster, &fenced);
        self.check_removals(&roster, &fenced)?;
        let coming = ComingRoster { roster: roster_ref(&roster, digest), envelope, fenced };
        let mut out = Out { record_changed: true, ..Out::default() };
        let is_due = when == When::Now && self.awaited_of(&roster, &coming.fenced).next().is_none();
        if is_due {
            self.adopt(coming, Arc::new(roster), &mut out);
        } else {
            self.record.coming = Some(coming);
            self.coming = Some(Arc::new(roster));
        }
        Ok(self.step(out))
    }

    /// An addition goes on from the last roster that was handed in, and from nothing else.
    fn check_additions(&self, next: &Roster) -> Result<(), Refusal> {
        let (last, additions) = match (&self.record.coming, &self.coming) {
            (Some(coming), Some(roster)) => (&coming.roster, roster.additions()),
            _ => (&self.record.roster, self.roster.additions()),
        };
        let refused = |error| Refusal::of(Code::RosterChanged, format!("the roster is refused: {error}"));
        next.check_follows(last.revision, additions).map_err(refused)?;
        match next.additions() {
            Some(additions) if additions.follows != last.digest => {
                let detail = "hosts were added to another roster than the one in force";
                Err(Refusal::of(Code::RosterChanged, detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The revision that the next roster has: one that is kept already is followed, not replaced unseen.
    #[must_use]
    pub fn next_revision(&self) -> RosterRevision {
        self.record
            .coming
            .as_ref()
            .map_or(self.record.roster.revision, |coming| coming.roster.revision)
            .next()
    }

    /// The roster that was handed in and does not hold yet.
    #[must_use]
    pub const fn coming(&self) -> Option<&Arc<Verified<Roster>>> {
        self.coming.as_ref()
    }

    /// The hosts that the fleet waits for before the coming roster holds: they leave with it, and may serve.
    #[must_use]
    pub fn awaited(&self) -> Vec<HostName> {
        let coming = self.record.coming.as_ref().zip(self.coming.as_deref());
        coming.map(|(it, roster)| self.awaited_of(roster, &it.fenced).cloned().collect()).unwrap_or_default()
    }

    /// Whether the coming roster does not have this host serve any more: it is offered nothing.
    pub(super) fn is_leaving(&self, host: &HostName) -> bool {
        self.coming.as_ref().is_some_and(|coming| leaves(&self.roster, coming, host))
    }

    /// P14: a host has stopped for good, durably, and goes on so until a later roster has it serve.
    ///
    /// Whatever it was offered before, it does not take any more: the offer is spent.
    pub(super) fn withdrawn(&mut self, index: usize, roster: RosterRevision, out: &mut Out) {
        let host = &mut self.hosts[index];
        host.serves(None);
        host.has_membership(Membership::Excluded(roster));
        let name = host.name.clone();
        // An addition takes nobody back: who was away for too long sees what operators have signed instead.
        let asks = |it: &Roster| it.additions().map_or(it.revision(), |additions| additions.base_revision);
        let is_of_coming = self.coming.as_ref().is_some_and(|coming| roster >= asks(coming));
        // The others believe its signature alone, and so does this half: one without a word that is needed is waited for.
        let is_proven = self.coming.as_ref().is_some_and(|coming| !self.owes_word(coming, &name));
        if is_of_coming
            && is_proven
            && self.is_leaving(&name)
            && self.record.offers.remove(&name, &self.roster)
        {
            out.record_changed = true;
        }
        // It is shown the roster in force next, which has it serve again.
        self.has_caught_up(&name, out);
    }

    /// Has the coming roster hold as soon as it can.
    pub(super) fn take_up_coming(&mut self, out: &mut Out) {
        let Some(roster) = self.coming.clone() else { return };
        if self.when(&roster) != Ok(When::Now) || !self.awaited().is_empty() {
            return;
        }
        if let Some(coming) = self.record.coming.clone() {
            self.adopt(coming, roster, out);
        }
    }

    /// Why nothing is flipped before the coming roster holds.
    pub(super) fn unfinished_change(&self) -> Vec<Blocker> {
        let Some(coming) = &self.record.coming else { return Vec::new() };
        let revision = coming.roster.revision;
        let awaited = self.awaited().into_iter().map(|host| {
            let detail = format!(
                "revision {revision} of the roster has it leave, and it has not said yet that it has closed; state that \
                 it is off if it cannot"
            );
            Blocker::host(Code::RemovalNeedsEvidence, &host, detail)
        });
        awaited.collect()
    }

    fn when(&self, next: &Roster) -> Result<When, Refusal> {
        let later =
            |detail: String| if self.keeps_all(next) { Ok(When::Later) } else { Err(unsettled(&detail)) };
        match &self.record.phase {
            Phase::Settled => Ok(When::Now),
            Phase::Opened(_) if self.must_not_wait(next) => Ok(When::Now),
            Phase::Preparing(rollout) => later(format!("rollout {} is under way", rollout.k)),
            Phase::Arming(it) | Phase::Decided(it) => later(format!("rollout {} is under way", it.rollout.k)),
            Phase::Opened(it) => later(format!(
                "hosts are still to open for rollout {}; until then hosts can only leave, or wait to join",
                it.k
            )),
        }
    }

    /// Whether the fleet may need a roster to settle: somebody leaves with it, or was asked to by one before that did not come to hold, and
    /// may have closed. A roster by which nobody joins has nothing to wait for.
    fn must_not_wait(&self, next: &Roster) -> bool {
        let leaves = |next: &Roster| self.roster.hosts().iter().any(|it| next.member(&it.name) != Some(it));
        let joins = next.hosts().iter().any(|it| self.roster.member(&it.name) != Some(it));
        let has_closed =
            |host: &Host| host.membership().is_some_and(|it| matches!(it, Membership::Excluded(_)));
        let may_have_closed =
            self.coming.as_ref().is_some_and(|coming| leaves(coming)) || self.hosts.iter().any(has_closed);
        next.policy() == self.roster.policy() && (leaves(next) || may_have_closed || !joins)
    }

    /// "Joins are taken at any time and folded in at SETTLED": nobody leaves, and nothing else changes for those who serve.
    fn keeps_all(&self, next: &Roster) -> bool {
        let stays = |member: &Member| next.member(&member.name) == Some(member);
        self.roster.hosts().iter().all(stays) && next.policy() == self.roster.policy()
    }

    /// The hosts that leave with a roster and may serve: they were offered service, and have neither closed nor are they off.
    /// One that is connected is not.
    fn awaited_of<'a>(
        &'a self,
        next: &'a Roster,
        fenced: &'a BTreeSet<HostName>,
    ) -> impl Iterator<Item = &'a HostName> {
        let is_awaited =
            |(member, host): &(&Member, &Host)| host.session.is_some() || !fenced.contains(&member.name);
        self.removed(next).filter(is_awaited).map(|(member, _)| &member.name)
    }

    /// A name that has retired comes back only with another key. Its machine is another one, or was made anew.
    fn check_retired(&self, next: &Roster) -> Result<(), Refusal> {
        let returns = next.hosts().iter().map(|member| (&member.name, &member.attestation_key));
        let parked = next.parked().iter().map(|it| (&it.name, &it.attestation_key));
        let same = returns.chain(parked).find(|(name, key)| {
            self.roster.retired_host(name).is_some_and(|retired| retired.attestation_key == **key)
        });
        let Some((host, _)) = same else { return Ok(()) };
        let detail = "it has retired with this key, and comes back only with another one (muster-agent enrol --new-keys)";
        Err(Refusal::because(Blocker::host(Code::RosterChanged, host, detail)))
    }

    /// The hosts that leave with a roster, and may serve.
    fn removed<'a>(&'a self, next: &'a Roster) -> impl Iterator<Item = (&'a Member, &'a Host)> {
        let leaves = |(member, _): &(&Member, &Host)| {
            next.member(&member.name) != Some(*member) && self.record.offers.include(&member.name)
        };
        self.roster.hosts().iter().zip(&self.hosts).filter(leaves)
    }

    /// Nobody is believed who says that a machine is off which is connected.
    fn check_statements(&self, next: &Roster, stated: &BTreeSet<HostName>) -> Result<(), Refusal> {
        let is_wrong = |(member, host): &(&Member, &Host)| {
            stated.contains(&member.name) && self.are_spoken_of(member) && host.session.is_some()
        };
        let detail = "it is connected, so its machine is not off";
        let blocker =
            |(member, _): (&Member, &Host)| Blocker::host(Code::RemovalNeedsEvidence, &member.name, detail);
        refuse_any(self.removed(next).filter(is_wrong).map(blocker))
    }

    /// The hosts that leave with a roster and of whose machines it is stated that they are off, in this roster or in the one that it
    /// takes the place of before that held.
    ///
    /// A statement holds until the host connects, which takes it out of the record, or until the operators have the host serve again,
    /// as this roster may. It is of one machine: all that is kept here is of the keys of the roster in force.
    fn fences(&self, next: &Roster, stated: &BTreeSet<HostName>) -> BTreeSet<HostName> {
        let kept = |host: &HostName| self.record.coming.as_ref().is_some_and(|it| it.fenced.contains(host));
        let is_off = |(member, host): &(&Member, &Host)| {
            let is_stated = stated.contains(&member.name) && self.are_spoken_of(member);
            (is_stated || kept(&member.name)) && host.session.is_none()
        };
        self.removed(next).filter(is_off).map(|(member, _)| member.name.clone()).collect()
    }

    /// Whether statements about this name are about this machine: they are about the one that the roster before lists by it.
    fn are_spoken_of(&self, member: &Member) -> bool {
        let before = self.coming.as_ref().unwrap_or(&self.roster);
        before.key_of(&member.name).is_none_or(|key| *key == member.attestation_key)
    }

    /// A host that connects is not off. That is in the record before anything else follows from it, so that no later leader goes by
    /// the statement.
    pub(super) fn is_not_off(&mut self, host: &HostName, out: &mut Out) {
        if self.record.coming.as_mut().is_some_and(|coming| coming.fenced.remove(host)) {
            out.record_changed = true;
        }
    }

    /// "Otherwise removal needs external fence evidence (power off)." A host whose key changes is another machine: the
    /// one before leaves. One that is parked is waited for.
    fn check_removals(&self, next: &Roster, fenced: &BTreeSet<HostName>) -> Result<(), Refusal> {
        let is_unproven =
            |(member, _): &(&Member, &Host)| !fenced.contains(&member.name) && !is_parked(next, member);
        let detail =
            "it may serve, and nothing proves that it does not; `muster host park` has it close first";
        let blocker =
            |(member, _): (&Member, &Host)| Blocker::host(Code::RemovalNeedsEvidence, &member.name, detail);
        refuse_any(self.removed(next).filter(is_unproven).map(blocker))
    }

    /// From here on the roster holds. Nobody whom it has leave was offered anything that was not taken back.
    fn adopt(&mut self, coming: ComingRoster, next: Arc<Verified<Roster>>, out: &mut Out) {
        self.note_missed(&next);
        let before = std::mem::replace(&mut self.roster, Arc::clone(&next));
        let mut known = self.known_hosts(&before);
        let mut placed = |name: &HostName, key| match known.remove(name) {
            Some((host, known_key)) if known_key == key => host,
            Some((host, _)) => {
                end_session(&host, &next, out);
                Host::new(name, None)
            }
            None => Host::new(name, None),
        };
        let hosts = next.hosts().iter().map(|it| placed(&it.name, it.attestation_key.clone())).collect();
        let parked = next.parked().iter().map(|it| placed(&it.name, it.attestation_key.clone())).collect();
        known.values().for_each(|(gone, _)| end_session(gone, &next, out));
        (self.hosts, self.parked) = (hosts, parked);
        for host in &mut self.parked {
            host.leased_until = None;
            host.measured = None;
        }
        // `All` meant the hosts of the roster before; hosts that are new have not been offered anything.
        let stays = |host: &HostName| next.member(host).is_some_and(|it| before.member(host) == Some(it));
        if self.record.offers == Offers::All {
            let stay = before.hosts().iter().filter(|member| stays(&member.name));
            self.record.offers = Offers::Only(stay.map(|member| member.name.clone()).collect());
        } else if let Offers::Only(offered) = &mut self.record.offers {
            offered.retain(stays);
        }
        self.record.joining.retain(|host| stays(host));
        if self.record.serving.is_some() {
            let new = next.hosts().iter().filter(|member| !stays(&member.name));
            self.record.joining.extend(new.map(|member| member.name.clone()));
        }
        let ComingRoster { roster, envelope, fenced: _ } = coming;
        (self.record.roster, self.record.roster_envelope) = (roster, envelope);
        (self.record.coming, self.coming) = (None, None);
        out.record_changed = true;
        self.settle_if_measured(out);
    }

    /// What is known of every host that is in the roster, by name, with the key that it is known by.
    fn known_hosts(&mut self, roster: &Roster) -> BTreeMap<HostName, (Host, muster_model::PublicKey)> {
        let keys = roster.hosts().iter().map(|it| it.attestation_key.clone());
        let parked = roster.parked().iter().map(|it| it.attestation_key.clone());
        let hosts = std::mem::take(&mut self.hosts).into_iter().chain(std::mem::take(&mut self.parked));
        hosts.zip(keys.chain(parked)).map(|(host, key)| (host.name.clone(), (host, key))).collect()
    }
}

/// Whether `host` serves under one roster, and under the next not, or only another machine with its name.
#[must_use]
pub fn leaves(roster: &Roster, next: &Roster, host: &HostName) -> bool {
    roster.member(host).is_some_and(|member| next.member(host) != Some(member))
}

/// Whether this very machine is parked.
fn is_parked(next: &Roster, member: &Member) -> bool {
    next.parked_host(&member.name).is_some_and(|it| it.attestation_key == member.attestation_key)
}

fn end_session(gone: &Host, next: &Roster, out: &mut Out) {
    if let Some(session) = &gone.session {
        let detail = format!("revision {} of the roster does not list this machine", next.revision());
        let refusal = Refusal::because(Blocker::host(Code::HostNotInRoster, &gone.name, detail));
        out.refuse_session(&gone.name, session.id, refusal);
    }
}

fn refuse_any(blockers: impl Iterator<Item = Blocker>) -> Result<(), Refusal> {
    let blockers: Vec<Blocker> = blockers.collect();
    if blockers.is_empty() { Ok(()) } else { Err(Refusal { blockers }) }
}

fn unsettled(detail: &str) -> Refusal {
    Refusal::of(Code::Busy, format!("the roster changes only while the fleet is settled; {detail}"))
}
