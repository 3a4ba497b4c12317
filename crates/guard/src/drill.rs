//! The drill: how long a fence takes on this host, measured on what nobody uses.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use muster_model::{Digest, Epoch};
use signal_hook::consts::SIGTERM;

use crate::config::{ServiceConfig, StopSignal};
use crate::error::GuardError;
use crate::fleet::Fleet;
use crate::hooks::Hook;
use crate::kept::run_id;
use crate::log::log;
use crate::protocol::{DRILL_RUNS_MAX, Drill, DriverKind, KillScope, Opened};
use crate::record::RecordFile;
use crate::service::Service as _;
use crate::supervised::{Supervised, SupervisedSetup};

/// The keeper, the scratch service and its child.
const FAMILY: usize = 3;

/// How long the scratch service may take to start its child.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// How long a fence may take before the drill is given up.
const FENCE_PATIENCE: Duration = Duration::from_secs(60);

/// A scratch service that nobody stops ends by itself.
const SCRATCH_LIFE: Duration = Duration::from_secs(120);

const POLL_INTERVAL: Duration = Duration::from_millis(2);

impl Fleet {
    /// Measures `runs` fences by the code of the real one, beside whatever the fleet serves.
    pub(crate) fn drill(&self, runs: u32) -> Result<Drill, GuardError> {
        if !(1..=DRILL_RUNS_MAX).contains(&runs) {
            return Err(GuardError::OutOfBounds { detail: format!("runs is from 1 to {DRILL_RUNS_MAX}") });
        }
        let Ok(_drilling) = self.drilling.try_lock() else {
            return Err(GuardError::Busy { fleet: self.name.clone(), with: "another drill" });
        };
        let (mut longest, mut kill) = (Duration::ZERO, None);
        for _ in 0..runs {
            let (took, scope) = self.drill_once()?;
            longest = longest.max(took);
            // The weaker of all runs is what can be relied on.
            kill = kill.max(scope);
        }
        let driver = self.service.as_ref().map_or(DriverKind::Link, |service| service.kind());
        let unguarded = self.service.as_ref().map_or(Ok(Duration::ZERO), |service| service.unguarded())?;
        let on_fence = self.hooks.bound(Hook::OnFence);
        Ok(Drill {
            driver,
            kill,
            runs,
            fence_ms: whole_ms(longest.max(unguarded)),
            on_fence_ms_max: whole_ms(on_fence),
            drain_ms_max: whole_ms(self.drain_max()),
        })
    }

    fn drill_once(&self) -> Result<(Duration, Option<KillScope>), GuardError> {
        let link = self.link.scratch();
        link.take_away()?;
        let scratch = self.service.as_ref().map(|_| self.scratch_service()).transpose()?;
        link.make(Digest::of(b"drill"), &|| Ok(()))?.map_err(GuardError::lease(&self.name))?;
        let scope = scratch.as_ref().map(|service| match service.family() {
            (_, true) => KillScope::Cgroup,
            (_, false) => KillScope::Keeper,
        });
        let begun = Instant::now();
        if let Some(service) = &scratch {
            service.kill(FENCE_PATIENCE)?;
        }
        link.take_away()?;
        let took = begun.elapsed();
        if let Some(service) = &scratch {
            service.stop(Duration::ZERO, None)?;
        }
        Ok((took, scope))
    }

    /// Starts a service that ignores SIGTERM and has a child in a session of its own.
    fn scratch_service(&self) -> Result<Supervised, GuardError> {
        let id = format!("drill-{}", run_id());
        let program = self.hooks.exec_shim.to_string_lossy().into_owned();
        let beside = |suffix: &str| self.hooks.log.with_file_name(format!("{id}.{suffix}"));
        let service = Supervised::new(SupervisedSetup {
            host: self.hooks.host.clone(),
            fleet: self.name.clone(),
            config: ServiceConfig {
                command: vec![program, "drill-service".to_owned(), "--children=1".to_owned()],
                env: std::collections::BTreeMap::new(),
                stop_signal: StopSignal::Term,
                stop_timeout_ms: 0,
                start_grace_ms: 0,
                restart_delay_ms: 0,
            },
            boot_id: self.boot_id.clone(),
            exec_shim: self.hooks.exec_shim.clone(),
            // It is never there, so a scratch service that ends is not started again.
            permit: RecordFile::new(beside("permit.json")),
            run_record: RecordFile::new(beside("run.json")),
            output: self.hooks.log.with_file_name("drill.log"),
            generation: Arc::new(AtomicU64::new(0)),
            events: Arc::new(|_| {}),
        });
        let opened = Opened { epoch: Epoch(0), digest: Digest::of(b"drill") };
        service.start(opened, std::path::PathBuf::from("/"), &|| Ok(()))?;
        let deadline = Instant::now() + START_PATIENCE;
        while service.family().0 < FAMILY {
            if Instant::now() >= deadline {
                service.stop(Duration::ZERO, None)?;
                let detail = "the drill's service does not start its child".to_owned();
                return Err(GuardError::StartFailed { fleet: self.name.clone(), detail });
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(service)
    }
}

/// The verb `drill-service`: a service that is as hard to stop as one can be without privileges.
pub(crate) fn serve(children: u32) -> std::io::Result<()> {
    signal_hook::flag::register(SIGTERM, Arc::default())?;
    let _child = match children {
        0 => {
            // What is in a session of its own is in no process group of the service's.
            rustix::process::setsid()?;
            None
        }
        _ => Some(
            std::process::Command::new("/proc/self/exe")
                .arg("drill-service")
                .arg(format!("--children={}", children - 1))
                .spawn()?,
        ),
    };
    let end = Instant::now() + SCRATCH_LIFE;
    while Instant::now() < end {
        thread::park_timeout(SCRATCH_LIFE);
    }
    log!("nobody stopped the drill's service");
    Ok(())
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}
