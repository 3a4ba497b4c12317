//! Steps 4 to 7: attesting, verifying and sealing. Nothing here changes what is served.

use muster_model::{
    Attestation, Closing, Code, Commitment, Comparable, Digest, Documents, Epoch, FromHost, MerkleProof,
    Nonce, Purpose, Refusal, RolloutId, Secret, Verified,
};

use super::event::{Effect, Evidence, Measured, Purpose as MeasurePurpose};
use super::record::{Committed, Next};
use super::{Accepted, Host, Out, Round, Stage};
use crate::fleet::is_bound_to;
use crate::gate;

impl Host {
    /// Step 4. "Each host answers with a fresh nonce of its own."
    pub(super) fn propose(&mut self, k: RolloutId, to: Digest, nonce: Nonce, out: &mut Out) {
        if k <= self.record.last_k {
            out.refuse(Some(k), stale_rollout(k, self.record.last_k));
            return;
        }
        if let Some(refusal) = self.left_out() {
            out.refuse(Some(k), refusal);
            return;
        }
        if let Some(refusal) = self.broken_glass() {
            out.refuse(Some(k), refusal);
            return;
        }
        // A second nonce for the same rollout could be answered by the measurement that the first one asked for.
        if self.round.as_ref().is_some_and(|round| round.k == k) {
            out.refuse(
                Some(k),
                Refusal::of(Code::WrongState, "this rollout was proposed over this stream before"),
            );
            return;
        }
        self.round = Some(Round { k, to, stage: Stage::Fresh { nonce } });
        out.send(FromHost::Fresh { k, nonce });
    }

    /// Step 5. "Agent measures again and signs an attestation ... `H(s)` of a fresh random secret `s` (durable)."
    pub(super) fn attest(
        &mut self,
        k: RolloutId,
        to: Digest,
        nonce_root: Digest,
        proof: &MerkleProof,
        secret: Secret,
        out: &mut Out,
    ) {
        let Some(round) = self.round.as_mut().filter(|round| round.k == k && round.to == to) else {
            out.refuse(Some(k), unknown_rollout(k));
            return;
        };
        let Stage::Fresh { nonce } = &round.stage else {
            out.refuse(Some(k), Refusal::of(Code::WrongState, "it was asked to attest this rollout before"));
            return;
        };
        // Without its own nonce in the root, a host could be shown answers of another day.
        if !proof.verify(nonce.as_bytes(), &nonce_root) {
            out.refuse(
                Some(k),
                Refusal::of(Code::StaleAttestation, "its own nonce is not in the root it was shown"),
            );
            return;
        }
        round.stage = Stage::Attesting { nonce_root };
        if let Some(refusal) = self.without_guard() {
            out.send(FromHost::CannotAttest { k, refusal });
            return;
        }
        self.record.committed = Some(Committed { k, secret });
        out.record_changed = true;
        out.effects.push(Effect::Measure { purpose: MeasurePurpose::Attest(k), release: to });
    }

    /// Step 5, after the measurement.
    pub(super) fn measured_to_attest(
        &mut self,
        k: RolloutId,
        outcome: Result<Measured, Refusal>,
        out: &mut Out,
    ) {
        let Some(Round { stage: Stage::Attesting { nonce_root }, .. }) =
            self.round.as_ref().filter(|round| round.k == k)
        else {
            return;
        };
        let Some(commitment) = self.commitment(k) else { return };
        match outcome {
            Ok(measured) => {
                let attestation = self.attestation(k, commitment, *nonce_root, measured);
                out.effects.push(Effect::SignAndSend(k, Box::new(attestation)));
            }
            Err(refusal) => out.send(FromHost::CannotAttest { k, refusal }),
        }
    }

    /// Step 7. "PREPARE: each host verifies release, roster, order, approvals and the N attestations."
    pub(super) fn prepare(&mut self, k: RolloutId, epoch: Epoch, documents: Documents, out: &mut Out) {
        let attesting = self
            .round
            .as_ref()
            .is_some_and(|round| round.k == k && matches!(round.stage, Stage::Attesting { .. }));
        if !attesting {
            out.refuse(Some(k), unknown_rollout(k));
            return;
        }
        let next = self.next_epoch();
        if epoch != next {
            let detail = format!("the rollout would begin epoch {epoch}, this host expects {next}");
            out.refuse(Some(k), Refusal::of(Code::StaleEpoch, detail));
            return;
        }
        out.effects.push(Effect::Verify { k, documents });
    }

