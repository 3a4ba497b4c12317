//! The audit log at run time: one thread that appends, and what everybody else reads.
//!
//! Orders and overrides are in the log before anything is done about them. Phases and outcomes are so when the ledger says so,
//! and follow it: the entry of a phase is written while hosts are told, so that no disk lengthens the time in which nothing is
//! served; whoever waits for an outcome hears it after its entry is covered. A coordinator that dies in between tells at its
//! next start, in the entry of its lead, in which phase it found the fleet.

mod log;
mod slots;
mod throttle;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use muster_audit::{Entry, Kind, ORDER_DOCUMENT, Offer, OpenOverrides, SignedCheckpoint};
use muster_daemon::Machine;
use muster_model::{FleetName, Order, PublicKey, Refusal, RolloutId, SigningRole};
use muster_proto::v1;
use muster_rollout::fleet::{End, FleetRecord, Outcome, Phase};
use muster_store::StoreError;
use muster_trust::{Authentic, KeyAlgorithm, OrderProposal, SigningKey, TrustRoot};
use tokio::sync::watch;

use crate::Error;
use crate::notify::Notifier;
use crate::worker::Worker;
use log::{AuditLog, Beginning, LogError, Published};

pub(crate) use log::PREVIOUS_FILE;
pub(crate) use throttle::Throttle;

/// How much is read of the log at once, in bytes.
const PART_BYTES: u64 = 512 << 10;

/// The way to the audit log.
#[derive(Clone)]
pub(crate) struct AuditHandle {
    worker: Worker<AuditLog>,
    published: watch::Receiver<Published>,
    key: PublicKey,
    /// Who a coordinator is in entries about what nobody asked for.
    coordinator: Arc<str>,
    machine: Machine,
}

impl AuditHandle {
    /// Opens the log below `state`, with the entries that begin it, and hands it to a thread of its own.
    pub(crate) fn open(
        state: &Path,
        key: SigningKey,
        (trust_domain, coordinator): (&str, String),
        incarnation: muster_model::Incarnation,
        root: &TrustRoot,
        machine: Machine,
        notifier: Option<Notifier>,
    ) -> Result<Self, Error> {
        let public = key.public().clone();
        let beginning = Beginning {
            state,
            key: Arc::new(key),
            trust_domain,
            incarnation,
            who: &coordinator,
            now: machine.unix_time(),
        };
        let mut log = AuditLog::open(&beginning).map_err(failed)?;
        let in_force = root_entry(Entry::new(Kind::Root, coordinator.as_str(), machine.unix_time()), root);
        log.settle_root(in_force.saying("found in force at the start")).map_err(Error::StoreFailed)?;
        log.tells(notifier);
        let published = log.published();
        let size = published.borrow().checkpoint.checkpoint().size;
        tracing::info!(size, key = %public, "audit log opened");
        let worker = Worker::serve("audit", log, machine.blocking())?;
        Ok(Self { worker, published, key: public, coordinator: coordinator.into(), machine })
    }

    /// The key that signs checkpoints.
    pub(crate) const fn key(&self) -> &PublicKey {
        &self.key
    }

    /// An entry about what `who` does now.
    pub(crate) fn entry(&self, kind: Kind, who: &str) -> Entry {
        Entry::new(kind, who, self.machine.unix_time())
    }

    /// An entry about what the coordinator does by itself.
    pub(crate) fn own_entry(&self, kind: Kind) -> Entry {
        self.entry(kind, &self.coordinator)
    }

    /// Returns once the entries are durable and covered by a checkpoint, with the place of the first.
    pub(crate) async fn write(&self, entries: Vec<Entry>) -> Result<u64, StoreError> {
        self.worker.run(move |log| log.append(entries)).await
    }

