//! What every [`Store`] does, as one function that each implementation is run through.

use muster_model::Digest;

use crate::{
    AnchorPayload, Head, MAX_ANCHOR_PAYLOAD_BYTES, MAX_BATCH_RECORDS, MAX_BODY_BYTES, RecordKind, Store,
    StoreError, StoredRecord,
};

/// Runs the suite; `fresh` gives a new, empty store each time.
///
/// # Panics
/// If the implementation does not keep the contract.
pub fn check<S: Store>(mut fresh: impl FnMut() -> S) {
    an_empty_store_is_at_the_genesis(&fresh());
    appends_are_chained_and_read_back(&mut fresh());
    a_moved_head_is_refused(&mut fresh());
    limits_are_refused_and_change_nothing(&mut fresh());
    the_limits_themselves_are_taken(&mut fresh());
    a_snapshot_replaces_what_is_before_it(&mut fresh());
    the_hash_depends_on_the_records_only(&mut fresh(), &mut fresh());
}

fn an_empty_store_is_at_the_genesis<S: Store>(store: &S) {
    assert_eq!(store.head(), Head::genesis());
    assert_eq!(store.position().durable.seq(), 0);
    assert_eq!(store.first_seq(), 1);
    store.confirm().expect("the only one who has it open is its writer");
    for from in [0, 1, 2, u64::MAX] {
        assert!(read(store, from).is_empty());
    }
}

fn appends_are_chained_and_read_back<S: Store>(store: &mut S) {
    append(store, &["a"]);
    append(store, &["b", "", "d"]);
    let records = read(store, 1);
    let bodies = records.iter().map(|record| record.body.as_slice()).collect::<Vec<_>>();
    assert_eq!(bodies, [&b"a"[..], b"b", b"", b"d"]);
    let mut head = Head::genesis();
    for record in &records {
        assert_eq!(record.previous(), head);
        assert_eq!(record.kind, RecordKind::Entry);
        head = record.head();
    }
    assert_eq!(store.head(), head);
    assert_eq!(store.position().durable.seq(), 4);
    assert_eq!(read(store, 0), records);
    assert_eq!(read(store, 3), records[2..]);
    assert_eq!(read(store, 4), records[3..]);
    assert!(read(store, 5).is_empty());
    assert!(read(store, u64::MAX).is_empty());
}

fn a_moved_head_is_refused<S: Store>(store: &mut S) {
    let genesis = Head::genesis();
    let head = append(store, &["a"]);
    let forged = Head { seq: head.seq, hash: Digest::of(b"another history") };
    for expected in [genesis, forged] {
        let refused = store.append(expected, &[b"b".to_vec()], AnchorPayload::Keep);
        assert!(
            matches!(refused, Err(StoreError::HeadMoved { actual, .. }) if actual == head),
            "{refused:?}"
        );
        let refused = store.compact(expected, b"s", AnchorPayload::Keep);
        assert!(
            matches!(refused, Err(StoreError::HeadMoved { actual, .. }) if actual == head),
            "{refused:?}"
        );
    }
    assert_eq!(read(store, 1).len(), 1);
    append(store, &["b"]);
}

fn limits_are_refused_and_change_nothing<S: Store>(store: &mut S) {
    let head = append(store, &["a"]);
    let long = vec![0; MAX_BODY_BYTES + 1];
    let payload = vec![0; MAX_ANCHOR_PAYLOAD_BYTES + 1];
    let mut append = |bodies: &[Vec<u8>], payload| store.append(head, bodies, payload);
    assert!(matches!(append(&[], AnchorPayload::Keep), Err(StoreError::EmptyBatch)));
    assert!(matches!(
        append(&[b"b".to_vec(), long.clone()], AnchorPayload::Keep),
        Err(StoreError::BodyTooLarge { .. })
    ));
    assert!(matches!(
        append(&vec![Vec::new(); MAX_BATCH_RECORDS + 1], AnchorPayload::Keep),
        Err(StoreError::BatchTooLarge { .. })
    ));
    assert!(matches!(
        append(&vec![vec![0; MAX_BODY_BYTES]; 9], AnchorPayload::Keep),
        Err(StoreError::BatchTooLarge { .. })
    ));
    assert!(matches!(
        append(&[b"b".to_vec()], AnchorPayload::Replace(&payload)),
        Err(StoreError::PayloadTooLarge { .. })
    ));
    assert!(matches!(store.compact(head, &long, AnchorPayload::Keep), Err(StoreError::BodyTooLarge { .. })));
    assert_eq!(store.head(), head);
    assert_eq!(read(store, 1).len(), 1);
}

fn the_limits_themselves_are_taken<S: Store>(store: &mut S) {
    let bodies = [vec![1; MAX_BODY_BYTES], vec![2; MAX_BODY_BYTES]];
    let payload = vec![3; MAX_ANCHOR_PAYLOAD_BYTES];
    let position = store
        .append(store.head(), &bodies, AnchorPayload::Replace(&payload))
        .expect("bodies and payload are within the limits");
    let position = store
        .append(position.head, &vec![vec![4]; MAX_BATCH_RECORDS], AnchorPayload::Keep)
        .expect("the batch is within the limits");
    assert_eq!(position.head.seq, 2 + MAX_BATCH_RECORDS as u64);
    let records = read(store, 1);
    assert!(records[..2].iter().map(|record| &record.body).eq(&bodies));
}

fn a_snapshot_replaces_what_is_before_it<S: Store>(store: &mut S) {
    let before = append(store, &["a", "b", "c"]);
    let position = store.compact(before, b"abc", AnchorPayload::Keep).expect("the head is right");
    assert_eq!(position, store.position());
    assert_eq!((position.head.seq, position.durable.seq(), store.first_seq()), (4, 4, 4));
    append(store, &["d"]);
    let records = collect(store.read_from_snapshot());
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].kind, records[0].previous()), (RecordKind::Snapshot, before));
    assert_eq!((&records[0].body[..], &records[1].body[..]), (&b"abc"[..], &b"d"[..]));
    for asked in [0, 1, 3] {
        let refused = store.read_from(asked).map(drop);
        assert!(matches!(refused, Err(StoreError::Compacted { first: 4, .. })), "{refused:?}");
    }
    assert_eq!(read(store, 5), records[1..]);
    assert!(read(store, 6).is_empty());
    let again = store.compact(store.head(), b"abcd", AnchorPayload::Keep).expect("the head is right");
    assert_eq!((again.head.seq, store.first_seq()), (6, 6));
    assert_eq!(collect(store.read_from_snapshot()).len(), 1);
}

fn the_hash_depends_on_the_records_only<S: Store>(one: &mut S, other: &mut S) {
    append(one, &["a", "b"]);
    append(other, &["a"]);
    append(other, &["b"]);
    assert_eq!(one.head(), other.head());
    append(one, &["c"]);
    append(other, &["x"]);
    assert_ne!(one.head(), other.head());
}

fn append<S: Store>(store: &mut S, bodies: &[&str]) -> Head {
    let bodies = bodies.iter().map(|body| body.as_bytes().to_vec()).collect::<Vec<_>>();
    let position =
        store.append(store.head(), &bodies, AnchorPayload::Keep).expect("the append is within the limits");
    assert_eq!(position, store.position());
    assert_eq!(position.durable.seq(), position.head.seq);
    position.head
}

fn read<S: Store>(store: &S, from: u64) -> Vec<StoredRecord> {
    collect(store.read_from(from))
}

fn collect(records: Result<crate::Records<'_>, StoreError>) -> Vec<StoredRecord> {
    records.expect("the record is kept").collect::<Result<_, _>>().expect("the chain is whole")
}
