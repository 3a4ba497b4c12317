//! Small records on disk, replaced as a whole.
//!
//! Beside each record lies the file that the next one is written to: the one before last. Making and freeing a file takes
//! longer than writing it, and these are written while nobody serves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use muster_model::{BootId, Digest, Epoch};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::GuardError;
use crate::protocol::Opened;

/// The right of a fleet to be served here, given in one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Permit {
    /// A permit of another boot is void.
    pub(crate) boot_id: BootId,
    pub(crate) epoch: Epoch,
    pub(crate) digest: Digest,
    /// Why it must not be started again for the time being, if so; what runs goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) doubt: Option<String>,
}

impl Permit {
    pub(crate) const fn opened(&self) -> Opened {
        Opened { epoch: self.epoch, digest: self.digest }
    }
}

/// By what the processes of one run of a service are found again, after the guard that started them is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunRecord {
    /// Process numbers mean nothing in another boot.
    pub(crate) boot_id: BootId,
    /// In the environment of every process of the run that did not clear it.
    pub(crate) run_id: String,
    /// The process that keeps the service.
    pub(crate) keeper: ProcessKey,
    /// The service's main process: its session and process group bear its number. `None` until it is known.
    pub(crate) main: Option<ProcessKey>,
    /// The control group of the run's own, where there is one.
    #[serde(default)]
    pub(crate) cgroup: Option<PathBuf>,
}

/// One process of one boot; its number alone may come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessKey {
    pub(crate) pid: i32,
    /// Clock ticks from boot to its start.
    pub(crate) start_ticks: u64,
}

/// A file that holds one record, or does not exist.
#[derive(Debug, Clone)]
pub(crate) struct RecordFile<T> {
    path: PathBuf,
    record: PhantomData<fn() -> T>,
}

/// What a record has to survive.
#[derive(Debug, Clone, Copy)]
enum Sync {
    PowerCut,
    Process,
}

const RECORD_BYTES_MAX: u64 = 16 * 1024;

impl<T: Serialize + DeserializeOwned> RecordFile<T> {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path, record: PhantomData }
    }

    /// Reads the record; `None` if there is no file. What cannot be parsed is an error, never a record.
    pub(crate) fn read(&self) -> Result<Option<T>, GuardError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(GuardError::io("open", &self.path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes).map_err(GuardError::io("read", &self.path))?;
        let record = serde_json::from_slice(&bytes)
            .map_err(|source| GuardError::Corrupt { path: self.path.clone(), source })?;
        Ok(Some(record))
    }

    /// Replaces the record; on return it survives a power cut.
    pub(crate) fn write(&self, record: &T) -> Result<(), GuardError> {
        self.replace(record, Sync::PowerCut)?;
        sync_parent(&self.path)
    }

    /// Replaces the record; on return it survives the guard, but perhaps not the boot.
    pub(crate) fn write_for_this_boot(&self, record: &T) -> Result<(), GuardError> {
        self.replace(record, Sync::Process)
    }

    fn replace(&self, record: &T, sync: Sync) -> Result<(), GuardError> {
        let next = self.next();
        let bytes = serde_json::to_vec(record).expect("a record of plain fields is always JSON");
        write_file(&next, &bytes, sync).map_err(GuardError::io("write", &next))?;
        put_in_place(&next, &self.path).map_err(GuardError::io("replace", &self.path))
    }

    fn next(&self) -> PathBuf {
        self.path.with_extension("next")
    }

    /// Removes the record; on return it stays away after a power cut. `false`: there was none.
    pub(crate) fn remove(&self) -> Result<bool, GuardError> {
        match fs::remove_file(&self.path) {
            Ok(()) => sync_parent(&self.path).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(GuardError::io("remove", &self.path)(error)),
        }
    }

    /// Removes the record; it stays away for as long as the machine runs. `false`: there was none.
    pub(crate) fn remove_for_this_boot(&self) -> Result<bool, GuardError> {
        match fs::rename(&self.path, self.next()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(GuardError::io("remove", &self.path)(error)),
        }
    }
}

/// Makes the names in the folder of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), GuardError> {
    let folder = path.parent().expect("the configuration's paths are absolute and have a name");
    File::open(folder).and_then(|file| file.sync_all()).map_err(GuardError::io("sync", folder))
}

/// Puts `next` into the place of `path` at once, and what was there into its own.
fn put_in_place(next: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, next, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // There is no record yet, or the file system cannot do that.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(next, path),
        Err(error) => Err(error.into()),
    }
}

/// Nobody reads the file before it is in place, so that it may be written over what it held.
fn write_file(path: &Path, bytes: &[u8], sync: Sync) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    match sync {
        Sync::PowerCut => file.sync_all(),
        Sync::Process => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_replaced_removed_and_never_guessed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("permit.json");
        let file = RecordFile::<ProcessKey>::new(path.clone());
        assert_eq!(file.read().unwrap(), None);
        for pid in [1, 2] {
            let record = ProcessKey { pid, start_ticks: 7 };
            file.write(&record).unwrap();
            assert_eq!(file.read().unwrap(), Some(record));
            let record = ProcessKey { pid: pid + 2, ..record };
            file.write_for_this_boot(&record).unwrap();
            assert_eq!(file.read().unwrap(), Some(record));
            let long = ProcessKey { pid: i32::MAX, start_ticks: u64::MAX };
            for record in [long, record] {
                file.write_for_this_boot(&record).unwrap();
                assert_eq!(file.read().unwrap(), Some(record), "what was longer leaves nothing behind");
            }
            assert!(file.remove_for_this_boot().unwrap());
            assert_eq!((file.remove_for_this_boot().unwrap(), file.read().unwrap()), (false, None));
            file.write(&record).unwrap();
        }
        for bad in ["", "{", "{\"pid\":1}", "{\"pid\":1,\"start_ticks\":2,\"x\":3}"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(file.read(), Err(GuardError::Corrupt { .. })), "{bad}");
        }
        assert!(file.remove().unwrap());
        assert!(!file.remove().unwrap());
    }
}
