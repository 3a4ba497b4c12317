//! The guard's own folders, and the lock that makes it the only guard on them.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use muster_model::FleetName;

use crate::error::GuardError;

/// A state folder that only this guard works on, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct StateFolder {
    path: PathBuf,
    _lock: File,
}

impl StateFolder {
    /// Makes the folder where it is missing, checks that nobody else can write to it, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, GuardError> {
        make_private(path)?;
        let lock_path = path.join("guard.lock");
        let lock = lock(&lock_path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The folder of one fleet's records and log.
    pub(crate) fn fleet(&self, fleet: &FleetName) -> Result<PathBuf, GuardError> {
        let path = self.path.join("fleets").join(fleet.as_str());
        make_private(&path)?;
        Ok(path)
    }
}

/// Makes `path`, and what is missing above it, for this user alone; an existing folder must be this user's or root's,
/// and writable by nobody else.
pub(crate) fn make_private(path: &Path) -> Result<(), GuardError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(GuardError::io("make", path))?;
    let found = fs::metadata(path).map_err(GuardError::io("look at", path))?;
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own && found.uid() != 0 {
        let detail = format!("it belongs to user {}, not to user {own}", found.uid());
        return Err(GuardError::UnsafeFolder { path: path.to_owned(), detail });
    }
    if found.mode() & 0o022 != 0 {
        let detail = format!("others may write to it (mode {:03o})", found.mode() & 0o777);
        return Err(GuardError::UnsafeFolder { path: path.to_owned(), detail });
    }
    Ok(())
}

/// The lock belongs to the open file, so it goes with the process, however that ends; the file stays.
fn lock(path: &Path) -> Result<File, GuardError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(GuardError::io("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let holder = file.take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(GuardError::AlreadyRunning { path: path.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(GuardError::io("lock", path)(source)),
    }
    // For people who wonder who holds it; the lock itself does not depend on it.
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(GuardError::io("write", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_guard_for_each_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let first = StateFolder::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let own = std::process::id();
        assert!(
            matches!(StateFolder::open(&path), Err(GuardError::AlreadyRunning { holder: Some(pid), .. }) if pid == own)
        );
        drop(first);
        StateFolder::open(&path).unwrap();
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o770, 0o702] {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            let error = StateFolder::open(folder.path()).unwrap_err();
            assert!(matches!(error, GuardError::UnsafeFolder { .. }), "{error}");
        }
    }
}
