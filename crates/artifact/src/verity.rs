//! What a measurement of a tree is worth: that its bytes were read and hashed, or also that the kernel lets nobody change them, with
//! fs-verity.
//!
//! An installed file is sealed by the kernel, where the file system can: from then on it cannot be written to, and what is read of it is
//! compared with its Merkle tree. A measurement that reads such a file computes its digest by fs-verity beside the SHA-256, from the same
//! bytes, and asks the kernel for its own. Only where both are the same for every file of a tree does the tree count as sealed: then the
//! kernel's digest alone, which it gives in constant time, says later that a file is the one that was measured.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use muster_fsverity::Measured;
use muster_model::{Digest, EntryKind, EntryPath, Manifest};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::ArtifactError;
use crate::handle::{open_beneath, open_tree};
use crate::walk::{FileVerity, FoundKind, Walked};

/// A process that was forked while a file was written holds it open for writing until it executes something.
const BUSY_ATTEMPTS_MAX: usize = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// Whether fs-verity is made use of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerityUse {
    /// Files are neither sealed by the kernel nor asked whether they are.
    Off,
    /// Where the file system has it.
    #[default]
    WherePossible,
}

/// What a measurement of a tree is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assured {
    /// Every byte was read and hashed.
    Sha256(Shortfall),
    /// The same, and the kernel has sealed every file as it was read.
    Verity,
}

/// Why a tree does not count as sealed by the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shortfall {
    /// Nobody has looked.
    Off,
    /// The file system has no fs-verity, or it is not switched on.
    Unsupported,
    /// A file could not be asked about.
    Failed(EntryPath, Errno),
    /// A file is not sealed.
    Unsealed(EntryPath),
    /// A file was sealed with other parameters than ours; or the kernel's digest is not that of what it lets us read.
    Another(EntryPath),
    /// There is no file to seal.
    NoFile,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("fs-verity is switched off here"),
            Self::Unsupported => f.write_str("this filesystem has no fs-verity"),
            Self::Failed(path, error) => {
                write!(f, "{path} cannot be asked for its fs-verity digest: {error}")
            }
            Self::Unsealed(path) => write!(f, "{path} is not sealed with fs-verity"),
            Self::Another(path) => write!(f, "the fs-verity digest of {path} is not that of what was read"),
            Self::NoFile => f.write_str("the tree has no file to seal"),
        }
    }
}

impl fmt::Display for Assured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(why) => write!(f, "sha256 ({why})"),
            Self::Verity => f.write_str("verity"),
        }
    }
}

/// What a walk that read every byte says of the tree. What a service writes at mutable paths is no part of it.
pub(crate) fn assured(walked: &Walked, verity: VerityUse) -> Assured {
    if verity == VerityUse::Off {
        return Assured::Sha256(Shortfall::Off);
    }
    let mut unasked = None;
    let mut files = 0_u64;
    for found in &walked.found {
        let FoundKind::File { verity, .. } = &found.kind else { continue };
        files += 1;
        let shortfall = match verity {
            FileVerity::Sealed(_) => continue,
            // Another file has said why nobody asked this one.
            FileVerity::Unasked => {
                unasked.get_or_insert_with(|| found.path.clone());
                continue;
            }
            FileVerity::Unsupported => Shortfall::Unsupported,
            FileVerity::Failed(error) => Shortfall::Failed(found.path.clone(), *error),
            FileVerity::Unsealed => Shortfall::Unsealed(found.path.clone()),
            FileVerity::Another => Shortfall::Another(found.path.clone()),
        };
        return Assured::Sha256(shortfall);
    }
    match (unasked, files) {
        (Some(path), _) => Assured::Sha256(Shortfall::Unsealed(path)),
        (None, 0) => Assured::Sha256(Shortfall::NoFile),
        (None, _) => Assured::Verity,
    }
}

