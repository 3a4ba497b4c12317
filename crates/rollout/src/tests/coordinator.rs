//! The coordinators of the simulated world.
//!
//! One leads. Another may still run that was deposed and does not know: its writes meet the compare-and-swap on term and
//! revision, and its reads of its own leadership are answered with the truth.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_model::{
    BootTime, Digest, FromHost, HostName, Leadership, Purpose, SessionId, ToHost, Token, Verified,
};

use super::clock::Clock;
use super::disk::{Death, File};
use super::link::{Link, Origin, Up};
use super::papers::{key_of, secrets_in};
use super::store::{Version, version};
use super::withdrawals::WITHDRAWN;
use super::world::{Heard, Mistake, World};
use crate::Step;
use crate::fleet::{
    Effect, Event, Fleet, FleetRecord, Inheritance, Limits, Phase, Record, Report, SessionRecord,
    WithdrawalRecord,
};

/// How often an agent finds a leader that was deposed and still runs.
const FINDS_DEPOSED_PER_MILLE: u64 = 300;
/// How often a read of the leadership is of the moment at which it began.
const EARLY_READ_PER_MILLE: u64 = 500;

/// The store, and the processes that write to it.
#[derive(Debug, Clone)]
pub(super) struct Coordinator {
    /// Who leads. Nothing while nobody does.
    pub(super) fleet: Option<Fleet>,
    /// Who led before, and still runs.
    pub(super) deposed: Option<Deposed>,
    /// What is durable.
    pub(super) record: FleetRecord,
    pub(super) sessions: BTreeMap<HostName, SessionRecord>,
    pub(super) withdrawals: BTreeMap<HostName, WithdrawalRecord>,
    pub(super) documents: BTreeMap<Digest, Arc<[u8]>>,
    /// The file that all three are read back from when a leader takes over.
    pub(super) file: File,
    /// What was written to the file and not synced.
    pub(super) unsynced: Vec<Record>,
    /// What the leader read or wrote last.
    pub(super) version: Version,
    /// Reads of the leadership that are under way.
    reads: Vec<Read>,
    /// Whether what it does follows from a host that joins.
    is_joining: bool,
    /// Whether it follows from a take-over.
    is_taking_over: bool,
}

/// A leader that was deposed.
#[derive(Debug, Clone)]
pub(super) struct Deposed {
    pub(super) fleet: Fleet,
    pub(super) clock: Clock,
    pub(super) version: Version,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seat {
    Leading,
    Deposed,
}

/// A read of who leads.
#[derive(Debug, Clone, Copy)]
struct Read {
    leadership: Leadership,
    read: u64,
    due: u64,
    /// Whether that leader leads, if the read is of the moment at which it began.
    leads: Option<bool>,
}

impl Coordinator {
    pub(super) fn new(record: FleetRecord) -> Self {
        let version = version(&record);
        let mut coordinator = Self {
            fleet: None,
            deposed: None,
            record,
            sessions: BTreeMap::new(),
            withdrawals: BTreeMap::new(),
            documents: BTreeMap::new(),
            file: File::default(),
            unsynced: Vec::new(),
            version,
            reads: Vec::new(),
            is_joining: false,
            is_taking_over: false,
        };
        coordinator.rewrite();
        coordinator
    }

    fn seat_of(&self, leadership: Leadership) -> Option<Seat> {
        let is = |fleet: &Fleet| fleet.record().leadership == leadership;
        if self.fleet.as_ref().is_some_and(is) {
            Some(Seat::Leading)
        } else {
            self.deposed.as_ref().is_some_and(|it| is(&it.fleet)).then_some(Seat::Deposed)
        }
    }

    /// Who sits there.
    pub(super) fn at(&self, seat: Seat) -> Option<&Fleet> {
        match seat {
            Seat::Leading => self.fleet.as_ref(),
            Seat::Deposed => self.deposed.as_ref().map(|deposed| &deposed.fleet),
        }
    }

    fn at_mut(&mut self, seat: Seat) -> Option<&mut Fleet> {
        match seat {
            Seat::Leading => self.fleet.as_mut(),
            Seat::Deposed => self.deposed.as_mut().map(|deposed| &mut deposed.fleet),
        }
    }

