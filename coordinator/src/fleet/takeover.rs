//! Step 1: what a new leader reads before it leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_model::{
    Commitment, Digest, FleetName, HostName, Mandate, Purpose, Roster, Secrets, SigningRole, Verified,
};
use muster_rollout::fleet::{FleetRecord, Inheritance, Phase, SessionRecord, WithdrawalRecord};
use muster_trust::{Authentic, RootChain, verify_evidence, verify_withdrawal};

use crate::Error;
use crate::ledger::{Documents, Ledger, MandateEntry};
use crate::rebuild::{Beginning, Signed};

/// Reads what all fleets inherit from their last leader.
pub(crate) fn inherit_all(
    ledger: &Ledger,
    roots: &RootChain,
) -> Result<Vec<(FleetRecord, Inheritance)>, Error> {
    let mut inherited = Vec::new();
    for state in ledger.state().fleets.values() {
        let Some(record) = &state.record else { continue };
        let mut inheritance = inherit(record, &state.sessions, ledger.documents(), roots)?;
        inheritance.withdrawals = words(&record.fleet, &state.withdrawals);
        inherited.push((record.clone(), inheritance));
    }
    Ok(inherited)
}

/// Reads what is known of the fleets that this life of the database does not lead yet.
pub(crate) fn beginnings(ledger: &Ledger, roots: &RootChain) -> Result<Vec<(FleetName, Beginning)>, Error> {
    let mut beginnings = Vec::new();
    for (fleet, state) in &ledger.state().fleets {
        if state.record.is_some() || (state.former.is_none() && state.mandate.is_none()) {
            continue;
        }
        let mandated = match &state.mandate {
            Some(mandate) => Some((signed(fleet, mandate, ledger.documents(), roots)?, mandate.term)),
            None => None,
        };
        let (former, sessions) = (state.former.clone(), state.sessions.clone());
        let withdrawals = words(fleet, &state.withdrawals);
        beginnings.push((fleet.clone(), Beginning { former, sessions, withdrawals, mandated }));
    }
    Ok(beginnings)
}

fn signed(
    fleet: &FleetName,
    mandate: &MandateEntry,
    documents: &Documents,
    roots: &RootChain,
) -> Result<Signed, Error> {
    let reader = Reader { fleet, documents };
    let failed = |error| reader.failed("the mandate", mandate.roster, error);
    let verified: Authentic<Mandate> =
        roots.verify_history(SigningRole::Operator, mandate.envelope.as_bytes()).map_err(failed)?;
    let bytes = reader.read("the roster", mandate.roster)?;
    let roster = roots
        .verify_roster_history(&bytes)
        .map_err(|error| reader.failed("the roster", mandate.roster, error))?;
    Ok(Signed {
        mandate: verified.into_document(),
        envelope: mandate.envelope.clone(),
        roster_digest: roster.payload_digest(),
        roster_envelope: mandate.roster,
        roster: Arc::new(roster.into_document()),
    })
}

/// Reads what a fleet inherits from its last leader. Every document is verified again: the disk is not trusted.
fn inherit(
    record: &FleetRecord,
    sessions: &BTreeMap<HostName, SessionRecord>,
    documents: &Documents,
    roots: &RootChain,
) -> Result<Inheritance, Error> {
    let reader = Reader { fleet: &record.fleet, documents };
    let roster = reader.roster(record.roster_envelope, roots)?;
    let coming = record.coming.as_ref().map(|coming| reader.roster(coming.envelope, roots)).transpose()?;
    let commitments = match &record.phase {
        Phase::Decided(armament) => reader.commitments(armament.evidence, &roster)?,
        Phase::Settled | Phase::Preparing(_) | Phase::Arming(_) | Phase::Opened(_) => Vec::new(),
    };
    let secrets = match record.phase.opening() {
        Some(opening) => reader.secrets(opening.secrets)?,
        None => Secrets::default(),
    };
    let sessions = sessions.values().cloned().collect();
    let coming = coming.map(Arc::new);
    let withdrawals = Vec::new();
    Ok(Inheritance { roster: Arc::new(roster), coming, sessions, withdrawals, commitments, secrets })
}

