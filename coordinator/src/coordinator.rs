//! What all connections share, and how the coordinator starts and ends.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use muster_daemon::{Shutdown, boot_time, unix_time};
use muster_model::{
    Code, Digest, Epoch, FleetName, HostName, Incarnation, Refusal, Roster, SessionId, UnixTime, Verified,
};
use muster_mtls::{Credentials, Role, ServerTls};
use muster_rollout::fleet::{Fleet, FleetRecord, Limits, Phase};
use muster_store::StoreError;
use muster_trust::TrustRoot;
use tokio::sync::mpsc;

use crate::fleet::{self, FleetHandle};
use crate::ledger::{Documents, Entry, Ledger, ReleaseEntry};
use crate::receipt;
use crate::status::chain;
use crate::{CoordinatorConfig, Error};

/// A fleet's driver, until it ends.
type Driving = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// What every connection of one coordinator shares.
pub(crate) struct Shared {
    pub(crate) root: Arc<TrustRoot>,
    pub(crate) documents: Documents,
    pub(crate) stopping: Shutdown,
    pub(crate) tls: ServerTls,
    ledger: Arc<Mutex<Ledger>>,
    fleets: RwLock<BTreeMap<FleetName, Arc<FleetHandle>>>,
    certificates: Mutex<BTreeMap<HostName, UnixTime>>,
    sessions: AtomicU64,
    requests: AtomicU64,
    limits: Limits,
    drivers: mpsc::UnboundedSender<Driving>,
}

/// The drivers that the coordinator has to run.
pub(crate) struct Drivers(mpsc::UnboundedReceiver<Driving>);

impl Shared {
    /// Opens the state and takes the lead of every fleet in it. The database's lock makes this the only coordinator.
    pub(crate) fn open(
        config: &CoordinatorConfig,
        stopping: Shutdown,
    ) -> Result<(Arc<Self>, Drivers), Error> {
        let credentials = Credentials::load(&config.credentials())?;
        if credentials.identity().role != Role::Coordinator {
            return Err(Error::Identity { found: credentials.identity().to_string() });
        }
        let root = read_root(config)?;
        let documents = Documents::open(&config.state)?;
        let ledger = Ledger::open(&config.state, documents.clone(), Incarnation(unix_time().0))?;
        let (drivers, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Self {
            root: Arc::new(root),
            documents,
            stopping,
            tls: ServerTls::new(&credentials)?,
            ledger: Arc::new(Mutex::new(ledger)),
            fleets: RwLock::default(),
            certificates: Mutex::default(),
            sessions: AtomicU64::new(1),
            requests: AtomicU64::new(1),
            limits: config.limits(),
            drivers,
        });
        shared.take_over_all()?;
        Ok((shared, Drivers(receiver)))
    }

