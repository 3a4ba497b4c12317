//! The guard: a small process that owns a host's link and service.
//!
//! Every host runs one guard beside its agent. The agent measures, promises and talks to the network; the guard
//! alone moves the `current` link and starts and stops the service, so that what a host serves never depends on the
//! agent being alive. It answers on a Unix socket ([`protocol`]) to its own user and to root.
//!
//! What runs is settled by root's local file ([`GuardConfig`]): a request names a fleet, an epoch and a digest, and
//! nothing else. The guard never takes a command, a path or an environment from the socket, never talks to the
//! network, never measures a tree, and knows nothing of leases yet (deadlines will be further requests of the same
//! protocol).
//!
//! # What is kept, and what a restart does
//! A *permit* on disk says what a fleet may serve, and in which boot it was given.
//! - After a reboot the permit is revoked and the link removed before the socket answers: nothing is served until the
//!   agent asks again.
//! - After a restart of the guard within one boot, a `link` fleet goes on as it is. A supervised service died with the
//!   old guard: whatever is left of it is killed, the permit and the link stay, the service is shown as stopped, and it
//!   starts again only when the agent asks for the same opening again.
//! - SIGTERM stops supervised services in good order and leaves `link` fleets alone; SIGKILL of the guard kills the
//!   services ([`cli`] tells how).
//!
//! The other half lives in the agent: it decides when to ask, through [`GuardClient`]. [`InProcess`] is the same code
//! without a socket, for `link` fleets only, so that many agents can share one process.

pub mod cli;
pub mod protocol;

mod client;
mod config;
mod error;
mod fleet;
mod fleets;
mod frame;
mod link;
mod log;
mod process;
mod record;
mod server;
mod service;
mod shutdown;
mod socket;
mod state_folder;

pub use client::{GuardClient, Watch, WatchCloser};
pub use config::{Driver, FleetConfig, GuardConfig, ServiceConfig, Settings, StopSignal};
pub use error::{GuardError, RefusalCode};
pub use fleets::InProcess;
pub use protocol::{DriverKind, Event, ExitKind, FleetState, Hello, LinkState, Opened, ServiceState};
pub use server::{RunningGuard, run, spawn};
pub use shutdown::{Shutdown, ShutdownTrigger};

use muster_model::{Digest, Epoch, FleetName};

/// What an agent asks of the guard of its host. The calls block; each may take as long as a service takes to stop.
pub trait Guard: Send + Sync {
    /// What the fleet serves on this host, read from the link and the processes at this moment.
    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError>;

    /// Revokes the permit, stops the service, removes the link, and answers only once nothing is left of either.
    /// Closing what is closed changes nothing.
    fn close(&self, fleet: &FleetName) -> Result<FleetState, GuardError>;

    /// Writes the permit, makes the link, starts the service. Opening what is open already changes nothing; anything
    /// else that is open must be closed first. A start that fails leaves the fleet closed.
    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError>;
}
