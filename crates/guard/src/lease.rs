//! The right of one fleet to serve on this host: what may change it, and when it ends.
//!
//! This is the guard's decision alone, without a clock, a file or a process: time is an argument, and what has to be done
//! comes out as a [`Duty`]. Whoever asks anything first lets the time pass, so a deadline that has passed has latched before
//! anything else is decided, whether or not a timer has fired yet. That makes these the pure rules of a lease, for the
//! guard and for whoever checks them: the simulation of the protocol runs them on its machines.
//!
//! What holds at every moment:
//! - nothing moves a deadline forward, and nothing moves it back once it has passed (protocol, step 8);
//! - a fence that has latched is lifted by an `open` alone, never by a renewal or a disarming (step 9);
//! - a deadline is lifted only by a disarming in time, or by a closing that has verified that nothing is left (step 10);
//! - from `T − ε` on nothing replaces a deadline by a flip (step 14);
//! - a halt outlives all of these, and is lifted by `resume` alone.

use std::time::Duration;

use muster_model::{BootId, BootTime, HaltId, RolloutId, UnixTime};
use serde::{Deserialize, Serialize};

use crate::protocol::{Armed, Decided, Fence, FenceCause, Flipped, Halt, LeaseState, Opened};

/// Armed leases are seconds long; what lies further ahead is a mistake of units.
pub(crate) const AHEAD_MAX: Duration = Duration::from_secs(15 * 60);

/// A flip that is later than this is not made: a guard that was stalled or suspended at `T` knows too little.
pub(crate) const FLIP_LATE_MAX: Duration = Duration::from_secs(1);

/// Between two attempts at a fence.
const FENCE_RETRY: Duration = Duration::from_millis(200);

/// Why a request about the lease is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    /// The fleet is halted.
    #[error("it is halted")]
    Halted,
    /// A fence has latched.
    #[error("it is fenced")]
    Fenced,
    /// What is to be armed is not what is served.
    #[error("it does not serve that epoch")]
    NotServing,
    /// Another deadline runs.
    #[error("it is armed for rollout {0}")]
    Armed(RolloutId),
    /// No deadline runs.
    #[error("it is not armed")]
    NotArmed,
    /// The deadline of this rollout has been replaced by a flip.
    #[error("rollout {0} is decided")]
    Decided(RolloutId),
    /// It is too late for that.
    #[error("that time has passed")]
    TooLate,
    /// The time is too far ahead, or not the one that was armed.
    #[error("that time cannot be meant")]
    WrongTime,
}

/// What has to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Stop what is served, and go on until nothing is left.
    Fence(Fence),
    /// Nothing is left: run what follows a fence.
    EndFence(Fence),
    /// Serve the new instead of the old.
    Flip(Decided),
}

/// Whether a request changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It did: what is kept of the lease has to be written again.
    Made,
    /// It was so already.
    None,
}

/// Whether somebody is closing the fleet: then a flip must not open it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    Yes,
    No,
}

/// Whether the flip that was decided has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flip {
    Ahead,
    Begun,
}

/// The lease of one fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    hold: LeaseState,
    halted: Option<Halt>,
    last_halt: HaltId,
    flipped: Option<Flipped>,
    closing: Closing,
    flip: Flip,
    attempts: u32,
    retry: BootTime,
}

/// What is kept of a lease on disk. The halt has a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRecord {
    /// The boot whose times these are.
    pub boot_id: BootId,
    /// What held the right to serve.
    pub hold: LeaseState,
    /// The last flip at a fixed time.
    pub flipped: Option<Flipped>,
}

/// What a starting guard finds of the lease.
#[derive(Debug)]
pub enum Found {
    /// No record: the fleet was never armed on this host.
    Nothing,
    /// A record that says nothing any more.
    Unreadable,
    /// A record, of this boot or another.
    Record(Box<LeaseRecord>),
}

impl Default for Lease {
    fn default() -> Self {
        Self::new()
    }
}

impl Lease {
    /// The lease of a fleet that was never armed: nothing holds its right to serve.
    pub const fn new() -> Self {
        Self {
            hold: LeaseState::Free,
            halted: None,
            last_halt: HaltId(0),
            flipped: None,
            closing: Closing::No,
            flip: Flip::Ahead,
            attempts: 0,
            retry: BootTime(0),
        }
    }

