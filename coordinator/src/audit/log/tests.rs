use std::fs;

use muster_audit::{LogVerifier, verify_consistency};
use muster_trust::KeyAlgorithm;
use tempfile::TempDir;

use super::*;

struct Place {
    folder: TempDir,
    key: Arc<SigningKey>,
}

impl Place {
    fn new() -> Self {
        let key = Arc::new(SigningKey::generate(KeyAlgorithm::Ed25519).unwrap());
        Self { folder: tempfile::tempdir().unwrap(), key }
    }

    fn open_life(&self, incarnation: u64) -> Result<AuditLog, LogError> {
        AuditLog::open(&Beginning {
            state: self.folder.path(),
            key: Arc::clone(&self.key),
            trust_domain: "muster.local",
            incarnation: Incarnation(incarnation),
            who: "spiffe://muster.local/coordinator/coordinator",
            now: UnixTime(1),
        })
    }

    fn open(&self) -> Result<AuditLog, LogError> {
        self.open_life(5)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("audit/5").join(name)
    }

    fn entries(&self) -> Vec<u8> {
        fs::read(self.file(ENTRIES_FILE)).unwrap()
    }

    fn rewrite(&self, bytes: &[u8]) {
        fs::write(self.file(ENTRIES_FILE), bytes).unwrap();
    }
}

fn entry(detail: &str) -> Entry {
    Entry::new(Kind::Phase, "ann", UnixTime(2)).saying(detail)
}

fn size(log: &AuditLog) -> u64 {
    log.published().borrow().checkpoint.checkpoint().size
}

#[test]
fn a_log_begins_grows_and_is_found_again_as_it_was() {
    let place = Place::new();
    let mut log = place.open().unwrap();
    assert_eq!(size(&log), 1);
    assert_eq!(log.append(vec![entry("a"), entry("b")]).unwrap(), 1);
    assert_eq!(log.append(vec![entry("c")]).unwrap(), 3);
    let checkpoint = log.published().borrow().checkpoint.to_bytes();
    drop(log);
    let log = place.open().unwrap();
    assert_eq!(log.published().borrow().checkpoint.to_bytes(), checkpoint);
    let mut verifier = LogVerifier::begin(&checkpoint, place.key.public()).unwrap();
    for line in log.read(0, 1 << 20).unwrap() {
        verifier.push(&line).unwrap();
    }
    assert_eq!(verifier.finish().unwrap().checkpoint.size, 4);
}

#[test]
fn every_beginning_of_a_long_log_is_proven_and_every_part_can_be_read() {
    let place = Place::new();
    let mut log = place.open().unwrap();
    let mut seen = vec![log.published().borrow().checkpoint.checkpoint().clone()];
    for batch in [1, 62, 1, 1, 63, 100, 200] {
        log.append((0..batch).map(|i| entry(&format!("{i}"))).collect()).unwrap();
        seen.push(log.published().borrow().checkpoint.checkpoint().clone());
    }
    let log = place.open().unwrap();
    let newest = seen.last().unwrap().clone();
    for before in &seen {
        let proof = log.proof_from(before.size).unwrap();
        let (old, new) = ((before.size, &before.root), (newest.size, &newest.root));
        verify_consistency(old, new, &proof).unwrap();
    }
    assert_eq!(log.proof_from(newest.size + 1).unwrap(), []);
    let all = log.read(0, u64::from(u32::MAX)).unwrap();
    assert_eq!(all.len() as u64, newest.size);
    for from in [0, 1, 63, 64, 65, 200, newest.size - 1] {
        let part = log.read(from, 1).unwrap();
        assert_eq!(part, all[from as usize..=from as usize], "at least one, from {from}");
        assert_eq!(log.read(from, u64::from(u32::MAX)).unwrap(), all[from as usize..]);
    }
    assert!(log.read(newest.size, 100).unwrap().is_empty());
}

