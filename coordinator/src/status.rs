//! How refusals and failures become gRPC statuses.

use muster_artifact::ArtifactError;
use muster_model::{Blocker, Code, Refusal};
use muster_proto::convert::ConvertError;
use muster_proto::v1;
use muster_store::StoreError;
use prost::Message as _;
use tonic::Status;

/// A status travels in HTTP headers, of which a client reads 16 KiB, in base64.
const DETAILS_BYTES_MAX: usize = 6 << 10;
const TEXT_BYTES_MAX: usize = 1 << 10;
/// What an event may carry of reasons; clients read messages of 64 MiB.
const EVENT_BYTES_MAX: usize = 16 << 20;
/// What a blocker takes beside its text.
const PER_BLOCKER_BYTES: usize = 32;

/// A refusal as a status: the text for people, the refusal itself in the details.
pub(crate) fn refused(mut refusal: Refusal) -> Status {
    let code = refusal.code().map_or(tonic::Code::FailedPrecondition, grpc_code);
    shorten(&mut refusal.blockers, DETAILS_BYTES_MAX);
    let mut text = refusal.to_string();
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    let details = v1::Refusal::from(refusal).encode_to_vec();
    Status::with_details(code, text, details.into())
}

/// Keeps as many blockers as fit into `bytes_max`, and says how many are left out.
pub(crate) fn shorten(blockers: &mut Vec<Blocker>, bytes_max: usize) {
    let mut bytes = 0;
    let fits = blockers.iter().take_while(|blocker| {
        bytes += blocker.to_string().len() + PER_BLOCKER_BYTES;
        bytes <= bytes_max
    });
    let (kept, all) = (fits.count(), blockers.len());
    if kept < all {
        let code = blockers[kept].code;
        blockers.truncate(kept);
        let detail = format!("{} more reasons are left out here; `muster status` names them all", all - kept);
        blockers.push(Blocker::fleet(code, detail));
    }
}

/// Reasons in an event of a stream, which has more room than a status.
pub(crate) fn listed(mut blockers: Vec<Blocker>) -> Vec<v1::Blocker> {
    shorten(&mut blockers, EVENT_BYTES_MAX);
    blockers.into_iter().map(v1::Blocker::from).collect()
}

/// Why the database took no record.
pub(crate) fn not_stored(error: &StoreError) -> Refusal {
    let is_full = matches!(error, StoreError::NoSpace { .. });
    Refusal::of(if is_full { Code::NoSpace } else { Code::StoreFailed }, chain(error))
}

/// What is wrong with a blob or a document, as whoever asked needs to hear it.
pub(crate) fn blob_refusal(error: &ArtifactError) -> Refusal {
    Refusal::of(blob_code(error), format!("in the coordinator's store: {}", chain(error)))
}

pub(crate) fn blob_code(error: &ArtifactError) -> Code {
    if let ArtifactError::BlobMissing { .. } = error {
        return Code::BlobMissing;
    }
    if let ArtifactError::Damaged { .. }
    | ArtifactError::WrongContent { .. }
    | ArtifactError::WrongSize { .. } = error
    {
        return Code::BlobDamaged;
    }
    if let ArtifactError::NoSpace { .. } = error {
        return Code::NoSpace;
    }
    if let ArtifactError::ReadOnly { .. } = error { Code::ReadOnly } else { Code::StoreFailed }
}

