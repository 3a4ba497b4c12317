//! Why a local fleet did not do what was asked.

use std::path::PathBuf;
use std::time::Duration;

use muster_model::HostName;

use crate::clock::{millis, span_text};
use crate::exit::Exit;

/// Why a local fleet did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevError {
    /// One of our programs is not where it should be.
    #[error("there is no program {}", .path.display())]
    ProgramMissing {
        /// Where it was looked for: beside the `muster` that runs.
        path: PathBuf,
    },
    /// The fleet is up.
    #[error("the fleet in {} is already running, with all its {processes} processes", .dir.display())]
    AlreadyRunning {
        /// The fleet's folder.
        dir: PathBuf,
        /// How many processes it has.
        processes: usize,
    },
    /// The fleet has no such host.
    #[error("the fleet in {} has no host {host}", .dir.display())]
    NoSuchHost {
        /// The fleet's folder.
        dir: PathBuf,
        /// What was named.
        host: HostName,
        /// The hosts that it has.
        there_are: String,
    },
    /// Somebody else is starting or stopping the fleet.
    #[error("another `muster dev` is at work on {}", .dir.display())]
    InUse {
        /// The fleet's folder.
        dir: PathBuf,
    },
    /// The folder is none of ours.
    #[error("{} was not made by `muster dev up`", .dir.display())]
    NotAFleet {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder holds another fleet than the one asked for.
    #[error("{} holds {found}, and {wanted} was asked for", .dir.display())]
    Different {
        /// The folder.
        dir: PathBuf,
        /// What it holds.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// No port can be listened on.
    #[error("no free port was found on 127.0.0.1 between {first} and {last}")]
    NoPort {
        /// The first that was considered.
        first: u16,
        /// The last that was considered.
        last: u16,
    },
    /// A daemon ended by itself.
    #[error("{who} ended by itself; the end of its log {} is:\n{tail}", .log.display())]
    Ended {
        /// Which one.
        who: String,
        /// Where it logs.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A daemon runs, but does not do what it is for.
    #[error("{what} within {}; look into {}", span_text(millis(*.patience)), .log.display())]
    NotReady {
        /// What did not come about.
        what: String,
        /// How long it was waited for.
        patience: Duration,
        /// Where to look.
        log: PathBuf,
    },
    /// Processes did not end, not even by force.
    #[error("these processes are still there: {}", .left.join(", "))]
    StillRunning {
        /// What is left.
        left: Vec<String>,
    },
    /// A step of the demo did not end as it has to.
    #[error("step {step} of the demo did not end as it should: {what}")]
    Step {
        /// The step's number.
        step: usize,
        /// What happened instead.
        what: String,
    },
    /// A signal came before the end.
    #[error("interrupted")]
    Interrupted,
}

impl DevError {
    /// The command's exit code.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::AlreadyRunning { .. }
            | Self::InUse { .. }
            | Self::NotAFleet { .. }
            | Self::Different { .. } => Exit::Usage,
            Self::NoSuchHost { .. } => Exit::Missing,
            Self::Interrupted => Exit::Aborted,
            Self::NotReady { .. } => Exit::TimedOut,
            Self::ProgramMissing { .. }
            | Self::NoPort { .. }
            | Self::Ended { .. }
            | Self::StillRunning { .. }
            | Self::Step { .. } => Exit::Internal,
        }
    }

    /// What to do next.
    pub(crate) fn next(&self) -> Option<String> {
        match self {
            Self::ProgramMissing { .. } => Some(
                "build all programs into one folder: `cargo build`, without naming one of them".to_owned(),
            ),
            Self::AlreadyRunning { dir, .. } => {
                let dir = dir.display();
                Some(format!(
                    "look at it with `muster dev ps --dir {dir}`, or stop it with `muster dev down --dir {dir}`"
                ))
            }
            Self::NoSuchHost { there_are, .. } => Some(format!("its hosts are {there_are}")),
            Self::NotAFleet { .. } => Some("name the folder that was given to `muster dev up`".to_owned()),
            Self::Different { .. } => Some("leave the option out, or name another folder".to_owned()),
            Self::InUse { .. } => Some("wait until it has ended".to_owned()),
            Self::NoPort { .. }
            | Self::Ended { .. }
            | Self::NotReady { .. }
            | Self::StillRunning { .. }
            | Self::Step { .. }
            | Self::Interrupted => None,
        }
    }
}