    /// Hands entries in, behind those before them. A failure shows in the next [`AuditHandle::write`].
    pub(crate) async fn note(&self, entries: Vec<Entry>) {
        self.worker
            .hand_in(move |log| {
                if let Err(error) = log.append(entries) {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "an audit entry is not written"
                    );
                }
            })
            .await;
    }

    /// The last checkpoint.
    pub(crate) fn checkpoint(&self) -> Arc<SignedCheckpoint> {
        Arc::clone(&self.published.borrow().checkpoint)
    }

    /// The overrides that nobody has looked at yet.
    pub(crate) fn overrides(&self) -> Arc<OpenOverrides> {
        Arc::clone(&self.published.borrow().overrides)
    }

    /// What a witness is shown that has seen `old` entries of this log: with more than there are, no proof.
    pub(crate) async fn offer(&self, old: u64) -> Result<Shown, StoreError> {
        let mut offers = self.offers(BTreeSet::from([old])).await?;
        Ok(offers.remove(&old).expect("each size that was asked about is answered"))
    }

    /// The same for witnesses that have seen different parts of it.
    pub(crate) async fn offers(&self, seen: BTreeSet<u64>) -> Result<BTreeMap<u64, Shown>, StoreError> {
        let (key, published) = (self.key.clone(), self.published.clone());
        let offers = move |log: &mut AuditLog| {
            // Read on the writer's thread, so that it is the checkpoint that the proofs lead to.
            let checkpoint = Arc::clone(&published.borrow().checkpoint);
            let (size, note) = (checkpoint.checkpoint().size, checkpoint.to_bytes());
            let shown = |old| {
                let offer = Offer { checkpoint: note.clone(), key: key.clone(), proof: log.proof_from(old)? };
                Ok((old, Shown { size, offer }))
            };
            seen.into_iter().map(shown).collect()
        };
        self.worker.run(offers).await
    }

    /// The next entries from `from` on.
    pub(crate) async fn read(&self, from: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        self.worker.run(move |log| log.read(from, PART_BYTES)).await
    }

    /// Closes an override that is open; of one that is not, nothing is written.
    pub(crate) async fn reconcile(
        &self,
        entry: u64,
        who: &str,
        reason: &str,
    ) -> Result<Option<u64>, StoreError> {
        let mut reconciled = self.entry(Kind::Reconcile, who).saying(reason);
        reconciled.reconciles = Some(entry);
        self.worker
            .run(move |log| {
                let Some(open) = log.open_override(entry) else { return Ok(None) };
                reconciled.fleet = open.fleet;
                log.append(vec![reconciled]).map(Some)
            })
            .await
    }

    /// Comes back once the thread has come round.
    pub(crate) async fn beat(&self) {
        self.worker.run(|_| ()).await;
    }

    /// Ends the thread after everything that was handed in before.
    pub(crate) async fn close(&self) {
        self.worker.close().await;
    }
}

/// What a witness is shown.
pub(crate) struct Shown {
    /// How many entries the checkpoint covers.
    pub(crate) size: u64,
    offer: Offer,
}

/// What is shown, in a frame.
pub(crate) fn on_wire(shown: &Shown) -> v1::AuditShown {
    let Offer { checkpoint, key, proof } = &shown.offer;
    v1::AuditShown {
        checkpoint: checkpoint.clone(),
        key: key.to_string(),
        proof: proof.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
    }
}

/// Reads the key that signs checkpoints. One that is not configured is made at the first start.
pub(crate) fn read_key(configured: Option<&Path>, state: &Path) -> Result<SigningKey, Error> {
    let unusable = |source| Error::AuditKey { source };
    if let Some(path) = configured {
        return SigningKey::read(path).map_err(unusable);
    }
    let path = state.join("audit.key");
    if !path.exists() {
        let key = SigningKey::generate(KeyAlgorithm::Ed25519).map_err(unusable)?;
        key.write_new(&path).map_err(unusable)?;
    }
    SigningKey::read(&path).map_err(unusable)
}

/// The order, and each key that has signed it.
pub(crate) fn order_entries(
    audit: &AuditHandle,
    root: &TrustRoot,
    order: &Authentic<Order>,
    who: &str,
) -> Vec<Entry> {
    let (document, envelope) = (order.document(), order.envelope_digest());
    let ordered = audit.entry(Kind::Order, who).of_fleet(&document.fleet).of_rollout(document.counter);
    let mut ordered = ordered.with(ORDER_DOCUMENT, envelope).with("to", document.to);
    if let Some(from) = document.from {
        ordered = ordered.with("from", from);
    }
    if root.root().role(SigningRole::Operator).threshold < 2 {
        ordered = ordered.saying("solo mode: one operator alone could sign it");
    }
    std::iter::once(ordered).chain(approvals(audit, order)).collect()
}

/// That a root was applied, and each key that has signed it.
pub(crate) fn root_entries(audit: &AuditHandle, root: &TrustRoot, who: &str) -> Vec<Entry> {
    let applied = root_entry(audit.entry(Kind::Root, who), root).saying("applied");
    let approvals = root.authentic().signers().iter();
    let approvals =
        approvals.map(|signer| root_entry(audit.entry(Kind::Approval, &signer.to_string()), root));
    std::iter::once(applied).chain(approvals).collect()
}

