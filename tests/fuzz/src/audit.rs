//! The audit log: entries, checkpoints and exports. A first byte says which of them the others are.

use muster_audit::{
    Checkpoint, ENTRY_BYTES_MAX, Entry, ExportVerifier, SignedCheckpoint, SignedNote, follow_roots,
};

use crate::Verdict;
use crate::fixture::{KEY_PUBLIC, ROOT};

pub(crate) const ENTRY: u8 = b'e';
pub(crate) const CHECKPOINT: u8 = b'c';
pub(crate) const EXPORT: u8 = b'x';

pub(crate) fn run(bytes: &[u8]) -> Verdict {
    match bytes.split_first() {
        Some((&ENTRY, bytes)) => entry(bytes),
        Some((&CHECKPOINT, bytes)) => checkpoint(bytes),
        Some((&EXPORT, bytes)) => export(bytes),
        Some(_) | None => Verdict::Refused,
    }
}

fn entry(bytes: &[u8]) -> Verdict {
    let Ok(entry) = Entry::parse(bytes, 0) else { return Verdict::Refused };
    assert!(bytes.len() <= ENTRY_BYTES_MAX && !bytes.contains(&b'\n'));
    let written = entry.to_bytes();
    assert!(!written.contains(&b'\n'), "an entry is one line");
    assert_eq!(Entry::parse(&written, 0), Ok(entry));
    assert!(Entry::parse(bytes, 1).is_err(), "it has one place");
    Verdict::Taken
}

fn checkpoint(bytes: &[u8]) -> Verdict {
    let Ok(note) = SignedNote::parse(bytes) else {
        assert!(SignedCheckpoint::open(bytes, &KEY_PUBLIC).is_err());
        return Verdict::Refused;
    };
    assert_eq!(note.to_string().as_bytes(), bytes, "a note has one form");
    if let Ok(checkpoint) = Checkpoint::parse(note.text()) {
        assert_eq!(checkpoint.text(), note.text(), "and so has a checkpoint");
    }
    if let Ok(signed) = SignedCheckpoint::open(bytes, &KEY_PUBLIC) {
        assert_eq!(signed.to_bytes(), bytes);
        assert_eq!(*signed.checkpoint(), crate::fixture::checkpoint(), "the key has signed no other");
    }
    Verdict::Taken
}

fn export(bytes: &[u8]) -> Verdict {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let header = lines.next().unwrap_or_default();
    let Ok(mut verifier) = ExportVerifier::begin(header, &KEY_PUBLIC) else { return Verdict::Refused };
    let mut roots = Vec::new();
    for place in 1..=verifier.roots() {
        match ExportVerifier::root(place, lines.next().unwrap_or_default()) {
            Ok(envelope) => roots.push(envelope),
            Err(_) => return Verdict::Refused,
        }
    }
    let Ok(known) = follow_roots([ROOT.clone()], &roots) else { return Verdict::Refused };
    assert_eq!(known, std::slice::from_ref(&*ROOT), "no other root follows from it");
    let mut entries = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        match verifier.line(line) {
            Ok(entry) => entries.push(entry),
            Err(_) => return Verdict::Refused,
        }
    }
    let Ok(log) = verifier.finish() else { return Verdict::Refused };
    assert_eq!(log.checkpoint, crate::fixture::checkpoint());
    assert_eq!(entries, crate::fixture::entries(), "the key has signed no other entries");
    Verdict::Taken
}
