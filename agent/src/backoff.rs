//! How long to wait before the next attempt.

use std::time::Duration;

/// Exponential back-off with full jitter: each wait is drawn from zero up to a bound that doubles, so that a thousand
/// agents do not come back at once.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// Waits of up to `first` after the first failure, and never of more than `max`.
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, attempts: 0 }
    }

    /// The next wait. `random` is uniform over all 64-bit numbers.
    pub(crate) fn next(&mut self, random: u64) -> Duration {
        let bound = doubled(self.first, self.attempts, self.max);
        self.attempts = self.attempts.saturating_add(1);
        let bound_us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        // The upper half of the product is uniform over the bound.
        let drawn = (u128::from(bound_us) * u128::from(random)) >> 64;
        Duration::from_micros(u64::try_from(drawn).unwrap_or(bound_us))
    }

    /// Something succeeded: the next wait is short again.
    pub(crate) const fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// `first` doubled `times` times, at most `max`.
pub(crate) fn doubled(first: Duration, times: u32, max: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(10);

    #[test]
    fn the_bound_doubles_up_to_the_maximum_and_falls_back() {
        let mut backoff = Backoff::new(FIRST, MAX);
        let mut bounds: Vec<u128> = Vec::new();
        for _ in 0..10 {
            // The largest random number gives the bound itself, but for the last microsecond.
            bounds.push(backoff.next(u64::MAX).as_micros().div_ceil(1000));
        }
        assert_eq!(bounds, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        backoff.reset();
        assert!(backoff.next(u64::MAX) < FIRST);
    }

    #[test]
    fn the_jitter_is_full_and_no_number_of_attempts_overflows() {
        let mut backoff = Backoff::new(FIRST, MAX);
        assert_eq!(backoff.next(0), Duration::ZERO);
        assert_eq!(backoff.next(1 << 63), FIRST);
        for times in [31, 32, 33, u32::MAX] {
            assert_eq!(doubled(FIRST, times, MAX), MAX);
        }
    }
}
