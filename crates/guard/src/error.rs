//! The errors of this crate.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use muster_artifact::ArtifactError;
use muster_model::FleetName;
use muster_systemd::{SystemdError, UnitName};
use serde::{Deserialize, Serialize};

use crate::lease::LeaseRefusal;
use crate::units::UnitProblem;

/// Why the guard could not do, or would not do, what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Nobody answers on the socket.
    #[error("the guard does not answer on {socket}", socket = socket.display())]
    Unreachable {
        /// The socket's path.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The other side does not keep to the protocol.
    #[error("the guard's answer cannot be used: {detail}")]
    Protocol {
        /// What is wrong with it.
        detail: String,
    },
    /// The guard said no.
    #[error("the guard refused ({code}): {detail}")]
    Refused {
        /// The reason, for programs.
        code: RefusalCode,
        /// The reason, for people.
        detail: String,
    },
    /// The configuration does not name this fleet.
    #[error("fleet {fleet} is not in this guard's configuration")]
    UnknownFleet {
        /// The fleet that was asked for.
        fleet: FleetName,
    },
    /// Something else is open, and must be closed first.
    #[error("fleet {fleet} is not closed: {found}")]
    NotClosed {
        /// The fleet.
        fleet: FleetName,
        /// What is open.
        found: String,
    },
    /// The release's folder is not on this host.
    #[error("no release folder {path}", path = path.display())]
    ReleaseMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The link's place is taken by something that is not a symbolic link.
    #[error("{path} is not a symbolic link", path = path.display())]
    LinkObstructed {
        /// The link's path.
        path: PathBuf,
    },
    /// The service did not come up; the fleet was closed again.
    #[error("the service of fleet {fleet} did not start: {detail}")]
    StartFailed {
        /// The fleet.
        fleet: FleetName,
        /// How it ended, and the last lines it wrote.
        detail: String,
    },
    /// The service ended before its opening was done; the fleet was closed again.
    #[error("the service of fleet {fleet} ended as soon as it was started: {detail}")]
    ServiceExited {
        /// The fleet.
        fleet: FleetName,
        /// How it ended, and the last lines it wrote.
        detail: String,
    },
    /// A unit could not be started; the fleet was closed again.
    #[error("fleet {fleet}: {unit}")]
    Unit {
        /// The fleet.
        fleet: FleetName,
        /// The unit.
        unit: UnitName,
        /// Why.
        #[source]
        source: UnitProblem,
    },
    /// systemd could not be asked, or did not do it.
    #[error("fleet {fleet}: systemd")]
    Systemd {
        /// The fleet.
        fleet: FleetName,
        /// Why.
        #[source]
        source: SystemdError,
    },
    /// systemd has not read its units again.
    #[error("the drop-ins are removed, but systemd still goes by them; run `systemctl daemon-reload`")]
    Reload {
        /// Why.
        #[source]
        source: SystemdError,
    },
    /// The service did not pass its health check; the fleet was closed again.
    #[error("the service of fleet {fleet} is not healthy: {detail}")]
    Unhealthy {
        /// The fleet.
        fleet: FleetName,
        /// Why the last attempt failed.
        detail: String,
    },
    /// A hook failed, or took too long.
    #[error("the hook {hook} of fleet {fleet} failed: {detail}")]
    HookFailed {
        /// The fleet.
        fleet: FleetName,
        /// The hook's name in the configuration.
        hook: String,
        /// How it ended, and the last lines it wrote.
        detail: String,
    },
    /// The right to serve does not allow it.
    #[error("fleet {fleet} cannot do that")]
    Lease {
        /// The fleet.
        fleet: FleetName,
        /// Why.
        #[source]
        source: LeaseRefusal,
    },
    /// Whoever asked has hung up before it was the request's turn. Nothing was changed.
    #[error("fleet {fleet}: whoever asked for this has gone")]
    AskerGone {
        /// The fleet.
        fleet: FleetName,
    },
    /// Another request of the same kind is under way.
    #[error("fleet {fleet} is busy: {with}")]
    Busy {
        /// The fleet.
        fleet: FleetName,
        /// With what.
        with: &'static str,
    },
    /// The request asks for more than is given.
    #[error("the request is out of bounds: {detail}")]
    OutOfBounds {
        /// What is.
        detail: String,
    },
    /// Processes of the service are still alive.
    #[error("the service of fleet {fleet} is not stopped: {detail}")]
    NotStopped {
        /// The fleet.
        fleet: FleetName,
        /// What is left.
        detail: String,
    },
    /// The guard is going down and opens nothing any more.
    #[error("the guard is shutting down")]
    ShuttingDown,
    /// Another guard works on the same state folder.
    #[error("another guard{} holds {path}", holder.map(|pid| format!(" (process {pid})")).unwrap_or_default(), path = path.display())]
    AlreadyRunning {
        /// The lock file.
        path: PathBuf,
        /// The other guard's process, where it can be read.
        holder: Option<u32>,
    },
    /// Somebody listens on the socket's path, or something that is not a socket is there.
    #[error("the socket {path} is in use", path = path.display())]
    SocketInUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// A folder that others could write to, or that belongs to somebody else.
    #[error("the folder {path} is not safe: {detail}", path = path.display())]
    UnsafeFolder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The configuration cannot be read, or does not hold together.
    #[error("the guard's configuration cannot be used")]
    Configuration {
        /// What is wrong with it.
        #[source]
        source: muster_config::Error,
    },
    /// The configuration is wrong.
    #[error("the guard's configuration is wrong: {detail}")]
    Config {
        /// What is wrong with it.
        detail: String,
    },
    /// A record on disk cannot be read as one.
    #[error("{path} is not a record of the guard", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// It cannot be told whether a release lies on the disk as it was released.
    #[error("the release of fleet {fleet} cannot be measured")]
    Unmeasured {
        /// The fleet.
        fleet: FleetName,
        /// Why.
        #[source]
        source: Box<ArtifactError>,
    },
    /// A system call failed.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why the guard refuses, for programs; stable on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The frame or the request cannot be parsed.
    BadRequest,
    /// The protocol's number is not one that this guard speaks.
    UnsupportedProtocol,
    /// Too many connections, or the same is under way already.
    Busy,
    /// The peer is another user.
    ForeignPeer,
    /// The fleet is not configured here.
    UnknownFleet,
    /// Something else is open.
    NotClosed,
    /// The release's folder is missing.
    ReleaseMissing,
    /// The link's place is taken by something else.
    LinkObstructed,
    /// The service could not be started.
    StartFailed,
    /// The service ended before its opening was done.
    ServiceExited,
    /// There is no such unit, or its file cannot be used.
    UnitMissing,
    /// The unit is masked.
    UnitMasked,
    /// The unit was not ready in time.
    StartTimedOut,
    /// A condition, the start gate or another unit kept the unit from being started.
    StartBlocked,
    /// The start gate is not in force.
    Ungated,
    /// systemd cannot be asked, or did not do it.
    Systemd,
    /// The service did not pass its health check.
    Unhealthy,
    /// A hook failed.
    HookFailed,
    /// The fleet is halted.
    Halted,
    /// A fence has latched.
    Fenced,
    /// What is to be armed is not what is served.
    NotServing,
    /// The fleet is armed, and for another rollout.
    Armed,
    /// No deadline runs.
    NotArmed,
    /// The deadline has been replaced by a flip.
    Decided,
    /// It is too late for that.
    TooLate,
    /// The time is too far ahead, or not the one that was armed.
    WrongTime,
    /// Processes of the service are still alive.
    NotStopped,
    /// The guard is going down.
    ShuttingDown,
    /// A file or folder could not be read or written.
    Storage,
    /// The guard is set up wrongly.
    Setup,
}

