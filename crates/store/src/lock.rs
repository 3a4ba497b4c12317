//! One writer: an exclusive lock that ends with the process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::StoreError;

/// The longest process id, in digits.
const HOLDER_BYTES_MAX: u64 = 10;

/// Held as long as this value lives.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock file `path`, creating it if needed.
    pub(crate) fn acquire(path: &Path) -> Result<Self, StoreError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|source| StoreError::io("open", path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path: path.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", path, source)),
        }
        // The number only serves the message above, so that it need not be durable.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(std::process::id().to_string().as_bytes()))
            .map_err(|source| StoreError::io("write", path, source))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Whether the path still names the file that is locked: one who moves or restores the folder under a running
    /// process could have another lock it as well.
    pub(crate) fn confirm(&self) -> Result<(), StoreError> {
        let held = self.file.metadata().map_err(|source| StoreError::io("look at", &self.path, source))?;
        match std::fs::metadata(&self.path) {
            Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => Ok(()),
            Ok(_) => Err(StoreError::Usurped { path: self.path.clone() }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(StoreError::Usurped { path: self.path.clone() })
            }
            Err(source) => Err(StoreError::io("look at", &self.path, source)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child process that is just being started still shares the open file.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "cannot unlock the store; it stays locked until this process ends");
        }
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(HOLDER_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.parse().ok()
}
