//! A fleet's journal: the host's record, durable before anything speaks of it.

use std::path::Path;

use muster_daemon::fault_point;
use muster_model::{Durable, FleetName, HostName, JournalHead};
use muster_rollout::host::{History, HostRecord, RECORD_FORMAT};
use muster_store::{AnchorPayload, Head, Options, Recovery, SledStore, Store, StoreError};

use crate::JournalError;

/// How many records are kept before a snapshot takes their place.
const RECORDS_MAX: u64 = 1000;

/// The journal of one fleet on one host. Each record is the whole state, and the anchor holds a copy of the newest one.
pub(crate) struct Journal {
    store: Box<dyn Store>,
}

impl Journal {
    /// Opens the journal in `dir`, and says what this host has promised.
    pub(crate) fn open(
        dir: &Path,
        fleet: &FleetName,
        host: &HostName,
    ) -> Result<(Self, HostRecord), JournalError> {
        let opened = SledStore::open(dir, Options::agent())?;
        Self::adopt(Box::new(opened.store), &opened.recovery, fleet, host)
    }

    /// Takes over a store that is open.
    ///
    /// storage.md: "the agent takes its record from the slot, keeps its gate shut, records `HistoryLost` and joins";
    /// a slot that does not hold the newest record is worth nothing, as the host may have promised more since.
    pub(crate) fn adopt(
        store: Box<dyn Store>,
        recovery: &Recovery,
        fleet: &FleetName,
        host: &HostName,
    ) -> Result<(Self, HostRecord), JournalError> {
        let mut journal = Self { store };
        let record = match recovery {
            Recovery::Fresh | Recovery::Clean | Recovery::AdoptedTail { .. } => journal.newest()?,
            Recovery::HistoryLost { anchored, payload, damage, aside } => {
                tracing::error!(%fleet, %host, %damage, ?aside, "the journal lost its history");
                let newest = payload.as_ref().filter(|payload| payload.seq == anchored.seq);
                let payload = newest.ok_or(JournalError::NothingAnchored { seq: anchored.seq })?;
                Some(HostRecord { history: History::Lost, ..parse(payload.seq, &payload.bytes)? })
            }
        };
        let record = match record {
            Some(record) => check(record, fleet, host)?,
            None => HostRecord::first(fleet.clone(), host.clone()),
        };
        if let Recovery::AdoptedTail { records } = recovery {
            tracing::info!(%fleet, %host, records, "took over records that were written but never spoken of");
            // The anchor's copy is older than the tail; it must not be what a loss of the history falls back to.
            journal.append(std::slice::from_ref(&record))?;
        }
        Ok((journal, record))
    }

    /// Where the journal stands.
    pub(crate) fn head(&self) -> JournalHead {
        let Head { seq, hash } = self.store.head();
        JournalHead { seq, hash }
    }

    /// Makes `records` durable; there is at least one. After an error of the disk nothing more can be written.
    pub(crate) fn append(&mut self, records: &[HostRecord]) -> Result<Durable, JournalError> {
        fault_point("agent.journal").map_err(fault)?;
        let bodies: Vec<Vec<u8>> = records.iter().map(encode).collect();
        let newest = bodies.last().ok_or(StoreError::EmptyBatch)?;
        let head = self.store.head();
        let payload = AnchorPayload::Replace(newest);
        let position = if head.seq.saturating_sub(self.store.first_seq()) >= RECORDS_MAX {
            // Each record is the whole state, so the newest one stands for all before it.
            self.store.compact(head, newest, payload)?
        } else {
            self.store.append(head, &bodies, payload)?
        };
        Ok(position.durable)
    }

    fn newest(&self) -> Result<Option<HostRecord>, JournalError> {
        let mut newest = None;
        for record in self.store.read_from_snapshot()? {
            newest = Some(record?);
        }
        newest.map(|record| parse(record.seq, &record.body)).transpose()
    }
}

fn encode(record: &HostRecord) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record has string keys and no failing serialisers")
}

fn parse(seq: u64, body: &[u8]) -> Result<HostRecord, JournalError> {
    serde_json::from_slice(body).map_err(|source| JournalError::Record { seq, source })
}

fn check(record: HostRecord, fleet: &FleetName, host: &HostName) -> Result<HostRecord, JournalError> {
    if record.format != RECORD_FORMAT {
        return Err(JournalError::Format { found: record.format, supported: RECORD_FORMAT });
    }
    if (&record.fleet, &record.host) != (fleet, host) {
        return Err(JournalError::Foreign { host: record.host, fleet: record.fleet });
    }
    Ok(record)
}

