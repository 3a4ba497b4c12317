//! Writing a tree under a temporary name.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use muster_model::{Digest, Entry, EntryKind, EntryPath, Manifest, Mode};
use rayon::prelude::*;
use rustix::fs::{
    AtFlags, Gid, OFlags, Uid, chownat, fchmod, fchown, fsync, mkdirat, openat, symlinkat, syncfs,
};
use rustix::io::Errno;

use super::swap::Place;
use super::{InstallOptions, Owner, UNFINISHED};
use crate::handle::{open_beneath, open_tree, shown};
use crate::verity::Sealer;
use crate::{ArtifactError, BlobStore, Progress, VerityUse, pool};

/// The root's mode is not part of the digest: everybody may enter, whether the service runs as the owner or
/// not.
const ROOT_MODE: u32 = 0o755;
/// While a tree is built, nobody else may look into it.
const BUILDING_MODE: u32 = 0o700;
const COPY_BYTES: usize = 256 << 10;
/// Entries that one task writes.
const BATCH: usize = 32;
/// From this many entries on, one flush of the file system is cheaper than one for each entry, and no less
/// durable.
const SYNC_AT_ONCE_FROM: usize = 64;

/// Builds a tree and makes it durable, all but its name. A failed build leaves nothing, or what the next
/// start cleans.
pub(super) fn build(
    blobs: &BlobStore,
    manifest: &Manifest,
    place: &Place<'_>,
    options: &InstallOptions,
    progress: &Progress,
) -> Result<PathBuf, ArtifactError> {
    let dir = tempfile::Builder::new()
        .prefix(&place.prefix(UNFINISHED))
        .permissions(Permissions::from_mode(BUILDING_MODE))
        .tempdir_in(place.releases)
        .map_err(|error| ArtifactError::io("create a folder in", place.releases, error))?;
    let root = open_tree(dir.path())?;
    let sealer = match options.verity {
        VerityUse::Off => None,
        VerityUse::WherePossible => Some(Sealer::probe(place.releases, UNFINISHED)).filter(Sealer::goes_on),
    };
    let (path, owner) = (dir.path(), options.owner);
    let building = Building { blobs, root: root.as_fd(), path, owner, sealer, progress };
    let entries = manifest.entries();
    building.make_folders(entries)?;
    building.fill(entries, options)?;
    if let Some(sealer) = &building.sealer {
        // The kernel seals what is on the disk, and only for whoever may write to it.
        building.sync(entries)?;
        building.each_leaf(entries, options, |batch, _| building.seal_all(batch, sealer))?;
    }
    building.finish_folders(entries)?;
    building.sync(entries)?;
    Ok(dir.keep())
}

struct Building<'a> {
    blobs: &'a BlobStore,
    root: BorrowedFd<'a>,
    path: &'a Path,
    owner: Option<Owner>,
    /// If files are to be sealed by the kernel.
    sealer: Option<Sealer>,
    progress: &'a Progress,
}

