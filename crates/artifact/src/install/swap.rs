//! Putting a fresh tree in the place of another, and what has to move along.

use std::ffi::CStr;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use muster_model::{Digest, EntryKind, Manifest};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, chmodat, fchmod, openat, renameat, renameat_with,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::ArtifactError;
use crate::durable::sync_folder;
use crate::handle::{open_beneath, open_folder, open_tree, shown};

const SWAP: &str = ".swap-";
/// What a service writes is not bound by a manifest's limit, and each level holds a descriptor.
const REMOVE_DEPTH_MAX: usize = 512;

/// Where one release is installed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) releases: &'a Path,
    pub(super) digest: Digest,
}

impl Place<'_> {
    pub(super) fn tree(&self) -> PathBuf {
        self.releases.join(self.digest.hex())
    }

    pub(super) fn prefix(&self, kind: &str) -> String {
        format!("{kind}{}-", self.digest.hex())
    }

    /// A name beside the tree that nothing has.
    pub(super) fn unused_name(&self, kind: &str) -> Result<PathBuf, ArtifactError> {
        tempfile::Builder::new()
            .prefix(&self.prefix(kind))
            .make_in(self.releases, |path| match fs::symlink_metadata(path) {
                Ok(_) => Err(ErrorKind::AlreadyExists.into()),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            })
            .and_then(|name| name.into_temp_path().keep().map_err(|error| error.error))
            .map_err(|error| ArtifactError::io("find a name in", self.releases, error))
    }

    /// The trees that take part in replacements of this release, finished or not.
    pub(super) fn swaps(&self) -> Result<Vec<PathBuf>, ArtifactError> {
        let failed = |error| ArtifactError::io("list", self.releases, error);
        let prefix = self.prefix(SWAP);
        let mut swaps = Vec::new();
        for entry in fs::read_dir(self.releases).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
                swaps.push(entry.path());
            }
        }
        swaps.sort_unstable();
        Ok(swaps)
    }
}

/// Puts the tree `built` in place; the one that was there stays beside it as a swap, for [`finish`].
pub(super) fn exchange(place: &Place<'_>, built: &Path) -> Result<(), ArtifactError> {
    let (swap, tree) = (place.unused_name(SWAP)?, place.tree());
    let failed = |error: Errno| ArtifactError::io("replace the tree", &tree, error);
    // From here on the name says that this may hold the service's data, whichever of the two trees it is.
    renameat(CWD, built, CWD, &swap).map_err(failed)?;
    sync_folder(place.releases)?;
    match renameat_with(CWD, &swap, CWD, &tree, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // Not every file system can exchange: then the path is without a tree for an instant.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let old = place.unused_name(SWAP)?;
            renameat(CWD, &tree, CWD, &old).map_err(failed)?;
            renameat(CWD, &swap, CWD, &tree).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Ends all replacements of a release whose tree is in place: moves what the service wrote into the tree,
/// removes the rest. Says whether there was anything to do. Whatever a crash left undone, doing it again is
/// right: what has moved is no longer there to be moved.
pub(super) fn finish(place: &Place<'_>, manifest: &Manifest) -> Result<bool, ArtifactError> {
    let swaps = place.swaps()?;
    for swap in &swaps {
        admit_owner(swap)?;
        let kept = match open_tree(swap) {
            Ok(old) => move_mutable(place, manifest, swap, &old)?,
            Err(ArtifactError::NotATree { .. }) => false,
            Err(error) => return Err(error),
        };
        if kept {
            tracing::warn!(path = %swap.display(), "keeping a replaced tree whose data the new one has, too");
        } else {
            remove_tree(swap)?;
        }
    }
    Ok(!swaps.is_empty())
}

/// Returns whether something could not move because the tree has data there already.
fn move_mutable(
    place: &Place<'_>,
    manifest: &Manifest,
    swap: &Path,
    old: &OwnedFd,
) -> Result<bool, ArtifactError> {
    let tree = place.tree();
    let new = open_tree(&tree)?;
    let mut kept = false;
    for path in &manifest.rules().mutable {
        let failed = |error| ArtifactError::io("move the service's data to", &shown(&tree, path), error);
        let parent = path.parent();
        let from = match open_beneath(old.as_fd(), parent.as_ref()) {
            Ok(from) => from,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(ArtifactError::io("open the folder of", &shown(swap, path), error)),
        };
        let into = open_beneath(new.as_fd(), parent.as_ref()).map_err(failed)?;
        let Some(found) = type_at(&from, path.name()).map_err(failed)? else { continue };
        let listed = manifest.entry(path).map(|entry| &entry.kind);
        if listed.is_some() && found != FileType::Directory {
            // The manifest asks for a folder: what else stood there is part of the damage.
            continue;
        }
        match renameat(&from, path.name(), &into, path.name()) {
            Ok(()) => rustix::fs::fsync(&into).map_err(failed)?,
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ISDIR | Errno::NOTDIR) => {
                kept |= !remove_if_empty(&from, path.name());
                continue;
            }
            Err(error) => return Err(failed(error)),
        }
        if let Some(EntryKind::Dir { mode }) = listed {
            open_folder(&into, path.name())
                .and_then(|folder| fchmod(folder, u32::from(mode.bits()).into()))
                .map_err(failed)?;
        }
    }
    Ok(kept)
}

/// Removes whatever is at `path`, if anything, folders without write permission included.
pub(super) fn remove_tree(path: &Path) -> Result<(), ArtifactError> {
    let failed = |error| ArtifactError::io("remove", path, error);
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            admit_owner(path)?;
            make_removable(&open_tree(path)?, 0).map_err(|error| failed(error.into()))?;
            fs::remove_dir_all(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Lets the owner into a tree whose root was shut. Nobody else may rename in the folder of releases, so its
/// names stay what they are.
fn admit_owner(tree: &Path) -> Result<(), ArtifactError> {
    let is_folder = fs::symlink_metadata(tree).is_ok_and(|found| found.is_dir());
    if !is_folder {
        return Ok(());
    }
    fs::set_permissions(tree, Permissions::from_mode(0o700))
        .map_err(|error| ArtifactError::io("set the mode of", tree, error))
}

/// Lets the owner work in all folders, by descriptor: the service may still hold and swap what is its own.
fn make_removable(folder: &OwnedFd, depth: usize) -> Result<(), Errno> {
    if depth > REMOVE_DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    fchmod(folder, 0o700.into())?;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if type_at(folder, name.to_bytes())? == Some(FileType::Directory) {
            make_removable(&open_shut(folder, name)?, depth + 1)?;
        }
    }
    Ok(())
}

/// Opens a folder that its owner may not read. A descriptor of the folder's place, which needs no permission,
/// makes sure that it is this folder whose mode is set, whatever its name stands for by then.
fn open_shut(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    open_folder(parent, name).or_else(|_| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(parent, name, flags, Mode::empty())?;
        let link = format!("/proc/self/fd/{}", place.as_raw_fd());
        chmodat(CWD, link.as_str(), 0o700.into(), AtFlags::empty())?;
        open_folder(parent, name)
    })
}

fn type_at(folder: &OwnedFd, name: &[u8]) -> Result<Option<FileType>, Errno> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an empty folder was there and is gone.
fn remove_if_empty(folder: &OwnedFd, name: &[u8]) -> bool {
    unlinkat(folder, name, AtFlags::REMOVEDIR).is_ok()
}
