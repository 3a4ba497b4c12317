//! The coordinator's durable state: one chain of records, and what follows from reading it.
//!
//! Documents (envelopes, evidence, closing secrets) are blobs; a record names them by digest, and they are durable
//! before it. One thread writes ([`LedgerHandle`]); what others read meanwhile is published ([`History`]).

mod documents;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use muster_artifact::ArtifactError;
use muster_daemon::{crash_point, fault_point};
use muster_model::{
    Digest, Durable, Epoch, FleetName, HostName, Incarnation, PublicKey, RolloutId, RosterRef, Term,
    UnixTime, Version,
};
use muster_rollout::fleet::{End, FleetRecord, Opening, Record, SessionRecord, WithdrawalRecord};
use muster_store::{AnchorPayload, Opened, Options, RecordKind, SledStore, Store, StoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub(crate) use documents::{DOCUMENT_BYTES_MAX, Documents};
pub(crate) use writer::LedgerHandle;

use crate::Error;
use crate::enrolment::{Change, Registry};
use crate::status::shorten;

/// What is kept of the reasons why a rollout ended; with them all, a record would not fit into the chain.
const END_BYTES_MAX: usize = 64 << 10;

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
    /// A host's own word that it has closed.
    Withdrawal { fleet: FleetName, withdrawal: Box<WithdrawalRecord> },
    /// A release became known.
    Release(Box<ReleaseEntry>),
    /// A rollout ended.
    Ended { fleet: FleetName, end: Box<End> },
    /// An order is kept until enough operators have signed it, or has changed.
    Order(Box<OrderEntry>),
    /// Orders are kept no more.
    OrdersDropped { fleet: FleetName, orders: BTreeSet<Digest> },
    /// The operators have mandated this life of the database to lead a fleet.
    Mandate(Box<MandateEntry>),
    /// A flip was completed; its receipt is a document.
    Receipt { fleet: FleetName, epoch: Epoch, receipt: Digest },
    /// Something about tokens or certificates.
    Certificates(Box<Change>),
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

/// An order that waits for approvals, or that was taken back and must not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderEntry {
    pub(crate) fleet: FleetName,
    /// The digest of what is signed.
    pub(crate) id: Digest,
    /// The order with the signatures so far, a document.
    pub(crate) envelope: Digest,
    /// The order to roll back, a document.
    pub(crate) contingency: Option<Digest>,
    pub(crate) counter: RolloutId,
    pub(crate) to: Digest,
    pub(crate) expires_unix_ms: UnixTime,
    pub(crate) signers: Vec<PublicKey>,
    pub(crate) proposed_by: String,
    pub(crate) proposed_unix_ms: UnixTime,
    pub(crate) cancelled_by: Option<String>,
    /// The roster that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) roster: Option<RosterRef>,
}

/// A mandate: hosts obey this life of the database because of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MandateEntry {
    pub(crate) fleet: FleetName,
    /// The signed mandate, which is JSON and small.
    pub(crate) envelope: String,
    /// The signed roster that it names, a document.
    pub(crate) roster: Digest,
    /// The number of the leadership that hears the hosts.
    pub(crate) term: Term,
}

impl ReleaseEntry {
    /// Whether it is this version of this manifest, whoever signed it.
    pub(crate) fn is_of(&self, version: &Version, manifest: Digest) -> bool {
        self.version == *version && self.manifest == manifest
    }
}

/// What follows from the chain.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) incarnation: Incarnation,
    pub(crate) fleets: BTreeMap<FleetName, FleetState>,
    #[serde(default)]
    certificates: Arc<Registry>,
}

/// What follows from the chain for one fleet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FleetState {
    pub(crate) record: Option<FleetRecord>,
    pub(crate) sessions: BTreeMap<HostName, SessionRecord>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) withdrawals: BTreeMap<HostName, WithdrawalRecord>,
    releases: Arc<Vec<ReleaseEntry>>,
    last_end: Option<Arc<End>>,
    receipts: Arc<BTreeMap<Epoch, Digest>>,
    #[serde(default)]
    orders: Arc<Vec<OrderEntry>>,
    /// What the life before this one knew of the fleet, until this one leads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) former: Option<Box<FleetRecord>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mandate: Option<Arc<MandateEntry>>,
}

