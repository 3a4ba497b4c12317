use muster_model::{Incarnation, UnixTime};
use muster_trust::{KeyAlgorithm, SigningKey};

use super::*;
use crate::checkpoint::origin;
use crate::entry::Kind;

fn entries(count: u64) -> Vec<Vec<u8>> {
    let entry = |place| Entry::new(Kind::Phase, "ann", UnixTime(place)).at_place(place);
    (0..count).map(|place| entry(place).to_bytes()).collect()
}

fn signed(entries: &[Vec<u8>], key: &SigningKey) -> SignedCheckpoint {
    let mut edge = Edge::new();
    entries.iter().for_each(|entry| edge.append(MerkleTree::leaf_hash(entry), |_, _, _| {}));
    let origin = origin("muster.local", Incarnation(1));
    SignedCheckpoint::sign(Checkpoint { origin, size: edge.size(), root: edge.root() }, key).unwrap()
}

fn export(entries: &[Vec<u8>], checkpoint: &SignedCheckpoint, key: &SigningKey) -> Vec<u8> {
    let lines = entries.iter().map(|entry| export_line(entry));
    [export_header(key.public(), checkpoint).into_bytes()].into_iter().chain(lines).flatten().collect()
}

fn verify(bytes: &[u8], key: &PublicKey) -> Result<VerifiedLog, ExportFault> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut lines = text.split(|byte| *byte == b'\n');
    let mut verifier = ExportVerifier::begin(lines.next().unwrap_or_default(), key)?;
    for line in lines {
        verifier.line(line)?;
    }
    verifier.finish()
}

fn key() -> SigningKey {
    SigningKey::generate(KeyAlgorithm::Ed25519).unwrap()
}

#[test]
fn one_flipped_bit_anywhere_is_named() {
    let (key, all) = (key(), entries(5));
    let bytes = export(&all, &signed(&all, &key), &key);
    assert_eq!(verify(&bytes, key.public()).unwrap().checkpoint.size, 5);
    let header = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    for position in 0..bytes.len() - 1 {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1;
        let fault = verify(&flipped, key.public()).expect_err(&format!("byte {position}")).to_string();
        if position < header {
            assert!(fault.starts_with("header") || fault.starts_with("signature"), "{position}: {fault}");
        } else if position > header {
            // A newline that is flipped joins its line with the next one.
            let entry = bytes[header + 1..position].iter().filter(|byte| **byte == b'\n').count();
            assert!(fault.starts_with(&format!("entry {entry}:")), "{position}: {fault}");
        }
    }
}

#[test]
fn a_log_that_was_cut_extended_reordered_or_rewritten_is_named() {
    let (key, all) = (key(), entries(5));
    let checkpoint = signed(&all, &key);
    let fault = |entries: &[Vec<u8>]| verify(&export(entries, &checkpoint, &key), key.public()).unwrap_err();
    assert!(matches!(fault(&all[..4]), ExportFault::Ends { expected: 5, found: 4 }));
    assert!(matches!(fault(&entries(6)), ExportFault::Uncovered { expected: 5 }));
    let mut reordered = all.clone();
    reordered.swap(1, 2);
    let place = EntryError::Place { found: 2 };
    assert!(matches!(fault(&reordered), ExportFault::Entry { entry: 1, source } if source == place));
    let mut rewritten = all.clone();
    rewritten[2] = Entry::new(Kind::Halt, "eve", UnixTime(2)).at_place(2).to_bytes();
    assert!(matches!(fault(&rewritten), ExportFault::Root { .. }));

    let other = self::key();
    let bytes = export(&all, &checkpoint, &key);
    assert!(matches!(verify(&bytes, other.public()), Err(ExportFault::Key { .. })));
    let forged = export(&rewritten, &signed(&rewritten, &other), &key);
    assert!(matches!(verify(&forged, key.public()), Err(ExportFault::Checkpoint(_))));
}
