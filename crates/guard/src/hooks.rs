//! Running the hooks of a fleet, each bounded in time and in what it may write.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use muster_model::{BootId, Digest, FleetName, HostName, RolloutId};

use crate::config::{HookConfig, HooksConfig, StopSignal};
use crate::error::GuardError;
use crate::keeper::Report;
use crate::kept::{self, Environment, Kept, Plan};
use crate::protocol::{ExitKind, Opened};

/// How soon a hook that is not wanted any more is killed.
const TICK: Duration = Duration::from_millis(20);

/// How long the kernel may take to be rid of a hook.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// What a hook has written is read within this time of its end, unless the machine stands still. While a fleet is closed or dark nobody
/// waits longer for it.
const OUTPUT_PATIENCE: Duration = Duration::from_millis(200);

/// A rehearsal holds nothing up, and whoever asked for it wants to know why it failed.
const REHEARSAL_OUTPUT_PATIENCE: Duration = Duration::from_secs(10);

/// One of the hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Quiesce,
    Unquiesce,
    BeforeClose,
    Stop,
    OnFence,
    AfterOpen,
    Rehearse,
    Health,
}

/// The hooks of one fleet, and what they need to run.
pub(crate) struct Hooks {
    pub(crate) host: HostName,
    pub(crate) fleet: FleetName,
    pub(crate) boot_id: BootId,
    pub(crate) exec_shim: PathBuf,
    pub(crate) config: HooksConfig,
    /// The service's.
    pub(crate) env: Environment,
    pub(crate) log: PathBuf,
}

/// What a hook is told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Context {
    pub(crate) opened: Option<Opened>,
    /// The release that is rehearsed, whatever is open.
    pub(crate) rehearsed: Option<Digest>,
    /// The release's folder, where it is run.
    pub(crate) folder: Option<PathBuf>,
    pub(crate) k: Option<RolloutId>,
    pub(crate) pid: Option<i32>,
}

impl Hooks {
    /// Runs a hook, if it is configured, for at most `limit` and only while `wanted` says so.
    pub(crate) fn run(
        &self,
        hook: Hook,
        context: &Context,
        limit: Duration,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), GuardError> {
        let Some(HookConfig { command, timeout_ms }) = self.find(hook) else { return Ok(()) };
        self.run_command(hook, command, context, limit.min(Duration::from_millis(*timeout_ms)), wanted)
    }

    /// How long the hook may take by its configuration; zero if there is none.
    pub(crate) fn bound(&self, hook: Hook) -> Duration {
        self.find(hook).map_or(Duration::ZERO, |config| Duration::from_millis(config.timeout_ms))
    }

    pub(crate) fn has(&self, hook: Hook) -> bool {
        self.find(hook).is_some()
    }

    /// Runs `command` as `hook`.
    pub(crate) fn run_command(
        &self,
        hook: Hook,
        command: &[String],
        context: &Context,
        limit: Duration,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), GuardError> {
        let failed = |detail: String| self.failed(hook, detail);
        let folder = context.folder.as_deref().filter(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
        let plan = Plan {
            exec_shim: &self.exec_shim,
            boot_id: &self.boot_id,
            stop_signal: StopSignal::Term,
            command,
            folder,
            env: self.environment(hook, context),
        };
        let deadline = Instant::now() + limit;
        let mut kept = Kept::start(&plan, kept::run_id(), None)
            .map_err(|error| failed(format!("cannot run it: {error}")))?;
        let output = kept.read_output(&format!("{} of fleet {}", hook, self.fleet), &self.log);
        let ended = await_end(&mut kept, deadline, wanted);
        let killed = kept.kill(KILL_PATIENCE);
        let said = || {
            let tail = output.map(|output| output.last_lines(hook.output_patience())).unwrap_or_default();
            if tail.trim().is_empty() { String::new() } else { format!("; it wrote: {}", tail.trim()) }
        };
        match (ended, killed) {
            (Ok(ExitKind::Code(0)), Ok(())) => Ok(()),
            (Ok(status), Ok(())) => Err(failed(format!("{status}{}", said()))),
            (Err(why), Ok(())) => Err(failed(format!("{why}{}", said()))),
            (Ok(_) | Err(_), Err(left)) => Err(failed(left)),
        }
    }

    fn find(&self, hook: Hook) -> Option<&HookConfig> {
        match hook {
            Hook::Quiesce => self.config.quiesce.as_ref(),
            Hook::Unquiesce => self.config.unquiesce.as_ref(),
            Hook::BeforeClose => self.config.before_close.as_ref(),
            Hook::Stop => self.config.stop.as_ref(),
            Hook::OnFence => self.config.on_fence.as_ref(),
            Hook::AfterOpen => self.config.after_open.as_ref(),
            Hook::Rehearse => self.config.rehearse.as_ref(),
            // Its check need not be a command.
            Hook::Health => None,
        }
    }

    fn environment(&self, hook: Hook, context: &Context) -> Environment {
        let mut env = self
            .env
            .clone()
            .with("MUSTER_HOST", self.host.as_str())
            .with("MUSTER_FLEET", self.fleet.as_str())
            .with("MUSTER_HOOK", hook.to_string());
        if let Some(Opened { epoch, digest }) = context.opened {
            env = env.with("MUSTER_EPOCH", epoch.to_string()).with("MUSTER_DIGEST", digest.to_string());
        }
        if let Some(digest) = context.rehearsed {
            env = env.with("MUSTER_DIGEST", digest.to_string());
        }
        if let Some(folder) = &context.folder {
            env = env.with("MUSTER_RELEASE", folder.as_os_str());
        }
        if let Some(k) = context.k {
            env = env.with("MUSTER_ROLLOUT", k.to_string());
        }
        if let Some(pid) = context.pid {
            env = env.with("MUSTER_PID", pid.to_string());
        }
        env
    }

    pub(crate) fn failed(&self, hook: Hook, detail: String) -> GuardError {
        GuardError::HookFailed { fleet: self.fleet.clone(), hook: hook.to_string(), detail }
    }
}

impl Hook {
    /// How long its output is read after its end, when it has failed.
    const fn output_patience(self) -> Duration {
        match self {
            Self::Rehearse => REHEARSAL_OUTPUT_PATIENCE,
            Self::Quiesce
            | Self::Unquiesce
            | Self::BeforeClose
            | Self::Stop
            | Self::OnFence
            | Self::AfterOpen
            | Self::Health => OUTPUT_PATIENCE,
        }
    }
}

/// Waits for the keeper's word that nothing of the command is left.
fn await_end(
    kept: &mut Kept,
    deadline: Instant,
    wanted: &dyn Fn() -> bool,
) -> Result<ExitKind, &'static str> {
    // Two lines come from the keeper; a channel of that size never holds the thread up that reads them.
    let (sender, receiver) = mpsc::sync_channel(2);
    let reports = kept.reports();
    let read = move || {
        for report in reports {
            if sender.send(report).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("hook".to_owned()).spawn(read).map_err(|_| "no thread can be started")?;
    // Bounded by the deadline.
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left.min(TICK)) {
            Ok(Report::Ended { status }) => return Ok(status),
            Ok(Report::Started { .. }) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(ExitKind::Unknown),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                return Err("it took too long and was killed");
            }
            Err(RecvTimeoutError::Timeout) if !wanted() => return Err("it was cut short"),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiesce => "quiesce",
            Self::Unquiesce => "unquiesce",
            Self::BeforeClose => "before_close",
            Self::Stop => "stop",
            Self::OnFence => "on_fence",
            Self::AfterOpen => "after_open",
            Self::Rehearse => "rehearse",
            Self::Health => "health",
        })
    }
}
