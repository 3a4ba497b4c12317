//! Everything that there is in the model at one moment.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use muster_model::{
    Attestation, BootTime, Digest, Epoch, FromHost, HostName, JoinReport, Leadership, RolloutId, SessionId,
    ToHost, Verified,
};

use crate::fleet::{Fleet, FleetRecord, SessionRecord};
use crate::host::{CloseCause, Host, Mode, Purpose, SealPurpose};

/// There are two coordinators; either may lead.
pub(super) const SLOTS: usize = 2;

#[derive(Debug, Clone, PartialEq, Hash)]
pub(super) struct State {
    /// In ticks, on every clock.
    pub(super) now: u64,
    pub(super) store: Part<Store>,
    /// A coordinator that is not a leader has no state. One that was deposed and does not know has.
    pub(super) leaders: [Option<Part<Leader>>; SLOTS],
    pub(super) machines: Vec<Part<Machine>>,
    pub(super) history: Part<History>,
    pub(super) left: Left,
}

/// A part of the state. An action changes few of them, so each is shared between states and hashed once.
#[derive(Debug, Clone)]
pub(super) struct Part<T> {
    value: Arc<T>,
    /// Nothing while it is being changed.
    hash: Option<u64>,
}

/// What may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Left {
    pub(super) ticks: u8,
    pub(super) faults: u8,
    pub(super) renewals: u8,
    pub(super) rollouts: u8,
    pub(super) removals: u8,
}

/// What all coordinators share: every write is a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Hash)]
pub(super) struct Store {
    pub(super) record: FleetRecord,
    pub(super) sessions: BTreeMap<HostName, SessionRecord>,
    pub(super) documents: BTreeMap<Digest, Arc<[u8]>>,
    /// What the envelopes in the evidence say, by host and rollout: a host attests once for each.
    pub(super) attestations: BTreeMap<(u8, RolloutId), Verified<Attestation>>,
}

/// A process that leads, or thinks so.
#[derive(Debug, Clone, PartialEq, Hash)]
pub(super) struct Leader {
    pub(super) fleet: Fleet,
    /// The record that it has read or written last: leadership and revision.
    pub(super) durable: (Leadership, u64),
    pub(super) read: Option<Read>,
}

/// A read of the store that is under way, and what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Read {
    pub(super) number: u64,
    pub(super) found: Found,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Found {
    Leads,
    Deposed,
}

/// A host: its agent and record, its guard, and its connections.
#[derive(Debug, Clone, PartialEq, Hash)]
pub(super) struct Machine {
    pub(super) agent: Host,
    pub(super) boots: u8,
    pub(super) guard: Guard,
    /// What takes time, in any order.
    pub(super) work: Vec<Work>,
    pub(super) streams: Vec<Stream>,
    pub(super) sessions: u64,
    /// Nonces drawn for asking to be admitted.
    pub(super) draws: u64,
    /// The leader that has refused the host: it does not ask that one again.
    pub(super) refused_by: Option<Leadership>,
    /// A copy of a message that was kept.
    pub(super) copy: Option<(Leadership, ToHost)>,
    /// Whether ADMIT or OPEN was delivered since the machine booted.
    pub(super) permitted: Permitted,
    /// When the agent asked last for its lease to be renewed.
    pub(super) asked_at: Option<BootTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Permitted {
    No,
    Yes,
}

/// What a guard serves and has promised. A reboot ends both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Guard {
    pub(super) serving: Option<(Epoch, Digest)>,
    pub(super) lease: Option<Lease>,
    pub(super) draining: Option<Draining>,
    /// What waits for the drain to end.
    pub(super) waiting: VecDeque<GuardWork>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) k: RolloutId,
    pub(super) deadline: BootTime,
    pub(super) latch: Latch,
    pub(super) origin: LeaseOrigin,
}

/// Whether a guard has fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Latch {
    Open,
    Fenced,
}

/// Where the end of a lease comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LeaseOrigin {
    Armed,
    Granted,
}

/// A service that was told to stop and has not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Draining {
    pub(super) cause: CloseCause,
    pub(super) asked_by: Asker,
}

/// Who waits for the guard's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    Agent,
    /// An agent that has died since, or one that was told before.
    Nobody,
}

