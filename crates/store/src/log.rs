//! The records in sled 0.34.7: the only file that calls it.
//!
//! Measured of that version: `flush()` writes and calls no `fsync`; a damaged log opens as a shorter history
//! without an error; some damage makes it panic. Items longer than a quarter of a segment, which includes
//! leaves of many long records, go into files of their own below `blobs/`, which sled does not sync either. When it opens
//! it writes a snapshot of its own bookkeeping, and takes one that it could not finish for the newest.

use std::collections::BTreeSet;
use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::disk::{Disk, parent};
use crate::{ChainFault, Damage, StoreError, StoredRecord};

/// How long sled's threads of an earlier store in this process may keep their lock after it was dropped.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
const RELEASE_POLL: Duration = Duration::from_millis(2);

/// The open database.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    disk: Disk,
    db: sled::Db,
    /// Opened before anything is written, so that the kernel reports a failed write-back to it.
    file: File,
    synced_blobs: BTreeSet<OsString>,
}

/// Why an operation on the database failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The machine failed: this says nothing about the history.
    #[error("the system failed")]
    System(#[source] StoreError),
    /// The content is not what was written.
    #[error(transparent)]
    Damaged(Damage),
}

impl Log {
    /// Opens the database at `path`, creating it if it is missing, and makes its files durable.
    pub(crate) fn open(path: &Path, cache_bytes_max: u64, disk: &Disk) -> Result<Self, LogError> {
        wait_until_released(&path.join("db")).map_err(LogError::System)?;
        remove_unfinished_snapshots(path).map_err(LogError::System)?;
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes_max)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(None);
        let db = guarded("open", path, || config.open())?;
        let log_path = path.join("db");
        let file = File::open(&log_path)
            .map_err(|source| LogError::System(StoreError::io("open", &log_path, source)))?;
        let mut log =
            Self { path: path.to_owned(), disk: disk.clone(), db, file, synced_blobs: BTreeSet::new() };
        log.sync_created().map_err(LogError::System)?;
        Ok(log)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a record, which is durable after the next [`Log::make_durable`].
    pub(crate) fn insert(&self, record: &StoredRecord) -> Result<(), StoreError> {
        self.insert_encoded(record.seq, record.encode())
    }

    pub(crate) fn insert_encoded(&self, seq: u64, record: Vec<u8>) -> Result<(), StoreError> {
        self.step("append to")?;
        guarded("append to", &self.path, || self.db.insert(seq.to_be_bytes(), record))
            .map_err(|error| self.failed("append to", error))?;
        Ok(())
    }

    /// Removes a record; whether that survives a crash matters to nobody.
    pub(crate) fn remove(&self, seq: u64) -> Result<(), StoreError> {
        self.step("compact")?;
        guarded("compact", &self.path, || self.db.remove(seq.to_be_bytes()))
            .map_err(|error| self.failed("compact", error))?;
        Ok(())
    }

    /// Returns once everything inserted survives a crash.
    pub(crate) fn make_durable(&mut self) -> Result<(), StoreError> {
        self.step("flush")?;
        guarded("flush", &self.path, || self.db.flush()).map_err(|error| self.failed("flush", error))?;
        // A record of the log may name a blob, never the other way round: so the blobs go first.
        self.sync_blobs()?;
        self.disk.sync_file(&self.file, &self.path.join("db"))
    }

    /// The record `seq`, looked up by its key. In a damaged tree a lookup and an iteration can disagree, so that
    /// records are read in this one way, both when they are verified and later.
    pub(crate) fn record(&self, seq: u64) -> Result<StoredRecord, LogError> {
        let bytes = guarded("read", &self.path, || self.db.get(seq.to_be_bytes()))?;
        let bytes = bytes.ok_or(LogError::Damaged(Damage::Record { seq, fault: ChainFault::Missing }))?;
        StoredRecord::decode(seq, &bytes).map_err(|fault| LogError::Damaged(Damage::Record { seq, fault }))
    }

    /// The number of the last record.
    pub(crate) fn last_seq(&self) -> Result<Option<u64>, LogError> {
        let last = guarded("read", &self.path, || self.db.last())?;
        last.map(|(key, _)| key_seq(&key)).transpose()
    }