    /// Step 7, after the signatures were verified: what the documents say must fit together and fit this host.
    pub(super) fn verified(&mut self, k: RolloutId, outcome: Result<Box<Evidence>, Refusal>, out: &mut Out) {
        let Some(Round { to, stage: Stage::Attesting { nonce_root }, .. }) =
            self.round.as_ref().filter(|round| round.k == k)
        else {
            return;
        };
        let (to, nonce_root) = (*to, *nonce_root);
        let accepted = outcome.and_then(|evidence| {
            let accepted = self.accept(k, to, nonce_root, &evidence)?;
            Ok((accepted, evidence))
        });
        match accepted {
            Ok((accepted, evidence)) => {
                self.hold_additions(&evidence.roster, out);
                self.round = Some(Round { k, to, stage: Stage::Verified(accepted) });
                out.effects.push(Effect::Seal { k, release: to });
            }
            Err(refusal) => {
                self.round = None;
                out.refuse(Some(k), refusal);
            }
        }
    }

    /// Step 7, after the tree was measured in full and sealed.
    pub(super) fn sealed(&mut self, k: RolloutId, outcome: Result<(), Refusal>, out: &mut Out) {
        let Some(round) = self.round.as_mut().filter(|round| round.k == k) else { return };
        let Stage::Verified(accepted) = round.stage else { return };
        match outcome {
            Ok(()) => {
                round.stage = Stage::Quiescing(accepted);
                self.quiesced = super::Quiesced::Yes;
                out.effects.push(Effect::Quiesce { k });
            }
            Err(refusal) => {
                self.round = None;
                out.refuse(Some(k), refusal);
            }
        }
    }

    /// Step 7. "An optional quiesce command runs here (reversed by abort)."
    pub(super) fn quiesced(&mut self, k: RolloutId, outcome: Result<(), Refusal>, out: &mut Out) {
        let Some(round) = self.round.as_mut().filter(|round| round.k == k) else { return };
        let Stage::Quiescing(accepted) = round.stage else { return };
        match outcome {
            Ok(()) => {
                round.stage = Stage::Prepared(accepted);
                out.send(FromHost::Prepared { k });
            }
            Err(refusal) => {
                self.round = None;
                self.unquiesce(out);
                out.refuse(Some(k), refusal);
            }
        }
    }

    /// Step 7: how long an answer takes shows whether the lease could be renewed in time.
    pub(super) fn probe(&self, k: RolloutId, out: &mut Out) {
        let is_prepared =
            self.round.as_ref().is_some_and(|it| it.k == k && matches!(it.stage, Stage::Prepared(_)));
        if is_prepared {
            out.send(FromHost::Probed { k });
        } else {
            out.refuse(Some(k), unknown_rollout(k));
        }
    }

    /// What this host requires of the documents of rollout `k` to `to`. P3, checked on every host.
    fn accept(
        &self,
        k: RolloutId,
        to: Digest,
        nonce_root: Digest,
        evidence: &Evidence,
    ) -> Result<Accepted, Refusal> {
        let (order, roster, record) = (&evidence.order, &evidence.roster, &self.record);
        let refuse = |code, detail: &str| Err(Refusal::of(code, detail));
        if order.fleet != record.fleet || order.counter != k || order.to != to {
            return refuse(Code::OrderInvalid, "the order is not for this rollout");
        }
        if evidence.release.fleet != record.fleet || evidence.release.manifest != to {
            return refuse(Code::OrderInvalid, "the release is not the one that the order names");
        }
        if evidence.now < order.not_before_unix_ms || evidence.now >= order.expires_unix_ms {
            return refuse(Code::OrderExpired, "the order is not valid at this time, by this host's clock");
        }
        if evidence.release.expires_unix_ms.is_some_and(|expiry| evidence.now >= expiry) {
            return refuse(Code::ReleaseExpired, "the release has expired, by this host's clock");
        }
        let in_force = crate::fleet::roster_ref(roster, evidence.roster_digest);
        if roster.fleet() != &record.fleet || !is_bound_to(order, &in_force) {
            return refuse(Code::RosterChanged, "the order is not bound to the roster it came with");
        }
        if roster.revision() < record.roster_revision {
            return refuse(Code::RosterChanged, "the roster is older than one that this host has seen");
        }
        self.check_follows(roster)?;
        if let Some(refusal) = self.left_out() {
            return Err(refusal);
        }
        if roster.position(&record.host).is_none() {
            return refuse(Code::HostNotInRoster, "the roster does not list this host");
        }
        // N has shrunk only if whoever is not counted has closed: that is the word of these hosts, and nobody else's.
        let words = evidence.withdrawals.iter().map(|withdrawal| &**withdrawal);
        if let Err(error) = roster.check_withdrawals(words) {
            return refuse(Code::NotWithdrawn, &error.to_string());
        }
        let serving = self.record.may_serve();
        if let Some(serving) = serving
            && order.from != serving.release
        {
            return refuse(Code::OrderStale, "the order does not start from what this host serves");
        }
        let commitments = self.check_attestations(k, nonce_root, to, evidence)?;
        let Some(secret) = self.record.committed.filter(|committed| committed.k == k) else {
            return refuse(Code::StaleAttestation, "this host did not attest for this rollout");
        };
        let next = Next {
            k,
            epoch: self.next_epoch(),
            release: to,
            closing: Closing::of_commitments(&commitments),
            secret: secret.secret,
            max_lapsed: order.max_lapsed,
            mode: order.mode,
        };
        Ok(Accepted { next, roster_revision: roster.revision(), timing: roster.policy().timing })
    }

