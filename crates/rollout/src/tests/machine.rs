//! A host of the simulated world: its disk, its agent, its guard and its connection.

use std::collections::VecDeque;

use muster_model::{
    Assurance, Attestation, Blocker, BootGate, BootId, BootTime, ClockState, Code, Comparable, Digest,
    Documents, Epoch, FleetName, FromHost, HostFacts, HostName, JoinReport, JournalHead, Leadership, Nonce,
    Refusal, RolloutId, Scope, SessionId, ToHost, UnixTime, Verified,
};

use super::papers::policy;
use super::random::SplitMix64;
use super::world::{Mistake, RELEASES, World};
use crate::Step;
use crate::host::{Effect, Event, Evidence, Host, HostRecord, Measured, Mode, Now, Profile, Resume};

/// How many older records of a host are remembered, for rolling its disk back.
const HISTORY_LEN_MAX: usize = 32;
/// How many streams that the host has given up may still have messages under way.
const OLD_LINKS_MAX: usize = 2;

/// One machine.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) name: HostName,
    /// What is on its disk.
    pub(super) record: HostRecord,
    pub(super) journal: JournalHead,
    pub(super) history: VecDeque<(HostRecord, JournalHead)>,
    pub(super) disk: Disk,
    /// Nothing while the agent is down.
    pub(super) agent: Option<Host>,
    pub(super) boot: u64,
    /// What is really served.
    pub(super) guard: Option<(Epoch, Digest)>,
    /// The deadline that the guard holds.
    pub(super) lease: Option<GuardLease>,
    /// Whether the guard was halted; a reboot does not change it.
    pub(super) halted: bool,
    pub(super) clock: Clock,
    pub(super) hold: Hold,
    /// When the agent asked last for its lease to be renewed.
    pub(super) asked_at: Option<BootTime>,
    /// How long this guard takes to fence, in milliseconds of its own clock.
    pub(super) fence_ms: u64,
    pub(super) trees: [Tree; RELEASES],
    /// In any order.
    pub(super) work: Vec<(Work, Pace)>,
    /// Strictly in order.
    pub(super) guard_work: VecDeque<GuardWork>,
    pub(super) link: Option<Link>,
    /// Streams that the host has given up; what it sent over them may still arrive.
    pub(super) old_links: Vec<Link>,
    /// Whether ADMIT or OPEN was delivered since it booted.
    pub(super) permitted: bool,
    pub(super) opens_to_fail: u32,
    pub(super) closes_to_fail: u32,
    /// The nonce that an admission has to show.
    pub(super) nonce: Option<Nonce>,
    /// What ADMIT or OPEN has let the host serve last.
    pub(super) offered: Option<(Epoch, Digest)>,
    /// Every refusal that the agent has sent or hung up with.
    pub(super) refusals: Vec<Refusal>,
}

/// What a guard remembers of a rollout that its host has armed for. A reboot ends it: then nothing is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GuardLease {
    pub(super) k: RolloutId,
    /// On the machine's own clock.
    pub(super) deadline: BootTime,
    /// Whether it has fenced.
    pub(super) latched: bool,
    /// In fast mode, once decided.
    pub(super) switch: Option<(BootTime, Epoch, Digest)>,
}

/// What does not go on for the time being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Nothing,
    /// What is sent to the machine, or by it, does not arrive; neither end knows.
    Network,
    /// The host does not get to arm.
    Arming,
}

/// A clock that is off in rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    /// Parts per million by which it is fast, or slow.
    pub(super) drift_ppm: i64,
}

impl Clock {
    pub(super) fn at(self, now: u64) -> BootTime {
        let drift = i128::from(now) * i128::from(self.drift_ppm) / 1_000_000;
        BootTime(u64::try_from(i128::from(now) + drift).expect("a clock never runs backwards"))
    }

    /// The first moment at which the clock shows `time`.
    pub(super) fn when(self, time: BootTime) -> u64 {
        let per_million = 1_000_000 + i128::from(self.drift_ppm);
        let mut now = u64::try_from(i128::from(time.0) * 1_000_000 / per_million).expect("not before time 0");
        while self.at(now) < time {
            now += 1;
        }
        now
    }
}

/// Whether a disk is what the host wrote last.
#[derive(Debug, Clone)]
pub(super) enum Disk {
    Newest,
    /// Rolled back; this is what was there before.
    RolledBack(Box<(HostRecord, JournalHead)>),
}

/// The files of one release on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    Good,
    Tampered,
    Missing,
}

