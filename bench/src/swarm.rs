//! Many hosts in one process: what `muster host issue` made for each, run as their programs would run it.
//!
//! Every agent has its own certificate, stream, journal and blobs, and every guard its own socket, state and threads; only the
//! process is shared. The coordinator is not here: it is a program of its own, so that what it costs can be seen.

use std::fs;
use std::io::{Write as _, stdout};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use muster_agent::{Agent, AgentConfig, AgentError, Parts};
use muster_daemon::{boot_time, raise_open_files, shutdown_on_signals};
use muster_guard::{Armed, Drill, FleetState, Guard, GuardConfig, GuardError, Opened, RunningGuard, spawn};
use muster_model::{BootTime, Digest, Epoch, FleetName, HaltId, RolloutId};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// Each agent keeps a thread that listens to its guard. For all other work that blocks there are so many beside: were there
/// enough for all hosts at once, those that wait for the network would hardly ever get a core.
const WORKING_THREADS: usize = 4;

/// How long work that was begun may go on after everything else has ended.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// When guards were told of renewals, and until when they then held: the lease's length before that, the agent had asked.
#[derive(Debug, Default)]
struct Renewals(Mutex<Vec<(BootTime, BootTime)>>);

/// A guard that notes when it is told of a renewal, and otherwise passes everything on.
struct Noting {
    guard: Arc<dyn Guard>,
    renewals: Arc<Renewals>,
}

/// Runs all hosts of `folder` until SIGTERM, then writes to `renewals` when each guard was told of a renewal and until when it
/// then held.
pub(crate) fn run(folder: &Path, renewals: &Path) -> anyhow::Result<()> {
    let open_files_max = raise_open_files();
    let noted = Arc::new(Renewals::default());
    let hosts = hosts(folder)?;
    let (mut guards, mut agents) = (Vec::new(), Vec::new());
    for host in &hosts {
        guards.push(guard(host)?);
        agents.push(agent(host, &noted)?);
    }
    let runtime = runtime(hosts.len())?;
    let outcome: Result<(), AgentError> = runtime.block_on(async {
        let shutdown = shutdown_on_signals().map_err(|source| AgentError::Daemon { source })?;
        let mut tasks = JoinSet::new();
        for agent in agents {
            tasks.spawn(agent.run(shutdown.clone()));
        }
        say(&json!({ "hosts": hosts.len(), "open_files_max": open_files_max }));
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(|source| AgentError::Task { source })??;
        }
        Ok(())
    });
    runtime.shutdown_timeout(END_TIMEOUT);
    let stopped: Result<Vec<()>, GuardError> = guards.into_iter().map(RunningGuard::stop).collect();
    noted.write(renewals)?;
    outcome?;
    stopped.map(drop).context("stop the guards")
}

/// The folders of all hosts, in the order of their names.
fn hosts(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut hosts: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .with_context(|| format!("read {}", folder.display()))?;
    hosts.sort();
    Ok(hosts)
}

fn guard(host: &Path) -> anyhow::Result<RunningGuard> {
    let settings = GuardConfig::load(&host.join("guard.toml"))?;
    spawn(&settings).with_context(|| format!("start the guard of {}", host.display()))
}

fn agent(host: &Path, noted: &Arc<Renewals>) -> anyhow::Result<Agent> {
    let config = AgentConfig::load(Some(&host.join("agent.toml")))?;
    let parts = Parts::load(&config)?;
    let guard = Noting { guard: Arc::clone(&parts.guard), renewals: Arc::clone(noted) };
    // All hosts share these cores: one thread of each keeps them busy.
    let parts = Parts { guard: Arc::new(guard), jobs: NonZeroUsize::MIN, ..parts };
    Agent::new(parts).with_context(|| format!("start the agent of {}", host.display()))
}

fn runtime(hosts: usize) -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(hosts + WORKING_THREADS)
        .build()
        .context("start the runtime")
}

fn say(value: &serde_json::Value) {
    // Whoever started this may not be listening.
    let _ = writeln!(stdout().lock(), "{value}");
}

impl Renewals {
    fn note(&self, deadline: BootTime) {
        let told = boot_time();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((told, deadline));
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: String =
            noted.iter().map(|(told, deadline)| format!("{} {}\n", told.0, deadline.0)).collect();
        fs::write(path, lines).with_context(|| format!("write {}", path.display()))
    }
}

impl Guard for Noting {
    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.guard.status(fleet)
    }

    fn close(&self, fleet: &FleetName, drain: Option<Duration>) -> Result<FleetState, GuardError> {
        self.guard.close(fleet, drain)
    }

    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError> {
        self.guard.open(fleet, epoch, digest)
    }

    fn arm(&self, fleet: &FleetName, arm: Armed) -> Result<FleetState, GuardError> {
        self.guard.arm(fleet, arm)
    }

    fn renew(&self, fleet: &FleetName, k: RolloutId, deadline: BootTime) -> Result<FleetState, GuardError> {
        let state = self.guard.renew(fleet, k, deadline)?;
        self.renewals.note(deadline);
        Ok(state)
    }

    fn disarm(&self, fleet: &FleetName, k: RolloutId) -> Result<FleetState, GuardError> {
        self.guard.disarm(fleet, k)
    }

    fn decide(
        &self,
        fleet: &FleetName,
        k: RolloutId,
        at: BootTime,
        to: Opened,
    ) -> Result<FleetState, GuardError> {
        self.guard.decide(fleet, k, at, to)
    }

    fn quiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.guard.quiesce(fleet)
    }

    fn unquiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.guard.unquiesce(fleet)
    }

    fn drill(&self, fleet: &FleetName, runs: u32) -> Result<Drill, GuardError> {
        self.guard.drill(fleet, runs)
    }

    fn halt(&self, fleet: &FleetName, reason: &str) -> Result<FleetState, GuardError> {
        self.guard.halt(fleet, reason)
    }

    fn resume(&self, fleet: &FleetName, halt: HaltId) -> Result<FleetState, GuardError> {
        self.guard.resume(fleet, halt)
    }
}
