//! How errors and differences become refusals: with a code for programs, the host, and words for people.

use std::error::Error;
use std::io::{self, ErrorKind};

use muster_artifact::{ArtifactError, Measurement};
use muster_guard::{FenceCause, GuardError, RefusalCode};
use muster_model::{Blocker, Code, Difference, DifferenceKind, Digest, HostName, Refusal};
use muster_proto::{convert, v1};
use muster_trust::TrustError;
use prost::Message as _;
use tonic::Status;

/// How many differences one refusal names.
pub(crate) const BLOCKERS_MAX: usize = 32;

/// The longest text of a refusal, in bytes: it travels on the control stream and stands on a screen.
const TEXT_BYTES_MAX: usize = 1024;

/// One reason at this host.
pub(crate) fn at(host: &HostName, code: Code, detail: impl Into<String>) -> Refusal {
    Refusal::because(Blocker::host(code, host, bounded(detail.into())))
}

/// What a measurement found different; nothing if it found the tree as it should be.
pub(crate) fn of_measurement(host: &HostName, measurement: &Measurement) -> Option<Refusal> {
    (!measurement.matches())
        .then(|| of_differences(host, &measurement.differences, measurement.difference_count))
}

/// The first differences of `count`, each a blocker with its path.
pub(crate) fn of_differences(host: &HostName, differences: &[Difference], count: u64) -> Refusal {
    let mut blockers: Vec<Blocker> =
        differences.iter().take(BLOCKERS_MAX).map(|difference| of_difference(host, difference)).collect();
    let unnamed = count.saturating_sub(blockers.len() as u64);
    match blockers.last_mut() {
        Some(last) if unnamed > 0 => {
            last.detail.push_str(&format!("; {unnamed} more differences are not listed"));
        }
        Some(_) => {}
        None => blockers.push(Blocker::host(Code::Mismatch, host, format!("{count} differences"))),
    }
    Refusal { blockers }
}

/// Why a tree or its bytes cannot be had, be it for a measurement or for an installation.
pub(crate) fn of_artifact(host: &HostName, error: &ArtifactError) -> Refusal {
    let code = match error {
        ArtifactError::SealBroken { differences, count, .. } => {
            let mut refusal = of_differences(host, differences, *count);
            refusal.blockers.iter_mut().for_each(|blocker| blocker.code = Code::SealBroken);
            return refusal;
        }
        ArtifactError::NotAsReleased { differences, count, .. } => {
            return of_differences(host, differences, *count);
        }
        ArtifactError::NotAsWritten { difference, .. } => {
            return of_differences(host, std::slice::from_ref(difference), 1);
        }
        ArtifactError::NoSpace { .. } => Code::NoSpace,
        ArtifactError::ReadOnly { .. } => Code::ReadOnly,
        ArtifactError::TreeMissing { .. } => Code::NotDeployed,
        ArtifactError::NotATree { path } => {
            return Refusal::because(Blocker {
                path: Some(bounded(path.display().to_string())),
                expected: Some("dir".to_owned()),
                measured: Some("something else".to_owned()),
                ..Blocker::host(Code::Mismatch, host, "the release's own folder is of another type")
            });
        }
        ArtifactError::TooManyEntries { .. } => Code::Mismatch,
        ArtifactError::BlobMissing { .. } => Code::BlobMissing,
        ArtifactError::Damaged { .. }
        | ArtifactError::WrongContent { .. }
        | ArtifactError::WrongSize { .. } => Code::BlobDamaged,
        ArtifactError::Replaced { .. } => Code::SealBroken,
        ArtifactError::Io { .. }
        | ArtifactError::Manifest { .. }
        | ArtifactError::SealFile { .. }
        | ArtifactError::Threads { .. }
        | ArtifactError::Unpackable { .. }
        | ArtifactError::Spec { .. }
        | _ => Code::Unmeasurable,
    };
    at(host, code, chain(error))
}

/// The stored blob that turned out not to be what its name says, or not to be there at all.
pub(crate) fn damaged_blob(error: &ArtifactError) -> Option<Digest> {
    if let ArtifactError::Damaged { digest, .. }
    | ArtifactError::BlobMissing { digest }
    | ArtifactError::WrongContent { digest, .. }
    | ArtifactError::WrongSize { digest, .. } = error
    {
        return Some(*digest);
    }
    None
}

