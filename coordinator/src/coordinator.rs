//! What all connections share, and how the coordinator starts and ends.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use muster_audit::Kind;
use muster_daemon::{Machine, Shutdown};
use muster_model::{Code, Digest, FleetName, HostName, Incarnation, Refusal, Roster, SessionId, Verified};
use muster_mtls::{Role, ServerTls, Validity};
use muster_proto::v1;
use muster_rollout::fleet::{Fleet, FleetRecord, Inheritance, Limits, Phase};
use muster_store::StoreError;
use muster_trust::{ROOT_BYTES_MAX, RootChain, Succession, TrustError, TrustRoot};
use tokio::sync::{mpsc, watch};

use crate::audit::{self, AuditHandle, Throttle};
use crate::config::UploadLimits;
use crate::enrolment::Enrolments;
use crate::fleet::{self, FleetHandle};
use crate::ledger::{Documents, Entry, Ledger, LedgerHandle};
use crate::metrics::Counts;
use crate::notify::Notifier;
use crate::rebuild::{self, Beginning, Parts, REBUILDS_MAX, RebuildHandle, Standing};
use crate::status::{chain, not_stored};
use crate::{CoordinatorConfig, Error};

/// The most root documents in one message: it stays below the 4 MiB that a receiver reads.
pub(crate) const ROOTS_IN_MESSAGE_MAX: usize = 8;

const _: () = assert!(ROOTS_IN_MESSAGE_MAX * (ROOT_BYTES_MAX + 64) < 4 << 20, "they fit into one message");

