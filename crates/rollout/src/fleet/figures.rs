//! How long nobody served, and how far apart hosts began to.

use muster_model::{BootId, BootTime};

use super::DarkWindow;

/// What is timed of one flip.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Figures {
    /// Nothing in fast mode, where hosts do not wait for each other.
    first_close: Option<BootTime>,
    first_serving: Option<BootTime>,
    last_serving: Option<BootTime>,
    clock: HostClock,
}

/// Times on the hosts' own clock, which mean something only while all of them share one boot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct HostClock {
    boots: Vec<BootId>,
    first_closed: Option<BootTime>,
    first_opened: Option<BootTime>,
    last_opened: Option<BootTime>,
}

impl Figures {
    pub(super) fn new(first_close: Option<BootTime>) -> Self {
        Self { first_close, first_serving: None, last_serving: None, clock: HostClock::default() }
    }

    /// A host of this boot closed at `at`, on its own clock.
    pub(super) fn closed(&mut self, boot: Option<BootId>, at: BootTime) {
        self.clock.seen(boot);
        self.clock.first_closed = Some(self.clock.first_closed.map_or(at, |first| first.min(at)));
    }

    /// A host of this boot serves since `at`, on its own clock; it said so `now`.
    pub(super) fn opened(&mut self, boot: Option<BootId>, at: BootTime, now: BootTime) {
        self.first_serving.get_or_insert(now);
        self.last_serving = self.last_serving.max(Some(now));
        self.clock.seen(boot);
        self.clock.first_opened = Some(self.clock.first_opened.map_or(at, |first| first.min(at)));
        self.clock.last_opened = self.clock.last_opened.max(Some(at));
    }

    pub(super) fn dark_window(&self) -> Option<DarkWindow> {
        let (first, last) = (self.first_serving?, self.last_serving?);
        let to_ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let shared = self.clock.is_shared();
        let spread = match (shared, self.clock.first_opened, self.clock.last_opened) {
            (true, Some(first), Some(last)) => last.since(first),
            _ => last.since(first),
        };
        let measured = match (shared, self.clock.first_closed, self.clock.last_opened) {
            (true, Some(closed), Some(opened)) => Some(to_ms(opened.since(closed))),
            _ => None,
        };
        Some(DarkWindow {
            bound_ms: self.first_close.map_or(0, |first_close| to_ms(last.since(first_close))),
            measured_ms: measured,
            spread_ms: to_ms(spread),
        })
    }
}

impl HostClock {
    /// Two boots are all it takes to know that the clock is not shared.
    fn seen(&mut self, boot: Option<BootId>) {
        if let Some(boot) = boot
            && self.boots.len() < 2
            && !self.boots.contains(&boot)
        {
            self.boots.push(boot);
        }
    }

    const fn is_shared(&self) -> bool {
        self.boots.len() == 1
    }
}
