//! What is said of a fleet: its permit, its link, its service.

use muster_model::{BootTime, Digest, Epoch, FleetName};
use serde::{Deserialize, Serialize};

use super::{Fence, Flipped, Halt, LeaseState};

/// What a fleet serves on this host, as found when it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetState {
    /// The fleet.
    pub fleet: FleetName,
    /// How the fleet is served.
    pub driver: DriverKind,
    /// The permit: what may be served. `None`: nothing.
    pub open: Option<Opened>,
    /// What the link says.
    pub link: LinkState,
    /// What the service does; `None` where the guard has no service to start (driver `link`).
    pub service: Option<ServiceState>,
    /// Why what is permitted is not started again, if so: it has changed on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
    /// A guard that ended now would take the service with it.
    #[serde(default)]
    pub ends_with_guard: bool,
    /// What holds the right to serve.
    pub lease: LeaseState,
    /// The halt, if the fleet is halted. It is kept beside the lease and outlives a boot.
    pub halted: Option<Halt>,
    /// The last flip at a fixed time in this boot.
    pub flipped: Option<Flipped>,
    /// Rises with every change that this guard process made to the link or the service.
    pub generation: u64,
}

/// What a fleet was opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The number of what the fleet serves.
    pub epoch: Epoch,
    /// The release's manifest digest.
    pub digest: Digest,
}

/// How a fleet is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverKind {
    /// There is only the link.
    Link,
    /// The guard runs the command itself.
    Supervise,
    /// systemd runs units.
    Systemd,
}

/// What is at the link's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// Nothing.
    Absent,
    /// The link to a release of this fleet.
    Release(Digest),
    /// A symbolic link that the guard did not make.
    Foreign {
        /// Where it leads.
        target: String,
    },
    /// Something that is not a symbolic link.
    Obstructed,
}

/// What a supervised service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Not started by this guard process, or stopped by it.
    Stopped,
    /// Started, and not yet through its start grace.
    Starting,
    /// Alive.
    Running {
        /// The service's main process, its session and its process group.
        pid: u32,
        /// When it was started.
        started_boot_ms: BootTime,
    },
    /// Ended by itself, and about to be started again.
    Restarting {
        /// How it ended.
        status: ExitKind,
        /// When it will be started again.
        at_boot_ms: BootTime,
    },
    /// Ended by itself; it is not started again until it is opened again.
    Exited {
        /// How it ended.
        status: ExitKind,
        /// When that was noticed.
        at_boot_ms: BootTime,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitKind {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It is gone, and nobody saw how.
    Unknown,
}

impl FleetState {
    /// Nothing is permitted, linked or running.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.open.is_none()
            && self.link == LinkState::Absent
            && self.service.is_none_or(|s| !s.may_be_alive())
    }

    /// This release is permitted under this epoch, linked, and (where there is a service) running.
    #[must_use]
    pub fn serves(&self, epoch: Epoch, digest: Digest) -> bool {
        self.open == Some(Opened { epoch, digest })
            && self.link == LinkState::Release(digest)
            && self.service.is_none_or(|s| matches!(s, ServiceState::Running { .. }))
    }
}

impl FleetState {
    /// The fence that has latched, if one has.
    #[must_use]
    pub const fn fenced(&self) -> Option<&Fence> {
        match &self.lease {
            LeaseState::Fenced(fence) => Some(fence),
            LeaseState::Free | LeaseState::Armed(_) | LeaseState::Decided(_) => None,
        }
    }
}

impl ServiceState {
    /// A process of the service runs, or may run at any moment.
    #[must_use]
    pub const fn may_be_alive(self) -> bool {
        match self {
            Self::Starting | Self::Running { .. } | Self::Restarting { .. } => true,
            Self::Stopped | Self::Exited { .. } => false,
        }
    }
}

impl std::fmt::Display for ExitKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::Unknown => f.write_str("gone for an unknown reason"),
        }
    }
}

impl std::fmt::Display for DriverKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Link => "link",
            Self::Supervise => "supervise",
            Self::Systemd => "systemd",
        })
    }
}