/// The words of hosts that they have closed, each verified again. One that does not verify is as good as none: its host gives it again.
fn words(fleet: &FleetName, kept: &BTreeMap<HostName, WithdrawalRecord>) -> Vec<WithdrawalRecord> {
    let holds = |word: &&WithdrawalRecord| {
        let verified = verify_withdrawal(word.envelope.as_bytes(), fleet, &word.host, &word.attestation_key);
        let is_it = verified.is_ok_and(|it| it.document().roster_revision == word.roster_revision);
        if !is_it {
            tracing::error!(%fleet, host = %word.host, "the word of a host that it has closed is damaged");
        }
        is_it
    };
    kept.values().filter(holds).cloned().collect()
}

/// What a fleet inherits whose first roster was just applied.
pub(crate) fn first(roster: Verified<Roster>) -> Inheritance {
    Inheritance::none(Arc::new(roster))
}

struct Reader<'a> {
    fleet: &'a FleetName,
    documents: &'a Documents,
}

impl Reader<'_> {
    fn read(&self, what: &'static str, digest: Digest) -> Result<Vec<u8>, Error> {
        self.documents.read(digest).map_err(|error| self.failed(what, digest, error))
    }

    /// It was verified when it was applied. A root that has expired or changed since must not keep the coordinator from
    /// leading, which is how the next one comes to the hosts; they verify the roster again at every flip.
    fn roster(&self, envelope: Digest, roots: &RootChain) -> Result<Verified<Roster>, Error> {
        let bytes = self.read("the roster", envelope)?;
        let roster = roots
            .verify_roster_history(&bytes)
            .map_err(|error| self.failed("the roster", envelope, error))?;
        Ok(roster.into_document())
    }

    fn commitments(&self, evidence: Digest, roster: &Verified<Roster>) -> Result<Vec<Commitment>, Error> {
        let bytes = self.read("the evidence", evidence)?;
        let attestations = verify_evidence(&bytes, roster)
            .map_err(|error| self.failed("the evidence", evidence, error))?
            .attestations;
        let commitment_of = |purpose| match purpose {
            Purpose::Rollout { commitment, .. } => Some(commitment),
            Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. } => None,
        };
        Ok(attestations.iter().filter_map(|it| commitment_of(it.document().purpose)).collect())
    }

    fn secrets(&self, digest: Digest) -> Result<Secrets, Error> {
        let what = "the closing secrets";
        let cut = || self.failed(what, digest, std::io::Error::other("not a multiple of 32 bytes"));
        Secrets::from_bytes(&self.read(what, digest)?).ok_or_else(cut)
    }

    fn failed(
        &self,
        what: &'static str,
        digest: Digest,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        Error::Document { what, fleet: self.fleet.clone(), digest, source: Box::new(source) }
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{BootId, PublicKey, RolloutId, RosterRevision, UnixTime, Withdrawal};
    use muster_rollout::fleet::RECORD_FORMAT;
    use muster_trust::{KeyAlgorithm, SigningKey, sign};

    use super::*;

    #[test]
    fn the_word_of_a_host_counts_for_a_new_leader_only_as_it_was_signed() {
        let fleet = FleetName::new("demo").unwrap();
        let host = HostName::new("host-3").unwrap();
        let key = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
        let boot = BootId::new("0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").unwrap();
        let revision = RosterRevision(2);
        let stated = Withdrawal::new(fleet.clone(), host.clone(), revision, RolloutId(1), boot, UnixTime(7));
        let envelope = sign(&stated, &[&key]).unwrap();
        let good = WithdrawalRecord {
            format: RECORD_FORMAT,
            host: host.clone(),
            attestation_key: key.public().clone(),
            roster_revision: revision,
            envelope: String::from_utf8(envelope.raw().to_vec()).unwrap(),
        };
        let kept = |word: WithdrawalRecord| words(&fleet, &BTreeMap::from([(host.clone(), word)]));
        assert_eq!(kept(good.clone()), std::slice::from_ref(&good));
        for wrong in [
            WithdrawalRecord { attestation_key: PublicKey::Ed25519([9; 32]), ..good.clone() },
            WithdrawalRecord { roster_revision: RosterRevision(3), ..good.clone() },
            WithdrawalRecord { envelope: good.envelope.replacen('a', "b", 1), ..good.clone() },
        ] {
            assert_eq!(kept(wrong), []);
        }
    }
}