    /// The reads whose answers may come now.
    pub(super) fn reads_due(&self, now: u64) -> impl Iterator<Item = usize> {
        self.reads.iter().enumerate().filter(move |(_, read)| read.due <= now).map(|(at, _)| at)
    }

    /// When the next answer comes.
    pub(super) fn next_read(&self) -> Option<u64> {
        self.reads.iter().map(|read| read.due).min()
    }
}

impl World {
    /// Step 1: a new leader, from what is in the store.
    pub(super) fn start_coordinator(&mut self) {
        if self.coordinator.fleet.is_some() {
            return;
        }
        self.read_store();
        let coordinator = &self.coordinator;
        let evidence = match &coordinator.record.phase {
            Phase::Decided(armament) => coordinator.documents.get(&armament.evidence),
            Phase::Settled | Phase::Preparing(_) | Phase::Arming(_) | Phase::Opened(_) => None,
        };
        let attestations = evidence.map(|evidence| self.attestations_in(evidence)).unwrap_or_default();
        let commitment = |purpose: &Purpose| match purpose {
            Purpose::Rollout { commitment, .. } => Some(*commitment),
            Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. } => None,
        };
        let secrets = coordinator.record.phase.opening().map(|opening| {
            coordinator.documents.get(&opening.secrets).map(|bytes| secrets_in(bytes)).unwrap_or_default()
        });
        let inheritance = Inheritance {
            roster: self.roster_in_force(),
            coming: self.roster_coming(),
            sessions: coordinator.sessions.values().cloned().collect(),
            withdrawals: coordinator.withdrawals.values().cloned().collect(),
            commitments: attestations.iter().filter_map(|it| commitment(&it.purpose)).collect(),
            secrets: secrets.unwrap_or_default(),
        };
        let (fleet, step) = Fleet::take_over(
            coordinator.record.clone(),
            inheritance,
            Limits::default(),
            self.clock.at(self.now),
        );
        self.coordinator.version = version(&self.coordinator.record);
        self.coordinator.fleet = Some(fleet);
        self.coordinator.is_taking_over = true;
        self.fleet_step(step);
        self.coordinator.is_taking_over = false;
    }

    /// Another takes over although the leader still runs, on another machine with another clock.
    pub(super) fn depose(&mut self, clock: Clock) {
        self.stop_deposed();
        let coordinator = &mut self.coordinator;
        let version = coordinator.version;
        let Some(fleet) = coordinator.fleet.take() else { return };
        note!(self, "  term {} is deposed", fleet.record().leadership.term);
        self.coordinator.deposed = Some(Deposed { fleet, clock: self.clock, version });
        self.clock = clock;
        self.start_coordinator();
    }

    /// Ends the leader that was deposed.
    pub(super) fn stop_deposed(&mut self) {
        if let Some(deposed) = self.coordinator.deposed.take() {
            note!(self, "  the leader that was deposed stops");
            self.close_links(deposed.fleet.record().leadership);
        }
    }

    /// Kills the coordinator. What it sent may still arrive; nothing reaches it any more.
    pub(super) fn crash_coordinator(&mut self) {
        note!(self, "  the coordinator dies");
        if let Some(fleet) = self.coordinator.fleet.take() {
            self.close_links(fleet.record().leadership);
        }
    }

    /// The coordinator's machine loses power, and what it wrote and did not sync.
    pub(super) fn power_off_coordinator(&mut self) {
        self.crash_coordinator();
        self.seen.torn += u64::from(self.coordinator.file.lose_power(&mut self.random));
        self.coordinator.unsynced.clear();
        self.clock.restart(self.now);
    }

    /// The coordinator learns that a stream ended.
    pub(super) fn stream_left(&mut self, index: usize, link: &Link) {
        if link.server_open {
            let host = self.machines[index].name.clone();
            self.coordinate_at(link.leadership, Event::Left { host, session: link.session });
        }
    }

