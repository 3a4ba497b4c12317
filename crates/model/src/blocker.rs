//! Blockers: the named reasons why a gate is shut.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::HostName;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why something was refused: a stable code that scripts may rely on and `muster explain` describes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// All codes, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable text form.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    /// The host has no connection to the coordinator, so nothing is known of it.
    HostMissing = "host-missing",
    /// The host did not answer in time although it is connected.
    HostSilent = "host-silent",
    /// The host is not in the fleet's roster.
    HostNotInRoster = "host-not-in-roster",
    /// The host serves nothing while its fleet serves a release.
    HostDark = "host-dark",
    /// The same host identity is connected twice.
    DuplicateHost = "duplicate-host",
    /// The host's journal is older than what it told before.
    RolledBackDisk = "rolled-back-disk",
    /// The host lost its journal and cannot say what it promised.
    HistoryLost = "history-lost",
    /// The host's agent is too old to take part.
    AgentTooOld = "agent-too-old",
    /// The host does not have the release's bytes.
    NotDeployed = "not-deployed",
    /// The host measured something else than the release.
    Mismatch = "mismatch",
    /// What the host serves has changed on its disk since it was admitted.
    Drifted = "drifted",
    /// The host could not read what it had to measure.
    Unmeasurable = "unmeasurable",
    /// Hosts disagree on an external path that must be uniform.
    NotUniform = "not-uniform",
    /// The attestation is for another rollout, another challenge or another session.
    StaleAttestation = "stale-attestation",
    /// An attestation's signature does not verify with the host's key in the roster.
    BadAttestation = "bad-attestation",
    /// The host's link outlives a reboot and the fleet's policy does not accept that.
    BootGate = "boot-gate",
    /// The tree changed after it was sealed.
    SealBroken = "seal-broken",
    /// The host has no space left for the release or its journal.
    NoSpace = "no-space",
    /// The host's file system is read-only.
    ReadOnly = "read-only",
    /// The coordinator could not write its state, for another reason than a full disk.
    StoreFailed = "store-failed",
    /// A blob that the coordinator holds does not have the content its name states.
    BlobDamaged = "blob-damaged",
    /// A blob that the release needs is not in the coordinator's store.
    BlobMissing = "blob-missing",
    /// The host's guard does not answer or refused.
    GuardFailed = "guard-failed",
    /// The host was not heard in time while it was armed, and has stopped serving by itself.
    LeaseExpired = "lease-expired",
    /// Fencing takes longer on this host than the fleet's timing allows, or was never tried.
    FenceTooSlow = "fence-too-slow",
    /// The service may take longer to stop than the lease lasts.
    DrainTooLong = "drain-too-long",
    /// The host's answers take so long that it could not renew its lease.
    RenewalsSlow = "renewals-slow",
    /// The host's clock may stand still while the host is paused, and the fleet's policy does not accept that.
    ClockMayPause = "clock-may-pause",
    /// The host's time of day may be off by more than a flip in fast mode allows.
    ClockUncertain = "clock-uncertain",
    /// The fleet or the host was halted, and serves nothing until an order resumes it.
    Halted = "halted",
    /// Something was started on the host without a coordinator, and operators have not settled that.
    BrokenGlass = "broken-glass",
    /// The break-glass token lets this host start nothing.
    GlassTokenRefused = "glass-token-refused",
    /// The host's own configuration has it observe, or be a gate for other tools, and take part in no flip.
    NotEnforced = "not-enforced",
    /// The host's own configuration wants files sealed by its kernel, and they are not.
    NotAssured = "not-assured",
    /// A hook of the host's failed or took too long.
    HookFailed = "hook-failed",
    /// The service did not start, or ended at once.
    StartFailed = "start-failed",
    /// A process of the service executes something else than the release, or outlived the flip.
    WrongProcess = "wrong-process",
    /// The service runs, but its health check does not pass.
    Unhealthy = "unhealthy",
    /// The service or link did not stop.
    StopFailed = "stop-failed",
    /// No such fleet.
    FleetUnknown = "fleet-unknown",
    /// No such release in this fleet.
    ReleaseUnknown = "release-unknown",
    /// The release has expired.
    ReleaseExpired = "release-expired",
    /// A different release has this version already.
    ReleaseExists = "release-exists",
    /// The roster lists no hosts, or there is none.
    RosterEmpty = "roster-empty",
    /// The roster is not the one the order or question was made for.
    RosterChanged = "roster-changed",
    /// A host cannot leave the roster without proof that it no longer serves.
    RemovalNeedsEvidence = "removal-needs-evidence",
    /// A host that the roster sets aside has not proven by its own word that it has closed.
    NotWithdrawn = "not-withdrawn",
    /// A document's signatures do not hold.
    SignatureInvalid = "signature-invalid",
    /// The order does not say what it is used for.
    OrderInvalid = "order-invalid",
    /// The order is not valid yet or no longer.
    OrderExpired = "order-expired",
    /// The order starts from a release that is not the one being served.
    OrderStale = "order-stale",
    /// Too few operators have signed the order.
    ApprovalMissing = "approval-missing",
    /// No such order waits for approvals.
    OrderUnknown = "order-unknown",
    /// An operator took the order back.
    OrderCancelled = "order-cancelled",
    /// As many orders wait for approvals as may.
    TooManyOrders = "too-many-orders",
    /// The token does not let this host enrol.
    TokenRefused = "token-refused",
    /// Another machine has enrolled with the token.
    TokenBoundElsewhere = "token-bound-elsewhere",
    /// As many tokens are in use as may.
    TooManyTokens = "too-many-tokens",
    /// The request for a certificate proves nothing.
    RequestRefused = "request-refused",
    /// The coordinator has no authority that issues certificates.
    NoIssuer = "no-issuer",
    /// The host was given as many certificates as it may have.
    TooManyCertificates = "too-many-certificates",
    /// The host cannot recover from an expired certificate by itself.
    RecoveryRefused = "recovery-refused",
    /// The host was evicted.
    HostEvicted = "host-evicted",
    /// A certificate will end soon, or its renewal fails.
    CertificateEnding = "certificate-ending",
    /// The fleet serves this release already.
    AlreadyServing = "already-serving",
    /// Another rollout is under way.
    Busy = "busy",
    /// Another rollout has taken this one's place.
    Superseded = "superseded",
    /// The message belongs to a rollout that is over.
    StaleRollout = "stale-rollout",
    /// The message belongs to an epoch that is over.
    StaleEpoch = "stale-epoch",
    /// The message comes from a coordinator that no longer leads.
    StaleTerm = "stale-term",
    /// The message does not belong to the current session.
    StaleSession = "stale-session",
    /// The coordinator's database is older than what hosts remember.
    RolledBackCoordinator = "rolled-back-coordinator",
    /// The operators have not signed that a coordinator of this incarnation leads the fleet.
    Unmandated = "unmandated",
    /// The coordinator is being rebuilt, and leads nothing before all hosts were heard.
    Rebuilding = "rebuilding",
    /// The coordinator's audit log does not continue the one that the host has seen.
    AuditRewritten = "audit-rewritten",
    /// The audit log has no such override that nobody has looked at.
    NothingToReconcile = "nothing-to-reconcile",
    /// Not all closing secrets were shown, so that some host may still serve.
    ClosingUnproven = "closing-unproven",
    /// The message does not fit the state it met.
    WrongState = "wrong-state",
    /// The rollout was decided and can no longer be aborted.
    Decided = "decided",
    /// There is nothing to abort.
    NothingToAbort = "nothing-to-abort",
    /// An operator gave the rollout up.
    AbortedByOperator = "aborted-by-operator",
    /// The coordinator was restarted before the rollout was decided.
    CoordinatorRestarted = "coordinator-restarted",
    /// A host's session ended while a rollout depended on it.
    SessionLost = "session-lost",
    /// A step took longer than it may.
    TimedOut = "timed-out",
    /// The caller's role may not do this.
    NotAllowed = "not-allowed",
    /// This program does not support what was asked.
    Unsupported = "unsupported",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a known code")]
