//! Damaged files: every case is refused, salvaged, or proven to be the whole history.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::{AnchorFault, AnchoredPayload, Damage};

const SLOT_BYTES: usize = 4096;

/// A closed store with a history of several segments, blobs and a snapshot in it.
struct Template {
    dir: TempDir,
    records: Vec<StoredRecord>,
    head: Head,
}

impl Template {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open(dir.path(), REFUSE);
        for turn in 0..90_u64 {
            let len = if turn % 30 == 29 { 140_000 } else { 200 + turn as usize * 97 };
            let bodies = [vec![turn as u8; len], turn.to_be_bytes().to_vec()];
            store.append(store.head(), &bodies, AnchorPayload::Replace(&turn.to_be_bytes())).unwrap();
            if turn == 20 {
                store.compact(store.head(), b"state at 20", AnchorPayload::Keep).unwrap();
            }
        }
        let (records, head) = (all(&store), store.head());
        drop(store);
        Self { dir, records, head }
    }

    fn copy(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        copy_folder(self.dir.path(), dir.path());
        dir
    }

    /// Opens two copies damaged in the same way, one under each policy; tells whether the damage was noticed.
    fn check(&self, what: &str, damage: impl Fn(&Path)) -> bool {
        let refusing = self.copy();
        damage(refusing.path());
        let refused = match SledStore::open(refusing.path(), REFUSE) {
            Ok(Opened { store, recovery }) => {
                assert_eq!(recovery, Recovery::Clean, "{what}");
                assert_eq!((store.head(), all(&store)), (self.head, self.records.clone()), "{what}");
                false
            }
            Err(StoreError::HistoryDamaged { anchored, .. }) => {
                assert_eq!(anchored, self.head, "{what}");
                let again = SledStore::open(refusing.path(), REFUSE);
                assert!(matches!(again, Err(StoreError::HistoryDamaged { .. })), "{what}: {again:?}");
                true
            }
            Err(error) => panic!("{what}: {error:?}"),
        };
        let salvaging = self.copy();
        damage(salvaging.path());
        let (mut store, recovery) = open(salvaging.path(), SALVAGE);
        match recovery {
            Recovery::Clean => assert_eq!(all(&store), self.records, "{what}"),
            Recovery::HistoryLost { anchored, payload, .. } => {
                assert!(refused, "{what}");
                assert_eq!(anchored, self.head, "{what}");
                assert_eq!(payload.unwrap().bytes, 89_u64.to_be_bytes(), "{what}");
                let first = &all(&store)[0];
                assert_eq!((first.kind, first.previous()), (RecordKind::HistoryLost, self.head), "{what}");
            }
            Recovery::Fresh | Recovery::AdoptedTail { .. } => panic!("{what}: {recovery:?}"),
        }
        let head = append(&mut store, b"on we go");
        drop(store);
        let (store, recovery) = open(salvaging.path(), SALVAGE);
        assert_eq!((recovery, store.head()), (Recovery::Clean, head), "{what}");
        refused
    }
}