/// What the guard is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum GuardWork {
    Quiesce { k: RolloutId },
    Lease { k: RolloutId, deadline: BootTime },
    Extend { k: RolloutId, deadline: BootTime },
    Lift { k: RolloutId },
    Close { cause: CloseCause },
    Open { epoch: Epoch, release: Digest },
}

/// What may take time on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Work {
    Measure {
        purpose: Purpose,
        release: Digest,
    },
    CheckSeal {
        purpose: SealPurpose,
    },
    /// The guard has something to say by itself.
    Notice,
}

/// A connection between an agent and a leader: in order, and over once either end has gone.
#[derive(Debug, Clone, PartialEq, Hash)]
pub(super) struct Stream {
    pub(super) session: SessionId,
    pub(super) slot: usize,
    pub(super) up: VecDeque<Up>,
    pub(super) down: VecDeque<(Leadership, ToHost)>,
    pub(super) host_end: End,
    pub(super) leader_end: LeaderEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum End {
    Open,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LeaderEnd {
    /// JOIN was not accepted yet.
    Open,
    Accepted,
    Gone,
}

/// What an agent sends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Up {
    Join(Box<JoinReport>),
    Message(Box<FromHost>),
    Attested(RolloutId, Box<Attestation>),
}

/// What the properties need to know of the past.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct History {
    /// What became of each rollout, and where it was to lead.
    pub(super) fates: BTreeMap<RolloutId, Fate>,
    pub(super) targets: BTreeMap<RolloutId, Digest>,
    /// When the record left ARMING for the last time: for which rollout, in ticks.
    pub(super) left_arming: Option<(RolloutId, u64)>,
    /// What the last leader found when it took over, if the first leader does not lead any more.
    pub(super) found: Option<PhaseName>,
    /// The first promise that an action broke.
    pub(super) broken: Option<(Promise, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    Aborted,
    Decided,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum PhaseName {
    Settled,
    Preparing,
    Arming,
    Decided,
    Opened,
}

/// The invariants that are about what an action does rather than about what there is after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Promise {
    P3,
    P4,
    P5,
    P6,
    P7,
    P10,
    P12,
}

impl<T: Clone + Hash> Part<T> {
    pub(super) fn new(value: T) -> Self {
        let mut part = Self { value: Arc::new(value), hash: None };
        part.settle();
        part
    }

    pub(super) fn edit(&mut self) -> &mut T {
        self.hash = None;
        Arc::make_mut(&mut self.value)
    }

    fn settle(&mut self) {
        if self.hash.is_none() {
            let mut hasher = DefaultHasher::new();
            self.value.hash(&mut hasher);
            self.hash = Some(hasher.finish());
        }
    }
}

impl<T> std::ops::Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Hash for Part<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash.expect("a state is settled before it is hashed"));
    }
}

impl<T: PartialEq> PartialEq for Part<T> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.value, &other.value) || self.value == other.value)
    }
}

impl State {
    /// Hashes what an action has changed.
    pub(super) fn settle(&mut self) {
        self.store.settle();
        self.leaders.iter_mut().flatten().for_each(Part::settle);
        self.machines.iter_mut().for_each(Part::settle);
        self.history.settle();
    }

    /// Whether the coordinator leads as far as the store knows.
    pub(super) fn leads(&self, slot: usize) -> bool {
        let leader = self.leaders[slot].as_ref();
        leader.is_some_and(|leader| leader.durable.0 == self.store.record.leadership)
    }
}

impl Machine {
    /// The agent's connection, if it has one.
    pub(super) fn current(&self) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.host_end == End::Open)
    }

    pub(super) fn current_mut(&mut self) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.host_end == End::Open)
    }

    /// The deadline that the guard will act at.
    pub(super) fn running_lease(&self) -> Option<Lease> {
        self.guard.lease.filter(|lease| lease.latch == Latch::Open)
    }

    /// The rollout that the host is armed or closed for.
    pub(super) const fn promised(&self) -> Option<RolloutId> {
        match &self.agent.record().mode {
            Mode::Armed { k, .. } | Mode::Closed { k, .. } => Some(*k),
            Mode::Serve(_) => None,
        }
    }
}
