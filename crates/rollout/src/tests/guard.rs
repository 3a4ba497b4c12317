//! A host's guard in the simulated world: what it is asked, and what it answers. Its lease is the real one.

use std::time::Duration;

use muster_guard::lease::{Change, LeaseRefusal};
use muster_guard::{Armed, LeaseState, Opened};
use muster_model::{Blocker, BootTime, Code, Digest, Epoch, Membership, Refusal, RolloutId};

use super::disk::Death;
use super::ledger::Survives;
use super::machine::{GuardProcess, GuardWork, Machine, Tree};
use super::papers::policy;
use super::warden::{Asks, Drain, Duty};
use super::world::{Mistake, World};
use crate::host::{CloseCause, Event, GuardState, Halt, Host, Resume};

/// The guard was killed, or the machine lost its power, before it could answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Died;

/// Whether the lease is on the disk as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Durably,
    /// What is there instead, nobody knows.
    Failed,
}

impl World {
    /// The guard does what it was asked, and answers if there is an answer.
    pub(super) fn ask_guard(&mut self, index: usize, asked: &GuardWork) -> Option<Event> {
        if let GuardWork::Answer(answer) = asked {
            return Some(answer.clone());
        }
        if self.machines[index].guard_process == GuardProcess::Down {
            return without_guard(asked);
        }
        match self.obey(index, asked) {
            Ok(answer) if self.mistake == Some(Mistake::ClosingsNotToldApart) => {
                answer.map(|answer| self.taken_for_the_last(index, answer))
            }
            Ok(answer) => answer,
            Err(Died) => self.machines[index].agent.as_ref().and_then(|_| without_guard(asked)),
        }
    }

    /// The answer to an earlier closing, taken for that to the one which an exclusion has asked for.
    fn taken_for_the_last(&self, index: usize, answer: Event) -> Event {
        let membership = self.machines[index].record.membership;
        match (answer, membership) {
            (
                Event::Closed { cause: CloseCause::LeftOut(_) | CloseCause::NotAllowed, outcome },
                Membership::Excluded(by),
            ) => Event::Closed { cause: CloseCause::LeftOut(by), outcome },
            (answer, _) => answer,
        }
    }

    fn obey(&mut self, index: usize, asked: &GuardWork) -> Result<Option<Event>, Died> {
        Ok(match *asked {
            GuardWork::Answer(ref answer) => Some(answer.clone()),
            GuardWork::Say | GuardWork::Found => Some(self.guard_says(index)),
            GuardWork::Quiesce { k } => {
                let fails = self.random.chance(self.hooks_fail_per_mille);
                let failed = || Refusal::of(Code::GuardFailed, "the hook ended with status 1");
                Some(Event::Quiesced { k, outcome: if fails { Err(failed()) } else { Ok(()) } })
            }
            GuardWork::Lease(armed) => Some(self.arm_guard(index, armed)?),
            GuardWork::Extend { k, deadline } => {
                self.renew_guard(index, k, deadline)?;
                None
            }
            GuardWork::Lift { k } => {
                let now = self.machines[index].clock.at(self.now);
                if self.machines[index].lease.disarm(now, k).is_ok() {
                    self.keep(index, Survives::PowerCut)?;
                }
                Some(self.guard_says(index))
            }
            GuardWork::Switch { k, at, epoch, release } => {
                Some(self.decide_guard(index, k, at, Opened { epoch, digest: release })?)
            }
            GuardWork::Halt => {
                self.halt_guard(index)?;
                let machine = &mut self.machines[index];
                machine.asked_halt = machine.lease.halted().map(|halt| halt.id);
                Some(self.guard_says(index))
            }
            GuardWork::Close { cause } => self.close_guard(index, cause)?,
            GuardWork::Open { epoch, release, resume } => {
                let outcome = self.open_guard(index, Opened { epoch, digest: release }, resume)?;
                if outcome.as_ref().is_err_and(|refusal| refusal.code() == Some(Code::Halted)) {
                    // By somebody else than the one whom this opening was to follow.
                    self.machines[index].guard_work.push_back(GuardWork::Say);
                }
                Some(Event::Opened { epoch, outcome })
            }
        })
    }

