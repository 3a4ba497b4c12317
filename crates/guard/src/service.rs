//! A supervised service: at most one run of one command, watched by a thread for as long as it is wanted.
//!
//! The guard does not start the command itself. It starts a *keeper* (`muster-guard keep-service`, see [`keeper`]), which
//! starts the command and outlives it until every descendant is gone. What the two say to each other goes over the
//! keeper's stdin and stdout; the service's output goes through a pipe to the guard, which keeps it in a bounded log.
//!
//! A service that fails while it is wanted is started again after a delay that doubles with every failure (1 s to
//! 30 s by default), at most [`RESTARTS_PER_MINUTE_MAX`] times in a minute, and only while its permit stands. One that exits
//! with code 0 is taken to be done, and is not started again.

pub(crate) mod keeper;
mod output;
mod restarts;
mod run;

use std::fmt;
use std::path::PathBuf;
use std::process::ChildStdin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use muster_model::{BootId, BootTime, FleetName, HostName};

use crate::config::ServiceConfig;
use crate::error::GuardError;
use crate::log::log;
use crate::process;
use crate::protocol::{Event, ExitKind, Opened, ServiceState};
use crate::record::{Permit, ProcessKey, RecordFile, RunRecord};
use restarts::Restarts;

/// A service that fails more often than this is left alone.
pub(crate) const RESTARTS_PER_MINUTE_MAX: usize = 5;

/// How long the kernel may take to be rid of killed processes.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How long the keeper may take to say that it has started the command.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// What a service needs to know of the guard it belongs to.
pub(crate) struct ServiceSetup {
    pub(crate) host: HostName,
    pub(crate) fleet: FleetName,
    pub(crate) config: ServiceConfig,
    pub(crate) boot_id: BootId,
    pub(crate) exec_shim: PathBuf,
    pub(crate) permit: RecordFile<Permit>,
    pub(crate) run_record: RecordFile<RunRecord>,
    pub(crate) output: PathBuf,
    pub(crate) generation: Arc<AtomicU64>,
    pub(crate) events: Arc<dyn Fn(Event) + Send + Sync>,
}

/// One fleet's service.
#[derive(Clone)]
pub(crate) struct Service {
    shared: Arc<Shared>,
}

/// What is to run.
#[derive(Debug, Clone)]
struct Launch {
    opened: Opened,
    folder: PathBuf,
}

struct Shared {
    setup: ServiceSetup,
    status: Mutex<Status>,
    changed: Condvar,
}

struct Status {
    intent: Intent,
    watcher: Watcher,
    phase: Phase,
    /// The keeper's stdin. Its end makes the keeper kill the service.
    control: Option<ChildStdin>,
    /// The last of what the service wrote.
    output_tail: String,
}

/// What the watching thread is to do about a run that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    /// A first start: its failure is reported to the one who asked, not repaired.
    Try,
    Keep,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watcher {
    Absent,
    Present,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Stopped,
    Starting,
    Running { main: ProcessKey, started: BootTime, seen: Instant },
    Waiting { status: ExitKind, until: BootTime },
    Exited { status: ExitKind, at: BootTime },
}

impl Service {
    pub(crate) fn new(setup: ServiceSetup) -> Self {
        let status = Status {
            intent: Intent::Stop,
            watcher: Watcher::Absent,
            phase: Phase::Stopped,
            control: None,
            output_tail: String::new(),
        };
        Self { shared: Arc::new(Shared { setup, status: Mutex::new(status), changed: Condvar::new() }) }
    }

    /// What the service does now. A process that is gone is not shown as running, whoever has noticed.
    pub(crate) fn state(&self) -> ServiceState {
        let status = self.shared.lock();
        match status.phase {
            Phase::Stopped => ServiceState::Stopped,
            Phase::Starting => ServiceState::Starting,
            Phase::Running { main, started, .. } => match process::alive(main) {
                None => ServiceState::Exited { status: ExitKind::Unknown, at_boot_ms: process::boot_time() },
                Some(_) if status.intent == Intent::Try => ServiceState::Starting,
                Some(_) => ServiceState::Running { pid: main.pid.unsigned_abs(), started_boot_ms: started },
            },
            Phase::Waiting { status, until } => ServiceState::Restarting { status, at_boot_ms: until },
            Phase::Exited { status, at } => ServiceState::Exited { status, at_boot_ms: at },
        }
    }

