//! Seeing what state a rollout is in, as fast as can be: a host is armed for a fraction of a second.

use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use muster_mtls::Role;
use muster_proto::v1;
use muster_proto::v1::Phase;
use muster_proto::v1::host_mode::Kind;

use super::plan::When;
use crate::harness::{Caller, Fleet};

/// A coordinator that takes longer is suspended, or gone.
const PATIENCE: Duration = Duration::from_millis(300);

/// Asks the coordinator all the time what state the fleet is in.
pub(super) struct Watch {
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    rollout: Mutex<Rollout>,
    changed: Condvar,
}

/// What was seen of the newest rollout that the plan knows of.
#[derive(Default)]
struct Rollout {
    /// The last one before it.
    after_k: u64,
    reached: BTreeSet<When>,
    /// Whoever ordered it waits no more.
    over: bool,
}

impl Watch {
    /// Between two questions to the coordinator.
    pub(super) const PAUSE: Duration = Duration::from_millis(8);

    pub(super) fn begin(fleet: &Fleet) -> Self {
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = channel();
        let credentials = fleet.credentials(Role::Viewer, "watch");
        let seen = Arc::clone(&shared);
        let address = fleet.address();
        let watch = move || {
            let mut caller = None;
            while stopped.recv_timeout(Self::PAUSE) == Err(RecvTimeoutError::Timeout) {
                caller = caller.or_else(|| Caller::connect_to(&address, &credentials).ok());
                match caller.as_ref().and_then(|caller| caller.status_within(PATIENCE)) {
                    Some(status) => seen.see(&status),
                    None => caller = None,
                }
            }
        };
        Self { shared, stop: Some(stop), thread: Some(thread::spawn(watch)) }
    }

    /// From now on it is about the first rollout after this one.
    pub(super) fn order(&self, after_k: u64) {
        *self.shared.lock() =
            Rollout { after_k, reached: BTreeSet::from([When::Before, When::Ordered]), over: false };
    }

    /// Nobody needs to wait for a state any more that was not reached.
    pub(super) fn over(&self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }

    /// Whether a rollout was seen to begin.
    pub(super) fn has_begun(&self) -> bool {
        self.shared.lock().reached.contains(&When::Preparing)
    }

    /// Whether nobody waits for the rollout any more.
    pub(super) fn is_over(&self) -> bool {
        self.shared.lock().over
    }

    /// Waits for a state, and says whether it was reached while somebody waited for the rollout.
    pub(super) fn wait(&self, when: When) -> bool {
        let waiting = |rollout: &mut Rollout| !rollout.over && !rollout.reached.contains(&when);
        let rollout = self.shared.changed.wait_while(self.shared.lock(), waiting).unwrap();
        rollout.reached.contains(&when)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over();
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Rollout> {
        self.rollout.lock().unwrap()
    }

    fn see(&self, status: &v1::FleetStatus) {
        let mut rollout = self.lock();
        let Some(newest) = newest(status, rollout.after_k) else { return };
        let all = [When::Preparing, When::Arming, When::Armed, When::Decided, When::Closed, When::Opened];
        rollout.reached.extend(all.into_iter().filter(|when| *when <= newest));
        self.changed.notify_all();
    }
}

/// The last state that a rollout after `after_k` has reached.
fn newest(status: &v1::FleetStatus, after_k: u64) -> Option<When> {
    // Of one that is over already no state is known but that it had begun.
    let k = status.rollout.as_ref().map_or(status.last_k, |rollout| rollout.k);
    if k <= after_k {
        return None;
    }
    let modes = status.hosts.iter().filter_map(|host| host.mode.as_ref()).filter(|mode| mode.k > after_k);
    let of_hosts = modes.filter_map(|mode| match mode.kind() {
        Kind::Armed => Some(When::Armed),
        Kind::Closed => Some(When::Closed),
        Kind::Serve | Kind::Unspecified => None,
    });
    let of_phase = match status.phase() {
        Phase::Preparing => Some(When::Preparing),
        Phase::Arming => Some(When::Arming),
        Phase::Decided => Some(When::Decided),
        Phase::Opened => Some(When::Opened),
        Phase::Settled | Phase::Unspecified => None,
    };
    of_hosts.chain(of_phase).max().or(Some(When::Preparing))
}