    /// The lease of a guard that starts. A deadline of this boot is taken up again; one of another boot, one that has
    /// passed and one that cannot be read have latched.
    pub fn recovered(found: Found, boot_id: &BootId, halted: Option<Halt>, now: BootTime) -> Self {
        let last_halt = halted.as_ref().map_or(HaltId(0), |halt| halt.id);
        let mut lease = Self { halted, last_halt, ..Self::new() };
        match found {
            Found::Nothing => {}
            Found::Unreadable => lease.latch(FenceCause::RecordLost, None, now, now),
            Found::Record(record) if record.boot_id == *boot_id => {
                (lease.hold, lease.flipped) = (record.hold, record.flipped);
            }
            Found::Record(record) => match record.hold {
                LeaseState::Free => {}
                LeaseState::Armed(armed) | LeaseState::Decided(Decided { armed, .. }) => {
                    lease.latch(FenceCause::Rebooted, Some(armed.k), now, now);
                }
                // Nothing survives a boot, and the times of the other one mean nothing here.
                LeaseState::Fenced(fence) => lease.latch(fence.cause, fence.k, now, now),
            },
        }
        lease.pass(now);
        lease
    }

    /// What has to be kept of the lease, for [`Self::recovered`].
    pub fn record(&self, boot_id: &BootId) -> LeaseRecord {
        LeaseRecord { boot_id: boot_id.clone(), hold: self.hold, flipped: self.flipped }
    }

    /// What holds the right to serve.
    pub const fn hold(&self) -> &LeaseState {
        &self.hold
    }

    /// The halt, if one is in force.
    pub const fn halted(&self) -> Option<&Halt> {
        self.halted.as_ref()
    }

    /// The last flip at a fixed time in this boot.
    pub const fn flipped(&self) -> Option<&Flipped> {
        self.flipped.as_ref()
    }

    /// The rollout that the fleet is armed for or decided in.
    pub const fn rollout(&self) -> Option<RolloutId> {
        match &self.hold {
            LeaseState::Armed(armed) | LeaseState::Decided(Decided { armed, .. }) => Some(armed.k),
            LeaseState::Fenced(fence) => fence.k,
            LeaseState::Free => None,
        }
    }

    /// Whether anything may be served, and started for that. Asked again before each step of an opening.
    pub const fn may_serve(&self) -> Result<(), LeaseRefusal> {
        match (&self.halted, &self.hold) {
            (Some(_), _) => Err(LeaseRefusal::Halted),
            (None, LeaseState::Fenced(_)) => Err(LeaseRefusal::Fenced),
            (None, LeaseState::Free | LeaseState::Armed(_) | LeaseState::Decided(_)) => Ok(()),
        }
    }

    /// When something has to be done next.
    pub const fn due(&self) -> Option<BootTime> {
        match &self.hold {
            LeaseState::Free => None,
            LeaseState::Armed(armed) => Some(armed.deadline_boot_ms),
            LeaseState::Decided(decided) => match self.flip {
                Flip::Ahead => Some(decided.at_boot_ms),
                Flip::Begun => None,
            },
            LeaseState::Fenced(fence) => match fence.ended_boot_ms {
                None => Some(self.retry),
                Some(_) => None,
            },
        }
    }

    /// Lets time pass, and says what has to be done now. A flip is given out once, a fence until it is complete.
    pub fn poll(&mut self, now: BootTime) -> Option<Duty> {
        self.pass(now);
        match self.hold {
            LeaseState::Fenced(fence) if self.retry > now || fence.ended_boot_ms.is_some() => None,
            LeaseState::Fenced(fence) if fence.dark_boot_ms.is_some() => Some(Duty::EndFence(fence)),
            LeaseState::Fenced(fence) => Some(Duty::Fence(fence)),
            LeaseState::Decided(decided) if self.flip == Flip::Ahead && decided.at_boot_ms <= now => {
                self.flip = Flip::Begun;
                Some(Duty::Flip(decided))
            }
            LeaseState::Decided(_) | LeaseState::Armed(_) | LeaseState::Free => None,
        }
    }

