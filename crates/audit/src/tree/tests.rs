use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// All leaves, from which every node is worked out anew as section 2.1 of RFC 6962 states it.
struct Naive(Vec<Vec<u8>>);

impl Naive {
    fn numbered(size: u64) -> Self {
        Self((0..size).map(|i| i.to_be_bytes().to_vec()).collect())
    }

    /// "The Merkle Tree Hash (MTH)", word for word.
    fn hash(leaves: &[Vec<u8>]) -> Digest {
        match leaves {
            [] => Digest::of(b""),
            [leaf] => Digest::of_parts(&[&[0], leaf]),
            leaves => {
                let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
                Digest::of_parts(&[&[1], Self::hash(left).as_bytes(), Self::hash(right).as_bytes()])
            }
        }
    }

    /// "Merkle Consistency Proofs": `SUBPROOF(m, D[n], b)`, word for word.
    fn subproof(m: usize, leaves: &[Vec<u8>], is_whole: bool) -> Vec<Digest> {
        if m == leaves.len() {
            return if is_whole { Vec::new() } else { vec![Self::hash(leaves)] };
        }
        let k = split(leaves.len() as u64) as usize;
        let (left, right) = leaves.split_at(k);
        if m <= k {
            let mut path = Self::subproof(m, left, is_whole);
            path.push(Self::hash(right));
            path
        } else {
            let mut path = Self::subproof(m - k, right, false);
            path.push(Self::hash(left));
            path
        }
    }

    fn root(&self, size: u64) -> Digest {
        Self::hash(&self.0[..size as usize])
    }
}

impl Nodes for Naive {
    type Error = Infallible;

    fn node(&self, level: u32, index: u64) -> Result<Digest, Infallible> {
        let begin = (index << level) as usize;
        Ok(Self::hash(&self.0[begin..begin + (1 << level)]))
    }
}

fn edge_of(leaves: &[Vec<u8>]) -> Edge {
    let mut edge = Edge::new();
    leaves.iter().for_each(|leaf| edge.append(MerkleTree::leaf_hash(leaf), |_, _, _| {}));
    edge
}

fn digest(hex: &str) -> Digest {
    Digest::from_hex(hex).unwrap()
}

/// The leaves of the test vectors of the Certificate Transparency reference implementations.
fn published() -> Naive {
    let leaves =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    Naive(leaves.iter().map(|text| hex::decode(text).unwrap()).collect())
}

#[test]
fn roots_are_the_published_ones() {
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    for (size, root) in roots.iter().enumerate() {
        assert_eq!(edge_of(&published().0[..size]).root(), digest(root), "{size}");
    }
}

#[test]
fn consistency_proofs_are_the_published_ones() {
    let cases: [(u64, u64, &[&str]); 4] = [
        (1, 1, &[]),
        (
            1,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            6,
            8,
            &[
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (
            2,
            5,
            &[
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    let tree = published();
    for (old, new, expected) in cases {
        let expected: Vec<Digest> = expected.iter().map(|text| digest(text)).collect();
        assert_eq!(consistency_proof(&tree, old, new), Ok(expected.clone()), "{old} {new}");
        let (before, after) = (tree.root(old), tree.root(new));
        assert_eq!(verify_consistency((old, &before), (new, &after), &expected), Ok(()));
    }
}

#[test]
fn every_proof_of_every_small_tree_holds_and_no_other_does() {
    let tree = Naive::numbered(20);
    for new in 0..=20 {
        let root = tree.root(new);
        assert_eq!(edge_of(&tree.0[..new as usize]).root(), root);
        for index in 0..new {
            let proof = inclusion_proof(&tree, index, new).unwrap().unwrap();
            assert_eq!(
                Some(&proof),
                MerkleTree::new(tree.0[..new as usize].iter().map(Vec::as_slice))
                    .proof(index as usize)
                    .as_ref()
            );
            assert!(proof.verify(&tree.0[index as usize], &root));
        }
        assert_eq!(inclusion_proof(&tree, new, new), Ok(None));
        for old in 0..=new {
            let before = tree.root(old);
            let proof = consistency_proof(&tree, old, new).unwrap();
            if old > 0 {
                assert_eq!(
                    proof,
                    Naive::subproof(old as usize, &tree.0[..new as usize], true),
                    "{old} {new}"
                );
            }
            assert_eq!(verify_consistency((old, &before), (new, &root), &proof), Ok(()), "{old} {new}");
            assert_rejects_others(&tree, old, new, &proof);
        }
    }
}

fn assert_rejects_others(tree: &Naive, old: u64, new: u64, proof: &[Digest]) {
    let (before, root, other) = (tree.root(old), tree.root(new), Digest::of(b"another"));
    let follows = |old_root: &Digest, new_root: &Digest, proof: &[Digest]| {
        verify_consistency((old, old_root), (new, new_root), proof).is_ok()
    };
    assert!(!follows(&other, &root, proof), "{old} {new}");
    assert!(old == 0 || !follows(&before, &other, proof), "{old} {new}");
    assert!(!follows(&before, &root, &[proof, &[other]].concat()), "{old} {new}");
    if let Some((_, cut)) = proof.split_last() {
        assert!(!follows(&before, &root, cut), "{old} {new}");
    }
    for index in 0..proof.len() {
        let mut wrong = proof.to_vec();
        wrong[index] = other;
        assert!(!follows(&before, &root, &wrong), "{old} {new} {index}");
    }
    if new > old {
        let shorter = verify_consistency((new, &root), (old, &before), proof);
        assert_eq!(shorter, Err(ConsistencyFault::Shorter { old: new, new: old }));
    }
}

#[test]
fn many_entries_take_twice_as_many_hashes_and_a_digest_for_each_bit() {
    let mut edge = Edge::new();
    let (mut nodes, mut deepest) = (0_u64, 0);
    for number in 0..100_000_u64 {
        let leaf = MerkleTree::leaf_hash(&number.to_be_bytes());
        edge.append(leaf, |level, _, _| {
            nodes += 1;
            deepest = deepest.max(level);
        });
    }
    assert!(nodes < 200_000 && deepest == 16, "{nodes} {deepest}");
    assert_eq!(edge.peaks.len(), 100_000_u64.count_ones() as usize);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_continues_each_of_its_beginnings_and_no_other(
        leaves in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 1..200),
        cut in any::<prop::sample::Index>(),
        changed in any::<prop::sample::Index>(),
    ) {
        let (old, new) = (cut.index(leaves.len()) + 1, leaves.len());
        let tree = Naive(leaves.clone());
        let proof = consistency_proof(&tree, old as u64, new as u64).unwrap();
        let (before, after) = (edge_of(&leaves[..old]).root(), edge_of(&leaves).root());
        prop_assert_eq!(before, tree.root(old as u64));
        prop_assert_eq!(verify_consistency((old as u64, &before), (new as u64, &after), &proof), Ok(()));

        let mut rewritten = leaves;
        rewritten[changed.index(old)].push(7);
        let forged = Naive(rewritten);
        let proof = consistency_proof(&forged, old as u64, new as u64).unwrap();
        let after = forged.root(new as u64);
        let judged = verify_consistency((old as u64, &before), (new as u64, &after), &proof);
        prop_assert!(judged.is_err());
    }
}
