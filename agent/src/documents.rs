//! The documents of a rollout: pulled by digest, and believed only with the keys that may sign them.

use std::sync::{Arc, Mutex, PoisonError};

use muster_daemon::Machine;
use muster_model::{
    AdditionError, Attestation, Closing, Code, Commitment, Digest, Documents, FleetName, HostName, Purpose,
    Refusal, RolloutId, Roster, RosterRevision, Verified,
};
use muster_rollout::host::Evidence;
use muster_trust::{
    Authentic, ENVELOPE_BYTES_MAX, EVIDENCE_BYTES_MAX, RootChain, TrustError, operators_roster,
    verify_evidence,
};
use tonic::transport::Channel;

use crate::blobs::pull;
use crate::measure::on_thread;
use crate::papers::{self, Papers};
use crate::refusal;

/// Pulls and verifies what a rollout rests on, by the root that is in force at that moment.
#[derive(Debug)]
pub(crate) struct Library {
    root: Arc<RootChain>,
    machine: Machine,
    host: HostName,
    fleet: FleetName,
    /// The last roster's envelope: the largest document, and the one that seldom changes.
    roster: Mutex<Option<(Digest, Arc<[u8]>)>>,
    /// Where what was verified is kept.
    papers: Arc<Papers>,
}

/// The bytes of a rollout's documents, of which nothing is verified but the digests.
struct Pulled {
    order: Vec<u8>,
    release: Vec<u8>,
    roster: Arc<[u8]>,
    evidence: Vec<u8>,
}

impl Library {
    pub(crate) const fn new(
        root: Arc<RootChain>,
        machine: Machine,
        host: HostName,
        fleet: FleetName,
        papers: Arc<Papers>,
    ) -> Self {
        Self { root, machine, host, fleet, roster: Mutex::new(None), papers }
    }

    /// Pulls all four documents and verifies their signatures. Whether they fit together and fit this host is for
    /// the rollout core.
    pub(crate) async fn verify(
        self: Arc<Self>,
        channel: Channel,
        k: RolloutId,
        documents: Documents,
    ) -> Result<Box<Evidence>, Refusal> {
        let one = |what, digest, max| pull(channel.clone(), &self.machine, &self.host, what, digest, max);
        let (order, release, roster, evidence) = tokio::try_join!(
            one("order", documents.order, ENVELOPE_BYTES_MAX),
            one("release", documents.release, ENVELOPE_BYTES_MAX),
            self.roster(channel.clone(), documents.roster),
            one("evidence", documents.evidence, EVIDENCE_BYTES_MAX),
        )?;
        let pulled = Pulled { order, release, roster, evidence };
        let (machine, host) = (self.machine.clone(), self.host.clone());
        on_thread(&machine, &host, move || {
            let evidence = self.verify_signatures(&pulled, documents.roster)?;
            self.keep(k, documents, &evidence, &pulled)?;
            Ok(evidence)
        })
        .await
    }

    /// Pulls a roster that the coordinator shows, unless it is the one that is kept, verifies it and keeps it.
    pub(crate) async fn shown(
        self: Arc<Self>,
        channel: Channel,
        digest: Digest,
    ) -> Result<Verified<Roster>, Refusal> {
        let (papers, machine) = (Arc::clone(&self.papers), self.machine.clone());
        // A host that died after it had kept it may not have acted on it.
        let kept = machine.run_blocking(move || papers.roster_named(digest)).await.ok().flatten();
        let (is_kept, bytes) = match kept {
            Some(bytes) => (true, bytes.into()),
            None => (false, self.roster(channel, digest).await?),
        };
        let (machine, host) = (self.machine.clone(), self.host.clone());
        on_thread(&machine, &host, move || {
            let refuse = |error| refusal::of_trust(&self.host, Code::SignatureInvalid, &error);
            // What is kept was verified when it was kept; what it goes on from may be too old by now to be added to.
            let roster = if is_kept {
                self.root.verify_roster_history(&bytes).map_err(refuse)?
            } else {
                self.taken_on(&bytes).map_err(refuse)?
            };
            let (digest, bytes) = (roster.envelope_digest(), Arc::clone(roster.raw()));
            let roster = roster.into_document();
            if roster.fleet() != &self.fleet {
                let detail = format!("a roster of the fleet {} was shown", roster.fleet());
                return Err(refusal::at(&self.host, Code::FleetUnknown, detail));
            }
            self.check_follows_kept(&roster)?;
            let kept = self.papers.keep_roster(roster.revision(), digest, &bytes);
            kept.map_err(|error| refusal::of_io(&self.host, "keep the roster", &error))?;
            Ok(roster)
        })
        .await
    }

    /// The roster that is kept, if it is newer than `seen`. Blocks.
    pub(crate) fn kept_since(&self, seen: RosterRevision) -> Option<Verified<Roster>> {
        self.papers.roster_revision().filter(|kept| *kept > seen)?;
        let bytes = self.papers.roster()?;
        let roster = self.root.verify_roster_history(&bytes).ok()?.into_document();
        (roster.fleet() == &self.fleet && roster.revision() > seen).then_some(roster)
    }

