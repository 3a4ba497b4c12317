//! Closing secrets: how a host learns that all the others have stopped serving.
//!
//! Each attestation commits to a fresh secret; a host reveals it only once it is durably closed. So whoever knows all
//! N secrets knows that N hosts are closed, and a coordinator cannot open one host while another still serves. Of a host
//! that fell silent only its commitment can be shown: the signed order says of how many hosts a lapsed lease, which rests
//! on the coordinator's clock, may stand for the secret.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::random;
use crate::{Digest, MerkleTree};

const COMMITMENT_DOMAIN: &[u8] = b"muster closing secret v1\0";

random!(
    /// A closing secret: 32 random bytes that a host reveals when it has closed.
    Secret
);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The hash of a closing secret, published in an attestation before the flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Commitment(pub Digest);

impl Secret {
    /// `H(s)`: SHA-256 over a domain label and the secret.
    #[must_use]
    pub fn commitment(&self) -> Commitment {
        Commitment(Digest::of_parts(&[COMMITMENT_DOMAIN, self.as_bytes()]))
    }
}

/// The commitments of all N hosts, in the order of the roster, as one digest: what a host keeps to check an OPEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Closing(Digest);

impl Closing {
    /// Collects the commitments of the attestations, in the order of the roster.
    pub fn of_commitments<'a>(commitments: impl IntoIterator<Item = &'a Commitment>) -> Self {
        Self(MerkleTree::new(commitments.into_iter().map(|c| &c.0.as_bytes()[..])).root())
    }

    /// Whether `secrets`, in the order of the roster, are those that all N hosts committed to, but for at most
    /// `max_lapsed` hosts of which only the commitment is shown.
    #[must_use]
    pub fn is_proven_by(&self, secrets: &Secrets, max_lapsed: u32) -> bool {
        let commitments: Vec<Commitment> = secrets.iter().map(|closure| closure.commitment()).collect();
        secrets.lapsed() <= max_lapsed as usize && Self::of_commitments(&commitments) == *self
    }
}

/// Why a host counts as closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closure {
    /// It said so itself: this is its closing secret.
    Revealed(Secret),
    /// It was silent for so long that its lease has lapsed: this is what it had committed to.
    Lapsed(Commitment),
}

impl Closure {
    /// What the host committed to.
    #[must_use]
    pub fn commitment(&self) -> Commitment {
        match self {
            Self::Revealed(secret) => secret.commitment(),
            Self::Lapsed(commitment) => *commitment,
        }
    }

    /// The secret, if it was revealed.
    #[must_use]
    pub const fn secret(&self) -> Option<Secret> {
        match self {
            Self::Revealed(secret) => Some(*secret),
            Self::Lapsed(_) => None,
        }
    }
}

/// Why all N hosts count as closed, in the order of the roster, shared by all the messages that carry it: N messages
/// with N secrets each would not fit into memory.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Secrets(Arc<[u8]>);

/// A byte that says what follows, and 32 bytes.
const CLOSURE_BYTES: usize = 33;
const REVEALED: u8 = 1;
const LAPSED: u8 = 0;

impl Secrets {
    /// Reads 33 bytes for each host, one after the other: 1 and its secret, or 0 and its commitment. Nothing if it is
    /// anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (closures, rest) = bytes.as_chunks::<CLOSURE_BYTES>();
        let is_known = closures.iter().all(|closure| matches!(closure[0], REVEALED | LAPSED));
        (rest.is_empty() && is_known).then(|| Self(bytes.into()))
    }

    /// The bytes, as [`Self::from_bytes`] reads them.
    #[must_use]
    pub const fn as_bytes(&self) -> &Arc<[u8]> {
        &self.0
    }

    /// What is known of each host, in the order of the roster.
    pub fn iter(&self) -> impl Iterator<Item = Closure> + '_ {
        self.0.as_chunks::<CLOSURE_BYTES>().0.iter().map(|[kind, bytes @ ..]| match *kind {
            REVEALED => Closure::Revealed(Secret::from_bytes(*bytes)),
            _ => Closure::Lapsed(Commitment(Digest::from_bytes(*bytes))),
        })
    }

    /// How many hosts count as closed only because their lease has lapsed.
    #[must_use]
    pub fn lapsed(&self) -> usize {
        self.0.as_chunks::<CLOSURE_BYTES>().0.iter().filter(|closure| closure[0] == LAPSED).count()
    }
}