/// An entry about a root.
pub(crate) fn root_entry(entry: Entry, root: &TrustRoot) -> Entry {
    entry.of_root(root.root().version, root.authentic().payload_digest())
}

/// Each key that has signed an order that lies ready.
pub(crate) fn approvals(audit: &AuditHandle, order: &Authentic<Order>) -> Vec<Entry> {
    let (document, envelope) = (order.document(), order.envelope_digest());
    let approval = |signer: &PublicKey| {
        let entry = audit.entry(Kind::Approval, &signer.to_string());
        entry.of_fleet(&document.fleet).of_rollout(document.counter).with(ORDER_DOCUMENT, envelope)
    };
    order.signers().iter().map(approval).collect()
}

/// That an order is kept until enough operators have signed it.
pub(crate) fn propose_entry(audit: &AuditHandle, order: &OrderProposal, who: &str) -> Entry {
    about_order(audit.entry(Kind::Propose, who), order).with("to", order.document.to)
}

/// That these keys have signed an order that is kept; `who` brought their signatures.
pub(crate) fn approval_entries(
    audit: &AuditHandle,
    order: &OrderProposal,
    keys: &[PublicKey],
    who: &str,
) -> Vec<Entry> {
    let approval = |key: &PublicKey| {
        about_order(audit.entry(Kind::Approval, &key.to_string()), order).saying(format!("given by {who}"))
    };
    keys.iter().map(approval).collect()
}

fn about_order(entry: Entry, order: &OrderProposal) -> Entry {
    let entry = entry.of_fleet(&order.document.fleet).of_rollout(order.document.counter);
    entry.with(ORDER_DOCUMENT, order.envelope.digest()).with("payload", order.payload_digest)
}

/// How a rollout ended, with its reasons.
pub(crate) fn ended_entry(audit: &AuditHandle, fleet: &FleetName, end: &End) -> Entry {
    let outcome = match end.outcome {
        Outcome::Flipped => "flipped",
        Outcome::Unchanged => "unchanged",
        Outcome::Dark => "dark",
    };
    let reasons = end.blockers.iter().take(16).map(|blocker| format!("; {blocker}"));
    let detail = format!("{outcome}, epoch {}{}", end.epoch, reasons.collect::<String>());
    audit.own_entry(Kind::Ended).of_fleet(fleet).of_rollout(end.k).with("to", end.to).saying(detail)
}

/// That a fleet has reached another phase, or is led in it.
pub(crate) fn phase_entry(audit: &AuditHandle, kind: Kind, record: &FleetRecord) -> Entry {
    let k = record.phase.rollout().map_or(record.last_k, |rollout| rollout.k);
    let entry = audit.own_entry(kind).of_fleet(&record.fleet).of_rollout(k);
    let coming =
        record.coming.as_ref().map(|coming| format!(", revision {} to come", coming.roster.revision));
    let detail = format!(
        "{}, epoch {}, term {}, roster revision {}{}",
        phase_name(&record.phase),
        record.epoch,
        record.leadership.term,
        record.roster.revision,
        coming.unwrap_or_default()
    );
    match record.serving {
        Some(serving) => entry.with("serving", serving).saying(detail),
        None => entry.saying(detail),
    }
}

/// That something was refused. An override that was refused is nothing that anybody has to look at.
pub(crate) fn refusal_entry(
    audit: &AuditHandle,
    who: &str,
    asked: &str,
    refusal: &Refusal,
    refused: Option<u64>,
) -> Entry {
    let mut entry = audit.entry(Kind::Refusal, who).saying(format!("{asked}: {refusal}"));
    entry.reconciles = refused;
    entry
}

/// What tells two phases of a fleet apart.
pub(crate) fn phase_mark(record: &FleetRecord) -> (&'static str, RolloutId) {
    (phase_name(&record.phase), record.last_k)
}

pub(crate) const fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Settled => "settled",
        Phase::Preparing(_) => "preparing",
        Phase::Arming(_) => "arming",
        Phase::Decided(_) => "decided",
        Phase::Opened(_) => "opened",
    }
}

fn failed(error: LogError) -> Error {
    match error {
        LogError::Store(source) => Error::StoreFailed(source),
        damaged @ (LogError::Entry { .. }
        | LogError::Ends { .. }
        | LogError::Root { .. }
        | LogError::NoCheckpoint { .. }
        | LogError::Signing(_)) => Error::AuditLog { source: Box::new(damaged) },
    }
}