    /// "Each checks that its own nonce is in the root": all N attestations must answer the very root that this host
    /// found its nonce in, be the same in what is compared, and contain its own.
    fn check_attestations(
        &self,
        k: RolloutId,
        nonce_root: Digest,
        to: Digest,
        evidence: &Evidence,
    ) -> Result<Vec<Commitment>, Refusal> {
        let hosts = evidence.roster.hosts();
        let refuse = |code, detail: String| Err(Refusal::of(code, detail));
        if evidence.attestations.len() != hosts.len() {
            let detail = format!("{} attestations for {} hosts", evidence.attestations.len(), hosts.len());
            return refuse(Code::BadAttestation, detail);
        }
        let mut reference: Option<&Comparable> = None;
        let mut commitments = Vec::with_capacity(hosts.len());
        for (member, attestation) in hosts.iter().zip(&evidence.attestations) {
            let attestation: &Verified<Attestation> = attestation;
            let Purpose::Rollout { k: attested_k, commitment } = attestation.purpose else {
                return refuse(Code::StaleAttestation, format!("{} attested a check only", member.name));
            };
            if attestation.host != member.name
                || attestation.fleet != self.record.fleet
                || attested_k != k
                || attestation.challenge != nonce_root
            {
                return refuse(Code::StaleAttestation, format!("{} attested something else", member.name));
            }
            if !attestation.matches() || attestation.compared.manifest != to {
                return refuse(Code::Mismatch, format!("{} measured another tree", member.name));
            }
            if *reference.get_or_insert(&attestation.compared) != &attestation.compared {
                return refuse(Code::Mismatch, format!("{} differs from the other hosts", member.name));
            }
            commitments.push(commitment);
        }
        let own_position = evidence.roster.position(&self.record.host);
        let own = own_position.map(|index| commitments[index]);
        if own.is_none() || own != self.commitment(k) {
            return refuse(
                Code::BadAttestation,
                "the evidence does not contain this host's own attestation".to_owned(),
            );
        }
        // "Where F cannot be had the host refuses to arm."
        let facts = own_position.map(|index| &evidence.attestations[index].facts);
        let unfit = facts.map(|facts| {
            gate::unfit(&self.record.host, facts, evidence.roster.policy(), evidence.order.mode)
        });
        match unfit {
            Some(blockers) if !blockers.is_empty() => Err(Refusal { blockers }),
            Some(_) | None => Ok(commitments),
        }
    }

    fn commitment(&self, k: RolloutId) -> Option<Commitment> {
        self.record
            .committed
            .filter(|committed| committed.k == k)
            .map(|committed| committed.secret.commitment())
    }
}

pub(super) fn stale_rollout(k: RolloutId, last_k: RolloutId) -> Refusal {
    Refusal::of(Code::StaleRollout, format!("rollout {k} is over; this host has armed for {last_k}"))
}

fn unknown_rollout(k: RolloutId) -> Refusal {
    Refusal::of(Code::WrongState, format!("rollout {k} is not at this step on this host"))
}
