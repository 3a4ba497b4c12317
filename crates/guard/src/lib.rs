//! The guard: a small process that owns a host's link and service.
//!
//! Every host runs one guard beside its agent. The agent measures, promises and talks to the network; the guard
//! alone moves the `current` link and starts and stops the service, so that what a host serves never depends on the
//! agent being alive. It answers on a Unix socket ([`protocol`]) to its own user and to root.
//!
//! The guard holds the deadlines. While a flip is under way the right to serve is a lease: the agent arms the fleet with a
//! point of `CLOCK_BOOTTIME`, renews it, and disarms it or closes. If the deadline passes, the guard *fences*: it kills the
//! service, takes the link away, verifies that nothing is left, latches, and tells its watchers. It needs neither the agent
//! nor the network nor a disk for that, and no request that is under way can hold it up. What may happen to a lease is
//! decided by one pure module, [`lease`].
//!
//! What runs is settled by root's local file ([`GuardConfig`]): a request names a fleet, an epoch and a digest, and
//! nothing else. The guard never takes a command, a path or an environment from the socket, never talks to the network
//! but for a health check, never measures a tree, and does not know why a deadline is what it is. What is about to be started as a unit is
//! looked at by a process that systemd runs before it, `muster-guard permit`.
//!
//! # What is kept, and what a restart does
//! A *permit* on disk says what a fleet may serve, and in which boot it was given; a record beside it says which deadline
//! runs, or that a fence has latched; a halt is a file of its own, and outlives everything but `resume`.
//! - After a reboot the permit is revoked and the link removed before the socket answers: nothing is served until the
//!   agent asks again. A deadline of an earlier boot has latched.
//! - After a restart of the guard within one boot, a `link` fleet goes on as it is, and a deadline that has not passed
//!   is taken up again; one that has passed latches, and the link goes. A supervised service died with the old
//!   guard: whatever is left of it is killed, the permit and the link stay, the service is shown as stopped, and it starts
//!   again only when the agent asks for the same opening again. Units of systemd run on under the permit.
//! - SIGTERM stops supervised services in good order and leaves links and units alone, but for those that are armed: they are
//!   fenced, as nobody will be there at the deadline. SIGKILL of the guard kills the services ([`cli`] tells how).
//!
//! The other half lives in the agent: it decides when to ask, through [`GuardClient`]. [`InProcess`] is the same code
//! without a socket, for `link` fleets only, so that many agents can share one process.

pub mod cli;
pub mod lease;
pub mod protocol;

mod asker;
mod bytes;
mod cgroup;
mod client;
mod config;
mod drill;
mod error;
mod fleet;
mod fleets;
mod frame;
mod health;
mod hooks;
mod idle;
mod keeper;
mod kept;
mod ledger;
mod link;
mod log;
mod manager;
mod output;
mod permit;
mod process;
mod record;
mod running;
mod server;
mod service;
mod shutdown;
mod socket;
mod state_folder;
mod supervised;
mod timer;
mod units;

pub use client::{GuardClient, Watch, WatchCloser};
pub use config::{
    Driver, FleetConfig, GuardConfig, HealthCheck, HealthConfig, HookConfig, HooksConfig, HttpCheck,
    ServiceConfig, Settings, StopSignal, UnitsConfig,
};
pub use error::{GuardError, RefusalCode};
pub use fleets::{Events, InProcess};
pub use lease::LeaseRefusal;
pub use protocol::{
    Armed, DRILL_RUNS_MAX, Decided, Drill, DriverKind, Event, ExitKind, Fence, FenceCause, FleetState,
    FlipTime, Flipped, Halt, Hello, KillScope, LeaseState, LinkState, Opened, REASON_BYTES_MAX, Running,
    RunningFile, RunningGroup, RunningMain, ServiceState,
};
pub use server::{RunningGuard, run, spawn};
pub use shutdown::{Shutdown, ShutdownTrigger};
pub use timer::boot_time;
pub use units::UnitProblem;

use std::time::Duration;

use muster_model::{BootTime, Digest, Epoch, FleetName, HaltId, RolloutId};

