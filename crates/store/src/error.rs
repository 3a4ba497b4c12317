//! The crate's error, and the faults that it names.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::{
    BackupFault, ChainFault, EXIT_STORAGE, Head, MAX_ANCHOR_PAYLOAD_BYTES, MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS, MAX_BODY_BYTES,
};

/// Why the database does not hold the history that the anchor speaks of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The database is gone.
    #[error("the database is missing")]
    Missing,
    /// sled cannot read the database.
    #[error("the database cannot be read: {reason}")]
    Unreadable {
        /// What sled said.
        reason: String,
    },
    /// A record is not the one that was written.
    #[error("record {seq} is damaged: {fault}")]
    Record {
        /// The record's number.
        seq: u64,
        /// What is wrong with it.
        fault: ChainFault,
    },
    /// The chain ends before the anchored record.
    #[error("the chain ends at record {end}")]
    Shorter {
        /// The last record found.
        end: u64,
    },
    /// The chain is long enough, and does not contain the anchored record.
    #[error("the chain has another history at the anchored record")]
    Differs,
    /// One slot of the anchor is damaged, and the chain ends where the other one does.
    #[error("a slot of the anchor is damaged, and the chain has nothing past what the other slot says")]
    BehindDamagedSlot,
    /// An earlier start replaced a damaged database, and no record was appended since.
    #[error("an earlier start found the database damaged, and nothing was recorded since")]
    FoundEarlier,
}

/// Why the anchor file says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnchorFault {
    /// There is no such file, and there is a database.
    #[error("it is missing, and there is a database")]
    Missing,
    /// Neither of its slots can be read.
    #[error("both of its slots are damaged")]
    BothSlotsDamaged,
}

/// What a store refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The head is not the one that the caller computed its records from.
    #[error("the head is at record {}, not at record {} as expected", actual.seq, expected.seq)]
    HeadMoved {
        /// What the caller expected.
        expected: Head,
        /// Where the chain ends.
        actual: Head,
    },
    /// An append without bodies.
    #[error("an append needs at least one record")]
    EmptyBatch,
    /// A body that is too long.
    #[error("this record has {len} bytes; at most {MAX_BODY_BYTES} are stored")]
    BodyTooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// Too much for one append.
    #[error(
        "this append has {records} records and {bytes} bytes; \
         at most {MAX_BATCH_RECORDS} records and {MAX_BATCH_BYTES} bytes are taken at once"
    )]
    BatchTooLarge {
        /// How many records.
        records: usize,
        /// How many bytes their bodies have.
        bytes: usize,
    },
    /// A payload that does not fit into a slot of the anchor.
    #[error("this payload has {len} bytes; at most {MAX_ANCHOR_PAYLOAD_BYTES} fit into the anchor")]
    PayloadTooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// The record was removed by a compaction.
    #[error("record {asked} was compacted away; the first one kept is record {first}")]
    Compacted {
        /// The record asked for.
        asked: u64,
        /// The oldest record.
        first: u64,
    },
    /// A record read back is not the one that was written.
    #[error("record {seq} of {} is damaged", path.display())]
    Broken {
        /// The record's number.
        seq: u64,
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        fault: ChainFault,
    },
    /// An earlier write failed, and what the disk holds is unknown.
    #[error("the store failed earlier and takes no more calls; end the process with status {EXIT_STORAGE}")]
    Poisoned,
    /// Another process has the store open.
    #[error("another process has {} open{}", path.display(), holder_text(*holder))]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process id of the holder, if it wrote one.
        holder: Option<u32>,
    },
    /// The store's folder is no longer the one that this process has locked.
    #[error(
        "{} is not the file that this process has locked: another process may lead by now, so this one must end",
        path.display()
    )]
    Usurped {
        /// The lock file.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("no space left for {}; free some space, then start the process again", path.display())]
    NoSpace {
        /// What could not be written.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system failed at something else.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The database failed.
    #[error("cannot {action} {}", path.display())]
    Database {
        /// What was attempted.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// What it said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The database does not hold the history that was acknowledged.
    #[error(
        "{} does not hold the history that was acknowledged up to record {}; \
         put the folder aside and restore a backup",
        dir.display(), anchored.seq
    )]
    HistoryDamaged {
        /// The store's folder.
        dir: PathBuf,
        /// What the anchor speaks of.
        anchored: Head,
        /// What was found instead.
        #[source]
        damage: Damage,
    },
    /// Nothing says up to where the history was acknowledged.
    #[error(
        "the anchor {} says nothing, so the database cannot be trusted; \
         restore a backup, or readmit the host",
        path.display()
    )]
    AnchorMissing {
        /// The anchor file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        fault: AnchorFault,
    },
    /// The store is whole, and in a format of a later program: not damage, so that nothing is put aside.
    #[error("{} was written by a newer program; start that one", path.display())]
    Newer {
        /// The file or database.
        path: PathBuf,
    },
    /// So many damaged databases lie in the folder that the disk itself is in question.
    #[error(
        "{} holds {count} damaged databases already; check the disk, then remove them",
        dir.display()
    )]
    TooManyDamaged {
        /// The store's folder.
        dir: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// A backup is only restored into a folder without anything in it.
    #[error("{} is not empty; a backup is restored into a new or an empty folder", dir.display())]
    NotEmpty {
        /// The folder.
        dir: PathBuf,
    },
    /// The backup is not what `backup` wrote.
    #[error("this backup is not valid after {at} bytes")]
    BackupInvalid {
        /// How many bytes were read when it was noticed.
        at: u64,
        /// What is wrong with it.
        #[source]
        fault: BackupFault,
    },
    /// Reading or writing the backup failed.
    #[error("cannot {action} the backup")]
    BackupIo {
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the process has to end with [`EXIT_STORAGE`]: what the disk holds is unknown.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        match self {
            Self::Broken { .. }
            | Self::Poisoned
            | Self::Usurped { .. }
            | Self::NoSpace { .. }
            | Self::Io { .. }
            | Self::Database { .. }
            | Self::HistoryDamaged { .. }
            | Self::AnchorMissing { .. }
            | Self::Newer { .. }
            | Self::TooManyDamaged { .. } => true,
            Self::HeadMoved { .. }
            | Self::EmptyBatch
            | Self::BodyTooLarge { .. }
            | Self::BatchTooLarge { .. }
            | Self::PayloadTooLarge { .. }
            | Self::Compacted { .. }
            | Self::Locked { .. }
            | Self::NotEmpty { .. }
            | Self::BackupInvalid { .. }
            | Self::BackupIo { .. } => false,
        }
    }

    /// An error of the system, with a full disk told apart from the rest.
    #[must_use]
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::NoSpace { path, source };
        }
        Self::Io { action, path, source }
    }
}

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
}
