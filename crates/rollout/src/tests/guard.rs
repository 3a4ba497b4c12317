//! A host's guard in the simulated world: what is really served, and the deadline.

use muster_model::{Blocker, BootTime, Code, Digest, Epoch, Refusal, RolloutId};

use super::machine::{GuardLease, GuardProcess, GuardWork, Tree};
use super::papers::policy;
use super::world::{Mistake, World};
use crate::host::{Event, GuardState, Halt, Resume};

impl World {
    /// The guard does what it was asked, and answers if there is an answer.
    pub(super) fn ask_guard(&mut self, index: usize, asked: &GuardWork) -> Option<Event> {
        if self.machines[index].guard_process == GuardProcess::Down {
            return without_guard(asked);
        }
        match *asked {
            GuardWork::Say | GuardWork::Found => Some(self.guard_says(index)),
            GuardWork::Quiesce { k } => {
                let fails = self.random.chance(self.hooks_fail_per_mille);
                let failed = || Refusal::of(Code::GuardFailed, "the hook ended with status 1");
                Some(Event::Quiesced { k, outcome: if fails { Err(failed()) } else { Ok(()) } })
            }
            GuardWork::Lease { k, deadline } => {
                let latched = self.machines[index].lease.is_some_and(|lease| lease.latched);
                let machine = &mut self.machines[index];
                machine.lease = Some(GuardLease { k, deadline, latched, switch: None });
                Some(Event::Leased { k, outcome: Ok(()) })
            }
            GuardWork::Extend { k, deadline } => {
                let lease = &mut self.machines[index].lease;
                if let Some(lease) = lease.as_mut().filter(|lease| lease.k == k && !lease.latched) {
                    lease.deadline = lease.deadline.max(deadline);
                }
                // P5: no deadline beyond t_send + D.
                let asked = self.machines[index].asked_at.unwrap_or_default();
                if deadline > asked.after(policy().timing.lease()) {
                    self.violate(format!(
                        "P5: {} extends its lease to {deadline:?}",
                        self.machines[index].name
                    ));
                }
                None
            }
            GuardWork::Lift { k } => {
                self.machines[index].lease.take_if(|lease| lease.k == k);
                Some(self.guard_says(index))
            }
            GuardWork::Switch { k, at, epoch, release } => {
                Some(self.set_switch(index, k, (at, epoch, release)))
            }
            GuardWork::Halt => {
                self.halt_guard(index);
                self.machines[index].asked_halt = self.machines[index].halted;
                Some(self.guard_says(index))
            }
            GuardWork::Close { k } => Some(self.close_guard(index, k)),
            GuardWork::Open { epoch, release, resume } => {
                Some(self.open_guard(index, epoch, release, resume))
            }
        }
    }

    /// Lets time pass. Guards whose deadline passes meanwhile fence, and flip at their instants.
    pub(super) fn pass_time(&mut self, until: u64) {
        while let Some((at, index)) = self.next_alarm().filter(|(at, _)| *at <= until) {
            self.now = self.now.max(at);
            self.ring(index);
            self.check();
        }
        self.now = self.now.max(until);
    }

    /// Somebody halts the fleet on one host, without asking anyone.
    pub(super) fn halt_by_hand(&mut self, index: usize) {
        self.halt_guard(index);
        let record = &self.machines[index].record;
        let under_way = record.committed.map_or(record.last_k, |committed| committed.k.max(record.last_k));
        self.machines[index].halted_by_hand = Some(under_way);
        self.machines[index].guard_work.push_back(GuardWork::Say);
    }

    /// The guard dies. "Its death stops the service while armed": the service is its child, or is bound to it.
    pub(super) fn guard_dies(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        if std::mem::replace(&mut machine.guard_process, GuardProcess::Down) == GuardProcess::Down {
            return;
        }
        if machine.lease.take().is_some() {
            machine.guard = None;
        }
        note!(self, "  the guard of {} dies", self.machines[index].name);
        if self.machines[index].agent.is_some() {
            self.machines[index].guard_work.push_back(GuardWork::Say);
        }
    }

    /// The guard is back, and looks for what it served.
    pub(super) fn guard_returns(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        if std::mem::replace(&mut machine.guard_process, GuardProcess::Up) == GuardProcess::Down
            && machine.agent.is_some()
        {
            machine.guard_work.push_back(GuardWork::Found);
        }
    }

    fn halt_guard(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        machine.last_halt = machine.last_halt.next();
        machine.halted = Some(machine.last_halt);
        machine.guard = None;
        if let Some(lease) = &mut machine.lease {
            lease.switch = None;
        }
    }

    /// When the next guard acts by itself.
    pub(super) fn next_alarm(&self) -> Option<(u64, usize)> {
        let alarms = self.machines.iter().enumerate().filter_map(|(index, machine)| {
            let lease = machine.lease.filter(|lease| !lease.latched)?;
            let at = match lease.switch {
                Some((at, ..)) => machine.clock.when(BootTime(at.0 + machine.start_ms)),
                None => machine.clock.when(BootTime(lease.deadline.0 + machine.fence_ms)),
            };
            Some((at, index))
        });
        alarms.min()
    }

