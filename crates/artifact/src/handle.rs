//! Folders by descriptor, so that nobody who swaps a folder for a symlink can send us elsewhere.
//!
//! A name is looked up in a descriptor that is already held, one component at a time and never through a
//! symlink; where a longer path is needed, `openat2` is told to stay beneath the root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use muster_model::EntryPath;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::ArtifactError;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the root of a tree, which must be a folder and not a symlink to one.
pub(crate) fn open_tree(path: &Path) -> Result<OwnedFd, ArtifactError> {
    openat(CWD, path, FOLDER, Mode::empty()).map_err(|error| match error {
        Errno::NOENT => ArtifactError::TreeMissing { path: path.to_owned() },
        Errno::NOTDIR | Errno::LOOP => ArtifactError::NotATree { path: path.to_owned() },
        _ => ArtifactError::io("open the tree", path, error),
    })
}

/// Opens the folder `name`, one component, in `parent`.
pub(crate) fn open_folder<P: Arg>(parent: impl AsFd, name: P) -> Result<OwnedFd, Errno> {
    openat(parent, name, FOLDER, Mode::empty())
}

/// Opens a folder anywhere below `root`, or the root again.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: Option<&EntryPath>) -> Result<OwnedFd, Errno> {
    let Some(path) = path else { return open_folder(root, ".") };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path.as_bytes(), FOLDER, Mode::empty(), resolve) {
        // Kernels before 5.6 do not know it, and some sandboxes forbid what they do not know.
        Err(Errno::NOSYS | Errno::PERM) => open_by_component(root, path),
        opened => opened,
    }
}

fn open_by_component(root: BorrowedFd<'_>, path: &EntryPath) -> Result<OwnedFd, Errno> {
    let mut folder = open_folder(root, ".")?;
    for name in path.as_bytes().split(|&byte| byte == b'/') {
        folder = open_folder(&folder, name)?;
    }
    Ok(folder)
}

/// Where an entry is on disk, for messages.
pub(crate) fn shown(tree: &Path, path: &EntryPath) -> PathBuf {
    tree.join(OsStr::from_bytes(path.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn neither_way_of_opening_goes_through_a_symlink() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(root.path().join("a/b")).expect("folders");
        symlink("a", root.path().join("link")).expect("a symlink");
        let path = |text| EntryPath::from_text(text).expect("a path");
        let tree = open_tree(root.path()).expect("a tree");
        for open in [
            |root: BorrowedFd<'_>, path: &EntryPath| open_beneath(root, Some(path)),
            |root: BorrowedFd<'_>, path: &EntryPath| open_by_component(root, path),
        ] {
            assert!(open(tree.as_fd(), &path("a/b")).is_ok());
            assert!(open(tree.as_fd(), &path("link/b")).is_err());
            assert!(open(tree.as_fd(), &path("link")).is_err());
        }
        assert!(matches!(open_tree(&root.path().join("link")), Err(ArtifactError::NotATree { .. })));
        assert!(matches!(open_tree(&root.path().join("none")), Err(ArtifactError::TreeMissing { .. })));
    }
}
