//! A supervised service: at most one run of one command, watched by a thread for as long as it is wanted.
//!
//! The guard does not start the command itself. It starts a *keeper* (`muster-guard keep-service`, see [`crate::keeper`]), which
//! starts the command and outlives it until every descendant is gone. What the two say to each other goes over the
//! keeper's stdin and stdout; the service's output goes through a pipe to the guard, which keeps it in a bounded log.
//!
//! A service that fails while it is wanted is started again after a delay that doubles with every failure (1 s to
//! 30 s by default), at most [`RESTARTS_PER_MINUTE_MAX`] times in a minute, and only while its permit stands. One that exits
//! with code 0 is taken to be done, and is not started again.
//!
//! There are two ways to stop. [`Service::stop`] asks, waits and then kills. [`Service::kill`] is the fence: it takes
//! effect whatever else is under way, waits for nobody and reads no disk.

mod restarts;
mod run;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use muster_model::{BootId, BootTime, FleetName, HostName};

use crate::cgroup::Cgroup;
use crate::config::ServiceConfig;
use crate::error::GuardError;
use crate::keeper::{self, Asking};
use crate::lease::LeaseRefusal;
use crate::log::log;
use crate::process;
use crate::protocol::{DriverKind, Event, ExitKind, Opened, ServiceState};
use crate::record::{Permit, ProcessKey, RecordFile, RunRecord};
use crate::service::{Members, Service};
use crate::timer::boot_time;
use restarts::Restarts;

/// A service that fails more often than this is left alone.
pub(crate) const RESTARTS_PER_MINUTE_MAX: usize = 5;

/// How long the kernel may take to be rid of killed processes.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How long the keeper may take to say that it has started the command.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// What a service needs to know of the guard it belongs to.
pub(crate) struct SupervisedSetup {
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
pub(crate) struct Supervised {
    shared: Arc<Shared>,
}

/// What is to run.
#[derive(Debug, Clone)]
struct Launch {
    opened: Opened,
    folder: PathBuf,
}

struct Shared {
    setup: SupervisedSetup,
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
    run: Run,
}

/// The processes of the run that is under way, as far as they are known.
#[derive(Debug, Clone)]
enum Run {
    None,
    /// The keeper is being made.
    Beginning,
    Known(RunRecord),
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

impl Supervised {
    pub(crate) fn new(setup: SupervisedSetup) -> Self {
        let status = Status {
            intent: Intent::Stop,
            watcher: Watcher::Absent,
            phase: Phase::Stopped,
            control: None,
            output_tail: String::new(),
            run: Run::None,
        };
        Self { shared: Arc::new(Shared { setup, status: Mutex::new(status), changed: Condvar::new() }) }
    }

    /// How many processes the run has now, and whether they are in a control group of their own.
    pub(crate) fn family(&self) -> (usize, bool) {
        let run = self.shared.lock().run.clone();
        match run {
            Run::None | Run::Beginning => (0, false),
            Run::Known(run) => {
                let grouped = run.cgroup.clone().map(Cgroup::at).is_some_and(|group| group.is_populated());
                (process::members(&run).map_or(0, |members| members.len()), grouped)
            }
        }
    }
}

impl Service for Supervised {
    fn kind(&self) -> DriverKind {
        DriverKind::Supervise
    }

    fn state(&self) -> ServiceState {
        let status = self.shared.lock();
        match status.phase {
            Phase::Stopped => ServiceState::Stopped,
            Phase::Starting => ServiceState::Starting,
            Phase::Running { main, started, .. } => match process::alive(main) {
                None => ServiceState::Exited { status: ExitKind::Unknown, at_boot_ms: boot_time() },
                Some(_) if status.intent == Intent::Try => ServiceState::Starting,
                Some(_) => ServiceState::Running { pid: main.pid.unsigned_abs(), started_boot_ms: started },
            },
            Phase::Waiting { status, until } => ServiceState::Restarting { status, at_boot_ms: until },
            Phase::Exited { status, at } => ServiceState::Exited { status, at_boot_ms: at },
        }
    }