/// What is read of a fleet while it is led. A clone shares everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    /// In the order in which they became known.
    pub(crate) releases: Arc<Vec<ReleaseEntry>>,
    /// How the last rollout ended.
    pub(crate) last_end: Option<Arc<End>>,
    /// Documents, by the epoch that the flip began.
    pub(crate) receipts: Arc<BTreeMap<Epoch, Digest>>,
    /// In the order in which they were proposed.
    pub(crate) orders: Arc<Vec<OrderEntry>>,
    /// Shown to every host that joins.
    pub(crate) mandate: Option<Arc<MandateEntry>>,
}

/// All fleets' histories, as of the last append.
pub(crate) type Histories = BTreeMap<FleetName, History>;

/// The open database. One writer: it lives in one thread once it is served.
pub(crate) struct Ledger {
    store: SledStore,
    documents: Documents,
    state: State,
    /// After so many records the chain is cut back to a snapshot.
    records_between_snapshots: NonZeroU64,
    since_snapshot: u64,
    /// The document that the chain begins with, once it was cut back.
    snapshot: Option<Digest>,
    histories: watch::Sender<Histories>,
}

/// The name of a snapshot's document: it would not fit into a record of the chain.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    snapshot: Digest,
}

impl Ledger {
    /// Whether this process still leads, read anew.
    pub(crate) fn confirm(&self) -> Result<(), StoreError> {
        self.store.confirm()
    }

