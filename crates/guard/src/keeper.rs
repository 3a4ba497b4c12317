//! The keeper of one run of a service, and the last step before the command: the two hidden verbs of the guard's program.
//!
//! `keep-service` starts the command and stays until every process that descends from it is gone. It is the command's
//! *child subreaper*: a descendant whose parent dies becomes the keeper's child, whatever session or group it moved
//! to. So "no child left" means "no descendant left", as seen by the kernel and not by a search. Its stdin comes
//! from the guard: `stop MS` asks the service to stop, `wait MS` says that somebody else has asked it, and either kills what
//! is left after that time; the end of stdin means that the guard wants it gone now or is gone itself, however it went,
//! and kills everything at once.
//!
//! `exec-service` is the command before it becomes the command: it opens a session of its own, asks the kernel to kill
//! it when the keeper dies, and executes. (The kernel drops that request when a set-user-id program is executed; the
//! keeper and the next guard still find such a process.) Both exist because a process can only arrange these things for
//! itself, and doing so between `fork` and `exec` would need unsafe code.

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, set_child_subreaper,
    set_parent_process_death_signal, setsid, wait,
};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::config::StopSignal;
use crate::log::log;
use crate::process;
use crate::protocol::ExitKind;
use crate::record::ProcessKey;

/// The name under which the hidden verbs show in a list of processes.
pub(crate) const PROGRAM: &str = "muster-guard";

const STOP_WORD: &str = "stop";
const WAIT_WORD: &str = "wait";

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Between two rounds of killing: a process may fork while it is being killed.
const KILL_INTERVAL: Duration = Duration::from_millis(20);

/// What the keeper tells the guard, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// The command runs, or is about to.
    Started { main: ProcessKey },
    /// Nothing is left; this is how the main process ended.
    Ended { status: ExitKind },
}

/// What the keeper is told on its command line.
#[derive(Debug)]
pub(crate) struct Keep {
    pub(crate) stop_signal: StopSignal,
    /// The control group that is made for this run.
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) command: Vec<OsString>,
}

/// Who has asked the service to stop, or is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asking {
    /// The keeper, by the stop signal.
    Keeper,
    /// A hook.
    Hook,
}

enum Order {
    Stop(Asking, Duration),
    GuardGone,
    MainEnded,
}

/// Tells a keeper to stop its service within `limit`.
pub(crate) fn ask_to_stop(mut control: impl Write, asking: Asking, limit: Duration) -> io::Result<()> {
    let word = match asking {
        Asking::Keeper => STOP_WORD,
        Asking::Hook => WAIT_WORD,
    };
    control.write_all(format!("{word} {}\n", limit.as_millis()).as_bytes())?;
    control.flush()
}

/// The verb `keep-service`. Returns once nothing of the service is left.
pub(crate) fn keep(plan: Keep) -> io::Result<()> {
    // A session of its own keeps the keeper out of reach of a terminal's Ctrl-C.
    setsid()?;
    let group = plan.cgroup.clone().map(Cgroup::at);
    if let Some(Err(error)) = group.as_ref().map(Cgroup::join) {
        // What does not run in a group of its own is found by its keeper.
        log!("cannot join the control group: {error}");
    }
    set_child_subreaper(Some(getpid()))?;
    let main = start(&plan.command)?;
    report(&Report::Started { main });
    let (orders, received) = channel();
    let listener = orders.clone();
    thread::Builder::new().spawn(move || listen(&listener))?;
    thread::Builder::new().spawn(move || stop(&plan, &received))?;
    let status = reap(main.pid, &orders)?;
    if let Some(group) = group {
        // The guard does the same, unless it is gone.
        group.leave();
    }
    report(&Report::Ended { status });
    Ok(())
}

/// The verb `exec-service`: becomes the command. Returns only if that failed.
pub(crate) fn exec(parent: i32, command: &[OsString]) -> io::Error {
    match become_service(parent) {
        Err(error) => error,
        Ok(()) => match command.split_first() {
            None => io::Error::other("no command"),
            Some((program, args)) => {
                let error = Command::new(program).args(args).exec();
                io::Error::new(error.kind(), format!("cannot execute {}: {error}", program.display()))
            }
        },
    }
}

