//! How fast bytes come from others, who may never want to come to an end.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes in each second that must come on average, and for how long less may come at first. A link that works is far
/// faster; whoever lets a byte through now and then would keep a place for ever.
const RATE_BYTES_MIN: u64 = 1 << 10;
const RATE_GRACE: Duration = Duration::from_secs(10);

/// Watches one transfer that comes in chunks.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    begun: Instant,
    bytes: u64,
}

/// Why a transfer would not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PaceFault {
    /// A chunk that brings it no nearer to its end.
    #[error("a chunk with nothing in it came")]
    Empty,
    /// Bytes come too slowly.
    #[error("only {bytes} bytes came in {seconds} s")]
    Slow {
        /// How many have come.
        bytes: u64,
        /// Since it began.
        seconds: u64,
    },
}

impl Pace {
    /// A transfer that begins now.
    #[must_use]
    pub const fn begin(now: Instant) -> Self {
        Self { begun: now, bytes: 0 }
    }

    /// Takes a chunk of this length into account. The first may be all there is, however long it was held up.
    pub fn keep(&mut self, len: u64, now: Instant) -> Result<(), PaceFault> {
        if len == 0 {
            return Err(PaceFault::Empty);
        }
        let is_first = self.bytes == 0;
        self.bytes = self.bytes.saturating_add(len);
        let taken = now.saturating_duration_since(self.begun);
        let due = taken.saturating_sub(RATE_GRACE).as_secs().saturating_mul(RATE_BYTES_MIN);
        if is_first || self.bytes >= due {
            return Ok(());
        }
        Err(PaceFault::Slow { bytes: self.bytes, seconds: taken.as_secs() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_that_only_drips_or_is_all_empty_is_given_up() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut dripping = Pace::begin(begun);
        assert!((1..=10).all(|second| dripping.keep(1, after(second)).is_ok()), "a slow start");
        assert_eq!(dripping.keep(1, after(11)), Err(PaceFault::Slow { bytes: 11, seconds: 11 }));

        let mut held_up = Pace::begin(begun);
        assert!(held_up.keep(1, after(29)).is_ok(), "the first may be all");
        assert!(held_up.keep((64 << 10) - 1, after(30)).is_ok(), "what counts is the average");
        assert!(held_up.keep(1, after(74)).is_ok());
        assert!(held_up.keep(1, after(75)).is_err());
        assert_eq!(Pace::begin(begun).keep(0, begun), Err(PaceFault::Empty));
    }
}
