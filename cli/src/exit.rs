//! Exit codes: what a script learns without reading a line.

use std::process::ExitCode;

use muster_model::{Blocker, Code};
use serde::{Serialize, Serializer};

/// How a command ends. Only [`Exit::Proven`] is a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Exit {
    /// What was asked is done, or proven for N of N.
    Proven = 0,
    /// An internal or transport error.
    Internal = 1,
    /// The command line does not say what to do.
    Usage = 2,
    /// A host measured something else.
    Mismatch = 10,
    /// A host, or what was named, is missing, unreachable or unknown.
    Missing = 11,
    /// A signature, an approval or a policy does not hold.
    NotAllowed = 12,
    /// Stale or expired.
    Stale = 13,
    /// Another rollout is in the way.
    Superseded = 14,
    /// The roster is empty or has changed.
    RosterChanged = 15,
    /// Timed out while waiting.
    TimedOut = 16,
    /// Aborted or rolled back.
    Aborted = 17,
    /// Halted or fenced: some host serves nothing.
    Dark = 18,
}

impl Exit {
    /// The number that the shell sees.
    pub(crate) const fn number(self) -> u8 {
        self as u8
    }

    /// The exit code of one reason.
    #[expect(clippy::too_many_lines, reason = "it is a table with a line for each code")]
    pub(crate) const fn of_code(code: Code) -> Self {
        match code {
            Code::Mismatch
            | Code::NotDeployed
            | Code::Unmeasurable
            | Code::NotUniform
            | Code::SealBroken
            | Code::BlobDamaged
            | Code::BlobMissing
            | Code::NoSpace
            | Code::Drifted
            | Code::ReadOnly => Self::Mismatch,
            Code::HostMissing
            | Code::HostSilent
            | Code::HostNotInRoster
            | Code::DuplicateHost
            | Code::SessionLost
            | Code::FleetUnknown
            | Code::Rebuilding
            | Code::NothingToReconcile
            | Code::OrderUnknown
            | Code::ReleaseUnknown => Self::Missing,
            Code::SignatureInvalid
            | Code::BadAttestation
            | Code::OrderInvalid
            | Code::ApprovalMissing
            | Code::TooManyOrders
            | Code::TokenRefused
            | Code::TokenBoundElsewhere
            | Code::TooManyTokens
            | Code::RequestRefused
            | Code::NoIssuer
            | Code::TooManyCertificates
            | Code::RecoveryRefused
            | Code::HostEvicted
            | Code::BootGate
            | Code::AgentTooOld
            | Code::NotAllowed
            | Code::RemovalNeedsEvidence
            | Code::NotWithdrawn
            | Code::RolledBackDisk
            | Code::HistoryLost
            | Code::ReleaseExists
            | Code::ClosingUnproven
            | Code::FenceTooSlow
            | Code::DrainTooLong
            | Code::ClockMayPause
            | Code::ClockUncertain
            | Code::HookFailed
            | Code::NotEnforced
            | Code::NotAssured
            | Code::BrokenGlass
            | Code::GlassTokenRefused
            | Code::AuditRewritten
            | Code::Unmandated
            | Code::RolledBackCoordinator => Self::NotAllowed,
            Code::OrderExpired
            | Code::CertificateEnding
            | Code::ReleaseExpired
            | Code::OrderStale
            | Code::AlreadyServing
            | Code::StaleAttestation
            | Code::StaleRollout
            | Code::StaleEpoch
            | Code::StaleTerm
            | Code::StaleSession => Self::Stale,
            Code::Busy | Code::Superseded => Self::Superseded,
            Code::RosterEmpty | Code::RosterChanged => Self::RosterChanged,
            Code::TimedOut | Code::RenewalsSlow => Self::TimedOut,
            Code::AbortedByOperator
            | Code::CoordinatorRestarted
            | Code::NothingToAbort
            | Code::OrderCancelled
            | Code::Decided => Self::Aborted,
            Code::HostDark
            | Code::StartFailed
            | Code::WrongProcess
            | Code::StopFailed
            | Code::GuardFailed
            | Code::LeaseExpired
            | Code::Halted
            | Code::Unhealthy => Self::Dark,
            Code::WrongState | Code::Unsupported | Code::StoreFailed => Self::Internal,
        }
    }

    /// The exit code of several reasons: 18 before 17 before 16, since a dark host cannot wait; then the smallest of 10 to
    /// 15. Never [`Exit::Proven`]: something that was refused without a reason is an internal error.
    pub(crate) fn of_blockers(blockers: &[Blocker]) -> Self {
        let exits = || blockers.iter().map(|blocker| Self::of_code(blocker.code));
        let urgent = exits().filter(|exit| *exit >= Self::TimedOut).max();
        let ordinary = exits().filter(|exit| *exit >= Self::Mismatch).min();
        urgent.or(ordinary).unwrap_or(Self::Internal)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

impl Serialize for Exit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_of(codes: &[Code]) -> u8 {
        let blockers: Vec<Blocker> = codes.iter().map(|code| Blocker::fleet(*code, "")).collect();
        Exit::of_blockers(&blockers).number()
    }

    #[test]
    fn no_reason_is_a_success_and_none_reads_as_wrong_usage() {
        for code in Code::ALL {
            assert!(!matches!(Exit::of_code(*code), Exit::Proven | Exit::Usage), "{code}");
        }
        assert_eq!(exit_of(&[]), 1);
    }

    #[test]
    fn each_row_of_the_table_of_exit_codes() {
        for (code, number) in [
            (Code::Mismatch, 10),
            (Code::NotDeployed, 10),
            (Code::HostMissing, 11),
            (Code::ReleaseUnknown, 11),
            (Code::BadAttestation, 12),
            (Code::OrderExpired, 13),
            (Code::AlreadyServing, 13),
            (Code::Busy, 14),
            (Code::RosterChanged, 15),
            (Code::TimedOut, 16),
            (Code::ApprovalMissing, 12),
            (Code::OrderUnknown, 11),
            (Code::OrderCancelled, 17),
            (Code::AbortedByOperator, 17),
            (Code::FenceTooSlow, 12),
            (Code::RenewalsSlow, 16),
            (Code::StartFailed, 18),
            (Code::Halted, 18),
            (Code::LeaseExpired, 18),
            (Code::Unsupported, 1),
        ] {
            assert_eq!(Exit::of_code(code).number(), number, "{code}");
        }
    }

    #[test]
    fn of_several_reasons_the_most_urgent_counts() {
        assert_eq!(exit_of(&[Code::RosterChanged, Code::HostMissing, Code::Mismatch]), 10);
        assert_eq!(exit_of(&[Code::Busy, Code::HostMissing]), 11);
        assert_eq!(exit_of(&[Code::Mismatch, Code::TimedOut]), 16);
        assert_eq!(exit_of(&[Code::TimedOut, Code::AbortedByOperator, Code::Mismatch]), 17);
        assert_eq!(exit_of(&[Code::TimedOut, Code::StartFailed, Code::Mismatch]), 18);
        assert_eq!(exit_of(&[Code::WrongState, Code::Busy]), 14);
        assert_eq!(exit_of(&[Code::WrongState]), 1);
    }
}
