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
    ties: Mutex<usize>,
}

impl Watchdog {
    /// That of this process, as the environment tells.
    pub(crate) fn of_this_process() -> Self {
        Self { usual: sd_notify::watchdog_enabled(), ties: Mutex::new(0) }
    }

    /// How long a guard that hangs is left alone while units are tied to it; `None`: for ever.
    pub(crate) fn while_tied(&self) -> Option<Duration> {
        self.usual.map(|usual| usual.min(TIED_WATCHDOG))
    }

    /// One more fleet's units are tied.
    pub(crate) fn tighten(&self) {
        self.set(|ties| ties + 1);
    }

    /// One fewer.
    pub(crate) fn relax(&self) {
        self.set(|ties| ties.saturating_sub(1));
    }

    fn set(&self, change: impl FnOnce(usize) -> usize) {
        let mut ties = self.ties.lock().unwrap_or_else(PoisonError::into_inner);
        *ties = change(*ties);
        let Some(usual) = self.usual else { return };
        let allowed = if *ties == 0 { usual } else { usual.min(TIED_WATCHDOG) };
        let allowed = u32::try_from(allowed.as_micros()).unwrap_or(u32::MAX);
        if let Err(error) = sd_notify::notify(&[NotifyState::WatchdogUsec(allowed), NotifyState::Watchdog]) {
            log!("the service manager cannot be told: {error}");
        }
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