impl GuardError {
    /// Wraps the failure of a system call on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Names the fleet whose lease refused.
    pub(crate) fn lease(fleet: &FleetName) -> impl FnOnce(LeaseRefusal) -> Self {
        let fleet = fleet.clone();
        move |source| Self::Lease { fleet, source }
    }

    /// Names the fleet for which systemd was asked.
    pub(crate) fn systemd(fleet: &FleetName) -> impl FnOnce(SystemdError) -> Self {
        let fleet = fleet.clone();
        move |source| Self::Systemd { fleet, source }
    }

    /// The reason for programs; `None` if no guard has answered at all.
    #[must_use]
    pub const fn code(&self) -> Option<RefusalCode> {
        Some(match self {
            Self::Unreachable { .. } | Self::Protocol { .. } => return None,
            Self::Refused { code, .. } => *code,
            Self::UnknownFleet { .. } => RefusalCode::UnknownFleet,
            Self::NotClosed { .. } => RefusalCode::NotClosed,
            Self::ReleaseMissing { .. } => RefusalCode::ReleaseMissing,
            Self::LinkObstructed { .. } => RefusalCode::LinkObstructed,
            Self::StartFailed { .. } => RefusalCode::StartFailed,
            Self::ServiceExited { .. } => RefusalCode::ServiceExited,
            Self::Unit { source, .. } => source.code(),
            Self::Systemd { .. } | Self::Reload { .. } => RefusalCode::Systemd,
            Self::Unhealthy { .. } => RefusalCode::Unhealthy,
            Self::HookFailed { .. } => RefusalCode::HookFailed,
            Self::Lease { source, .. } => match source {
                LeaseRefusal::Halted => RefusalCode::Halted,
                LeaseRefusal::Fenced => RefusalCode::Fenced,
                LeaseRefusal::NotServing => RefusalCode::NotServing,
                LeaseRefusal::Armed(_) => RefusalCode::Armed,
                LeaseRefusal::NotArmed => RefusalCode::NotArmed,
                LeaseRefusal::Decided(_) => RefusalCode::Decided,
                LeaseRefusal::TooLate => RefusalCode::TooLate,
                LeaseRefusal::WrongTime => RefusalCode::WrongTime,
            },
            Self::Busy { .. } | Self::AskerGone { .. } => RefusalCode::Busy,
            Self::OutOfBounds { .. } => RefusalCode::BadRequest,
            Self::NotStopped { .. } => RefusalCode::NotStopped,
            Self::ShuttingDown => RefusalCode::ShuttingDown,
            Self::Corrupt { .. } | Self::Io { .. } | Self::Unmeasured { .. } => RefusalCode::Storage,
            Self::AlreadyRunning { .. }
            | Self::SocketInUse { .. }
            | Self::UnsafeFolder { .. }
            | Self::Configuration { .. }
            | Self::Config { .. } => RefusalCode::Setup,
        })
    }

