//! Coordinators: events go in, records go to the shared store by compare-and-swap, messages go to the hosts.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_model::{
    Attestation, Blocker, BootTime, Code, Commitment, Digest, Durable, HostName, Leadership, Purpose, Roster,
    SessionId, ToHost, Token, Verified,
};

use super::config::Mistake;
use super::papers::{TICK_MS, WAIT_TICKS};
use super::state::{End, Found, Leader, LeaderEnd, Part, PhaseName, Read, Stream, Up};
use super::turn::{CutShort, Turn, limits};
use crate::Step;
use crate::fleet::{Effect, Event, Fleet, Inheritance, NextRoster, Phase, Record};

impl Turn<'_> {
    /// Step 1: reads the store and takes the lead in the next term, in one action: a write that loses the race has no
    /// effect.
    pub(super) fn take_over(&mut self, slot: usize) {
        let store = &self.state.store;
        let commitments = match &store.record.phase {
            Phase::Decided(armament) => self.commitments(armament.evidence),
            Phase::Settled | Phase::Preparing(_) | Phase::Arming(_) | Phase::Opened(_) => Vec::new(),
        };
        let secrets = store.record.phase.opening().and_then(|opening| {
            let bytes = store.documents.get(&opening.secrets)?;
            Some(super::super::papers::secrets_in(bytes))
        });
        let inheritance = Inheritance {
            coming: None,
            roster: self.roster_in_force(),
            sessions: store.sessions.values().cloned().collect(),
            withdrawals: Vec::new(),
            commitments,
            secrets: secrets.unwrap_or_default(),
        };
        let durable = (store.record.leadership, store.record.revision);
        let found = PhaseName::of(&store.record.phase);
        let (fleet, step) = Fleet::take_over(store.record.clone(), inheritance, limits(), self.now());
        self.state.leaders[slot] = Some(Part::new(Leader { fleet, durable, read: None }));
        self.state.history.edit().found = Some(found);
        self.is_taking_over = true;
        self.fleet_step(slot, step);
        self.is_taking_over = false;
    }

    /// Hands an event to a leader and does what follows.
    pub(super) fn coordinate(&mut self, slot: usize, event: Event) {
        let now = self.now();
        let Some(leader) = self.state.leaders[slot].as_mut() else { return };
        let step = leader.edit().fleet.handle(event, now);
        self.fleet_step(slot, step);
    }

    /// Something of a host's arrives at a leader.
    pub(super) fn listen(&mut self, index: usize, slot: usize, session: SessionId, up: Up) {
        let host = self.host_name(index);
        let event = match up {
            Up::Join(report) => {
                let next = Token::from_bytes(self.entropy_of(4, index, session.0, 0));
                Event::Joining { host, session, report: *report, next }
            }
            Up::Message(message) => Event::Message { host, session, message: *message },
            Up::Attested(k, attestation) => {
                let attestation = Verified::assert(*attestation);
                let number = u8::try_from(index).expect("few hosts");
                if self.state.leads(slot) {
                    self.state.store.edit().attestations.insert((number, k), attestation.clone());
                }
                let envelope = [number, u8::try_from(k.0).expect("few rollouts")];
                Event::Attested { host, session, k, attestation, envelope: envelope.as_slice().into() }
            }
        };
        self.coordinate(slot, event);
    }

    /// The leader's process ends. What it sent may still arrive.
    pub(super) fn stop_leader(&mut self, slot: usize) {
        self.state.leaders[slot] = None;
        for machine in &mut self.state.machines {
            if machine.streams.iter().any(|it| it.slot == slot && it.leader_end != LeaderEnd::Gone) {
                machine.edit().streams.iter_mut().filter(|it| it.slot == slot).for_each(Stream::leave);
            }
        }
    }

    /// The answer to a read of the store arrives. A leader that was deposed when it was read stops.
    pub(super) fn answer(&mut self, slot: usize) -> Option<()> {
        let read = self.state.leaders[slot].as_mut()?.edit().read.take()?;
        match read.found {
            Found::Leads => self.coordinate(slot, Event::LeadConfirmed { read: read.number }),
            Found::Deposed => self.stop_leader(slot),
        }
        Some(())
    }

    /// An operator proposes the next flip, where that is in order.
    pub(super) fn propose(&mut self, slot: usize) -> Option<()> {
        let record = &self.state.store.record;
        let proposal =
            self.model.papers.proposal(record.roster.digest, record.last_k.next(), record.serving)?;
        let now = self.now();
        let step = self.state.leaders[slot].as_mut()?.edit().fleet.propose(&proposal, now).ok()?;
        self.fleet_step(slot, step);
        Some(())
    }

    pub(super) fn abort(&mut self, slot: usize) -> Option<()> {
        let reason = Blocker::fleet(Code::AbortedByOperator, "by ops");
        let (_, step) = self.state.leaders[slot].as_mut()?.edit().fleet.abort(None, reason).ok()?;
        self.fleet_step(slot, step);
        Some(())
    }

    /// An operator removes a host, where that is in order. No machine is ever stated to be off, except by mistake.
    pub(super) fn remove(&mut self, slot: usize, index: usize) -> Option<()> {
        let host = self.host_name(index);
        let mut fenced = BTreeSet::new();
        if self.removal_is_mistaken(&host) {
            fenced.insert(host);
        }
        let next = self.model.papers.roster_without(index);
        let next = NextRoster {
            roster: Verified::clone(&next.roster),
            digest: next.digest,
            envelope: next.envelope,
            fenced,
        };
        let step = self.state.leaders[slot].as_mut()?.edit().fleet.apply_roster(next).ok()?;
        self.fleet_step(slot, step);
        Some(())
    }

    /// Step 11: the wait that is over, P12.
    pub(super) fn leader_deadline(&mut self, slot: usize) {
        let waits = matches!(self.state.store.record.phase, Phase::Decided(_)) && self.state.leads(slot);
        let hosts = self.roster_in_force().hosts().len();
        let closed = self.state.leaders[slot].as_ref().map_or(0, |leader| leader.fleet.acknowledged());
        self.coordinate(slot, Event::DeadlineReached);
        let still_waits = matches!(self.state.store.record.phase, Phase::Decided(_));
        if waits && still_waits && hosts - closed <= 1 {
            self.break_promise(super::state::Promise::P12, || {
                "the wait is over and nothing opens".to_owned()
            });
        }
    }

    pub(super) fn roster_in_force(&self) -> Arc<Verified<Roster>> {
        Arc::clone(&self.model.papers.roster(self.state.store.record.roster.digest).roster)
    }

    /// The attestations that a document of evidence lists.
    pub(super) fn attestations_in(&self, evidence: Digest) -> Option<Vec<&Verified<Attestation>>> {
        let store = &self.state.store;
        let envelopes = store.documents.get(&evidence)?;
        let of_host = |line: &[u8]| {
            let k = muster_model::RolloutId(u64::from(line[1]));
            store.attestations.get(&(line[0], k))
        };
        envelopes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(of_host).collect()
    }

    fn commitments(&self, evidence: Digest) -> Vec<Commitment> {
        let attestations = self.attestations_in(evidence).unwrap_or_default();
        let commitment = |attestation: &Verified<Attestation>| match attestation.purpose {
            Purpose::Rollout { commitment, .. } => Some(commitment),
            Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. } => None,
        };
        attestations.into_iter().filter_map(commitment).collect()
    }

    /// Writes what a step says, and only then does what it says. A leader whose write loses the race stops.
    fn fleet_step(&mut self, slot: usize, step: crate::fleet::Step) {
        let records = step.records().to_vec();
        if !records.is_empty() {
            if !self.swap(slot, &records) {
                return self.stop_leader(slot);
            }
            if self.cut_short == CutShort::Leader {
                return self.stop_leader(slot);
            }
        }
        let effects = match step {
            Step::Act(effects) => effects,
            Step::Write(write) => write.into_effects(Durable::assert(0)),
        };
        for effect in effects {
            if self.state.leaders[slot].is_none() {
                return;
            }
            self.fleet_effect(slot, effect);
        }
    }

    /// "Every write is a compare-and-swap on (τ, record revision)."
    fn swap(&mut self, slot: usize, records: &[Record]) -> bool {
        let store = &self.state.store.record;
        let found = (store.leadership, store.revision);
        let Some(leader) = self.state.leaders[slot].as_mut() else { return false };
        if leader.durable != found {
            return false;
        }
        let record = leader.fleet.record();
        let written = (record.leadership, record.revision);
        leader.edit().durable = written;
        for record in records {
            match record {
                Record::Document(digest, bytes) => {
                    self.state.store.edit().documents.insert(*digest, Arc::clone(bytes));
                }
                Record::Session(session) => {
                    self.state.store.edit().sessions.insert(session.host.clone(), session.clone());
                }
                Record::Withdrawal(_) => unreachable!("nobody is set aside in a model"),
                Record::Fleet(record) => {
                    self.check_fleet_record(record);
                    let store = self.state.store.edit();
                    store.record = crate::fleet::FleetRecord::clone(record);
                    forget_what_is_over(store);
                }
            }
        }
        true
    }

    fn fleet_effect(&mut self, slot: usize, effect: Effect) {
        match effect {
            Effect::Send { host, session, message } => {
                let leadership = self.check_spoken(slot, &message);
                let Some(stream) = self.stream_of(slot, &host, session) else { return };
                if matches!(message, ToHost::Joined { .. }) {
                    stream.leader_end = LeaderEnd::Accepted;
                }
                stream.say(leadership, message);
            }
            Effect::EndSession { host, session, refusal } => {
                let leadership = self.leadership_of(slot);
                let Some(stream) = self.stream_of(slot, &host, session) else { return };
                stream.say(leadership, ToHost::Refuse { refusal });
                stream.leave();
            }
            // The earliest moment of the read is the one that finds a leader most often, and the answer may come late.
            Effect::ConfirmLead { read } => {
                let leads = self.state.leads(slot)
                    || self.mistake() == Some(Mistake::DeposedLeaderGrantsWithoutReading);
                let found = if leads { Found::Leads } else { Found::Deposed };
                if let Some(leader) = self.state.leaders[slot].as_mut() {
                    leader.edit().read = Some(Read { number: read, found });
                }
            }
            Effect::BeginWait => self.begin_wait(slot),
            Effect::RollBack(_) | Effect::Report(_) => {}
        }
    }

    fn begin_wait(&mut self, slot: usize) {
        let too_early = match self.mistake() {
            Some(Mistake::WOneTickShort) => 1,
            Some(Mistake::NewLeaderSkipsTheWait) if self.is_taking_over => WAIT_TICKS,
            Some(_) | None => 0,
        };
        let now = BootTime(self.now().0 - too_early * TICK_MS);
        if let Some(leader) = self.state.leaders[slot].as_mut() {
            let step = leader.edit().fleet.handle(Event::WaitBegun, now);
            self.fleet_step(slot, step);
        }
    }

    fn removal_is_mistaken(&self, host: &HostName) -> bool {
        let record = &self.state.store.record;
        match self.mistake() {
            Some(Mistake::RemovedAsClosedAfterAnOpenWasOffered) => {
                matches!(&record.phase, Phase::Opened(opening) if !opening.lapsed.contains(host))
            }
            Some(Mistake::RemovedAsLapsedAfterADisarmWasOffered) => {
                record.phase == Phase::Settled && record.last_k.0 > record.epoch.0
            }
            Some(_) | None => false,
        }
    }

    fn stream_of(&mut self, slot: usize, host: &HostName, session: SessionId) -> Option<&mut Stream> {
        let is_it =
            |it: &Stream| it.slot == slot && it.session == session && it.leader_end != LeaderEnd::Gone;
        let machine = self.state.machines.iter_mut().find(|it| it.agent.record().host == *host)?;
        if machine.streams.iter().any(is_it) {
            machine.edit().streams.iter_mut().find(|it| is_it(it))
        } else {
            None
        }
    }

    pub(super) fn leadership_of(&self, slot: usize) -> Leadership {
        self.state.leaders[slot].as_ref().map(|leader| leader.fleet.record().leadership).unwrap_or_default()
    }
}

impl Stream {
    /// The leader's end is gone: what was sent to it is lost, what it sent may still arrive.
    pub(super) fn leave(&mut self) {
        self.leader_end = LeaderEnd::Gone;
        self.up.clear();
    }

    fn say(&mut self, leadership: Leadership, message: ToHost) {
        if self.host_end == End::Open {
            self.down.push_back((leadership, message));
        }
    }
}

impl PhaseName {
    pub(super) const fn of(phase: &Phase) -> Self {
        match phase {
            Phase::Settled => Self::Settled,
            Phase::Preparing(_) => Self::Preparing,
            Phase::Arming(_) => Self::Arming,
            Phase::Decided(_) => Self::Decided,
            Phase::Opened(_) => Self::Opened,
        }
    }
}

/// Documents that nobody will ask for again would only keep states apart that are alike.
fn forget_what_is_over(store: &mut super::state::Store) {
    match &store.record.phase {
        Phase::Settled | Phase::Opened(_) => {
            let needed = store.record.phase.documents();
            store.documents.retain(|digest, _| needed.contains(digest));
            store.attestations.clear();
        }
        Phase::Preparing(_) | Phase::Arming(_) | Phase::Decided(_) => {}
    }
}
