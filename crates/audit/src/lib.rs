//! The audit log without its file: an append-only Merkle tree (RFC 6962), signed checkpoints (C2SP tlog-checkpoint and
//! signed-note), the entries, the export that verifies offline, and what a witness believes.
//!
//! The crate never touches a file, a clock or a network: where entries are kept is the coordinator's business, where a
//! witness keeps what it has seen is the agent's. What may be forgotten here is nothing; whoever holds the key can still
//! write a false entry, and only ever once: every witness holds the checkpoint that covers it.
//!
//! Notes are written and read here and not by a library, because those there are bring a second implementation of
//! Ed25519; this one is a page, and its vectors are those of the specification.

mod authority;
mod checkpoint;
mod entry;
mod export;
mod note;
mod roots;
mod tree;
mod witness;

pub use authority::{Authority, AuthorityFault, RootHistory};
pub use checkpoint::{
    Checkpoint, CheckpointError, ORIGIN_BYTES_MAX, SignedCheckpoint, incarnation_of, origin,
};
pub use entry::{
    ENTRY_BYTES_MAX, Entry, EntryError, HOSTS_NAMED_MAX, Kind, ORDER_DOCUMENT, OpenOverrides, ROOT_DOCUMENT,
};
pub use export::{
    EXPORT_LINE_BYTES_MAX, EXPORT_ROOT_LINE_BYTES_MAX, ExportFault, ExportVerifier, LogVerifier, VerifiedLog,
    export_header, export_line, export_root_line,
};
pub use note::{NOTE_BYTES_MAX, NoteError, NoteKey, NoteSignature, SIGNATURES_MAX, SignedNote};
pub use roots::{EXPORT_ROOTS_MAX, follow_roots};
pub use tree::{ConsistencyFault, Edge, Nodes, consistency_proof, inclusion_proof, verify_consistency};
pub use witness::{Offer, PROOF_LEN_MAX, Remembered, WitnessFault, judge};
