//! When to start a failed service again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::RESTARTS_PER_MINUTE_MAX;

const WINDOW: Duration = Duration::from_secs(60);
const DELAY_MAX: Duration = Duration::from_secs(30);

/// Delays that double, and a bound on how often.
#[derive(Debug)]
pub(super) struct Restarts {
    first_delay: Duration,
    delay: Duration,
    recent: VecDeque<Instant>,
}

impl Restarts {
    pub(super) const fn new(first_delay: Duration) -> Self {
        Self { first_delay, delay: first_delay, recent: VecDeque::new() }
    }

    /// How long to wait after a run that `began` and ended `now`; `None`: it has failed too often. A run that lasted
    /// longer than the window is forgiven what was before it.
    pub(super) fn next(&mut self, began: Instant, now: Instant) -> Option<Duration> {
        if now.duration_since(began) >= WINDOW {
            self.delay = self.first_delay;
        }
        self.recent.retain(|restart| now.duration_since(*restart) < WINDOW);
        if self.recent.len() >= RESTARTS_PER_MINUTE_MAX {
            return None;
        }
        self.recent.push_back(now);
        let delay = self.delay.min(DELAY_MAX);
        self.delay = (self.delay * 2).min(DELAY_MAX);
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_then_stop_then_start_over() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut restarts = Restarts::new(second);
        let delays: Vec<_> = (0..6).map(|_| restarts.next(start, start).map(|d| d.as_secs())).collect();
        assert_eq!(delays, [Some(1), Some(2), Some(4), Some(8), Some(16), None]);
        let later = start + 61 * second;
        assert_eq!(restarts.next(later - second, later), Some(DELAY_MAX));
        let much_later = later + 200 * second;
        assert_eq!(restarts.next(later, much_later), Some(second));
    }
}
