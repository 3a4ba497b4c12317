//! Backups: one file that carries the chain and proves that it is whole.
//!
//! `muster.backup/1\n`, then each record as a length and the bytes of the database, then a length of zero, the
//! number of records, the head, and the SHA-256 of everything before. Numbers are big-endian.

use std::fs;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use muster_model::Digest;
use sha2::{Digest as _, Sha256};

use crate::chain::MAX_ENCODED_BYTES;
use crate::disk::{Disk, parent};
use crate::{ChainFault, Head, Options, Store, StoreError, StoredRecord, recovery};

const HEADER: &[u8; 16] = b"muster.backup/1\n";

/// What a backup contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupSummary {
    /// How many records.
    pub records: u64,
    /// Where the chain ends.
    pub head: Head,
}

/// Why bytes are not a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackupFault {
    /// It does not begin like a backup that this program reads.
    #[error("it does not begin with `muster.backup/1`")]
    Header,
    /// It ends too early.
    #[error("it is cut short")]
    Truncated,
    /// A record is longer than any record is.
    #[error("a record says that it has {len} bytes")]
    RecordLength {
        /// What it says.
        len: u32,
    },
    /// A record is not the one that was written.
    #[error("record {seq} is damaged: {fault}")]
    Record {
        /// The record's number.
        seq: u64,
        /// What is wrong with it.
        fault: ChainFault,
    },
    /// The first record is neither the first ever nor one that a chain is read from.
    #[error("it begins with record {seq}, which needs the records before it")]
    Beginning {
        /// The record's number.
        seq: u64,
    },
    /// The number of records or the head is another one than at its end.
    #[error("its records are not the ones that its end speaks of")]
    Summary,
    /// The digest at its end does not match.
    #[error("its digest does not match")]
    Digest,
    /// Something follows its end.
    #[error("something follows its end")]
    Trailing,
}

/// Writes everything that is in `store`.
///
/// # Errors
/// [`StoreError::BackupIo`], and what reading the store gives.
pub fn backup(store: &dyn Store, writer: &mut dyn Write) -> Result<BackupSummary, StoreError> {
    let mut output = Output { writer, hasher: Sha256::new() };
    let mut summary = BackupSummary { records: 0, head: Head::genesis() };
    output.write(HEADER)?;
    for record in store.read_from_snapshot()? {
        let record = record?;
        let bytes = record.encode();
        let len = u32::try_from(bytes.len()).expect("a record has at most MAX_ENCODED_BYTES");
        output.write(&len.to_be_bytes())?;
        output.write(&bytes)?;
        summary = BackupSummary { records: summary.records + 1, head: record.head() };
    }
    output.write(&0_u32.to_be_bytes())?;
    output.write(&summary.records.to_be_bytes())?;
    output.write(&summary.head.seq.to_be_bytes())?;
    output.write(summary.head.hash.as_bytes())?;
    let digest = output.hasher.clone().finalize();
    output.write(&digest)?;
    output.writer.flush().map_err(|source| StoreError::BackupIo { action: "write", source })?;
    Ok(summary)
}

/// Builds the store `dir`, which is new or empty, from a backup.
///
/// The whole backup is verified before anything is created, and once more while it is read for good: what
/// appears at `dir` is complete and durable, or nothing appears.
///
/// # Errors
/// [`StoreError::NotEmpty`], [`StoreError::BackupInvalid`], [`StoreError::BackupIo`], and what creating a store
/// gives.
pub fn restore<R: Read + Seek>(
    reader: &mut R,
    dir: &Path,
    options: Options,
) -> Result<BackupSummary, StoreError> {
    check_empty(dir)?;
    let read = |source| StoreError::BackupIo { action: "read", source };
    let start = reader.stream_position().map_err(read)?;
    let summary = verify(reader)?;
    reader.seek(SeekFrom::Start(start)).map_err(read)?;

    let disk = Disk::default();
    let folder = parent(dir);
    disk.create_folder(folder)?;
    let building = tempfile::Builder::new()
        .prefix(".restore-")
        .tempdir_in(folder)
        .map_err(|source| StoreError::io("create a folder in", folder, source))?;
    let mut input = Input::new(reader);
    let head = recovery::build(building.path(), options, Verified { input: &mut input, previous: None })?;
    let again = input.summary.ok_or_else(|| input.invalid(BackupFault::Truncated))?;
    if again != summary || head != summary.head {
        return Err(input.invalid(BackupFault::Summary));
    }
    // A rename replaces an empty folder and no other, so that nothing that came meanwhile is lost.
    disk.rename(building.path(), dir)?;
    let _gone = building.keep();
    Ok(summary)
}