/// Work of the agent's that takes time.
#[derive(Debug, Clone)]
pub(super) enum Work {
    Measure { purpose: crate::host::Purpose, release: Digest },
    Verify { k: RolloutId, documents: Documents },
    Seal { k: RolloutId, release: Digest },
    CheckSeal { purpose: crate::host::SealPurpose, release: Digest },
}

impl Work {
    const fn is_for_arming(&self) -> bool {
        matches!(self, Self::CheckSeal { purpose: crate::host::SealPurpose::Arm(_), .. })
    }
}

/// How soon work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Usual,
    /// So slowly that a whole rollout may pass meanwhile.
    Slow,
}

/// What the guard is asked, or has to say.
#[derive(Debug, Clone)]
pub(super) enum GuardWork {
    Say,
    Quiesce { k: RolloutId },
    Lease { k: RolloutId, deadline: BootTime },
    Extend { k: RolloutId, deadline: BootTime },
    Lift { k: RolloutId },
    Switch { k: RolloutId, at: BootTime, epoch: Epoch, release: Digest },
    Halt,
    Close { k: Option<RolloutId> },
    Open { epoch: Epoch, release: Digest, resume: Resume },
}

/// One stream between agent and coordinator.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) session: SessionId,
    pub(super) up: VecDeque<Up>,
    pub(super) down: VecDeque<(Leadership, ToHost, Origin)>,
    /// Whether the coordinator still has its end.
    pub(super) server_open: bool,
    /// Whether JOINED was sent over it.
    pub(super) accepted: bool,
}

/// Who said what a host hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Coordinator,
    Forger,
}

/// What an agent sends.
#[derive(Debug, Clone)]
pub(super) enum Up {
    Join(Box<JoinReport>),
    Message(Box<FromHost>),
    Attested(RolloutId, Box<Attestation>),
}

/// Something that is under way on a machine or its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pending {
    Down,
    Up,
    OldUp(usize),
    Work(usize, Pace),
    Guard,
    /// The agent's own deadline has come.
    Due,
}

impl Machine {
    pub(super) fn new(fleet: FleetName, name: HostName) -> Self {
        Self {
            record: HostRecord::first(fleet, name.clone()),
            name,
            journal: JournalHead { seq: 0, hash: Digest::of(b"empty journal") },
            history: VecDeque::new(),
            disk: Disk::Newest,
            agent: None,
            boot: 0,
            guard: None,
            lease: None,
            halted: false,
            clock: Clock { drift_ppm: 0 },
            hold: Hold::Nothing,
            asked_at: None,
            fence_ms: 1,
            trees: [Tree::Missing; RELEASES],
            work: Vec::new(),
            guard_work: VecDeque::new(),
            link: None,
            old_links: Vec::new(),
            permitted: false,
            opens_to_fail: 0,
            closes_to_fail: 0,
            nonce: None,
            offered: None,
            refusals: Vec::new(),
        }
    }

    /// What could happen next without any fault.
    pub(super) fn pending(&self, now: u64, into: &mut Vec<Pending>) {
        let due = self.agent.as_ref().and_then(Host::next_deadline);
        if due.is_some_and(|due| due <= self.clock.at(now)) {
            into.push(Pending::Due);
        }
        if let Some(link) = self.link.as_ref().filter(|_| self.hold != Hold::Network) {
            if !link.down.is_empty() || !link.server_open {
                into.push(Pending::Down);
            }
            if !link.up.is_empty() && link.server_open {
                into.push(Pending::Up);
            }
        }
        into.extend((0..self.old_links.len()).map(Pending::OldUp));
        let goes_on = |work: &Work| self.hold != Hold::Arming || !work.is_for_arming();
        let work = self.work.iter().enumerate().filter(|(_, (work, _))| goes_on(work));
        into.extend(work.map(|(at, (_, pace))| Pending::Work(at, *pace)));
        if !self.guard_work.is_empty() {
            into.push(Pending::Guard);
        }
    }

