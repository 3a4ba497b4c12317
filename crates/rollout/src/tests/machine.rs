//! A host of the simulated world: its disk, its clock, its processes and its connection.

use std::collections::VecDeque;

use muster_guard::lease::Lease;
use muster_guard::{Armed, Opened};
use muster_model::{
    Assurance, Blocker, BootGate, BootId, BootTime, ClockState, Code, Digest, Documents, Epoch, FleetName,
    HaltId, HostFacts, HostName, JournalHead, Nonce, Refusal, RolloutId, Scope, SessionId, UnixTime,
};

use super::clock::Clock;
use super::disk::File;
use super::ledger::Ledger;
use super::link::{Hold, Link, Route};
use super::papers::key_of;
use super::warden::{Asks, Drain, Duty};
use super::world::{Mistake, RELEASES, World};
use crate::host::{CloseCause, Event, Host, HostRecord, Mode, Profile, Resume};

/// How many older records of a host are remembered, for rolling its disk back.
const HISTORY_LEN_MAX: usize = 32;
/// How many streams that the host has given up may still have messages under way.
const OLD_LINKS_MAX: usize = 2;
/// How many records a journal grows to before it is written anew.
const JOURNAL_RECORDS_MAX: usize = 16;

/// One machine.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) name: HostName,
    /// What is durable on its disk.
    pub(super) record: HostRecord,
    pub(super) journal: JournalHead,
    /// The file that both are read back from when the agent starts.
    file: File,
    /// What was written to the file and not synced.
    unsynced: Option<(JournalHead, HostRecord)>,
    pub(super) history: VecDeque<(HostRecord, JournalHead)>,
    pub(super) image: Image,
    /// Nothing while the agent is down.
    pub(super) agent: Option<Host>,
    pub(super) run: Run,
    /// What an agent that is stopped hears when it goes on.
    pub(super) inbox: VecDeque<Event>,
    pub(super) boot: u64,
    /// What is really served.
    pub(super) guard: Option<(Epoch, Digest)>,
    pub(super) guard_process: GuardProcess,
    /// When a guard that was killed is started again by its unit, in the world's time, if it must be.
    pub(super) back_at: Option<u64>,
    pub(super) driver: Driver,
    /// What the guard process knows of its lease, and what it keeps of it.
    pub(super) lease: Lease,
    pub(super) ledger: Ledger,
    /// What may be served, as the guard's permit of this boot says.
    pub(super) permit: Option<Opened>,
    /// Where the link leads.
    pub(super) linked: Option<Digest>,
    /// What the guard is at by itself.
    pub(super) duty: Option<Duty>,
    /// The closing that it has begun.
    pub(super) drain: Option<Drain>,
    /// The last rollout that the host took part in when somebody halted it by hand.
    pub(super) halted_by_hand: Option<RolloutId>,
    /// The halt that the agent asked for last.
    pub(super) asked_halt: Option<HaltId>,
    pub(super) clock: Clock,
    /// By how much its time of day is off, in milliseconds.
    pub(super) unix_error_ms: i64,
    pub(super) hold: Hold,
    pub(super) route: Route,
    /// When the agent asked last for its lease to be renewed.
    pub(super) asked_at: Option<BootTime>,
    /// When the coordinator heard that, in events of the world.
    pub(super) heard: Option<(RolloutId, u64, u64)>,
    /// How long this guard takes to fence, in milliseconds of its own clock.
    pub(super) fence_ms: u64,
    /// How long what follows a fence takes.
    pub(super) hook_ms: u64,
    /// How long its service takes to drain.
    pub(super) drain_ms: u64,
    /// How long its service takes to start at an instant.
    pub(super) start_ms: u64,
    pub(super) trees: [Tree; RELEASES],
    /// Which trees were good when they were looked at last, since the machine booted.
    pub(super) examined: [bool; RELEASES],
    /// In any order.
    pub(super) work: Vec<(Work, Pace)>,
    /// Strictly in order.
    pub(super) guard_work: VecDeque<GuardWork>,
    pub(super) link: Option<Link>,
    /// Envelopes of rosters that it was shown, and has not pulled yet. In any order.
    pub(super) shown: Vec<Digest>,
    /// The one that it was shown last.
    pub(super) last_shown: Option<Digest>,
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

