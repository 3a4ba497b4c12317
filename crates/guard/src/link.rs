//! The link that services use.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_model::Digest;

use crate::error::GuardError;
use crate::lease::LeaseRefusal;
use crate::protocol::LinkState;
use crate::record::sync_parent;

/// A link and the releases that it may lead to.
#[derive(Debug)]
pub(crate) struct Link {
    path: PathBuf,
    releases: PathBuf,
    /// Held while the link is changed. Whoever makes it asks under this lock whether it may still be made, so that a fence
    /// that has taken it away does not find it there again.
    hand: Mutex<()>,
}

/// Asked before a link is made.
pub(crate) type May<'a> = &'a dyn Fn() -> Result<(), LeaseRefusal>;

impl Link {
    pub(crate) const fn new(path: PathBuf, releases: PathBuf) -> Self {
        Self { path, releases, hand: Mutex::new(()) }
    }

    /// Another link beside this one, to which nobody goes.
    pub(crate) fn scratch(&self) -> Self {
        Self::new(self.beside("drill"), self.releases.clone())
    }

    /// The folder of all releases.
    pub(crate) fn releases(&self) -> &Path {
        &self.releases
    }

    /// What is at the link's path now.
    pub(crate) fn read(&self) -> Result<LinkState, GuardError> {
        let target = match fs::read_link(&self.path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LinkState::Absent),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(LinkState::Obstructed),
            Err(error) => return Err(GuardError::io("read", &self.path)(error)),
        };
        let name = target.file_name().and_then(|name| name.to_str());
        Ok(match name.and_then(|hex| Digest::from_hex(hex).ok()) {
            Some(digest) if target == self.target(digest) => LinkState::Release(digest),
            Some(_) | None => LinkState::Foreign { target: target.to_string_lossy().into_owned() },
        })
    }

    /// The release's folder, if it is one.
    pub(crate) fn release(&self, digest: Digest) -> Result<PathBuf, GuardError> {
        let path = self.releases.join(digest.hex());
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => Ok(path),
            Ok(_) => Err(GuardError::ReleaseMissing { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(GuardError::ReleaseMissing { path }),
            Err(error) => Err(GuardError::io("look at", &path)(error)),
        }
    }

    /// Makes the link; a power cut may take it away again. A link is only ever made where there is none, so the one system
    /// call that makes it is atomic, and fails instead of replacing whatever came into its place meanwhile.
    pub(crate) fn make(&self, digest: Digest, may: May<'_>) -> Result<Result<(), LeaseRefusal>, GuardError> {
        let hand = self.hand();
        if let Err(refusal) = may() {
            return Ok(Err(refusal));
        }
        let made = symlink(self.target(digest), &self.path);
        drop(hand);
        match made {
            Ok(()) => Ok(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match self.read()? {
                LinkState::Release(found) if found == digest => Ok(Ok(())),
                LinkState::Obstructed => Err(self.obstructed()),
                LinkState::Release(_) | LinkState::Foreign { .. } | LinkState::Absent => {
                    Err(GuardError::io("make", &self.path)(error))
                }
            },
            Err(error) => Err(GuardError::io("make", &self.path)(error)),
        }
    }

    /// Makes the link's successor beside it, durably; [`Self::swap`] then takes one system call and no disk.
    pub(crate) fn stage(&self, digest: Digest) -> Result<(), GuardError> {
        let staged = self.beside("next");
        self.unstage()?;
        symlink(self.target(digest), &staged).map_err(GuardError::io("make", &staged))?;
        self.sync()
    }

    /// Removes a successor that is not wanted any more.
    pub(crate) fn unstage(&self) -> Result<(), GuardError> {
        let staged = self.beside("next");
        match fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(GuardError::io("remove", &staged)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Puts the successor into the link's place, at once; [`Self::sync`] makes it durable.
    pub(crate) fn swap(&self, may: May<'_>) -> Result<Result<(), LeaseRefusal>, GuardError> {
        let _hand = self.hand();
        if let Err(refusal) = may() {
            return Ok(Err(refusal));
        }
        if self.read()? == LinkState::Obstructed {
            return Err(self.obstructed());
        }
        fs::rename(self.beside("next"), &self.path).map_err(GuardError::io("replace", &self.path)).map(Ok)
    }

    /// Removes the link, durably. `false`: there was none.
    pub(crate) fn remove(&self) -> Result<bool, GuardError> {
        let removed = self.take_away()?;
        if removed {
            self.sync()?;
        }
        Ok(removed)
    }

    /// Removes the link; [`Self::sync`] makes that durable. Anything that is not a symbolic link is left alone.
    pub(crate) fn take_away(&self) -> Result<bool, GuardError> {
        let _hand = self.hand();
        match self.read()? {
            LinkState::Absent => Ok(false),
            LinkState::Obstructed => Err(self.obstructed()),
            LinkState::Release(_) | LinkState::Foreign { .. } => match fs::remove_file(&self.path) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(GuardError::io("remove", &self.path)(error)),
            },
        }
    }

    /// Makes what was done to the link durable.
    pub(crate) fn sync(&self) -> Result<(), GuardError> {
        sync_parent(&self.path)
    }

    /// The error that names what is in the link's place.
    pub(crate) fn obstructed(&self) -> GuardError {
        GuardError::LinkObstructed { path: self.path.clone() }
    }

    fn hand(&self) -> MutexGuard<'_, ()> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A hidden name in the same folder.
    fn beside(&self, what: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.parent().unwrap_or(Path::new("/")).join(format!(".{name}.{what}"))
    }

    /// A relative target where the releases lie beside the link, so that the state folder can be moved as a whole.
    fn target(&self, digest: Digest) -> PathBuf {
        let beside = self.releases.parent() == self.path.parent();
        match self.releases.file_name().filter(|_| beside) {
            Some(name) => PathBuf::from(name).join(digest.hex()),
            None => self.releases.join(digest.hex()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free() -> Result<(), LeaseRefusal> {
        Ok(())
    }

    #[test]
    fn makes_reads_and_removes_only_its_own_kind() {
        let folder = tempfile::tempdir().unwrap();
        let (path, releases) = (folder.path().join("current"), folder.path().join("releases"));
        let link = Link::new(path.clone(), releases.clone());
        let digest = Digest::of(b"tree");
        assert_eq!(link.read().unwrap(), LinkState::Absent);
        assert!(matches!(link.release(digest), Err(GuardError::ReleaseMissing { .. })));
        fs::create_dir_all(releases.join(digest.hex())).unwrap();
        assert!(link.release(digest).is_ok());

        link.make(digest, &free).unwrap().unwrap();
        link.make(digest, &free).unwrap().unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("releases").join(digest.hex()));
        assert_eq!(link.read().unwrap(), LinkState::Release(digest));
        assert!(link.make(Digest::of(b"other"), &free).is_err());
        assert!(link.remove().unwrap());
        assert!(!link.remove().unwrap());

        symlink(Path::new("elsewhere").join(digest.hex()), &path).unwrap();
        assert!(matches!(link.read().unwrap(), LinkState::Foreign { .. }));
        assert!(link.remove().unwrap());

        fs::create_dir(&path).unwrap();
        assert_eq!(link.read().unwrap(), LinkState::Obstructed);
        assert!(matches!(link.make(digest, &free), Err(GuardError::LinkObstructed { .. })));
        assert!(matches!(link.remove(), Err(GuardError::LinkObstructed { .. })));
        assert!(path.is_dir());
    }

    #[test]
    fn a_successor_takes_the_links_place_at_once_and_only_while_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let (path, releases) = (folder.path().join("current"), folder.path().join("releases"));
        let link = Link::new(path.clone(), releases);
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let fenced = || Err(LeaseRefusal::Fenced);
        assert_eq!(link.make(old, &fenced).unwrap(), Err(LeaseRefusal::Fenced));
        assert_eq!(link.read().unwrap(), LinkState::Absent);
        link.make(old, &free).unwrap().unwrap();
        link.stage(old).unwrap();
        link.stage(new).unwrap();
        assert_eq!(link.read().unwrap(), LinkState::Release(old));
        assert_eq!(link.swap(&fenced).unwrap(), Err(LeaseRefusal::Fenced));
        assert_eq!(link.read().unwrap(), LinkState::Release(old));
        link.swap(&free).unwrap().unwrap();
        assert_eq!(link.read().unwrap(), LinkState::Release(new));
        assert!(link.swap(&free).is_err(), "there is no successor any more");
        link.unstage().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_in_another_folder_has_an_absolute_target() {
        let link = Link::new("/run/x/current".into(), "/var/x/releases".into());
        let digest = Digest::of(b"tree");
        assert_eq!(link.target(digest), Path::new("/var/x/releases").join(digest.hex()));
    }

    #[test]
    fn a_release_that_is_a_symlink_or_a_file_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"tree");
        let link = Link::new(folder.path().join("current"), folder.path().to_owned());
        symlink("/usr", folder.path().join(digest.hex())).unwrap();
        assert!(matches!(link.release(digest), Err(GuardError::ReleaseMissing { .. })));
        fs::remove_file(folder.path().join(digest.hex())).unwrap();
        fs::write(folder.path().join(digest.hex()), "").unwrap();
        assert!(matches!(link.release(digest), Err(GuardError::ReleaseMissing { .. })));
    }
}