    /// Whether the coordinator has let the current stream in.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.link.as_ref().filter(|link| link.accepted && link.server_open).map(|link| link.session)
    }

    fn profile(&self, shared_boot: bool) -> Profile {
        let boot = if shared_boot { 0 } else { self.boot };
        let host = if shared_boot { 0 } else { Digest::of(self.name.as_str().as_bytes()).as_bytes()[0] };
        let boot_id = BootId::new(&format!("{boot:08x}-0000-0000-0000-0000000000{host:02x}"));
        Profile {
            facts: HostFacts {
                epoch: Epoch(0),
                serving: None,
                boot_id: boot_id.expect("a UUID"),
                scope: Scope::Link,
                boot_gate: BootGate::Volatile,
                clock: ClockState::Steady,
                clock_error_ms: Some(1),
                fence_ms: Some(self.fence_ms),
                drain_ms: 0,
                assurance: Assurance::Sha256,
                agent_version: "0.1.0".to_owned(),
                agent_config: Digest::from_bytes([7; 32]),
                measured_unix_ms: UnixTime(0),
                elapsed_ms: 0,
            },
            protocol: crate::fleet::PROTOCOL,
        }
    }

    fn examine(&self, release: usize) -> Result<(), Refusal> {
        match self.trees[release] {
            Tree::Good => Ok(()),
            Tree::Tampered => Err(Refusal::because(Blocker {
                path: Some("bin/server".to_owned()),
                ..Blocker::host(Code::Mismatch, &self.name, "the content differs")
            })),
            Tree::Missing => Err(Refusal::because(Blocker::host(
                Code::NotDeployed,
                &self.name,
                "the release is not on this host",
            ))),
        }
    }
}

impl World {
    /// Starts the agent, as systemd does. It asks the guard what is served.
    pub(super) fn start_agent(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        if machine.agent.is_some() {
            return;
        }
        if self.mistake == Some(Mistake::ArmedNotDurable)
            && let Mode::Armed { serving, .. } = machine.record.mode
        {
            machine.record.mode = Mode::Serve(serving);
        }
        machine.agent = Some(Host::new(machine.record.clone(), machine.profile(self.shared_boot)));
        machine.guard_work.push_back(GuardWork::Say);
    }

    /// Kills the agent. What it had asked of the guard may still happen.
    pub(super) fn crash_agent(&mut self, index: usize) {
        self.hang_up(index);
        let machine = &mut self.machines[index];
        machine.agent = None;
        machine.work.clear();
        let asked = machine.guard_work.pop_front();
        machine.guard_work.clear();
        if let Some(asked) = asked
            && self.random.chance(500)
        {
            let _ = self.ask_guard(index, &asked);
        }
    }

    /// Switches the machine off and on. Its agent is started later.
    pub(super) fn reboot(&mut self, index: usize) {
        self.hang_up(index);
        let machine = &mut self.machines[index];
        machine.agent = None;
        machine.work.clear();
        machine.guard_work.clear();
        machine.boot += 1;
        machine.permitted = false;
        machine.lease = None;
        if self.mistake != Some(Mistake::StartsAtBoot) {
            machine.guard = None;
        }
    }

    /// The agent's end of the stream is gone; what it sent may still arrive.
    pub(super) fn hang_up(&mut self, index: usize) {
        if let Some(link) = self.machines[index].link.take() {
            self.machines[index].old_links.push(link);
        }
        if self.machines[index].old_links.len() > OLD_LINKS_MAX {
            let link = self.machines[index].old_links.remove(0);
            self.stream_left(index, &link);
        }
    }

    /// The agent connects, if it can.
    pub(super) fn connect(&mut self, index: usize) -> bool {
        let is_possible = self.coordinator.fleet.is_some()
            && self.machines[index].agent.is_some()
            && self.machines[index].link.is_none();
        if !is_possible {
            return false;
        }
        let session = self.next_session();
        let nonce = Nonce::from_bytes(self.random.bytes());
        let machine = &mut self.machines[index];
        machine.nonce = Some(nonce);
        machine.link = Some(Link {
            session,
            up: VecDeque::new(),
            down: VecDeque::new(),
            server_open: true,
            accepted: false,
        });
        let journal = machine.journal;
        self.host_event(index, Event::Connected { nonce, journal });
        true
    }

    /// The service ends by itself, and the guard says so.
    pub(super) fn end_service(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        machine.guard = None;
        if let Some(lease) = &mut machine.lease {
            lease.switch = None;
        }
        if machine.agent.is_some() {
            machine.guard_work.push_back(GuardWork::Say);
        }
    }

    /// Does one thing that is under way.
    pub(super) fn advance(&mut self, index: usize, pending: Pending) {
        match pending {
            Pending::Down => self.deliver_down(index),
            Pending::Up => {
                let up = self.machines[index].link.as_mut().and_then(|link| {
                    let session = link.session;
                    link.up.pop_front().map(|up| (session, up))
                });
                if let Some((session, up)) = up {
                    self.deliver_up(index, session, up);
                }
            }
            Pending::OldUp(at) => {
                let link = &mut self.machines[index].old_links[at];
                match link.up.pop_front().filter(|_| link.server_open) {
                    Some(up) => {
                        let session = link.session;
                        self.deliver_up(index, session, up);
                    }
                    None => {
                        let link = self.machines[index].old_links.remove(at);
                        self.stream_left(index, &link);
                    }
                }
            }
            Pending::Work(at, _) => {
                let (work, _) = self.machines[index].work.swap_remove(at);
                let event = self.finish(index, work);
                self.host_event(index, event);
            }
            Pending::Guard => {
                if let Some(asked) = self.machines[index].guard_work.pop_front()
                    && let Some(event) = self.ask_guard(index, &asked)
                {
                    self.host_event(index, event);
                }
            }
            Pending::Due => self.host_event(index, Event::DeadlineReached),
        }
    }