/// A request that is not well formed.
pub(crate) fn malformed(error: ConvertError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Something in the coordinator failed: the chain of reasons is logged, the caller learns the first.
pub(crate) fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> Status {
    tracing::error!(what, error = &error as &dyn tracing::Value, "request failed");
    Status::internal(format!("{what}: {}", chain(error)))
}

/// An error with its sources, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The innermost reason of an error. A broken stream is wrapped by every layer that it passes, each repeating the others.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[expect(clippy::too_many_lines, reason = "it is a table with a line for each code")]
fn grpc_code(code: Code) -> tonic::Code {
    match code {
        Code::NotAllowed => tonic::Code::PermissionDenied,
        Code::FleetUnknown | Code::ReleaseUnknown | Code::OrderUnknown | Code::BlobMissing => {
            tonic::Code::NotFound
        }
        Code::Busy | Code::Superseded => tonic::Code::Aborted,
        Code::Unsupported => tonic::Code::Unimplemented,
        Code::ReleaseExists => tonic::Code::AlreadyExists,
        Code::CoordinatorRestarted => tonic::Code::Unavailable,
        Code::TimedOut => tonic::Code::DeadlineExceeded,
        Code::StoreFailed => tonic::Code::Internal,
        Code::HostMissing
        | Code::HostSilent
        | Code::HostNotInRoster
        | Code::HostDark
        | Code::DuplicateHost
        | Code::RolledBackDisk
        | Code::HistoryLost
        | Code::AgentTooOld
        | Code::NotDeployed
        | Code::Mismatch
        | Code::Unmeasurable
        | Code::NotUniform
        | Code::StaleAttestation
        | Code::BadAttestation
        | Code::BootGate
        | Code::SealBroken
        | Code::NoSpace
        | Code::ReadOnly
        | Code::BlobDamaged
        | Code::GuardFailed
        | Code::LeaseExpired
        | Code::FenceTooSlow
        | Code::DrainTooLong
        | Code::RenewalsSlow
        | Code::ClockMayPause
        | Code::ClockUncertain
        | Code::Halted
        | Code::HookFailed
        | Code::NotEnforced
        | Code::NotAssured
        | Code::BrokenGlass
        | Code::GlassTokenRefused
        | Code::Unhealthy
        | Code::StartFailed
        | Code::WrongProcess
        | Code::Drifted
        | Code::StopFailed
        | Code::ReleaseExpired
        | Code::RosterEmpty
        | Code::RosterChanged
        | Code::RemovalNeedsEvidence
        | Code::NotWithdrawn
        | Code::SignatureInvalid
        | Code::OrderInvalid
        | Code::OrderExpired
        | Code::OrderStale
        | Code::ApprovalMissing
        | Code::OrderCancelled
        | Code::TooManyOrders
        | Code::TokenRefused
        | Code::TokenBoundElsewhere
        | Code::TooManyTokens
        | Code::RequestRefused
        | Code::NoIssuer
        | Code::TooManyCertificates
        | Code::RecoveryRefused
        | Code::HostEvicted
        | Code::CertificateEnding
        | Code::AlreadyServing
        | Code::StaleRollout
        | Code::StaleEpoch
        | Code::StaleTerm
        | Code::StaleSession
        | Code::RolledBackCoordinator
        | Code::AuditRewritten
        | Code::Unmandated
        | Code::Rebuilding
        | Code::NothingToReconcile
        | Code::ClosingUnproven
        | Code::WrongState
        | Code::Decided
        | Code::NothingToAbort
        | Code::AbortedByOperator
        | Code::SessionLost => tonic::Code::FailedPrecondition,
    }
}

#[cfg(test)]
mod tests {
    use muster_model::HostName;

    use super::*;

    fn reasons(count: usize, text: &str) -> Vec<Blocker> {
        let host = |number| HostName::new(&format!("host-{number}")).unwrap();
        (0..count).map(|number| Blocker::host(Code::NotDeployed, &host(number), text)).collect()
    }

    #[test]
    fn a_refusal_with_very_many_reasons_is_answered_within_what_a_client_reads() {
        for text in ["it does not have the release", &"ü".repeat(1023), &"x".repeat(100_000)] {
            let all = reasons(20_000, text);
            let status = refused(Refusal { blockers: all.clone() });
            assert_eq!(status.code(), tonic::Code::FailedPrecondition);
            assert!(status.message().len() <= TEXT_BYTES_MAX, "{}", status.message().len());
            assert!(status.details().len() <= DETAILS_BYTES_MAX + 256, "{}", status.details().len());
            let wire = v1::Refusal::decode(status.details()).unwrap();
            let (last, kept) = wire.blockers.split_last().unwrap();
            assert_eq!(
                kept,
                reasons(kept.len(), text).into_iter().map(v1::Blocker::from).collect::<Vec<_>>()
            );
            let left_out = (all.len() - kept.len()).to_string();
            assert!(last.detail.starts_with(&left_out) && last.code == "not-deployed", "{last:?}");
        }
    }

    #[test]
    fn a_refusal_that_fits_is_answered_whole() {
        let status = refused(Refusal { blockers: reasons(20, "it does not have the release") });
        assert_eq!(v1::Refusal::decode(status.details()).unwrap().blockers.len(), 20);
    }

    #[test]
    fn only_a_full_disk_is_called_one() {
        let io = |number| std::io::Error::from_raw_os_error(number);
        let path = || std::path::PathBuf::from("ledger");
        for (errno, code) in [
            (28, Code::NoSpace),     // ENOSPC
            (122, Code::NoSpace),    // EDQUOT
            (5, Code::StoreFailed),  // EIO
            (30, Code::StoreFailed), // EROFS
        ] {
            let error = StoreError::io("append to", &path(), io(errno));
            assert_eq!(not_stored(&error).code(), Some(code), "{errno}");
        }
        assert_eq!(not_stored(&StoreError::Poisoned).code(), Some(Code::StoreFailed));
        assert_eq!(not_stored(&StoreError::BodyTooLarge { len: 1 }).code(), Some(Code::StoreFailed));
        let (doing, source) = ("write", io(28));
        let blob = [
            (ArtifactError::NoSpace { doing, path: path(), source }, Code::NoSpace),
            (ArtifactError::ReadOnly { doing, path: path(), source: io(30) }, Code::ReadOnly),
            (ArtifactError::Io { doing, path: path(), source: io(5) }, Code::StoreFailed),
        ];
        for (error, code) in blob {
            let refusal = blob_refusal(&error);
            assert_eq!(refusal.code(), Some(code));
            assert!(refusal.to_string().contains("the coordinator's store"), "{refusal}");
        }
    }
}
