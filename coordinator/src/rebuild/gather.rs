//! The documents that a rebuilt coordinator needs, from whichever host has kept them. Each is verified again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use muster_daemon::Machine;
use muster_model::{
    Attestation, Blocker, Commitment, Digest, FleetName, HostName, Manifest, Order, Purpose, Release,
    Secrets, SigningRole, Verified, Withdrawal,
};
use muster_rollout::fleet::{RECORD_FORMAT, WithdrawalRecord};
use muster_rollout::rebuild::{Dossier, Kept, Promise, Testimony, Verdict};
use muster_trust::{
    Authentic, ENVELOPE_BYTES_MAX, EVIDENCE_BYTES_MAX, Evidence, RootChain, TrustError, verify_evidence,
};

use super::Parts;
use crate::fleet::{Outbox, blocking};
use crate::ledger::{Documents, ReleaseEntry};
use crate::status::{blob_code, chain};

/// The largest manifest that is asked for over a stream. A release with a larger one is pushed again.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// How long the releases of the last rollouts are read, all together.
const RELEASES_TIMEOUT: Duration = Duration::from_secs(120);

/// The hosts' word, and how to ask them for more.
pub(super) struct Sources {
    pub(super) machine: Machine,
    pub(super) fleet: FleetName,
    pub(super) told: BTreeMap<HostName, Testimony>,
    pub(super) outboxes: BTreeMap<HostName, Outbox>,
    pub(super) parts: Arc<Parts>,
    pub(super) documents: Documents,
    pub(super) roots: Arc<RootChain>,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(super) verdict: Verdict,
    pub(super) opened: Option<Dossier>,
    pub(super) decided: Option<Dossier>,
    pub(super) releases: Vec<ReleaseEntry>,
    /// The words of hosts that they have closed, on which the last flip rested: who has retired is let in no more, and gives none again.
    pub(super) withdrawals: Vec<WithdrawalRecord>,
}

/// A rollout's documents, and the words that are among them.
type Found = (Dossier, Vec<WithdrawalRecord>);

impl Sources {
    /// Finds what `verdict` needs, and what else is of use.
    pub(super) async fn gather(self, verdict: Verdict) -> Result<Gathered, Vec<Blocker>> {
        let mut failed = Vec::new();
        let mut opened = match &verdict.opened {
            Some(promise) => self.find(|kept| is_for(kept, promise), &mut failed).await,
            // Settled: its receipt can be made again, and it can be rolled back, but nothing depends on that.
            None => {
                let serving = verdict.serving;
                self.find(|kept| Some(kept.to) == serving && kept.secrets.is_some(), &mut failed).await
            }
        };
        let decided = match &verdict.decided {
            Some(promise) => self.find(|kept| is_for(kept, promise), &mut failed).await,
            None => None,
        };
        let lacks = (verdict.opened.is_some() && opened.is_none() && verdict.decided.is_none())
            || (verdict.decided.is_some() && decided.is_none());
        if lacks && !failed.is_empty() {
            return Err(failed);
        }
        if verdict.opened.is_some()
            && let Some(secrets) = opened.as_mut().and_then(|(dossier, _)| dossier.reveal(&self.told))
        {
            let documents = self.documents.clone();
            let put = move || documents.put(Digest::of(secrets.as_bytes()), secrets.as_bytes());
            let kept = blocking(&self.machine, put).await;
            kept.map_err(|error| vec![Blocker::fleet(blob_code(&error), chain(&error))])?;
        }
        // They are good to have, and nothing waits for them for long.
        let releases = tokio::time::timeout(RELEASES_TIMEOUT, self.releases()).await.unwrap_or_else(|_| {
            tracing::warn!(fleet = %self.fleet, "the releases of hosts are not to be had in time; push them again");
            Vec::new()
        });
        let (opened, mut withdrawals) = opened.map_or((None, Vec::new()), |(it, words)| (Some(it), words));
        let (decided, of_decided) = decided.map_or((None, Vec::new()), |(it, words)| (Some(it), words));
        withdrawals.extend(of_decided);
        Ok(Gathered { verdict, opened, decided, releases, withdrawals })
    }

    /// The documents of the newest rollout that some host has kept and `wanted`, with the closing secrets if anybody has them.
    async fn find(&self, wanted: impl Fn(&Kept) -> bool, failed: &mut Vec<Blocker>) -> Option<Found> {
        let kept = self.told.iter().flat_map(|(host, it)| it.kept.iter().map(move |kept| (host, *kept)));
        let mut found: Vec<(&HostName, Kept)> = kept.filter(|(_, kept)| wanted(kept)).collect();
        found.sort_by_key(|(_, kept)| std::cmp::Reverse((kept.k, kept.secrets)));
        let mut best: Option<Found> = None;
        for (host, kept) in found {
            if best.as_ref().is_some_and(|(best, _)| best.is_proven() || best.order.counter > kept.k) {
                break;
            }
            match self.dossier(host, &kept).await {
                Ok(found) if best.is_none() || found.0.is_proven() => best = Some(found),
                Ok(_) => {}
                Err(blocker) => {
                    tracing::warn!(fleet = %self.fleet, %blocker, "documents of a rollout are not to be had there");
                    failed.push(blocker);
                }
            }
        }
        best
    }