    /// Opens the database below `dir`, or begins one with `incarnation`.
    pub(crate) fn open(
        dir: &Path,
        documents: Documents,
        incarnation: Incarnation,
        records_between_snapshots: NonZeroU64,
    ) -> Result<Self, Error> {
        let store_dir = dir.join("ledger");
        let failed = |source| Error::Store { dir: store_dir.clone(), source };
        let Opened { store, recovery } =
            SledStore::open(&store_dir, Options::coordinator()).map_err(failed)?;
        tracing::info!(?recovery, head = store.head().seq, "database opened");
        let mut ledger = Self {
            store,
            documents,
            state: State::default(),
            records_between_snapshots,
            since_snapshot: 0,
            snapshot: None,
            histories: watch::Sender::default(),
        };
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

    /// What is published of it.
    pub(crate) fn histories(&self) -> watch::Receiver<Histories> {
        self.histories.subscribe()
    }

    /// Makes a fleet's records durable, documents first. P7: the proof is what releases the effects.
    pub(crate) fn record(&mut self, fleet: &FleetName, records: &[Record]) -> Result<Durable, StoreError> {
        let mut entries = Vec::with_capacity(records.len());
        for record in records {
            match record {
                Record::Document(digest, bytes) => {
                    self.documents
                        .put(*digest, bytes)
                        .map_err(|error| document_failed("write a document to", error))?;
                }
                Record::Fleet(record) => entries.push(Entry::Fleet(record.clone())),
                Record::Session(session) => {
                    entries.push(Entry::Session { fleet: fleet.clone(), session: Box::new(session.clone()) });
                }
                Record::Withdrawal(word) => {
                    let withdrawal = Box::new(word.clone());
                    entries.push(Entry::Withdrawal { fleet: fleet.clone(), withdrawal });
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
        fault_point("coordinator.ledger")
            .map_err(|source| StoreError::io("append to", Path::new("ledger"), source))?;
        crash_point("coordinator.ledger.before-append");
        let position = self.store.append(self.store.head(), &bodies, AnchorPayload::Keep)?;
        self.since_snapshot += bodies.len() as u64;
        let rewritten: BTreeSet<FleetName> =
            entries.iter().filter_map(|entry| entry.makes_history_of().cloned()).collect();
        for entry in entries {
            self.state.apply(entry);
        }
        self.publish(rewritten);
        if self.since_snapshot >= self.records_between_snapshots.get() {
            return self.compact();
        }
        Ok(position.durable)
    }

    /// The documents beside the chain.
    pub(crate) const fn documents(&self) -> &Documents {
        &self.documents
    }

    /// Makes a release known, unless its version or its manifest is: then that one is returned, and nothing changes. What
    /// is known under the envelope `outdated` gets the new one.
    pub(crate) fn add_release(
        &mut self,
        release: ReleaseEntry,
        outdated: Option<Digest>,
    ) -> Result<Option<ReleaseEntry>, StoreError> {
        let fleet = self.state.fleets.get(&release.fleet).map(FleetState::history).unwrap_or_default();
        if let Some(known) = fleet.release_like(&release.version, release.manifest)
            && !(known.is_of(&release.version, release.manifest) && outdated == Some(known.envelope))
        {
            return Ok(Some(known.clone()));
        }
        self.append(vec![Entry::Release(Box::new(release))])?;
        Ok(None)
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
        if state.len() as u64 > DOCUMENT_BYTES_MAX {
            // It could not be read back. The chain goes on as it is, and only a start takes longer.
            tracing::error!(bytes = state.len(), "the state is too large for a snapshot; the database grows");
            self.since_snapshot = 0;
            return Ok(self.store.position().durable);
        }
        let digest = Digest::of(&state);
        self.documents.put(digest, &state).map_err(|error| document_failed("write a snapshot to", error))?;
        let body = serde_json::to_vec(&Snapshot { snapshot: digest }).expect("a digest serialises");
        let position = self.store.compact(self.store.head(), &body, AnchorPayload::Keep)?;
        tracing::info!(head = position.head.seq, "the database was cut back to a snapshot");
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
        self.publish(self.state.fleets.keys().cloned().collect());
        Ok(())
    }

    /// Lets everybody read what has become of these fleets.
    fn publish(&self, fleets: BTreeSet<FleetName>) {
        if fleets.is_empty() {
            return;
        }
        let changed: Vec<(FleetName, History)> = fleets
            .into_iter()
            .filter_map(|name| self.state.fleets.get(&name).map(FleetState::history).map(|it| (name, it)))
            .collect();
        self.histories.send_modify(|histories| histories.extend(changed));
    }
}

impl Entry {
    /// That a rollout ended, with as many of the reasons as a record may have.
    pub(crate) fn ended(fleet: &FleetName, end: &End) -> Self {
        let mut kept = end.clone();
        shorten(&mut kept.blockers, END_BYTES_MAX);
        Self::Ended { fleet: fleet.clone(), end: Box::new(kept) }
    }

    /// The fleet whose history this changes.
    fn makes_history_of(&self) -> Option<&FleetName> {
        match self {
            Self::Release(release) => Some(&release.fleet),
            Self::Order(order) => Some(&order.fleet),
            Self::Mandate(mandate) => Some(&mandate.fleet),
            Self::Ended { fleet, .. } | Self::Receipt { fleet, .. } | Self::OrdersDropped { fleet, .. } => {
                Some(fleet)
            }
            Self::Incarnation(_)
            | Self::Fleet(_)
            | Self::Session { .. }
            | Self::Withdrawal { .. }
            | Self::Certificates(_) => None,
        }
    }
}

impl History {
    /// The release with this manifest.
    pub(crate) fn release(&self, manifest: Digest) -> Option<&ReleaseEntry> {
        self.releases.iter().find(|release| release.manifest == manifest)
    }

    /// The release that has this version or this manifest.
    pub(crate) fn release_like(&self, version: &Version, manifest: Digest) -> Option<&ReleaseEntry> {
        self.releases.iter().find(|release| release.version == *version || release.manifest == manifest)
    }
}

impl FleetState {
    /// What is read while the fleet is led.
    pub(crate) fn history(&self) -> History {
        History {
            releases: Arc::clone(&self.releases),
            last_end: self.last_end.clone(),
            receipts: Arc::clone(&self.receipts),
            orders: Arc::clone(&self.orders),
            mandate: self.mandate.clone(),
        }
    }
}

impl State {
    /// What is known of tokens and certificates.
    pub(crate) const fn certificates(&self) -> &Arc<Registry> {
        &self.certificates
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Incarnation(incarnation) => {
                self.incarnation = incarnation;
                // A restored database begins a new life, and may have forgotten what its hosts remember: it leads no fleet
                // before the operators have mandated it and all hosts were heard.
                for fleet in self.fleets.values_mut() {
                    fleet.mandate = None;
                    if let Some(record) = fleet.record.take() {
                        fleet.former = Some(Box::new(record));
                    }
                }
            }
            Entry::Fleet(record) => {
                let fleet = self.fleets.entry(record.fleet.clone()).or_default();
                fleet.record = Some(*record);
                fleet.former = None;
            }
            Entry::Session { fleet, session } => {
                self.fleets.entry(fleet).or_default().sessions.insert(session.host.clone(), *session);
            }
            Entry::Withdrawal { fleet, withdrawal } => {
                let words = &mut self.fleets.entry(fleet).or_default().withdrawals;
                words.insert(withdrawal.host.clone(), *withdrawal);
            }
            Entry::Release(release) => {
                let fleet = self.fleets.entry(release.fleet.clone()).or_default();
                let releases = Arc::make_mut(&mut fleet.releases);
                match releases.iter_mut().find(|known| known.is_of(&release.version, release.manifest)) {
                    Some(known) => *known = *release,
                    None => releases.push(*release),
                }
            }
            Entry::Order(order) => {
                let fleet = self.fleets.entry(order.fleet.clone()).or_default();
                let orders = Arc::make_mut(&mut fleet.orders);
                match orders.iter_mut().find(|known| known.id == order.id) {
                    Some(known) => *known = *order,
                    None => orders.push(*order),
                }
            }
            Entry::OrdersDropped { fleet, orders } => {
                let fleet = self.fleets.entry(fleet).or_default();
                Arc::make_mut(&mut fleet.orders).retain(|known| !orders.contains(&known.id));
            }
            Entry::Mandate(mandate) => {
                let fleet = self.fleets.entry(mandate.fleet.clone()).or_default();
                fleet.mandate = Some(Arc::new(*mandate));
            }
            Entry::Ended { fleet, end } => {
                self.fleets.entry(fleet).or_default().last_end = Some(Arc::new(*end));
            }
            Entry::Receipt { fleet, epoch, receipt } => {
                let fleet = self.fleets.entry(fleet).or_default();
                Arc::make_mut(&mut fleet.receipts).insert(epoch, receipt);
            }
            Entry::Certificates(change) => Arc::make_mut(&mut self.certificates).apply(*change),
        }
    }

    fn documents(&self) -> Vec<Digest> {
        let mut named = Vec::new();
        for fleet in self.fleets.values() {
            named.extend(fleet.receipts.values().copied());
            named.extend(fleet.releases.iter().map(|release| release.envelope));
            named.extend(fleet.orders.iter().map(|order| order.envelope));
            named.extend(fleet.orders.iter().filter_map(|order| order.contingency));
            named.extend(fleet.mandate.iter().map(|mandate| mandate.roster));
            for record in fleet.record.iter().chain(fleet.former.as_deref()) {
                named.push(record.roster_envelope);
                named.extend(record.coming.iter().map(|coming| coming.envelope));
                named.extend(record.missed.iter().map(|missed| missed.envelope));
                named.extend(record.phase.documents());
                named.extend(record.completed.iter().flat_map(Opening::documents));
            }
        }
        named.sort_unstable();
        named.dedup();
        named
    }
}

/// A document that could not be written is as bad as a record that could not; a full disk keeps its name.
pub(crate) fn document_failed(action: &'static str, error: ArtifactError) -> StoreError {
    if let ArtifactError::NoSpace { path, source, .. } = error {
        return StoreError::NoSpace { path, source };
    }
    StoreError::Io { action, path: "blobs".into(), source: std::io::Error::other(error) }
}

#[cfg(test)]
mod tests;
