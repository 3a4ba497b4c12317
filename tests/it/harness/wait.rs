//! Waiting for a condition, however it comes about.

use std::time::{Duration, Instant};

/// Longer than anything takes that works, on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const INTERVAL: Duration = Duration::from_millis(25);

/// Waits until `condition` gives something, and panics with `what` if it does not by then.
#[track_caller]
pub(crate) fn wait_until<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(INTERVAL);
    }
}

/// The same for a condition that is or is not so.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_until(what, PATIENCE, || condition().then_some(()));
}
