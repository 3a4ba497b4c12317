//! The fence: the thread that waits for the deadline, and what it does then.

use std::process::abort;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use muster_model::{Epoch, HaltId, UnixTime};

use super::Fleet;
use crate::error::GuardError;
use crate::hooks::Hook;
use crate::lease::{Change, Duty};
use crate::ledger::Survives;
use crate::log::log;
use crate::protocol::{Event, Fence, FleetState, LeaseState, LinkState};
use crate::timer::Clock;

/// How long one attempt waits for killed processes to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// How long the thread that watches a service may take to notice its end, so that the state shows it.
const SETTLE_PATIENCE: Duration = Duration::from_millis(200);

/// An alarm is repeated every so many attempts.
const ALARM_EVERY: u32 = 5;

/// A warden ends within one attempt at a fence and its hook, unless a system call hangs.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
const LEAVE_INTERVAL: Duration = Duration::from_millis(1);

/// A warden that panics would leave a deadline to nobody. Without the process its supervised services die at once, and
/// whatever watches the guard learns of it.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            log!("the thread that holds a deadline has failed");
            abort();
        }
    }
}

impl Fleet {
    /// Starts the thread that waits for the deadline, if it does not run yet: without it nothing is armed. Under a clock
    /// that was given, whoever moves it does what the thread would do.
    pub(super) fn ensure_warden(self: &Arc<Self>) -> Result<(), GuardError> {
        if let Clock::Given(_) = self.timer.clock() {
            return Ok(());
        }
        let mut warden = self.warden.lock().unwrap_or_else(PoisonError::into_inner);
        if warden.is_some() {
            return Ok(());
        }
        let fleet = Arc::clone(self);
        let watch = move || {
            let _abort = AbortOnPanic;
            fleet.watch();
        };
        let started = thread::Builder::new().name(format!("warden {}", self.name)).spawn(watch);
        *warden =
            Some(started.map_err(GuardError::io("start a thread for", std::path::Path::new("a deadline")))?);
        Ok(())
    }