fn write_at(path: &Path, bytes: &[u8], at: u64) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn flip_bit(path: &Path, bit: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

fn damage_slot(dir: &Path, slot: usize) {
    flip_bit(&dir.join("anchor"), (slot * SLOT_BYTES + 60) as u64 * 8);
}

/// Which slot is the newest, by the generation that it carries.
fn newest_slot(dir: &Path) -> usize {
    let bytes = fs::read(dir.join("anchor")).unwrap();
    let generation = |slot: usize| bytes[slot * SLOT_BYTES + 12..][..8].to_vec();
    usize::from(generation(1) > generation(0))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn a_damaged_log_never_passes_for_a_shorter_history() {
    let template = Template::new();
    let len = fs::metadata(template.dir.path().join("db/db")).unwrap().len();
    let mut dice = Dice(2);
    let mut noticed = 0;
    let cases = 60;
    for case in 0..cases {
        let at = dice.below(len);
        let extent = 1 + dice.below(64 << 10).min(len - at - 1);
        noticed += u32::from(match case % 3 {
            0 => template.check(&format!("cut to {at} of {len}"), |dir| {
                OpenOptions::new().write(true).open(dir.join("db/db")).unwrap().set_len(at).unwrap();
            }),
            1 => template.check(&format!("bit {} of byte {at} flipped", case % 8), |dir| {
                flip_bit(&dir.join("db/db"), at * 8 + case % 8);
            }),
            _ => template.check(&format!("{extent} bytes zeroed at {at}"), |dir| {
                write_at(&dir.join("db/db"), &vec![0; extent as usize], at);
            }),
        });
    }
    assert!(noticed > 20, "only {noticed} of {cases} cases touched live records");
}

#[test]
fn the_other_files_of_the_database_may_be_damaged_or_gone() {
    let template = Template::new();
    let mut dice = Dice(3);
    let mut noticed = 0;
    let others = files(&template.dir.path().join("db"));
    assert!(others.iter().any(|path| path.parent().unwrap().ends_with("blobs")), "{others:?}");
    for path in others {
        let relative = path.strip_prefix(template.dir.path()).unwrap();
        let len = fs::metadata(&path).unwrap().len();
        let what = relative.display();
        noticed += u32::from(template.check(&format!("{what} removed"), |dir| {
            fs::remove_file(dir.join(relative)).unwrap();
        }));
        noticed += u32::from(template.check(&format!("{what} emptied"), |dir| {
            fs::write(dir.join(relative), b"").unwrap();
        }));
        let bit = dice.below(len * 8);
        noticed += u32::from(template.check(&format!("{what}: bit {bit} flipped"), |dir| {
            flip_bit(&dir.join(relative), bit);
        }));
    }
    assert!(noticed > 3);
}

#[test]
fn a_snapshot_that_a_full_disk_kept_from_being_finished_damages_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let head = append(&mut open(dir.path(), REFUSE).0, b"acknowledged");
    let log = files(dir.path()).into_iter().find(|file| file.ends_with("db")).unwrap();
    for content in [&b""[..], &[7; 40]] {
        let unfinished = log.with_file_name("snap.00000000FFFFFFFF.generating");
        fs::write(&unfinished, content).unwrap();
        let (store, recovery) = open(dir.path(), REFUSE);
        assert_eq!((store.head(), recovery), (head, Recovery::Clean));
        assert!(!unfinished.exists());
    }
}

#[test]
fn a_missing_database_is_damage_once_anything_was_acknowledged() {
    let template = Template::new();
    assert!(template.check("database removed", |dir| fs::remove_dir_all(dir.join("db")).unwrap()));
}

#[test]
fn a_database_that_was_rolled_back_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let aside = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), REFUSE);
    append(&mut store, b"a");
    drop(store);
    copy_folder(&dir.path().join("db"), aside.path());
    let (mut store, _) = open(dir.path(), REFUSE);
    append(&mut store, b"b");
    drop(store);
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    copy_folder(aside.path(), &dir.path().join("db"));
    let error = SledStore::open(dir.path(), REFUSE).unwrap_err();
    assert!(
        matches!(error, StoreError::HistoryDamaged { damage: Damage::Shorter { end: 1 }, .. }),
        "{error:?}"
    );
}

#[test]
fn another_history_of_the_same_length_is_noticed() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (dir, last) in [(&one, b"b"), (&other, b"x")] {
        let (mut store, _) = open(dir.path(), REFUSE);
        append(&mut store, b"a");
        append(&mut store, last);
    }
    fs::remove_dir_all(one.path().join("db")).unwrap();
    copy_folder(&other.path().join("db"), &one.path().join("db"));
    let error = SledStore::open(one.path(), REFUSE).unwrap_err();
    assert!(matches!(error, StoreError::HistoryDamaged { damage: Damage::Differs, .. }), "{error:?}");
}

#[test]
fn an_anchor_one_write_behind_adopts_the_tail_and_keeps_the_payload_s_number() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), REFUSE);
    append(&mut store, b"a");
    let behind = fs::read(dir.path().join("anchor")).unwrap();
    let bodies = [b"b".to_vec(), b"c".to_vec()];
    let head = store.append(store.head(), &bodies, AnchorPayload::Replace(b"c")).unwrap().head;
    drop(store);
    fs::write(dir.path().join("anchor"), behind).unwrap();
    let (store, recovery) = open(dir.path(), REFUSE);
    assert_eq!((recovery, store.head()), (Recovery::AdoptedTail { records: 2 }, head));
    assert_eq!(store.anchor.payload(), Some(&AnchoredPayload { seq: 1, bytes: b"a".to_vec() }));
    drop(store);
    assert_eq!(open(dir.path(), REFUSE).1, Recovery::Clean);
}