    /// Step 7: sets a deadline for what is served.
    pub fn arm(
        &mut self,
        now: BootTime,
        serving: Option<Opened>,
        mut ask: Armed,
    ) -> Result<Change, LeaseRefusal> {
        self.pass(now);
        self.may_serve()?;
        match &self.hold {
            // Acknowledged again without extending the deadline.
            LeaseState::Armed(armed) if armed.k == ask.k => return Ok(Change::None),
            LeaseState::Armed(armed) if armed.k > ask.k => return Err(LeaseRefusal::Armed(armed.k)),
            LeaseState::Decided(decided) => return Err(LeaseRefusal::Decided(decided.armed.k)),
            LeaseState::Armed(_) | LeaseState::Free | LeaseState::Fenced(_) => {}
        }
        if serving.map(|it| it.epoch) != Some(ask.epoch) {
            return Err(LeaseRefusal::NotServing);
        }
        let horizon = now.after(AHEAD_MAX);
        if ask.flip.is_some_and(|flip| flip.at_boot_ms > horizon) || ask.deadline_boot_ms > horizon {
            return Err(LeaseRefusal::WrongTime);
        }
        ask.deadline_boot_ms = capped(&ask, ask.deadline_boot_ms);
        if ask.deadline_boot_ms <= now {
            return Err(LeaseRefusal::TooLate);
        }
        self.hold = LeaseState::Armed(ask);
        Ok(Change::Made)
    }

    /// Step 8: moves the deadline back.
    pub fn renew(&mut self, now: BootTime, k: RolloutId, deadline: BootTime) -> Result<(), LeaseRefusal> {
        self.pass(now);
        if deadline > now.after(AHEAD_MAX) {
            return Err(LeaseRefusal::WrongTime);
        }
        match &mut self.hold {
            LeaseState::Armed(armed) if armed.k == k => {
                armed.deadline_boot_ms = armed.deadline_boot_ms.max(capped(armed, deadline));
                Ok(())
            }
            LeaseState::Armed(armed) => Err(LeaseRefusal::Armed(armed.k)),
            LeaseState::Decided(decided) => Err(LeaseRefusal::Decided(decided.armed.k)),
            LeaseState::Fenced(_) => Err(LeaseRefusal::Fenced),
            LeaseState::Free => Err(LeaseRefusal::NotArmed),
        }
    }

    /// Step 9: lifts the deadline of a rollout that was aborted. What has latched stays latched, and that is no refusal:
    /// the rollout is over either way.
    pub fn disarm(&mut self, now: BootTime, k: RolloutId) -> Result<Change, LeaseRefusal> {
        self.pass(now);
        match &self.hold {
            LeaseState::Armed(armed) if armed.k == k => {
                self.hold = LeaseState::Free;
                Ok(Change::Made)
            }
            LeaseState::Armed(armed) => Err(LeaseRefusal::Armed(armed.k)),
            LeaseState::Decided(decided) => Err(LeaseRefusal::Decided(decided.armed.k)),
            LeaseState::Fenced(_) | LeaseState::Free => Ok(Change::None),
        }
    }

    /// Step 14: replaces the deadline by the flip that it was armed with.
    pub fn decide(
        &mut self,
        now: BootTime,
        k: RolloutId,
        at: BootTime,
        to: Opened,
    ) -> Result<Change, LeaseRefusal> {
        self.pass(now);
        match self.hold {
            LeaseState::Decided(decided)
                if decided.armed.k == k && decided.at_boot_ms == at && decided.to == to =>
            {
                Ok(Change::None)
            }
            LeaseState::Decided(decided) => Err(LeaseRefusal::Decided(decided.armed.k)),
            LeaseState::Armed(armed) if armed.k != k => Err(LeaseRefusal::Armed(armed.k)),
            LeaseState::Armed(armed) if armed.flip.is_none_or(|flip| flip.at_boot_ms != at) => {
                Err(LeaseRefusal::WrongTime)
            }
            LeaseState::Armed(_) if self.closing == Closing::Yes => Err(LeaseRefusal::NotServing),
            // The deadline is no later than T − ε, so it is early enough while the deadline has not passed.
            LeaseState::Armed(armed) => {
                self.hold = LeaseState::Decided(Decided { armed, at_boot_ms: at, to });
                self.flip = Flip::Ahead;
                Ok(Change::Made)
            }
            LeaseState::Fenced(_) => Err(LeaseRefusal::Fenced),
            LeaseState::Free => Err(LeaseRefusal::NotArmed),
        }
    }