/// Whether an agent's process is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    Running,
    /// As after SIGSTOP. Its guard goes on.
    Stopped,
}

/// Whether there is a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuardProcess {
    Up,
    Down,
}

/// What a guard has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    /// A link that goes on without it.
    Link,
    /// A service that dies with it, and leaves the link.
    Supervise,
}

/// Whether a disk is what the host wrote last.
#[derive(Debug, Clone)]
pub(super) enum Image {
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
    /// What it answers to a request that took its time.
    Answer(Event),
    /// The guard is back: the agent asks what is served, and begins a new session to tell.
    Found,
    Quiesce {
        k: RolloutId,
    },
    Lease(Armed),
    Extend {
        k: RolloutId,
        deadline: BootTime,
    },
    Lift {
        k: RolloutId,
    },
    Switch {
        k: RolloutId,
        at: BootTime,
        epoch: Epoch,
        release: Digest,
    },
    Halt,
    Close {
        cause: CloseCause,
    },
    Open {
        epoch: Epoch,
        release: Digest,
        resume: Resume,
    },
}

impl GuardWork {
    /// Whether something may be served once this was done.
    pub(super) const fn may_serve(&self) -> bool {
        matches!(self, Self::Open { .. } | Self::Switch { .. })
    }
}

/// Something that is under way on a machine or its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pending {
    Down,
    Up,
    OldUp(usize),
    Work(usize, Pace),
    Guard,
    /// Something that the agent did not hear while it was stopped.
    Inbox,
    /// The agent's own deadline has come.
    Due,
    /// A roster that the agent was shown is pulled and verified.
    Shown(usize),
}

impl Machine {
    pub(super) fn new(fleet: FleetName, name: HostName) -> Self {
        Self {
            record: HostRecord::first(fleet, name.clone()),
            name,
            journal: JournalHead { seq: 0, hash: Digest::of(b"empty journal") },
            file: File::default(),
            unsynced: None,
            history: VecDeque::new(),
            image: Image::Newest,
            agent: None,
            run: Run::Running,
            inbox: VecDeque::new(),
            boot: 0,
            guard: None,
            guard_process: GuardProcess::Up,
            back_at: None,
            driver: Driver::Link,
            lease: Lease::new(),
            ledger: Ledger::default(),
            permit: None,
            linked: None,
            duty: None,
            drain: None,
            halted_by_hand: None,
            asked_halt: None,
            clock: Clock::exact(),
            unix_error_ms: 0,
            hold: Hold::Nothing,
            route: Route::default(),
            asked_at: None,
            heard: None,
            fence_ms: 1,
            hook_ms: 0,
            drain_ms: 0,
            start_ms: 0,
            trees: [Tree::Missing; RELEASES],
            examined: [false; RELEASES],
            work: Vec::new(),
            guard_work: VecDeque::new(),
            link: None,
            shown: Vec::new(),
            last_shown: None,
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
        let is_running = self.run == Run::Running;
        if is_running && !self.inbox.is_empty() {
            into.push(Pending::Inbox);
        }
        let due = self.agent.as_ref().filter(|_| is_running).and_then(Host::next_deadline);
        if due.is_some_and(|due| due <= self.clock.at(now)) {
            into.push(Pending::Due);
        }
        if let Some(link) = &self.link {
            let hears = link.down.is_due(now) || (link.down.is_empty() && !link.server_open);
            if is_running && self.hold.lets_down() && hears {
                into.push(Pending::Down);
            }
            if self.hold.lets_up() && link.up.is_due(now) && link.server_open {
                into.push(Pending::Up);
            }
        }
        let goes_up = |link: &Link| self.hold.lets_up() && (link.up.is_empty() || link.up.is_due(now));
        let old_links = self.old_links.iter().enumerate().filter(|(_, link)| goes_up(link));
        into.extend(old_links.map(|(at, _)| Pending::OldUp(at)));
        let goes_on = |work: &Work| is_running && (self.hold != Hold::Arming || !work.is_for_arming());
        let work = self.work.iter().enumerate().filter(|(_, (work, _))| goes_on(work));
        into.extend(work.map(|(at, (_, pace))| Pending::Work(at, *pace)));
        if is_running && self.agent.is_some() && self.hold.lets_down() {
            into.extend((0..self.shown.len()).map(Pending::Shown));
        }
        if !self.guard_work.is_empty() && self.drain.is_none() {
            into.push(Pending::Guard);
        }
    }

    /// When the agent's own deadline comes.
    pub(super) fn next_due(&self) -> Option<u64> {
        let agent = self.agent.as_ref().filter(|_| self.run == Run::Running)?;
        agent.next_deadline().map(|due| self.clock.when(due))
    }

    /// When the next message arrives that is under way.
    pub(super) fn next_arrival(&self) -> Option<u64> {
        let up = self.link.iter().chain(&self.old_links).filter(|link| link.server_open);
        let up = up.filter(|_| self.hold.lets_up()).filter_map(|link| link.up.due());
        let hears = self.run == Run::Running && self.hold.lets_down();
        let down = self.link.iter().filter(|_| hears).filter_map(|link| link.down.due());
        up.chain(down).min()
    }

    /// Whether the coordinator has let the current stream in.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.link.as_ref().filter(|link| link.accepted && link.server_open).map(|link| link.session)
    }