#[test]
fn a_compaction_cut_before_the_anchor_or_before_the_removal_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), REFUSE);
    for _ in 0..5 {
        append(&mut store, b"entry");
    }
    let snapshot = snapshot_after(store.head(), b"state").unwrap();
    store.commit(std::slice::from_ref(&snapshot), AnchorPayload::Keep).unwrap();
    let anchored = fs::read(dir.path().join("anchor")).unwrap();
    drop(store);
    let (store, recovery) = open(dir.path(), REFUSE);
    assert_eq!((recovery, store.first_seq(), all(&store).len()), (Recovery::Clean, 6, 1));
    assert_eq!(store.log.seqs_before(6).count(), 0, "what the compaction left was removed");
    drop(store);

    let (mut store, _) = open(dir.path(), REFUSE);
    store.compact(store.head(), b"state again", AnchorPayload::Keep).unwrap();
    drop(store);
    fs::write(dir.path().join("anchor"), anchored).unwrap();
    let (store, recovery) = open(dir.path(), REFUSE);
    assert_eq!((recovery, store.first_seq()), (Recovery::AdoptedTail { records: 1 }, 7));
}

#[test]
fn a_torn_newest_slot_costs_nothing() {
    let template = Template::new();
    let dir = template.copy();
    damage_slot(dir.path(), newest_slot(dir.path()));
    let (store, recovery) = open(dir.path(), REFUSE);
    assert_eq!((recovery, store.head()), (Recovery::AdoptedTail { records: 2 }, template.head));
    assert_eq!(all(&store), template.records);
}

#[test]
fn a_damaged_slot_and_nothing_past_the_other_one_is_damage() {
    let template = Template::new();
    assert!(template.check("the older slot is damaged", |dir| {
        damage_slot(dir, 1 - newest_slot(dir));
    }));
}

#[test]
fn without_a_valid_slot_nothing_opens() {
    let template = Template::new();
    for options in [REFUSE, SALVAGE] {
        let dir = template.copy();
        damage_slot(dir.path(), 0);
        damage_slot(dir.path(), 1);
        let error = SledStore::open(dir.path(), options).unwrap_err();
        assert!(
            matches!(error, StoreError::AnchorMissing { fault: AnchorFault::BothSlotsDamaged, .. }),
            "{error:?}"
        );
        fs::remove_dir_all(dir.path().join("db")).unwrap();
        assert!(matches!(SledStore::open(dir.path(), options), Err(StoreError::AnchorMissing { .. })));

        let dir = template.copy();
        fs::remove_file(dir.path().join("anchor")).unwrap();
        let error = SledStore::open(dir.path(), options).unwrap_err();
        assert!(matches!(error, StoreError::AnchorMissing { fault: AnchorFault::Missing, .. }), "{error:?}");
    }
}

/// Changes the big-endian number at `at` of a block that ends with its CRC-32.
fn with_format(mut block: Vec<u8>, at: usize, format: u8) -> Vec<u8> {
    block[at] = format;
    let end = block.len() - 4;
    let crc = crc32fast::hash(&block[..end]);
    block[end..].copy_from_slice(&crc.to_be_bytes());
    block
}

#[test]
fn what_a_newer_program_wrote_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), SALVAGE);
    let record = StoredRecord::after(append(&mut store, b"a"), RecordKind::Entry, b"b".to_vec());
    store.log.insert_encoded(2, with_format(record.encode(), 0, 9)).unwrap();
    drop(store);
    let error = SledStore::open(dir.path(), SALVAGE).unwrap_err();
    assert!(matches!(&error, StoreError::Newer { path } if path.ends_with("db")), "{error:?}");

    let path = dir.path().join("anchor");
    let slot = fs::read(&path).unwrap()[..SLOT_BYTES].to_vec();
    write_at(&path, &with_format(slot, 11, 9), 0);
    let error = SledStore::open(dir.path(), SALVAGE).unwrap_err();
    assert!(matches!(&error, StoreError::Newer { path } if path.ends_with("anchor")), "{error:?}");
    assert!(dir.path().join("db").exists());
}

#[test]
fn a_disk_that_damages_again_and_again_is_refused_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), SALVAGE);
    append(&mut store, b"a");
    drop(store);
    for number in 1..=16 {
        fs::write(dir.path().join("db/db"), b"").unwrap();
        let (_, recovery) = open(dir.path(), SALVAGE);
        let Recovery::HistoryLost { aside: Some(aside), .. } = recovery else { panic!("{recovery:?}") };
        assert!(aside.ends_with(format!("db.damaged-{number}")), "{}", aside.display());
    }
    fs::write(dir.path().join("db/db"), b"").unwrap();
    let error = SledStore::open(dir.path(), SALVAGE).unwrap_err();
    assert!(matches!(error, StoreError::TooManyDamaged { count: 16, .. }), "{error:?}");
}
