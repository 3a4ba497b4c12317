//! Why a command failed, what its exit code is, and what to do next.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use muster_artifact::ArtifactError;
use muster_model::{Blocker, DocumentError, FleetName, Refusal};
use muster_proto::convert::ConvertError;
use muster_trust::TrustError;

use crate::clock::{millis, span_text};
use crate::commands::dev::DevError;
use crate::exit::Exit;
use crate::hints;
use crate::resolve::ResolveError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The command line fits together, but not with what it names.
    #[error("{what}")]
    Usage {
        /// What does not fit.
        what: String,
        /// What to do instead.
        next: String,
    },
    /// The coordinator refused, with reasons.
    #[error("cannot {doing}: it was refused")]
    Refused {
        /// What was asked.
        doing: String,
        /// The reasons.
        refusal: Refusal,
        /// What to do next, where that does not follow from the reasons' codes.
        next: Option<String>,
    },
    /// A call failed for a reason that is not a refusal.
    #[error("cannot {doing}: {}", hints::what_failed(.status))]
    Call {
        /// What was asked.
        doing: String,
        /// What came back.
        #[source]
        status: Box<tonic::Status>,
    },
    /// A call's answers broke off.
    #[error(
        "the connection broke off while the coordinator was to {doing}; what it has begun goes on without us"
    )]
    Lost {
        /// What was asked.
        doing: String,
        /// What came instead of the next answer, if it was a failure and not just an end.
        #[source]
        status: Option<Box<tonic::Status>>,
    },
    /// No answer in time.
    #[error("cannot {doing}: there was no answer for {}", span_text(millis(*.after)))]
    TimedOut {
        /// What was asked.
        doing: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The coordinator answered something that is no answer.
    #[error("cannot {doing}: the coordinator's answer makes no sense (is it another version?)")]
    Answer {
        /// What was asked.
        doing: String,
        /// What is wrong with it.
        #[source]
        source: ConvertError,
    },
    /// The coordinator's answer contradicts itself or what was asked.
    #[error("cannot {doing}: {what}")]
    Contradiction {
        /// What was asked.
        doing: String,
        /// What does not fit.
        what: String,
    },
    /// Credentials, or the connection itself.
    #[error("cannot {doing}")]
    Tls {
        /// What was being done.
        doing: String,
        /// What went wrong.
        #[source]
        source: Box<muster_mtls::Error>,
    },
    /// A document is not believed, or cannot be signed.
    #[error("cannot {doing}")]
    Trust {
        /// What was being done.
        doing: String,
        /// Why not.
        #[source]
        source: Box<TrustError>,
    },
    /// An audit log does not hold.
    #[error("cannot {doing}")]
    Audit {
        /// What was being done.
        doing: String,
        /// What of it does not hold.
        #[source]
        source: Box<muster_audit::ExportFault>,
    },
    /// A document cannot be made from these values.
    #[error("cannot {doing}")]
    Document {
        /// What was being done.
        doing: String,
        /// Why not.
        #[source]
        source: DocumentError,
    },
    /// A tree cannot be read or packed.
    #[error("cannot {doing}")]
    Tree {
        /// What was being done.
        doing: String,
        /// Why not.
        #[source]
        source: Box<ArtifactError>,
    },
    /// A release cannot be found by what was given.
    #[error(transparent)]
    Release(#[from] ResolveError),
    /// What was asked for is not there, or not there yet.
    #[error("{what}")]
    Absent {
        /// What is not there.
        what: String,
        /// What to do instead.
        next: String,
    },
    /// No fleet was named and there is none or more than one.
    #[error("{}", fleet_unclear(.candidates))]
    FleetUnclear {
        /// The fleets that there are.
        candidates: Vec<FleetName>,
    },
    /// A fleet on this machine did not do what was asked.
    #[error(transparent)]
    Dev(#[from] DevError),
    /// There is no context file.
    #[error("there is no context: no --context, no MUSTER_CONTEXT, and no file {}", .looked_for.display())]
    NoContext {
        /// The file that was looked for last.
        looked_for: PathBuf,
    },
    /// The context file that was named cannot be read.
    #[error("cannot read the context {}", .path.display())]
    ContextFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of ours cannot be understood.
    #[error("{} cannot be used: {reason}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system did not do what it always does.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl CliError {
    /// A closure that gives the error of a file operation its context.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// A refusal whose codes say what to do.
    pub(crate) fn refused(doing: impl Into<String>, refusal: Refusal) -> Self {
        Self::Refused { doing: doing.into(), refusal, next: None }
    }

    /// The same for what is not believed.
    pub(crate) fn trust(doing: impl Into<String>) -> impl FnOnce(TrustError) -> Self {
        let doing = doing.into();
        move |source| Self::Trust { doing, source: Box::new(source) }
    }

    /// The same for an audit log.
    pub(crate) fn audit(doing: impl Into<String>) -> impl FnOnce(muster_audit::ExportFault) -> Self {
        let doing = doing.into();
        move |source| Self::Audit { doing, source: Box::new(source) }
    }

    /// The same for credentials and connections.
    pub(crate) fn tls(doing: impl Into<String>) -> impl FnOnce(muster_mtls::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Tls { doing, source: Box::new(source) }
    }

    /// The same for trees.
    pub(crate) fn tree(doing: impl Into<String>) -> impl FnOnce(ArtifactError) -> Self {
        let doing = doing.into();
        move |source| Self::Tree { doing, source: Box::new(source) }
    }

    /// The same for answers that cannot be read.
    pub(crate) fn answer(doing: impl Into<String>) -> impl FnOnce(ConvertError) -> Self {
        let doing = doing.into();
        move |source| Self::Answer { doing, source }
    }

    /// The command's exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } | Self::FleetUnclear { .. } => Exit::Usage,
            Self::Refused { refusal, .. } => Exit::of_blockers(&refusal.blockers),
            Self::Audit { .. } | Self::Trust { .. } => Exit::NotAllowed,
            Self::TimedOut { .. } => Exit::TimedOut,
            Self::Absent { .. } => Exit::Missing,
            Self::Release(error) => error.exit(),
            Self::Dev(error) => error.exit(),
            Self::Call { .. }
            | Self::Lost { .. }
            | Self::Answer { .. }
            | Self::Contradiction { .. }
            | Self::Tls { .. }
            | Self::Document { .. }
            | Self::Tree { .. }
            | Self::NoContext { .. }
            | Self::ContextFile { .. }
            | Self::Content { .. }
            | Self::File { .. }
            | Self::System { .. } => Exit::Internal,
        }
    }

    /// The reasons of a refusal; none for other errors.
    pub(crate) fn blockers(&self) -> &[Blocker] {
        if let Self::Refused { refusal, .. } = self { &refusal.blockers } else { &[] }
    }

    /// What to do next, where that does not follow from the reasons.
    pub(crate) fn next(&self) -> Option<String> {
        match self {
            Self::Usage { next, .. } | Self::Absent { next, .. } => Some(next.clone()),
            Self::Refused { next, .. } => next.clone(),
            Self::Tls { source, .. } => hints::of_tls(source),
            Self::Call { status, .. } => hints::of_status(status),
            Self::Lost { .. } => Some("look at `muster status` before you repeat the command".to_owned()),
            Self::TimedOut { .. } => Some("look at `muster status`, and at the coordinator's log".to_owned()),
            Self::Release(error) => Some(error.next()),
            Self::Dev(error) => error.next(),
            Self::FleetUnclear { candidates } if candidates.is_empty() => Some(
                "make one by applying its roster: `muster roster draft`, then `muster roster apply`"
                    .to_owned(),
            ),
            Self::FleetUnclear { .. } => {
                Some("name one with --fleet, or as `fleet` in the context".to_owned())
            }
            Self::NoContext { .. } => Some(
                "make a fleet with `muster dev up --dir DIR` or `muster init DIR`, then use \
                 `--context DIR/operator/context.toml`"
                    .to_owned(),
            ),
            Self::ContextFile { path, .. } => Some(hints::of_context(path)),
            Self::File { source, .. } => hints::of_file(source),
            Self::Tree { source, .. } => hints::of_tree(source),
            Self::Audit { .. } => Some(
                "compare it with an earlier export, and ask the hosts what they have seen: `muster-agent audit show FLEET`"
                    .to_owned(),
            ),
            Self::Answer { .. }
            | Self::Contradiction { .. }
            | Self::Trust { .. }
            | Self::Document { .. }
            | Self::Content { .. }
            | Self::System { .. } => None,
        }
    }

    /// The causes, one below the other, each without the texts above it.
    pub(crate) fn causes(&self) -> Vec<String> {
        let first = std::error::Error::source(self);
        let mut causes: Vec<String> =
            std::iter::successors(first, |error| error.source()).map(ToString::to_string).collect();
        causes.dedup();
        causes
    }

    /// Why, for people: of a connection that failed one line, whatever layers it went through; else all causes.
    pub(crate) fn reasons(&self) -> Vec<String> {
        match self {
            Self::Tls { source, .. } => {
                if let muster_mtls::Error::Connect(failure) = &**source {
                    vec![hints::why_not_connected(failure)]
                } else {
                    self.causes()
                }
            }
            Self::Call { status, .. } | Self::Lost { status: Some(status), .. } => {
                hints::why_failed(status).into_iter().collect()
            }
            Self::Usage { .. }
            | Self::Refused { .. }
            | Self::Lost { status: None, .. }
            | Self::TimedOut { .. }
            | Self::Answer { .. }
            | Self::Contradiction { .. }
            | Self::Audit { .. }
            | Self::Trust { .. }
            | Self::Document { .. }
            | Self::Tree { .. }
            | Self::Release(_)
            | Self::Absent { .. }
            | Self::FleetUnclear { .. }
            | Self::Dev(_)
            | Self::NoContext { .. }
            | Self::ContextFile { .. }
            | Self::Content { .. }
            | Self::File { .. }
            | Self::System { .. } => self.causes(),
        }
    }
}