    /// The coordinator gives a stream up; what it sent may still arrive.
    pub(super) fn give_up(&mut self, index: usize) {
        let Some(link) = &mut self.machines[index].link else { return };
        let (session, leadership) = (link.session, link.leadership);
        if std::mem::replace(&mut link.server_open, false) {
            let host = self.machines[index].name.clone();
            self.coordinate_at(leadership, Event::Left { host, session });
        }
    }

    /// Something of a host's arrives at the coordinator.
    pub(super) fn deliver_up(&mut self, index: usize, stream: (SessionId, Leadership), up: Up) {
        let host = self.machines[index].name.clone();
        let (session, leadership) = stream;
        self.events += 1;
        let event = match up {
            Up::Join(report) => {
                let seat = self.coordinator.seat_of(leadership);
                let fleet = seat.and_then(|seat| self.coordinator.at(seat));
                let shown = fleet.map(|fleet| fleet.shown_to_joining(&host, &report.standing));
                if let Some(envelope) = shown.filter(|it| !self.is_withheld(&host, *it)) {
                    self.machines[index].shown.push(envelope);
                    self.machines[index].last_shown = Some(envelope);
                }
                let next = Token::from_bytes(self.random.bytes());
                Event::Joining { host, session, report: *report, next }
            }
            Up::Message(message) => {
                if let FromHost::Renew { k, n } = *message {
                    self.machines[index].heard = Some((k, n, self.events));
                }
                Event::Message { host, session, message: *message }
            }
            Up::Attested(k, attestation) => {
                let envelope = format!("{}", self.attestations.len()).into_bytes();
                let attestation = Verified::assert(*attestation);
                self.attestations.push(attestation.clone());
                Event::Attested { host, session, k, attestation, envelope: envelope.into() }
            }
            Up::Withdrawn(withdrawal) => {
                let envelope = format!("{WITHDRAWN}{}", self.withdrawals.len()).into();
                let withdrawal = Verified::assert(*withdrawal);
                self.withdrawals.push(withdrawal.clone());
                let attestation_key = key_of(&host);
                Event::Withdrew { host, session, withdrawal, attestation_key, envelope }
            }
        };
        self.coordinate_at(leadership, event);
    }

    /// Hands an event to the leader and does what follows.
    pub(super) fn coordinate(&mut self, event: Event) {
        self.coordinate_as(Seat::Leading, event);
    }

    /// Hands an event to the leader that it is for, if that one still runs.
    fn coordinate_at(&mut self, leadership: Leadership, event: Event) {
        if let Some(seat) = self.coordinator.seat_of(leadership) {
            self.coordinate_as(seat, event);
        }
    }

    pub(super) fn coordinate_as(&mut self, seat: Seat, event: Event) {
        if let Event::Joining { host, .. } = &event {
            self.stated.entry(host.clone()).and_modify(|heard| *heard = Heard::Perhaps);
        }
        note!(self, "  {seat:?} <- {event:?}");
        let now = self.clock_of(seat).at(self.now);
        self.coordinator.is_joining = matches!(event, Event::Joining { .. });
        if let Some(fleet) = self.coordinator.at_mut(seat) {
            let step = fleet.handle(event, now);
            self.step_as(seat, step);
        }
        self.coordinator.is_joining = false;
    }

    pub(super) fn clock_of(&self, seat: Seat) -> Clock {
        match (seat, &self.coordinator.deposed) {
            (Seat::Deposed, Some(deposed)) => deposed.clock,
            (Seat::Leading | Seat::Deposed, _) => self.clock,
        }
    }

    /// Does what a step of the leader's says.
    pub(super) fn fleet_step(&mut self, step: crate::fleet::Step) {
        self.step_as(Seat::Leading, step);
    }