/// Why a file operation of our own failed.
pub(crate) fn of_io(host: &HostName, doing: &str, error: &io::Error) -> Refusal {
    let code = if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        Code::NoSpace
    } else if error.kind() == ErrorKind::ReadOnlyFilesystem {
        Code::ReadOnly
    } else {
        Code::Unmeasurable
    };
    at(host, code, format!("cannot {doing}: {error}"))
}

/// Why the guard did not do what it was asked to.
pub(crate) fn of_guard(host: &HostName, error: &GuardError) -> Refusal {
    let code = match error.code() {
        Some(
            RefusalCode::StartFailed
            | RefusalCode::ServiceExited
            | RefusalCode::UnitMissing
            | RefusalCode::UnitMasked
            | RefusalCode::StartTimedOut
            | RefusalCode::StartBlocked
            | RefusalCode::Ungated,
        ) => Code::StartFailed,
        Some(RefusalCode::Unhealthy) => Code::Unhealthy,
        Some(RefusalCode::HookFailed) => Code::HookFailed,
        Some(RefusalCode::Halted) => Code::Halted,
        Some(RefusalCode::Fenced | RefusalCode::TooLate) => Code::LeaseExpired,
        Some(RefusalCode::NotStopped) => Code::StopFailed,
        Some(RefusalCode::ReleaseMissing) => Code::NotDeployed,
        Some(
            RefusalCode::BadRequest
            | RefusalCode::UnsupportedProtocol
            | RefusalCode::Busy
            | RefusalCode::ForeignPeer
            | RefusalCode::UnknownFleet
            | RefusalCode::NotClosed
            | RefusalCode::LinkObstructed
            | RefusalCode::NotServing
            | RefusalCode::Armed
            | RefusalCode::NotArmed
            | RefusalCode::Decided
            | RefusalCode::WrongTime
            | RefusalCode::ShuttingDown
            | RefusalCode::Storage
            | RefusalCode::Systemd
            | RefusalCode::Setup,
        )
        | None => Code::GuardFailed,
    };
    at(host, code, chain(error))
}

/// Why the guard has fenced what this host served.
pub(crate) fn of_fence(host: &HostName, cause: FenceCause) -> Refusal {
    let code = match cause {
        FenceCause::DeadlinePassed | FenceCause::FlipMissed => Code::LeaseExpired,
        FenceCause::Halted => Code::Halted,
        FenceCause::FlipFailed => Code::StartFailed,
        FenceCause::GuardStopped | FenceCause::Rebooted | FenceCause::RecordLost => Code::GuardFailed,
        FenceCause::Drifted => Code::Drifted,
    };
    at(host, code, format!("the guard has fenced it: {cause}"))
}

/// Why a document is not believed. What is wrong with attestations has a code of its own.
pub(crate) fn of_trust(host: &HostName, code: Code, error: &TrustError) -> Refusal {
    at(host, code, chain(error))
}

/// Why a call to the coordinator failed. A refusal that the coordinator put into the details is passed on.
pub(crate) fn of_status(host: &HostName, what: &str, status: &Status) -> Refusal {
    let detailed = v1::Refusal::decode(status.details());
    if let Some(refusal) = detailed.ok().and_then(|wire| convert::refusal(Some(wire)).ok()) {
        return refusal;
    }
    let code = match status.code() {
        tonic::Code::NotFound => Code::BlobMissing,
        tonic::Code::DataLoss => Code::BlobDamaged,
        tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Code::NotAllowed,
        tonic::Code::DeadlineExceeded => Code::TimedOut,
        tonic::Code::Unimplemented => Code::Unsupported,
        tonic::Code::Ok
        | tonic::Code::Cancelled
        | tonic::Code::Unknown
        | tonic::Code::InvalidArgument
        | tonic::Code::AlreadyExists
        | tonic::Code::ResourceExhausted
        | tonic::Code::FailedPrecondition
        | tonic::Code::Aborted
        | tonic::Code::OutOfRange
        | tonic::Code::Internal
        | tonic::Code::Unavailable => Code::SessionLost,
    };
    at(host, code, format!("{what}: {}", status.message()))
}

/// An error and all its sources in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn of_difference(host: &HostName, difference: &Difference) -> Blocker {
    let code =
        if difference.kind == DifferenceKind::Unreadable { Code::Unmeasurable } else { Code::Mismatch };
    Blocker {
        path: Some(bounded(difference.path.to_string())),
        expected: Some(bounded(difference.expected.clone())),
        measured: Some(bounded(difference.measured.clone())),
        ..Blocker::host(code, host, difference.kind.describe())
    }
}

fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;
    use muster_model::{Digest, EntryPath, Place};

    fn host() -> HostName {
        HostName::new("host-5").unwrap()
    }

    fn difference(name: &str, kind: DifferenceKind) -> Difference {
        Difference {
            path: Place::Tree(EntryPath::from_text(name).unwrap()),
            kind,
            expected: "mode 0755".to_owned(),
            measured: "mode 0777".to_owned(),
        }
    }

    #[test]
    fn differences_name_host_path_and_values_and_count_the_rest() {
        let differences: Vec<_> = (0..40)
            .map(|n| difference(&format!("bin/{n}"), DifferenceKind::Mode))
            .chain([difference("x", DifferenceKind::Unreadable)])
            .collect();
        let refusal = of_differences(&host(), &differences, 1000);
        assert_eq!(refusal.blockers.len(), BLOCKERS_MAX);
        assert_eq!(
            refusal.blockers[0].to_string(),
            "mismatch at host-5, bin/0: has other permissions (expected mode 0755, measured mode 0777)"
        );
        assert!(refusal.blockers[31].detail.ends_with("; 968 more differences are not listed"));

        let one = of_differences(&host(), &differences[40..], 1);
        assert_eq!((one.code(), one.blockers.len()), (Some(Code::Unmeasurable), 1));
        assert!(!one.to_string().contains("not listed"));
    }

    #[test]
    fn disks_and_blobs_have_their_codes() {
        let full = || io::Error::from_raw_os_error(28);
        let path = PathBuf::from("/x");
        let (digest, measured) = (Digest::of(b"a"), Digest::of(b"b"));
        let cases = [
            (ArtifactError::NoSpace { doing: "write", path: path.clone(), source: full() }, Code::NoSpace),
            (ArtifactError::ReadOnly { doing: "write", path: path.clone(), source: full() }, Code::ReadOnly),
            (ArtifactError::TreeMissing { path: path.clone() }, Code::NotDeployed),
            (ArtifactError::NotATree { path: path.clone() }, Code::Mismatch),
            (ArtifactError::BlobMissing { digest }, Code::BlobMissing),
            (ArtifactError::Damaged { digest, measured, size: 1 }, Code::BlobDamaged),
            (ArtifactError::WrongContent { digest, measured }, Code::BlobDamaged),
            (
                ArtifactError::SealBroken {
                    path: path.clone(),
                    differences: vec![difference("a", DifferenceKind::Touched)],
                    count: 1,
                },
                Code::SealBroken,
            ),
        ];
        for (error, code) in cases {
            assert_eq!(of_artifact(&host(), &error).code(), Some(code), "{error}");
        }
        assert_eq!(of_io(&host(), "write", &full()).code(), Some(Code::NoSpace));
        assert_eq!(of_io(&host(), "write", &io::Error::from_raw_os_error(30)).code(), Some(Code::ReadOnly));
    }

    #[test]
    fn a_guard_that_says_no_is_told_apart_from_one_that_is_gone() {
        let refused = |code| GuardError::Refused { code, detail: "x".to_owned() };
        let gone = GuardError::Unreachable { socket: "/s".into(), source: io::ErrorKind::NotFound.into() };
        let cases = [
            (refused(RefusalCode::StartFailed), Code::StartFailed),
            (refused(RefusalCode::NotStopped), Code::StopFailed),
            (refused(RefusalCode::ReleaseMissing), Code::NotDeployed),
            (refused(RefusalCode::NotClosed), Code::GuardFailed),
            (gone, Code::GuardFailed),
        ];
        for (error, code) in cases {
            assert_eq!(of_guard(&host(), &error).code(), Some(code), "{error}");
        }
    }

    #[test]
    fn the_coordinators_own_refusal_is_passed_on() {
        let theirs = Refusal::of(Code::BlobDamaged, "its content is another");
        let details = v1::Refusal::from(theirs.clone()).encode_to_vec();
        let status = Status::with_details(tonic::Code::Internal, "x", details.into());
        assert_eq!(of_status(&host(), "blob", &status), theirs);
        assert_eq!(of_status(&host(), "blob", &Status::not_found("x")).code(), Some(Code::BlobMissing));
        assert_eq!(of_status(&host(), "blob", &Status::unavailable("x")).code(), Some(Code::SessionLost));
    }

    #[test]
    fn texts_are_bounded_at_a_character() {
        let text = bounded("é".repeat(2000));
        assert!(text.len() <= TEXT_BYTES_MAX + '…'.len_utf8());
        assert!(text.ends_with('…'));
    }
}