    /// This error and all its sources in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

impl std::fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BadRequest => "bad-request",
            Self::UnsupportedProtocol => "unsupported-protocol",
            Self::Busy => "busy",
            Self::ForeignPeer => "foreign-peer",
            Self::UnknownFleet => "unknown-fleet",
            Self::NotClosed => "not-closed",
            Self::ReleaseMissing => "release-missing",
            Self::LinkObstructed => "link-obstructed",
            Self::StartFailed => "start-failed",
            Self::ServiceExited => "service-exited",
            Self::UnitMissing => "unit-missing",
            Self::UnitMasked => "unit-masked",
            Self::StartTimedOut => "start-timed-out",
            Self::StartBlocked => "start-blocked",
            Self::Ungated => "ungated",
            Self::Systemd => "systemd",
            Self::Unhealthy => "unhealthy",
            Self::HookFailed => "hook-failed",
            Self::Halted => "halted",
            Self::Fenced => "fenced",
            Self::NotServing => "not-serving",
            Self::Armed => "armed",
            Self::NotArmed => "not-armed",
            Self::Decided => "decided",
            Self::TooLate => "too-late",
            Self::WrongTime => "wrong-time",
            Self::NotStopped => "not-stopped",
            Self::ShuttingDown => "shutting-down",
            Self::Storage => "storage",
            Self::Setup => "setup",
        })
    }
}