    /// Somebody halts the fleet on one host, without asking anyone but its guard.
    pub(super) fn halt_by_hand(&mut self, index: usize) {
        if self.machines[index].guard_process == GuardProcess::Down || self.halt_guard(index).is_err() {
            return;
        }
        let record = &self.machines[index].record;
        let under_way = record.committed.map_or(record.last_k, |committed| committed.k.max(record.last_k));
        self.machines[index].halted_by_hand = Some(under_way);
        self.guard_tells(index);
    }

    /// The guard has something to say, and the agent, if there is one, asks what.
    pub(super) fn guard_tells(&mut self, index: usize) {
        if self.machines[index].agent.is_some() {
            self.machines[index].guard_work.push_back(GuardWork::Say);
        }
    }

    /// Writes the lease as it is now. What dies or fails on the way may have replaced the record all the same.
    pub(super) fn keep(&mut self, index: usize, survives: Survives) -> Result<Kept, Died> {
        let dies = self.random.chance(self.crash_per_mille);
        let fails = !dies && self.random.chance(self.guard_disk_fails_per_mille);
        let is_written = !dies && !fails;
        if is_written || self.random.chance(500) {
            let machine = &mut self.machines[index];
            let record = machine.lease.record(&machine.boot_id(self.shared_boot));
            machine.ledger.write(&record, if is_written { survives } else { Survives::Process });
        }
        if dies {
            return Err(self.kill_guard(index));
        }
        Ok(if fails { Kept::Failed } else { Kept::Durably })
    }

    fn kill_guard(&mut self, index: usize) -> Died {
        match self.death() {
            Death::Kill => self.guard_dies(index),
            Death::PowerOff => self.reboot(index),
        }
        Died
    }

    fn guard_says(&self, index: usize) -> Event {
        let machine = &self.machines[index];
        let flipped = machine.lease.flipped().filter(|flipped| machine.open() == Some(flipped.to));
        Event::Guard {
            state: machine.meaning(),
            since: flipped.map(|flipped| flipped.opened_boot_ms),
            halt: machine.lease.halted().map_or(Halt::Running, |halt| Halt::Halted(halt.id)),
            refusal: None,
        }
    }

    /// Step 7. A guard that refuses because nothing is permitted is believed only if its state says so.
    fn arm_guard(&mut self, index: usize, ask: Armed) -> Result<Event, Died> {
        self.await_flip(index);
        let k = ask.k;
        let machine = &mut self.machines[index];
        let (now, permitted, before) = (machine.clock.at(self.now), machine.open(), *machine.lease.hold());
        let outcome = match machine.lease.arm(now, permitted, ask) {
            Ok(change) => self.keep_or_undo(index, change, before)?,
            Err(LeaseRefusal::NotServing | LeaseRefusal::Fenced | LeaseRefusal::Halted)
                if machine.is_closed() || !machine.may_serve() =>
            {
                Ok(())
            }
            Err(refusal) => Err(refused(machine, refusal)),
        };
        Ok(Event::Leased { k, outcome })
    }

    /// Step 8.
    fn renew_guard(&mut self, index: usize, k: RolloutId, deadline: BootTime) -> Result<(), Died> {
        // P5: no deadline beyond t_send + D.
        let asked = self.machines[index].asked_at.unwrap_or_default();
        if deadline > asked.after(policy().timing.lease()) {
            self.violate(format!("P5: {} extends its lease to {deadline:?}", self.machines[index].name));
        }
        let now = self.machines[index].clock.at(self.now);
        if self.machines[index].lease.renew(now, k, deadline).is_ok() {
            // A guard that is started again finds an earlier deadline: it fences too early, never too late.
            self.keep(index, Survives::Process)?;
        }
        Ok(())
    }

