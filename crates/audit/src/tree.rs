//! The tree of RFC 6962, section 2.1: appended to at its right edge, proven from the nodes that somebody keeps.

use muster_model::{Digest, MerkleProof, MerkleTree};

/// The right edge of a tree: the roots of the complete subtrees that it is made of, the largest first. It is all that an
/// append needs, and has one digest for each bit that is set in the size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edge {
    size: u64,
    peaks: Vec<Digest>,
}

/// Where the nodes of a tree are kept.
pub trait Nodes {
    /// Why a node cannot be had.
    type Error;

    /// The root of the complete subtree over the leaves `index * 2^level .. (index + 1) * 2^level`. Only such are asked for
    /// that lie within the tree.
    fn node(&self, level: u32, index: u64) -> Result<Digest, Self::Error>;
}

/// Why one tree does not continue another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsistencyFault {
    /// Entries are missing.
    #[error("it has {new} entries and had {old}")]
    Shorter {
        /// How many there were.
        old: u64,
        /// How many there are.
        new: u64,
    },
    /// The proof has another length than such a proof has.
    #[error("the proof has {found} digests, which no proof from {old} to {new} entries has")]
    Length {
        /// How many entries there were.
        old: u64,
        /// How many there are.
        new: u64,
        /// How many digests the proof has.
        found: usize,
    },
    /// What the proof leads to is not what was seen before.
    #[error("its first {old} entries are not those that were there before")]
    Old {
        /// How many entries were there before.
        old: u64,
    },
    /// What the proof leads to is not the root that is claimed.
    #[error("the proof does not lead to the root of its {new} entries")]
    New {
        /// How many entries there are.
        new: u64,
    },
}

impl Edge {
    /// The edge of a tree without leaves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many leaves the tree has.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf by its hash, and tells each node that this completes, the leaf first: its level, its index and its hash.
    pub fn append(&mut self, leaf: Digest, mut completed: impl FnMut(u32, u64, Digest)) {
        let mut hash = leaf;
        let mut level = 0;
        completed(level, self.size, hash);
        while (self.size >> level) & 1 == 1 {
            let left = self.peaks.pop().expect("there is a peak for each bit that is set in the size");
            hash = MerkleTree::node_hash(&left, &hash);
            level += 1;
            completed(level, self.size >> level, hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The root; of no leaves at all, the hash of the empty string.
    #[must_use]
    pub fn root(&self) -> Digest {
        let mut peaks = self.peaks.iter().rev().copied();
        let Some(last) = peaks.next() else { return Digest::of(b"") };
        peaks.fold(last, |right, left| MerkleTree::node_hash(&left, &right))
    }
}

/// `PATH(m, D[n])`: that leaf `index` is in the tree of `size` leaves; nothing if it is not.
pub fn inclusion_proof<N: Nodes>(nodes: &N, index: u64, size: u64) -> Result<Option<MerkleProof>, N::Error> {
    if index >= size {
        return Ok(None);
    }
    let (mut begin, mut end) = (0, size);
    let mut path = Vec::new();
    while end - begin > 1 {
        let middle = begin + split(end - begin);
        if index < middle {
            path.push(root_of(nodes, middle, end)?);
            end = middle;
        } else {
            path.push(root_of(nodes, begin, middle)?);
            begin = middle;
        }
    }
    path.reverse();
    Ok(Some(MerkleProof { index, size, path }))
}

/// `PROOF(m, D[n])`: that the tree of `new` leaves continues that of its first `old`. It is empty where nothing is to be
/// proven: from no leaves on, and from a tree to itself.
pub fn consistency_proof<N: Nodes>(nodes: &N, old: u64, new: u64) -> Result<Vec<Digest>, N::Error> {
    let mut path = Vec::new();
    if old == 0 || old >= new {
        return Ok(path);
    }
    let (mut begin, mut end) = (0, new);
    // Whether the subtree that is looked at is the old tree itself, whose root the verifier knows.
    let mut is_whole = true;
    while end != old {
        let middle = begin + split(end - begin);
        if old <= middle {
            path.push(root_of(nodes, middle, end)?);
            end = middle;
        } else {
            path.push(root_of(nodes, begin, middle)?);
            begin = middle;
            is_whole = false;
        }
    }
    if !is_whole {
        path.push(root_of(nodes, begin, end)?);
    }
    path.reverse();
    Ok(path)
}

/// Whether the tree with `new` leaves and `new_root` continues the one with `old` leaves and `old_root` (RFC 9162, section
/// 2.1.4.2).
pub fn verify_consistency(
    (old, old_root): (u64, &Digest),
    (new, new_root): (u64, &Digest),
    proof: &[Digest],
) -> Result<(), ConsistencyFault> {
    let wrong_length = ConsistencyFault::Length { old, new, found: proof.len() };
    if old > new {
        return Err(ConsistencyFault::Shorter { old, new });
    }
    if old == 0 || old == new {
        let before = if old == 0 { Digest::of(b"") } else { *new_root };
        return match proof {
            [] if *old_root == before => Ok(()),
            [] => Err(ConsistencyFault::Old { old }),
            _ => Err(wrong_length),
        };
    }
    // "If first is an exact power of 2, then prepend first_hash to the consistency_path array."
    let known = old.is_power_of_two().then_some(old_root);
    let mut path = known.into_iter().chain(proof);
    let Some(start) = path.next() else { return Err(wrong_length) };
    let (mut first, mut second) = (old - 1, new - 1);
    while first & 1 == 1 {
        first >>= 1;
        second >>= 1;
    }
    let (mut of_old, mut of_new) = (*start, *start);
    for sibling in path {
        if second == 0 {
            return Err(wrong_length);
        }
        if first & 1 == 1 || first == second {
            of_old = MerkleTree::node_hash(sibling, &of_old);
            of_new = MerkleTree::node_hash(sibling, &of_new);
            while first & 1 == 0 && first != 0 {
                first >>= 1;
                second >>= 1;
            }
        } else {
            of_new = MerkleTree::node_hash(&of_new, sibling);
        }
        first >>= 1;
        second >>= 1;
    }
    if second != 0 {
        return Err(wrong_length);
    }
    if of_old != *old_root {
        return Err(ConsistencyFault::Old { old });
    }
    if of_new != *new_root {
        return Err(ConsistencyFault::New { new });
    }
    Ok(())
}

/// `MTH(D[begin:end])`, where `begin` is where a subtree of that many leaves can begin.
fn root_of<N: Nodes>(nodes: &N, begin: u64, end: u64) -> Result<Digest, N::Error> {
    let mut parts = Vec::new();
    let mut at = begin;
    while at < end {
        // The largest complete subtree that fits into what is left; it is aligned, as larger ones came before it.
        let level = (end - at).ilog2();
        parts.push(nodes.node(level, at >> level)?);
        at += 1 << level;
    }
    let last = parts.pop().expect("a subtree has leaves");
    Ok(parts.into_iter().rev().fold(last, |right, left| MerkleTree::node_hash(&left, &right)))
}

/// The largest power of two smaller than `n`, which is at least 2.
const fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

#[cfg(test)]
mod tests;
