//! Records and how each one is bound to all before it.

use muster_model::{Digest, Durable};

use crate::{AnchorPayload, MAX_ANCHOR_PAYLOAD_BYTES, StoreError};

/// The longest body of a record, in bytes: a fleet's record names each of up to 20,000 hosts. A few KB are what the
/// store is fast with.
pub const MAX_BODY_BYTES: usize = 4 << 20;

/// The most records that one append takes.
pub const MAX_BATCH_RECORDS: usize = 1024;

/// The most bytes that the bodies of one append have together.
pub const MAX_BATCH_BYTES: usize = 8 << 20;

/// Separates the hash of a record from every other use of SHA-256.
const HASH_DOMAIN: &[u8] = b"muster.record/1\0";
const GENESIS_DOMAIN: &[u8] = b"muster.genesis/1\0";

const FORMAT: u8 = 1;
const CRC_BYTES: usize = 4;
/// Format, kind, number, previous hash, length of the body.
const HEADER_BYTES: usize = 1 + 1 + 8 + Digest::LEN + 4;

/// The longest encoded record, in bytes.
pub(crate) const MAX_ENCODED_BYTES: usize = HEADER_BYTES + MAX_BODY_BYTES + CRC_BYTES;

/// The end of a chain: the number of its last record and the hash over everything up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Head {
    /// The number of the last record; 0 while there is none.
    pub seq: u64,
    /// The hash of the last record; a fixed value while there is none.
    pub hash: Digest,
}

impl Head {
    /// The head of a chain without records.
    #[must_use]
    pub fn genesis() -> Self {
        Self { seq: 0, hash: Digest::of(GENESIS_DOMAIN) }
    }
}

/// A head, and the proof that everything up to it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Where the chain ends.
    pub head: Head,
    /// The proof for the records up to there.
    pub durable: Durable,
}

impl Position {
    /// States that the chain is durable up to `head`: for the two stores, once it is.
    #[expect(clippy::disallowed_methods, reason = "this is the one place in a store where the proof is made")]
    pub(crate) const fn durable_at(head: Head) -> Self {
        Self { head, durable: Durable::assert(head.seq) }
    }
}

/// What a record is to the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// One appended body.
    Entry,
    /// The caller's whole state: nothing before it is needed.
    Snapshot,
    /// The database was damaged, and the chain goes on from the anchor: the body is the anchor's payload, and
    /// records between the payload and this one are lost.
    HistoryLost,
}

impl RecordKind {
    /// Whether the chain is readable from this record on, without those before it.
    #[must_use]
    pub const fn is_base(self) -> bool {
        match self {
            Self::Entry => false,
            Self::Snapshot | Self::HistoryLost => true,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Entry => 0,
            Self::Snapshot => 1,
            Self::HistoryLost => 2,
        }
    }

    const fn from_byte(byte: u8) -> Result<Self, ChainFault> {
        match byte {
            0 => Ok(Self::Entry),
            1 => Ok(Self::Snapshot),
            2 => Ok(Self::HistoryLost),
            found => Err(ChainFault::Kind { found }),
        }
    }
}

/// Why a record is not the one that was written at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// The bytes are fewer or more than the record says.
    #[error("its length is wrong")]
    Length,
    /// The checksum does not match.
    #[error("its checksum does not match")]
    Checksum,
    /// A format that this program does not read.
    #[error("its format is {found}; this program reads {FORMAT} (was it written by a newer one?)")]
    Format {
        /// The format number.
        found: u8,
    },
    /// A kind that this program does not know.
    #[error("its kind {found} is unknown (was it written by a newer program?)")]
    Kind {
        /// The kind's number.
        found: u8,
    },
    /// The record carries another number than its place in the chain.
    #[error("it says that it is record {found}")]
    Place {
        /// The number in the record.
        found: u64,
    },
    /// The record is bound to another predecessor.
    #[error("it does not follow the record before it")]
    Link,
    /// The record is not there.
    #[error("it is missing")]
    Missing,
}

impl ChainFault {
    /// Whether the record is whole, and only newer than this program.
    pub(crate) const fn is_newer(self) -> bool {
        match self {
            Self::Format { .. } | Self::Kind { .. } => true,
            Self::Length | Self::Checksum | Self::Place { .. } | Self::Link | Self::Missing => false,
        }
    }
}