    /// Takes back an arming or a decision that could not be made durable.
    pub fn undo(&mut self, now: BootTime, made: &LeaseState, before: LeaseState) {
        let (Some(of), false) = (rollout_of(made), matches!(self.hold, LeaseState::Fenced(_))) else {
            return;
        };
        let same = std::mem::discriminant(&self.hold) == std::mem::discriminant(made);
        if same && rollout_of(&self.hold) == Some(of) && self.flip == Flip::Ahead {
            self.hold = before;
            self.pass(now);
        }
    }

    /// Step 10: the fleet is being closed. The deadline runs on, and is what this answers.
    pub fn begin_close(&mut self, now: BootTime) -> Option<BootTime> {
        self.pass(now);
        self.closing = Closing::Yes;
        match &self.hold {
            LeaseState::Armed(armed) => Some(armed.deadline_boot_ms),
            LeaseState::Decided(decided) => Some(decided.at_boot_ms),
            LeaseState::Free | LeaseState::Fenced(_) => None,
        }
    }

    /// Nothing is left of what was served: the deadline is lifted, if it has not passed.
    pub fn end_close(&mut self, now: BootTime) {
        self.pass(now);
        self.closing = Closing::No;
        match self.hold {
            LeaseState::Armed(_) | LeaseState::Decided(_) => self.hold = LeaseState::Free,
            LeaseState::Free | LeaseState::Fenced(_) => {}
        }
    }

    /// Something is left, and the deadline runs on.
    pub const fn fail_close(&mut self) {
        self.closing = Closing::No;
    }

    /// Whether `opened` may be opened. What is armed may be started again within its epoch.
    pub fn may_open(&mut self, now: BootTime, opened: Opened) -> Result<(), LeaseRefusal> {
        self.pass(now);
        match (&self.halted, &self.hold) {
            (Some(_), _) => Err(LeaseRefusal::Halted),
            (None, LeaseState::Free) => Ok(()),
            (None, LeaseState::Fenced(fence)) if fence.ended_boot_ms.is_some() => Ok(()),
            (None, LeaseState::Fenced(_)) => Err(LeaseRefusal::Fenced),
            (None, LeaseState::Armed(armed)) if armed.epoch == opened.epoch => Ok(()),
            (None, LeaseState::Armed(armed)) => Err(LeaseRefusal::Armed(armed.k)),
            (None, LeaseState::Decided(decided)) => Err(LeaseRefusal::Decided(decided.armed.k)),
        }
    }

    /// Begins an opening: the one thing that lifts a latched fence.
    pub fn begin_open(&mut self, now: BootTime, opened: Opened) -> Result<(), LeaseRefusal> {
        self.may_open(now, opened)?;
        if let LeaseState::Fenced(_) = self.hold {
            self.hold = LeaseState::Free;
        }
        Ok(())
    }

    /// Nothing is left of the service and the link.
    pub fn fence_dark(&mut self, dark: BootTime) {
        if let LeaseState::Fenced(fence) = &mut self.hold {
            fence.dark_boot_ms.get_or_insert(dark);
            (self.attempts, self.retry) = (0, BootTime(0));
        }
    }

    /// What follows a fence, its hook, has ended as well: from now on it may be lifted.
    pub fn fence_ended(&mut self, now: BootTime) {
        if let LeaseState::Fenced(fence) = &mut self.hold
            && fence.dark_boot_ms.is_some()
        {
            fence.ended_boot_ms.get_or_insert(now);
        }
    }

    /// An attempt at a fence did not get to its end. Answers how many there were.
    pub fn fence_failed(&mut self, now: BootTime) -> u32 {
        self.retry = now.after(FENCE_RETRY);
        self.attempts = self.attempts.saturating_add(1);
        self.attempts
    }

    /// The flip was carried out. `false`: something has taken the right to serve meanwhile.
    pub fn flip_done(&mut self, flipped: Flipped) -> bool {
        let flipping = matches!(self.hold, LeaseState::Decided(_)) && self.may_serve().is_ok();
        if flipping {
            (self.hold, self.flipped) = (LeaseState::Free, Some(flipped));
        }
        flipping
    }

