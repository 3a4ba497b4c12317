//! What is asked of the lease: deadlines set, moved and lifted, and what must be durable before it is answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use muster_model::{BootTime, Digest, RolloutId};

use super::Fleet;
use crate::error::GuardError;
use crate::hooks::{Context, Hook};
use crate::idle;
use crate::lease::{Change, Lease, LeaseRefusal};
use crate::ledger::Survives;
use crate::log::log;
use crate::protocol::{Armed, FleetState, LeaseState, Opened};

impl Fleet {
    /// Step 7. The deadline runs from before it is durable: a disk that hangs costs the service, not the promise.
    pub(crate) fn arm(self: &Arc<Self>, ask: Armed) -> Result<FleetState, GuardError> {
        let _change = self.lock_for_asker()?;
        self.ensure_warden()?;
        // What is permitted counts, not what runs at this moment: a service that has ended may be about to be started again.
        let permitted = self.state()?.open;
        {
            let _tying = self.tying();
            if let Some(service) = &self.service {
                service.bind()?;
            }
            self.change_durably(|lease, now| lease.arm(now, permitted, ask))
                .inspect_err(|_| self.release_tied())?;
        }
        self.state()
    }

    /// Step 8. A deadline that is lost with the machine need not survive it, so no disk is waited for.
    pub(crate) fn renew(&self, k: RolloutId, deadline: BootTime) -> Result<FleetState, GuardError> {
        self.ask_lease(|lease, now| lease.renew(now, k, deadline))?;
        if let Err(error) = self.persist(Survives::Process) {
            // A guard that is started again finds an earlier deadline: it fences too early, never too late.
            log!("{}", error.chain());
        }
        self.state()
    }

    /// Step 9. A fence that has latched stays; the answer shows it.
    pub(crate) fn disarm(&self, k: RolloutId) -> Result<FleetState, GuardError> {
        self.ask_lease(|lease, now| lease.disarm(now, k))?;
        self.release();
        self.persist(Survives::PowerCut)?;
        self.state()
    }

    /// What a starting guard does: the tie of the one before it holds for as long as its deadline does.
    pub(super) fn bind_or_release(&self) {
        let Some(service) = &self.service else { return };
        let hold = self.hold();
        match hold {
            LeaseState::Armed(_) | LeaseState::Decided(_) => {}
            LeaseState::Free | LeaseState::Fenced(_) => return service.release(),
        }
        if let Err(error) = service.bind() {
            // The deadline is held by this guard all the same.
            log!("fleet {}: {}", self.name, error.chain());
        }
    }

    /// The service outlives its guard again, unless a deadline runs. Who lifts a deadline waits for no other change, and so may meet a
    /// new one that is tied for already and not in force yet.
    pub(super) fn release(&self) {
        let _tying = self.tying();
        self.release_tied();
    }

    fn release_tied(&self) {
        let hold = self.hold();
        if let (Some(service), LeaseState::Free) = (&self.service, hold) {
            service.release();
        }
    }

    fn tying(&self) -> MutexGuard<'_, ()> {
        self.tying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Step 14. All that can fail is done before: the release is there, and the link's successor is made.
    pub(crate) fn decide(&self, k: RolloutId, at: BootTime, to: Opened) -> Result<FleetState, GuardError> {
        let _change = self.lock_for_asker()?;
        self.link.release(to.digest)?;
        if !matches!(self.hold(), LeaseState::Decided(_)) {
            self.link.stage(to.digest)?;
        }
        self.change_durably(|lease, now| lease.decide(now, k, at, to)).inspect_err(|_| {
            if !matches!(self.hold(), LeaseState::Decided(_)) {
                // It leads nowhere anyone goes, and the next one replaces it.
                let _ = self.link.unstage();
            }
        })?;
        self.state()
    }

    /// Runs a hook whose failure is told to the one who asked.
    pub(crate) fn run_asked(&self, hook: Hook) -> Result<FleetState, GuardError> {
        let context = self.context();
        self.hooks.run(hook, &context, self.hooks.bound(hook), &|| self.may_serve().is_ok())?;
        self.state()
    }

    /// Runs the self-test of a release that is on disk, beside whatever is served.
    pub(crate) fn rehearse(&self, digest: Digest, going_down: &AtomicBool) -> Result<FleetState, GuardError> {
        let hook = Hook::Rehearse;
        let Ok(_rehearsing) = self.rehearsing.try_lock() else {
            return Err(GuardError::Busy { fleet: self.name.clone(), with: "another rehearsal" });
        };
        if !self.hooks.has(hook) {
            let detail = "there is none: name the self-test as `hooks.rehearse` in guard.toml".to_owned();
            return Err(self.hooks.failed(hook, detail));
        }
        let folder = Some(self.link.release(digest)?);
        let context = Context { folder, rehearsed: Some(digest), ..Context::default() };
        let wanted = || !going_down.load(Ordering::SeqCst);
        idle::nicely(|| self.hooks.run(hook, &context, self.hooks.bound(hook), &wanted))
            .map_err(|error| self.hooks.failed(hook, format!("no thread to run it: {error}")))??;
        self.state()
    }

    /// A copy: the lock is not held by whoever goes on with it, and the deadline and a sign of life wait for that lock.
    pub(super) fn hold(&self) -> LeaseState {
        *self.lease().hold()
    }

    /// Asks the lease, and sets the timer to what follows from its answer.
    pub(super) fn ask_lease<T>(
        &self,
        ask: impl FnOnce(&mut Lease, BootTime) -> Result<T, LeaseRefusal>,
    ) -> Result<T, GuardError> {
        self.change_lease(ask).map_err(GuardError::lease(&self.name))
    }

    /// The timer is set under the lease's lock, so that it is always set to the lease's last word.
    pub(super) fn change_lease<T>(&self, change: impl FnOnce(&mut Lease, BootTime) -> T) -> T {
        let mut lease = self.lease();
        let result = change(&mut lease, self.timer.now());
        self.timer.set(lease.due());
        result
    }

    /// A change that must be durable before it is answered, and is taken back if it cannot be.
    fn change_durably(
        &self,
        ask: impl FnOnce(&mut Lease, BootTime) -> Result<Change, LeaseRefusal>,
    ) -> Result<(), GuardError> {
        let (before, change, made) = self.change_lease(|lease, now| {
            let before = *lease.hold();
            (before, ask(lease, now), *lease.hold())
        });
        let change = change.map_err(GuardError::lease(&self.name))?;
        self.persist(Survives::PowerCut).inspect_err(|_| {
            if change == Change::Made {
                self.change_lease(|lease, now| lease.undo(now, &made, before));
            }
        })
    }

    /// Writes the lease as it is now, if that is not what was written last.
    pub(super) fn persist(&self, survives: Survives) -> Result<(), GuardError> {
        self.ledger.write(|| self.lease().record(&self.boot_id), survives)
    }

    /// Waits a moment for requests that are about to end.
    pub(super) fn try_lock(&self, patience: Duration) -> Option<std::sync::MutexGuard<'_, ()>> {
        let deadline = std::time::Instant::now() + patience;
        loop {
            match self.change.try_lock() {
                Ok(change) => return Some(change),
                Err(std::sync::TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(std::sync::TryLockError::WouldBlock) if std::time::Instant::now() >= deadline => {
                    return None;
                }
                Err(std::sync::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}
