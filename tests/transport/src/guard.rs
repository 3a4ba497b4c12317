//! The guard of a simulated host: the real one's leases, permits and links, under the host's clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_daemon::Surroundings as _;
use muster_guard::{
    Armed, Drill, Driver, DriverKind, FleetConfig, FleetState, Guard, GuardConfig, GuardError, HooksConfig,
    InProcess, LeaseState, Opened,
};
use muster_model::{BootTime, Digest, Epoch, FleetName, HaltId, HostName, RolloutId};
use tokio::sync::Notify;

use crate::machine::Simulated;
use crate::papers::fleet;

/// How often the guard looks at the clock.
const TICK: Duration = Duration::from_millis(1);

/// What every drill finds: what it really takes would be another number in every run.
const FENCE_MS: u64 = 3;

/// Whether a guard keeps what it promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fencing {
    /// It does.
    Kept,
    /// Planted: its clock stands still, so that no deadline ever passes.
    Forgotten,
}

/// A guard with its folder.
pub(crate) struct SimulatedGuard {
    inner: InProcess,
    link: PathBuf,
    /// Rises with everything that may change what is served.
    acts: AtomicU64,
    /// A deadline may run.
    restless: Notify,
}

impl SimulatedGuard {
    pub(crate) fn new(host: &HostName, folder: &Path, clock: Arc<Simulated>, fencing: Fencing) -> Arc<Self> {
        let of_fleet = folder.join("fleets").join(fleet().as_str());
        let link = of_fleet.join("current");
        let config = GuardConfig {
            host: host.clone(),
            state_dir: folder.join("guard"),
            socket: folder.join("guard.sock"),
            exec_shim: None,
            allowed_uids: Vec::new(),
            fleets: vec![FleetConfig {
                name: fleet(),
                link: link.clone(),
                releases: of_fleet.join("releases"),
                driver: Driver::Link,
                hooks: HooksConfig::default(),
            }],
        };
        let start = clock.boot_time();
        let now = Arc::new(move || match fencing {
            Fencing::Kept => clock.boot_time(),
            Fencing::Forgotten => start,
        });
        let inner = InProcess::with_clock(&config.validate().unwrap(), Arc::new(|_| {}), now).unwrap();
        Arc::new(Self { inner, link, acts: AtomicU64::new(0), restless: Notify::new() })
    }

    /// Holds the deadlines, beside the agent and whatever becomes of it.
    pub(crate) async fn hold_deadlines(self: Arc<Self>) {
        loop {
            self.restless.notified().await;
            while self.is_restless() {
                self.act().do_duties();
                tokio::time::sleep(TICK).await;
            }
        }
    }

    /// How often something was done that may have changed what is served.
    pub(crate) fn acts(&self) -> u64 {
        self.acts.load(Ordering::Relaxed)
    }

    fn act(&self) -> &InProcess {
        self.acts.fetch_add(1, Ordering::Relaxed);
        &self.inner
    }

    fn is_restless(&self) -> bool {
        match self.inner.status(&fleet()).unwrap().lease {
            LeaseState::Free => false,
            LeaseState::Armed(_) | LeaseState::Decided(_) => true,
            LeaseState::Fenced(fence) => fence.ended_boot_ms.is_none(),
        }
    }

    /// What is served at this moment: what the link leads to.
    pub(crate) fn serves(&self) -> Option<String> {
        let target = fs::read_link(&self.link).ok()?;
        Some(target.file_name().expect("a release's folder").to_string_lossy().into_owned())
    }

    /// Whether a deadline runs.
    pub(crate) fn is_armed(&self) -> bool {
        matches!(self.inner.status(&fleet()).unwrap().lease, LeaseState::Armed(_))
    }

    /// Whether a deadline has passed, and nothing was opened since.
    pub(crate) fn is_fenced(&self) -> bool {
        self.inner.status(&fleet()).unwrap().fenced().is_some()
    }
}

impl Guard for SimulatedGuard {
    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.inner.status(fleet)
    }

    fn close(&self, fleet: &FleetName, drain: Option<Duration>) -> Result<FleetState, GuardError> {
        self.act().close(fleet, drain)
    }

    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError> {
        self.act().open(fleet, epoch, digest)
    }

    fn arm(&self, fleet: &FleetName, arm: Armed) -> Result<FleetState, GuardError> {
        let armed = self.act().arm(fleet, arm);
        self.restless.notify_one();
        armed
    }

    fn renew(&self, fleet: &FleetName, k: RolloutId, deadline: BootTime) -> Result<FleetState, GuardError> {
        self.act().renew(fleet, k, deadline)
    }

    fn disarm(&self, fleet: &FleetName, k: RolloutId) -> Result<FleetState, GuardError> {
        self.act().disarm(fleet, k)
    }

    fn decide(
        &self,
        fleet: &FleetName,
        k: RolloutId,
        at: BootTime,
        to: Opened,
    ) -> Result<FleetState, GuardError> {
        self.act().decide(fleet, k, at, to)
    }

    fn quiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.inner.quiesce(fleet)
    }

    fn unquiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.inner.unquiesce(fleet)
    }

    fn drill(&self, _: &FleetName, runs: u32) -> Result<Drill, GuardError> {
        let (driver, kill) = (DriverKind::Link, None);
        Ok(Drill { driver, kill, runs, fence_ms: FENCE_MS, on_fence_ms_max: 0, drain_ms_max: 0 })
    }

    fn halt(&self, fleet: &FleetName, reason: &str) -> Result<FleetState, GuardError> {
        let halted = self.act().halt(fleet, reason);
        self.restless.notify_one();
        halted
    }

    fn resume(&self, fleet: &FleetName, halt: HaltId) -> Result<FleetState, GuardError> {
        self.act().resume(fleet, halt)
    }
}