/// One record of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredRecord {
    /// Its number, from 1.
    pub seq: u64,
    /// What it is to the chain.
    pub kind: RecordKind,
    /// The hash of the record before it.
    pub prev_hash: Digest,
    /// The hash over its number, kind, predecessor and body.
    pub hash: Digest,
    /// What the caller appended.
    pub body: Vec<u8>,
}

impl StoredRecord {
    /// The chain's head once this record is the last.
    #[must_use]
    pub const fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }

    /// The chain's head before this record was appended.
    #[must_use]
    pub const fn previous(&self) -> Head {
        Head { seq: self.seq - 1, hash: self.prev_hash }
    }

    /// The record that follows `head`.
    pub(crate) fn after(head: Head, kind: RecordKind, body: Vec<u8>) -> Self {
        let seq = head.seq + 1;
        let hash = record_hash(kind, seq, &head.hash, &body);
        Self { seq, kind, prev_hash: head.hash, hash, body }
    }

    /// Checks that this record comes directly after `previous`.
    pub(crate) fn check_follows(&self, previous: Head) -> Result<(), ChainFault> {
        if self.seq != previous.seq + 1 {
            return Err(ChainFault::Place { found: self.seq });
        }
        if self.prev_hash != previous.hash {
            return Err(ChainFault::Link);
        }
        Ok(())
    }

    /// `format, kind, seq, prev_hash, body length, body, crc`, numbers big-endian.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let body_len = u32::try_from(self.body.len()).expect("a body is at most MAX_BODY_BYTES long");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.body.len() + CRC_BYTES);
        bytes.extend_from_slice(&[FORMAT, self.kind.byte()]);
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(self.prev_hash.as_bytes());
        bytes.extend_from_slice(&body_len.to_be_bytes());
        bytes.extend_from_slice(&self.body);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Reads what [`StoredRecord::encode`] wrote at place `seq`.
    pub(crate) fn decode(seq: u64, bytes: &[u8]) -> Result<Self, ChainFault> {
        let (content, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(ChainFault::Length)?;
        if crc32fast::hash(content) != u32::from_be_bytes(*crc) {
            return Err(ChainFault::Checksum);
        }
        let (&[format, kind], rest) = content.split_first_chunk::<2>().ok_or(ChainFault::Length)?;
        if format != FORMAT {
            return Err(ChainFault::Format { found: format });
        }
        let kind = RecordKind::from_byte(kind)?;
        let (found, rest) = rest.split_first_chunk::<8>().ok_or(ChainFault::Length)?;
        let (prev_hash, rest) = rest.split_first_chunk::<{ Digest::LEN }>().ok_or(ChainFault::Length)?;
        let (body_len, body) = rest.split_first_chunk::<4>().ok_or(ChainFault::Length)?;
        if usize::try_from(u32::from_be_bytes(*body_len)) != Ok(body.len()) || body.len() > MAX_BODY_BYTES {
            return Err(ChainFault::Length);
        }
        let found = u64::from_be_bytes(*found);
        // Neither number can be a record's: 0 is the genesis, and the last one would have no successor.
        if found != seq || found == 0 || found == u64::MAX {
            return Err(ChainFault::Place { found });
        }
        let prev_hash = Digest::from_bytes(*prev_hash);
        let hash = record_hash(kind, seq, &prev_hash, body);
        Ok(Self { seq, kind, prev_hash, hash, body: body.to_vec() })
    }
}

/// Builds the records that follow `head`, or names the limit that they pass.
pub(crate) fn entries_after(head: Head, bodies: &[Vec<u8>]) -> Result<Vec<StoredRecord>, StoreError> {
    check_batch(bodies)?;
    let mut last = head;
    let mut records = Vec::with_capacity(bodies.len());
    for body in bodies {
        let record = StoredRecord::after(last, RecordKind::Entry, body.clone());
        last = record.head();
        records.push(record);
    }
    Ok(records)
}

/// Builds the snapshot that follows `head`, or names the limit that it passes.
pub(crate) fn snapshot_after(head: Head, body: &[u8]) -> Result<StoredRecord, StoreError> {
    check_body(body)?;
    Ok(StoredRecord::after(head, RecordKind::Snapshot, body.to_vec()))
}

