//! Telling somebody: a command of the coordinator's own configuration is run for what the audit log says.
//!
//! The command and its arguments are fixed by the local file; the entry comes on its standard input, as it stands in the log. Commands run one
//! after the other, each for a bounded time. None holds up what it tells of: where too many wait, those that follow are not told, and
//! the log says how many.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_audit::{Entry, Kind};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;

/// Entries that wait for the command.
const WAITING_MAX: usize = 256;
const TIMEOUT_MS_MAX: u64 = 60_000;

/// Which command is run, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifyConfig {
    /// The program, as an absolute path, and its arguments.
    pub command: Vec<String>,
    /// How long one run may take, in milliseconds (default 10,000); then it is killed.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Of which kinds of entries it is told (default: drift, rollouts that have ended, and all overrides).
    #[serde(default = "default_kinds")]
    pub kinds: Vec<Kind>,
}

const fn default_timeout_ms() -> u64 {
    10_000
}

fn default_kinds() -> Vec<Kind> {
    let is_told = |kind: &Kind| kind.is_override() || matches!(kind, Kind::Drift | Kind::Ended);
    Kind::ALL.iter().copied().filter(is_told).collect()
}

impl NotifyConfig {
    /// Checks everything that the types do not say.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Some(program) = self.command.first() else { return Err("its command is empty".to_owned()) };
        if !Path::new(program).is_absolute() {
            return Err(format!("`{program}` is not an absolute path"));
        }
        if self.timeout_ms == 0 || self.timeout_ms > TIMEOUT_MS_MAX {
            return Err(format!("timeout_ms is {}; at least 1, at most {TIMEOUT_MS_MAX}", self.timeout_ms));
        }
        Ok(())
    }
}

/// Where entries go that somebody is to be told of.
#[derive(Debug, Clone)]
pub(crate) struct Notifier {
    kinds: Arc<[Kind]>,
    waiting: mpsc::Sender<Vec<u8>>,
    missed: Arc<AtomicU64>,
}

impl Notifier {
    /// Runs the command for what it is handed, until it is dropped.
    pub(crate) fn spawn(config: NotifyConfig) -> Self {
        let (waiting, inbox) = mpsc::channel(WAITING_MAX);
        let (kinds, missed) = (config.kinds.as_slice().into(), Arc::new(AtomicU64::new(0)));
        tokio::spawn(run_all(config, inbox, Arc::clone(&missed)));
        Self { kinds, waiting, missed }
    }

    /// Takes note of an entry that is in the log. Never waits.
    pub(crate) fn tell(&self, entry: &Entry, line: &[u8]) {
        if self.kinds.contains(&entry.kind) && self.waiting.try_send(line.to_vec()).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn run_all(config: NotifyConfig, mut inbox: mpsc::Receiver<Vec<u8>>, missed: Arc<AtomicU64>) {
    // Not its arguments, which may be secret.
    let command = config.command.first().cloned().unwrap_or_default();
    while let Some(line) = inbox.recv().await {
        if let Err(reason) = run(&config, &line).await {
            tracing::warn!(command, reason, "nobody was told of an audit entry");
        }
        let missed = missed.swap(0, Ordering::Relaxed);
        if missed > 0 {
            tracing::warn!(command, missed, "too many audit entries to tell somebody of each");
        }
    }
}

/// One run. What it writes to its standard error goes where the coordinator's goes.
async fn run(config: &NotifyConfig, line: &[u8]) -> Result<(), String> {
    let (program, arguments) = config.command.split_first().expect("an empty command is refused");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", path)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let finished = async {
        let mut stdin = child.stdin.take().expect("it is a pipe");
        match stdin.write_all(line).await.and(stdin.shutdown().await) {
            // It need not read what it is told.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            Ok(()) | Err(_) => drop(stdin),
        }
        child.wait().await
    };
    let timeout = Duration::from_millis(config.timeout_ms);
    let ended = tokio::time::timeout(timeout, finished).await;
    // With all that it has started: what is left of a run would add up.
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("it failed: {status}")),
        Ok(Err(error)) => Err(format!("it cannot be told: {error}")),
        Err(_) => Err(format!("it took longer than {timeout:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use muster_model::UnixTime;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn config(script: &str, timeout_ms: u64) -> NotifyConfig {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        NotifyConfig { command, timeout_ms, kinds: default_kinds() }
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < end, "waited in vain: {what}");
            tokio::task::yield_now().await;
        }
    }

    fn entry(kind: Kind, detail: &str) -> Entry {
        Entry::new(kind, "coordinator", UnixTime(7)).saying(detail)
    }

    #[tokio::test]
    async fn what_is_wanted_is_told_in_order_and_on_standard_input() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let notifier = Notifier::spawn(config(&format!("cat >> {0}; echo >> {0}", out.display()), 10_000));
        for (kind, detail) in [(Kind::Drift, "bin/web"), (Kind::Phase, "arming"), (Kind::Halt, "smoke")] {
            let entry = entry(kind, detail);
            notifier.tell(&entry, &entry.to_bytes());
        }
        let read = || fs::read_to_string(&out).unwrap_or_default();
        until("two are told", || read().lines().count() == 2).await;
        let told: Vec<Entry> = read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(told, [entry(Kind::Drift, "bin/web"), entry(Kind::Halt, "smoke")]);
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_what_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid.display());
        let refused = run(&config(&script, 500), b"{}").await.unwrap_err();
        assert!(refused.contains("took longer than"), "{refused}");
        let pid = fs::read_to_string(pid).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let is_gone = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        until("its child is gone", is_gone).await;
        let failed = run(&config("exit 3", 10_000), b"{}").await.unwrap_err();
        assert!(failed.contains("exit status: 3"), "{failed}");
        let missing = NotifyConfig { command: vec!["/no/such/program".to_owned()], ..config("", 1) };
        assert!(run(&missing, b"{}").await.unwrap_err().contains("cannot be started"));
    }

    #[tokio::test]
    async fn more_than_can_be_told_is_counted_and_holds_nobody_up() {
        let (waiting, _inbox) = mpsc::channel(1);
        let missed = Arc::new(AtomicU64::new(0));
        let notifier = Notifier { kinds: [Kind::Drift].into(), waiting, missed: Arc::clone(&missed) };
        let entry = entry(Kind::Drift, "again");
        for _ in 0..3 {
            notifier.tell(&entry, b"{}");
        }
        assert_eq!(missed.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn mistakes_are_named() {
        let good = config("true", 10_000);
        assert_eq!(good.check(), Ok(()));
        for (bad, why) in [
            (NotifyConfig { command: Vec::new(), ..good.clone() }, "command is empty"),
            (NotifyConfig { command: vec!["tell".to_owned()], ..good.clone() }, "not an absolute path"),
            (NotifyConfig { timeout_ms: 0, ..good.clone() }, "timeout_ms is 0"),
            (NotifyConfig { timeout_ms: 60_001, ..good }, "timeout_ms is 60001"),
        ] {
            assert!(bad.check().unwrap_err().contains(why), "{why}");
        }
    }
}
