//! What a witness believes: a log may only ever grow.
//!
//! A host remembers the last checkpoint that it was shown, and asks at its next join for proof that the log goes on from
//! there. A coordinator that was restored begins a new log, in a new life of its database; the log before is then closed.

use muster_model::{Digest, Incarnation, PublicKey};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointError, SignedCheckpoint, incarnation_of};
use crate::tree::{ConsistencyFault, verify_consistency};

/// The longest consistency proof that is read: trees have at most 2^63 leaves.
pub const PROOF_LEN_MAX: usize = 64;

/// What a witness keeps of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// The life of the coordinator's database.
    pub incarnation: Incarnation,
    /// How many entries the log had.
    pub size: u64,
    /// The root over them.
    pub root: Digest,
    /// The key that signs the log's checkpoints.
    pub key: PublicKey,
}

/// What a coordinator shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its newest checkpoint.
    pub checkpoint: Vec<u8>,
    /// The key that signed it. A witness that was given the key beforehand accepts no other.
    pub key: PublicKey,
    /// That the checkpoint's tree continues the one that is remembered.
    pub proof: Vec<Digest>,
}

/// Why a witness does not believe a log.
#[derive(Debug, thiserror::Error)]
pub enum WitnessFault {
    /// Nothing was shown to a witness that remembers a log.
    #[error("the coordinator shows no audit log; this host remembers {size} entries")]
    Withheld {
        /// How many are remembered.
        size: u64,
    },
    /// Nothing was shown to a witness that was given the log's key.
    #[error("the coordinator shows no audit log; this host was given the key of one")]
    NeverShown,
    /// Another key than the one that is known.
    #[error("the audit log is that of the key {found}, and this host knows {expected}")]
    Key {
        /// The key that is known.
        expected: PublicKey,
        /// The key that was shown.
        found: PublicKey,
    },
    /// The checkpoint is not believed.
    #[error("the checkpoint of the audit log is not believed")]
    Checkpoint(#[source] CheckpointError),
    /// The log of another life than the coordinator claims to live.
    #[error("the audit log is `{origin}`, and the coordinator claims the incarnation {claimed}")]
    Foreign {
        /// Which log was shown.
        origin: String,
        /// What the coordinator claims.
        claimed: Incarnation,
    },
    /// The log of an earlier life.
    #[error("the audit log is that of incarnation {found}, and this host has seen {remembered}")]
    Earlier {
        /// What is remembered.
        remembered: Incarnation,
        /// What was shown.
        found: Incarnation,
    },
    /// It was cut or rewritten.
    #[error("the audit log does not continue the one that this host has seen")]
    Rewritten(#[source] ConsistencyFault),
}

/// Whether to believe what a coordinator of this `incarnation` shows; what is then to be remembered.
///
/// `pinned` is the log's key, for a witness that was given it; one that was not keeps to the first that it sees.
pub fn judge(
    remembered: Option<&Remembered>,
    pinned: Option<&PublicKey>,
    incarnation: Incarnation,
    offer: Option<&Offer>,
) -> Result<Option<Remembered>, WitnessFault> {
    let Some(offer) = offer else {
        return match (remembered, pinned) {
            (Some(remembered), _) => Err(WitnessFault::Withheld { size: remembered.size }),
            (None, Some(_)) => Err(WitnessFault::NeverShown),
            // A coordinator from before there were logs.
            (None, None) => Ok(None),
        };
    };
    let key = pinned.or(remembered.map(|it| &it.key)).unwrap_or(&offer.key);
    if offer.key != *key {
        return Err(WitnessFault::Key { expected: key.clone(), found: offer.key.clone() });
    }
    let signed = SignedCheckpoint::open(&offer.checkpoint, key).map_err(WitnessFault::Checkpoint)?;
    let shown = signed.checkpoint();
    if incarnation_of(&shown.origin) != Some(incarnation) {
        return Err(WitnessFault::Foreign { origin: shown.origin.clone(), claimed: incarnation });
    }
    match remembered {
        Some(before) if incarnation < before.incarnation => {
            return Err(WitnessFault::Earlier { remembered: before.incarnation, found: incarnation });
        }
        Some(before) if incarnation == before.incarnation => {
            let (old, new) = ((before.size, &before.root), (shown.size, &shown.root));
            verify_consistency(old, new, &offer.proof).map_err(WitnessFault::Rewritten)?;
        }
        Some(_) | None => {}
    }
    Ok(Some(Remembered { incarnation, size: shown.size, root: shown.root, key: key.clone() }))
}

#[cfg(test)]
mod tests {
    use muster_model::MerkleTree;
    use muster_trust::{KeyAlgorithm, SigningKey};

    use super::*;
    use crate::checkpoint::{Checkpoint, origin};
    use crate::tree::Edge;

    struct Log {
        key: SigningKey,
        entries: Vec<&'static str>,
        incarnation: u64,
    }

    impl Log {
        fn of(entries: &[&'static str]) -> Self {
            let key = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
            Self { key, entries: entries.to_vec(), incarnation: 1 }
        }

        fn offer(&self, proof: &[Digest]) -> Offer {
            let mut edge = Edge::new();
            self.entries
                .iter()
                .for_each(|it| edge.append(MerkleTree::leaf_hash(it.as_bytes()), |_, _, _| {}));
            let origin = origin("muster.local", Incarnation(self.incarnation));
            let checkpoint = Checkpoint { origin, size: edge.size(), root: edge.root() };
            let checkpoint = SignedCheckpoint::sign(checkpoint, &self.key).unwrap().to_bytes();
            Offer { checkpoint, key: self.key.public().clone(), proof: proof.to_vec() }
        }

        fn judged(&self, before: Option<&Remembered>, proof: &[Digest]) -> Result<Remembered, WitnessFault> {
            let offer = self.offer(proof);
            judge(before, None, Incarnation(self.incarnation), Some(&offer)).map(Option::unwrap)
        }
    }

    #[test]
    fn a_log_that_grows_is_believed_and_one_that_was_changed_is_not() {
        let mut log = Log::of(&["a"]);
        let first = log.judged(None, &[]).unwrap();
        assert_eq!((first.size, first.incarnation), (1, Incarnation(1)));
        log.entries.push("b");
        let proof = [MerkleTree::leaf_hash(b"b")];
        let second = log.judged(Some(&first), &proof).unwrap();
        assert_eq!(second.size, 2);
        assert!(log.judged(Some(&second), &[]).is_ok(), "nothing new");
        assert!(matches!(log.judged(Some(&first), &[]), Err(WitnessFault::Rewritten(_))), "no proof");

        log.entries = vec!["a"];
        let cut = log.judged(Some(&second), &[]);
        let shorter = ConsistencyFault::Shorter { old: 2, new: 1 };
        assert!(matches!(cut, Err(WitnessFault::Rewritten(fault)) if fault == shorter));
        log.entries = vec!["b", "a"];
        assert!(matches!(log.judged(Some(&second), &[]), Err(WitnessFault::Rewritten(_))), "reordered");
        log.entries = vec!["x", "b"];
        assert!(matches!(log.judged(Some(&first), &proof), Err(WitnessFault::Rewritten(_))), "rewritten");
    }

    #[test]
    fn a_new_life_begins_a_new_log_and_an_earlier_one_is_refused() {
        let mut log = Log::of(&["a", "b"]);
        let seen = log.judged(None, &[]).unwrap();
        (log.incarnation, log.entries) = (2, vec!["began"]);
        let anew = log.judged(Some(&seen), &[]).unwrap();
        assert_eq!((anew.incarnation, anew.size), (Incarnation(2), 1));
        (log.incarnation, log.entries) = (1, vec!["a", "b"]);
        assert!(matches!(log.judged(Some(&anew), &[]), Err(WitnessFault::Earlier { .. })));
        let claimed = judge(Some(&seen), None, Incarnation(2), Some(&log.offer(&[])));
        assert!(matches!(claimed, Err(WitnessFault::Foreign { .. })));
    }

    #[test]
    fn nobody_else_can_speak_for_the_log_and_nobody_can_withhold_it() {
        let (log, other) = (Log::of(&["a"]), Log::of(&["a"]));
        let seen = log.judged(None, &[]).unwrap();
        assert!(matches!(other.judged(Some(&seen), &[]), Err(WitnessFault::Key { .. })));
        let pinned = judge(None, Some(log.key.public()), Incarnation(1), Some(&other.offer(&[])));
        assert!(matches!(pinned, Err(WitnessFault::Key { .. })));
        let forged = Offer { key: log.key.public().clone(), ..other.offer(&[]) };
        let forged = judge(Some(&seen), None, Incarnation(1), Some(&forged));
        assert!(matches!(forged, Err(WitnessFault::Checkpoint(_))));
        assert!(matches!(
            judge(Some(&seen), None, Incarnation(1), None),
            Err(WitnessFault::Withheld { size: 1 })
        ));
        let silent = |pinned| judge(None, pinned, Incarnation(1), None);
        assert!(matches!(silent(None), Ok(None)), "a coordinator from before there were logs");
        assert!(matches!(silent(Some(log.key.public())), Err(WitnessFault::NeverShown)));
    }
}
