//! What is said on the guard's socket.
//!
//! A frame is a length (32 bits, big endian, at most [`MAX_FRAME_BYTES`]) and that many bytes of JSON. The client sends
//! [`RequestFrame`]s, the guard answers each with a [`ReplyFrame`] of the same id. After `watch` the guard sends
//! [`Reply::Event`]s under that id until either side hangs up. The protocol's number is in every request: a guard
//! refuses a number it does not speak, and an unknown verb or field is refused by name.

use muster_model::{BootId, BootTime, Digest, Epoch, FleetName};
use serde::{Deserialize, Serialize};

use crate::error::RefusalCode;

/// The number of the protocol that this crate speaks.
pub const PROTOCOL: u32 = 1;

/// The largest frame in either direction, without its length.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

/// One request. `request` is parsed in a second step, so that a refusal of an unknown verb can carry the id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestFrame {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Chosen by the client, from 1 up; 0 in an answer means that the request's id could not be read.
    pub id: u64,
    /// A [`Request`].
    pub request: serde_json::Value,
}

/// What a client can ask. No verb carries a command, a path or an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who are you?
    Hello {},
    /// What does this fleet serve here?
    Status {
        /// The fleet.
        fleet: FleetName,
    },
    /// Stop serving, and prove it.
    Close {
        /// The fleet.
        fleet: FleetName,
    },
    /// Serve this release.
    Open {
        /// The fleet.
        fleet: FleetName,
        /// The number of what the fleet serves from now on.
        epoch: Epoch,
        /// The release's manifest digest, the name of its folder.
        digest: Digest,
    },
    /// Tell me what happens, from now on.
    Watch {},
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyFrame {
    /// The request's id, or 0.
    pub id: u64,
    /// The answer.
    pub reply: Reply,
}

/// What the guard answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To `hello`.
    Hello(Hello),
    /// To `status`, `close` and `open`: the fleet after the request was carried out.
    State(FleetState),
    /// To `watch`: events follow.
    Watching,
    /// After `watch`.
    Event(Event),
    /// No.
    Refused {
        /// The reason, for programs.
        code: RefusalCode,
        /// The reason, for people.
        detail: String,
    },
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol that the guard speaks.
    pub protocol: u32,
    /// The guard's process.
    pub pid: u32,
    /// The boot it runs in.
    pub boot_id: BootId,
    /// The guard's version.
    pub version: String,
}

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

/// What happens on a host without being asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A service ended by itself; nothing of it is left.
    ServiceExited {
        /// The fleet.
        fleet: FleetName,
        /// How its main process ended.
        status: ExitKind,
        /// Whether and when it will be started again.
        restart_boot_ms: Option<BootTime>,
    },
    /// A service that had ended by itself runs again.
    ServiceRestarted {
        /// The fleet.
        fleet: FleetName,
        /// Its new main process.
        pid: u32,
    },
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
        })
    }
}
