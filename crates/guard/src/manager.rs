//! What the service manager that started the guard is told: that it answers, that it lives, that it ends.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use sd_notify::NotifyState;

use crate::log::log;

/// How long the service manager lets the guard hang while a unit is tied to it.
pub(crate) const TIED_WATCHDOG: Duration = Duration::from_secs(2);

/// How long the service manager lets the guard hang. While units are tied to it that counts into how long a fence may take, and
/// it is short then; at any other time a busy host must not lose its guard.
#[derive(Debug)]
pub(crate) struct Watchdog {
    usual: Option<Duration>,
    ties: Mutex<Ties>,
}

#[derive(Debug, Default)]
struct Ties {
    count: usize,
    stage: Stage,
}

/// Whether signs of life are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// Not yet: a service manager that were to wait for them would kill a guard that takes up what an earlier one has left.
    #[default]
    Recovering,
    Ready,
}

impl Watchdog {
    /// That of this process, as the environment tells.
    pub(crate) fn of_this_process() -> Self {
        Self { usual: sd_notify::watchdog_enabled(), ties: Mutex::default() }
    }

    /// How long a guard that hangs is left alone while units are tied to it; `None`: for ever.
    pub(crate) fn while_tied(&self) -> Option<Duration> {
        self.usual.map(|usual| usual.min(TIED_WATCHDOG))
    }

    /// One more fleet's units are tied.
    pub(crate) fn tighten(&self) {
        self.set(|ties| ties.count += 1);
    }

    /// One fewer.
    pub(crate) fn relax(&self) {
        self.set(|ties| ties.count = ties.count.saturating_sub(1));
    }

    /// The service manager knows that the guard is ready: what was tied before counts from now on.
    pub(crate) fn begin(&self) {
        self.set(|ties| ties.stage = Stage::Ready);
    }

    fn set(&self, change: impl FnOnce(&mut Ties)) {
        let mut ties = self.ties.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut ties);
        let Some(allowed) = self.allowed(&ties) else { return };
        let allowed = u32::try_from(allowed.as_micros()).unwrap_or(u32::MAX);
        if let Err(error) = sd_notify::notify(&[NotifyState::WatchdogUsec(allowed), NotifyState::Watchdog]) {
            log!("the service manager cannot be told: {error}");
        }
    }

    /// How long the guard may hang, where somebody waits for its signs of life.
    fn allowed(&self, ties: &Ties) -> Option<Duration> {
        let usual = self.usual.filter(|_| ties.stage == Stage::Ready)?;
        Some(if ties.count == 0 { usual } else { usual.min(TIED_WATCHDOG) })
    }
}

/// The service manager of this process, if there is one.
#[derive(Debug)]
pub(crate) struct Manager {
    is_there: bool,
    /// How often it is told that the guard lives, if it asks for that.
    period: Option<Duration>,
    due: Instant,
}

impl Manager {
    /// The one that started this process, as the environment tells. To be called by a `main`.
    pub(crate) fn of_this_process() -> Self {
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
        // Three times within what is allowed, also while that is less than usual.
        let allowed = sd_notify::watchdog_enabled().filter(|_| is_there);
        let period = allowed.map(|allowed| allowed.min(TIED_WATCHDOG) / 3);
        Self { is_there, period, due: Instant::now() }
    }

    /// None: nothing is told to anybody.
    pub(crate) fn none() -> Self {
        Self { is_there: false, period: None, due: Instant::now() }
    }

    pub(crate) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    pub(crate) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stops what it runs")]);
    }

    /// Tells that the guard lives, if it is time, after `pulse` has been through what must never hang.
    pub(crate) fn beat(&mut self, pulse: impl FnOnce()) {
        if let Some(period) = self.period
            && Instant::now() >= self.due
        {
            pulse();
            self.tell(&[NotifyState::Watchdog]);
            self.due = Instant::now() + period;
        }
    }

    /// How long nothing has to be told.
    pub(crate) fn patience(&self) -> Option<Timespec> {
        self.period?;
        let left = self.due.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() })
    }

    /// A service manager that does not listen must not end the guard.
    fn tell(&self, state: &[NotifyState<'_>]) {
        if self.is_there
            && let Err(error) = sd_notify::notify(state)
        {
            log!("the service manager cannot be told: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_of_a_guard_that_is_not_ready_and_what_is_tied_by_then_counts() {
        let usual = Duration::from_secs(20);
        let watchdog = Watchdog { usual: Some(usual), ties: Mutex::default() };
        let allowed = || watchdog.allowed(&watchdog.ties.lock().unwrap());
        watchdog.tighten();
        assert_eq!(allowed(), None, "it takes up a deadline, and tells nobody that it lives");
        watchdog.begin();
        assert_eq!(allowed(), Some(TIED_WATCHDOG));
        watchdog.tighten();
        watchdog.relax();
        assert_eq!(allowed(), Some(TIED_WATCHDOG), "another fleet is tied still");
        watchdog.relax();
        assert_eq!(allowed(), Some(usual));
    }
}