/// Tries whether the kernel seals files in this folder. What it makes for that is removed, or left under a name that
/// [`clean_leftovers`](crate::clean_leftovers) knows.
#[must_use]
pub fn supports_verity(folder: &Path) -> bool {
    Sealer::probe(folder, crate::install::UNFINISHED).goes_on()
}

/// What the kernel says of an open file.
pub(crate) fn ask(file: impl AsFd) -> FileVerity {
    match muster_fsverity::measure(file) {
        Ok(Measured::Sha256(digest)) => FileVerity::Sealed(Digest::from_bytes(digest)),
        Ok(Measured::Other) => FileVerity::Another,
        Err(Errno::NODATA) => FileVerity::Unsealed,
        Err(error) if is_unsupported(error) => FileVerity::Unsupported,
        Err(error) => FileVerity::Failed(error),
    }
}

/// Has the kernel seal files, and stops at the first one that it cannot: a tree counts as sealed as a whole, or not at all.
#[derive(Debug)]
pub(crate) struct Sealer {
    goes_on: AtomicBool,
}

impl Sealer {
    /// Tries on a file of its own whether files in `folder` can be sealed.
    pub(crate) fn probe(folder: &Path, prefix: &str) -> Self {
        let tried = || -> std::io::Result<()> {
            let probe = tempfile::Builder::new().prefix(prefix).tempfile_in(folder)?.into_temp_path();
            let sealer = Self { goes_on: AtomicBool::new(true) };
            sealer.try_seal(File::open(&probe)?.as_fd())?;
            probe.close()
        };
        let outcome = tried();
        if let Err(error) = &outcome {
            tracing::debug!(folder = %folder.display(), %error, "files here are not sealed with fs-verity");
        }
        Self { goes_on: AtomicBool::new(outcome.is_ok()) }
    }

    /// Whether there is any use in asking.
    pub(crate) fn goes_on(&self) -> bool {
        self.goes_on.load(Ordering::Relaxed)
    }

    /// Seals a file that is open for reading alone. That it cannot be sealed is for the measurement to say.
    pub(crate) fn seal(&self, file: BorrowedFd<'_>, path: &EntryPath) {
        if !self.goes_on() {
            return;
        }
        match self.try_seal(file) {
            Ok(()) => {}
            Err(error) => {
                tracing::info!(%path, %error, "not sealed with fs-verity");
                self.goes_on.store(false, Ordering::Relaxed);
            }
        }
    }

    /// One that is sealed already is as good.
    fn try_seal(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        for _ in 1..BUSY_ATTEMPTS_MAX {
            match muster_fsverity::enable(file) {
                Ok(()) | Err(Errno::EXIST) => return Ok(()),
                Err(Errno::TXTBSY | Errno::INTR) => thread::sleep(BUSY_PAUSE),
                Err(error) => return Err(error),
            }
        }
        muster_fsverity::enable(file)
    }
}

/// Seals the files of a tree that is in place, which may be served. Their bytes were found right by a measurement; the one that follows
/// says whether they still were.
pub(crate) fn seal_in_place(tree: &Path, manifest: &Manifest, sealer: &Sealer) -> Result<(), ArtifactError> {
    let root = open_tree(tree)?;
    for entry in manifest.entries() {
        if !sealer.goes_on() {
            return Ok(());
        }
        let EntryKind::File { .. } = entry.kind else { continue };
        let path = &entry.path;
        let file = open_beneath(root.as_fd(), path.parent().as_ref()).and_then(|folder| {
            openat(folder, path.name(), OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        });
        match file {
            Ok(file) => sealer.seal(file.as_fd(), path),
            Err(error) => {
                tracing::info!(%path, %error, "not sealed with fs-verity");
                return Ok(());
            }
        }
    }
    Ok(())
}

pub(crate) const fn is_unsupported(error: Errno) -> bool {
    // Two numbers on some architectures, and one on others.
    matches!(error, Errno::NOTTY | Errno::NOSYS) || error.raw_os_error() == Errno::OPNOTSUPP.raw_os_error()
}

#[cfg(test)]
mod tests;
