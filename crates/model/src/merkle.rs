//! Merkle trees over short lists, hashed as in RFC 6962, section 2.1.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// A Merkle tree over leaves in the order given. Leaves and nodes are hashed with different prefixes (0 and 1), so
/// that neither passes for the other.
///
/// Kept level by level, where a last node without a sibling moves up as it is: that is the tree of RFC 6962, and every
/// proof is read off without hashing again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MerkleTree {
    levels: Vec<Vec<Digest>>,
}

/// The audit path of one leaf: what is needed to compute the root from the leaf alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MerkleProof {
    /// The leaf's position.
    pub index: u64,
    /// How many leaves the tree has.
    pub size: u64,
    /// Siblings from the leaf upwards.
    pub path: Vec<Digest>,
}

impl MerkleTree {
    /// Builds the tree over `leaves`.
    pub fn new<'a>(leaves: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut levels: Vec<Vec<Digest>> = vec![leaves.into_iter().map(Self::leaf_hash).collect()];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            levels.push(level.chunks(2).map(parent).collect());
        }
        Self { levels }
    }

    /// The hash of a leaf.
    #[must_use]
    pub fn leaf_hash(leaf: &[u8]) -> Digest {
        Digest::of_parts(&[&[0], leaf])
    }

    /// The hash of a node over its two children.
    #[must_use]
    pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
        Digest::of_parts(&[&[1], left.as_bytes(), right.as_bytes()])
    }

    /// The root; of no leaves at all, the hash of the empty string.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or_else(|| Digest::of(b""))
    }

    /// The audit path of leaf `index`, or nothing if there is no such leaf.
    #[must_use]
    pub fn proof(&self, index: usize) -> Option<MerkleProof> {
        let size = self.levels.first().map_or(0, Vec::len);
        if index >= size {
            return None;
        }
        let sibling = |(height, level): (usize, &Vec<Digest>)| level.get((index >> height) ^ 1).copied();
        let path = self.levels.iter().enumerate().filter_map(sibling).collect();
        Some(MerkleProof { index: index as u64, size: size as u64, path })
    }
}

impl MerkleProof {
    /// The longest path that is accepted: trees of up to 2^32 leaves.
    const PATH_LEN_MAX: usize = 32;

    /// Whether `leaf` is at this position of the tree with this `root` (RFC 9162, section 2.1.3.2).
    #[must_use]
    pub fn verify(&self, leaf: &[u8], root: &Digest) -> bool {
        if self.index >= self.size || self.path.len() > Self::PATH_LEN_MAX {
            return false;
        }
        let (mut index, mut last) = (self.index, self.size - 1);
        let mut hash = MerkleTree::leaf_hash(leaf);
        for sibling in &self.path {
            if last == 0 {
                return false;
            }
            if index & 1 == 1 || index == last {
                hash = MerkleTree::node_hash(sibling, &hash);
                while index & 1 == 0 && index != 0 {
                    index >>= 1;
                    last >>= 1;
                }
            } else {
                hash = MerkleTree::node_hash(&hash, sibling);
            }
            index >>= 1;
            last >>= 1;
        }
        last == 0 && hash == *root
    }
}

fn parent(children: &[Digest]) -> Digest {
    match children {
        [left, right] => MerkleTree::node_hash(left, right),
        _ => children[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_match_the_published_vectors() {
        // The test vectors of the Certificate Transparency reference implementations.
        let leaves: Vec<Vec<u8>> = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ]
        .iter()
        .map(|text| hex::decode(text).expect("hex"))
        .collect();
        let root = |n: usize| MerkleTree::new(leaves[..n].iter().map(Vec::as_slice)).root().hex();
        assert_eq!(root(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(root(1), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(root(8), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }

    #[test]
    fn every_leaf_is_proven_and_no_other() {
        for size in 1..=17_usize {
            let leaves: Vec<[u8; 2]> = (0..size).map(|i| [i as u8, 7]).collect();
            let tree = MerkleTree::new(leaves.iter().map(|leaf| &leaf[..]));
            for (index, leaf) in leaves.iter().enumerate() {
                let proof = tree.proof(index).expect("within the tree");
                assert!(proof.verify(leaf, &tree.root()));
                assert!(!proof.verify(&[99, 99], &tree.root()));
                let moved = MerkleProof { index: (proof.index + 1) % size as u64, ..proof.clone() };
                assert!(size == 1 || !moved.verify(leaf, &tree.root()));
                let mut cut = proof.clone();
                if cut.path.pop().is_some() {
                    assert!(!cut.verify(leaf, &tree.root()));
                }
            }
            assert_eq!(tree.proof(size), None);
        }
    }
}
