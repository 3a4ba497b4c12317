//! A service of systemd's units.
//!
//! systemd starts and stops them, and tells how that went. What may be started is not left to it: before each start, whoever
//! asked for it, it runs `muster-guard permit` (the start gate, see [`gate`] and [`crate::permit`]).
//!
//! To kill, a fence asks nobody: it goes for the units' control groups, whose places were learnt when the units were looked at,
//! while systemd, the bus and the disk may hang. What systemd would start again by itself meets the gate, as the lease has
//! latched before anything is killed. Complete it is only once systemd has said that nothing follows.
//!
//! While a deadline runs, the units are tied to the guard by `BindsTo=`: a guard that is gone takes them with it. At any
//! other time its end, an upgrade say, stops nothing.

mod groups;
mod problem;
mod watch;

pub(crate) mod gate;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use muster_model::{BootId, BootTime, FleetName};
use muster_systemd::{ActiveState, Systemd, SystemdError, Unit, UnitName};
use serde::{Deserialize, Serialize};

use crate::config::UnitsConfig;
use crate::error::GuardError;
use crate::fleets::Events;
use crate::lease::LeaseRefusal;
use crate::log::log;
use crate::manager::Watchdog;
use crate::protocol::{DriverKind, ExitKind, Opened, ServiceState};
use crate::record::RecordFile;
use crate::service::{Members, Service};
use crate::timer::{boot_time, since_monotonic};
use gate::{Changed, Gate};

pub use problem::UnitProblem;

/// How long the kernel may take to be rid of killed processes.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a fence that is complete may wait for systemd to hear of it.
const FORGET_PATIENCE: Duration = Duration::from_millis(500);

/// How often a unit is looked at through its start grace.
const GRACE_INTERVAL: Duration = Duration::from_millis(25);

/// What a fence gives a start that is under way before it asks systemd to stop the unit.
const AT_ONCE_PATIENCE: Duration = Duration::from_millis(250);

/// How long a look at a unit may take that a renewal waits for.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);

/// After what time it is tried again to take a drop-in away.
const RELEASE_INTERVAL: Duration = Duration::from_secs(1);

/// What the units need to know of the guard they belong to.
pub(crate) struct UnitsSetup {
    pub(crate) fleet: FleetName,
    pub(crate) config: UnitsConfig,
    pub(crate) gate: Gate,
    pub(crate) boot_id: BootId,
    /// Where the units' processes were last.
    pub(crate) groups: RecordFile<GroupsRecord>,
    pub(crate) generation: Arc<AtomicU64>,
    pub(crate) events: Events,
    pub(crate) watchdog: Arc<Watchdog>,
}

/// Where the units' processes are, for a guard that is started while systemd does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupsRecord {
    /// Nothing of another boot is left.
    boot_id: BootId,
    groups: Vec<PathBuf>,
}

/// One fleet's units.
#[derive(Clone)]
pub(crate) struct Units {
    shared: Arc<Shared>,
}

struct Shared {
    setup: UnitsSetup,
    systemd: Systemd,
    status: Mutex<Status>,
    /// Held while the tie to the guard is changed.
    tying: Mutex<Tie>,
}

#[derive(Default)]
struct Status {
    start: Start,
    /// What the fence kills; `None` as long as systemd has not said where that is.
    groups: Option<Vec<PathBuf>>,
    /// The main process of the first unit, as last seen.
    main: Option<(u32, BootTime)>,
    watcher: watch::Watcher,
    tied: Tied,
}

/// Whether systemd may stop the units when the guard ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Tied {
    /// It may: nobody has made sure of the opposite.
    #[default]
    Perhaps,
    No,
}

/// Whether systemd has been asked to start something, and has not yet said how that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Start {
    #[default]
    None,
    UnderWay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// There may be one, of an earlier guard or half made.
    Leftover,
    Wanted,
    Unwanted,
}