fn fault(source: std::io::Error) -> StoreError {
    let path = "journal".into();
    if source.kind() == std::io::ErrorKind::StorageFull {
        return StoreError::NoSpace { path, source };
    }
    StoreError::Io { action: "write", path, source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use muster_model::{RolloutId, Token};
    use muster_store::MemStore;

    use super::*;

    fn fleet() -> FleetName {
        FleetName::new("smars").unwrap()
    }

    fn host() -> HostName {
        HostName::new("host-1").unwrap()
    }

    fn open(dir: &Path) -> Result<(Journal, HostRecord), JournalError> {
        Journal::open(dir, &fleet(), &host())
    }

    fn armed_for(record: &HostRecord, k: u64) -> HostRecord {
        HostRecord { last_k: RolloutId(k), token: Some(Token::from_bytes([1; 32])), ..record.clone() }
    }

    /// A journal with `last` records, closed.
    fn written(dir: &Path, last: u64) -> HostRecord {
        let (mut journal, first) = open(dir).unwrap();
        let mut newest = first.clone();
        for k in 1..=last {
            newest = armed_for(&first, k);
            journal.append(std::slice::from_ref(&newest)).unwrap();
        }
        assert_eq!(journal.head().seq, last);
        newest
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("journal");
        (folder, dir)
    }

    #[test]
    fn a_new_host_has_promised_nothing_and_an_old_one_keeps_its_promise() {
        let (_folder, dir) = folder();
        let (journal, record) = open(&dir).unwrap();
        assert_eq!(record, HostRecord::first(fleet(), host()));
        assert_eq!(journal.head().seq, 0);
        drop(journal);
        // Opened again before anything was written.
        assert_eq!(open(&dir).unwrap().1, record);
        let newest = written(&dir, 3);
        assert_eq!(open(&dir).unwrap().1, newest);
    }

    #[test]
    fn a_lost_history_is_taken_from_the_anchor_and_said() {
        let (_folder, dir) = folder();
        let newest = written(&dir, 3);
        fs::remove_dir_all(dir.join("db")).unwrap();
        for _ in 0..2 {
            // Said until a record follows.
            let (_, record) = open(&dir).unwrap();
            assert_eq!(record, HostRecord { history: History::Lost, ..newest.clone() });
        }
        let (mut journal, record) = open(&dir).unwrap();
        journal.append(&[HostRecord { history: History::Whole, ..record }]).unwrap();
        drop(journal);
        assert_eq!(open(&dir).unwrap().1, newest);
    }

    #[test]
    fn without_an_anchor_nothing_starts() {
        let (_folder, dir) = folder();
        written(&dir, 2);
        fs::remove_file(dir.join("anchor")).unwrap();
        let error = open(&dir).map(|_| ()).unwrap_err();
        assert!(matches!(error, JournalError::Store { source: StoreError::AnchorMissing { .. } }), "{error}");
        assert!(error.is_storage());
    }

    #[test]
    fn an_anchor_that_is_older_than_the_promise_is_not_believed() {
        let record = encode(&HostRecord::first(fleet(), host()));
        let lost = |payload| Recovery::HistoryLost {
            anchored: Head { seq: 7, hash: Head::genesis().hash },
            payload,
            damage: muster_store::Damage::Missing,
            aside: None,
        };
        let payload = |seq| Some(muster_store::AnchoredPayload { seq, bytes: record.clone() });
        let adopt = |recovery: &Recovery| {
            Journal::adopt(Box::new(MemStore::new()), recovery, &fleet(), &host()).map(|(_, record)| record)
        };
        for recovery in [lost(None), lost(payload(6))] {
            let refused = adopt(&recovery).unwrap_err();
            assert!(matches!(refused, JournalError::NothingAnchored { seq: 7 }), "{refused}");
        }
        assert_eq!(adopt(&lost(payload(7))).unwrap().history, History::Lost);
    }

    #[test]
    fn the_journal_of_another_host_or_format_is_refused() {
        let (_folder, dir) = folder();
        written(&dir, 1);
        let other = HostName::new("host-2").unwrap();
        let refused = Journal::open(&dir, &fleet(), &other).map(|_| ()).unwrap_err();
        assert!(matches!(refused, JournalError::Foreign { .. }), "{refused}");
        let newer = HostRecord { format: 2, ..HostRecord::first(fleet(), host()) };
        assert!(matches!(check(newer, &fleet(), &host()), Err(JournalError::Format { found: 2, .. })));
    }

    #[test]
    fn an_adopted_tail_reaches_the_anchor_too() {
        let first = HostRecord::first(fleet(), host());
        let mut store = MemStore::new();
        store.append(store.head(), &[encode(&armed_for(&first, 1))], AnchorPayload::Keep).unwrap();
        let recovery = Recovery::AdoptedTail { records: 1 };
        let (journal, record) = Journal::adopt(Box::new(store), &recovery, &fleet(), &host()).unwrap();
        assert_eq!((record.last_k, journal.head().seq), (RolloutId(1), 2));
    }

    #[test]
    fn the_journal_does_not_grow_for_ever() {
        let store = Box::new(MemStore::new());
        let (mut journal, first) = Journal::adopt(store, &Recovery::Fresh, &fleet(), &host()).unwrap();
        for k in 1..=2 * RECORDS_MAX + 10 {
            journal.append(&[armed_for(&first, k)]).unwrap();
        }
        let kept = journal.head().seq - journal.store.first_seq();
        assert!(kept <= RECORDS_MAX, "{kept} records are kept");
        assert_eq!(journal.newest().unwrap().unwrap().last_k, RolloutId(2 * RECORDS_MAX + 10));
    }
}