    async fn dossier(&self, host: &HostName, kept: &Kept) -> Result<Found, Blocker> {
        let bad =
            |error: TrustError| Blocker::host(muster_model::Code::SignatureInvalid, host, chain(&error));
        let envelope = ENVELOPE_BYTES_MAX as u64;
        let order = self.read(host, kept.papers.order, envelope).await?;
        let order: Authentic<Order> =
            self.roots.verify_history(SigningRole::Operator, &order).map_err(bad)?;
        let roster = self.read(host, kept.papers.roster, envelope).await?;
        let roster = self.roots.verify_roster_history(&roster).map_err(bad)?;
        if order.document().roster != roster.payload_digest() {
            let detail = format!("the order of rollout {} is bound to another roster than it keeps", kept.k);
            return Err(Blocker::host(muster_model::Code::SignatureInvalid, host, detail));
        }
        self.read(host, kept.papers.release, envelope).await?;
        let evidence = self.read(host, kept.evidence, EVIDENCE_BYTES_MAX as u64).await?;
        let Evidence { attestations, withdrawals } =
            verify_evidence(&evidence, roster.document()).map_err(bad)?;
        let attestations = attestations.into_iter().map(Authentic::into_document);
        let commitments: Vec<Commitment> = attestations.filter_map(|it| commitment(&it)).collect();
        let secrets = match kept.secrets {
            Some(digest) => {
                let bytes = self.read(host, digest, EVIDENCE_BYTES_MAX as u64).await?;
                Secrets::from_bytes(&bytes).map(|secrets| (digest, secrets))
            }
            None => None,
        };
        let dossier = Dossier {
            order: order.into_document(),
            roster: roster.into_document(),
            papers: kept.papers,
            evidence: kept.evidence,
            commitments,
            secrets,
        };
        Ok((dossier, withdrawals.iter().filter_map(word).collect()))
    }

    /// The releases that the last rollouts led to, as far as hosts have them: enough to go back to one.
    async fn releases(&self) -> Vec<ReleaseEntry> {
        let mut found: BTreeMap<Digest, ReleaseEntry> = BTreeMap::new();
        for (host, testimony) in &self.told {
            for kept in &testimony.kept {
                if found.contains_key(&kept.to) {
                    continue;
                }
                match self.release(host, kept).await {
                    Ok(entry) => drop(found.insert(kept.to, entry)),
                    Err(blocker) => {
                        tracing::warn!(fleet = %self.fleet, release = %kept.to, %blocker, "a release is not known yet");
                    }
                }
            }
        }
        let mut versions = BTreeSet::new();
        found.into_values().filter(|entry| versions.insert(entry.version.clone())).collect()
    }

    async fn release(&self, host: &HostName, kept: &Kept) -> Result<ReleaseEntry, Blocker> {
        let bad = |detail: String| Blocker::host(muster_model::Code::SignatureInvalid, host, detail);
        let envelope = self.read(host, kept.papers.release, ENVELOPE_BYTES_MAX as u64).await?;
        let release: Authentic<Release> =
            self.roots.verify_history(SigningRole::Release, &envelope).map_err(|error| bad(chain(&error)))?;
        let release = release.into_document();
        if release.fleet != self.fleet || release.manifest != kept.to {
            return Err(bad("the release is another one than the rollout's".to_owned()));
        }
        let manifest_bytes = self.read(host, kept.to, MANIFEST_BYTES_MAX).await?;
        let manifest = Manifest::parse(&manifest_bytes).map_err(|error| bad(chain(&error)))?;
        Ok(ReleaseEntry {
            fleet: release.fleet.clone(),
            version: release.version.clone(),
            manifest: release.manifest,
            envelope: kept.papers.release,
            manifest_bytes: manifest_bytes.len() as u64,
            files: manifest.files().count() as u64,
            bytes: manifest.total_bytes(),
        })
    }

    /// A document: from the coordinator's own store, or from the host, and then it is kept.
    pub(super) async fn read(
        &self,
        host: &HostName,
        digest: Digest,
        bytes_max: u64,
    ) -> Result<Vec<u8>, Blocker> {
        let documents = self.documents.clone();
        if let Ok(bytes) = blocking(&self.machine, move || documents.read(digest)).await {
            return Ok(bytes);
        }
        let outbox = self.outboxes.get(host).ok_or_else(|| muster_rollout::gate::missing(host))?;
        let bytes = self.parts.read(&self.fleet, (host, outbox), digest, bytes_max).await?;
        let documents = self.documents.clone();
        let (kept, bytes) = blocking(&self.machine, move || (documents.put(digest, &bytes), bytes)).await;
        kept.map_err(|error| Blocker::host(blob_code(&error), host, chain(&error)))?;
        Ok(bytes)
    }
}

fn is_for(kept: &Kept, promise: &Promise) -> bool {
    kept.k == promise.k && kept.closing == promise.closing && kept.to == promise.release
}

/// A word as it is kept, by the key that has signed it.
fn word(withdrawal: &Authentic<Withdrawal>) -> Option<WithdrawalRecord> {
    let document = withdrawal.document();
    Some(WithdrawalRecord {
        format: RECORD_FORMAT,
        host: document.host.clone(),
        attestation_key: withdrawal.signers().first()?.clone(),
        roster_revision: document.roster_revision,
        envelope: String::from_utf8(withdrawal.raw().to_vec()).ok()?,
    })
}

fn commitment(attestation: &Verified<Attestation>) -> Option<Commitment> {
    match attestation.purpose {
        Purpose::Rollout { commitment, .. } => Some(commitment),
        Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. } => None,
    }
}