    /// Hands an event to the agent, writes what it says and then does what it says, or dies on the way.
    pub(super) fn host_event(&mut self, index: usize, event: Event) {
        let entropy = self.random.bytes();
        note!(self, "  {} <- {event:?}", self.machines[index].name);
        let now = Now { boot: self.machines[index].clock.at(self.now), unix: self.unix_now() };
        let Some(agent) = &mut self.machines[index].agent else { return };
        let step = agent.handle(event, now, entropy);
        let records = step.records().to_vec();
        let speaks_first = self.mistake == Some(Mistake::HostSpeaksBeforeWriting);
        let effects = match step {
            Step::Act(effects) => effects,
            Step::Write(write) => write.into_effects(muster_model::Durable::assert(0)),
        };
        let crash_at = self.crash_point(records.len() + effects.len());
        let mut at = 0;
        if !speaks_first {
            for record in &records {
                if crash_at == Some(at) {
                    return self.crash_agent(index);
                }
                at += 1;
                self.persist_host(index, record);
            }
        }
        for effect in effects {
            if crash_at == Some(at) {
                return self.crash_agent(index);
            }
            at += 1;
            self.host_effect(index, effect);
        }
        if speaks_first {
            for record in &records {
                self.persist_host(index, record);
            }
        }
    }

    fn host_effect(&mut self, index: usize, effect: Effect) {
        note!(self, "    {} -> {effect:?}", self.machines[index].name);
        match effect {
            Effect::Send(message) => {
                self.check_from_host(index, &message);
                let machine = &mut self.machines[index];
                if let FromHost::Dark { nonce: Some(nonce), .. } = &message {
                    machine.nonce = Some(*nonce);
                }
                if let FromHost::Renew { .. } = &message {
                    machine.asked_at = Some(machine.clock.at(self.now));
                }
                if let FromHost::Refused { refusal, .. } = &message {
                    machine.refusals.push(refusal.clone());
                }
                let up = match message {
                    FromHost::Join(report) => Up::Join(Box::new(report)),
                    message @ (FromHost::Confirmed
                    | FromHost::Fresh { .. }
                    | FromHost::CannotAttest { .. }
                    | FromHost::Prepared { .. }
                    | FromHost::Probed { .. }
                    | FromHost::Armed { .. }
                    | FromHost::Renew { .. }
                    | FromHost::Set { .. }
                    | FromHost::Closed { .. }
                    | FromHost::Disarmed { .. }
                    | FromHost::Serving { .. }
                    | FromHost::Measured { .. }
                    | FromHost::Dark { .. }
                    | FromHost::Refused { .. }) => Up::Message(Box::new(message)),
                };
                self.send_up(index, up);
            }
            Effect::SignAndSend(k, attestation) => {
                self.check_attested(index, k);
                self.send_up(index, Up::Attested(k, attestation));
            }
            Effect::Measure { purpose, release } => self.start(index, Work::Measure { purpose, release }),
            Effect::Verify { k, documents } => self.start(index, Work::Verify { k, documents }),
            Effect::Seal { k, release } => self.start(index, Work::Seal { k, release }),
            Effect::CheckSeal { purpose, release } => self.start(index, Work::CheckSeal { purpose, release }),
            Effect::Quiesce { k } => self.ask_later(index, GuardWork::Quiesce { k }),
            Effect::Unquiesce => {}
            Effect::Lease { k, deadline, .. } => self.ask_later(index, GuardWork::Lease { k, deadline }),
            Effect::Extend { k, deadline } => {
                let from_receipt = self.machines[index].clock.at(self.now).after(policy().timing.lease());
                let is_mistaken = self.mistake == Some(Mistake::LeaseFromReceipt);
                let deadline = if is_mistaken { from_receipt } else { deadline };
                self.ask_later(index, GuardWork::Extend { k, deadline });
            }
            Effect::Lift { k } => self.ask_later(index, GuardWork::Lift { k }),
            Effect::Switch { k, at, epoch, release } => {
                self.ask_later(index, GuardWork::Switch { k, at, epoch, release });
            }
            Effect::Halt => self.ask_later(index, GuardWork::Halt),
            Effect::Close { k, .. } => self.ask_later(index, GuardWork::Close { k }),
            Effect::Open { epoch, release, resume } => {
                self.ask_later(index, GuardWork::Open { epoch, release, resume });
            }
            Effect::Hang(refusal) => {
                self.machines[index].refusals.push(refusal);
                self.hang_up(index);
            }
        }
    }

