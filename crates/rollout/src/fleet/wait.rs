//! Step 11: how long a decided rollout waits for hosts that it does not hear from.

use muster_model::{BootTime, Timing};

/// "`W` elapsed since max(DECIDED durable, own take-over)."
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wait {
    /// The decision, or the take-over, is not durable yet.
    NotBegun,
    /// Until then a silent host may still serve.
    Until(BootTime),
    /// No host that armed for the rollout serves the old release any more.
    Over,
}

impl Wait {
    pub(super) const fn deadline(self) -> Option<BootTime> {
        match self {
            Self::Until(deadline) => Some(deadline),
            Self::NotBegun | Self::Over => None,
        }
    }

    /// P4: the wait is never begun before what it counts from is durable, and never shortened.
    pub(super) fn begin(&mut self, now: BootTime, timing: Timing) {
        match self {
            Self::NotBegun => *self = Self::Until(now.after(timing.wait())),
            Self::Until(_) | Self::Over => {}
        }
    }

    /// Whether it is over now.
    pub(super) fn is_over(&mut self, now: BootTime) -> bool {
        match self {
            Self::Until(deadline) if *deadline <= now => {
                *self = Self::Over;
                true
            }
            Self::Over => true,
            Self::NotBegun | Self::Until(_) => false,
        }
    }
}