    /// Step 14.
    fn decide_guard(&mut self, index: usize, k: RolloutId, at: BootTime, to: Opened) -> Result<Event, Died> {
        self.await_flip(index);
        let tree = self.machines[index].trees[self.position_of(to.digest)];
        let machine = &mut self.machines[index];
        let (now, before) = (machine.clock.at(self.now), *machine.lease.hold());
        let outcome = if tree == Tree::Missing {
            Err(not_deployed(machine))
        } else {
            match machine.lease.decide(now, k, at, to) {
                Ok(change) => self.keep_or_undo(index, change, before)?,
                Err(refusal) => Err(refused(machine, refusal)),
            }
        };
        Ok(Event::SwitchSet { k, outcome })
    }

    /// A change that must be durable before it is answered, and is taken back if it cannot be.
    fn keep_or_undo(
        &mut self,
        index: usize,
        change: Change,
        before: LeaseState,
    ) -> Result<Result<(), Refusal>, Died> {
        let made = *self.machines[index].lease.hold();
        if self.keep(index, Survives::PowerCut)? == Kept::Durably {
            return Ok(Ok(()));
        }
        let machine = &mut self.machines[index];
        if change == Change::Made {
            machine.lease.undo(machine.clock.at(self.now), &made, before);
        }
        Ok(Err(not_kept(machine)))
    }

    /// Fences now. The stop comes first, then the record of it.
    fn halt_guard(&mut self, index: usize) -> Result<(), Died> {
        let (now, unix) = (self.machines[index].clock.at(self.now), self.unix_now());
        let machine = &mut self.machines[index];
        machine.lease.halt(now, machine.unix(unix), "by ops");
        machine.duty = None;
        machine.go_dark(now);
        if self.random.chance(self.crash_per_mille) {
            return Err(self.kill_guard(index));
        }
        let machine = &mut self.machines[index];
        machine.ledger.halt = machine.lease.halted().cloned();
        self.end_fence(index)
    }

    /// Step 10. What is served drains under the running deadline. What fails may have revoked the permit.
    fn close_guard(&mut self, index: usize, cause: CloseCause) -> Result<Option<Event>, Died> {
        self.await_flip(index);
        let fails = self.random.chance(self.guard_fails_per_mille);
        let revokes = !fails || self.random.chance(500);
        let machine = &mut self.machines[index];
        let now = machine.clock.at(self.now);
        let deadline = machine.lease.begin_close(now);
        if revokes {
            machine.permit = None;
        }
        let drain = Duration::from_millis(machine.drain_ms);
        let until = deadline.map_or(now.after(drain), |deadline| now.after(drain).min(deadline));
        if fails || machine.closes_to_fail > 0 {
            machine.closes_to_fail = machine.closes_to_fail.saturating_sub(1);
            let blocker = Blocker::host(Code::StopFailed, &machine.name, "the service did not stop");
            if self.mistake == Some(Mistake::CloseCancelsDeadline) {
                machine.lease.end_close(now);
                self.keep(index, Survives::PowerCut)?;
            } else {
                machine.lease.fail_close();
            }
            return Ok(Some(Event::Closed { cause, outcome: Err(Refusal::because(blocker)) }));
        }
        if until > now {
            machine.drain = Some(Drain { cause, until, asks: Asks::Yes });
            return Ok(None);
        }
        self.end_close(index, cause).map(Some)
    }

    /// Nothing is left of what was served.
    pub(super) fn end_close(&mut self, index: usize, cause: CloseCause) -> Result<Event, Died> {
        let machine = &mut self.machines[index];
        let now = machine.clock.at(self.now);
        machine.linked = None;
        if self.mistake != Some(Mistake::ClosedBeforeDark) {
            machine.guard = None;
        }
        machine.lease.end_close(now);
        let outcome = match self.keep(index, Survives::PowerCut)? {
            Kept::Durably => Ok(now),
            Kept::Failed => Err(not_kept(&self.machines[index])),
        };
        Ok(Event::Closed { cause, outcome })
    }

