//! Durable state: an append-only hash chain of records, and the proof that a record survives a crash.
//!
//! [`Store`] is the contract, [`MemStore`] the implementation for tests and simulation, [`SledStore`] the one
//! that daemons run: sled holds the records, and an anchor file beside it says up to where they were
//! acknowledged, because sled opens a damaged log as a shorter history without an error. The crate never reads
//! what a record says: bodies are opaque bytes, and what they mean is settled in `crates/rollout`. It never
//! decides what follows from a lost history either; it reports it as data ([`Recovery`]) or refuses to open.
//! The type that carries the proof, [`Durable`], lives in `crates/model`.
//!
//! A store that failed to write is poisoned: whether the bytes arrived is unknown, and a second `fsync` would
//! report success for pages that the kernel has dropped. Callers end the process with [`EXIT_STORAGE`], on
//! which the service manager does not restart it, since a restart would adopt the page cache, not the disk.

mod anchor;
mod backup;
mod chain;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod disk;
mod error;
mod lock;
mod log;
mod mem;
mod recovery;
mod sled_store;

pub use anchor::{AnchoredPayload, MAX_ANCHOR_PAYLOAD_BYTES};
pub use backup::{BackupFault, BackupSummary, backup, restore};
pub use chain::{
    ChainFault, Head, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_BODY_BYTES, Position, RecordKind, StoredRecord,
};
pub use error::{AnchorFault, Damage, StoreError};
pub use mem::MemStore;
pub use muster_model::Durable;
pub use recovery::{Opened, Options, Policy, Recovery};
pub use sled_store::SledStore;

/// Exit status of a process whose store failed (`EX_IOERR`); units list it in `RestartPreventExitStatus`.
pub const EXIT_STORAGE: u8 = 74;

/// Records in order, each verified against the chain; nothing follows an error.
pub type Records<'a> = Box<dyn Iterator<Item = Result<StoredRecord, StoreError>> + 'a>;

/// What happens to the anchor's payload when records are appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnchorPayload<'a> {
    /// The payload given earlier stays, together with the position it was given at.
    Keep,
    /// This payload replaces it: the caller's whole state as of the appended records, at most
    /// [`MAX_ANCHOR_PAYLOAD_BYTES`] long.
    Replace(&'a [u8]),
}

/// A durable, append-only chain of records with one writer.
pub trait Store: Send {
    /// The last position that was acknowledged, with the proof that it is durable.
    fn position(&self) -> Position;

    /// The number of the oldest record kept: the newest snapshot (or record of a lost history), otherwise 1.
    fn first_seq(&self) -> u64;

    /// Appends all bodies and returns only after they survive a crash. `expected` must equal the head.
    ///
    /// A crash before the return may keep any prefix of the bodies: they are records of their own.
    ///
    /// # Errors
    /// A refusal ([`StoreError::HeadMoved`], a limit) leaves the store as it was. Any other error poisons it.
    fn append(
        &mut self,
        expected: Head,
        bodies: &[Vec<u8>],
        payload: AnchorPayload<'_>,
    ) -> Result<Position, StoreError>;

    /// Appends a snapshot, makes it durable, and only then removes every record before it.
    ///
    /// # Errors
    /// As for [`Store::append`].
    fn compact(
        &mut self,
        expected: Head,
        snapshot: &[u8],
        payload: AnchorPayload<'_>,
    ) -> Result<Position, StoreError>;

    /// Whether this process is still the one writer, read anew: a grant may be given on the strength of it.
    ///
    /// # Errors
    /// [`StoreError::Usurped`] if another process may write the store, [`StoreError::Poisoned`].
    fn confirm(&self) -> Result<(), StoreError>;

    /// Every record from `from` on. 0 and 1 both mean the beginning; past the head there is nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if `from` was removed by a compaction, [`StoreError::Poisoned`].
    fn read_from(&self, from: u64) -> Result<Records<'_>, StoreError>;

    /// The newest snapshot, if there is one, and every record after it.
    ///
    /// # Errors
    /// As for [`Store::read_from`].
    fn read_from_snapshot(&self) -> Result<Records<'_>, StoreError> {
        self.read_from(self.first_seq())
    }

    /// The last acknowledged record's number and hash.
    fn head(&self) -> Head {
        self.position().head
    }
}
