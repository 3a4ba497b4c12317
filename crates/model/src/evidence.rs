//! Closing secrets: how a host learns that all the others have stopped serving.
//!
//! Each attestation commits to a fresh secret; a host reveals it only once it is durably closed. So whoever knows all
//! N secrets knows that N hosts are closed, and a coordinator cannot open one host while another still serves.

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

    /// Whether `secrets`, in the order of the roster, are those that all N hosts committed to.
    #[must_use]
    pub fn is_proven_by(&self, secrets: &Secrets) -> bool {
        let commitments: Vec<Commitment> = secrets.iter().map(|secret| secret.commitment()).collect();
        Self::of_commitments(&commitments) == *self
    }
}

/// The closing secrets of all N hosts in the order of the roster, shared by all the messages that carry them: N messages
/// with N secrets each would not fit into memory.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Secrets(Arc<[u8]>);

impl Secrets {
    /// Reads 32 bytes for each secret, one after the other; nothing if the length is not a multiple.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.len().is_multiple_of(32).then(|| Self(bytes.into()))
    }

    /// The bytes: 32 for each secret.
    #[must_use]
    pub const fn as_bytes(&self) -> &Arc<[u8]> {
        &self.0
    }

    /// The secrets, in the order of the roster.
    pub fn iter(&self) -> impl Iterator<Item = Secret> + '_ {
        self.0.as_chunks::<32>().0.iter().copied().map(Secret::from_bytes)
    }
}

impl FromIterator<Secret> for Secrets {
    fn from_iter<I: IntoIterator<Item = Secret>>(secrets: I) -> Self {
        Self(secrets.into_iter().flat_map(|secret| *secret.as_bytes()).collect())
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len() / 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_secrets_in_roster_order_prove_a_closing() {
        let secrets = [1, 2, 3].map(|byte| Secret::from_bytes([byte; 32]));
        let closing = Closing::of_commitments(&secrets.map(|s| s.commitment()));
        let proven = |secrets: &[Secret]| closing.is_proven_by(&secrets.iter().copied().collect());
        assert!(proven(&secrets));
        assert!(!proven(&secrets[..2]));
        assert!(!proven(&[secrets[1], secrets[0], secrets[2]]));
        assert!(!proven(&[secrets[0], secrets[1], Secret::from_bytes([4; 32])]));
        assert!(!proven(&[]));
        assert_eq!(format!("{:?}", secrets[0]), "Secret(…)");
    }

    #[test]
    fn secrets_are_bytes_one_after_the_other() {
        let secrets: Secrets = [1, 2].map(|byte| Secret::from_bytes([byte; 32])).into_iter().collect();
        assert_eq!(Secrets::from_bytes(secrets.as_bytes()).as_ref(), Some(&secrets));
        assert_eq!(secrets.iter().nth(1), Some(Secret::from_bytes([2; 32])));
        assert_eq!(Secrets::from_bytes(&[0; 33]), None);
        assert_eq!(format!("{secrets:?}"), "Secrets(2)");
    }
}