impl Building<'_> {
    fn make_folders(&self, entries: &[Entry]) -> Result<(), ArtifactError> {
        let folders = entries.iter().filter(|entry| matches!(entry.kind, EntryKind::Dir { .. }));
        for Entry { path, .. } in folders {
            open_beneath(self.root, path.parent().as_ref())
                .and_then(|parent| mkdirat(parent, path.name(), BUILDING_MODE.into()))
                .map_err(|error| self.failed("create the folder", path, error))?;
        }
        Ok(())
    }

    fn fill(&self, entries: &[Entry], options: &InstallOptions) -> Result<(), ArtifactError> {
        self.each_leaf(entries, options, |batch, buffer| self.write_all(batch, buffer))
    }

    /// Does something with everything that is no folder, on as many threads as there are jobs. The buffer is the thread's own.
    fn each_leaf(
        &self,
        entries: &[Entry],
        options: &InstallOptions,
        work: impl Fn(&[&Entry], &mut Vec<u8>) -> Result<(), ArtifactError> + Sync,
    ) -> Result<(), ArtifactError> {
        let leaves: Vec<&Entry> =
            entries.iter().filter(|entry| !matches!(entry.kind, EntryKind::Dir { .. })).collect();
        if options.jobs.get() == 1 {
            return work(&leaves, &mut Vec::new());
        }
        let work =
            || leaves.par_chunks(BATCH).try_for_each_init(Vec::new, |buffer, batch| work(batch, buffer));
        pool::start(options.jobs)?.install(work)
    }

    fn write_all(&self, entries: &[&Entry], buffer: &mut Vec<u8>) -> Result<(), ArtifactError> {
        buffer.resize(COPY_BYTES, 0);
        let mut folder: Option<(Option<EntryPath>, OwnedFd)> = None;
        for Entry { path, kind } in entries {
            let parent = path.parent();
            let opened = match folder.take().filter(|(open, _)| *open == parent) {
                Some(same) => same,
                None => {
                    let fd = open_beneath(self.root, parent.as_ref())
                        .map_err(|error| self.failed("open the folder of", path, error))?;
                    (parent, fd)
                }
            };
            match kind {
                EntryKind::File { mode, size, digest } => {
                    self.write_file(path, &opened.1, *mode, *size, *digest, buffer)?;
                }
                EntryKind::Symlink { target } => symlinkat(target.as_bytes(), &opened.1, path.name())
                    .and_then(|()| self.owner.map_or(Ok(()), |owner| own_link(&opened.1, path.name(), owner)))
                    .map_err(|error| self.failed("create the symlink", path, error))?,
                EntryKind::Dir { .. } => {}
            }
            folder = Some(opened);
        }
        Ok(())
    }

    fn write_file(
        &self,
        path: &EntryPath,
        folder: &OwnedFd,
        mode: Mode,
        size: u64,
        digest: Digest,
        buffer: &mut [u8],
    ) -> Result<(), ArtifactError> {
        let mut blob = self.blobs.reader(digest)?;
        if blob.size() != size {
            return Err(ArtifactError::WrongSize { digest, stated: size, found: blob.size() });
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(folder, path.name(), flags, 0o600.into())
            .map_err(|error| self.failed("create", path, error))?;
        let mut file = File::from(fd);
        loop {
            let bytes = blob.read(buffer)?;
            if bytes == 0 {
                break;
            }
            file.write_all(&buffer[..bytes])
                .map_err(|error| ArtifactError::io("write", &shown(self.path, path), error))?;
            self.progress.add_bytes(bytes);
        }
        if self.sealer.is_none() {
            self.finish_entry(&file, mode).map_err(|error| self.failed("set the mode of", path, error))?;
        }
        self.progress.add_file();
        Ok(())
    }

    /// Has the kernel seal files, and then gives them their owner and mode.
    fn seal_all(&self, entries: &[&Entry], sealer: &Sealer) -> Result<(), ArtifactError> {
        for Entry { path, kind } in entries {
            let EntryKind::File { mode, .. } = kind else { continue };
            let file = self.open_file(path).map_err(|error| self.failed("open", path, error))?;
            sealer.seal(file.as_fd(), path);
            self.finish_entry(&file, *mode).map_err(|error| self.failed("set the mode of", path, error))?;
        }
        Ok(())
    }

    fn open_file(&self, path: &EntryPath) -> Result<OwnedFd, Errno> {
        let folder = open_beneath(self.root, path.parent().as_ref())?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(folder, path.name(), flags, rustix::fs::Mode::empty())
    }

    /// Deepest first: a folder may lose the bits that it takes to work in it.
    fn finish_folders(&self, entries: &[Entry]) -> Result<(), ArtifactError> {
        for Entry { path, kind } in entries.iter().rev() {
            let EntryKind::Dir { mode } = kind else { continue };
            open_beneath(self.root, Some(path))
                .and_then(|folder| self.finish_entry(&folder, *mode))
                .map_err(|error| self.failed("set the mode of", path, error))?;
        }
        self.owner
            .map_or(Ok(()), |owner| own(self.root, owner))
            .and_then(|()| fchmod(self.root, ROOT_MODE.into()))
            .map_err(|error| ArtifactError::io("set the mode of", self.path, error))
    }

    fn finish_entry(&self, fd: impl AsFd, mode: Mode) -> Result<(), Errno> {
        if let Some(owner) = self.owner {
            own(fd.as_fd(), owner)?;
        }
        fchmod(fd, u32::from(mode.bits()).into())
    }

    fn sync(&self, entries: &[Entry]) -> Result<(), ArtifactError> {
        let sync =
            if entries.len() < SYNC_AT_ONCE_FROM { self.sync_each(entries) } else { syncfs(self.root) };
        sync.map_err(|error| ArtifactError::io("sync", self.path, error))
    }

    /// Symlinks need no flush of their own: they are in their folder or in its file system's journal with it.
    fn sync_each(&self, entries: &[Entry]) -> Result<(), Errno> {
        for Entry { path, kind } in entries {
            match kind {
                EntryKind::Dir { .. } => fsync(open_beneath(self.root, Some(path))?)?,
                EntryKind::File { .. } => fsync(self.open_file(path)?)?,
                EntryKind::Symlink { .. } => {}
            }
        }
        fsync(self.root)
    }

    fn failed(&self, doing: &'static str, path: &EntryPath, error: Errno) -> ArtifactError {
        ArtifactError::io(doing, &shown(self.path, path), error)
    }
}

fn own(fd: BorrowedFd<'_>, owner: Owner) -> Result<(), Errno> {
    fchown(fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
}

fn own_link(folder: &OwnedFd, name: &[u8], owner: Owner) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}
