//! The times that a flip rests on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::DocumentError;

/// How long an armed host may serve without hearing from the coordinator, and how long the coordinator waits for a host
/// that it does not hear from. Part of the signed roster, so that hosts and coordinator go by the same numbers.
///
/// After Gray & Cheriton, "Leases" (1989). The wait must outlast the lease and the fence on clocks that differ in rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// `D`, in milliseconds: how long a host that has armed serves on from when it asked last and was answered.
    pub lease_ms: u64,
    /// `F`, in milliseconds: how long fencing may take. A host whose drill takes longer cannot take part.
    pub fence_ms: u64,
    /// `ρ`, in parts per million: how far the rate of any clock may be off.
    pub rate_error_ppm: u64,
    /// `W`, in milliseconds: how long the coordinator waits for a silent host before the others open.
    pub wait_ms: u64,
    /// `ε`, in milliseconds: how far a host's time of day may be off for a flip in fast mode.
    #[serde(default = "clock_error_ms_default")]
    pub clock_error_ms: u64,
}

const MILLION: u64 = 1_000_000;

/// No clock that is any use is off by more.
const RATE_ERROR_PPM_MAX: u64 = 500_000;

/// Longer than any flip should have a fleet wait.
const TIME_MS_MAX: u64 = 24 * 3600 * 1000;

/// The shortest lease: renewals come every third of it.
const LEASE_MS_MIN: u64 = 300;

const fn clock_error_ms_default() -> u64 {
    10
}

impl Default for Timing {
    /// 15 s of lease, 5 s to fence, 10 % of clock-rate error (the kernel lets a clock be slewed by as much), 25 s of
    /// wait.
    fn default() -> Self {
        Self {
            lease_ms: 15_000,
            fence_ms: 5_000,
            rate_error_ppm: 100_000,
            wait_ms: 25_000,
            clock_error_ms: clock_error_ms_default(),
        }
    }
}

impl Timing {
    /// A timing whose wait is the shortest that is safe, rounded up to a tenth of a second.
    #[must_use]
    pub fn with_lease(lease_ms: u64, fence_ms: u64) -> Self {
        let timing = Self { lease_ms, fence_ms, ..Self::default() };
        Self { wait_ms: timing.wait_ms_min().next_multiple_of(100), ..timing }
    }

    /// `D`.
    #[must_use]
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// `W`.
    #[must_use]
    pub const fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }

    /// How often an armed host asks for its lease to be renewed.
    #[must_use]
    pub const fn renewal(&self) -> Duration {
        Duration::from_millis(self.lease_ms / 3)
    }

    /// The longest that a service may take to stop gently: a lease that is about to be renewed lasts two thirds of `D`,
    /// and what is sent takes time.
    #[must_use]
    pub const fn drain_ms_max(&self) -> u64 {
        self.lease_ms / 2
    }

    /// "`W ≥ (1+ρ)/(1−ρ)·(D+F)`", in milliseconds.
    #[must_use]
    pub const fn wait_ms_min(&self) -> u64 {
        let rho =
            if self.rate_error_ppm > RATE_ERROR_PPM_MAX { RATE_ERROR_PPM_MAX } else { self.rate_error_ppm };
        let parts = (self.lease_ms as u128 + self.fence_ms as u128) * (MILLION + rho) as u128;
        let wait = parts.div_ceil((MILLION - rho) as u128);
        if wait > u64::MAX as u128 { u64::MAX } else { wait as u64 }
    }

    pub(crate) fn check(&self) -> Result<(), DocumentError> {
        let invalid = |reason: String| Err(DocumentError::Invalid { kind: "roster", reason });
        if self.rate_error_ppm > RATE_ERROR_PPM_MAX {
            return invalid(format!(
                "rate_error_ppm is {}, beyond any clock; at most {RATE_ERROR_PPM_MAX} are accepted",
                self.rate_error_ppm
            ));
        }
        for (name, value) in
            [("lease_ms", self.lease_ms), ("fence_ms", self.fence_ms), ("wait_ms", self.wait_ms)]
        {
            if value > TIME_MS_MAX {
                return invalid(format!("{name} is {value}; at most {TIME_MS_MAX} are accepted"));
            }
        }
        if self.lease_ms < LEASE_MS_MIN || self.fence_ms == 0 {
            return invalid(format!("lease_ms must be at least {LEASE_MS_MIN}, fence_ms at least 1"));
        }
        if self.wait_ms < self.wait_ms_min() {
            return invalid(format!(
                "wait_ms is {}: with lease_ms {}, fence_ms {} and rate_error_ppm {} a host could still serve then; it \
                 must be at least {}",
                self.wait_ms,
                self.lease_ms,
                self.fence_ms,
                self.rate_error_ppm,
                self.wait_ms_min()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_outlasts_lease_and_fence_on_the_worst_clocks() {
        let timing = Timing::default();
        assert_eq!(timing.wait_ms_min(), 24_445, "24.44 s with the defaults");
        assert!(timing.check().is_ok());
        assert!(Timing { wait_ms: 24_444, ..timing }.check().is_err());
        assert!(Timing { wait_ms: 24_445, ..timing }.check().is_ok());
        assert!(Timing { rate_error_ppm: 900_000, ..timing }.check().is_err());
        assert!(Timing { lease_ms: 0, ..timing }.check().is_err());
        assert!(Timing { lease_ms: u64::MAX, wait_ms: u64::MAX, ..timing }.check().is_err());
        let short = Timing::with_lease(2000, 500);
        assert_eq!(short.wait_ms, 3100);
        assert!(short.check().is_ok());
    }
}
