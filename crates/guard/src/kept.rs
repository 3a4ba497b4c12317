//! Starting a command with its keeper: what a run of a service and a run of a hook have in common.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_model::BootId;

use crate::config::StopSignal;
use crate::keeper::{PROGRAM, Report};
use crate::log::log;
use crate::output::Reading;
use crate::process::{self, RUN_ID_VARIABLE};
use crate::record::{ProcessKey, RunRecord};
use crate::timer::boot_time;

/// The keeper says two short lines.
const REPORT_BYTES_MAX: u64 = 4 * 1024;

const FALLBACK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Numbers the runs of this process; together with its own number and its time that is a mark no other run has.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// A command to be kept.
pub(crate) struct Plan<'a> {
    pub(crate) exec_shim: &'a Path,
    pub(crate) boot_id: &'a BootId,
    pub(crate) stop_signal: StopSignal,
    pub(crate) command: &'a [String],
    pub(crate) folder: &'a Path,
    /// The whole environment but for `PATH` and the mark.
    pub(crate) env: Environment,
}

/// The environment of a command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(pub(crate) BTreeMap<String, OsString>);

/// A command that runs, and its keeper.
pub(crate) struct Kept {
    child: Child,
    output: Option<PipeReader>,
    /// By what the run is found again.
    pub(crate) record: RunRecord,
}

/// A new mark for the processes of one run.
pub(crate) fn run_id() -> String {
    format!("{}-{}-{}", std::process::id(), boot_time().0, RUNS.fetch_add(1, Ordering::Relaxed))
}

impl Environment {
    /// What the configuration says.
    pub(crate) fn of(env: &BTreeMap<String, String>) -> Self {
        Self(env.iter().map(|(name, value)| (name.clone(), value.into())).collect())
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }
}

impl Kept {
    /// Starts the keeper, which starts the command.
    pub(crate) fn start(plan: &Plan<'_>, run_id: String, cgroup: Option<&Path>) -> io::Result<Self> {
        let (output, write_end) = io::pipe()?;
        let mut command = Command::new(plan.exec_shim);
        command
            .arg0(PROGRAM)
            .arg("keep-service")
            .arg(format!("--stop-signal={}", plan.stop_signal.as_str()))
            .args(cgroup.map(|path| [OsString::from("--cgroup"), path.into()]).into_iter().flatten())
            .arg("--")
            .args(plan.command)
            .current_dir(plan.folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| FALLBACK_PATH.into()))
            .envs(&plan.env.0)
            .env(RUN_ID_VARIABLE, &run_id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(write_end);
        // The command holds the pipe's write end: it must go, or the output would never end.
        let child = command.spawn();
        drop(command);
        let child = child?;
        let keeper = key_of(child.id());
        let cgroup = cgroup.map(Path::to_owned);
        let record = RunRecord { boot_id: plan.boot_id.clone(), run_id, keeper, main: None, cgroup };
        Ok(Self { child, output: Some(output), record })
    }

    /// The keeper's stdin, whose end makes it kill everything. `None` the second time.
    pub(crate) const fn take_control(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// What the keeper reports until it ends. For one caller.
    pub(crate) fn reports(&mut self) -> impl Iterator<Item = Report> + use<> {
        let stdout: Option<ChildStdout> = self.child.stdout.take();
        stdout
            .into_iter()
            .flat_map(|stdout| BufReader::new(stdout.take(REPORT_BYTES_MAX)).lines().map_while(Result::ok))
            .filter_map(|line| serde_json::from_str(&line).ok())
    }

    /// Begins to read the output. Nothing the second time, and where no thread can be started.
    pub(crate) fn read_output(&mut self, name: &str, log: &Path) -> Option<Reading> {
        let output = self.output.take()?;
        let reading = Reading::begin(output, format!("output {name}"), log);
        reading.inspect_err(|error| log!("{name}: the output is lost: {error}")).ok()
    }

    /// Waits for the keeper. Its report has ended, so it has ended or is about to; killing it again is harmless.
    pub(crate) fn bury(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills the run and all its descendants.
    pub(crate) fn kill(&mut self, patience: Duration) -> Result<(), String> {
        drop(self.child.stdin.take());
        let killed = process::kill_run(&self.record, patience);
        self.bury();
        killed
    }
}

fn key_of(pid: u32) -> ProcessKey {
    let pid = i32::try_from(pid).expect("Linux process numbers are below 2^22");
    process::find(pid).map_or(ProcessKey { pid, start_ticks: 0 }, |found| found.key)
}