    /// Its time of day, which is off by no more than it says.
    pub(super) fn unix(&self, now: UnixTime) -> UnixTime {
        UnixTime(now.0.saturating_add_signed(self.unix_error_ms))
    }

    /// Writes a record to the journal. It is durable once [`Machine::sync`] has answered.
    pub(super) fn append(&mut self, head: JournalHead, record: &HostRecord) {
        let body = serde_json::to_vec(&(head, record)).expect("a record can be written");
        self.file.append(&body);
        self.unsynced = Some((head, record.clone()));
    }

    /// Makes durable what was appended, and says what that is.
    pub(super) fn sync(&mut self) -> Option<(JournalHead, HostRecord)> {
        self.file.sync();
        self.unsynced.take()
    }

    /// Takes note of what is durable now.
    pub(super) fn remember(&mut self, head: JournalHead, record: HostRecord) {
        self.history.push_back((std::mem::replace(&mut self.record, record), self.journal));
        self.journal = head;
        if self.history.len() > HISTORY_LEN_MAX {
            self.history.pop_front();
        }
        if self.file.len() > JOURNAL_RECORDS_MAX {
            self.rewrite();
        }
    }

    /// Puts another record on the disk, as somebody does who restores an image or makes a machine anew.
    pub(super) fn install(&mut self, record: HostRecord, head: JournalHead) {
        (self.record, self.journal) = (record, head);
        self.unsynced = None;
        self.rewrite();
    }

    /// What the disk holds, or nothing if a durable record cannot be read any more.
    pub(super) fn read_back(&mut self) -> Option<Option<(JournalHead, HostRecord)>> {
        self.unsynced = None;
        let bodies = self.file.open()?;
        match bodies.last() {
            None => Some(None),
            Some(body) => serde_json::from_slice(body).ok().map(Some),
        }
    }

    fn rewrite(&mut self) {
        let body = serde_json::to_vec(&(self.journal, &self.record)).expect("a record can be written");
        self.file.replace([&body[..]]);
    }

    /// The boot that the machine is in.
    pub(super) fn boot_id(&self, shared_boot: bool) -> BootId {
        let boot = if shared_boot { 0 } else { self.boot };
        let host = if shared_boot { 0 } else { Digest::of(self.name.as_str().as_bytes()).as_bytes()[0] };
        BootId::new(&format!("{boot:08x}-0000-0000-0000-0000000000{host:02x}")).expect("a UUID")
    }

