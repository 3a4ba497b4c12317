//! The network of the simulated world: streams between agents and coordinators, with delays of their own in each direction.

use std::collections::VecDeque;

use muster_model::{Attestation, FromHost, JoinReport, Leadership, RolloutId, SessionId, ToHost, Withdrawal};

use super::random::SplitMix64;

/// One stream between an agent and a coordinator.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) session: SessionId,
    /// The coordinator at its other end.
    pub(super) leadership: Leadership,
    pub(super) up: Lane<Up>,
    pub(super) down: Lane<(Leadership, ToHost, Origin)>,
    /// Whether the coordinator still has its end.
    pub(super) server_open: bool,
    /// Whether JOINED was sent over it.
    pub(super) accepted: bool,
}

/// One direction of a stream: what was sent arrives in order, each message after its delay.
#[derive(Debug, Clone)]
pub(super) struct Lane<T> {
    queue: VecDeque<(u64, T)>,
}

/// How long a message takes in one direction, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Delay {
    pub(super) least_ms: u64,
    pub(super) jitter_ms: u64,
}

/// How the network treats one machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) up: Delay,
    pub(super) down: Delay,
}

/// What does not go on for the time being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Nothing,
    /// What is sent to the machine, or by it, does not arrive; neither end knows.
    Network,
    /// What the machine sends does not arrive.
    Up,
    /// What is sent to the machine does not arrive.
    Down,
    /// The host does not get to arm.
    Arming,
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
    Withdrawn(Box<Withdrawal>),
}

impl Link {
    pub(super) const fn new(session: SessionId, leadership: Leadership) -> Self {
        Self { session, leadership, up: Lane::new(), down: Lane::new(), server_open: true, accepted: false }
    }
}

impl<T> Lane<T> {
    const fn new() -> Self {
        Self { queue: VecDeque::new() }
    }

    /// Sends `what`, to arrive at `due` but not before what was sent earlier.
    pub(super) fn push(&mut self, due: u64, what: T) {
        let due = self.queue.back().map_or(due, |(last, _)| due.max(*last));
        self.queue.push_back((due, what));
    }

    /// Slips `what` in at a place, to arrive with what it is put before.
    pub(super) fn insert(&mut self, at: usize, what: T) {
        let due = self.queue.get(at).map_or(0, |(due, _)| *due);
        self.queue.insert(at, (due, what));
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        self.queue.pop_front().map(|(_, what)| what)
    }

    pub(super) fn front(&self) -> Option<&T> {
        self.queue.front().map(|(_, what)| what)
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// When the next message arrives.
    pub(super) fn due(&self) -> Option<u64> {
        self.queue.front().map(|(due, _)| *due)
    }

    pub(super) fn is_due(&self, now: u64) -> bool {
        self.due().is_some_and(|due| due <= now)
    }
}

impl Delay {
    pub(super) fn draw(self, random: &mut SplitMix64) -> u64 {
        if self.jitter_ms == 0 { self.least_ms } else { self.least_ms + random.below(self.jitter_ms + 1) }
    }
}

impl Hold {
    /// Whether what the machine sends arrives.
    pub(super) const fn lets_up(self) -> bool {
        matches!(self, Self::Nothing | Self::Down | Self::Arming)
    }

    /// Whether what is sent to the machine arrives.
    pub(super) const fn lets_down(self) -> bool {
        matches!(self, Self::Nothing | Self::Up | Self::Arming)
    }
}
