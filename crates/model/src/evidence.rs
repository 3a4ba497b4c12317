//! Closing secrets: how a host learns that all the others have stopped serving.
//!
//! Each attestation commits to a fresh secret; a host reveals it only once it is durably closed. So whoever knows all
//! N secrets knows that N hosts are closed, and a coordinator cannot open one host while another still serves.

use std::fmt;

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
    pub fn is_proven_by(&self, secrets: &[Secret]) -> bool {
        let commitments: Vec<Commitment> = secrets.iter().map(Secret::commitment).collect();
        Self::of_commitments(&commitments) == *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_secrets_in_roster_order_prove_a_closing() {
        let secrets = [1, 2, 3].map(|byte| Secret::from_bytes([byte; 32]));
        let closing = Closing::of_commitments(&secrets.map(|s| s.commitment()));
        assert!(closing.is_proven_by(&secrets));
        assert!(!closing.is_proven_by(&secrets[..2]));
        assert!(!closing.is_proven_by(&[secrets[1], secrets[0], secrets[2]]));
        assert!(!closing.is_proven_by(&[secrets[0], secrets[1], Secret::from_bytes([4; 32])]));
        assert!(!closing.is_proven_by(&[]));
        assert_eq!(format!("{:?}", secrets[0]), "Secret(…)");
    }
}
