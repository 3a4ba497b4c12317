//! Attestations: one host's, and those of all N hosts as one document.
//!
//! Evidence is N envelopes, one on each line, in the order of the roster, and after them the withdrawals of the hosts that the roster sets
//! aside and that have to give their word. It is not signed as a whole, since every line is signed by the host that it is about.

use muster_model::{Attestation, DocumentKind, Member, Roster, Verified, Withdrawal, WithdrawalError};

use crate::authentic::{open, parse};
use crate::dsse::Envelope;
use crate::keys::is_signed_by;
use crate::root::check_fleet;
use crate::withdrawal::verify_words;
use crate::{Authentic, DocumentName, TrustError};

/// The largest attestation envelope that is read, in bytes. They have about 1,500.
pub const ATTESTATION_BYTES_MAX: usize = 16 << 10;

/// The largest evidence that is read, in bytes: enough for the largest roster.
pub const EVIDENCE_BYTES_MAX: usize = 64 << 20;

/// Verifies that an attestation is signed once, by the roster's key of exactly the host that it names, and that it can
/// be a line of evidence.
pub fn verify_attestation(
    raw: &[u8],
    roster: &Verified<Roster>,
) -> Result<Authentic<Attestation>, TrustError> {
    let candidate = Candidate::read(raw, DocumentKind::Attestation.into())?;
    let host = &candidate.attestation.host;
    if raw.contains(&b'\n') {
        return Err(TrustError::AttestationLineBreak { host: host.clone() });
    }
    let member = roster.member(host).ok_or_else(|| TrustError::NotInRoster {
        host: host.clone(),
        fleet: roster.fleet().clone(),
        revision: roster.revision(),
    })?;
    candidate.accept(member, roster)
}

/// What evidence holds, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The N attestations, in the order of the roster.
    pub attestations: Vec<Authentic<Attestation>>,
    /// One for each host of [`Roster::must_have_withdrawn`], in that order.
    pub withdrawals: Vec<Authentic<Withdrawal>>,
}

/// Puts the envelopes of attestations, given in the order of the roster, together as evidence, and after them those of the withdrawals, in
/// the order of [`Roster::must_have_withdrawn`]. Each must have passed [`verify_attestation`] or
/// [`verify_withdrawal`](crate::verify_withdrawal).
pub fn assemble_evidence<B: AsRef<[u8]>>(lines: &[B]) -> Vec<u8> {
    let len = lines.iter().map(|line| line.as_ref().len() + 1).sum();
    let mut evidence = Vec::with_capacity(len);
    for line in lines {
        evidence.extend_from_slice(line.as_ref());
        evidence.push(b'\n');
    }
    evidence
}

/// Verifies evidence: N lines, of which line i is the attestation of host i of the roster; and one more for each host that has to give its
/// word that it has closed.
///
/// What the attestations say is not compared; that is for the gate and for every host.
pub fn verify_evidence(bytes: &[u8], roster: &Verified<Roster>) -> Result<Evidence, TrustError> {
    if bytes.len() > EVIDENCE_BYTES_MAX {
        return Err(TrustError::EvidenceTooLarge { len: bytes.len(), max: EVIDENCE_BYTES_MAX });
    }
    let Some(lines) = bytes.strip_suffix(b"\n") else {
        return Err(TrustError::EvidenceCutShort);
    };
    let lines: Vec<&[u8]> = lines.split(|byte| *byte == b'\n').collect();
    let (hosts, words) = (roster.hosts().len(), roster.must_have_withdrawn().count());
    if lines.len() < hosts || (words == 0 && lines.len() > hosts) {
        return Err(TrustError::AttestationCount { expected: hosts, found: lines.len() });
    }
    let (attestations, withdrawals) = lines.split_at(hosts);
    let attestations = verify_in_order(attestations.iter().copied(), roster)?;
    check_count(words, withdrawals.len())?;
    Ok(Evidence { attestations, withdrawals: verify_words(withdrawals.iter().copied(), roster)? })
}

/// One withdrawal for each host that must give its word.
pub(crate) fn check_count(expected: usize, found: usize) -> Result<(), TrustError> {
    if expected == found {
        return Ok(());
    }
    Err(TrustError::Withdrawal { source: WithdrawalError::Count { expected, found } })
}

/// Verifies that attestation i is that of host i of the roster. The caller has counted them.
pub(crate) fn verify_in_order<'a>(
    attestations: impl Iterator<Item = &'a [u8]>,
    roster: &Verified<Roster>,
) -> Result<Vec<Authentic<Attestation>>, TrustError> {
    let verify_one = |(index, (raw, member)): (usize, (&[u8], &Member))| {
        let candidate = Candidate::read(raw, DocumentName::attestation_of(&member.name))?;
        if candidate.attestation.host != member.name {
            return Err(TrustError::AttestationOrder {
                line: index + 1,
                expected: member.name.clone(),
                found: candidate.attestation.host,
            });
        }
        candidate.accept(member, roster)
    };
    attestations.zip(roster.hosts()).enumerate().map(verify_one).collect()
}

/// An attestation that was parsed in order to learn whose it claims to be. It leaves this module only once the key of
/// that host is known to have signed the very bytes it was parsed from.
struct Candidate {
    attestation: Attestation,
    envelope: Envelope,
}

impl Candidate {
    fn read(raw: &[u8], name: DocumentName) -> Result<Self, TrustError> {
        let envelope = open(raw, ATTESTATION_BYTES_MAX, DocumentKind::Attestation, &name)?;
        let attestation = parse(envelope.payload(), &name)?;
        Ok(Self { attestation, envelope })
    }

    /// Believes the attestation if `member`, whose name it bears, signed it and nobody else did.
    fn accept(self, member: &Member, roster: &Roster) -> Result<Authentic<Attestation>, TrustError> {
        let Self { attestation, envelope } = self;
        let host = || member.name.clone();
        let [signature] = envelope.signatures() else {
            return Err(TrustError::AttestationSignatures {
                host: host(),
                found: envelope.signatures().len(),
            });
        };
        if !is_signed_by(&member.attestation_key, &envelope.message(), &signature.sig) {
            return Err(TrustError::NotTheHostsKey { host: host() });
        }
        check_fleet(DocumentKind::Attestation, roster.fleet(), &attestation.fleet)?;
        Ok(Authentic::new(attestation, vec![member.attestation_key.clone()], &envelope))
    }
}

#[cfg(test)]
mod tests;
