//! Every durable step fails once: the store is poisoned, and nothing acknowledged is lost.

use super::*;
use crate::sled_store::faults::{Fault, Faults};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const STEPS_MAX: u64 = 400;

/// One of everything that writes. `acknowledge` is told each head that the store has answered.
pub(super) fn life(
    dir: &Path,
    disk: &Disk,
    acknowledge: &mut dyn FnMut(Head),
) -> Result<(), Box<(StoreError, Option<SledStore>)>> {
    let mut store = recovery::open(dir, REFUSE, disk).map_err(|error| Box::new((error, None)))?.store;
    for turn in 0..2_u8 {
        let batches =
            [vec![vec![turn; 10]], vec![vec![turn; 3000], vec![turn; 150_000]], vec![vec![turn]; 12]];
        for bodies in batches {
            match store.append(store.head(), &bodies, AnchorPayload::Replace(&[turn])) {
                Ok(position) => acknowledge(position.head),
                Err(error) => return Err(Box::new((error, Some(store)))),
            }
        }
        match store.compact(store.head(), b"snapshot", AnchorPayload::Keep) {
            Ok(position) => acknowledge(position.head),
            Err(error) => return Err(Box::new((error, Some(store)))),
        }
    }
    Ok(())
}

fn assert_poisoned(mut store: SledStore) {
    let head = store.head();
    assert!(matches!(store.append(head, &[Vec::new()], AnchorPayload::Keep), Err(StoreError::Poisoned)));
    assert!(matches!(store.compact(head, b"", AnchorPayload::Keep), Err(StoreError::Poisoned)));
    assert!(matches!(store.read_from(1).map(drop), Err(StoreError::Poisoned)));
    assert!(matches!(crate::backup(&store, &mut Vec::new()), Err(StoreError::Poisoned)));
}

fn sweep(errno: i32) -> u64 {
    for step in 0..STEPS_MAX {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("store");
        let (disk, faults) = Faults::at(step, Fault::Errno(errno));
        let mut acknowledged = Head::genesis();
        let result = life(&dir, &disk, &mut |head| acknowledged = head);
        if !faults.struck() {
            assert!(result.is_ok(), "nothing failed: {result:?}");
            return step;
        }
        let (error, store) = *result.unwrap_err();
        assert_eq!(matches!(error, StoreError::NoSpace { .. }), errno == ENOSPC, "step {step}: {error:?}");
        assert!(error.is_fatal(), "step {step}: {error:?}");
        if let Some(store) = store {
            assert_eq!(store.head(), store.position().head);
            assert_poisoned(store);
        }
        let (mut store, recovery) = open(&dir, REFUSE);
        assert!(!matches!(recovery, Recovery::HistoryLost { .. }), "step {step}");
        assert!(contains(&store, acknowledged), "step {step}: {acknowledged:?} is gone, {recovery:?}");
        append(&mut store, b"on we go");
    }
    panic!("more than {STEPS_MAX} steps");
}

#[test]
fn a_failed_write_or_sync_poisons_and_loses_nothing_acknowledged() {
    assert!(sweep(EIO) > 50);
}

#[test]
fn a_full_disk_is_named_at_every_step() {
    assert!(sweep(ENOSPC) > 50);
}

#[test]
fn a_salvage_that_fails_anywhere_is_taken_up_again() {
    let template = tempfile::tempdir().unwrap();
    let (mut store, _) = open(template.path(), SALVAGE);
    append(&mut store, b"one");
    let anchored = append(&mut store, b"the agent's record");
    drop(store);
    fs::remove_file(template.path().join("db/db")).unwrap();
    for step in 0..STEPS_MAX {
        let dir = tempfile::tempdir().unwrap();
        copy_folder(template.path(), dir.path());
        let (disk, faults) = Faults::at(step, Fault::Errno(EIO));
        let result = recovery::open(dir.path(), SALVAGE, &disk);
        if !faults.struck() {
            assert!(result.is_ok());
            assert!(step > 10);
            return;
        }
        assert!(result.is_err(), "step {step}");
        drop(result);
        let (mut store, recovery) = open(dir.path(), SALVAGE);
        let Recovery::HistoryLost { anchored: from, payload, .. } = recovery else {
            panic!("step {step}: {recovery:?}");
        };
        assert_eq!(from, anchored);
        assert_eq!(payload.unwrap().bytes, b"the agent's record");
        assert_eq!(all(&store)[0].previous(), anchored);
        append(&mut store, b"on we go");
    }
    panic!("more than {STEPS_MAX} steps");
}