    /// The numbers of all records before `end`, oldest first.
    pub(crate) fn seqs_before(&self, end: u64) -> impl Iterator<Item = Result<u64, LogError>> + '_ {
        let mut keys = self.db.range(..end.to_be_bytes()).keys();
        std::iter::from_fn(move || {
            let key = guarded("read", &self.path, || keys.next().transpose()).transpose()?;
            Some(key.and_then(|key| key_seq(&key)))
        })
    }

    /// Gives an error its context.
    pub(crate) fn failed(&self, action: &'static str, error: LogError) -> StoreError {
        match error {
            LogError::System(error) => error,
            LogError::Damaged(Damage::Record { seq, fault }) => {
                StoreError::Broken { seq, path: self.path.clone(), fault }
            }
            LogError::Damaged(damage) => {
                StoreError::Database { action, path: self.path.clone(), source: damage.into() }
            }
        }
    }

    /// Closes a database that may be damaged.
    pub(crate) fn close_damaged(self) {
        // sled flushes when it is dropped and unwraps the result; nothing of that matters any more.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self)));
    }

    fn step(&self, action: &'static str) -> Result<(), StoreError> {
        self.disk.step().map_err(|source| StoreError::io(action, &self.path, source))
    }

    /// What opening has created or changed, folders included.
    fn sync_created(&mut self) -> Result<(), StoreError> {
        for name in names(&self.path)? {
            let path = self.path.join(name);
            if path.is_file() {
                sync_if_there(&path, &self.disk)?;
            }
        }
        self.sync_blobs()?;
        self.disk.sync_folder(&self.blobs())?;
        self.disk.sync_folder(&self.path)?;
        self.disk.sync_folder(parent(&self.path))
    }

    fn sync_blobs(&mut self) -> Result<(), StoreError> {
        let blobs = self.blobs();
        let names = names(&blobs)?;
        let mut new = names.difference(&self.synced_blobs).peekable();
        if new.peek().is_some() {
            new.try_for_each(|name| sync_if_there(&blobs.join(name), &self.disk))?;
            self.disk.sync_folder(&blobs)?;
        }
        // Names are positions in the log and never come back.
        self.synced_blobs = names;
        Ok(())
    }

    fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }
}

fn key_seq(key: &[u8]) -> Result<u64, LogError> {
    let key = <[u8; 8]>::try_from(key)
        .map_err(|_| LogError::Damaged(Damage::Unreadable { reason: "a key is not a number".to_owned() }))?;
    Ok(u64::from_be_bytes(key))
}

/// Calls sled, which panics on some damaged files: such a panic is a finding about the file, not a bug that may
/// end the process. Nothing of sled is used after one except to drop it, so that broken invariants stay inside.
fn guarded<T>(
    action: &'static str,
    path: &Path,
    operation: impl FnOnce() -> sled::Result<T>,
) -> Result<T, LogError> {
    match catch_unwind(AssertUnwindSafe(operation)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(classify(action, path, error)),
        Err(_) => Err(LogError::Damaged(Damage::Unreadable { reason: "sled panicked".to_owned() })),
    }
}

/// Tells a failing machine from a damaged file: only the latter may ever move a database aside.
fn classify(action: &'static str, path: &Path, error: sled::Error) -> LogError {
    let damaged = |error: &dyn Error| LogError::Damaged(Damage::Unreadable { reason: error.to_string() });
    match error {
        // sled reports its own findings as I/O errors of these kinds, without a number of the system.
        sled::Error::Io(error)
            if error.raw_os_error().is_none()
                && matches!(
                    error.kind(),
                    io::ErrorKind::Other | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
                )
                && !is_lock_error(&error) =>
        {
            damaged(&error)
        }
        // A blob that the log names is gone.
        sled::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => damaged(&error),
        sled::Error::Io(error) => LogError::System(StoreError::io(action, path, error)),
        error @ (sled::Error::CollectionNotFound(_)
        | sled::Error::Unsupported(_)
        | sled::Error::ReportableBug(_)
        | sled::Error::Corruption { .. }) => damaged(&error),
    }
}

/// sled words a lock that it cannot take as an error without kind or number.
fn is_lock_error(error: &io::Error) -> bool {
    error.to_string().starts_with("could not acquire lock")
}

/// Removes what a full disk or a crash has left of a snapshot. sled renames those that are complete, and everything in them
/// follows from the log; but it reads an unfinished one as if it were whole, and would never open again.
fn remove_unfinished_snapshots(path: &Path) -> Result<(), StoreError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StoreError::io("list", path, source)),
    };
    for entry in entries {
        let file = entry.map_err(|source| StoreError::io("list", path, source))?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(&file).map_err(|source| StoreError::io("remove", &file, source))?;
        }
    }
    Ok(())
}

/// sled's threads let go of the file a moment after its handle was dropped; a lock that is still held is not a
/// damaged database.
fn wait_until_released(path: &Path) -> Result<(), StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StoreError::io("open", path, source)),
    };
    let deadline = Instant::now() + RELEASE_WAIT;
    loop {
        match file.try_lock() {
            // Unlocked by name, since a child process that is just being started may share the open file.
            Ok(()) => return file.unlock().map_err(|source| StoreError::io("unlock", path, source)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(RELEASE_POLL),
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path: path.to_owned(), holder: None });
            }
            Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", path, source)),
        }
    }
}

fn names(folder: &Path) -> Result<BTreeSet<OsString>, StoreError> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
        .map_err(|source| StoreError::io("read", folder, source))
}

/// sled removes blobs and old snapshots of its own accord, perhaps just now.
fn sync_if_there(path: &Path, disk: &Disk) -> Result<(), StoreError> {
    match File::open(path) {
        Ok(file) => disk.sync_file(&file, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StoreError::io("open", path, source)),
    }
}
