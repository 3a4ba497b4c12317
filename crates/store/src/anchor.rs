//! The anchor: a small file that says up to where the history was acknowledged.
//!
//! It has two slots of 4 KiB that are written in turn, so that a torn write leaves the other one whole. It is a
//! lower bound: a slot is written only after the database holds, durably, more than the other slot speaks of.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use muster_model::Digest;

use crate::disk::Disk;
use crate::{AnchorPayload, Head, StoreError};

/// The longest payload, in bytes, so that a slot is one page.
pub const MAX_ANCHOR_PAYLOAD_BYTES: usize = 3584;

const SLOT_BYTES: usize = 4096;
const SLOTS: usize = 2;
const MAGIC: &[u8; 8] = b"mustanch";
const FORMAT: u32 = 1;
const CRC_BYTES: usize = 4;

/// The payload that was given with an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnchoredPayload {
    /// The record that was the head once that append was durable.
    pub seq: u64,
    /// What the caller gave.
    pub bytes: Vec<u8>,
}

/// What one slot says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    generation: u64,
    head: Head,
    payload: Option<AnchoredPayload>,
}

/// How the slot beside the newest valid one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OtherSlot {
    Valid,
    Damaged,
}

/// What lies at the anchor's path.
#[derive(Debug)]
pub(crate) enum FoundAnchor {
    Absent,
    Damaged,
    Valid(Anchor, OtherSlot),
}

/// The open anchor file.
#[derive(Debug)]
pub(crate) struct Anchor {
    path: PathBuf,
    file: File,
    disk: Disk,
    newest: Slot,
    newest_index: usize,
}

impl Anchor {
    /// Creates the anchor at `path` with both slots at `head`: all of it or nothing.
    pub(crate) fn create(path: &Path, head: Head, disk: &Disk) -> Result<Self, StoreError> {
        let slot = |generation| Slot { generation, head, payload: None };
        let bytes = [slot(1).encode(), slot(2).encode()].concat();
        let temporary = path.with_extension("new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|source| StoreError::io("create", &temporary, source))?;
        disk.write_at(&file, &temporary, &bytes, 0)?;
        disk.sync_file(&file, &temporary)?;
        disk.rename(&temporary, path)?;
        Ok(Self { path: path.to_owned(), file, disk: disk.clone(), newest: slot(2), newest_index: 1 })
    }

    /// Reads both slots.
    pub(crate) fn find(path: &Path, disk: &Disk) -> Result<FoundAnchor, StoreError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FoundAnchor::Absent),
            Err(source) => return Err(StoreError::io("open", path, source)),
        };
        let mut bytes = Vec::with_capacity(SLOTS * SLOT_BYTES);
        (&file)
            .take((SLOTS * SLOT_BYTES) as u64)
            .read_to_end(&mut bytes)
            .map_err(|source| StoreError::io("read", path, source))?;
        if bytes.chunks(SLOT_BYTES).any(Slot::is_newer) {
            return Err(StoreError::Newer { path: path.to_owned() });
        }
        let mut slots = bytes.chunks(SLOT_BYTES).map(Slot::decode).collect::<Vec<_>>();
        slots.resize(SLOTS, None);
        let other = if slots.iter().all(Option::is_some) { OtherSlot::Valid } else { OtherSlot::Damaged };
        let newest = slots
            .into_iter()
            .enumerate()
            .filter_map(|(index, slot)| Some((index, slot?)))
            .max_by_key(|(_, slot)| slot.generation);
        let Some((newest_index, newest)) = newest else { return Ok(FoundAnchor::Damaged) };
        let anchor = Self { path: path.to_owned(), file, disk: disk.clone(), newest, newest_index };
        Ok(FoundAnchor::Valid(anchor, other))
    }

    /// What is acknowledged.
    pub(crate) const fn head(&self) -> Head {
        self.newest.head
    }

    /// The payload of the newest slot.
    pub(crate) const fn payload(&self) -> Option<&AnchoredPayload> {
        self.newest.payload.as_ref()
    }

    /// Acknowledges `head`, which the database holds durably; it is past the anchor's own.
    pub(crate) fn advance(&mut self, head: Head, payload: AnchorPayload<'_>) -> Result<(), StoreError> {
        debug_assert!(
            head.seq > self.newest.head.seq,
            "a damaged slot means that the chain once went further"
        );
        let payload = match payload {
            AnchorPayload::Keep => self.newest.payload.clone(),
            AnchorPayload::Replace(bytes) => Some(AnchoredPayload { seq: head.seq, bytes: bytes.to_vec() }),
        };
        let slot = Slot { generation: self.newest.generation + 1, head, payload };
        let index = SLOTS - 1 - self.newest_index;
        self.disk.write_at(&self.file, &self.path, &slot.encode(), (index * SLOT_BYTES) as u64)?;
        self.disk.sync_data(&self.file, &self.path)?;
        self.newest = slot;
        self.newest_index = index;
        Ok(())
    }
}

