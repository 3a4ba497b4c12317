//! A guard whose machine has much else to do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use muster_guard::{Armed, Drill, FleetState, Guard, GuardError, LeaseRefusal, Opened};
use muster_model::{BootTime, Digest, Epoch, FleetName, HaltId, RolloutId};
use tokio::sync::Notify;

/// What later drills find.
const RESTED_MS: u64 = 3;

/// What comes of the first opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// A fence is not complete.
    Fenced,
    /// A health check that only a halt cuts short.
    Endless,
}

/// The first drill finds `first_ms`, and the first opening is as it says; in all else it is the guard that it has.
pub(crate) struct Tired {
    guard: Arc<dyn Guard>,
    first_ms: u64,
    first: First,
    has_tried: AtomicBool,
    has_opened: AtomicBool,
    is_halted: (Mutex<bool>, Condvar),
    /// An endless opening has begun.
    pub(crate) begun: Notify,
}

impl Tired {
    pub(crate) fn new(guard: Arc<dyn Guard>, first_ms: u64, first: First) -> Self {
        let (has_tried, has_opened) = (AtomicBool::new(false), AtomicBool::new(false));
        let is_halted = (Mutex::new(false), Condvar::new());
        Self { guard, first_ms, first, has_tried, has_opened, is_halted, begun: Notify::new() }
    }
}

impl Guard for Tired {
    fn drill(&self, fleet: &FleetName, runs: u32) -> Result<Drill, GuardError> {
        let drill = self.guard.drill(fleet, runs)?;
        let is_first = !self.has_tried.swap(true, Ordering::Relaxed);
        // What it really takes depends on what else this machine does.
        Ok(Drill { fence_ms: if is_first { self.first_ms } else { RESTED_MS }, ..drill })
    }

    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.guard.status(fleet)
    }

    fn close(&self, fleet: &FleetName, drain: Option<Duration>) -> Result<FleetState, GuardError> {
        self.guard.close(fleet, drain)
    }

    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError> {
        if !self.has_opened.swap(true, Ordering::Relaxed) {
            let source = match self.first {
                First::Fenced => LeaseRefusal::Fenced,
                First::Endless => {
                    self.begun.notify_one();
                    let (halted, changed) = &self.is_halted;
                    drop(changed.wait_while(halted.lock().unwrap(), |halted| !*halted).unwrap());
                    LeaseRefusal::Halted
                }
            };
            return Err(GuardError::Lease { fleet: fleet.clone(), source });
        }
        self.guard.open(fleet, epoch, digest)
    }

    fn arm(&self, fleet: &FleetName, arm: Armed) -> Result<FleetState, GuardError> {
        self.guard.arm(fleet, arm)
    }

    fn renew(&self, fleet: &FleetName, k: RolloutId, deadline: BootTime) -> Result<FleetState, GuardError> {
        self.guard.renew(fleet, k, deadline)
    }

    fn disarm(&self, fleet: &FleetName, k: RolloutId) -> Result<FleetState, GuardError> {
        self.guard.disarm(fleet, k)
    }

    fn decide(
        &self,
        fleet: &FleetName,
        k: RolloutId,
        at: BootTime,
        to: Opened,
    ) -> Result<FleetState, GuardError> {
        self.guard.decide(fleet, k, at, to)
    }

    fn quiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.guard.quiesce(fleet)
    }

    fn unquiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.guard.unquiesce(fleet)
    }

    fn halt(&self, fleet: &FleetName, reason: &str) -> Result<FleetState, GuardError> {
        let halted = self.guard.halt(fleet, reason);
        *self.is_halted.0.lock().unwrap() = true;
        self.is_halted.1.notify_all();
        halted
    }

    fn resume(&self, fleet: &FleetName, halt: HaltId) -> Result<FleetState, GuardError> {
        self.guard.resume(fleet, halt)
    }
}
