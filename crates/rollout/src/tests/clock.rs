//! The clocks of the simulated world: what a machine's `CLOCK_BOOTTIME` shows.

use muster_model::BootTime;

/// A clock that is off in rate, and began when its machine did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    /// Parts per million by which it is fast, or slow.
    pub(super) drift_ppm: i64,
    /// When the machine was started, in the world's time.
    started: u64,
    /// What the clock showed then.
    offset: u64,
}

impl Clock {
    /// A clock that shows the world's time.
    pub(super) const fn exact() -> Self {
        Self::new(0, 0)
    }

    /// A clock that showed `offset` at the beginning of the world.
    pub(super) const fn new(drift_ppm: i64, offset: u64) -> Self {
        Self { drift_ppm, started: 0, offset }
    }

    /// The machine is started again: its clock begins anew.
    pub(super) const fn restart(&mut self, now: u64) {
        self.started = now;
        self.offset = 0;
    }

    pub(super) fn at(self, now: u64) -> BootTime {
        let since = i128::from(now.saturating_sub(self.started));
        let shown = i128::from(self.offset) + since + since * i128::from(self.drift_ppm) / 1_000_000;
        BootTime(u64::try_from(shown).expect("a clock never runs backwards"))
    }

    /// The first moment at which the clock shows `time`.
    pub(super) fn when(self, time: BootTime) -> u64 {
        let since = i128::from(time.0.saturating_sub(self.offset));
        let since = since * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm));
        let mut now = self.started + u64::try_from(since).expect("not before the start");
        while self.at(now) < time {
            now += 1;
        }
        now
    }
}