impl FromIterator<Closure> for Secrets {
    fn from_iter<I: IntoIterator<Item = Closure>>(closures: I) -> Self {
        let mut bytes = Vec::new();
        for closure in closures {
            let (kind, value) = match closure {
                Closure::Revealed(secret) => (REVEALED, *secret.as_bytes()),
                Closure::Lapsed(commitment) => (LAPSED, *commitment.0.as_bytes()),
            };
            bytes.push(kind);
            bytes.extend_from_slice(&value);
        }
        Self(bytes.into())
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({}, {} lapsed)", self.0.len() / CLOSURE_BYTES, self.lapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> [Secret; 3] {
        [1, 2, 3].map(|byte| Secret::from_bytes([byte; 32]))
    }

    #[test]
    fn only_all_secrets_in_roster_order_prove_a_closing() {
        let secrets = secrets();
        let closing = Closing::of_commitments(&secrets.map(|s| s.commitment()));
        let proven = |secrets: &[Secret]| {
            closing.is_proven_by(&secrets.iter().copied().map(Closure::Revealed).collect(), 3)
        };
        assert!(proven(&secrets));
        assert!(!proven(&secrets[..2]));
        assert!(!proven(&[secrets[1], secrets[0], secrets[2]]));
        assert!(!proven(&[secrets[0], secrets[1], Secret::from_bytes([4; 32])]));
        assert!(!proven(&[]));
        assert_eq!(format!("{:?}", secrets[0]), "Secret(…)");
    }

    #[test]
    fn a_commitment_stands_for_a_secret_only_as_often_as_is_allowed() {
        let secrets = secrets();
        let closing = Closing::of_commitments(&secrets.map(|s| s.commitment()));
        let lapsed = |positions: &[usize]| -> Secrets {
            let closure = |(at, secret): (usize, &Secret)| match positions.contains(&at) {
                true => Closure::Lapsed(secret.commitment()),
                false => Closure::Revealed(*secret),
            };
            secrets.iter().enumerate().map(closure).collect()
        };
        assert!(closing.is_proven_by(&lapsed(&[]), 0));
        assert!(!closing.is_proven_by(&lapsed(&[1]), 0));
        assert!(closing.is_proven_by(&lapsed(&[1]), 1));
        assert!(!closing.is_proven_by(&lapsed(&[0, 1]), 1));
        let wrong = Closure::Lapsed(Commitment(Digest::of(b"another")));
        let closures = [Closure::Revealed(secrets[0]), wrong, Closure::Revealed(secrets[2])];
        assert!(!closing.is_proven_by(&closures.into_iter().collect(), 3));
    }

    #[test]
    fn a_secret_is_written_in_one_way() {
        let text = String::from(Secret::from_bytes([0xab; 32]));
        assert_eq!(Secret::try_from(text.clone()), Ok(Secret::from_bytes([0xab; 32])));
        assert!(Secret::try_from(text.to_uppercase()).is_err());
        assert!(Secret::try_from(text.replacen('a', "A", 1)).is_err());
        assert!(Secret::try_from(text[2..].to_owned()).is_err());
    }

    #[test]
    fn closures_are_bytes_one_after_the_other() {
        let [first, second, _] = secrets();
        let closures = [Closure::Revealed(first), Closure::Lapsed(second.commitment())];
        let secrets: Secrets = closures.into_iter().collect();
        assert_eq!(Secrets::from_bytes(secrets.as_bytes()).as_ref(), Some(&secrets));
        assert_eq!(secrets.iter().collect::<Vec<_>>(), closures);
        assert_eq!(Secrets::from_bytes(&[0; 34]), None);
        assert_eq!(Secrets::from_bytes(&[2; 33]), None);
        assert_eq!(format!("{secrets:?}"), "Secrets(2, 1 lapsed)");
    }
}