pub struct UnknownCode(String);

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.as_str() == text)
            .ok_or_else(|| UnknownCode(text.escape_debug().to_string()))
    }
}

impl TryFrom<String> for Code {
    type Error = UnknownCode;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Code> for String {
    fn from(code: Code) -> Self {
        code.as_str().to_owned()
    }
}

/// One named reason why a gate is shut, with the host and the file where it applies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocker {
    /// What kind of reason.
    pub code: Code,
    /// The host, unless it is the whole fleet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// The path in the tree or on the host, in its text form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What should be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What was measured instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
    /// The rest, in words.
    pub detail: String,
}

impl Blocker {
    /// A blocker of the whole fleet.
    pub fn fleet(code: Code, detail: impl Into<String>) -> Self {
        Self { code, host: None, path: None, expected: None, measured: None, detail: detail.into() }
    }

    /// A blocker at one host.
    pub fn host(code: Code, host: &HostName, detail: impl Into<String>) -> Self {
        Self { host: Some(host.clone()), ..Self::fleet(code, detail) }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(host) = &self.host {
            write!(f, " at {host}")?;
        }
        if let Some(path) = &self.path {
            write!(f, ", {path}")?;
        }
        write!(f, ": {}", self.detail)?;
        match (&self.expected, &self.measured) {
            (Some(expected), Some(measured)) => write!(f, " (expected {expected}, measured {measured})"),
            (Some(expected), None) => write!(f, " (expected {expected})"),
            (None, Some(measured)) => write!(f, " (measured {measured})"),
            (None, None) => Ok(()),
        }
    }
}

/// A refusal is data, not an error: it names who, what and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The reasons; at least one.
    pub blockers: Vec<Blocker>,
}

impl Refusal {
    /// A refusal for one reason.
    #[must_use]
    pub fn because(blocker: Blocker) -> Self {
        Self { blockers: vec![blocker] }
    }

    /// A refusal of the whole fleet for one reason.
    pub fn of(code: Code, detail: impl Into<String>) -> Self {
        Self::because(Blocker::fleet(code, detail))
    }

    /// The first reason's code.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        self.blockers.first().map(|blocker| blocker.code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, blocker) in self.blockers.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            fmt::Display::fmt(blocker, f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_unique_kebab_case_texts_that_round_trip() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        for (code, text) in Code::ALL.iter().zip(&texts) {
            assert_eq!(text.parse(), Ok(*code));
            assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{text}");
        }
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
        assert!("no-such".parse::<Code>().is_err());
    }

    #[test]
    fn a_blocker_names_host_path_expected_and_measured() {
        let host = HostName::new("host-5").expect("a name");
        let blocker = Blocker {
            path: Some("bin/server".to_owned()),
            expected: Some("mode 0755".to_owned()),
            measured: Some("mode 0777".to_owned()),
            ..Blocker::host(Code::Mismatch, &host, "the mode differs")
        };
        assert_eq!(
            blocker.to_string(),
            "mismatch at host-5, bin/server: the mode differs (expected mode 0755, measured mode 0777)"
        );
    }
}