    /// The keeper is the guard's, not the service's.
    fn members(&self) -> Result<Members, GuardError> {
        let run = self.shared.lock().run.clone();
        let Run::Known(run) = run else { return Ok(Members::default()) };
        let listed = process::members(&run).map_err(GuardError::io("list", Path::new("/proc")))?;
        let pids = listed.iter().filter(|it| it.key != run.keeper).map(|it| it.key.pid).collect();
        let mains = run.main.iter().map(|main| main.pid.unsigned_abs()).collect();
        Ok(Members { by_guard: true, mains, pids })
    }

    /// On an error nothing of it is left. `may` is asked under the lock that [`Service::kill`] takes as well.
    fn start(
        &self,
        opened: Opened,
        folder: PathBuf,
        may: &dyn Fn() -> Result<(), LeaseRefusal>,
    ) -> Result<BootTime, GuardError> {
        self.shared.sweep()?;
        let mut status = self.shared.lock();
        may().map_err(GuardError::lease(&self.shared.setup.fleet))?;
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
            self.stop(Duration::ZERO, None)?;
            Err(error)
        })
    }

    fn stop(&self, limit: Duration, ask: Option<&dyn Fn(i32)>) -> Result<(), GuardError> {
        let deadline = Instant::now() + limit + KILL_PATIENCE;
        let mut status = self.shared.lock();
        status.intent = Intent::Stop;
        let asked = match (ask, status.phase) {
            (Some(ask), Phase::Running { main, .. }) => Some((ask, main.pid)),
            (Some(_) | None, _) => None,
        };
        status.ask_to_stop(asked.map_or(Asking::Keeper, |_| Asking::Hook), limit);
        self.shared.changed.notify_all();
        if let Some((ask, pid)) = asked {
            drop(status);
            ask(pid);
            status = self.shared.lock();
        }
        status = self.shared.await_end(status, deadline.saturating_duration_since(Instant::now()));
        if status.watcher == Watcher::Present {
            // The keeper hangs, or cannot kill.
            drop(status);
            self.kill(KILL_PATIENCE)?;
            status = self.shared.await_end(self.shared.lock(), KILL_PATIENCE);
        }
        if status.watcher == Watcher::Present {
            return Err(self.shared.not_stopped("its keeper does not end".to_owned()));
        }
        status.phase = Phase::Stopped;
        drop(status);
        self.shared.sweep()
    }

    fn kill(&self, patience: Duration) -> Result<(), GuardError> {
        let deadline = Instant::now() + patience;
        let mut status = self.shared.lock();
        status.intent = Intent::Stop;
        // The keeper kills as well, and knows all its descendants.
        status.control = None;
        self.shared.changed.notify_all();
        let beginning = |status: &mut Status| matches!(status.run, Run::Beginning);
        status = self
            .shared
            .changed
            .wait_timeout_while(status, patience, beginning)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        let run = match &status.run {
            Run::None => return Ok(()),
            Run::Beginning => {
                return Err(self.shared.not_stopped("its process is still being made".to_owned()));
            }
            Run::Known(run) => run.clone(),
        };
        drop(status);
        let left = deadline.saturating_duration_since(Instant::now());
        process::kill_run(&run, left).map_err(|left| self.shared.not_stopped(left))
    }

    fn settle(&self, patience: Duration) {
        let mut status = self.shared.await_end(self.shared.lock(), patience);
        if status.watcher == Watcher::Absent && status.intent == Intent::Stop {
            status.phase = Phase::Stopped;
        }
    }

