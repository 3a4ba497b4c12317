//! Which deployments are under way, and who waits for them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_model::Digest;

use crate::uplink::Uplink;

/// Who is told how a deployment ends.
#[derive(Debug, Clone)]
pub(super) struct Waiter {
    pub(super) request: u64,
    pub(super) uplink: Uplink,
}

/// Whether a request is the first for its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// It has to be carried out.
    First,
    /// It waits for the one that runs.
    Joined,
}

/// The deployments under way, by release.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<BTreeMap<Digest, Vec<Waiter>>>);

impl Running {
    pub(super) fn enter(&self, release: Digest, waiter: Waiter) -> Entered {
        let mut running = self.lock();
        let waiting = running.entry(release).or_default();
        waiting.push(waiter);
        if waiting.len() == 1 { Entered::First } else { Entered::Joined }
    }

    /// Ends a deployment. Whoever asks from now on begins another.
    pub(super) fn leave(&self, release: Digest) -> Vec<Waiter> {
        self.lock().remove(&release).unwrap_or_default()
    }

    pub(super) fn waiting(&self, release: Digest) -> Vec<Waiter> {
        self.lock().get(&release).cloned().unwrap_or_default()
    }

    /// The stream of the last request: of several, the one that is most likely to stand.
    pub(super) fn newest_uplink(&self, release: Digest) -> Option<Uplink> {
        self.lock().get(&release).and_then(|waiting| waiting.last()).map(|waiter| waiter.uplink.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Vec<Waiter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tonic::transport::Endpoint;

    use super::*;

    #[tokio::test]
    async fn the_same_release_is_deployed_once_and_all_who_wait_are_told() {
        let uplink =
            || Uplink::new(mpsc::channel(1).0, Endpoint::from_static("http://nowhere").connect_lazy());
        let (first, second) = (uplink(), uplink());
        let running = Running::default();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(running.enter(one, Waiter { request: 1, uplink: first.clone() }), Entered::First);
        assert_eq!(running.enter(two, Waiter { request: 2, uplink: first.clone() }), Entered::First);
        assert_eq!(running.enter(one, Waiter { request: 3, uplink: second.clone() }), Entered::Joined);
        assert!(running.newest_uplink(one).is_some_and(|newest| newest.is(&second)));
        let told: Vec<u64> = running.leave(one).iter().map(|waiter| waiter.request).collect();
        assert_eq!(told, [1, 3]);
        assert_eq!(running.enter(one, Waiter { request: 4, uplink: first }), Entered::First);
    }
}