fn become_service(parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The keeper may have died before the request above: then nobody would be told any more.
    if getppid() != Pid::from_raw(parent) {
        return Err(io::Error::other("the keeper is gone"));
    }
    setsid()?;
    be_ordinary_to_the_oom_killer();
    Ok(())
}

/// The guard is spared when memory runs out. A service that inherits that would be spared as well, at the cost of all others.
fn be_ordinary_to_the_oom_killer() {
    let inherited = std::fs::read_to_string(OOM_SCORE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if inherited.is_some_and(|score| score < 0) {
        // To be less precious is always allowed; where `/proc` cannot be written, the service runs all the same.
        let _ = std::fs::write(OOM_SCORE, "0");
    }
}

fn start(command: &[OsString]) -> io::Result<ProcessKey> {
    let child = Command::new("/proc/self/exe")
        .arg0(PROGRAM)
        .arg("exec-service")
        .arg(format!("--parent-pid={}", getpid().as_raw_pid()))
        .arg("--")
        .args(command)
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .spawn()?;
    let pid = i32::try_from(child.id()).expect("Linux process numbers are below 2^22");
    // A child that has ended already is still there, as a zombie, until `reap` has begun.
    let found =
        process::find(pid).ok_or_else(|| io::Error::other("the service's process is not in /proc"))?;
    Ok(found.key)
}

/// Collects every child until none is left. As the subreaper this process is the last parent of all descendants, so
/// that point is reached exactly when they are all gone.
fn reap(main: i32, orders: &Sender<Order>) -> io::Result<ExitKind> {
    let mut ended = ExitKind::Unknown;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_pid() == main => {
                ended = exit_kind(status);
                // The receiver lives as long as the process.
                let _ = orders.send(Order::MainEnded);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(ended),
            Err(error) => return Err(error.into()),
        }
    }
}

fn listen(orders: &Sender<Order>) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let Some((word, limit)) = line.split_once(' ') else { continue };
        let asking = match word {
            STOP_WORD => Asking::Keeper,
            WAIT_WORD => Asking::Hook,
            _ => continue,
        };
        let limit = limit.parse().map_or(Duration::ZERO, Duration::from_millis);
        let _ = orders.send(Order::Stop(asking, limit));
    }
    let _ = orders.send(Order::GuardGone);
}

/// Waits for the first reason to stop, then does so; ends with the process.
fn stop(plan: &Keep, orders: &Receiver<Order>) {
    match orders.recv() {
        Ok(Order::Stop(asking, limit)) => {
            if asking == Asking::Keeper {
                signal_all(plan.stop_signal.signal());
            }
            wait_out(orders, limit);
        }
        Ok(Order::GuardGone | Order::MainEnded) | Err(_) => {}
    }
    loop {
        signal_all(Signal::KILL);
        thread::sleep(KILL_INTERVAL);
    }
}

/// Gives all descendants their time to stop, unless the guard goes meanwhile.
fn wait_out(orders: &Receiver<Order>, patience: Duration) {
    let deadline = Instant::now() + patience;
    loop {
        match orders.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Order::Stop(..) | Order::MainEnded) => {}
            Ok(Order::GuardGone) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn signal_all(signal: Signal) {
    // What cannot be listed or signalled now is tried again in the next round; the guard bounds the rounds.
    for process in
        process::all().map(|all| process::descendants(getpid().as_raw_pid(), &all)).unwrap_or_default()
    {
        let _ = process::signal(process.key, signal);
    }
}

/// A guard that is gone cannot be told; the end of stdin takes care of that.
fn report(report: &Report) {
    let line = serde_json::to_string(report).expect("a report of plain fields is always JSON");
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

fn exit_kind(status: WaitStatus) -> ExitKind {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitKind::Code(code),
        (None, Some(signal)) => ExitKind::Signal(signal),
        (None, None) => ExitKind::Unknown,
    }
}

impl StopSignal {
    /// The name in the configuration and on the keeper's command line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Hup => "HUP",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
        }
    }

    const fn signal(self) -> Signal {
        match self {
            Self::Term => Signal::TERM,
            Self::Int => Signal::INT,
            Self::Quit => Signal::QUIT,
            Self::Hup => Signal::HUP,
            Self::Usr1 => Signal::USR1,
            Self::Usr2 => Signal::USR2,
        }
    }
}
