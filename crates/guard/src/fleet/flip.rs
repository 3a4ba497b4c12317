//! Fast mode: at the instant `T` the guard itself replaces the old release by the new one (protocol, step 14).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Fleet;
use crate::error::GuardError;
use crate::hooks::Hook;
use crate::ledger::Survives;
use crate::log::log;
use crate::protocol::{Decided, Event, Flipped};

/// How long a request that is about to end may hold a flip up.
const LOCK_PATIENCE: Duration = Duration::from_millis(50);

/// How long the old service may take to stop by itself. Others serve the new release already.
const STOP_LIMIT_MAX: Duration = Duration::from_secs(1);

impl Fleet {
    /// Flips, or fences if it cannot.
    pub(super) fn flip(&self, decided: Decided) {
        let Some(_change) = self.try_lock(LOCK_PATIENCE) else {
            return self.give_up_flip(decided, "another change is under way".to_owned());
        };
        match self.flip_locked(decided) {
            Ok(flip) if self.change_lease(|lease, _| lease.flip_done(flip)) => {
                let late = flip.opened_boot_ms.since(flip.at_boot_ms).as_millis();
                log!("fleet {}: flipped to {}, {late} ms after its time", self.name, flip.to.digest);
                self.emit(Event::Flipped { fleet: self.name.clone(), flip });
                for error in
                    [self.link.sync(), self.persist(Survives::PowerCut)].into_iter().filter_map(Result::err)
                {
                    log!("{}", error.chain());
                }
                self.release();
                self.run_lenient(Hook::AfterOpen, &self.context(), self.hooks.bound(Hook::AfterOpen));
            }
            // A halt came between; the fence that has latched takes away what was opened.
            Ok(_) => {}
            Err(error) => self.give_up_flip(decided, error.chain()),
        }
    }

    fn give_up_flip(&self, decided: Decided, detail: String) {
        log!("fleet {}: cannot flip: {detail}", self.name);
        self.change_lease(|lease, now| lease.flip_failed(now));
        self.emit(Event::FlipFailed { fleet: self.name.clone(), k: decided.armed.k, detail });
    }

    fn flip_locked(&self, decided: Decided) -> Result<Flipped, GuardError> {
        let Decided { armed, at_boot_ms, to } = decided;
        let from = self.context().opened;
        let may = || self.may_serve();
        let (closed, opened) = match &self.service {
            None => {
                self.link.swap(&may)?.map_err(GuardError::lease(&self.name))?;
                let at = self.timer.now();
                self.allow(to)?;
                (at, at)
            }
            Some(service) => {
                let folder = self.link.release(to.digest)?;
                service.stop(self.stop_timeout.min(STOP_LIMIT_MAX), None)?;
                let closed = self.timer.now();
                self.link.swap(&may)?.map_err(GuardError::lease(&self.name))?;
                self.allow(to)?;
                self.begins();
                (closed, service.start(to, folder, &may)?)
            }
        };
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.check_health()?;
        Ok(Flipped { k: armed.k, from, to, at_boot_ms, closed_boot_ms: closed, opened_boot_ms: opened })
    }
}