    fn ask_later(&mut self, index: usize, work: GuardWork) {
        self.machines[index].guard_work.push_back(work);
    }

    fn start(&mut self, index: usize, work: Work) {
        let pace = if self.random.chance(self.slow_per_mille) { Pace::Slow } else { Pace::Usual };
        self.machines[index].work.push((work, pace));
    }

    fn send_up(&mut self, index: usize, up: Up) {
        if let Some(link) = &mut self.machines[index].link {
            link.up.push_back(up);
        }
    }

    fn deliver_down(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let Some(link) = &mut machine.link else { return };
        let Some((leadership, message, origin)) = link.down.pop_front() else {
            if !link.server_open {
                machine.link = None;
                self.host_event(index, Event::Disconnected);
            }
            return;
        };
        match &message {
            ToHost::Admit { epoch, release, .. } | ToHost::Open { epoch, release, .. } => {
                machine.permitted |= origin == Origin::Coordinator;
                machine.offered = Some((*epoch, *release));
            }
            ToHost::Joined { .. }
            | ToHost::Propose { .. }
            | ToHost::Attest { .. }
            | ToHost::Prepare { .. }
            | ToHost::Probe { .. }
            | ToHost::Arm { .. }
            | ToHost::Grant { .. }
            | ToHost::Set { .. }
            | ToHost::Halt { .. }
            | ToHost::Close { .. }
            | ToHost::Disarm { .. }
            | ToHost::Refuse { .. } => {}
        }
        self.host_event(index, Event::Message { leadership, message });
    }

    /// The outcome of finished work, from the tree as it is now.
    pub(super) fn finish(&self, index: usize, work: Work) -> Event {
        let machine = &self.machines[index];
        match work {
            Work::Measure { purpose, release } => {
                let measured = |()| Measured {
                    compared: Comparable {
                        manifest: release,
                        measured: release,
                        files: 3,
                        bytes: 100,
                        uniform: None,
                    },
                    at: self.unix_now(),
                    elapsed_ms: 5,
                    clock_error_ms: Some(1),
                };
                let outcome = machine.examine(self.position_of(release)).map(measured);
                Event::Measured { purpose, outcome }
            }
            Work::Verify { k, documents } => Event::Verified { k, outcome: self.verify(&documents) },
            Work::Seal { k, release } => {
                Event::Sealed { k, outcome: machine.examine(self.position_of(release)) }
            }
            Work::CheckSeal { purpose, release } => Event::SealChecked {
                purpose,
                outcome: machine.examine(self.position_of(release)).map_err(|mut refusal| {
                    refusal.blockers.iter_mut().for_each(|blocker| blocker.code = Code::SealBroken);
                    refusal
                }),
            },
        }
    }

    fn verify(&self, documents: &Documents) -> Result<Box<Evidence>, Refusal> {
        let unknown = || Refusal::of(Code::BlobMissing, "the coordinator has no such document");
        let order = self.orders.get(&documents.order).ok_or_else(unknown)?;
        let at = self.release_papers.iter().position(|papers| *papers == documents.release);
        let roster = self.rosters.iter().find(|it| it.envelope == documents.roster).ok_or_else(unknown)?;
        let evidence = self.coordinator.documents.get(&documents.evidence).ok_or_else(unknown)?;
        Ok(Box::new(Evidence {
            order: order.clone(),
            release: self.releases[at.ok_or_else(unknown)?].clone(),
            roster: Verified::clone(&roster.roster),
            roster_digest: roster.digest,
            attestations: self.attestations_in(evidence).into_iter().cloned().collect(),
            now: self.unix_now(),
        }))
    }

    /// Writes a host's record.
    fn persist_host(&mut self, index: usize, record: &HostRecord) {
        self.check_host_record(index, record);
        let machine = &mut self.machines[index];
        machine.history.push_back((machine.record.clone(), machine.journal));
        if machine.history.len() > HISTORY_LEN_MAX {
            machine.history.pop_front();
        }
        machine.record = record.clone();
        machine.journal = next_head(machine.journal, &mut self.random);
    }
}

fn next_head(head: JournalHead, random: &mut SplitMix64) -> JournalHead {
    JournalHead { seq: head.seq + 1, hash: Digest::from_bytes(random.bytes()) }
}