    /// Starts the command in `folder` and waits until it has lived through its grace. On an error nothing of it is left.
    pub(crate) fn start(&self, opened: Opened, folder: PathBuf) -> Result<(), GuardError> {
        self.shared.sweep()?;
        let mut status = self.shared.lock();
        if status.watcher == Watcher::Present {
            return Err(self.shared.not_stopped("an earlier run has not ended".to_owned()));
        }
        status.intent = Intent::Try;
        status.watcher = Watcher::Present;
        status.phase = Phase::Starting;
        status.output_tail.clear();
        drop(status);

        let shared = Arc::clone(&self.shared);
        let name = format!("service {}", self.shared.setup.fleet);
        let watch = move || watch(&shared, &Launch { opened, folder });
        if let Err(error) = thread::Builder::new().name(name).spawn(watch) {
            let mut status = self.shared.lock();
            status.watcher = Watcher::Absent;
            status.phase = Phase::Stopped;
            return Err(self.shared.start_failed(&error));
        }
        self.shared.await_start().or_else(|error| {
            self.stop()?;
            Err(error)
        })
    }

    /// Stops the service and answers once nothing of it is left. Stopping what is stopped only looks again.
    pub(crate) fn stop(&self) -> Result<(), GuardError> {
        let mut status = self.shared.lock();
        status.intent = Intent::Stop;
        status.ask_to_stop();
        self.shared.changed.notify_all();
        let patience = Duration::from_millis(self.shared.setup.config.stop_timeout_ms) + KILL_PATIENCE;
        status = self.shared.await_end(status, patience);
        if status.watcher == Watcher::Present {
            // The keeper hangs, or cannot kill. Without it the kernel kills the main process, and the sweep the rest.
            status.control = None;
            drop(status);
            self.shared.sweep()?;
            status = self.shared.await_end(self.shared.lock(), KILL_PATIENCE);
        }
        if status.watcher == Watcher::Present {
            return Err(self.shared.not_stopped("its keeper does not end".to_owned()));
        }
        status.phase = Phase::Stopped;
        drop(status);
        self.shared.sweep()
    }

