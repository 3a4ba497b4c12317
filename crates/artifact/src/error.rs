//! The crate's error.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use muster_model::{Difference, Digest, ManifestError};
use rustix::io::Errno;

/// Why an operation on trees or bytes failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// A system call failed for a reason without a name of its own.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No space, no free inode or no quota is left.
    #[error("no space, free inode or quota is left to {doing} {}", path.display())]
    NoSpace {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file system is read-only.
    #[error("a read-only file system does not let us {doing} {}", path.display())]
    ReadOnly {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no tree.
    #[error("there is no tree at {}", path.display())]
    TreeMissing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// There is something else than a folder, such as a symlink to one.
    #[error("{} is not a folder", path.display())]
    NotATree {
        /// Where.
        path: PathBuf,
    },
    /// The tree has more entries than any tree may have.
    #[error("{} has more than {max} entries", path.display())]
    TooManyEntries {
        /// The tree.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// What was found is not a manifest.
    #[error("the tree {} cannot be described by a manifest", path.display())]
    Manifest {
        /// The tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// Entries that would not be the same on another host.
    #[error("{} has {count} entries that cannot be packed: {}", path.display(), Lines(found))]
    Unpackable {
        /// The tree.
        path: PathBuf,
        /// The first of them, in the order of their paths.
        found: Vec<Unpackable>,
        /// How many there are.
        count: usize,
    },
    /// A release file that says something it cannot say.
    #[error("line {line} of {}: {reason}", path.display())]
    Spec {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The store does not have this blob.
    #[error("blob {digest} is not in the store")]
    BlobMissing {
        /// Which.
        digest: Digest,
    },
    /// A stored blob's content does not hash to its name.
    #[error("blob {digest} is damaged: its content is {measured}, {size} bytes")]
    Damaged {
        /// What it should be.
        digest: Digest,
        /// What it is.
        measured: Digest,
        /// How many bytes were read.
        size: u64,
    },
    /// What arrived for a blob is not the blob.
    #[error("what arrived for blob {digest} is {measured}")]
    WrongContent {
        /// What was asked for.
        digest: Digest,
        /// What came.
        measured: Digest,
    },
    /// More or fewer bytes arrived for a blob than the manifest states.
    #[error("{found} bytes arrived for blob {digest}, which has {stated}")]
    WrongSize {
        /// Which.
        digest: Digest,
        /// What the manifest states.
        stated: u64,
        /// What came.
        found: u64,
    },
    /// An installed tree reads differently from what was written.
    #[error("the tree {} was installed, but reads differently: {difference}", path.display())]
    NotAsWritten {
        /// The tree.
        path: PathBuf,
        /// The first difference.
        difference: Box<Difference>,
    },
    /// Another folder stands where the sealed one was.
    #[error("{} is not the folder that was measured", path.display())]
    Replaced {
        /// Where.
        path: PathBuf,
    },
    /// A tree was touched since it was sealed.
    #[error("{} was touched since it was measured ({count} differences): {}", path.display(), First(differences))]
    SealBroken {
        /// The tree.
        path: PathBuf,
        /// The first differences, in the order of their paths.
        differences: Vec<Difference>,
        /// How many there are.
        count: u64,
    },
    /// A tree is not as it was released.
    #[error("{} is not as it was released ({count} differences): {}", path.display(), First(differences))]
    NotAsReleased {
        /// The tree.
        path: PathBuf,
        /// The first differences, in the order of their paths.
        differences: Vec<Difference>,
        /// How many there are.
        count: u64,
    },
    /// A seal's file is not one, or is damaged.
    #[error("{} is not a seal: {reason}", path.display())]
    SealFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Threads could not be started.
    #[error("cannot start {jobs} threads")]
    Threads {
        /// How many.
        jobs: usize,
        /// Why.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
}

/// An entry that would not be the same on another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpackable {
    /// Its path in the tree, in text form.
    pub path: String,
    /// What is wrong with it.
    pub kind: UnpackableKind,
}

/// Why an entry cannot be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnpackableKind {
    /// A socket, FIFO or device.
    Special(&'static str),
    /// Set-user-id, set-group-id or sticky bits.
    SpecialMode(u32),
    /// File capabilities.
    Capabilities,
    /// It could not be read, or it changed while it was read.
    Unreadable(String),
    /// Its path is too long or too deep.
    Path(String),
    /// A symlink that leads out of the tree, where the release forbids them.
    LeadsOut(String),
}

impl ArtifactError {
    /// Wraps what the system said, with a name of its own where the operator can do something about it.
    pub(crate) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let (source, path): (io::Error, _) = (source.into(), path.to_owned());
        // An error that a library has wrapped keeps its kind and loses its number.
        match (source.kind(), source.raw_os_error().map(Errno::from_raw_os_error)) {
            (ErrorKind::StorageFull | ErrorKind::QuotaExceeded, _)
            | (_, Some(Errno::NOSPC | Errno::DQUOT)) => Self::NoSpace { doing, path, source },
            (ErrorKind::ReadOnlyFilesystem, _) | (_, Some(Errno::ROFS)) => {
                Self::ReadOnly { doing, path, source }
            }
            _ => Self::Io { doing, path, source },
        }
    }
}

impl fmt::Display for Unpackable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.kind {
            UnpackableKind::Special(what) => {
                write!(f, "`{path}` is a {what}; let the service make it at start, in a `mutable` path")
            }
            UnpackableKind::SpecialMode(bits) => write!(
                f,
                "`{path}` has mode {bits:04o}; take the set-user-id, set-group-id or sticky bit away \
                 (chmod ug-s,-t), or declare the path `mutable`"
            ),
            UnpackableKind::Capabilities => write!(
                f,
                "`{path}` has file capabilities; take them away (setcap -r) and grant them in the unit \
                 (AmbientCapabilities=)"
            ),
            UnpackableKind::Unreadable(why) => write!(f, "`{path}` cannot be read: {why}"),
            UnpackableKind::Path(why) => write!(f, "below `{path}`: {why}"),
            UnpackableKind::LeadsOut(target) => write!(
                f,
                "`{path}` points to `{target}` outside the tree, which is not measured; copy the target into \
                 the tree, or remove the symlink and name its target as `external`"
            ),
        }
    }
}

struct Lines<'a>(&'a [Unpackable]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if index > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

struct First<'a>(&'a [Difference]);

impl fmt::Display for First<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.first().map_or(Ok(()), |difference| fmt::Display::fmt(difference, f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_and_read_only_disks_have_names() {
        let made = |errno: Errno| ArtifactError::io("write", Path::new("/x/y"), errno);
        assert!(matches!(made(Errno::NOSPC), ArtifactError::NoSpace { .. }));
        assert!(matches!(made(Errno::DQUOT), ArtifactError::NoSpace { .. }));
        assert!(matches!(made(Errno::ROFS), ArtifactError::ReadOnly { .. }));
        assert!(matches!(made(Errno::IO), ArtifactError::Io { .. }));
        assert_eq!(made(Errno::NOSPC).to_string(), "no space, free inode or quota is left to write /x/y");
    }
}
