//! The coordinator's durable state: one chain of records, and what follows from reading it.
//!
//! Documents (envelopes, evidence, closing secrets) are blobs; a record names them by digest, and they are durable
//! before it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use muster_artifact::{ArtifactError, BlobStore, Durability};
use muster_daemon::{crash_point, fault_point};
use muster_model::{Digest, Durable, Epoch, FleetName, HostName, Incarnation, MAX_MANIFEST_BYTES, Version};
use muster_rollout::fleet::{End, FleetRecord, Opening, Record, SessionRecord};
use muster_store::{AnchorPayload, Opened, Options, RecordKind, SledStore, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The largest document that is read back, in bytes: the evidence of 20,000 hosts.
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;
/// After so many records the chain is cut back to a snapshot.
const RECORDS_BETWEEN_SNAPSHOTS: u64 = 10_000;

/// One record of the chain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Entry {
    /// The database's life began.
    Incarnation(Incarnation),
    /// A fleet's state.
    Fleet(Box<FleetRecord>),
    /// A host's session.
    Session { fleet: FleetName, session: Box<SessionRecord> },
    /// A release became known.
    Release(Box<ReleaseEntry>),
    /// A rollout ended.
    Ended { fleet: FleetName, end: Box<End> },
    /// A flip was completed; its receipt is a document.
    Receipt { fleet: FleetName, epoch: Epoch, receipt: Digest },
}

/// A release as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReleaseEntry {
    pub(crate) fleet: FleetName,
    pub(crate) version: Version,
    pub(crate) manifest: Digest,
    /// The signed release, a document.
    pub(crate) envelope: Digest,
    pub(crate) manifest_bytes: u64,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// What follows from the chain.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) incarnation: Incarnation,
    pub(crate) fleets: BTreeMap<FleetName, FleetState>,
}

/// What follows from the chain for one fleet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FleetState {
    pub(crate) record: Option<FleetRecord>,
    pub(crate) sessions: BTreeMap<HostName, SessionRecord>,
    pub(crate) releases: Vec<ReleaseEntry>,
    pub(crate) last_end: Option<End>,
    pub(crate) receipts: BTreeMap<Epoch, Digest>,
}

/// The open database. One writer: all calls come from behind one lock.
pub(crate) struct Ledger {
    store: SledStore,
    documents: Documents,
    state: State,
    since_snapshot: u64,
    /// The document that the chain begins with, once it was cut back.
    snapshot: Option<Digest>,
}

/// The documents that records name, and all other blobs.
#[derive(Debug, Clone)]
pub(crate) struct Documents(Arc<BlobStore>);

/// The name of a snapshot's document: it would not fit into a record of the chain.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    snapshot: Digest,
}

impl Ledger {
    /// Opens the database below `dir`, or begins one with `incarnation`.
    pub(crate) fn open(dir: &Path, documents: Documents, incarnation: Incarnation) -> Result<Self, Error> {
        let store_dir = dir.join("ledger");
        let failed = |source| Error::Store { dir: store_dir.clone(), source };
        let Opened { store, recovery } =
            SledStore::open(&store_dir, Options::coordinator()).map_err(failed)?;
        tracing::info!(?recovery, head = store.head().seq, "database opened");
        let mut ledger =
            Self { store, documents, state: State::default(), since_snapshot: 0, snapshot: None };
        ledger.replay(&store_dir)?;
        if ledger.state.incarnation == Incarnation(0) {
            ledger.append(vec![Entry::Incarnation(incarnation)]).map_err(Error::StoreFailed)?;
        }
        Ok(ledger)
    }

    /// What the chain says.
    pub(crate) const fn state(&self) -> &State {
        &self.state
    }

    /// Makes a fleet's records durable, documents first. P7: the proof is what releases the effects.
    pub(crate) fn record(&mut self, fleet: &FleetName, records: &[Record]) -> Result<Durable, StoreError> {
        let mut entries = Vec::with_capacity(records.len());
        for record in records {
            match record {
                Record::Document(digest, bytes) => {
                    self.documents.put(*digest, bytes).map_err(|error| StoreError::Io {
                        action: "write a document to",
                        path: "blobs".into(),
                        source: std::io::Error::other(error),
                    })?;
                }
                Record::Fleet(record) => entries.push(Entry::Fleet(record.clone())),
                Record::Session(session) => {
                    entries.push(Entry::Session { fleet: fleet.clone(), session: Box::new(session.clone()) });
                }
            }
        }
        if entries.is_empty() {
            // Documents lie beside the chain, each durable by itself: nothing is left to append.
            return Ok(self.store.position().durable);
        }
        self.append(entries)
    }

