//! A host's guard: what is really served, and the deadline.

use super::config::{Mistake, Pace};
use super::papers::lease;
use super::state::{Asker, Draining, GuardWork, Latch, Lease, LeaseOrigin, Promise, Work};
use super::turn::Turn;
use crate::host::{CloseCause, Event, GuardState, Halt};

impl Turn<'_> {
    /// Asks the guard, which does one thing after the other.
    pub(super) fn ask_guard(&mut self, index: usize, asked: GuardWork) {
        let guard = &mut self.state.machines[index].edit().guard;
        if guard.draining.is_some() {
            guard.waiting.push_back(asked);
        } else {
            self.guard_does(index, asked);
        }
    }

    /// The deadline has come, and the guard stops what is served: at once, or less than `F` later.
    pub(super) fn fence(&mut self, index: usize) -> Option<()> {
        let now = self.now();
        let guard = &mut self.state.machines[index].edit().guard;
        let lease = guard.lease.as_mut().filter(|it| it.latch == Latch::Open && it.deadline <= now)?;
        lease.latch = Latch::Fenced;
        guard.serving = None;
        self.work(index, Work::Notice);
        Some(())
    }

    /// The service that was told to stop has stopped.
    pub(super) fn drained(&mut self, index: usize) -> Option<()> {
        let guard = &mut self.state.machines[index].edit().guard;
        let Draining { cause, asked_by } = guard.draining.take()?;
        guard.serving = None;
        guard.lease = None;
        match asked_by {
            Asker::Agent => self.host_event(index, Event::Closed { cause, outcome: Ok(self.now()) }),
            Asker::Nobody => self.work(index, Work::Notice),
        }
        while let Some(guard) = Some(&mut self.state.machines[index].edit().guard)
            && guard.draining.is_none()
            && let Some(next) = guard.waiting.pop_front()
        {
            self.guard_does(index, next);
        }
        Some(())
    }

    /// The guard tells what is served.
    pub(super) fn guard_speaks(&mut self, index: usize) {
        let serving = self.state.machines[index].guard.serving;
        let state = serving.map_or(GuardState::Dark, |(epoch, digest)| GuardState::Open(epoch, digest));
        self.host_event(index, Event::Guard { state, since: None, halt: Halt::Running, refusal: None });
    }

    fn guard_does(&mut self, index: usize, asked: GuardWork) {
        let guard = &mut self.state.machines[index].edit().guard;
        match asked {
            GuardWork::Quiesce { k } => self.host_event(index, Event::Quiesced { k, outcome: Ok(()) }),
            GuardWork::Lease { k, deadline } => {
                // A fence that has latched stays.
                let latch = guard.lease.map_or(Latch::Open, |lease| lease.latch);
                guard.lease = Some(Lease { k, deadline, latch, origin: LeaseOrigin::Armed });
                self.host_event(index, Event::Leased { k, outcome: Ok(()) });
            }
            GuardWork::Extend { k, deadline } => self.extend(index, k, deadline),
            GuardWork::Lift { k } => {
                guard.lease.take_if(|lease| lease.k == k);
                self.guard_speaks(index);
            }
            GuardWork::Close { cause } => self.close(index, cause),
            GuardWork::Open { epoch, release } => {
                guard.serving = Some((epoch, release));
                // Only ADMIT and OPEN lead here: a fence that had latched is over.
                guard.lease = None;
                let at = self.now();
                self.host_event(index, Event::Opened { epoch, outcome: Ok(at) });
            }
        }
    }

    /// P5: "no deadline beyond t_send + D". The guard takes the later of two, and none after a fence.
    fn extend(&mut self, index: usize, k: muster_model::RolloutId, deadline: muster_model::BootTime) {
        let from_receipt = self.now().after(lease());
        let is_mistaken = self.mistake() == Some(Mistake::LeaseCountedFromReceipt);
        let deadline = if is_mistaken { from_receipt } else { deadline };
        let asked_at = self.state.machines[index].asked_at;
        if asked_at.is_none_or(|asked_at| deadline > asked_at.after(lease())) {
            self.break_promise(Promise::P5, || format!("a lease was extended to {deadline:?}"));
        }
        let guard = &mut self.state.machines[index].edit().guard;
        let running = guard.lease.as_mut().filter(|lease| lease.k == k && lease.latch == Latch::Open);
        if let Some(running) = running.filter(|running| running.deadline < deadline) {
            running.deadline = deadline;
            running.origin = LeaseOrigin::Granted;
        }
    }

    /// Step 10: "drains under the running deadline".
    fn close(&mut self, index: usize, cause: CloseCause) {
        let mistake = self.mistake();
        let guard = &mut self.state.machines[index].edit().guard;
        guard.draining = Some(Draining { cause, asked_by: Asker::Agent });
        if mistake == Some(Mistake::CloseCancelsTheDeadlineBeforeTheDrainIsDone) {
            guard.lease = None;
        }
        if mistake == Some(Mistake::ClosedAcknowledgedBeforeDown) {
            guard.draining = Some(Draining { cause, asked_by: Asker::Nobody });
            let at = self.now();
            return self.host_event(index, Event::Closed { cause, outcome: Ok(at) });
        }
        match self.model.config.drain {
            Pace::AtOnce => {
                let _ = self.drained(index);
            }
            Pace::Later => {}
        }
    }
}