    /// The flip could not be carried out: what is served is fenced.
    pub fn flip_failed(&mut self, now: BootTime) {
        if let LeaseState::Decided(decided) = self.hold {
            self.latch(FenceCause::FlipFailed, Some(decided.armed.k), decided.at_boot_ms, now);
        }
    }

    /// Fences now. Of several halts the first says since when and why, the last which one has to be lifted.
    ///
    /// A number is the time of day in milliseconds, and at least one more than the last: it rises also over halts that
    /// were lifted, of which nothing is kept.
    pub fn halt(&mut self, now: BootTime, at_unix_ms: UnixTime, reason: &str) {
        self.pass(now);
        let id = self.last_halt.next().max(HaltId(at_unix_ms.0));
        self.last_halt = id;
        let first = self.halted.get_or_insert_with(|| Halt { id, at_unix_ms, reason: reason.to_owned() });
        first.id = id;
        if !matches!(self.hold, LeaseState::Fenced(_)) {
            self.latch(FenceCause::Halted, self.rollout(), now, now);
        }
    }

    /// Fences what is served, as it is not what was released. A rollout that is under way decides by itself.
    pub fn drifted(&mut self, now: BootTime) -> Result<(), LeaseRefusal> {
        self.pass(now);
        match &self.hold {
            LeaseState::Free => {
                self.latch(FenceCause::Drifted, None, now, now);
                Ok(())
            }
            LeaseState::Fenced(_) => Ok(()),
            LeaseState::Armed(armed) => Err(LeaseRefusal::Armed(armed.k)),
            LeaseState::Decided(decided) => Err(LeaseRefusal::Decided(decided.armed.k)),
        }
    }

    /// Lifts a halt, unless another one came after it.
    pub fn resume(&mut self, id: HaltId) -> Result<Change, LeaseRefusal> {
        self.may_resume(id)?;
        Ok(if self.halted.take().is_some() { Change::Made } else { Change::None })
    }

    /// Whether no halt is in force that came after this one.
    pub fn may_resume(&self, id: HaltId) -> Result<(), LeaseRefusal> {
        if self.halted.as_ref().is_none_or(|halt| halt.id == id) { Ok(()) } else { Err(LeaseRefusal::Halted) }
    }

    /// The guard goes down: nobody will be there at the deadline.
    pub fn abandon(&mut self, now: BootTime) {
        self.pass(now);
        if let LeaseState::Armed(_) | LeaseState::Decided(_) = self.hold {
            self.latch(FenceCause::GuardStopped, self.rollout(), now, now);
        }
    }

    /// Latches what has passed by `now`.
    fn pass(&mut self, now: BootTime) {
        match self.hold {
            LeaseState::Armed(armed) if armed.deadline_boot_ms <= now => {
                self.latch(FenceCause::DeadlinePassed, Some(armed.k), armed.deadline_boot_ms, now);
            }
            LeaseState::Decided(decided) if self.flip == Flip::Ahead => {
                let (at, k) = (decided.at_boot_ms, Some(decided.armed.k));
                if at <= now && self.closing == Closing::Yes || at.after(FLIP_LATE_MAX) < now {
                    self.latch(FenceCause::FlipMissed, k, at, now);
                }
            }
            LeaseState::Decided(_) | LeaseState::Armed(_) | LeaseState::Fenced(_) | LeaseState::Free => {}
        }
    }

    const fn latch(&mut self, cause: FenceCause, k: Option<RolloutId>, due: BootTime, now: BootTime) {
        self.hold = LeaseState::Fenced(Fence {
            k,
            cause,
            due_boot_ms: due,
            begun_boot_ms: now,
            dark_boot_ms: None,
            ended_boot_ms: None,
        });
        (self.attempts, self.retry) = (0, BootTime(0));
    }
}

const fn rollout_of(hold: &LeaseState) -> Option<RolloutId> {
    match hold {
        LeaseState::Armed(armed) | LeaseState::Decided(Decided { armed, .. }) => Some(armed.k),
        LeaseState::Free | LeaseState::Fenced(_) => None,
    }
}

/// No deadline is later than `T − ε`.
fn capped(armed: &Armed, deadline: BootTime) -> BootTime {
    let last = armed.flip.map(|flip| BootTime(flip.at_boot_ms.0.saturating_sub(flip.epsilon_ms)));
    last.map_or(deadline, |last| deadline.min(last))
}

#[cfg(test)]
mod tests;