    /// Makes entries durable, then lets them count.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> Result<Durable, StoreError> {
        // Documents alone leave nothing for the chain: they are durable already.
        if entries.is_empty() {
            return Ok(self.store.position().durable);
        }
        let bodies: Vec<Vec<u8>> = entries
            .iter()
            .map(|entry| {
                serde_json::to_vec(entry).expect("entries have string keys and no failing serialisers")
            })
            .collect();
        fault_point("coordinator.ledger").map_err(|source| StoreError::Io {
            action: "append to",
            path: "ledger".into(),
            source,
        })?;
        crash_point("coordinator.ledger.before-append");
        let position = self.store.append(self.store.head(), &bodies, AnchorPayload::Keep)?;
        self.since_snapshot += bodies.len() as u64;
        for entry in entries {
            self.state.apply(entry);
        }
        if self.since_snapshot >= RECORDS_BETWEEN_SNAPSHOTS {
            return self.compact();
        }
        Ok(position.durable)
    }

    /// The documents beside the chain.
    pub(crate) const fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The documents that the chain names, and that a backup therefore holds.
    pub(crate) fn named_documents(&self) -> Vec<Digest> {
        self.state.documents().into_iter().chain(self.snapshot).collect()
    }

    /// Writes everything that is in the database to `writer`.
    pub(crate) fn backup(&self, writer: &mut dyn std::io::Write) -> Result<(), StoreError> {
        muster_store::backup(&self.store, writer).map(|_| ())
    }

    fn compact(&mut self) -> Result<Durable, StoreError> {
        let state =
            serde_json::to_vec(&self.state).expect("the state has string keys and no failing serialisers");
        let digest = Digest::of(&state);
        self.documents.put(digest, &state).map_err(|error| StoreError::Io {
            action: "write a snapshot to",
            path: "blobs".into(),
            source: std::io::Error::other(error),
        })?;
        let body = serde_json::to_vec(&Snapshot { snapshot: digest }).expect("a digest serialises");
        let position = self.store.compact(self.store.head(), &body, AnchorPayload::Keep)?;
        self.since_snapshot = 0;
        self.snapshot = Some(digest);
        Ok(position.durable)
    }

    fn replay(&mut self, store_dir: &Path) -> Result<(), Error> {
        let failed = |source| Error::Store { dir: store_dir.to_owned(), source };
        let mut state = State::default();
        for record in self.store.read_from_snapshot().map_err(failed)? {
            let record = record.map_err(failed)?;
            let unreadable = |source| Error::Record { seq: record.seq, source };
            match record.kind {
                RecordKind::Snapshot => {
                    let snapshot: Snapshot = serde_json::from_slice(&record.body).map_err(unreadable)?;
                    let bytes = self.documents.read(snapshot.snapshot)?;
                    state = serde_json::from_slice(&bytes).map_err(unreadable)?;
                    self.since_snapshot = 0;
                    self.snapshot = Some(snapshot.snapshot);
                }
                RecordKind::Entry => {
                    state.apply(serde_json::from_slice(&record.body).map_err(unreadable)?);
                    self.since_snapshot += 1;
                }
                RecordKind::HistoryLost => {}
            }
        }
        self.state = state;
        Ok(())
    }
}

impl State {
    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Incarnation(incarnation) => {
                self.incarnation = incarnation;
                // A restored database speaks for a new life; its fleets follow when they are taken over.
                for fleet in self.fleets.values_mut() {
                    if let Some(record) = &mut fleet.record {
                        record.leadership.incarnation = incarnation;
                    }
                }
            }
            Entry::Fleet(record) => {
                let fleet = self.fleets.entry(record.fleet.clone()).or_default();
                fleet.record = Some(*record);
            }
            Entry::Session { fleet, session } => {
                self.fleets.entry(fleet).or_default().sessions.insert(session.host.clone(), *session);
            }
            Entry::Release(release) => {
                self.fleets.entry(release.fleet.clone()).or_default().releases.push(*release);
            }
            Entry::Ended { fleet, end } => {
                self.fleets.entry(fleet).or_default().last_end = Some(*end);
            }
            Entry::Receipt { fleet, epoch, receipt } => {
                self.fleets.entry(fleet).or_default().receipts.insert(epoch, receipt);
            }
        }
    }

    fn documents(&self) -> Vec<Digest> {
        let mut named = Vec::new();
        for fleet in self.fleets.values() {
            named.extend(fleet.receipts.values().copied());
            named.extend(fleet.releases.iter().map(|release| release.envelope));
            if let Some(record) = &fleet.record {
                named.push(record.roster_envelope);
                named.extend(record.phase.documents());
                named.extend(record.completed.iter().flat_map(Opening::documents));
            }
        }
        named.sort_unstable();
        named.dedup();
        named
    }
}

impl Documents {
    /// Opens the blob store below `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self(Arc::new(BlobStore::open(&dir.join("blobs"))?)))
    }

    /// The blobs.
    pub(crate) fn blobs(&self) -> &BlobStore {
        &self.0
    }

    /// Keeps a document under its digest, durably.
    pub(crate) fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), ArtifactError> {
        if self.0.contains(digest, Some(bytes.len() as u64))? {
            return Ok(());
        }
        let mut writer = self.0.writer(digest, bytes.len() as u64, Durability::Each)?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// Reads a document and verifies it.
    pub(crate) fn read(&self, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
        self.read_up_to(digest, DOCUMENT_BYTES_MAX)
    }

    /// Reads a manifest and verifies its digest.
    pub(crate) fn read_manifest(&self, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
        self.read_up_to(digest, MAX_MANIFEST_BYTES as u64)
    }

    fn read_up_to(&self, digest: Digest, max: u64) -> Result<Vec<u8>, ArtifactError> {
        let mut reader = self.0.reader(digest)?;
        if reader.size() > max {
            return Err(ArtifactError::WrongSize { digest, stated: max, found: reader.size() });
        }
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
    }
}