    pub(super) fn profile(&self, shared_boot: bool) -> Profile {
        Profile {
            facts: HostFacts {
                epoch: Epoch(0),
                serving: None,
                boot_id: self.boot_id(shared_boot),
                scope: Scope::Link,
                boot_gate: BootGate::Volatile,
                clock: ClockState::Steady,
                clock_error_ms: Some(1),
                fence_ms: Some(self.fence_ms + self.hook_ms),
                drain_ms: self.drain_ms,
                assurance: Assurance::Sha256,
                agent_version: "0.1.0".to_owned(),
                agent_config: Digest::from_bytes([7; 32]),
                measured_unix_ms: UnixTime(0),
                elapsed_ms: 0,
            },
            protocol: crate::fleet::PROTOCOL,
            attestation_key: key_of(&self.name),
        }
    }

    pub(super) fn examine(&self, release: usize) -> Result<(), Refusal> {
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
    /// Starts the agent, as systemd does. It reads its journal, and asks the guard what is served.
    pub(super) fn start_agent(&mut self, index: usize) {
        if self.machines[index].agent.is_some() {
            return;
        }
        match self.machines[index].read_back() {
            Some(Some((head, record))) => self.take_back(index, head, record),
            Some(None) => {}
            None => self.violate(format!("P7: what was durable on {} is lost", self.machines[index].name)),
        }
        let machine = &mut self.machines[index];
        if self.mistake == Some(Mistake::ArmedNotDurable)
            && let Mode::Armed { serving, .. } = machine.record.mode
        {
            let record = HostRecord { mode: Mode::Serve(serving), ..machine.record.clone() };
            machine.install(record, machine.journal);
        }
        machine.agent = Some(Host::new(machine.record.clone(), machine.profile(self.shared_boot)));
        machine.run = Run::Running;
        machine.guard_work.push_back(GuardWork::Say);
    }

    /// Compares what a disk holds with what was acknowledged. A record more than that is one whose sync was cut short.
    fn take_back(&mut self, index: usize, head: JournalHead, record: HostRecord) {
        let machine = &self.machines[index];
        if head == machine.journal {
            if record != machine.record {
                self.violate(format!("P7: {} reads back another record", self.machines[index].name));
            }
        } else if head.seq == machine.journal.seq + 1 {
            note!(self, "  {} finds a record that it had not acknowledged", self.machines[index].name);
            self.check_host_record(index, &record);
            self.machines[index].remember(head, record);
        } else {
            self.violate(format!("P7: what was durable on {} is lost", self.machines[index].name));
        }
    }

    /// Kills the agent. What it had asked of the guard may still happen.
    pub(super) fn crash_agent(&mut self, index: usize) {
        self.hang_up(index);
        let machine = &mut self.machines[index];
        machine.agent = None;
        machine.run = Run::Running;
        machine.inbox.clear();
        machine.shown.clear();
        machine.work.clear();
        machine.asked_halt = None;
        if let Some(drain) = &mut machine.drain {
            drain.asks = Asks::No;
        }
        let asked = machine.guard_work.pop_front().filter(|_| machine.drain.is_none());
        machine.guard_work.clear();
        if let Some(asked) = asked
            && self.random.chance(500)
        {
            let _ = self.ask_guard(index, &asked);
        }
    }

    /// The machine loses power, and is on again. Its agent is started later.
    pub(super) fn reboot(&mut self, index: usize) {
        self.hang_up(index);
        let now = self.now;
        let machine = &mut self.machines[index];
        self.seen.torn += u64::from(machine.file.lose_power(&mut self.random));
        self.seen.leases_lost += u64::from(machine.ledger.lose_power(&mut self.random));
        machine.unsynced = None;
        machine.agent = None;
        machine.run = Run::Running;
        machine.inbox.clear();
        machine.shown.clear();
        machine.work.clear();
        machine.guard_work.clear();
        machine.asked_halt = None;
        machine.boot += 1;
        if !self.shared_boot {
            machine.clock.restart(now);
        }
        machine.asked_at = None;
        machine.permitted = false;
        machine.examined = [false; RELEASES];
        // A permit of another boot is void, and what it permitted is gone with the power.
        machine.permit = None;
        self.start_guard(index);
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

    /// The service ends by itself, or somebody takes the link away. The permit stays, and so does a deadline.
    pub(super) fn end_service(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        machine.guard = None;
        if machine.driver == Driver::Link {
            machine.linked = None;
        }
        self.guard_tells(index);
    }
}
