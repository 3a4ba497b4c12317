//! The store of daemons: sled for the records, the anchor for what was acknowledged.

use std::path::Path;

use crate::anchor::Anchor;
use crate::chain::{check_head, check_payload, entries_after, read_start, snapshot_after};
use crate::disk::Disk;
use crate::lock::Lock;
use crate::log::Log;
use crate::recovery::{self, Opened, Options};
use crate::{AnchorPayload, ChainFault, Head, Position, Records, Store, StoreError, StoredRecord};

/// A store in one folder, open for one process.
///
/// The folder holds `db/` (sled's files), `anchor`, `lock`, and `db.damaged-<record>` for each database that was
/// replaced after damage.
#[derive(Debug)]
pub struct SledStore {
    log: Log,
    anchor: Anchor,
    first_seq: u64,
    health: Health,
    /// Dropped last, after sled has let go of its files.
    lock: Lock,
}

/// Whether memory and disk are known to agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Sound,
    Poisoned,
}

impl SledStore {
    /// Opens the store in `dir`, creating it if there is nothing, and compares it with its anchor.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it; [`StoreError::AnchorMissing`] if nothing says what was
    /// acknowledged; [`StoreError::HistoryDamaged`] under [`Policy::Refuse`](crate::Policy::Refuse).
    pub fn open(dir: &Path, options: Options) -> Result<Opened, StoreError> {
        recovery::open(dir, options, &Disk::default())
    }

    /// Puts together what was found to agree.
    pub(crate) fn assemble(log: Log, anchor: Anchor, first_seq: u64, lock: Lock) -> Self {
        Self { log, anchor, first_seq, health: Health::Sound, lock }
    }

    /// Removes everything before the newest base, which is durable and acknowledged.
    pub(crate) fn remove_compacted(&self) -> Result<(), StoreError> {
        // Finite: each turn removes one record, and only this thread adds any.
        for seq in self.log.seqs_before(self.first_seq) {
            self.log.remove(seq.map_err(|error| self.log.failed("compact", error))?)?;
        }
        Ok(())
    }

    fn check_sound(&self) -> Result<(), StoreError> {
        match self.health {
            Health::Sound => Ok(()),
            Health::Poisoned => Err(StoreError::Poisoned),
        }
    }

    /// Runs a write. If it fails, nothing is known of the disk, so that the store ends here.
    fn write<T>(&mut self, write: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // Set beforehand, so that a panic in between poisons as well.
        self.health = Health::Poisoned;
        let value = write(self)?;
        self.health = Health::Sound;
        Ok(value)
    }

    /// Database first, anchor second: the anchor is a lower bound of the database at every instant.
    fn commit(&mut self, records: &[StoredRecord], payload: AnchorPayload<'_>) -> Result<(), StoreError> {
        records.iter().try_for_each(|record| self.log.insert(record))?;
        self.log.make_durable()?;
        let head = records.last().expect("a batch has at least one record").head();
        self.anchor.advance(head, payload)
    }
}

impl Store for SledStore {
    fn position(&self) -> Position {
        Position::durable_at(self.anchor.head())
    }

    fn first_seq(&self) -> u64 {
        self.first_seq
    }

    fn confirm(&self) -> Result<(), StoreError> {
        self.check_sound()?;
        self.lock.confirm()
    }

    fn append(
        &mut self,
        expected: Head,
        bodies: &[Vec<u8>],
        payload: AnchorPayload<'_>,
    ) -> Result<Position, StoreError> {
        self.check_sound()?;
        check_head(expected, self.head())?;
        check_payload(payload)?;
        let records = entries_after(expected, bodies)?;
        self.write(|store| store.commit(&records, payload))?;
        Ok(self.position())
    }

    fn compact(
        &mut self,
        expected: Head,
        snapshot: &[u8],
        payload: AnchorPayload<'_>,
    ) -> Result<Position, StoreError> {
        self.check_sound()?;
        check_head(expected, self.head())?;
        check_payload(payload)?;
        let snapshot = snapshot_after(expected, snapshot)?;
        self.write(|store| {
            store.first_seq = snapshot.seq;
            store.commit(std::slice::from_ref(&snapshot), payload)?;
            // From here on the snapshot is acknowledged: a crash leaves records that the next start removes.
            store.remove_compacted()
        })?;
        Ok(self.position())
    }

    fn read_from(&self, from: u64) -> Result<Records<'_>, StoreError> {
        self.check_sound()?;
        let from = read_start(from, self.first_seq)?;
        let previous = match from.checked_sub(1) {
            Some(previous) if previous >= self.first_seq && previous <= self.head().seq => {
                let record = self.log.record(previous).map_err(|error| self.log.failed("read", error))?;
                Some(record.head())
            }
            Some(0) | None => Some(Head::genesis()),
            // A base is what the chain starts from; its predecessor is gone.
            Some(_) => None,
        };
        Ok(Box::new(Reading {
            log: &self.log,
            previous,
            next: from,
            end: self.head(),
            state: ReadState::Going,
        }))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    Going,
    Ended,
}

/// Checks each record against the one before it, and the last one against the head.
struct Reading<'a> {
    log: &'a Log,
    previous: Option<Head>,
    next: u64,
    end: Head,
    state: ReadState,
}

impl Reading<'_> {
    fn read(&mut self) -> Result<StoredRecord, StoreError> {
        let seq = self.next;
        let broken = |fault| StoreError::Broken { seq, path: self.log.path().to_owned(), fault };
        let record = self.log.record(seq).map_err(|error| self.log.failed("read", error))?;
        record.check_follows(self.previous.unwrap_or_else(|| record.previous())).map_err(broken)?;
        if seq == self.end.seq && record.hash != self.end.hash {
            return Err(broken(ChainFault::Link));
        }
        self.previous = Some(record.head());
        self.next += 1;
        Ok(record)
    }
}

impl Iterator for Reading<'_> {
    type Item = Result<StoredRecord, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == ReadState::Ended || self.next > self.end.seq {
            return None;
        }
        let item = self.read();
        if item.is_err() {
            self.state = ReadState::Ended;
        }
        Some(item)
    }
}

#[cfg(test)]
pub(crate) mod faults;

#[cfg(test)]
mod tests;