    /// Writes what a step says and then does what it says, or dies on the way.
    fn step_as(&mut self, seat: Seat, step: crate::fleet::Step) {
        let records = step.records().to_vec();
        let effects = match step {
            Step::Act(effects) => effects,
            Step::Write(write) => write.into_effects(muster_model::Durable::assert(0)),
        };
        if !records.is_empty() && !self.coordinator.may_write(seat) {
            note!(self, "  the write of {seat:?} is refused");
            self.seen.refused_writes += 1;
            return self.stop(seat);
        }
        let writes = records.len() + usize::from(!records.is_empty());
        let mut crash = self.crash_point(writes + effects.len());
        let speaks_first = self.mistake == Some(Mistake::CoordinatorSpeaksBeforeWriting);
        if self.mistake == Some(Mistake::DurableBeforeSync) {
            // What was claimed to be durable before is so by now.
            self.sync_store();
        }
        if !speaks_first && !self.write_store(seat, &records, &mut crash) {
            return;
        }
        self.show_rosters();
        for effect in effects {
            if self.leader_dies(seat, &mut crash) {
                return;
            }
            self.fleet_effect(seat, effect);
        }
        if speaks_first {
            self.write_store(seat, &records, &mut None);
        }
    }

    /// Whoever is connected is shown the roster that is in force from now on, or that has it leave, or has left it out before.
    fn show_rosters(&mut self) {
        let record = &self.coordinator.record;
        let rosters = (record.roster_envelope, record.coming.as_ref().map(|coming| coming.envelope));
        let is_changed = rosters != self.shown_last;
        self.shown_last = rosters;
        let Some(fleet) = &self.coordinator.fleet else { return };
        let shown_to: Vec<Option<Digest>> = self
            .machines
            .iter()
            .map(|machine| {
                Some(fleet.shown_to(&machine.name)).filter(|it| !self.is_withheld(&machine.name, *it))
            })
            .collect();
        for (machine, shown) in self.machines.iter_mut().zip(shown_to) {
            let Some(shown) = shown.filter(|_| machine.session().is_some()) else { continue };
            if is_changed || machine.last_shown != Some(shown) {
                machine.shown.push(shown);
                machine.last_shown = Some(shown);
            }
        }
    }

    /// Whether the leader dies before what it would do next.
    pub(super) fn leader_dies(&mut self, seat: Seat, crash: &mut Option<usize>) -> bool {
        if *crash == Some(0) {
            if self.coordinator.deposed.is_some() {
                // A store that two leaders share does not die with one of them: what it was given, it has.
                self.sync_store();
            }
            match (self.death(), seat) {
                (Death::PowerOff, Seat::Leading) => self.power_off_coordinator(),
                (Death::Kill, Seat::Leading) | (_, Seat::Deposed) => self.stop(seat),
            }
            return true;
        }
        *crash = crash.map(|left| left - 1);
        false
    }

    fn stop(&mut self, seat: Seat) {
        match seat {
            Seat::Leading => self.crash_coordinator(),
            Seat::Deposed => self.stop_deposed(),
        }
    }

    /// The leader that an agent finds.
    pub(super) fn reachable_leader(&mut self) -> Option<Leadership> {
        let deposed = self.coordinator.at(Seat::Deposed).map(|fleet| fleet.record().leadership);
        let finds_deposed = deposed.is_some() && self.random.chance(FINDS_DEPOSED_PER_MILLE);
        let leading = self.coordinator.at(Seat::Leading).map(|fleet| fleet.record().leadership);
        if finds_deposed { deposed } else { leading }
    }

    fn fleet_effect(&mut self, seat: Seat, effect: Effect) {
        note!(self, "    {seat:?} -> {effect:?}");
        match effect {
            Effect::Send { host, session, message } => self.send_down(seat, &host, session, message),
            Effect::EndSession { host, session, refusal } => {
                self.refused.push((host.clone(), refusal.clone()));
                self.post(seat, &host, session, ToHost::Refuse { refusal });
                if let Some(link) = self.open_link(&host, session) {
                    link.server_open = false;
                    link.accepted = false;
                    link.up.clear();
                }
            }
            Effect::ConfirmLead { read } => self.confirm_lead(seat, read),
            Effect::BeginWait => self.begin_wait(seat),
            Effect::RollBack(papers) => self.rollbacks.push(papers),
            Effect::Report(Report::Ended(end)) => self.ends.push(end),
            Effect::Report(Report::Reached { k, stage, host: None, .. }) => self.stages.push((k, stage)),
            Effect::Report(Report::Reached { .. } | Report::Trouble { .. }) => {}
        }
    }

