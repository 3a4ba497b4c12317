mod crash;
mod damage;
mod faults;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{MemStore, Opened, Options, Policy, RecordKind, Recovery};

/// The smallest cache, so that tests read records back from the file.
const REFUSE: Options = Options { policy: Policy::Refuse, cache_bytes_max: 64 << 10 };
const SALVAGE: Options = Options { policy: Policy::Salvage, cache_bytes_max: 64 << 10 };

fn open(dir: &Path, options: Options) -> (SledStore, Recovery) {
    let Opened { store, recovery } = SledStore::open(dir, options).unwrap();
    (store, recovery)
}

fn append(store: &mut SledStore, body: &[u8]) -> Head {
    store.append(store.head(), &[body.to_vec()], AnchorPayload::Replace(body)).unwrap().head
}

fn all(store: &dyn Store) -> Vec<StoredRecord> {
    store.read_from_snapshot().unwrap().collect::<Result<_, _>>().unwrap()
}

/// Whether the history that ends at `head` is in the store, as itself or below a snapshot.
fn contains(store: &dyn Store, head: Head) -> bool {
    head == Head::genesis()
        || all(store).iter().any(|record| record.head() == head || record.previous() == head)
        || head.seq + 1 < store.first_seq()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

#[test]
fn conforms() {
    let parent = tempfile::tempdir().unwrap();
    let mut count = 0;
    crate::conformance::check(|| {
        count += 1;
        open(&parent.path().join(count.to_string()), REFUSE).0
    });
}

#[test]
fn a_new_store_is_fresh_and_a_closed_one_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("deep/er");
    let (mut store, recovery) = open(&dir, REFUSE);
    assert_eq!(recovery, Recovery::Fresh);
    let head = append(&mut store, b"a");
    drop(store);
    let (store, recovery) = open(&dir, REFUSE);
    assert_eq!((recovery, store.head(), store.position().durable.seq()), (Recovery::Clean, head, 1));
}

#[test]
fn a_store_whose_folder_was_replaced_is_no_longer_led() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("store");
    let (store, _) = open(&dir, REFUSE);
    store.confirm().unwrap();
    fs::rename(&dir, dir.with_extension("aside")).unwrap();
    assert!(matches!(store.confirm(), Err(StoreError::Usurped { .. })));
    // Someone else may lead what lies there now.
    let (other, _) = open(&dir, REFUSE);
    other.confirm().unwrap();
    assert!(matches!(store.confirm(), Err(StoreError::Usurped { .. })));
}

#[test]
fn an_empty_store_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), REFUSE));
    let (store, recovery) = open(dir.path(), REFUSE);
    assert_eq!((recovery, store.head()), (Recovery::Clean, Head::genesis()));
}

#[test]
fn a_start_that_was_cut_short_before_anything_was_acknowledged_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), REFUSE));
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    assert_eq!(open(dir.path(), REFUSE).1, Recovery::Fresh);
    fs::remove_file(dir.path().join("db/db")).unwrap();
    fs::create_dir(dir.path().join("db/db")).unwrap();
    let refused = SledStore::open(dir.path(), REFUSE);
    assert!(matches!(refused, Err(StoreError::Io { .. })), "a failing system is not damage: {refused:?}");
}

#[test]
fn one_writer_and_its_process_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), REFUSE);
    let refused = SledStore::open(dir.path(), REFUSE).unwrap_err();
    assert!(
        matches!(refused, StoreError::Locked { holder, .. } if holder == Some(std::process::id())),
        "{refused:?}"
    );
    assert!(!refused.is_fatal());
    drop(store);
    open(dir.path(), REFUSE);
}

#[test]
fn a_record_that_changed_under_the_store_is_noticed_when_read() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), REFUSE);
    let first = append(&mut store, b"a");
    append(&mut store, b"b");
    append(&mut store, b"c");
    store.log.insert(&StoredRecord::after(first, RecordKind::Entry, b"forged".to_vec())).unwrap();
    let mut records = store.read_from(1).unwrap();
    assert!(records.next().unwrap().is_ok());
    assert!(records.next().unwrap().is_ok(), "a forged record is well-formed, and its successor tells");
    let broken = records.next().unwrap().unwrap_err();
    assert!(matches!(broken, StoreError::Broken { seq: 3, fault: ChainFault::Link, .. }), "{broken:?}");
    assert!(records.next().is_none());
    drop(records);
    store.log.remove(2).unwrap();
    let found = store.read_from(1).unwrap().map(|record| record.map(|record| record.seq));
    assert!(matches!(
        found.collect::<Vec<_>>()[..],
        [Ok(1), Err(StoreError::Broken { seq: 2, fault: ChainFault::Missing, .. })]
    ));
}

#[test]
fn a_forged_last_record_does_not_pass_for_the_head() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), REFUSE);
    let first = append(&mut store, b"a");
    append(&mut store, b"b");
    store.log.insert(&StoredRecord::after(first, RecordKind::Entry, b"forged".to_vec())).unwrap();
    let last = store.read_from(2).unwrap().last().unwrap();
    assert!(matches!(last, Err(StoreError::Broken { seq: 2, fault: ChainFault::Link, .. })), "{last:?}");
}

#[derive(Debug, Clone)]
enum Operation {
    Append(Vec<Vec<u8>>),
    Compact(Vec<u8>),
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    let body = || {
        prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 0..40),
            1 => (0_usize..200_000).prop_map(|len| vec![7; len]),
        ]
    };
    prop_oneof![
        5 => proptest::collection::vec(body(), 1..30).prop_map(Operation::Append),
        1 => body().prop_map(Operation::Compact),
        2 => Just(Operation::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_like_the_one_in_memory(operations in proptest::collection::vec(operation(), 1..14)) {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open(dir.path(), REFUSE);
        let mut model = MemStore::new();
        for operation in operations {
            match operation {
                Operation::Append(bodies) => {
                    let expected = model.append(model.head(), &bodies, AnchorPayload::Keep).unwrap();
                    prop_assert_eq!(store.append(store.head(), &bodies, AnchorPayload::Keep).unwrap(), expected);
                }
                Operation::Compact(body) => {
                    let expected = model.compact(model.head(), &body, AnchorPayload::Keep).unwrap();
                    prop_assert_eq!(store.compact(store.head(), &body, AnchorPayload::Keep).unwrap(), expected);
                }
                Operation::Reopen => {
                    drop(store);
                    let (again, recovery) = open(dir.path(), REFUSE);
                    prop_assert_eq!(recovery, Recovery::Clean);
                    store = again;
                }
            }
            prop_assert_eq!(store.position(), model.position());
            prop_assert_eq!(store.first_seq(), model.first_seq());
        }
        prop_assert_eq!(all(&store), all(&model));
    }
}
