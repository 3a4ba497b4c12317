//! The link that services use.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use muster_model::Digest;

use crate::error::GuardError;
use crate::protocol::LinkState;
use crate::record::sync_parent;

/// A link and the releases that it may lead to.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    path: PathBuf,
    releases: PathBuf,
}

impl Link {
    pub(crate) const fn new(path: PathBuf, releases: PathBuf) -> Self {
        Self { path, releases }
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

    /// Makes the link, durably. A link is only ever made where there is none, so the one system call that makes it is
    /// atomic, and fails instead of replacing whatever came into its place meanwhile.
    pub(crate) fn make(&self, digest: Digest) -> Result<(), GuardError> {
        match symlink(self.target(digest), &self.path) {
            Ok(()) => sync_parent(&self.path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match self.read()? {
                LinkState::Release(found) if found == digest => sync_parent(&self.path),
                LinkState::Obstructed => Err(self.obstructed()),
                LinkState::Release(_) | LinkState::Foreign { .. } | LinkState::Absent => {
                    Err(GuardError::io("make", &self.path)(error))
                }
            },
            Err(error) => Err(GuardError::io("make", &self.path)(error)),
        }
    }

    /// Removes the link, durably. `false`: there was none. Anything that is not a symbolic link is left alone.
    pub(crate) fn remove(&self) -> Result<bool, GuardError> {
        match self.read()? {
            LinkState::Absent => Ok(false),
            LinkState::Obstructed => Err(self.obstructed()),
            LinkState::Release(_) | LinkState::Foreign { .. } => {
                fs::remove_file(&self.path).map_err(GuardError::io("remove", &self.path))?;
                sync_parent(&self.path)?;
                Ok(true)
            }
        }
    }

    /// The error that names what is in the link's place.
    pub(crate) fn obstructed(&self) -> GuardError {
        GuardError::LinkObstructed { path: self.path.clone() }
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
    use std::path::Path;

    use super::*;

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

        link.make(digest).unwrap();
        link.make(digest).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("releases").join(digest.hex()));
        assert_eq!(link.read().unwrap(), LinkState::Release(digest));
        assert!(link.make(Digest::of(b"other")).is_err());
        assert!(link.remove().unwrap());
        assert!(!link.remove().unwrap());

        symlink(Path::new("elsewhere").join(digest.hex()), &path).unwrap();
        assert!(matches!(link.read().unwrap(), LinkState::Foreign { .. }));
        assert!(link.remove().unwrap());

        fs::create_dir(&path).unwrap();
        assert_eq!(link.read().unwrap(), LinkState::Obstructed);
        assert!(matches!(link.make(digest), Err(GuardError::LinkObstructed { .. })));
        assert!(matches!(link.remove(), Err(GuardError::LinkObstructed { .. })));
        assert!(path.is_dir());
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
