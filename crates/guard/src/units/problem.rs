//! Why a unit was not started, told from what systemd says of it.

use muster_model::BootTime;
use muster_systemd::{ActiveState, JobResult, LoadState, MainEnd, Unit};

use crate::error::RefusalCode;
use crate::protocol::{ExitKind, ServiceState};

/// Why a unit was not started, or does not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitProblem {
    /// There is no file of this name.
    #[error("systemd knows no such unit")]
    Missing,
    /// It was masked.
    #[error("it is masked; `systemctl unmask` lifts that")]
    Masked,
    /// Its file cannot be used.
    #[error("its file cannot be used ({0})")]
    Broken(String),
    /// It took longer than it may.
    #[error("it was not ready in time; its journal tells more (`journalctl -u`)")]
    NotReady,
    /// Its main process ended.
    #[error("it ended as soon as it was started: {0}; its journal tells more (`journalctl -u`)")]
    Ended(MainEnd),
    /// It is active without a process.
    #[error("it has no main process; `Type=oneshot` cannot be served")]
    NoMainProcess,
    /// A condition of its file does not hold.
    #[error("a condition of its file does not hold (`systemctl status` tells which)")]
    Condition,
    /// `muster-guard permit` said no.
    #[error("its start gate refused; its journal tells why (`journalctl -u`)")]
    Refused,
    /// A unit that it needs failed.
    #[error("a unit that it depends on failed")]
    Dependency,
    /// It was started too often.
    #[error("systemd has started it too often (`StartLimitBurst=`)")]
    TooOften,
    /// Another request to systemd took the start's place.
    #[error("its start was overtaken by another request to systemd")]
    Overtaken,
    /// The drop-in that asks for a permit is not in force.
    #[error("its start gate is not in force: {0}")]
    Ungated(String),
    /// Any other end of the job.
    #[error("its start ended as `{job}`, the unit as `{unit}`")]
    Other {
        /// How the job ended.
        job: String,
        /// How the unit did.
        unit: String,
    },
}

impl UnitProblem {
    pub(crate) const fn code(&self) -> RefusalCode {
        match self {
            Self::Missing | Self::Broken(_) => RefusalCode::UnitMissing,
            Self::Masked => RefusalCode::UnitMasked,
            Self::NotReady => RefusalCode::StartTimedOut,
            Self::Ended(_) => RefusalCode::ServiceExited,
            Self::NoMainProcess | Self::TooOften | Self::Other { .. } => RefusalCode::StartFailed,
            Self::Condition | Self::Refused | Self::Dependency | Self::Overtaken => RefusalCode::StartBlocked,
            Self::Ungated(_) => RefusalCode::Ungated,
        }
    }
}

/// Whether a start can be asked for at all.
pub(super) fn startable(unit: &Unit) -> Result<(), UnitProblem> {
    match &unit.load {
        LoadState::Loaded => Ok(()),
        LoadState::NotFound => Err(UnitProblem::Missing),
        LoadState::Masked => Err(UnitProblem::Masked),
        LoadState::Broken(detail) => Err(UnitProblem::Broken(detail.clone())),
    }
}

/// How a start that was asked for went; the number is that of the main process.
///
/// systemd calls a job done that a condition kept from happening, and tells a start that took too long from one that
/// failed in the unit only.
pub(super) fn started(job: &JobResult, unit: &Unit) -> Result<u32, UnitProblem> {
    match (job, unit.active, unit.result.as_str()) {
        (_, _, "exec-condition") => return Err(UnitProblem::Refused),
        (_, _, "timeout") | (JobResult::Timeout, _, _) => return Err(UnitProblem::NotReady),
        (_, _, "start-limit-hit") => return Err(UnitProblem::TooOften),
        (JobResult::Dependency, _, _) => return Err(UnitProblem::Dependency),
        (JobResult::Canceled | JobResult::Skipped, _, _) => return Err(UnitProblem::Overtaken),
        (JobResult::Done, ActiveState::Active | ActiveState::Reloading, _) => {
            return unit.main_pid.ok_or(UnitProblem::NoMainProcess);
        }
        (JobResult::Done, ActiveState::Inactive, "success") if !unit.condition_held => {
            return Err(UnitProblem::Condition);
        }
        _ => {}
    }
    match unit.main_end {
        Some(end) => Err(UnitProblem::Ended(end)),
        None => Err(UnitProblem::Other { job: job.to_string(), unit: unit.result.clone() }),
    }
}

/// What one unit does.
pub(super) fn state(unit: &Unit, at_boot_ms: BootTime) -> ServiceState {
    let status = match unit.main_end {
        Some(MainEnd::Code(code)) => ExitKind::Code(code),
        Some(MainEnd::Signal(signal)) => ExitKind::Signal(signal),
        None => ExitKind::Unknown,
    };
    match (unit.active, unit.main_pid) {
        (ActiveState::Active | ActiveState::Reloading, Some(pid)) => {
            ServiceState::Running { pid, started_boot_ms: at_boot_ms }
        }
        (ActiveState::Activating, _) if unit.sub.starts_with("auto-restart") => {
            ServiceState::Restarting { status, at_boot_ms }
        }
        (ActiveState::Inactive | ActiveState::Failed, _) if unit.main_end.is_none() => ServiceState::Stopped,
        (ActiveState::Inactive | ActiveState::Failed, _) => ServiceState::Exited { status, at_boot_ms },
        (ActiveState::Activating, _) if unit.has_job => ServiceState::Starting,
        // Being stopped, active without a process, or in a state of a later systemd: something may be alive.
        _ => ServiceState::Starting,
    }
}