    /// Ends the warden. What is armed then is held by nobody. A warden that a disk holds up is not waited for.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        let warden = self.warden.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(warden) = warden else { return };
        self.timer.set(Some(self.timer.now()));
        let deadline = Instant::now() + LEAVE_PATIENCE;
        while !warden.is_finished() && Instant::now() < deadline {
            thread::sleep(LEAVE_INTERVAL);
        }
        if !warden.is_finished() {
            log!("fleet {}: the warden does not end", self.name);
        }
    }

    /// Fences now, and opens nothing until it is resumed. The stop comes first, then the record of it.
    pub(crate) fn halt(self: &Arc<Self>, at: UnixTime, reason: &str) -> Result<FleetState, GuardError> {
        self.change_lease(|lease, now| lease.halt(now, at, reason));
        if let Err(error) = self.ensure_warden() {
            // This thread does it; only what fails now would not be tried again.
            log!("{}", error.chain());
        }
        let dark = self.darken();
        let (halted, recorded) = {
            let _halts = self.ledger.halts();
            let halted = self.lease().halted().cloned();
            let recorded = halted.as_ref().map_or(Ok(()), |halt| self.ledger.halt(halt));
            (halted, recorded)
        };
        self.finish_fence();
        if let Some(halt) = halted {
            self.emit(Event::Halted { fleet: self.name.clone(), halt });
        }
        dark?;
        recorded?;
        self.state()
    }

    /// Fences what `epoch` serves, as it has changed; nothing if that is not what is served.
    pub(crate) fn fence_drifted(self: &Arc<Self>, epoch: Epoch) -> Result<FleetState, GuardError> {
        {
            // Nothing else is opened between the look and the fence.
            let _change = self.lock_for_asker()?;
            if self.permitted()?.is_none_or(|permit| permit.epoch != epoch) {
                return self.state();
            }
            self.ensure_warden()?;
            self.ask_lease(|lease, now| lease.drifted(now))?;
        }
        let dark = self.darken();
        self.finish_fence();
        dark?;
        self.state()
    }

    /// Lifts the halt, durably before it has any effect; not if another one came since.
    pub(crate) fn resume(&self, id: HaltId) -> Result<FleetState, GuardError> {
        let _change = self.lock_for_asker()?;
        // A halt that comes in between is in force already, and is recorded after this.
        let _halts = self.ledger.halts();
        self.ask_lease(|lease, _| lease.may_resume(id))?;
        self.ledger.resume()?;
        if self.ask_lease(|lease, _| lease.resume(id))? == Change::Made {
            self.emit(Event::Resumed { fleet: self.name.clone() });
        }
        self.state()
    }

    /// If a fence has latched, stops what is served until nothing is left; one attempt.
    pub(super) fn darken(&self) -> Result<(), GuardError> {
        let _fencing = self.fencing();
        let LeaseState::Fenced(fence @ Fence { dark_boot_ms: None, .. }) = *self.lease().hold() else {
            return Ok(());
        };
        match self.go_dark() {
            Ok(()) => {
                let dark = self.timer.now();
                self.change_lease(|lease, _| lease.fence_dark(dark));
                self.generation.fetch_add(1, Ordering::Relaxed);
                if let Some(service) = &self.service {
                    service.settle(SETTLE_PATIENCE);
                }
                let fence = Fence { dark_boot_ms: Some(dark), ..fence };
                let took = dark.since(fence.due_boot_ms).as_millis();
                log!("fleet {}: fenced, as {}; dark after {took} ms", self.name, fence.cause);
                self.emit(Event::Fenced { fleet: self.name.clone(), fence });
                Ok(())
            }
            Err(error) => {
                let attempts = self.change_lease(|lease, now| lease.fence_failed(now));
                if attempts % ALARM_EVERY == 1 {
                    log!("fleet {}: the fence is not complete: {}", self.name, error.chain());
                    let (fleet, detail) = (self.name.clone(), error.chain());
                    self.emit(Event::FenceFailing { fleet, fence, attempts, detail });
                }
                Err(error)
            }
        }
    }

    /// What follows a fence once nothing is left: the hook, and only then the disk, which may hang. Until it is written, the
    /// deadline in the record says the same.
    pub(super) fn finish_fence(&self) {
        let _fencing = self.fencing();
        let LeaseState::Fenced(Fence { dark_boot_ms: Some(_), ended_boot_ms: None, .. }) =
            *self.lease().hold()
        else {
            return;
        };
        let context = self.context();
        if let Err(error) = self.hooks.run(Hook::OnFence, &context, self.hooks.bound(Hook::OnFence), &|| true)
        {
            self.tell_failed(Hook::OnFence, &error);
        }
        self.change_lease(|lease, now| lease.fence_ended(now));
        self.remember(None);
        let on_disk = [
            self.permit.remove().map(drop),
            self.link.sync(),
            self.link.unstage(),
            self.persist(Survives::PowerCut),
        ];
        for error in on_disk.into_iter().filter_map(Result::err) {
            log!("{}", error.chain());
        }
    }

    /// Waits for the time of what is due, and does it.
    fn watch(&self) {
        while !self.leaving.load(Ordering::SeqCst) {
            self.timer.wait();
            self.do_duty();
        }
    }

    /// Does what is due at this moment.
    pub(crate) fn do_duty(&self) {
        let duty = {
            let mut lease = self.lease();
            let duty = lease.poll(self.timer.now());
            // A duty that is given out is not due again before it is done.
            self.timer.set(lease.due().filter(|_| duty.is_none()));
            duty
        };
        match duty {
            None => {}
            // What fails is tried again: the attempt has set the timer.
            Some(Duty::Fence(_)) => drop(self.darken().map(|()| self.finish_fence())),
            Some(Duty::EndFence(_)) => self.finish_fence(),
            Some(Duty::Flip(decided)) => self.flip(decided),
        }
        if duty.is_some() {
            self.change_lease(|_, _| ());
        }
    }

    /// The service first: to kill it no disk is needed. That one of them fails does not keep the other from being tried.
    fn go_dark(&self) -> Result<(), GuardError> {
        let killed = self.service.as_ref().map_or(Ok(()), |service| service.kill(KILL_PATIENCE));
        let unlinked = self.link.take_away();
        killed?;
        unlinked?;
        match self.link.read()? {
            LinkState::Absent => Ok(()),
            link @ (LinkState::Release(_) | LinkState::Foreign { .. } | LinkState::Obstructed) => {
                let detail = format!("the link is there again: {link:?}");
                Err(GuardError::NotStopped { fleet: self.name.clone(), detail })
            }
        }
    }

    fn fencing(&self) -> MutexGuard<'_, ()> {
        self.fencing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
