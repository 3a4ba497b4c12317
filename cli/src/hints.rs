//! What to do about failures that carry no code of their own.

use muster_mtls::ConnectFailure;
use tonic::Code;

/// What to do when credentials or the connection fail.
pub(crate) fn of_tls(error: &muster_mtls::Error) -> Option<String> {
    use muster_mtls::Error;
    if let Error::Connect(failure) = error {
        return Some(of_connection(failure));
    }
    matches!(error, Error::Read { .. }).then(|| "correct the path in the context".to_owned())
}

fn of_connection(failure: &ConnectFailure) -> String {
    use ConnectFailure as Failure;
    match failure {
        Failure::Unreachable { address, .. } => format!(
            "start the coordinator (`muster-coordinator run --config …/coordinator.toml`), or correct `coordinator` \
             in the context if it does not listen at {address}"
        ),
        Failure::TimedOut { .. } => {
            "check the address in the context, the network in between, and whether the coordinator hangs".to_owned()
        }
        Failure::NotTrusted { .. } => {
            "compare the `ca` in the context with the coordinator's, and look whether its certificate has expired or \
             lacks this address (`--coordinator-san` of `muster init`)"
                .to_owned()
        }
        Failure::Refused { .. } => {
            "look whether the certificate in the context has expired or comes from another `muster init`, and read \
             the coordinator's log: it names the reason"
                .to_owned()
        }
        Failure::Handshake { .. } | Failure::NoHttp2 { .. } | Failure::Http2 { .. } | _ => {
            "check that `coordinator` in the context is a muster coordinator's address".to_owned()
        }
    }
}

/// What to do when a call fails without a refusal.
pub(crate) fn of_status(status: &tonic::Status) -> Option<String> {
    if let Some(failure) = ConnectFailure::find(status) {
        return Some(failure.to_string());
    }
    let text = match status.code() {
        Code::Unavailable | Code::Unknown => "the coordinator is gone or restarting; try again in a moment",
        Code::PermissionDenied | Code::Unauthenticated => {
            "use a context whose certificate has a role that may do this"
        }
        Code::Unimplemented => "the coordinator is another version than this program; upgrade the older one",
        Code::DataLoss | Code::Internal => "read the coordinator's log",
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange => return None,
    };
    Some(text.to_owned())
}