    /// Steps 3 and 12. A start that fails leaves the fleet closed.
    fn open_guard(
        &mut self,
        index: usize,
        opened: Opened,
        resume: Resume,
    ) -> Result<Result<BootTime, Refusal>, Died> {
        self.await_flip(index);
        if let Err(refusal) = self.resume_guard(index, resume) {
            return Ok(Err(refused(&self.machines[index], refusal)));
        }
        // What follows a fence must not meet what is opened now.
        if matches!(self.machines[index].duty, Some(Duty::EndFence(_))) {
            self.end_fence(index)?;
        }
        let fails = self.random.chance(self.guard_fails_per_mille);
        let tree = self.machines[index].trees[self.position_of(opened.digest)];
        let machine = &mut self.machines[index];
        let now = machine.clock.at(self.now);
        if let Err(refusal) = machine.lease.may_open(now, opened) {
            return Ok(Err(refused(machine, refusal)));
        }
        if let Err(refusal) = machine.check_free(opened, tree) {
            return Ok(Err(refusal));
        }
        if let Err(refusal) = machine.lease.begin_open(now, opened) {
            return Ok(Err(refused(machine, refusal)));
        }
        if machine.serves(opened) {
            return Ok(Ok(now));
        }
        if self.keep(index, Survives::PowerCut)? == Kept::Failed {
            return Ok(Err(not_kept(&self.machines[index])));
        }
        let machine = &mut self.machines[index];
        if fails || machine.opens_to_fail > 0 {
            machine.opens_to_fail = machine.opens_to_fail.saturating_sub(1);
            (machine.permit, machine.linked, machine.guard) = (None, None, None);
            let blocker = Blocker::host(Code::StartFailed, &machine.name, "the service does not run");
            return Ok(Err(Refusal::because(blocker)));
        }
        let record = &self.coordinator.record;
        let completed = record.phase.opening().or(record.completed.as_ref()).map(|opening| opening.k);
        if machine.halted_by_hand.take().is_some_and(|halted_at| completed <= Some(halted_at)) {
            let violation = format!(
                "{} was halted by hand, and opens although no newer order was completed",
                machine.name
            );
            self.violate(violation);
        }
        self.machines[index].serve(opened);
        self.check();
        Ok(Ok(now))
    }

    /// An opening that ends a halt of which the guard had not told ends the one that was asked for last.
    fn resume_guard(&mut self, index: usize, resume: Resume) -> Result<(), LeaseRefusal> {
        let machine = &mut self.machines[index];
        let halt = match resume {
            Resume::No => None,
            Resume::Yes(halt) => halt.or(machine.asked_halt),
        };
        if let Some(halt) = halt {
            machine.lease.may_resume(halt)?;
            machine.ledger.halt = None;
            machine.lease.resume(halt)?;
        }
        Ok(())
    }
}

impl Machine {
    /// What the permit allows, as far as the lease does.
    pub(super) fn open(&self) -> Option<Opened> {
        self.permit.filter(|_| self.may_serve())
    }

    pub(super) fn may_serve(&self) -> bool {
        self.lease.may_serve().is_ok()
    }

    /// Serves this from now on.
    pub(super) const fn serve(&mut self, opened: Opened) {
        self.permit = Some(opened);
        self.linked = Some(opened.digest);
        self.guard = Some((opened.epoch, opened.digest));
    }

    /// Nothing is left of what was served.
    pub(super) fn go_dark(&mut self, now: BootTime) {
        (self.linked, self.guard) = (None, None);
        self.lease.fence_dark(now);
    }

    fn is_closed(&self) -> bool {
        self.open().is_none() && self.linked.is_none() && self.guard.is_none()
    }

    fn serves(&self, opened: Opened) -> bool {
        self.open() == Some(opened) && self.linked == Some(opened.digest) && self.guard.is_some()
    }