    /// Kills what an earlier guard process has left behind: a supervised service does not outlive its guard.
    fn recover(&self, _permitted: Option<Opened>) -> Result<(), GuardError> {
        let shared = &self.shared;
        match shared.setup.run_record.read() {
            Ok(Some(record)) if record.boot_id == shared.setup.boot_id => {
                shared.lock().run = Run::Known(record);
            }
            Ok(Some(_) | None) => {}
            // Written as a whole, so this is not ours; there is nothing in it by which to find a process.
            Err(GuardError::Corrupt { path, .. }) => {
                log!("fleet {}: dropping {}, which is no record", shared.setup.fleet, path.display());
            }
            Err(error) => return Err(error),
        }
        shared.sweep()?;
        shared.setup.run_record.remove().map(|_| ())
    }

    fn go_down(&self, limit: Duration) -> Result<(), GuardError> {
        self.stop(limit, None)
    }

    /// It never outlives its guard.
    fn bind(&self) -> Result<(), GuardError> {
        Ok(())
    }

    fn release(&self) {}

    fn ends_with_guard(&self) -> bool {
        self.state().may_be_alive()
    }

    /// The keeper reads the end of the guard's pipe, and a guard that hangs is what the drill has measured.
    fn unguarded(&self) -> Result<Duration, GuardError> {
        Ok(Duration::ZERO)
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
    fn await_start(&self) -> Result<BootTime, GuardError> {
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
                return Err(status.early_end(&self.setup.fleet));
            }
            // A kill may have come, and the end of the processes not yet be noticed: it is not kept then.
            if let Phase::Running { started, .. } = status.phase
                && ready <= now
                && status.intent == Intent::Try
            {
                status.intent = Intent::Keep;
                return Ok(started);
            }
            if patience_end <= now {
                return Err(self.start_failed(&"its keeper does not answer"));
            }
            let left = match status.intent {
                Intent::Try => ready.min(patience_end) - now,
                Intent::Keep | Intent::Stop => patience_end - now,
            };
            status = self.changed.wait_timeout(status, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Kills whatever is left of the run, and forgets the run once nothing is.
    fn sweep(&self) -> Result<(), GuardError> {
        let run = self.lock().run.clone();
        let record = match run {
            Run::None => return Ok(()),
            Run::Beginning => return Err(self.not_stopped("its process is still being made".to_owned())),
            Run::Known(record) => record,
        };
        process::kill_run(&record, KILL_PATIENCE).map_err(|left| self.not_stopped(left))?;
        if let Some(group) = record.cgroup.map(Cgroup::at) {
            group.remove();
        }
        self.lock().run = Run::None;
        self.setup.run_record.remove().map(|_| ())
    }

    fn permitted(&self, launch: &Launch) -> bool {
        let permit = self.setup.permit.read().ok().flatten();
        permit.is_some_and(|p| {
            p.boot_id == self.setup.boot_id && p.opened() == launch.opened && p.doubt.is_none()
        })
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
    fn ask_to_stop(&mut self, asking: Asking, limit: Duration) {
        if let Some(control) = &mut self.control {
            let _ = keeper::ask_to_stop(control, asking, limit);
        }
    }

    /// The error for a service that has ended before it had started.
    fn early_end(&self, fleet: &FleetName) -> GuardError {
        let told = |how: &str| match self.output_tail.trim() {
            "" => how.to_owned(),
            tail => format!("{how}; it wrote: {tail}"),
        };
        let fleet = fleet.clone();
        match self.phase {
            Phase::Exited { status: ExitKind::Unknown, .. }
            | Phase::Stopped
            | Phase::Starting
            | Phase::Waiting { .. }
            | Phase::Running { .. } => GuardError::StartFailed { fleet, detail: told("it could not be run") },
            Phase::Exited { status: status @ (ExitKind::Code(_) | ExitKind::Signal(_)), .. } => {
                GuardError::ServiceExited { fleet, detail: told(&status.to_string()) }
            }
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
        let until = boot_time().after(delay);
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
    status.phase = Phase::Exited { status: ended, at: boot_time() };
    drop(status);
    shared.setup.generation.fetch_add(1, Ordering::Relaxed);
    shared.changed.notify_all();
}
