//! How refusals and failures become gRPC statuses.

use muster_model::{Blocker, Code, Refusal};
use muster_proto::convert::ConvertError;
use muster_proto::v1;
use prost::Message as _;
use tonic::Status;

/// A status travels in HTTP headers, of which a client reads 16 KiB, in base64.
const DETAILS_BYTES_MAX: usize = 6 << 10;
const TEXT_BYTES_MAX: usize = 1 << 10;
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

fn grpc_code(code: Code) -> tonic::Code {
    match code {
        Code::NotAllowed => tonic::Code::PermissionDenied,
        Code::FleetUnknown | Code::ReleaseUnknown | Code::BlobMissing => tonic::Code::NotFound,
        Code::Busy | Code::Superseded => tonic::Code::Aborted,
        Code::Unsupported => tonic::Code::Unimplemented,
        Code::ReleaseExists => tonic::Code::AlreadyExists,
        Code::CoordinatorRestarted => tonic::Code::Unavailable,
        Code::TimedOut => tonic::Code::DeadlineExceeded,
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
        | Code::StartFailed
        | Code::StopFailed
        | Code::ReleaseExpired
        | Code::RosterEmpty
        | Code::RosterChanged
        | Code::RemovalNeedsEvidence
        | Code::SignatureInvalid
        | Code::OrderInvalid
        | Code::OrderExpired
        | Code::OrderStale
        | Code::AlreadyServing
        | Code::StaleRollout
        | Code::StaleEpoch
        | Code::StaleTerm
        | Code::StaleSession
        | Code::RolledBackCoordinator
        | Code::ClosingUnproven
        | Code::WrongState
        | Code::Decided
        | Code::NothingToAbort
        | Code::AbortedByOperator
        | Code::SessionLost => tonic::Code::FailedPrecondition,
    }
}
