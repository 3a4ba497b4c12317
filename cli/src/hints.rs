//! What to do about failures that carry no code of their own.

use std::error::Error as StdError;
use std::io;
use std::path::Path;

use muster_artifact::ArtifactError;
use muster_mtls::ConnectFailure;
use tonic::Code;

use crate::context::CONTEXT_FILE;

/// What failed of a call, as the completion of "cannot …: ". A connection that ended is not an answer.
pub(crate) fn what_failed(status: &tonic::Status) -> String {
    if status.source().is_some() {
        "the connection to the coordinator failed".to_owned()
    } else {
        format!("the coordinator answered `{}`", status.code())
    }
}

/// Why a call failed, in one line: the innermost cause, as the layers above it only name themselves.
pub(crate) fn why_failed(status: &tonic::Status) -> Option<String> {
    if let Some(failure) = ConnectFailure::find(status) {
        return Some(why_not_connected(failure));
    }
    match status.source() {
        Some(source) => Some(innermost(source)),
        None => (!status.message().is_empty()).then(|| status.message().to_owned()),
    }
}

/// Why there is no connection, in one line.
pub(crate) fn why_not_connected(failure: &ConnectFailure) -> String {
    use ConnectFailure as Failure;
    match failure {
        Failure::Unreachable { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
            "nobody listens there".to_owned()
        }
        Failure::NotTrusted { source, .. } => {
            format!("its certificate does not prove that it is our coordinator: {}", innermost(source))
        }
        Failure::Refused { source, .. } => {
            format!("it refused the certificate of this context: {}", innermost(source))
        }
        Failure::Unreachable { source, .. } | Failure::Handshake { source, .. } => {
            format!("{failure}: {}", innermost(source))
        }
        Failure::Http2 { source, .. } => format!("{failure}: {}", innermost(source)),
        Failure::TimedOut { .. } | Failure::NoHttp2 { .. } | _ => failure.to_string(),
    }
}

/// What to do about a context file that cannot be read.
pub(crate) fn of_context(path: &Path) -> String {
    let inside = path.join("operator").join(CONTEXT_FILE);
    if inside.is_file() {
        return format!("name the file in that folder: --context {}", inside.display());
    }
    format!(
        "correct --context or MUSTER_CONTEXT: `muster init DIR` and `muster dev up --dir DIR` write \
         DIR/operator/{CONTEXT_FILE}"
    )
}

/// What to do about a file that cannot be read or written.
pub(crate) fn of_file(error: &io::Error) -> Option<String> {
    let is_in_the_way = error.kind() == io::ErrorKind::AlreadyExists;
    is_in_the_way.then(|| "name another file, or move this one away: nothing is overwritten".to_owned())
}

/// What to do about a tree that cannot be packed.
pub(crate) fn of_tree(error: &ArtifactError) -> Option<String> {
    let is_no_folder = matches!(error, ArtifactError::TreeMissing { .. } | ArtifactError::NotATree { .. });
    is_no_folder.then(|| "name the folder whose content is the release".to_owned())
}

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
            "start the coordinator (`muster-coordinator run --config …/coordinator.toml`, or `muster dev up` for a \
             local fleet), or correct `coordinator` in the context if it does not listen at {address}"
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
        return Some(of_connection(failure));
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

/// The last of a chain of causes.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}
