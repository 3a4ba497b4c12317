//! What a release says about the host outside its tree.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use muster_model::{
    Difference, DifferenceKind, Digest, External, ExternalCheck, HostPath, Manifest, Place, TreeRules,
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use crate::walk::{Digests, Stamp, hash_file};

const UNIFORM: &[u8] = b"muster.uniform/1\n";

/// The host's side of a measurement.
pub(super) struct OnHost {
    /// The rules as far as the host keeps them, with measured digests: the same as the manifest's if and only
    /// if there is no difference.
    pub(super) kept: TreeRules,
    pub(super) uniform: Option<Digest>,
    pub(super) differences: Vec<Difference>,
}

/// Whether symlinks at the end of a path are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// What counts is the name itself.
    Keep,
    /// What counts is what a service gets that opens the path.
    Follow,
}

pub(super) fn measure(expected: &Manifest) -> OnHost {
    let rules = expected.rules();
    let mut on_host = OnHost {
        kept: TreeRules { absent: Vec::new(), external: Vec::new(), mutable: rules.mutable.clone() },
        uniform: None,
        differences: Vec::new(),
    };
    for path in &rules.absent {
        match stamp(path, Links::Keep) {
            Ok(None) => on_host.kept.absent.push(path.clone()),
            Ok(Some(stamp)) => on_host.differ(path, DifferenceKind::Absent, "nothing", type_name(&stamp)),
            Err(error) => on_host.differ(path, DifferenceKind::Unreadable, "nothing", &error.to_string()),
        }
    }
    let expected_digest = expected.digest();
    let mut uniform: Vec<Vec<u8>> = vec![UNIFORM.to_vec(), expected_digest.as_bytes().to_vec()];
    for External { path, check } in &rules.external {
        let kept = match check {
            ExternalCheck::Digest { digest } => on_host.content(path, &digest.to_string()).map(|measured| {
                if measured != *digest {
                    let (expected, measured) = (digest.to_string(), measured.to_string());
                    on_host.differ(path, DifferenceKind::External, &expected, &measured);
                }
                ExternalCheck::Digest { digest: measured }
            }),
            ExternalCheck::Uniform => {
                on_host.content(path, "a file, the same on all hosts").map(|measured| {
                    uniform.push(format!("{path}\n{measured}\n").into_bytes());
                    ExternalCheck::Uniform
                })
            }
            ExternalCheck::Present => on_host.present(path).then_some(ExternalCheck::Present),
        };
        on_host.kept.external.extend(kept.map(|check| External { path: path.clone(), check }));
    }
    if rules.external.iter().any(|external| external.check == ExternalCheck::Uniform) {
        let parts: Vec<&[u8]> = uniform.iter().map(Vec::as_slice).collect();
        on_host.uniform = Some(Digest::of_parts(&parts));
    }
    on_host
}

/// The metadata of a path on the host; none if there is nothing.
pub(crate) fn stamp(path: &HostPath, links: Links) -> Result<Option<Stamp>, Errno> {
    let flags = match links {
        Links::Keep => AtFlags::SYMLINK_NOFOLLOW,
        Links::Follow => AtFlags::empty(),
    };
    match statat(CWD, path.to_bytes(), flags) {
        Ok(stat) => Ok(Some(Stamp::from(&stat))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

impl OnHost {
    /// The digest of an external file, or a difference.
    fn content(&mut self, path: &HostPath, expected: &str) -> Option<Digest> {
        let measured = match hash(path) {
            Ok(digest) => return Some(digest),
            Err(measured) => measured,
        };
        self.differ(path, DifferenceKind::External, expected, &measured);
        None
    }

    fn present(&mut self, path: &HostPath) -> bool {
        let measured = match stamp(path, Links::Follow) {
            Ok(Some(_)) => return true,
            Ok(None) => "nothing".to_owned(),
            Err(error) => error.to_string(),
        };
        self.differ(path, DifferenceKind::External, "anything", &measured);
        false
    }

    fn differ(&mut self, path: &HostPath, kind: DifferenceKind, expected: &str, measured: &str) {
        self.differences.push(Difference {
            path: Place::Host(path.clone()),
            kind,
            expected: expected.to_owned(),
            measured: measured.to_owned(),
        });
    }
}

/// Hashes a file outside the tree, or says what is there instead.
fn hash(path: &HostPath) -> Result<Digest, String> {
    let said = |error: Errno| match error {
        Errno::NOENT | Errno::NOTDIR => "nothing".to_owned(),
        _ => error.to_string(),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let name = PathBuf::from(OsStr::from_bytes(&path.to_bytes()));
    let stat = statat(CWD, &name, AtFlags::empty()).map_err(said)?;
    let found = Stamp::from(&stat);
    if found.file_type() != FileType::RegularFile {
        return Err(type_name(&found).to_owned());
    }
    let fd = openat(CWD, &name, flags, Mode::empty()).map_err(said)?;
    let size = Stamp::from(&fstat(&fd).map_err(said)?).size;
    hash_file(&fd, size, Digests::Sha256, &mut Vec::new(), |_| {})
        .map_err(said)?
        .map(|hashed| hashed.sha256)
        .ok_or_else(|| "a file that changed while it was read".to_owned())
}

fn type_name(stamp: &Stamp) -> &'static str {
    match stamp.file_type() {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something of unknown type",
    }
}
