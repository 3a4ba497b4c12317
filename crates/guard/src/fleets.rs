//! All fleets of a host, under one state folder.

mod assemble;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use muster_model::{BootId, BootTime, Digest, Epoch, FleetName, HaltId, RolloutId, UnixTime};

use crate::Guard;
use crate::config::{Driver, Settings};
use crate::error::GuardError;
use crate::fleet::Fleet;
use crate::hooks::Hook;
use crate::log::log;
use crate::manager::Watchdog;
use crate::process;
use crate::protocol::{Armed, Drill, Event, FleetState, Opened, REASON_BYTES_MAX, Running};
use crate::state_folder::StateFolder;
use crate::timer::Clock;
use assemble::Host;

/// Where events go. Whoever takes them must not wait: it is called by those who hold deadlines.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// The fleets of one host, ready to be asked. As long as this value lives, no other guard works on the state folder.
pub(crate) struct Fleets {
    fleets: BTreeMap<FleetName, Arc<Fleet>>,
    boot_id: BootId,
    going_down: AtomicBool,
    watchdog: Arc<Watchdog>,
    _state: StateFolder,
}

/// The guard without a process and a socket, for fleets of driver `link` without hooks: for benchmarks and tests that hold
/// many agents in one process. It holds deadlines as the real guard does. Services and commands are left to the real guard,
/// whose death they must not survive.
pub struct InProcess(Fleets);

impl InProcess {
    /// Takes the state folder and brings it in line, as a starting guard does. The settings' socket is not used.
    pub fn new(settings: &Settings) -> Result<Self, GuardError> {
        Self::with_events(settings, Arc::new(|_| {}))
    }

    /// As [`Self::new`]; `events` hears what a watcher of the real guard would hear.
    pub fn with_events(settings: &Settings, events: Events) -> Result<Self, GuardError> {
        Self::assemble(settings, &events, &Clock::Boot)
    }

    /// As [`Self::with_events`], under a clock that somebody else moves, as in a simulation. Deadlines are points of it, and
    /// what passes while it moves is done in [`Self::do_duties`] and nowhere else.
    pub fn with_clock(
        settings: &Settings,
        events: Events,
        now: Arc<dyn Fn() -> BootTime + Send + Sync>,
    ) -> Result<Self, GuardError> {
        Self::assemble(settings, &events, &Clock::Given(now))
    }

    /// Does what is due at this moment: fences what has passed its deadline, flips what has reached its instant.
    pub fn do_duties(&self) {
        self.0.fleets.values().for_each(|fleet| fleet.do_duty());
    }

    fn assemble(settings: &Settings, events: &Events, clock: &Clock) -> Result<Self, GuardError> {
        for fleet in &settings.fleets {
            if fleet.driver != Driver::Link || !fleet.hooks.is_empty() {
                let detail = format!("fleet {}: a guard without a process runs no commands", fleet.name);
                return Err(GuardError::Config { detail });
            }
        }
        Fleets::open_under(settings, process::boot_id()?, events, clock).map(Self)
    }
}

impl Fleets {
    /// Locks the state folder and recovers every fleet; nothing is permitted on return that was not given in this boot.
    pub(crate) fn open(settings: &Settings, boot_id: BootId, events: &Events) -> Result<Self, GuardError> {
        Self::open_under(settings, boot_id, events, &Clock::Boot)
    }

    fn open_under(
        settings: &Settings,
        boot_id: BootId,
        events: &Events,
        clock: &Clock,
    ) -> Result<Self, GuardError> {
        let state = StateFolder::open(&settings.state_dir)?;
        let watchdog = Arc::new(Watchdog::of_this_process());
        let host = Host {
            settings,
            state: &state,
            boot_id: &boot_id,
            clock,
            events,
            watchdog: Arc::clone(&watchdog),
        };
        let mut fleets = BTreeMap::new();
        for config in &settings.fleets {
            let fleet = Arc::new(host.fleet(config)?);
            // One fleet whose disk or process is broken must not keep the others' deadlines from being held.
            if let Err(error) = fleet.recover() {
                log!("fleet {}: {}; fenced until it can be stopped", config.name, error.chain());
                fleet.distrust()?;
            }
            fleets.insert(config.name.clone(), fleet);
        }
        Ok(Self { fleets, boot_id, going_down: AtomicBool::new(false), watchdog, _state: state })
    }

    pub(crate) const fn boot_id(&self) -> &BootId {
        &self.boot_id
    }

    /// Goes through what a deadline needs of every fleet. It does not come back from one that hangs.
    pub(crate) fn pulse(&self) {
        self.fleets.values().for_each(|fleet| fleet.pulse());
    }

    /// The service manager was told that the guard is ready.
    pub(crate) fn is_ready(&self) {
        self.watchdog.begin();
    }

    /// The fleets' names, for people.
    pub(crate) fn names(&self) -> String {
        let names: Vec<&str> = self.fleets.keys().map(FleetName::as_str).collect();
        if names.is_empty() { "no fleet".to_owned() } else { names.join(", ") }
    }

    /// Opens nothing any more and stops all services, at the same time. Permits and links stay as they are, but for fleets
    /// with a deadline: those are fenced.
    pub(crate) fn shut_down(&self) -> Result<(), GuardError> {
        self.going_down.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            let stopping: Vec<_> =
                self.fleets.values().map(|fleet| scope.spawn(|| fleet.go_down())).collect();
            let stopped: Vec<_> = stopping
                .into_iter()
                .map(|thread| thread.join().expect("stopping a service does not panic"))
                .inspect(|result| {
                    if let Err(error) = result {
                        log!("{}", error.chain());
                    }
                })
                .collect();
            stopped.into_iter().collect()
        })
    }

    fn find(&self, fleet: &FleetName) -> Result<&Arc<Fleet>, GuardError> {
        self.fleets.get(fleet).ok_or_else(|| GuardError::UnknownFleet { fleet: fleet.clone() })
    }
}