impl Slot {
    /// `magic, format, generation, seq, hash, payload seq, payload length, payload, zeros, crc`, big-endian.
    /// No payload is written as payload number 0, which no append ever has.
    fn encode(&self) -> Vec<u8> {
        let (payload_seq, payload) =
            self.payload.as_ref().map_or((0, &[][..]), |payload| (payload.seq, &payload.bytes));
        let payload_len = u32::try_from(payload.len()).expect("a payload is at most a slot long");
        let mut bytes = Vec::with_capacity(SLOT_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_be_bytes());
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&self.head.seq.to_be_bytes());
        bytes.extend_from_slice(self.head.hash.as_bytes());
        bytes.extend_from_slice(&payload_seq.to_be_bytes());
        bytes.extend_from_slice(&payload_len.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(SLOT_BYTES - CRC_BYTES, 0);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Whether a slot is whole, and in a format that this program does not read.
    fn is_newer(bytes: &[u8]) -> bool {
        checked_content(bytes)
            .and_then(|content| content.strip_prefix(MAGIC))
            .is_some_and(|rest| !rest.starts_with(&FORMAT.to_be_bytes()))
    }

    /// `None` for anything that [`Slot::encode`] did not write.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = checked_content(bytes)?.strip_prefix(MAGIC)?;
        let rest = rest.strip_prefix(&FORMAT.to_be_bytes())?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (hash, rest) = rest.split_first_chunk::<{ Digest::LEN }>()?;
        let (payload_seq, rest) = rest.split_first_chunk()?;
        let (payload_len, rest) = rest.split_first_chunk()?;
        let payload = rest.get(..usize::try_from(u32::from_be_bytes(*payload_len)).ok()?)?;
        let head = Head { seq: u64::from_be_bytes(*seq), hash: Digest::from_bytes(*hash) };
        let payload = match u64::from_be_bytes(*payload_seq) {
            0 => None,
            seq => Some(AnchoredPayload { seq, bytes: payload.to_vec() }),
        };
        Some(Self { generation: u64::from_be_bytes(*generation), head, payload })
    }
}

/// What comes before the checksum of a whole slot.
fn checked_content(bytes: &[u8]) -> Option<&[u8]> {
    let (content, crc) = bytes.split_last_chunk::<CRC_BYTES>()?;
    let whole = bytes.len() == SLOT_BYTES && crc32fast::hash(content) == u32::from_be_bytes(*crc);
    whole.then_some(content)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn found(path: &Path) -> (Anchor, OtherSlot) {
        match Anchor::find(path, &Disk::default()).unwrap() {
            FoundAnchor::Valid(anchor, other) => (anchor, other),
            FoundAnchor::Absent | FoundAnchor::Damaged => panic!("no valid slot"),
        }
    }

    fn damage(path: &Path, slot: usize) {
        let mut bytes = fs::read(path).unwrap();
        bytes[slot * SLOT_BYTES + 100] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn slots_alternate_and_the_newest_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchor");
        let mut anchor = Anchor::create(&path, Head::genesis(), &Disk::default()).unwrap();
        for seq in 1..=5 {
            let head = Head { seq, hash: Digest::of(&seq.to_be_bytes()) };
            let payload = if seq == 3 { AnchorPayload::Replace(b"three") } else { AnchorPayload::Keep };
            anchor.advance(head, payload).unwrap();
            let (read, other) = found(&path);
            assert_eq!((read.head(), other), (head, OtherSlot::Valid));
            let expected = (seq >= 3).then(|| AnchoredPayload { seq: 3, bytes: b"three".to_vec() });
            assert_eq!(read.payload(), expected.as_ref());
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
    }

    #[test]
    fn a_damaged_slot_is_told_and_overwritten_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchor");
        let at = |seq: u64| Head { seq, hash: Digest::of(&seq.to_be_bytes()) };
        let mut anchor = Anchor::create(&path, Head::genesis(), &Disk::default()).unwrap();
        anchor.advance(at(1), AnchorPayload::Keep).unwrap();
        anchor.advance(at(2), AnchorPayload::Keep).unwrap();
        damage(&path, 1);
        let (mut anchor, other) = found(&path);
        assert_eq!((anchor.head(), other), (at(1), OtherSlot::Damaged));
        anchor.advance(at(3), AnchorPayload::Keep).unwrap();
        let (anchor, other) = found(&path);
        assert_eq!((anchor.head(), other), (at(3), OtherSlot::Valid));
        damage(&path, 0);
        damage(&path, 1);
        assert!(matches!(Anchor::find(&path, &Disk::default()).unwrap(), FoundAnchor::Damaged));
        fs::write(&path, b"").unwrap();
        assert!(matches!(Anchor::find(&path, &Disk::default()).unwrap(), FoundAnchor::Damaged));
        fs::remove_file(&path).unwrap();
        assert!(matches!(Anchor::find(&path, &Disk::default()).unwrap(), FoundAnchor::Absent));
    }
}