    /// What of a roster is to be taken on. When hosts were added nobody can tell who was away then: of an addition to what operators have
    /// signed too long ago only that counts, which they have signed. Who was added this host learns with the next order, which names
    /// the roster, or with the next roster of operators.
    fn taken_on(&self, bytes: &[u8]) -> Result<Authentic<Roster>, TrustError> {
        let (root, now) = (self.root.in_force(), self.machine.unix_time());
        let error = match root.verify_roster(bytes, now) {
            Ok(roster) => return Ok(roster),
            Err(
                error @ TrustError::Addition {
                    source: AdditionError::TooOld { .. } | AdditionError::Undated { .. },
                },
            ) => error,
            Err(error) => return Err(error),
        };
        let base = operators_roster(&root.verify_held_roster(bytes, now)?)?.into_bytes();
        let roster = root.verify_roster(&base, now)?;
        tracing::warn!(
            fleet = %self.fleet, %error, revision = %roster.document().revision(),
            "hosts were added that this one does not know yet; it goes by what operators have signed"
        );
        Ok(roster)
    }

    /// What is kept here a new coordinator is rebuilt from, so it forgets no host that was added.
    fn check_follows_kept(&self, roster: &Roster) -> Result<(), Refusal> {
        let kept = self.papers.roster().and_then(|bytes| self.root.verify_roster_history(&bytes).ok());
        let Some(kept) = kept.as_ref().map(Authentic::document) else { return Ok(()) };
        // One that is older takes nobody's place.
        if roster.revision() < kept.revision() {
            return Ok(());
        }
        let refused = |error| {
            let detail = format!("the roster is refused: {error}");
            refusal::at(&self.host, Code::RosterChanged, detail)
        };
        roster.check_follows(kept.revision(), kept.additions()).map_err(refused)?;
        // What operators signed who were shown an older roster would have an old word stand for a host that serves.
        roster.check_set_aside(kept).map_err(refused)
    }

    /// What a rollout rests on is durable before the host is prepared for it: a lost coordinator is rebuilt from it.
    fn keep(
        &self,
        k: RolloutId,
        documents: Documents,
        evidence: &Evidence,
        pulled: &Pulled,
    ) -> Result<(), Refusal> {
        let commitment = |it: &Verified<Attestation>| match it.purpose {
            Purpose::Rollout { commitment, .. } => Some(commitment),
            Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. } => None,
        };
        let commitments: Vec<Commitment> = evidence.attestations.iter().filter_map(commitment).collect();
        let verified = papers::Verified {
            k,
            to: evidence.order.to,
            documents,
            closing: Closing::of_commitments(&commitments),
            bytes: [&pulled.order, &pulled.release, &pulled.roster, &pulled.evidence],
        };
        // Who was away when it was handed in has not kept it yet.
        self.check_follows_kept(&evidence.roster)?;
        let kept = self.papers.keep_roster(evidence.roster.revision(), documents.roster, &pulled.roster);
        kept.map_err(|error| refusal::of_io(&self.host, "keep the roster", &error))?;
        let kept = self.papers.keep(&verified);
        kept.map_err(|error| refusal::of_io(&self.host, "keep the rollout's documents", &error))
    }

    async fn roster(&self, channel: Channel, digest: Digest) -> Result<Arc<[u8]>, Refusal> {
        let known = self.roster.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, roster)) = known.filter(|(known, _)| *known == digest) {
            return Ok(roster);
        }
        let roster: Arc<[u8]> =
            pull(channel, &self.machine, &self.host, "roster", digest, ENVELOPE_BYTES_MAX).await?.into();
        *self.roster.lock().unwrap_or_else(PoisonError::into_inner) = Some((digest, Arc::clone(&roster)));
        Ok(roster)
    }

    fn verify_signatures(&self, pulled: &Pulled, roster: Digest) -> Result<Box<Evidence>, Refusal> {
        let now = self.machine.unix_time();
        let refuse = |code| move |error| refusal::of_trust(&self.host, code, &error);
        let invalid = refuse(Code::SignatureInvalid);
        let root = self.root.in_force();
        let order = root.verify_order(&pulled.order, now).map_err(invalid)?;
        let release = root.verify_release(&pulled.release, &self.fleet, now).map_err(invalid)?;
        // What was shown and kept was young enough then. And operators who sign an order for a roster vouch for that roster: a thief of
        // a joiner's key has none for what he has added.
        let named = root.verify_held_roster(&pulled.roster, now).map_err(invalid)?;
        let is_vouched_for =
            self.papers.has_roster(roster) || order.document().roster == named.payload_digest();
        let roster =
            if is_vouched_for { named } else { root.verify_roster(&pulled.roster, now).map_err(invalid)? };
        let verified = verify_evidence(&pulled.evidence, roster.document());
        let evidence = verified.map_err(|error| refuse(evidence_code(&error))(error))?;
        Ok(Box::new(Evidence {
            order: order.into_document(),
            release: release.into_document(),
            roster_digest: roster.payload_digest(),
            roster: roster.into_document(),
            attestations: evidence.attestations.into_iter().map(Authentic::into_document).collect(),
            withdrawals: evidence.withdrawals.into_iter().map(Authentic::into_document).collect(),
            now,
        }))
    }
}

/// What it is called that evidence does not verify.
fn evidence_code(error: &TrustError) -> Code {
    if error.is_about_withdrawal() { Code::NotWithdrawn } else { Code::BadAttestation }
}