    fn send_down(&mut self, seat: Seat, host: &HostName, session: SessionId, message: ToHost) {
        let is_repeated = self.coordinator.is_joining && matches!(message, ToHost::Close { .. });
        if self.mistake == Some(Mistake::CloseNotRepeated) && is_repeated {
            return;
        }
        self.check_to_host(seat, host, &message);
        if matches!(message, ToHost::Joined { .. }) {
            let is_not_off = self.stated.remove(host).is_some() && self.coordinator.record.coming.is_some();
            self.seen.not_off += u64::from(is_not_off);
            if let Some(link) = self.open_link(host, session) {
                link.accepted = true;
            }
        }
        self.post(seat, host, session, message);
    }

    /// Puts a message on its way.
    fn post(&mut self, seat: Seat, host: &HostName, session: SessionId, message: ToHost) {
        let Some(leadership) = self.coordinator.at(seat).map(|fleet| fleet.record().leadership) else {
            return;
        };
        let Some(machine) = self.machines.iter().find(|machine| machine.name == *host) else { return };
        let due = self.now + machine.route.down.draw(&mut self.random);
        if let Some(link) = self.open_link(host, session) {
            link.down.push(due, (leadership, message, Origin::Coordinator));
        }
    }

    /// "One linearizable read begun after receipt": it is answered with what holds at some moment while it is under way.
    fn confirm_lead(&mut self, seat: Seat, read: u64) {
        if self.mistake == Some(Mistake::GrantWithoutReading) {
            return self.coordinate_as(seat, Event::LeadConfirmed { read });
        }
        let Some(leadership) = self.coordinator.at(seat).map(|fleet| fleet.record().leadership) else {
            return;
        };
        let leads = leadership == self.coordinator.record.leadership;
        if self.read_ms_max == 0 {
            return self.read_answered(Read { leadership, read, due: self.now, leads: Some(leads) });
        }
        let due = self.now + self.random.below(self.read_ms_max);
        let leads = self.random.chance(EARLY_READ_PER_MILLE).then_some(leads);
        self.coordinator.reads.push(Read { leadership, read, due, leads });
    }

    /// The answer to a read that is under way.
    pub(super) fn finish_read(&mut self, at: usize) {
        let read = self.coordinator.reads.remove(at);
        self.read_answered(read);
    }

    fn read_answered(&mut self, Read { leadership, read, leads, .. }: Read) {
        let Some(seat) = self.coordinator.seat_of(leadership) else { return };
        if leads.unwrap_or(leadership == self.coordinator.record.leadership) {
            self.coordinate_as(seat, Event::LeadConfirmed { read });
        } else {
            self.stop(seat);
        }
    }

    fn begin_wait(&mut self, seat: Seat) {
        let wait = self.roster_in_force().policy().timing.wait_ms;
        let too_early = match self.mistake {
            Some(Mistake::WaitTooShort) => wait / 2,
            Some(Mistake::WaitSkippedAtTakeOver) if self.coordinator.is_taking_over => wait,
            Some(_) | None => 0,
        };
        let now = BootTime(self.clock_of(seat).at(self.now).0.saturating_sub(too_early));
        note!(self, "  {seat:?} <- WaitBegun at {now:?}");
        if let Some(fleet) = self.coordinator.at_mut(seat) {
            let step = fleet.handle(Event::WaitBegun, now);
            self.step_as(seat, step);
        }
    }

    fn close_links(&mut self, leadership: Leadership) {
        for machine in &mut self.machines {
            let links = machine.link.iter_mut().chain(&mut machine.old_links);
            for link in links.filter(|link| link.leadership == leadership) {
                link.server_open = false;
                link.up.clear();
            }
        }
    }

    fn open_link(&mut self, host: &HostName, session: SessionId) -> Option<&mut Link> {
        let machine = self.machines.iter_mut().find(|machine| machine.name == *host)?;
        let mut links = machine.link.iter_mut().chain(&mut machine.old_links);
        links.find(|link| link.session == session && link.server_open)
    }
}
