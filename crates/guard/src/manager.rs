//! What the service manager that started the guard is told: that it answers, that it lives, that it ends.

use std::time::{Duration, Instant};

use rustix::event::Timespec;
use sd_notify::NotifyState;

use crate::log::log;

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
        // Three times within what is allowed.
        let period = sd_notify::watchdog_enabled().filter(|_| is_there).map(|allowed| allowed / 3);
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