/// Refuses an append that was computed from another head.
pub(crate) fn check_head(expected: Head, actual: Head) -> Result<(), StoreError> {
    if expected == actual { Ok(()) } else { Err(StoreError::HeadMoved { expected, actual }) }
}

/// Refuses a payload that does not fit into a slot of the anchor.
pub(crate) fn check_payload(payload: AnchorPayload<'_>) -> Result<(), StoreError> {
    match payload {
        AnchorPayload::Keep => Ok(()),
        AnchorPayload::Replace(bytes) if bytes.len() <= MAX_ANCHOR_PAYLOAD_BYTES => Ok(()),
        AnchorPayload::Replace(bytes) => Err(StoreError::PayloadTooLarge { len: bytes.len() }),
    }
}

/// Where reading begins if `from` is asked for and `first` is the oldest record kept.
pub(crate) fn read_start(from: u64, first: u64) -> Result<u64, StoreError> {
    match from.max(1) {
        from if from < first => Err(StoreError::Compacted { asked: from, first }),
        from => Ok(from),
    }
}

fn check_batch(bodies: &[Vec<u8>]) -> Result<(), StoreError> {
    if bodies.is_empty() {
        return Err(StoreError::EmptyBatch);
    }
    bodies.iter().try_for_each(|body| check_body(body))?;
    let bytes = bodies.iter().map(Vec::len).sum();
    if bodies.len() > MAX_BATCH_RECORDS || bytes > MAX_BATCH_BYTES {
        return Err(StoreError::BatchTooLarge { records: bodies.len(), bytes });
    }
    Ok(())
}

fn check_body(body: &[u8]) -> Result<(), StoreError> {
    if body.len() > MAX_BODY_BYTES { Err(StoreError::BodyTooLarge { len: body.len() }) } else { Ok(()) }
}

/// The fields before the body have a fixed length, so that no two records give the same string of bytes.
fn record_hash(kind: RecordKind, seq: u64, prev_hash: &Digest, body: &[u8]) -> Digest {
    Digest::of_parts(&[HASH_DOMAIN, &[kind.byte()], &seq.to_be_bytes(), prev_hash.as_bytes(), body])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_every_changed_byte_is_noticed() {
        let record = StoredRecord::after(Head::genesis(), RecordKind::Snapshot, b"state".to_vec());
        let bytes = record.encode();
        assert_eq!(StoredRecord::decode(1, &bytes), Ok(record));
        assert_eq!(StoredRecord::decode(2, &bytes), Err(ChainFault::Place { found: 1 }));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(StoredRecord::decode(1, &damaged).is_err(), "byte {at}");
            assert!(StoredRecord::decode(1, &bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_a_newer_program_wrote_is_named() {
        let mut bytes = StoredRecord::after(Head::genesis(), RecordKind::Entry, Vec::new()).encode();
        let sealed = |bytes: &mut Vec<u8>| {
            bytes.truncate(bytes.len() - CRC_BYTES);
            let crc = crc32fast::hash(bytes);
            bytes.extend_from_slice(&crc.to_be_bytes());
        };
        bytes[1] = 9;
        sealed(&mut bytes);
        assert_eq!(StoredRecord::decode(1, &bytes), Err(ChainFault::Kind { found: 9 }));
        bytes[0] = 2;
        sealed(&mut bytes);
        assert_eq!(StoredRecord::decode(1, &bytes), Err(ChainFault::Format { found: 2 }));
    }

    #[test]
    fn the_hash_covers_kind_number_predecessor_and_body() {
        let record = |head, kind, body: &[u8]| StoredRecord::after(head, kind, body.to_vec()).hash;
        let genesis = Head::genesis();
        let reference = record(genesis, RecordKind::Entry, b"a");
        assert_ne!(reference, record(genesis, RecordKind::Snapshot, b"a"));
        assert_ne!(reference, record(genesis, RecordKind::Entry, b"b"));
        assert_ne!(reference, record(Head { seq: 1, ..genesis }, RecordKind::Entry, b"a"));
        assert_ne!(reference, record(Head { seq: 0, hash: reference }, RecordKind::Entry, b"a"));
    }
}
