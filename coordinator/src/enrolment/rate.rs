//! How often something may be asked by many together.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// One in so long, on average.
    pub(super) each: Duration,
    /// So many at once, after a pause.
    pub(super) at_once: u32,
}

/// A bucket of calls that fills again at a steady rate.
#[derive(Debug)]
pub(super) struct Rate {
    pace: Pace,
    full_at: Mutex<Option<Instant>>,
}

impl Rate {
    pub(super) const fn new(pace: Pace) -> Self {
        Self { pace, full_at: Mutex::new(None) }
    }

    /// Takes one call, if there is one.
    pub(super) fn take(&self, now: Instant) -> bool {
        let Pace { each, at_once } = self.pace;
        let mut last = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = last.map_or(now, |last| last.max(now)) + each;
        let is_there = full_at.duration_since(now) <= each * at_once;
        if is_there {
            *last = Some(full_at);
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rate_is_bounded_and_a_pause_gives_it_back() {
        let start = Instant::now();
        let rate = Rate::new(Pace { each: Duration::from_millis(20), at_once: 200 });
        assert_eq!((0..1000).filter(|_| rate.take(start)).count(), 200);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| rate.take(later)).count(), 50);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| rate.take(much_later)).count(), 200);
    }
}
