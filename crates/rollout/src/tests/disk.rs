//! A file of the simulated world: what was not synced is lost when the power goes, and what was being written may be torn.

use super::random::SplitMix64;

/// Length and checksum of the body that follows.
const HEADER_BYTES: usize = 8;
/// How often the last bytes that reached the disk are not those that were written.
const GARBLED_PER_MILLE: u64 = 250;

/// An append-only file of records.
#[derive(Debug, Clone, Default)]
pub(super) struct File {
    bytes: Vec<u8>,
    /// How many of the bytes survive a loss of power.
    synced: usize,
    records: usize,
}

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// What it wrote stays in the page cache.
    Kill,
    /// Only what was synced stays.
    PowerOff,
}

impl File {
    /// Appends a record. It is not durable yet.
    pub(super) fn append(&mut self, body: &[u8]) {
        let len = u32::try_from(body.len()).expect("records are small");
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(&crc32fast::hash(body).to_be_bytes());
        self.bytes.extend_from_slice(body);
        self.records += 1;
    }

    /// Makes durable what was appended.
    pub(super) const fn sync(&mut self) {
        self.synced = self.bytes.len();
    }

    /// Puts `bodies` in the place of all that was written, in one durable step, as a renamed file is.
    pub(super) fn replace<'a>(&mut self, bodies: impl IntoIterator<Item = &'a [u8]>) {
        *self = Self::default();
        bodies.into_iter().for_each(|body| self.append(body));
        self.sync();
    }

    /// The power goes: any suffix of what was not synced is lost, and what is left of it may be garbled. Says whether
    /// there was anything to lose.
    pub(super) fn lose_power(&mut self, random: &mut SplitMix64) -> bool {
        let unsynced = self.bytes.len() - self.synced;
        if unsynced == 0 {
            return false;
        }
        self.bytes.truncate(self.synced + random.index(unsynced + 1));
        let kept = self.bytes.len() - self.synced;
        if kept > 0 && random.chance(GARBLED_PER_MILLE) {
            let garbled = 1 + random.index(kept);
            let from = self.bytes.len() - garbled;
            self.bytes[from..].fill(0);
        }
        true
    }

    /// Reads all records back, as a program does that starts: a torn tail is dropped, and what is left is synced before
    /// anything rests on it. Nothing if a record is damaged that was durable.
    pub(super) fn open(&mut self) -> Option<Vec<Vec<u8>>> {
        let mut bodies = Vec::new();
        let mut at = 0;
        while let Some(body) = intact(&self.bytes[at..]) {
            bodies.push(body.to_vec());
            at += HEADER_BYTES + body.len();
        }
        if at < self.synced {
            return None;
        }
        self.bytes.truncate(at);
        self.records = bodies.len();
        self.sync();
        Some(bodies)
    }

    /// How many records there are.
    pub(super) const fn len(&self) -> usize {
        self.records
    }
}

/// The body at the beginning of `bytes`, if it is all there.
fn intact(bytes: &[u8]) -> Option<&[u8]> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let body = rest.get(..usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
    // Zeros are what a file holds that has grown and was not written: no record is empty.
    (!body.is_empty() && crc32fast::hash(body) == u32::from_be_bytes(*checksum)).then_some(body)
}

#[test]
fn what_was_synced_survives_and_a_torn_tail_is_dropped() {
    for seed in 0..200 {
        let mut random = SplitMix64::new(seed);
        let mut file = File::default();
        file.append(b"synced");
        file.sync();
        file.append(b"written");
        file.append(b"written as well");
        assert!(file.lose_power(&mut random));
        let bodies = file.open().expect("nothing durable is damaged");
        let all: [&[u8]; 3] = [b"synced", b"written", b"written as well"];
        assert!(!bodies.is_empty() && all.starts_with(&bodies.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        file.append(b"later");
        file.sync();
        assert_eq!(file.open().map(|later| later.len()), Some(bodies.len() + 1));
    }
}