impl Drop for Fleets {
    fn drop(&mut self) {
        for fleet in self.fleets.values() {
            fleet.leave();
        }
    }
}

impl Guard for Fleets {
    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.find(fleet)?.state()
    }

    fn doubt(&self, fleet: &FleetName, epoch: Epoch, reason: &str) -> Result<FleetState, GuardError> {
        let mut reason = reason.to_owned();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        self.find(fleet)?.doubt(epoch, Some(reason))
    }

    fn trust(&self, fleet: &FleetName, epoch: Epoch) -> Result<FleetState, GuardError> {
        self.find(fleet)?.doubt(epoch, None)
    }

    fn fence(&self, fleet: &FleetName, epoch: Epoch, _reason: &str) -> Result<FleetState, GuardError> {
        self.find(fleet)?.fence_drifted(epoch)
    }

    fn running(&self, fleet: &FleetName) -> Result<Option<Running>, GuardError> {
        self.find(fleet)?.running()
    }

    fn close(&self, fleet: &FleetName, drain: Option<Duration>) -> Result<FleetState, GuardError> {
        self.find(fleet)?.close(drain)
    }

    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError> {
        self.find(fleet)?.open(Opened { epoch, digest }, &self.going_down)
    }

    fn arm(&self, fleet: &FleetName, arm: Armed) -> Result<FleetState, GuardError> {
        self.find(fleet)?.arm(arm)
    }

    fn renew(&self, fleet: &FleetName, k: RolloutId, deadline: BootTime) -> Result<FleetState, GuardError> {
        self.find(fleet)?.renew(k, deadline)
    }

    fn disarm(&self, fleet: &FleetName, k: RolloutId) -> Result<FleetState, GuardError> {
        self.find(fleet)?.disarm(k)
    }

    fn decide(
        &self,
        fleet: &FleetName,
        k: RolloutId,
        at: BootTime,
        to: Opened,
    ) -> Result<FleetState, GuardError> {
        self.find(fleet)?.decide(k, at, to)
    }

    fn quiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.find(fleet)?.run_asked(Hook::Quiesce)
    }

    fn unquiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.find(fleet)?.run_asked(Hook::Unquiesce)
    }

    fn rehearse(&self, fleet: &FleetName, digest: Digest) -> Result<FleetState, GuardError> {
        self.find(fleet)?.rehearse(digest, &self.going_down)
    }

    fn drill(&self, fleet: &FleetName, runs: u32) -> Result<Drill, GuardError> {
        self.find(fleet)?.drill(runs)
    }

    fn halt(&self, fleet: &FleetName, reason: &str) -> Result<FleetState, GuardError> {
        if reason.len() > REASON_BYTES_MAX {
            let detail = format!("a reason of {} bytes, at most {REASON_BYTES_MAX}", reason.len());
            return Err(GuardError::OutOfBounds { detail });
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at_unix_ms = UnixTime(0).after(since);
        self.find(fleet)?.halt(at_unix_ms, reason)
    }

    fn resume(&self, fleet: &FleetName, halt: HaltId) -> Result<FleetState, GuardError> {
        self.find(fleet)?.resume(halt)
    }
}

impl Guard for InProcess {
    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.0.status(fleet)
    }

    fn doubt(&self, fleet: &FleetName, epoch: Epoch, reason: &str) -> Result<FleetState, GuardError> {
        self.0.doubt(fleet, epoch, reason)
    }

    fn trust(&self, fleet: &FleetName, epoch: Epoch) -> Result<FleetState, GuardError> {
        self.0.trust(fleet, epoch)
    }

    fn fence(&self, fleet: &FleetName, epoch: Epoch, reason: &str) -> Result<FleetState, GuardError> {
        self.0.fence(fleet, epoch, reason)
    }

    fn running(&self, fleet: &FleetName) -> Result<Option<Running>, GuardError> {
        self.0.running(fleet)
    }

    fn close(&self, fleet: &FleetName, drain: Option<Duration>) -> Result<FleetState, GuardError> {
        self.0.close(fleet, drain)
    }

    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError> {
        self.0.open(fleet, epoch, digest)
    }

    fn arm(&self, fleet: &FleetName, arm: Armed) -> Result<FleetState, GuardError> {
        self.0.arm(fleet, arm)
    }

    fn renew(&self, fleet: &FleetName, k: RolloutId, deadline: BootTime) -> Result<FleetState, GuardError> {
        self.0.renew(fleet, k, deadline)
    }

    fn disarm(&self, fleet: &FleetName, k: RolloutId) -> Result<FleetState, GuardError> {
        self.0.disarm(fleet, k)
    }

    fn decide(
        &self,
        fleet: &FleetName,
        k: RolloutId,
        at: BootTime,
        to: Opened,
    ) -> Result<FleetState, GuardError> {
        self.0.decide(fleet, k, at, to)
    }

    fn quiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.0.quiesce(fleet)
    }

    fn unquiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.0.unquiesce(fleet)
    }

    fn drill(&self, fleet: &FleetName, runs: u32) -> Result<Drill, GuardError> {
        self.0.drill(fleet, runs)
    }

    fn halt(&self, fleet: &FleetName, reason: &str) -> Result<FleetState, GuardError> {
        self.0.halt(fleet, reason)
    }

    fn resume(&self, fleet: &FleetName, halt: HaltId) -> Result<FleetState, GuardError> {
        self.0.resume(fleet, halt)
    }
}

#[cfg(test)]
mod tests;
