//! Faults at every point that durability hangs on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::Disk;

/// What happens at the chosen step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The system call fails with this number.
    Errno(i32),
    /// The process ends on the spot.
    Abort,
}

/// Counts steps, and strikes once.
#[derive(Debug)]
pub(crate) struct Faults {
    taken: AtomicU64,
    strike_at: u64,
    fault: Fault,
}

impl Faults {
    /// A disk that fails at its step number `strike_at`, counted from 0.
    pub(crate) fn at(strike_at: u64, fault: Fault) -> (Disk, Arc<Self>) {
        let faults = Arc::new(Self { taken: AtomicU64::new(0), strike_at, fault });
        (Disk { faults: Some(Arc::clone(&faults)) }, faults)
    }

    pub(crate) fn step(&self) -> io::Result<()> {
        if self.taken.fetch_add(1, Ordering::SeqCst) != self.strike_at {
            return Ok(());
        }
        match self.fault {
            Fault::Errno(number) => Err(io::Error::from_raw_os_error(number)),
            Fault::Abort => std::process::abort(),
        }
    }

    /// Whether the step was reached.
    pub(crate) fn struck(&self) -> bool {
        self.taken.load(Ordering::SeqCst) > self.strike_at
    }
}