    /// Kills what an earlier guard process has left behind.
    pub(crate) fn recover(&self) -> Result<(), GuardError> {
        self.shared.sweep()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the watching thread has ended, and with it the run.
    fn await_end<'a>(&'a self, status: MutexGuard<'a, Status>, patience: Duration) -> MutexGuard<'a, Status> {
        let present = |status: &mut Status| status.watcher == Watcher::Present;
        self.changed.wait_timeout_while(status, patience, present).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until the first run has lived through its grace, and makes it one to be kept.
    fn await_start(&self) -> Result<(), GuardError> {
        let grace = Duration::from_millis(self.setup.config.start_grace_ms);
        let patience_end = Instant::now() + START_PATIENCE + grace;
        let mut status = self.lock();
        loop {
            let now = Instant::now();
            let ready = match status.phase {
                Phase::Running { seen, .. } => seen + grace,
                Phase::Starting | Phase::Stopped | Phase::Waiting { .. } | Phase::Exited { .. } => {
                    patience_end
                }
            };
            if status.watcher == Watcher::Absent {
                return Err(self.start_failed(&status.ending()));
            }
            if let Phase::Running { .. } = status.phase
                && ready <= now
            {
                status.intent = Intent::Keep;
                return Ok(());
            }
            if patience_end <= now {
                return Err(self.start_failed(&"its keeper does not answer"));
            }
            let left = ready.min(patience_end) - now;
            status = self.changed.wait_timeout(status, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Kills whatever is left of the recorded run, and forgets the run once nothing is.
    fn sweep(&self) -> Result<(), GuardError> {
        let record = match self.setup.run_record.read() {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(()),
            Err(GuardError::Corrupt { path, .. }) => {
                // Written as a whole, so this is not ours; there is nothing in it by which to find a process.
                log!("fleet {}: dropping {}, which is no record", self.setup.fleet, path.display());
                return self.setup.run_record.remove().map(|_| ());
            }
            Err(error) => return Err(error),
        };
        if record.boot_id == self.setup.boot_id {
            process::kill_run(&record, KILL_PATIENCE).map_err(|left| self.not_stopped(left))?;
        }
        self.setup.run_record.remove().map(|_| ())
    }

    fn permitted(&self, launch: &Launch) -> bool {
        let permit = self.setup.permit.read().ok().flatten();
        permit.is_some_and(|p| p.boot_id == self.setup.boot_id && p.opened() == launch.opened)
    }

    fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
        self.setup.generation.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn emit(&self, event: Event) {
        (self.setup.events)(event);
    }

    fn start_failed(&self, detail: &dyn fmt::Display) -> GuardError {
        GuardError::StartFailed { fleet: self.setup.fleet.clone(), detail: detail.to_string() }
    }

    fn not_stopped(&self, detail: String) -> GuardError {
        GuardError::NotStopped { fleet: self.setup.fleet.clone(), detail }
    }
}

impl Status {
    /// A keeper that is gone cannot be asked, and need not be.
    fn ask_to_stop(&mut self) {
        if let Some(control) = &mut self.control {
            let _ = keeper::ask_to_stop(control);
        }
    }

    fn ending(&self) -> String {
        let status = match self.phase {
            Phase::Exited { status, .. } | Phase::Waiting { status, .. } => status.to_string(),
            Phase::Stopped | Phase::Starting | Phase::Running { .. } => "it could not be run".to_owned(),
        };
        match self.output_tail.trim() {
            "" => status,
            tail => format!("{status}; it wrote: {tail}"),
        }
    }
}

/// The watching thread: runs the command until it is not wanted any more, ends well, or fails too often.
fn watch(shared: &Arc<Shared>, launch: &Launch) {
    let mut restarts = Restarts::new(Duration::from_millis(shared.setup.config.restart_delay_ms));
    let mut first = true;
    loop {
        let began = Instant::now();
        let status = run::run(shared, launch, first);
        first = false;
        let intent = {
            let mut now = shared.lock();
            now.control = None;
            now.intent
        };
        if intent != Intent::Keep {
            return end_watch(shared, status);
        }
        let fleet = shared.setup.fleet.clone();
        let delay = if status == ExitKind::Code(0) { None } else { restarts.next(began, Instant::now()) };
        let Some(delay) = delay.filter(|_| shared.permitted(launch)) else {
            log!("fleet {fleet}: the service ended ({status}) and is not started again");
            shared.emit(Event::ServiceExited { fleet, status, restart_boot_ms: None });
            return end_watch(shared, status);
        };
        log!("fleet {fleet}: the service ended ({status}) and is started again in {} ms", delay.as_millis());
        let until = process::boot_time().after(delay);
        shared.set_phase(Phase::Waiting { status, until });
        shared.emit(Event::ServiceExited { fleet, status, restart_boot_ms: Some(until) });
        if !still_wanted_after(shared, delay) || !shared.permitted(launch) {
            return end_watch(shared, status);
        }
        shared.set_phase(Phase::Starting);
    }
}

fn still_wanted_after(shared: &Shared, delay: Duration) -> bool {
    let wanted = |status: &mut Status| status.intent == Intent::Keep;
    let status = shared.lock();
    let (status, _) =
        shared.changed.wait_timeout_while(status, delay, wanted).unwrap_or_else(PoisonError::into_inner);
    status.intent == Intent::Keep
}

fn end_watch(shared: &Shared, ended: ExitKind) {
    let mut status = shared.lock();
    status.watcher = Watcher::Absent;
    status.phase = Phase::Exited { status: ended, at: process::boot_time() };
    drop(status);
    shared.setup.generation.fetch_add(1, Ordering::Relaxed);
    shared.changed.notify_all();
}