/// A fleet's driver, until it ends.
type Driving = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// What every connection of one coordinator shares.
pub(crate) struct Shared {
    pub(crate) machine: Machine,
    roots: Arc<RootChain>,
    /// Held while a root is taken, and shared while an order is verified and written down: in the audit log, what was
    /// approved stands behind the root that it was verified by, and before the next one.
    root_turn: tokio::sync::RwLock<()>,
    /// Tells every attached agent's stream that there is another root.
    roots_changed: watch::Sender<()>,
    pub(crate) documents: Documents,
    pub(crate) stopping: Shutdown,
    pub(crate) tls: ServerTls,
    pub(crate) ledger: LedgerHandle,
    pub(crate) audit: AuditHandle,
    /// Tokens, certificates and who is kept out.
    pub(crate) enrolments: Enrolments,
    /// Releases that were refused: pipelines may submit whatever they like.
    pub(crate) refused_releases: Throttle,
    pub(crate) uploads: UploadLimits,
    pub(crate) counts: Counts,
    /// Who reads documents of hosts whose fleets are led.
    pub(crate) parts: Parts,
    incarnation: Incarnation,
    fleets: RwLock<BTreeMap<FleetName, Arc<FleetHandle>>>,
    /// Fleets that are not led yet.
    rebuilds: RwLock<BTreeMap<FleetName, Arc<RebuildHandle>>>,
    /// Held while a fleet begins, so that none begins twice.
    founding: tokio::sync::Mutex<()>,
    /// Held while the orders that wait for approvals change, or one of them is begun.
    pub(crate) ordering: tokio::sync::Mutex<()>,
    certificates: Mutex<BTreeMap<HostName, Validity>>,
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
        machine: Machine,
        stopping: Shutdown,
    ) -> Result<(Arc<Self>, Drivers), Error> {
        let credentials = config.certificate_files().load()?;
        if credentials.identity().role != Role::Coordinator {
            return Err(Error::Identity { found: credentials.identity().to_string() });
        }
        let roots = open_roots(config)?;
        let documents = Documents::open(&config.state)?;
        let ledger = Ledger::open(
            &config.state,
            documents.clone(),
            Incarnation(machine.unix_time().0),
            config.records_between_snapshots,
        )?;
        let inherited = fleet::inherit_all(&ledger, &roots)?;
        let beginnings = fleet::beginnings(&ledger, &roots)?;
        let incarnation = ledger.state().incarnation;
        let identity = credentials.identity();
        let audit = AuditHandle::open(
            &config.state,
            audit::read_key(config.audit_key.as_deref(), &config.state)?,
            (&identity.trust_domain.to_string(), identity.to_string()),
            incarnation,
            &roots.in_force(),
            machine.clone(),
            config.notify.clone().map(Notifier::spawn),
        )?;
        let certificates = Arc::clone(ledger.state().certificates());
        let enrolments = Enrolments::open(config, &credentials, certificates)?;
        let (drivers, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Self {
            roots: Arc::new(roots),
            root_turn: tokio::sync::RwLock::default(),
            roots_changed: watch::Sender::default(),
            documents,
            stopping,
            tls: ServerTls::new(&credentials)?,
            enrolments,
            ledger: LedgerHandle::serve(ledger, machine.blocking())?,
            refused_releases: Throttle::new(audit.clone(), Kind::Refusal, "releases were refused"),
            audit,
            machine,
            uploads: config.upload_limits(),
            counts: Counts::default(),
            parts: Parts::default(),
            incarnation,
            fleets: RwLock::default(),
            rebuilds: RwLock::default(),
            founding: tokio::sync::Mutex::default(),
            ordering: tokio::sync::Mutex::default(),
            certificates: Mutex::default(),
            sessions: AtomicU64::new(1),
            requests: AtomicU64::new(1),
            limits: config.limits(),
            drivers,
        });
        for (record, inheritance) in inherited {
            shared.lead(record, inheritance);
        }
        for (fleet, beginning) in beginnings {
            shared.rebuild(fleet, beginning);
        }
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

    /// The fleet of this name, if it is not led yet.
    pub(crate) fn rebuilding(&self, name: &FleetName) -> Option<Arc<RebuildHandle>> {
        self.rebuilds.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The same of a fleet that hosts ask for, whether or not there is one. Of too many there is none.
    pub(crate) fn claimed(self: &Arc<Self>, name: &FleetName) -> Option<Arc<RebuildHandle>> {
        if let Some(known) = self.rebuilding(name) {
            return Some(known);
        }
        let has_room = {
            let mut rebuilds = self.rebuilds.write().unwrap_or_else(PoisonError::into_inner);
            if rebuilds.len() >= REBUILDS_MAX {
                let deserted = rebuilds.iter().find(|(_, claim)| claim.gives_way());
                if let Some(deserted) = deserted.map(|(name, _)| name.clone()) {
                    rebuilds.remove(&deserted);
                }
            }
            rebuilds.len() < REBUILDS_MAX
        };
        has_room.then(|| self.rebuild(name.clone(), Beginning::default()))
    }

    /// The same of a fleet that operators name: they are refused none.
    pub(crate) fn rebuild(self: &Arc<Self>, fleet: FleetName, beginning: Beginning) -> Arc<RebuildHandle> {
        let mut rebuilds = self.rebuilds.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = rebuilds.get(&fleet) {
            return Arc::clone(known);
        }
        let (handle, running) = rebuild::spawn(self, fleet.clone(), beginning);
        // Nobody runs it any more while the coordinator ends.
        let _ = self.drivers.send(Box::pin(running));
        rebuilds.insert(fleet, Arc::clone(&handle));
        handle
    }

    /// Leads a fleet that was rebuilt from its hosts, and is durable.
    pub(crate) fn lead_rebuilt(&self, record: FleetRecord, inheritance: Inheritance) {
        let fleet = record.fleet.clone();
        self.lead(record, inheritance);
        self.rebuilds.write().unwrap_or_else(PoisonError::into_inner).remove(&fleet);
    }

    /// All roots.
    pub(crate) fn roots(&self) -> Arc<RootChain> {
        Arc::clone(&self.roots)
    }

    /// The root in force.
    pub(crate) fn root(&self) -> Arc<TrustRoot> {
        self.roots.in_force()
    }

    /// Takes the next root, and has it sent to every attached agent. Whether it was known, and how many agents there are.
    ///
    /// It is in the audit log before it is in force. Where it then cannot be kept, the log says so.
    pub(crate) async fn apply_root(
        &self,
        envelope: Vec<u8>,
        operator: &str,
    ) -> Result<(Succession, usize), Refusal> {
        let _turn = self.root_turn.write().await;
        let (roots, raw) = (Arc::clone(&self.roots), envelope.clone());
        let judged = self.on_roots(move || roots.judge(&raw)).await?;
        if let Succession::Taken(root) = &judged {
            self.audit(audit::root_entries(&self.audit, root, operator)).await?;
            let roots = Arc::clone(&self.roots);
            if let Err(refusal) = self.on_roots(move || roots.succeed(&envelope)).await {
                let (in_force, entry) = (self.root(), self.audit.own_entry(Kind::Root));
                let entry = audit::root_entry(entry, &in_force).saying(format!("it stays so: {refusal}"));
                self.audit(vec![entry]).await?;
                return Err(refusal);
            }
        }
        self.roots_changed.send_replace(());
        Ok((judged, self.roots_changed.receiver_count()))
    }

    async fn on_roots<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, TrustError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let refused = |error| {
            let is_of_the_disk = matches!(error, TrustError::RootFile { .. });
            let code = if is_of_the_disk { Code::StoreFailed } else { Code::SignatureInvalid };
            Refusal::of(code, chain(&error))
        };
        fleet::blocking(&self.machine, move || work().map_err(refused)).await
    }

    /// Keeps the root in force as it is for as long as the guard lives: from verifying an order to writing it down.
    pub(crate) async fn hold_root(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.root_turn.read().await
    }

    /// The roots after a version, in order.
    pub(crate) fn roots_after(&self, version: u64) -> Vec<v1::RootSuccessor> {
        let all = self.roots.all();
        let later = all.iter().skip(1).filter(|root| root.root().version > version);
        let relayed = later.map(|root| v1::RootSuccessor {
            version: root.root().version,
            envelope: root.authentic().raw().to_vec(),
        });
        relayed.collect()
    }

    /// Tells of each new root from now on.
    pub(crate) fn watch_roots(&self) -> watch::Receiver<()> {
        self.roots_changed.subscribe()
    }

    /// Writes to the database. A store that failed ends the coordinator.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut Ledger) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.ledger.run(write).await.map_err(|error| self.store_failed(error))
    }

    /// Writes to the audit log before what it speaks of is done. A log that failed ends the coordinator.
    pub(crate) async fn audit(&self, entries: Vec<muster_audit::Entry>) -> Result<u64, Refusal> {
        self.audit.write(entries).await.map_err(|error| self.store_failed(error))
    }

    /// Writes down which calls were denied.
    pub(crate) fn denied_calls(&self) -> Throttle {
        Throttle::new(self.audit.clone(), Kind::Denied, "calls were denied")
    }

    /// A store that failed ends the coordinator; one that refused a record does not.
    pub(crate) fn store_failed(&self, error: StoreError) -> Refusal {
        let refused = not_stored(&error);
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

    /// Whether no fleet is in the middle of a rollout, as far as they say so.
    pub(crate) async fn is_calm(&self) -> bool {
        for fleet in self.fleets() {
            match fleet.view().await {
                Ok(view) if view.record.phase == Phase::Settled => {}
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    /// Takes note of when a host's certificate ends.
    pub(crate) fn note_certificate(&self, host: &HostName, validity: Validity) {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).insert(host.clone(), validity);
    }

    /// From when until when a host's certificate is valid, as far as it was seen.
    pub(crate) fn certificate_of(&self, host: &HostName) -> Option<Validity> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied()
    }

    /// The life of the database.
    pub(crate) const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether a first roster would make this fleet now.
    pub(crate) fn may_found(&self, name: &FleetName) -> Result<(), Refusal> {
        if self.fleet(name).is_some() {
            return Err(Refusal::of(Code::RosterChanged, format!("the fleet {name} has a roster already")));
        }
        if self.rebuilding(name).is_some_and(|it| it.standing() == Standing::Known) {
            return Err(Refusal::of(
                Code::Rebuilding,
                format!("the fleet {name} is there already, and is not led yet"),
            ));
        }
        Ok(())
    }

    /// Makes the fleet of a first roster.
    pub(crate) async fn found(
        self: &Arc<Self>,
        roster: Verified<Roster>,
        digest: Digest,
        envelope: Digest,
    ) -> Result<(), Refusal> {
        let name = roster.fleet().clone();
        let _founding = self.founding.lock().await;
        self.may_found(&name)?;
        let record = FleetRecord::first(&roster, digest, envelope, self.incarnation);
        // P7: whoever applied the roster is told once the fleet is durable.
        let entry = Entry::Fleet(Box::new(record.clone()));
        self.write(move |ledger| ledger.append(vec![entry])).await?;
        self.lead(record, fleet::first(roster));
        Ok(())
    }

    fn lead(&self, record: FleetRecord, inheritance: Inheritance) {
        let roster_notes = fleet::RosterNotes::inherited(&record, &inheritance);
        let (fleet, step) = Fleet::take_over(record, inheritance, self.limits, self.machine.boot_time());
        tracing::info!(
            fleet = %fleet.record().fleet, term = %fleet.record().leadership.term, epoch = %fleet.record().epoch,
            phase = ?fleet.record().phase, "leading"
        );
        let place = fleet::Place {
            machine: self.machine.clone(),
            ledger: self.ledger.clone(),
            audit: self.audit.clone(),
            counts: self.counts.clone(),
            documents: self.documents.clone(),
            roots: Arc::clone(&self.roots),
        };
        let (handle, driving) = fleet::spawn(fleet, step, roster_notes, place);
        // Nobody runs drivers any more while the coordinator ends.
        let _ = self.drivers.send(Box::pin(driving));
        let mut fleets = self.fleets.write().unwrap_or_else(PoisonError::into_inner);
        fleets.insert(handle.name.clone(), handle);
    }
}

impl Drivers {
    /// Runs all drivers, those of fleets that are made later included. Returns when one fails.
    pub(crate) async fn run(mut self) -> StoreError {
        let mut running = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                biased;
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

/// The pinned root, and the successors that the state keeps.
fn open_roots(config: &CoordinatorConfig) -> Result<RootChain, Error> {
    let unusable =
        |source: Box<dyn std::error::Error + Send + Sync>| Error::Root { path: config.root.clone(), source };
    let bytes = std::fs::read(&config.root).map_err(|error| unusable(Box::new(error)))?;
    TrustRoot::pin(&bytes)
        .and_then(|pinned| RootChain::open(pinned, &config.state.join("roots")))
        .map_err(|error| unusable(Box::new(error)))
}