fn fleet_unclear(candidates: &[FleetName]) -> String {
    if candidates.is_empty() {
        return "the coordinator knows no fleet yet".to_owned();
    }
    let names: Vec<&str> = candidates.iter().map(FleetName::as_str).collect();
    format!("which fleet is meant? There are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use muster_model::Code;

    use super::*;

    #[test]
    fn a_refusal_ends_with_the_exit_code_of_its_reasons() {
        let refusal = Refusal {
            blockers: vec![Blocker::fleet(Code::Busy, "rollout 3"), Blocker::fleet(Code::TimedOut, "")],
        };
        let error = CliError::refused("flip", refusal);
        assert_eq!(error.exit(), Exit::TimedOut);
        assert_eq!(error.blockers().len(), 2);
        let missing = CliError::NoContext { looked_for: "/nowhere".into() };
        assert_eq!(missing.exit(), Exit::Internal);
        assert!(missing.next().is_some_and(|next| next.contains("muster init")));
    }

    #[test]
    fn a_broken_connection_is_one_line_and_its_whole_chain_on_demand() {
        #[derive(Debug, thiserror::Error)]
        #[error("h2 protocol error: error reading a body from connection")]
        struct Layer(#[source] io::Error);
        let broken = || io::Error::new(io::ErrorKind::BrokenPipe, "stream closed because of a broken pipe");
        let status = || {
            let mut status =
                tonic::Status::unknown("h2 protocol error: error reading a body from connection");
            status.set_source(std::sync::Arc::new(Layer(broken())));
            Box::new(status)
        };
        for error in [
            CliError::Call { doing: "list the fleets".to_owned(), status: status() },
            CliError::Lost { doing: "deploy 1.0".to_owned(), status: Some(status()) },
        ] {
            assert_eq!(error.reasons(), ["stream closed because of a broken pipe"]);
            assert!(error.causes().len() > 1 && error.next().is_some());
            assert!(!error.to_string().contains("h2"), "{error}");
        }
        let refused = tonic::Status::permission_denied("agents may not");
        let error = CliError::Call { doing: "flip".to_owned(), status: Box::new(refused) };
        assert_eq!(error.reasons(), ["agents may not"]);
    }

    #[test]
    fn a_file_in_the_way_and_a_context_that_is_not_there_say_how_to_go_on() {
        let exists = CliError::file("create", "/x")(io::ErrorKind::AlreadyExists.into());
        assert!(exists.next().is_some_and(|next| next.contains("another")));
        let source = io::ErrorKind::NotFound.into();
        let context = CliError::ContextFile { path: "/nowhere".into(), source };
        assert!(context.next().is_some_and(|next| next.contains("operator/context.toml")));
        assert_eq!(context.exit(), Exit::Internal);
    }

    #[test]
    fn the_causes_are_listed_without_repetition() {
        let error = CliError::file("read", "/x")(io::Error::new(io::ErrorKind::NotFound, "no such file"));
        assert_eq!(error.to_string(), "cannot read /x");
        assert_eq!(error.causes(), ["no such file"]);
    }
}