#[test]
fn what_was_never_covered_is_taken_over_whole_or_dropped() {
    let place = Place::new();
    let mut log = place.open().unwrap();
    log.append(vec![entry("a")]).unwrap();
    let whole = place.entries();
    let next = entry("b").at_place(2).to_bytes();
    let torn: [&[u8]; 3] = [&next[..next.len() / 2], b"\0\0\0\0\n\0\0", b"{}\n"];
    for rest in torn {
        place.rewrite(&[&whole, rest].concat());
        assert_eq!(size(&place.open().unwrap()), 2);
        assert_eq!(place.entries(), whole);
    }
    place.rewrite(&[&whole, &next[..], b"\n{"].concat());
    assert_eq!(size(&place.open().unwrap()), 3, "whole entries stay, and are covered");
    assert_eq!(size(&place.open().unwrap()), 3);
}

#[test]
fn what_is_covered_is_refused_when_it_was_changed() {
    let place = Place::new();
    place.open().unwrap().append(vec![entry("first"), entry("second"), entry("third")]).unwrap();
    let whole = place.entries();
    let text = String::from_utf8(whole.clone()).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let refused = |bytes: &[u8]| {
        place.rewrite(bytes);
        place.open().map(|_| ()).unwrap_err()
    };
    let cut = lines[..3].concat();
    assert!(matches!(refused(cut.as_bytes()), LogError::Ends { found: 3, size: 4, .. }));
    assert!(matches!(refused(&whole[..whole.len() - 1]), LogError::Ends { found: 3, .. }));
    assert!(matches!(refused(b""), LogError::Ends { found: 0, .. }));
    let swapped = [lines[0], lines[2], lines[1], lines[3]].concat();
    assert!(matches!(refused(swapped.as_bytes()), LogError::Entry { entry: 1, .. }));
    let rewritten = text.replace("second", "zweite");
    assert!(matches!(refused(rewritten.as_bytes()), LogError::Root { size: 4, .. }));
    place.rewrite(&whole);
    assert_eq!(size(&place.open().unwrap()), 4);

    let slots = fs::read(place.file(CHECKPOINT_FILE)).unwrap();
    fs::write(place.file(CHECKPOINT_FILE), vec![0; slots.len()]).unwrap();
    assert!(matches!(place.open(), Err(LogError::NoCheckpoint { .. })));
    fs::remove_file(place.file(CHECKPOINT_FILE)).unwrap();
    assert!(place.open().is_err(), "entries without a checkpoint");
    fs::write(place.file(CHECKPOINT_FILE), slots).unwrap();
    let other = Place { folder: place.folder, key: Place::new().key };
    assert!(matches!(other.open(), Err(LogError::NoCheckpoint { .. })), "another key");
}

#[test]
fn one_torn_page_of_the_checkpoint_loses_nothing() {
    let place = Place::new();
    let mut log = place.open().unwrap();
    for detail in ["a", "b"] {
        log.append(vec![entry(detail)]).unwrap();
    }
    drop(log);
    let slots = fs::read(place.file(CHECKPOINT_FILE)).unwrap();
    for page in [0, 4096] {
        let mut torn = slots.clone();
        torn[page + 40] ^= 1;
        fs::write(place.file(CHECKPOINT_FILE), torn).unwrap();
        assert_eq!(size(&place.open().unwrap()), 3);
    }
}

#[test]
fn a_new_life_names_the_last_checkpoint_of_the_one_before() {
    let place = Place::new();
    let mut log = place.open().unwrap();
    log.append(vec![entry("a")]).unwrap();
    let last = log.published().borrow().checkpoint.to_bytes();
    drop(log);
    let log = place.open_life(6).unwrap();
    let read = log.read(0, 1 << 20).unwrap();
    let entries: Vec<Entry> =
        read.iter().zip(0..).map(|(line, place)| Entry::parse(line, place).unwrap()).collect();
    assert_eq!(entries.iter().map(|it| it.kind).collect::<Vec<_>>(), [Kind::Began, Kind::Restore]);
    assert_eq!(entries[0].previous.as_deref().map(str::as_bytes), Some(&last[..]));
    assert!(log.open_override(1).is_some(), "somebody has to look at it");
    let first = Place::new();
    fs::create_dir(first.folder.path().join("audit")).unwrap();
    fs::write(first.folder.path().join("audit").join(PREVIOUS_FILE), &last).unwrap();
    let log = first.open().unwrap();
    let began = Entry::parse(&log.read(0, 1).unwrap()[0], 0).unwrap();
    assert_eq!(began.previous.as_deref().map(str::as_bytes), Some(&last[..]), "from a backup");
}
