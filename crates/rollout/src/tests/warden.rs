//! What a guard of the simulated world does by itself: it fences and flips in time, dies, and takes its lease up again.

use std::time::Duration;

use muster_guard::lease::{self, Found, Lease};
use muster_guard::{Decided, Fence, Flipped, LeaseState};
use muster_model::BootTime;

use super::guard::{Died, without_guard};
use super::ledger::Survives;
use super::machine::{Driver, GuardProcess, GuardWork, Machine, Tree};
use super::world::{Mistake, World};
use crate::host::CloseCause;

/// What a guard is at, and until when, on the machine's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// Stopping what is served.
    Fence(BootTime),
    /// Running what follows a fence.
    EndFence(BootTime),
    /// Starting the new in the place of the old.
    Flip(Decided, BootTime),
}

impl Duty {
    const fn until(self) -> BootTime {
        match self {
            Self::Fence(until) | Self::EndFence(until) | Self::Flip(_, until) => until,
        }
    }
}

/// A closing that is under way: until then the service drains. No other request is carried out meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drain {
    pub(super) cause: CloseCause,
    pub(super) until: BootTime,
    pub(super) asks: Asks,
}

/// Whether the agent that asked still waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Yes,
    No,
}

impl Machine {
    /// When its guard acts by itself, or is there again to do so.
    fn next_duty(&self) -> Option<u64> {
        if self.guard_process == GuardProcess::Down {
            return self.back_at;
        }
        let duty = self.duty.map(Duty::until).or_else(|| self.lease.due());
        let due = duty.into_iter().chain(self.drain.map(|drain| drain.until)).min()?;
        Some(self.clock.when(due))
    }

    /// When its guard gets on with what it has begun. A deadline that has not passed is nothing of that.
    pub(super) fn next_step_of_guard(&self) -> Option<u64> {
        let has_begun = match self.guard_process {
            GuardProcess::Down => self.back_at.is_some(),
            GuardProcess::Up => {
                self.duty.is_some()
                    || self.drain.is_some()
                    || matches!(self.lease.hold(), LeaseState::Fenced(_))
            }
        };
        self.next_duty().filter(|_| has_begun)
    }

    /// When the right to serve ends that the guard holds, if anything may still be served by it.
    const fn due(&self) -> Option<BootTime> {
        match self.lease.hold() {
            LeaseState::Free | LeaseState::Fenced(Fence { dark_boot_ms: Some(_), .. }) => None,
            LeaseState::Armed(armed) => Some(armed.deadline_boot_ms),
            LeaseState::Decided(decided) => Some(decided.at_boot_ms),
            LeaseState::Fenced(fence) => Some(fence.due_boot_ms),
        }
    }
}

impl World {
    /// Lets time pass. Guards whose deadline passes meanwhile fence, and flip at their instants.
    pub(super) fn pass_time(&mut self, until: u64) {
        while let Some((at, index)) = self.next_alarm().filter(|(at, _)| *at <= until) {
            self.now = self.now.max(at);
            self.ring(index);
            self.check();
        }
        self.now = self.now.max(until);
    }

    /// When the next guard acts by itself.
    pub(super) fn next_alarm(&self) -> Option<(u64, usize)> {
        let alarms = self.machines.iter().enumerate();
        alarms.filter_map(|(index, machine)| Some((machine.next_duty()?, index))).min()
    }

    /// The guard is killed. Under `supervise` its service dies with it. Under `link` what it served goes on; where it held a
    /// deadline over that, its unit starts it again, so early that the fence is not late by more than it may take.
    pub(super) fn guard_dies(&mut self, index: usize) {
        let fence = Duration::from_millis(self.roster_in_force().policy().timing.fence_ms);
        let machine = &mut self.machines[index];
        if std::mem::replace(&mut machine.guard_process, GuardProcess::Down) == GuardProcess::Down {
            return;
        }
        machine.duty = None;
        let asked = machine.drain.take().filter(|drain| drain.asks == Asks::Yes);
        match machine.driver {
            Driver::Supervise => machine.guard = None,
            Driver::Link => {
                let now = machine.clock.at(self.now);
                machine.back_at = machine.due().filter(|_| machine.guard.is_some()).map(|due| {
                    let latest = due.min(now).after(fence);
                    let left_ms = u64::try_from(latest.since(now).as_millis()).expect("short");
                    let delay = Duration::from_millis(self.random.below(left_ms + 1));
                    machine.clock.when(now.after(delay))
                });
            }
        }
        if let Some(answer) = asked.and_then(|drain| without_guard(&GuardWork::Close { cause: drain.cause }))
        {
            self.machines[index].guard_work.push_front(GuardWork::Answer(answer));
        }
        note!(self, "  the guard of {} dies", self.machines[index].name);
        self.guard_tells(index);
    }

    /// The guard is back, takes its lease up again, and looks for what it served.
    pub(super) fn guard_returns(&mut self, index: usize) {
        if self.machines[index].guard_process == GuardProcess::Up {
            return;
        }
        self.start_guard(index);
        let machine = &mut self.machines[index];
        let is_running = matches!(machine.lease.hold(), LeaseState::Armed(_) | LeaseState::Decided(_));
        self.seen.taken_up += u64::from(is_running && machine.guard.is_some());
        note!(self, "  the guard of {} is back: {:?}", machine.name, machine.lease.hold());
        if machine.agent.is_some() {
            machine.guard_work.push_back(GuardWork::Found);
        }
    }

