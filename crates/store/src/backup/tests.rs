use std::io::Cursor;

use super::*;
use crate::{AnchorPayload, MemStore, Recovery, SledStore};

const OPTIONS: Options = Options::coordinator();

/// A store in memory with a snapshot and entries, and its backup.
fn sample() -> (MemStore, Vec<u8>) {
    let mut store = MemStore::new();
    store.append(store.head(), &[b"a".to_vec(), b"b".to_vec()], AnchorPayload::Keep).unwrap();
    store.compact(store.head(), b"ab", AnchorPayload::Keep).unwrap();
    store.append(store.head(), &[b"c".to_vec(), b"d".to_vec()], AnchorPayload::Keep).unwrap();
    let bytes = written(&store);
    (store, bytes)
}

fn written(store: &dyn Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    backup(store, &mut bytes).unwrap();
    bytes
}

fn records(store: &dyn Store) -> Vec<StoredRecord> {
    store.read_from_snapshot().unwrap().collect::<Result<_, _>>().unwrap()
}

/// The fault of a backup that is not restored, after a look that nothing was created.
fn fault(bytes: &[u8]) -> BackupFault {
    let parent = tempfile::tempdir().unwrap();
    let error = restore(&mut Cursor::new(bytes), &parent.path().join("store"), OPTIONS).unwrap_err();
    assert!(fs::read_dir(parent.path()).unwrap().next().is_none(), "something was created");
    let StoreError::BackupInvalid { fault, .. } = error else { panic!("{error:?}") };
    fault
}

/// A backup of these records whose end agrees with them.
fn sealed(records: &[StoredRecord], head: Head) -> Vec<u8> {
    let mut bytes = HEADER.to_vec();
    for record in records {
        let encoded = record.encode();
        bytes.extend((encoded.len() as u32).to_be_bytes());
        bytes.extend(encoded);
    }
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend((records.len() as u64).to_be_bytes());
    bytes.extend(head.seq.to_be_bytes());
    bytes.extend(head.hash.as_bytes());
    let digest = Digest::of(&bytes);
    bytes.extend(digest.as_bytes());
    bytes
}

#[test]
fn what_is_restored_is_what_was_backed_up() {
    let (compacted, _) = sample();
    let mut long = MemStore::new();
    for turn in 0..1200_u32 {
        long.append(long.head(), &[turn.to_be_bytes().to_vec()], AnchorPayload::Keep).unwrap();
    }
    long.append(long.head(), &[vec![5; 300_000]], AnchorPayload::Keep).unwrap();
    for store in [MemStore::new(), compacted, long] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("new/store");
        let bytes = written(&store);
        let summary = restore(&mut Cursor::new(&bytes), &dir, OPTIONS).unwrap();
        assert_eq!(summary.head, store.head());
        let mut opened = SledStore::open(&dir, OPTIONS).unwrap();
        assert_eq!(opened.recovery, Recovery::Clean);
        assert_eq!(records(&opened.store), records(&store));
        assert_eq!(written(&opened.store), bytes);
        opened.store.append(store.head(), &[b"on".to_vec()], AnchorPayload::Keep).unwrap();
        assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }
}

#[test]
fn only_a_new_or_an_empty_folder_is_taken() {
    let (store, bytes) = sample();
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    fs::create_dir(&dir).unwrap();
    restore(&mut Cursor::new(&bytes), &dir, OPTIONS).unwrap();
    let refused = restore(&mut Cursor::new(&bytes), &dir, OPTIONS).unwrap_err();
    assert!(matches!(refused, StoreError::NotEmpty { .. }), "{refused:?}");
    assert_eq!(SledStore::open(&dir, OPTIONS).unwrap().store.head(), store.head());
}

#[test]
fn every_changed_byte_and_every_cut_is_noticed() {
    let (_, bytes) = sample();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fault(&changed);
        let cut = fault(&bytes[..at]);
        let expected = if at < HEADER.len() { BackupFault::Header } else { BackupFault::Truncated };
        assert_eq!(cut, expected, "cut at {at}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(fault(&longer), BackupFault::Trailing);
    let mut digest = bytes.clone();
    *digest.last_mut().unwrap() ^= 1;
    assert_eq!(fault(&digest), BackupFault::Digest);
    assert_eq!(fault(b"muster.backup/2\n"), BackupFault::Header);
    let huge = [&HEADER[..], &u32::MAX.to_be_bytes()].concat();
    assert_eq!(fault(&huge), BackupFault::RecordLength { len: u32::MAX });
}

#[test]
fn records_left_out_swapped_or_added_are_noticed_whatever_the_end_says() {
    let (store, bytes) = sample();
    let head = store.head();
    let whole = records(&store);
    assert_eq!(sealed(&whole, head), bytes);
    let link = |seq, fault| BackupFault::Record { seq, fault };
    let without_middle = [whole[0].clone(), whole[2].clone()];
    assert_eq!(fault(&sealed(&without_middle, head)), link(4, ChainFault::Place { found: 5 }));
    let swapped = [whole[0].clone(), whole[2].clone(), whole[1].clone()];
    assert_eq!(fault(&sealed(&swapped, head)), link(4, ChainFault::Place { found: 5 }));
    assert_eq!(fault(&sealed(&whole[1..], head)), BackupFault::Beginning { seq: 4 });
    assert_eq!(fault(&sealed(&whole[..2], head)), BackupFault::Summary);
    assert_eq!(fault(&sealed(&[], head)), BackupFault::Summary);
    let forged = StoredRecord::after(whole[0].head(), crate::RecordKind::Entry, b"x".to_vec());
    let replaced = [whole[0].clone(), forged, whole[2].clone()];
    assert_eq!(fault(&sealed(&replaced, head)), link(5, ChainFault::Link));
}

/// A reader whose content changes between the two passes.
struct Changing {
    passes: u32,
    first: Cursor<Vec<u8>>,
    second: Cursor<Vec<u8>>,
}

impl Read for Changing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.passes == 0 { self.first.read(buffer) } else { self.second.read(buffer) }
    }
}

impl Seek for Changing {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        if let SeekFrom::Start(_) = position {
            self.passes += 1;
        }
        if self.passes == 0 { self.first.seek(position) } else { self.second.seek(position) }
    }
}

#[test]
fn a_backup_that_changes_while_it_is_restored_creates_nothing() {
    let (mut store, first) = sample();
    store.append(store.head(), &[b"e".to_vec()], AnchorPayload::Keep).unwrap();
    let mut reader = Changing { passes: 0, first: Cursor::new(first), second: Cursor::new(written(&store)) };
    let parent = tempfile::tempdir().unwrap();
    let error = restore(&mut reader, &parent.path().join("store"), OPTIONS).unwrap_err();
    assert!(matches!(error, StoreError::BackupInvalid { fault: BackupFault::Summary, .. }), "{error:?}");
    assert!(fs::read_dir(parent.path()).unwrap().next().is_none());
}