    fn ring(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let Some(lease) = &mut machine.lease else { return };
        match lease.switch {
            Some((_, epoch, release)) => {
                machine.lease = None;
                machine.guard = Some((epoch, release));
            }
            None => {
                lease.latched = true;
                machine.guard = None;
            }
        }
        note!(self, "  {} acts at its deadline: {:?}", self.machines[index].name, self.machines[index].guard);
        if self.machines[index].agent.is_some() {
            self.machines[index].guard_work.push_back(GuardWork::Say);
        }
    }

    fn guard_says(&self, index: usize) -> Event {
        let machine = &self.machines[index];
        let state = machine.guard.map_or(GuardState::Dark, |(epoch, digest)| GuardState::Open(epoch, digest));
        let halt = machine.halted.map_or(Halt::Running, Halt::Halted);
        Event::Guard { state, since: None, halt, refusal: None }
    }

    fn set_switch(&mut self, index: usize, k: RolloutId, switch: (BootTime, Epoch, Digest)) -> Event {
        let machine = &mut self.machines[index];
        let now = machine.clock.at(self.now);
        let outcome = match &mut machine.lease {
            Some(lease) if lease.k == k && !lease.latched && now < switch.0 && machine.guard.is_some() => {
                lease.switch = Some(switch);
                Ok(())
            }
            Some(_) | None => Err(Refusal::of(Code::LeaseExpired, "it is too late for the instant")),
        };
        Event::SwitchSet { k, outcome }
    }

    fn close_guard(&mut self, index: usize, k: Option<RolloutId>) -> Event {
        let fails = self.random.chance(self.guard_fails_per_mille);
        let machine = &mut self.machines[index];
        if fails || machine.closes_to_fail > 0 {
            machine.closes_to_fail = machine.closes_to_fail.saturating_sub(1);
            if self.mistake == Some(Mistake::CloseCancelsDeadline) {
                machine.lease = None;
            }
            let blocker = Blocker::host(Code::StopFailed, &machine.name, "the service did not stop");
            return Event::Closed { k, outcome: Err(Refusal::because(blocker)) };
        }
        if self.mistake != Some(Mistake::ClosedBeforeDark) {
            machine.guard = None;
        }
        machine.lease = None;
        Event::Closed { k, outcome: Ok(machine.clock.at(self.now)) }
    }

    fn open_guard(&mut self, index: usize, epoch: Epoch, release: Digest, resume: Resume) -> Event {
        let fails = self.random.chance(self.guard_fails_per_mille);
        let at = self.position_of(release);
        let machine = &mut self.machines[index];
        if let Resume::Yes(lifted) = resume {
            machine.halted.take_if(|halt| lifted.or(machine.asked_halt) == Some(*halt));
        }
        let tree = machine.trees[at];
        if fails || machine.opens_to_fail > 0 || machine.halted.is_some() || tree == Tree::Missing {
            machine.opens_to_fail = machine.opens_to_fail.saturating_sub(1);
            machine.guard = None;
            let code = if machine.halted.is_some() { Code::Halted } else { Code::StartFailed };
            let blocker = Blocker::host(code, &machine.name, "the service does not run");
            if code == Code::Halted {
                machine.guard_work.push_back(GuardWork::Say);
            }
            return Event::Opened { epoch, outcome: Err(Refusal::because(blocker)) };
        }
        let halted_at = machine.halted_by_hand.take();
        if halted_at.is_some_and(|halted_at| machine.record.last_k <= halted_at) {
            let violation = format!("{} was halted by hand, and an older order opens it", machine.name);
            self.violate(violation);
        }
        let machine = &mut self.machines[index];
        machine.guard = Some((epoch, release));
        // Only ADMIT and OPEN lead here: a fence that had latched is over.
        machine.lease = None;
        let at = machine.clock.at(self.now);
        self.check();
        Event::Opened { epoch, outcome: Ok(at) }
    }
}

/// What an agent makes of it that nobody answers.
fn without_guard(asked: &GuardWork) -> Option<Event> {
    let refusal = || Refusal::of(Code::GuardFailed, "the guard does not answer");
    match *asked {
        GuardWork::Say | GuardWork::Found | GuardWork::Lift { .. } | GuardWork::Halt => Some(Event::Guard {
            state: GuardState::Unknown,
            since: None,
            halt: Halt::Running,
            refusal: Some(refusal()),
        }),
        GuardWork::Quiesce { k } => Some(Event::Quiesced { k, outcome: Err(refusal()) }),
        GuardWork::Lease { k, .. } => Some(Event::Leased { k, outcome: Err(refusal()) }),
        GuardWork::Extend { .. } => None,
        GuardWork::Switch { k, .. } => Some(Event::SwitchSet { k, outcome: Err(refusal()) }),
        GuardWork::Close { k } => Some(Event::Closed { k, outcome: Err(refusal()) }),
        GuardWork::Open { epoch, .. } => Some(Event::Opened { epoch, outcome: Err(refusal()) }),
    }
}