/// What an agent asks of the guard of its host. The calls block; each may take as long as a service takes to stop or to
/// show that it works. No call that is under way holds a fence up.
pub trait Guard: Send + Sync {
    /// What the fleet serves on this host, read from the link and the processes at this moment.
    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError>;

    /// Which processes the fleet's service has, and what they execute; `None` where the guard has no service to start, as
    /// guards have that are made for links alone.
    fn running(&self, _fleet: &FleetName) -> Result<Option<Running>, GuardError> {
        Ok(None)
    }

    /// Shuts the start gate of what `epoch` serves, as it has changed on the disk: what runs goes on, and nothing is started
    /// again. It ends with [`Self::trust`] or an `open`. Where something else is served by now, nothing is changed.
    fn doubt(&self, fleet: &FleetName, _epoch: Epoch, _reason: &str) -> Result<FleetState, GuardError> {
        self.status(fleet)
    }

    /// Opens the start gate again.
    fn trust(&self, fleet: &FleetName, _epoch: Epoch) -> Result<FleetState, GuardError> {
        self.status(fleet)
    }

    /// Fences what `epoch` serves: it is not what was released. An `open` lifts that. Where a deadline runs it is refused, and where
    /// something else is served by now, nothing is changed.
    fn fence(&self, fleet: &FleetName, _epoch: Epoch, _reason: &str) -> Result<FleetState, GuardError> {
        self.status(fleet)
    }

    /// Revokes the permit, stops the service, removes the link, and answers only once nothing is left of either. The
    /// service has `drain` to stop by itself, or what the configuration says, and never longer than the deadline allows; a
    /// deadline runs on until nothing is left, and is lifted then. Closing what is closed changes nothing.
    fn close(&self, fleet: &FleetName, drain: Option<Duration>) -> Result<FleetState, GuardError>;

    /// Writes the permit, makes the link, starts the service, and waits until it is healthy. Opening what is open already
    /// changes nothing; anything else that is open must be closed first. A start that fails leaves the fleet closed. It
    /// is what lifts a latched fence, and is refused while the fleet is halted.
    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError>;

    /// Sets the deadline at which what is served is fenced; durable before it is answered. For the same rollout once more
    /// it changes nothing.
    fn arm(&self, fleet: &FleetName, arm: Armed) -> Result<FleetState, GuardError>;

    /// Moves the deadline of rollout `k` back to `deadline`, unless it is later already.
    fn renew(&self, fleet: &FleetName, k: RolloutId, deadline: BootTime) -> Result<FleetState, GuardError>;

    /// Lifts the deadline of rollout `k`. A fence that has latched stays, as the answer shows.
    fn disarm(&self, fleet: &FleetName, k: RolloutId) -> Result<FleetState, GuardError>;

    /// Fast mode: replaces the deadline of rollout `k` by a flip to `to` at the instant that it was armed with.
    fn decide(
        &self,
        fleet: &FleetName,
        k: RolloutId,
        at: BootTime,
        to: Opened,
    ) -> Result<FleetState, GuardError>;

    /// Runs the hook `quiesce`, if there is one.
    fn quiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError>;

    /// Runs the hook `unquiesce`, if there is one.
    fn unquiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError>;

    /// Runs the hook `rehearse` in the folder of a release that is on disk, beside whatever is served; a failure says what it
    /// wrote last. A guard that runs no commands refuses it.
    fn rehearse(&self, fleet: &FleetName, _digest: Digest) -> Result<FleetState, GuardError> {
        let (fleet, hook) = (fleet.clone(), "rehearse".to_owned());
        Err(GuardError::HookFailed { fleet, hook, detail: "this guard runs no commands".to_owned() })
    }

    /// Measures how long a fence takes, at most [`DRILL_RUNS_MAX`] times, beside whatever is served.
    fn drill(&self, fleet: &FleetName, runs: u32) -> Result<Drill, GuardError>;

    /// Fences now, and opens nothing until it is resumed, whatever happens to the guard or the machine.
    fn halt(&self, fleet: &FleetName, reason: &str) -> Result<FleetState, GuardError>;

    /// Lifts this halt, and none that came after it. Nothing is served by that.
    fn resume(&self, fleet: &FleetName, halt: HaltId) -> Result<FleetState, GuardError>;
}
