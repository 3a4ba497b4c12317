use std::collections::BTreeMap;

use muster_model::{Incarnation, RoleKeys, Root, SigningRole, UnixTime};
use muster_trust::{KeyAlgorithm, SigningKey, TrustRoot};

use super::*;
use crate::checkpoint::origin;
use crate::entry::Kind;
use crate::roots::follow_roots;

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

/// A root by which `key` signs everything.
fn root(version: u64, key: &SigningKey) -> TrustRoot {
    let keys = || RoleKeys { threshold: 1, keys: vec![key.public().clone()] };
    let roles = [SigningRole::Root, SigningRole::Release, SigningRole::Operator].map(|role| (role, keys()));
    let document = Root::new(version, UnixTime(u64::MAX), BTreeMap::from(roles)).unwrap();
    TrustRoot::pin(muster_trust::sign(&document, &[key]).unwrap().raw()).unwrap()
}

fn export(entries: &[Vec<u8>], checkpoint: &SignedCheckpoint, key: &SigningKey) -> Vec<u8> {
    export_with(&[], entries, checkpoint, key)
}

fn export_with(
    roots: &[TrustRoot],
    entries: &[Vec<u8>],
    checkpoint: &SignedCheckpoint,
    key: &SigningKey,
) -> Vec<u8> {
    let header = export_header(key.public(), checkpoint, roots.len()).into_bytes();
    let roots = roots.iter().map(|root| export_root_line(root.authentic().raw()));
    let entries = entries.iter().map(|entry| export_line(entry));
    std::iter::once(header).chain(roots).chain(entries).flatten().collect()
}

fn verify(bytes: &[u8], key: &PublicKey) -> Result<VerifiedLog, ExportFault> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut lines = text.split(|byte| *byte == b'\n');
    let mut verifier = ExportVerifier::begin(lines.next().unwrap_or_default(), key)?;
    for place in 1..=verifier.roots() {
        ExportVerifier::root(place, lines.next().unwrap_or_default())?;
    }
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
    let roots = [root(1, &key), root(2, &key)];
    let bytes = export_with(&roots, &all, &signed(&all, &key), &key);
    assert_eq!(verify(&bytes, key.public()).unwrap().checkpoint.size, 5);
    let ends: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
    let (header, last_root) = (ends[0], ends[roots.len()]);
    for position in 0..bytes.len() - 1 {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1;
        let fault = verify(&flipped, key.public()).expect_err(&format!("byte {position}")).to_string();
        if position < header {
            // A flipped number of root documents takes an entry for one of them, or the reverse.
            let named = ["header", "signature", "root document 3", "entry 0"];
            assert!(named.iter().any(|name| fault.starts_with(name)), "{position}: {fault}");
        } else if position > header && position <= last_root {
            assert!(fault.starts_with("root document"), "{position}: {fault}");
        } else if position > last_root {
            // A newline that is flipped joins its line with the next one.
            let entry = bytes[last_root + 1..position].iter().filter(|byte| **byte == b'\n').count();
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

#[test]
fn roots_of_an_export_are_trusted_as_far_as_they_follow_from_a_trusted_one() {
    let (key, other) = (self::key(), self::key());
    let roots: Vec<TrustRoot> = (1..=4).map(|version| root(version, &key)).collect();
    let raw = |root: &TrustRoot| root.authentic().raw().to_vec();
    let offered: Vec<Vec<u8>> = roots.iter().map(raw).collect();
    let versions = |trusted: &[&TrustRoot], offered: &[Vec<u8>]| {
        let known = follow_roots(trusted.iter().map(|root| (*root).clone()), offered);
        known.map(|known| known.iter().map(|root| root.root().version).collect::<Vec<_>>())
    };
    assert_eq!(versions(&[&roots[0]], &offered).unwrap(), [1, 2, 3, 4]);
    assert_eq!(versions(&[&roots[2]], &offered).unwrap(), [3, 4], "nobody vouches for what came before");
    assert_eq!(versions(&[], &offered).unwrap(), [0; 0]);
    let gap = [offered[0].clone(), offered[2].clone()];
    assert_eq!(versions(&[&roots[0]], &gap).unwrap(), [1]);

    let fault = |offered: &[Vec<u8>]| versions(&[&roots[0]], offered).unwrap_err().to_string();
    let foreign = root(2, &other);
    assert!(fault(&[offered[0].clone(), raw(&foreign)]).starts_with("root document 2"));
    assert!(fault(&[raw(&root(1, &other))]).starts_with("root document 1"));
    assert!(fault(&[b"{}".to_vec()]).starts_with("root document 1"));
}

#[test]
fn an_export_from_before_there_were_roots_in_it_is_still_read() {
    let (key, all) = (key(), entries(2));
    let bytes = export(&all, &signed(&all, &key), &key);
    let text = String::from_utf8(bytes).unwrap();
    let before = text.replacen("export/2", "export/1", 1).replacen(",\"roots\":0", "", 1);
    assert_ne!(before, text);
    assert_eq!(verify(before.as_bytes(), key.public()).unwrap().checkpoint.size, 2);
    let both = text.replacen("export/2", "export/1", 1).replacen("\"roots\":0", "\"roots\":1", 1);
    assert!(matches!(verify(both.as_bytes(), key.public()), Err(ExportFault::Header { .. })));
}