fn verify(reader: &mut dyn Read) -> Result<BackupSummary, StoreError> {
    let mut input = Input::new(reader);
    let mut records = Verified { input: &mut input, previous: None };
    records.try_for_each(|record| record.map(drop))?;
    input.summary.ok_or_else(|| input.invalid(BackupFault::Truncated))
}

fn check_empty(dir: &Path) -> Result<(), StoreError> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(StoreError::NotEmpty { dir: dir.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StoreError::io("read", dir, source)),
    }
}

struct Output<'a> {
    writer: &'a mut dyn Write,
    hasher: Sha256,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.writer.write_all(bytes).map_err(|source| StoreError::BackupIo { action: "write", source })
    }
}

struct Input<'a> {
    reader: BufReader<&'a mut dyn Read>,
    hasher: Sha256,
    at: u64,
    records: u64,
    /// Set once the end was read and everything agreed.
    summary: Option<BackupSummary>,
}

impl<'a> Input<'a> {
    fn new(reader: &'a mut dyn Read) -> Self {
        Self { reader: BufReader::new(reader), hasher: Sha256::new(), at: 0, records: 0, summary: None }
    }

    fn invalid(&self, fault: BackupFault) -> StoreError {
        StoreError::BackupInvalid { at: self.at, fault }
    }

    /// The next encoded record, or `None` after the end was read and agrees with `head`.
    fn encoded(&mut self, head: Head) -> Result<Option<Vec<u8>>, StoreError> {
        if self.at == 0 && self.array().ok().as_ref() != Some(HEADER) {
            return Err(self.invalid(BackupFault::Header));
        }
        let len = u32::from_be_bytes(self.array()?);
        if len == 0 {
            self.end(head)?;
            return Ok(None);
        }
        match usize::try_from(len) {
            Ok(len) if len <= MAX_ENCODED_BYTES => self.bytes(len).map(Some),
            Ok(_) | Err(_) => Err(self.invalid(BackupFault::RecordLength { len })),
        }
    }

    fn end(&mut self, head: Head) -> Result<(), StoreError> {
        let records = u64::from_be_bytes(self.array()?);
        let seq = u64::from_be_bytes(self.array()?);
        let hash = Digest::from_bytes(self.array()?);
        let summary = BackupSummary { records, head: Head { seq, hash } };
        let digest = Digest::from_bytes(self.hasher.clone().finalize().into());
        if Digest::from_bytes(self.array()?) != digest {
            return Err(self.invalid(BackupFault::Digest));
        }
        if summary != (BackupSummary { records: self.records, head }) {
            return Err(self.invalid(BackupFault::Summary));
        }
        match self.reader.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(self.invalid(BackupFault::Trailing)),
            Err(source) => return Err(StoreError::BackupIo { action: "read", source }),
        }
        self.summary = Some(summary);
        Ok(())
    }

    fn bytes(&mut self, len: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        self.reader.read_exact(bytes).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                self.invalid(BackupFault::Truncated)
            } else {
                StoreError::BackupIo { action: "read", source }
            }
        })?;
        self.hasher.update(&*bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// The records of a backup, each bound to the one before it.
struct Verified<'a, 'b> {
    input: &'a mut Input<'b>,
    previous: Option<Head>,
}

impl Verified<'_, '_> {
    fn read(&mut self) -> Result<Option<StoredRecord>, StoreError> {
        let head = self.previous.unwrap_or_else(Head::genesis);
        let Some(bytes) = self.input.encoded(head)? else { return Ok(None) };
        let seq = self.previous.map_or_else(|| claimed_seq(&bytes), |previous| previous.seq + 1);
        let record = StoredRecord::decode(seq, &bytes)
            .map_err(|fault| self.input.invalid(BackupFault::Record { seq, fault }))?;
        match self.previous {
            None if record.kind.is_base() || record.previous() == Head::genesis() => {}
            None => return Err(self.input.invalid(BackupFault::Beginning { seq })),
            Some(previous) => record
                .check_follows(previous)
                .map_err(|fault| self.input.invalid(BackupFault::Record { seq, fault }))?,
        }
        self.previous = Some(record.head());
        self.input.records += 1;
        Ok(Some(record))
    }
}

impl Iterator for Verified<'_, '_> {
    type Item = Result<StoredRecord, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// The first record names its own place; format and kind come before it.
fn claimed_seq(bytes: &[u8]) -> u64 {
    bytes.get(2..).and_then(|rest| rest.first_chunk()).map_or(0, |seq| u64::from_be_bytes(*seq))
}

#[cfg(test)]
mod tests;
