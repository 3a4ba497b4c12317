//! The thread that notices what nobody asked for: a unit that ended, or that systemd has started again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::{Shared, Start, groups};
use crate::log::log;
use crate::protocol::{Event, ExitKind, ServiceState};
use crate::timer::boot_time;

/// How often it looks. Each look reads one small file; systemd is asked only when something seems to have changed, or ...
const INTERVAL: Duration = Duration::from_millis(250);

/// ... every so many looks.
const ASK_EVERY: u32 = 8;

/// Whether the thread runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Watcher {
    #[default]
    Absent,
    Present,
}

/// Starts the thread, if it does not run yet. It ends with the guard.
pub(super) fn ensure(shared: &Arc<Shared>) {
    let mut status = shared.lock();
    if status.watcher == Watcher::Present {
        return;
    }
    let weak = Arc::downgrade(shared);
    let name = format!("units {}", shared.setup.fleet);
    match thread::Builder::new().name(name).spawn(move || watch(&weak)) {
        Ok(_) => status.watcher = Watcher::Present,
        // The agent asks for the state by itself, only later.
        Err(error) => log!("fleet {}: its units are not watched: {error}", shared.setup.fleet),
    }
}

fn watch(shared: &Weak<Shared>) {
    let (mut looks, mut seen) = (0_u32, None);
    loop {
        thread::sleep(INTERVAL);
        let Some(shared) = shared.upgrade() else { return };
        looks = looks.wrapping_add(1);
        let (starting, main, places) = {
            let status = shared.lock();
            (status.start == Start::UnderWay, status.main, status.groups.clone().unwrap_or_default())
        };
        if starting {
            continue;
        }
        let populated = groups::populated(&places);
        if seen == Some(populated) && looks % ASK_EVERY != 0 {
            continue;
        }
        seen = Some(populated);
        compare(&shared, main.map(|(pid, _)| pid));
    }
}

/// Tells of a main process that is another one than the last one seen.
fn compare(shared: &Shared, before: Option<u32>) {
    let now = shared.state();
    let mut status = shared.lock();
    // What was asked for meanwhile is not news.
    if status.start == Start::UnderWay || status.main.map(|(pid, _)| pid) != before {
        return;
    }
    let fleet = shared.setup.fleet.clone();
    let again = "systemd has started the service again";
    let ended = |status| format!("the service ended by itself ({status})");
    let (event, told) = match (before, now) {
        (Some(old), ServiceState::Running { pid, started_boot_ms }) if old != pid => {
            status.main = Some((pid, started_boot_ms));
            (Event::ServiceRestarted { fleet, pid }, format!("{again}, as process {pid}"))
        }
        (None, ServiceState::Running { pid, started_boot_ms }) => {
            status.main = Some((pid, started_boot_ms));
            return;
        }
        (Some(_), ServiceState::Exited { status: how, .. }) => {
            status.main = None;
            (Event::ServiceExited { fleet, status: how, restart_boot_ms: None }, ended(how))
        }
        (Some(_), ServiceState::Stopped) => {
            status.main = None;
            let how = ExitKind::Unknown;
            (Event::ServiceExited { fleet, status: how, restart_boot_ms: None }, ended(how))
        }
        (Some(_), ServiceState::Restarting { status: how, .. }) => {
            status.main = None;
            let event = Event::ServiceExited { fleet, status: how, restart_boot_ms: Some(boot_time()) };
            (event, ended(how))
        }
        (_, ServiceState::Running { .. } | ServiceState::Starting) | (None, _) => return,
    };
    drop(status);
    shared.setup.generation.fetch_add(1, Ordering::Relaxed);
    log!("fleet {}: {told}", shared.setup.fleet);
    (shared.setup.events)(event);
}