    /// The fleet of this name.
    pub(crate) fn fleet(&self, name: &FleetName) -> Option<Arc<FleetHandle>> {
        self.fleets.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All fleets, by name.
    pub(crate) fn fleets(&self) -> Vec<Arc<FleetHandle>> {
        self.fleets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The database. Held for one call at a time, never across an await.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends entries from a blocking thread. A store that failed ends the coordinator.
    pub(crate) async fn append(self: &Arc<Self>, entries: Vec<Entry>) -> Result<(), Refusal> {
        let shared = Arc::clone(self);
        let appended = tokio::task::spawn_blocking(move || shared.ledger().append(entries).map(|_| ())).await;
        let ended = |error: tokio::task::JoinError| Refusal::of(Code::NoSpace, error.to_string());
        appended.map_err(ended)?.map_err(|error| self.store_failed(error))
    }

    /// A store that failed ends the coordinator; one that refused a record does not.
    fn store_failed(&self, error: StoreError) -> Refusal {
        let refused = Refusal::of(Code::NoSpace, chain(&error));
        if error.is_fatal() {
            // Drivers are run to their end, and the first that fails ends the coordinator with its reason.
            let _ = self.drivers.send(Box::pin(async move { Err(error) }));
        }
        refused
    }

    /// A number for a session, unique in this term.
    pub(crate) fn next_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed))
    }

    /// A number for a deployment or a check, unique in this process.
    pub(crate) fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes note of when a host's certificate ends.
    pub(crate) fn note_certificate(&self, host: &HostName, not_after: UnixTime) {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).insert(host.clone(), not_after);
    }

    /// When a host's certificate ends, as far as it was seen.
    pub(crate) fn certificate_expiry(&self, host: &HostName) -> Option<UnixTime> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied()
    }

    /// The releases of a fleet, in the order in which they became known.
    pub(crate) fn releases(&self, fleet: &FleetName) -> Vec<ReleaseEntry> {
        self.ledger().state().fleets.get(fleet).map(|state| state.releases.clone()).unwrap_or_default()
    }

    /// The release of a fleet with this manifest.
    pub(crate) fn release(&self, fleet: &FleetName, manifest: Digest) -> Option<ReleaseEntry> {
        self.releases(fleet).into_iter().find(|release| release.manifest == manifest)
    }

    /// Makes the fleet of a first roster.
    pub(crate) fn found(
        self: &Arc<Self>,
        roster: Verified<Roster>,
        digest: Digest,
        envelope: Digest,
    ) -> Result<(), Refusal> {
        let name = roster.fleet().clone();
        let mut fleets = self.fleets.write().unwrap_or_else(PoisonError::into_inner);
        if fleets.contains_key(&name) {
            return Err(Refusal::of(Code::RosterChanged, format!("the fleet {name} has a roster already")));
        }
        let record = FleetRecord::first(&roster, digest, envelope, self.ledger().state().incarnation);
        // P7: whoever applied the roster is told once the fleet is durable.
        let entry = Entry::Fleet(Box::new(record.clone()));
        self.ledger().append(vec![entry]).map_err(|error| self.store_failed(error))?;
        let handle = self.lead(record, fleet::first(roster));
        fleets.insert(name, handle);
        Ok(())
    }

    fn take_over_all(self: &Arc<Self>) -> Result<(), Error> {
        let states = self.ledger().state().fleets.clone();
        for (name, state) in states {
            let inherited = fleet::inherit(&name, &state, &self.documents, &self.root, unix_time())?;
            if let (Some(record), Some(inheritance)) = (state.record, inherited) {
                self.make_up_for_receipt(&name, &record, &state.receipts);
                let handle = self.lead(record, inheritance);
                self.fleets.write().unwrap_or_else(PoisonError::into_inner).insert(name, handle);
            }
        }
        Ok(())
    }

    /// A flip is settled before its receipt is made; one that the last leader did not come to is made now.
    fn make_up_for_receipt(
        &self,
        fleet: &FleetName,
        record: &FleetRecord,
        receipts: &BTreeMap<Epoch, Digest>,
    ) {
        let Some(completed) = record.completed.as_ref().filter(|_| !receipts.contains_key(&record.epoch))
        else {
            return;
        };
        if record.phase != Phase::Settled {
            return;
        }
        let appended = receipt::assemble(&self.documents, &self.root, completed).map(|receipt| {
            let entry = Entry::Receipt { fleet: fleet.clone(), epoch: record.epoch, receipt };
            self.ledger().append(vec![entry])
        });
        match appended {
            Ok(Ok(_)) => tracing::info!(%fleet, epoch = %record.epoch, "made the receipt of the last flip"),
            Ok(Err(error)) => drop(self.store_failed(error)),
            Err(error) => {
                tracing::error!(%fleet, error = chain(&error), "no receipt of the last flip can be made")
            }
        }
    }

    fn lead(&self, record: FleetRecord, inheritance: muster_rollout::fleet::Inheritance) -> Arc<FleetHandle> {
        let (fleet, step) = Fleet::take_over(record, inheritance, self.limits, boot_time());
        tracing::info!(
            fleet = %fleet.record().fleet, term = %fleet.record().leadership.term, epoch = %fleet.record().epoch,
            phase = ?fleet.record().phase, "leading"
        );
        let (handle, driving) = fleet::spawn(fleet, step, Arc::clone(&self.ledger), Arc::clone(&self.root));
        // Nobody runs drivers any more while the coordinator ends.
        let _ = self.drivers.send(Box::pin(driving));
        handle
    }
}

impl Drivers {
    /// Runs all drivers, those of fleets that are made later included. Returns when one fails.
    pub(crate) async fn run(mut self) -> StoreError {
        let mut running = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                Some(driving) = self.0.recv() => {
                    running.spawn(driving);
                }
                Some(ended) = running.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => std::future::pending().await,
                    },
                },
                else => std::future::pending().await,
            }
        }
    }
}

fn read_root(config: &CoordinatorConfig) -> Result<TrustRoot, Error> {
    let unusable =
        |source: Box<dyn std::error::Error + Send + Sync>| Error::Root { path: config.root.clone(), source };
    let bytes = std::fs::read(&config.root).map_err(|error| unusable(Box::new(error)))?;
    TrustRoot::pin(&bytes).map_err(|error| unusable(Box::new(error)))
}