impl Units {
    pub(crate) fn new(setup: UnitsSetup) -> Result<Self, GuardError> {
        if let Some(error) = groups::unsupported() {
            return Err(error);
        }
        let systemd = Systemd::new().map_err(GuardError::systemd(&setup.fleet))?;
        let kept = setup.groups.read().ok().flatten().filter(|kept| kept.boot_id == setup.boot_id);
        let status = Status { groups: kept.map(|kept| kept.groups), ..Status::default() };
        let shared = Shared { setup, systemd, status: Mutex::new(status), tying: Mutex::new(Tie::Leftover) };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Service for Units {
    fn kind(&self) -> DriverKind {
        DriverKind::Systemd
    }

    fn state(&self) -> ServiceState {
        self.shared.state()
    }

    fn members(&self) -> Result<Members, GuardError> {
        let shared = &self.shared;
        let mut mains = Vec::new();
        for unit in &shared.setup.config.units {
            mains.extend(shared.inspect(unit)?.main_pid);
        }
        let places = shared.places()?;
        Ok(Members { by_guard: false, mains, pids: groups::members(&places)? })
    }

    /// While the start is announced, a fence goes on killing; and what it has latched keeps the gate shut.
    fn start(
        &self,
        opened: Opened,
        _folder: PathBuf,
        may: &dyn Fn() -> Result<(), LeaseRefusal>,
    ) -> Result<BootTime, GuardError> {
        let shared = &self.shared;
        {
            let mut status = shared.lock();
            may().map_err(GuardError::lease(&shared.setup.fleet))?;
            status.start = Start::UnderWay;
        }
        let started = shared.start_all(may);
        let mut status = shared.lock();
        status.start = Start::None;
        status.main = started.as_ref().ok().copied();
        drop(status);
        let (pid, at) = started?;
        log!("fleet {}: epoch {} runs as process {pid}", shared.setup.fleet, opened.epoch);
        watch::ensure(shared);
        Ok(at)
    }

    fn stop(&self, limit: Duration, ask: Option<&dyn Fn(i32)>) -> Result<(), GuardError> {
        self.shared.stop(limit, ask)
    }

    /// The processes are killed first, and asking nobody. That nothing follows them is then heard from systemd: it may have
    /// been about to start a unit again, past the gate already. Without its word the fence is not complete, and is tried again.
    fn kill(&self, patience: Duration) -> Result<(), GuardError> {
        let shared = &self.shared;
        let end = Instant::now() + patience;
        let left = || end.saturating_duration_since(Instant::now());
        // That it ends is no news to whoever watches it.
        shared.lock().main = None;
        let places = shared.places()?;
        let busy = || shared.lock().start == Start::UnderWay;
        // A start that is under way ends once what it waits for is gone, or the unit is stopped.
        let killed = groups::kill(&places, left().min(AT_ONCE_PATIENCE), &busy);
        for unit in shared.setup.config.units.iter().rev() {
            let stopped = shared.systemd.stop(unit, left().min(FORGET_PATIENCE));
            stopped.map_err(GuardError::systemd(&shared.setup.fleet))?;
        }
        if killed.is_ok() && !groups::populated(&places) && !busy() {
            return Ok(());
        }
        groups::kill(&places, left(), &busy).map_err(|left| shared.not_stopped(left))
    }

    fn settle(&self, _patience: Duration) {}

    /// Permitted units run on: a guard that is started again stops nothing, whatever systemd says or does not say at this
    /// moment. What runs without a permit is stopped.
    fn recover(&self, permitted: Option<Opened>) -> Result<(), GuardError> {
        let shared = &self.shared;
        let prepared = shared.install_gates().and_then(|()| shared.learn_groups());
        match (permitted, prepared) {
            (None, prepared) => {
                prepared?;
                return shared.stop(Duration::ZERO, None);
            }
            (Some(_), Err(error)) => {
                log!("fleet {}: its units run on: {}", shared.setup.fleet, error.chain())
            }
            (Some(_), Ok(())) => {}
        }
        watch::ensure(shared);
        Ok(())
    }

    /// The units outlive the guard.
    fn go_down(&self, _limit: Duration) -> Result<(), GuardError> {
        Ok(())
    }

    fn bind(&self) -> Result<(), GuardError> {
        let shared = &self.shared;
        let tied = {
            let mut tying = shared.tying();
            shared.lock().tied = Tied::Perhaps;
            let tied = shared.tie();
            match (&tied, *tying) {
                (Ok(()), Tie::Wanted) => {}
                (Ok(()), Tie::Leftover | Tie::Unwanted) => {
                    *tying = Tie::Wanted;
                    shared.setup.watchdog.tighten();
                }
                (Err(_), Tie::Unwanted) => *tying = Tie::Leftover,
                (Err(_), Tie::Wanted | Tie::Leftover) => {}
            }
            tied
        };
        tied.inspect_err(|_| self.release())
    }

    fn release(&self) {
        {
            let mut tying = self.shared.tying();
            match *tying {
                Tie::Unwanted => return,
                Tie::Wanted => self.shared.setup.watchdog.relax(),
                Tie::Leftover => {}
            }
            *tying = Tie::Unwanted;
        }
        let shared = Arc::clone(&self.shared);
        let release = move || shared.untie();
        let name = format!("untie {}", self.shared.setup.fleet);
        if let Err(error) = thread::Builder::new().name(name).spawn(release) {
            log!("fleet {}: its units stay tied to the guard: {error}", self.shared.setup.fleet);
        }
    }

    fn ends_with_guard(&self) -> bool {
        self.shared.lock().tied == Tied::Perhaps
    }

    /// systemd notices a guard that hangs after its watchdog's time, and then stops the units as their files say.
    fn unguarded(&self) -> Result<Duration, GuardError> {
        let shared = &self.shared;
        let Some(watchdog) = shared.setup.watchdog.while_tied() else {
            let detail =
                "nobody watches the guard (`WatchdogSec=` in its unit): one that hangs would fence nothing";
            return Err(GuardError::Config { detail: detail.to_owned() });
        };
        let mut longest = Duration::ZERO;
        for unit in &shared.setup.config.units {
            let found = shared.inspect(unit)?;
            let fleet = &shared.setup.fleet;
            if !found.sends_sigkill || !matches!(found.kill_mode.as_str(), "control-group" | "mixed") {
                let kill_mode = &found.kill_mode;
                let detail = format!(
                    "{unit} may leave processes when it is stopped (`KillMode={kill_mode}`, `SendSIGKILL=`)"
                );
                return Err(GuardError::Config { detail });
            }
            let Some(stop) = found.stop_timeout else {
                let detail =
                    format!("{unit} may take for ever to stop: set stop_timeout_ms for fleet {fleet}");
                return Err(GuardError::Config { detail });
            };
            // Each stage may take as long: its own commands, and then the signal.
            longest += stop * if found.has_stop_commands { 2 } else { 1 };
        }
        Ok(watchdog + longest)
    }
}

impl Shared {
    fn state(&self) -> ServiceState {
        let (start, main, places) = {
            let status = self.lock();
            (status.start, status.main, status.groups.clone())
        };
        // Where they are not known, somebody may be there.
        let populated = places.is_none_or(|places| groups::populated(&places));
        // Whoever renews a lease waits for this.
        let look = |unit| self.systemd.inspect_within(unit, LOOK_PATIENCE);
        let units: Result<Vec<Unit>, SystemdError> = self.setup.config.units.iter().map(look).collect();
        let now = boot_time();
        let state = match units {
            Ok(units) => units_state(&units, populated, now),
            // The groups are what is left to look at.
            Err(_) if !populated => ServiceState::Stopped,
            Err(_) => main.map_or(ServiceState::Starting, |(pid, started_boot_ms)| ServiceState::Running {
                pid,
                started_boot_ms,
            }),
        };
        match (start, state) {
            (Start::UnderWay, _) => ServiceState::Starting,
            (Start::None, state) => state,
        }
    }

    /// Starts all units in order; answers the first one's main process, and when that was started.
    fn start_all(&self, may: &dyn Fn() -> Result<(), LeaseRefusal>) -> Result<(u32, BootTime), GuardError> {
        self.install_gates()?;
        let mut mains = Vec::new();
        for unit in &self.setup.config.units {
            let before = self.inspect(unit)?;
            problem::startable(&before)
                .and_then(|()| self.setup.gate.in_force(&before))
                .map_err(self.of_unit(unit))?;
            self.learn_groups()?;
            // An earlier failure must not count against this start.
            self.systemd.reset_failed(unit).map_err(GuardError::systemd(&self.setup.fleet))?;
            may().map_err(GuardError::lease(&self.setup.fleet))?;
            let patience = Duration::from_millis(self.setup.config.start_timeout_ms);
            let job = match self.systemd.start(unit, patience) {
                Err(SystemdError::JobUnfinished { .. }) => {
                    return Err(self.of_unit(unit)(UnitProblem::NotReady));
                }
                other => other.map_err(GuardError::systemd(&self.setup.fleet))?,
            };
            let after = self.inspect(unit)?;
            let main = problem::started(&job, &after).map_err(self.of_unit(unit))?;
            mains.push((unit, main, since_monotonic(after.main_started)));
        }
        self.learn_groups()?;
        self.live_through_grace(&mains)?;
        let (_, main, at) = mains.first().expect("the configuration names at least one unit");
        Ok((*main, *at))
    }

    /// A unit that is ready may still end at once.
    fn live_through_grace(&self, mains: &[(&UnitName, u32, BootTime)]) -> Result<(), GuardError> {
        let end = Instant::now() + Duration::from_millis(self.setup.config.start_grace_ms);
        loop {
            let is_over = Instant::now() >= end;
            for (unit, main, _) in mains {
                let now = self.inspect(unit)?;
                if now.main_pid == Some(*main) && now.active == ActiveState::Active {
                    continue;
                }
                let job = muster_systemd::JobResult::Done;
                let problem = match (now.main_end, problem::started(&job, &now)) {
                    (Some(end), _) => UnitProblem::Ended(end),
                    (None, Err(problem)) => problem,
                    // It was started again already.
                    (None, Ok(_)) => UnitProblem::Other { job: "restart".to_owned(), unit: now.result },
                };
                return Err(self.of_unit(unit)(problem));
            }
            if is_over {
                return Ok(());
            }
            thread::sleep(GRACE_INTERVAL.min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// Asks, waits, kills, and proves: no process, no unit that is active, no job that would start one.
    fn stop(&self, limit: Duration, ask: Option<&dyn Fn(i32)>) -> Result<(), GuardError> {
        let end = Instant::now() + limit;
        let left = || end.saturating_duration_since(Instant::now());
        let mut before = Vec::new();
        for unit in &self.setup.config.units {
            before.push((unit, self.inspect(unit)?));
        }
        if let (Some(ask), Some(main)) = (ask, before.first().and_then(|(_, unit)| unit.main_pid)) {
            ask(main.cast_signed());
        }
        for (unit, found) in before.iter().rev() {
            if is_down(found) {
                continue;
            }
            match self.systemd.stop(unit, left()) {
                Ok(_) | Err(SystemdError::JobUnfinished { .. }) => {}
                Err(error) => log!("{}", GuardError::systemd(&self.setup.fleet)(error).chain()),
            }
        }
        let places = self.places()?;
        let busy = || self.lock().start == Start::UnderWay;
        groups::kill(&places, KILL_PATIENCE, &busy).map_err(|left| self.not_stopped(left))?;
        let deadline = Instant::now() + KILL_PATIENCE;
        for (unit, _) in &before {
            while !is_down(&self.inspect(unit)?) {
                if Instant::now() >= deadline {
                    return Err(self.not_stopped(format!("systemd still has {unit} as active")));
                }
                thread::sleep(GRACE_INTERVAL);
            }
        }
        self.lock().main = None;
        Ok(())
    }

    /// The file alone shuts no gate: systemd has to have read it, and may not have when it was written.
    fn install_gates(&self) -> Result<(), GuardError> {
        let mut changed = Vec::new();
        for unit in &self.setup.config.units {
            changed.push(self.setup.gate.install(unit)?);
            let found = self.inspect(unit)?;
            let is_behind = found.needs_reload || self.setup.gate.in_force(&found).is_err();
            changed.push(if is_behind { Changed::Yes } else { Changed::No });
        }
        gate::reload(&self.systemd, &self.setup.fleet, &changed)
    }

    /// Learns where the units' processes are, or would be.
    fn learn_groups(&self) -> Result<(), GuardError> {
        let mut places = Vec::new();
        for name in &self.setup.config.units {
            let group = self.inspect(name)?.expected_cgroup(name);
            let folder = groups::folder(&group);
            places.push(folder.ok_or_else(|| self.not_stopped(format!("`{group}` is no control group")))?);
        }
        let mut status = self.lock();
        if status.groups.as_ref() != Some(&places) {
            let record = GroupsRecord { boot_id: self.setup.boot_id.clone(), groups: places.clone() };
            self.setup.groups.write_for_this_boot(&record)?;
            status.groups = Some(places);
        }
        Ok(())
    }

    /// Where the units' processes are. A guess would let a fence pass over what runs.
    fn places(&self) -> Result<Vec<PathBuf>, GuardError> {
        if let Some(places) = self.lock().groups.clone() {
            return Ok(places);
        }
        self.learn_groups()?;
        let unknown = || self.not_stopped("systemd has not said where its processes are".to_owned());
        self.lock().groups.clone().ok_or_else(unknown)
    }

    fn tie(&self) -> Result<(), GuardError> {
        let fleet = &self.setup.fleet;
        let guard = UnitName::new(gate::GUARD_UNIT).expect("a constant that is a name");
        if self.inspect(&guard)?.main_pid != Some(std::process::id()) {
            let detail = format!(
                "the guard does not run as {guard}, to which the units of {fleet} would have to be tied"
            );
            return Err(GuardError::Config { detail });
        }
        let changed: Result<Vec<_>, _> = self.setup.config.units.iter().map(gate::tie).collect();
        gate::reload(&self.systemd, fleet, &changed?)?;
        for unit in &self.setup.config.units {
            if !gate::is_tied(&self.inspect(unit)?) {
                return Err(self.of_unit(unit)(UnitProblem::Ungated(
                    "it cannot be tied to the guard".to_owned(),
                )));
            }
        }
        Ok(())
    }

    /// Until systemd says that nothing is tied any more, or it is to be tied again.
    fn untie(&self) {
        loop {
            let tying = self.tying();
            if *tying != Tie::Unwanted {
                return;
            }
            match self.untie_once() {
                Ok(()) => {
                    self.lock().tied = Tied::No;
                    return;
                }
                Err(error) => {
                    log!(
                        "fleet {}: its units are still tied to the guard: {}",
                        self.setup.fleet,
                        error.chain()
                    );
                }
            }
            drop(tying);
            thread::sleep(RELEASE_INTERVAL);
        }
    }

    fn untie_once(&self) -> Result<(), GuardError> {
        let mut changed = Vec::new();
        for unit in &self.setup.config.units {
            changed.push(gate::untie(unit)?);
            changed.push(if gate::is_tied(&self.inspect(unit)?) { Changed::Yes } else { Changed::No });
        }
        gate::reload(&self.systemd, &self.setup.fleet, &changed)?;
        for unit in &self.setup.config.units {
            if gate::is_tied(&self.inspect(unit)?) {
                let problem = UnitProblem::Ungated("another file ties it to the guard".to_owned());
                return Err(self.of_unit(unit)(problem));
            }
        }
        Ok(())
    }

    fn inspect(&self, unit: &UnitName) -> Result<Unit, GuardError> {
        self.systemd.inspect(unit).map_err(GuardError::systemd(&self.setup.fleet))
    }

    fn of_unit(&self, unit: &UnitName) -> impl Fn(UnitProblem) -> GuardError {
        let (fleet, unit) = (self.setup.fleet.clone(), unit.clone());
        move |source| GuardError::Unit { fleet: fleet.clone(), unit: unit.clone(), source }
    }

    fn not_stopped(&self, detail: String) -> GuardError {
        GuardError::NotStopped { fleet: self.setup.fleet.clone(), detail }
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tying(&self) -> MutexGuard<'_, Tie> {
        self.tying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing runs, and nothing is about to.
fn is_down(unit: &Unit) -> bool {
    matches!(unit.active, ActiveState::Inactive | ActiveState::Failed) && !unit.has_job
}

/// What the units do together: they run if each of them does, and are stopped if none can have a process.
fn units_state(units: &[Unit], populated: bool, now: BootTime) -> ServiceState {
    let states: Vec<_> =
        units.iter().map(|unit| problem::state(unit, since_monotonic(unit.main_started).min(now))).collect();
    let not_running = states.iter().find(|state| !matches!(state, ServiceState::Running { .. }));
    let Some(odd) = not_running else { return states.first().copied().unwrap_or(ServiceState::Stopped) };
    let alive = populated || states.iter().any(|state| state.may_be_alive());
    match *odd {
        ServiceState::Exited { status, .. } if alive => ServiceState::Restarting { status, at_boot_ms: now },
        ServiceState::Stopped if alive => {
            ServiceState::Restarting { status: ExitKind::Unknown, at_boot_ms: now }
        }
        odd @ (ServiceState::Stopped
        | ServiceState::Starting
        | ServiceState::Running { .. }
        | ServiceState::Restarting { .. }
        | ServiceState::Exited { .. }) => odd,
    }
}
