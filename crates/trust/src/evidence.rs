//! Attestations: one host's, and those of all N hosts as one document.
//!
//! Evidence is N envelopes, one on each line, in the order of the roster. It is not signed as a whole, since every line
//! is signed by the host that it is about.

use muster_model::{Attestation, DocumentKind, Member, Roster, Verified};

use crate::authentic::{open, parse};
use crate::dsse::Envelope;
use crate::keys::is_signed_by;
use crate::root::check_fleet;
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

/// Puts attestation envelopes, given in the order of the roster, together as evidence. Each must have passed
/// [`verify_attestation`].
pub fn assemble_evidence<B: AsRef<[u8]>>(attestations: &[B]) -> Vec<u8> {
    let len = attestations.iter().map(|line| line.as_ref().len() + 1).sum();
    let mut evidence = Vec::with_capacity(len);
    for attestation in attestations {
        evidence.extend_from_slice(attestation.as_ref());
        evidence.push(b'\n');
    }
    evidence
}

/// Verifies evidence: exactly N lines, and line i is the attestation of host i of the roster.
///
/// What the attestations say is not compared; that is for the gate and for every host.
pub fn verify_evidence(
    bytes: &[u8],
    roster: &Verified<Roster>,
) -> Result<Vec<Authentic<Attestation>>, TrustError> {
    if bytes.len() > EVIDENCE_BYTES_MAX {
        return Err(TrustError::EvidenceTooLarge { len: bytes.len(), max: EVIDENCE_BYTES_MAX });
    }
    let Some(lines) = bytes.strip_suffix(b"\n") else {
        return Err(TrustError::EvidenceCutShort);
    };
    let found = lines.split(|byte| *byte == b'\n').count();
    let expected = roster.hosts().len();
    if found != expected {
        return Err(TrustError::AttestationCount { expected, found });
    }
    verify_in_order(lines.split(|byte| *byte == b'\n'), roster)
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