    /// Nothing else is open here. A refusal at this point changes nothing.
    fn check_free(&self, opened: Opened, tree: Tree) -> Result<(), Refusal> {
        let others = self.linked.is_some_and(|digest| digest != opened.digest)
            || self.open().is_some_and(|open| open != opened)
            || (self.open().is_none() && !self.is_closed());
        match tree {
            _ if others => {
                Err(Refusal::because(Blocker::host(Code::GuardFailed, &self.name, "it is not closed")))
            }
            Tree::Missing => Err(not_deployed(self)),
            Tree::Good | Tree::Tampered => Ok(()),
        }
    }

    /// What the guard's word means to the agent. What its record allows is dark where something is left of it, and may be
    /// opened again; anything else has to be closed, and is told as the release of an epoch that no record allows.
    pub(super) fn meaning(&self) -> GuardState {
        let allowed = self.agent.as_ref().and_then(|agent| Host::record(agent).may_serve());
        let is_allowed = |open: Opened| {
            allowed.is_some_and(|it| it.epoch == open.epoch && it.release == Some(open.digest))
                && self.linked.is_none_or(|linked| linked == open.digest)
        };
        match (self.open(), self.linked) {
            (Some(open), _) if self.serves(open) => GuardState::Open(open.epoch, open.digest),
            (Some(open), _) if is_allowed(open) => GuardState::Dark,
            (Some(open), _) => GuardState::Open(Epoch(0), open.digest),
            (None, Some(linked)) => GuardState::Open(Epoch(0), linked),
            (None, None) if self.guard.is_some() => GuardState::Open(Epoch(0), Digest::of(b"")),
            (None, None) => GuardState::Dark,
        }
    }
}

/// What an agent makes of a refusal of the guard's.
fn refused(machine: &Machine, refusal: LeaseRefusal) -> Refusal {
    let code = match refusal {
        LeaseRefusal::Halted => Code::Halted,
        LeaseRefusal::Fenced | LeaseRefusal::TooLate => Code::LeaseExpired,
        LeaseRefusal::NotServing
        | LeaseRefusal::Armed(_)
        | LeaseRefusal::NotArmed
        | LeaseRefusal::Decided(_)
        | LeaseRefusal::WrongTime => Code::GuardFailed,
    };
    Refusal::because(Blocker::host(code, &machine.name, refusal.to_string()))
}

fn not_kept(machine: &Machine) -> Refusal {
    Refusal::because(Blocker::host(Code::GuardFailed, &machine.name, "its guard cannot write"))
}

fn not_deployed(machine: &Machine) -> Refusal {
    Refusal::because(Blocker::host(Code::NotDeployed, &machine.name, "the release is not on this host"))
}

/// What an agent makes of it that nobody answers.
pub(super) fn without_guard(asked: &GuardWork) -> Option<Event> {
    let refusal = || Refusal::of(Code::GuardFailed, "the guard does not answer");
    match *asked {
        GuardWork::Answer(ref answer) => Some(answer.clone()),
        GuardWork::Say | GuardWork::Found | GuardWork::Lift { .. } | GuardWork::Halt => Some(Event::Guard {
            state: GuardState::Unknown,
            since: None,
            halt: Halt::Running,
            refusal: Some(refusal()),
        }),
        GuardWork::Quiesce { k } => Some(Event::Quiesced { k, outcome: Err(refusal()) }),
        GuardWork::Lease(Armed { k, .. }) => Some(Event::Leased { k, outcome: Err(refusal()) }),
        GuardWork::Extend { .. } => None,
        GuardWork::Switch { k, .. } => Some(Event::SwitchSet { k, outcome: Err(refusal()) }),
        GuardWork::Close { cause } => Some(Event::Closed { cause, outcome: Err(refusal()) }),
        GuardWork::Open { epoch, .. } => Some(Event::Opened { epoch, outcome: Err(refusal()) }),
    }
}