    /// A guard that starts brings everything in line with what may be served now.
    pub(super) fn start_guard(&mut self, index: usize) {
        let boot_id = self.machines[index].boot_id(self.shared_boot);
        let machine = &mut self.machines[index];
        let now = machine.clock.at(self.now);
        (machine.guard_process, machine.back_at) = (GuardProcess::Up, None);
        (machine.duty, machine.drain) = (None, None);
        let found = match self.mistake {
            Some(Mistake::LeaseNotTakenUp) => Found::Nothing,
            Some(_) | None => machine.ledger.read(),
        };
        machine.lease = Lease::recovered(found, &boot_id, machine.ledger.halt.clone(), now);
        machine.permit = machine.open();
        if machine.permit.is_none() {
            machine.linked = None;
            if self.mistake != Some(Mistake::StartsAtBoot) {
                machine.guard = None;
            }
        }
        if machine.linked.is_none() {
            machine.lease.fence_dark(now);
            if machine.hook_ms == 0 {
                machine.lease.fence_ended(now);
            }
        }
        machine.ledger.write(&machine.lease.record(&boot_id), Survives::PowerCut);
    }

    /// A request that changes what is served waits for a flip that has begun.
    pub(super) fn await_flip(&mut self, index: usize) {
        if let Some(Duty::Flip(..)) = self.machines[index].duty {
            self.ring(index);
        }
    }

    /// What follows a fence has ended, and the disk learns of it.
    pub(super) fn end_fence(&mut self, index: usize) -> Result<(), Died> {
        let machine = &mut self.machines[index];
        machine.duty = None;
        machine.lease.fence_ended(machine.clock.at(self.now));
        machine.permit = None;
        self.keep(index, Survives::PowerCut).map(|_| ())
    }

    fn ring(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        if machine.guard_process == GuardProcess::Down {
            return self.guard_returns(index);
        }
        let now = machine.clock.at(self.now);
        if let Some(drain) = machine.drain.take_if(|drain| drain.until <= now) {
            return self.finish_close(index, drain);
        }
        let after = |ms| now.after(Duration::from_millis(ms));
        match machine.duty.take() {
            None => {
                machine.duty = machine.lease.poll(now).map(|duty| match duty {
                    lease::Duty::Fence(_) => Duty::Fence(after(machine.fence_ms)),
                    lease::Duty::EndFence(_) => Duty::EndFence(after(machine.hook_ms)),
                    lease::Duty::Flip(decided) => Duty::Flip(decided, after(machine.start_ms)),
                });
            }
            Some(Duty::Fence(_)) => {
                machine.go_dark(now);
                self.guard_tells(index);
            }
            Some(Duty::EndFence(_)) => {
                // One that dies on the way finds its fence again.
                let _ = self.end_fence(index);
            }
            Some(Duty::Flip(decided, _)) => {
                let _ = self.flip_guard(index, decided, now);
            }
        }
        let machine = &self.machines[index];
        note!(self, "  {} acts by itself: {:?} {:?}", machine.name, machine.duty, machine.guard);
    }

    /// What was served has drained, and whoever waits for it is told.
    fn finish_close(&mut self, index: usize, drain: Drain) {
        let Drain { cause, asks, .. } = drain;
        let answer = match self.end_close(index, cause) {
            Ok(answer) => Some(answer),
            Err(Died) => without_guard(&GuardWork::Close { cause }),
        };
        let machine = &mut self.machines[index];
        if let (Some(answer), Asks::Yes, Some(_)) = (answer, asks, &machine.agent) {
            machine.guard_work.push_front(GuardWork::Answer(answer));
        }
    }

    /// Step 14. Serves the new instead of the old, or fences if it cannot.
    fn flip_guard(&mut self, index: usize, decided: Decided, now: BootTime) -> Result<(), Died> {
        let Decided { armed, at_boot_ms, to } = decided;
        let tree = self.machines[index].trees[self.position_of(to.digest)];
        // A guard that was not there at the instant has used up the time that it would take to fence.
        let machine = &self.machines[index];
        let is_late = now.since(at_boot_ms) > Duration::from_millis(machine.start_ms + 1);
        let fails = !is_late && self.random.chance(self.guard_fails_per_mille);
        let machine = &mut self.machines[index];
        if fails || tree == Tree::Missing || !machine.may_serve() {
            machine.lease.flip_failed(now);
            return Ok(());
        }
        let from = machine.permit;
        machine.serve(to);
        let (closed_boot_ms, opened_boot_ms) = (now, now);
        let flipped = Flipped { k: armed.k, from, to, at_boot_ms, closed_boot_ms, opened_boot_ms };
        if machine.lease.flip_done(flipped) {
            self.guard_tells(index);
            self.keep(index, Survives::PowerCut)?;
        }
        Ok(())
    }
}
