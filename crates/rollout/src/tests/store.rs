//! The store that the leaders of the simulated world share: a file of records, and what of it is durable.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_model::{Digest, Leadership};
use serde::{Deserialize, Serialize};

use super::coordinator::{Coordinator, Seat};
use super::world::{Mistake, World};
use crate::fleet::{FleetRecord, Record, SessionRecord, WithdrawalRecord};

/// How many records the store grows to before it is written anew, beside the sessions and documents.
const STORE_RECORDS_MAX: usize = 64;

/// What a write is compared with.
pub(super) type Version = (Leadership, u64);

/// A record as the file holds it.
#[derive(Serialize, Deserialize)]
enum Stored {
    Document(Digest, Arc<[u8]>),
    Fleet(Box<FleetRecord>),
    Session(SessionRecord),
    Withdrawal(WithdrawalRecord),
}

impl Coordinator {
    /// Puts another record into the store, as somebody does who restores a backup.
    pub(super) fn install(&mut self, record: FleetRecord) {
        self.record = record;
        self.rewrite();
    }

    fn append(&mut self, record: &Record) {
        self.file.append(&stored(record));
        self.unsynced.push(record.clone());
    }

    /// Writes the file anew, without what was written over.
    pub(super) fn rewrite(&mut self) {
        let documents = self.documents.iter().map(|(digest, bytes)| Record::Document(*digest, bytes.clone()));
        let sessions = self.sessions.values().cloned().map(Record::Session);
        let fleet = Record::Fleet(Box::new(self.record.clone()));
        let words = self.withdrawals.values().cloned().map(Record::Withdrawal);
        let bodies: Vec<_> =
            documents.chain(sessions).chain(words).chain([fleet]).map(|it| stored(&it)).collect();
        self.file.replace(bodies.iter().map(Vec::as_slice));
    }

    /// "Every write is a compare-and-swap on (term, record revision)."
    pub(super) fn may_write(&self, seat: Seat) -> bool {
        let expected = match seat {
            Seat::Leading => Some(self.version),
            Seat::Deposed => self.deposed.as_ref().map(|deposed| deposed.version),
        };
        expected == Some(version(&self.record))
    }
}

impl World {
    /// Writes and syncs records, unless the leader dies on the way.
    pub(super) fn write_store(&mut self, seat: Seat, records: &[Record], crash: &mut Option<usize>) -> bool {
        for record in records {
            if self.leader_dies(seat, crash) {
                return false;
            }
            self.coordinator.append(record);
        }
        if records.is_empty() || self.mistake == Some(Mistake::DurableBeforeSync) {
            return true;
        }
        if self.leader_dies(seat, crash) {
            return false;
        }
        self.sync_store();
        self.coordinator.version = version(&self.coordinator.record);
        true
    }

    pub(super) fn sync_store(&mut self) {
        self.coordinator.file.sync();
        for record in std::mem::take(&mut self.coordinator.unsynced) {
            self.persist_fleet(&record);
        }
        self.coordinator.version = version(&self.coordinator.record);
        let kept = self.coordinator.sessions.len() + self.coordinator.documents.len();
        let kept = kept + self.coordinator.withdrawals.len();
        if self.coordinator.file.len() > STORE_RECORDS_MAX + kept {
            self.coordinator.rewrite();
        }
    }

    /// Reads the store back from its file. Records that were not acknowledged may be there as well.
    pub(super) fn read_store(&mut self) {
        self.coordinator.unsynced.clear();
        let bodies = self.coordinator.file.open();
        let stored: Option<Vec<Stored>> =
            bodies.and_then(|bodies| bodies.iter().map(|body| serde_json::from_slice(body).ok()).collect());
        let Some(stored) = stored else { return self.violate("P7: what was durable in the store is lost") };
        let (mut sessions, mut withdrawals) = (BTreeMap::new(), BTreeMap::new());
        let mut newest = None;
        for record in stored {
            match record {
                Stored::Document(digest, bytes) => {
                    self.coordinator.documents.insert(digest, bytes);
                }
                Stored::Session(session) => {
                    sessions.insert(session.host.clone(), session);
                }
                Stored::Withdrawal(word) => {
                    withdrawals.insert(word.host.clone(), word);
                }
                Stored::Fleet(record) => newest = Some(record),
            }
        }
        let known = &self.coordinator;
        let is_lost = known.sessions.keys().any(|host| !sessions.contains_key(host))
            || known.withdrawals.keys().any(|host| !withdrawals.contains_key(host))
            || newest.as_ref().is_none_or(|it| version(it) < version(&known.record));
        if is_lost {
            return self.violate("P7: what was durable in the store is lost");
        }
        (self.coordinator.sessions, self.coordinator.withdrawals) = (sessions, withdrawals);
        if let Some(record) = newest.filter(|it| **it != self.coordinator.record) {
            note!(self, "  the store holds a record that was not acknowledged");
            self.persist_fleet(&Record::Fleet(record));
        }
    }

    fn persist_fleet(&mut self, record: &Record) {
        match record {
            Record::Document(digest, bytes) => {
                self.coordinator.documents.insert(*digest, Arc::clone(bytes));
            }
            Record::Session(session) => {
                self.coordinator.sessions.insert(session.host.clone(), session.clone());
            }
            Record::Withdrawal(word) => {
                self.coordinator.withdrawals.insert(word.host.clone(), word.clone());
            }
            Record::Fleet(record) => {
                note!(self, "    durable: {:?}", record.phase);
                self.check_fleet_record(record);
                self.coordinator.record = FleetRecord::clone(record);
            }
        }
    }
}

/// The version of a record.
pub(super) const fn version(record: &FleetRecord) -> Version {
    (record.leadership, record.revision)
}

fn stored(record: &Record) -> Vec<u8> {
    let stored = match record.clone() {
        Record::Document(digest, bytes) => Stored::Document(digest, bytes),
        Record::Fleet(record) => Stored::Fleet(record),
        Record::Session(session) => Stored::Session(session),
        Record::Withdrawal(word) => Stored::Withdrawal(word),
    };
    serde_json::to_vec(&stored).expect("a record can be written")
}
