//! The verification of a whole log: as it arrives from a coordinator, and as it stands in an export.
//!
//! An export has a line of JSON with the log's key, its checkpoint and the number of root documents that follow. Each of these
//! has a line of its hash, a space, and its envelope as a string of JSON; then each entry has a line of the leaf's hash, a
//! space, and the entry. The hashes are there so that what is damaged can be named; the tree's root covers the entries
//! themselves, and root documents their own signatures.

use muster_model::{Digest, MerkleTree, PublicKey};
use muster_trust::{ROOT_BYTES_MAX, TrustError};
use serde::{Deserialize, Serialize};

use crate::authority::AuthorityFault;
use crate::checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
use crate::entry::{ENTRY_BYTES_MAX, Entry, EntryError};
use crate::roots::EXPORT_ROOTS_MAX;
use crate::tree::Edge;

const FORMAT: &str = "muster.audit-export/2";

/// That of exports that carry no root documents.
const FORMAT_WITHOUT_ROOTS: &str = "muster.audit-export/1";

/// The longest line of an export, in bytes, without its newline.
pub const EXPORT_LINE_BYTES_MAX: usize = ENTRY_BYTES_MAX + 2 * Digest::LEN + 1;

/// The longest line of a root document in one, in bytes, without its newline: of its quotes and newlines each takes two.
pub const EXPORT_ROOT_LINE_BYTES_MAX: usize = 2 * ROOT_BYTES_MAX + 2 * Digest::LEN + 3;

/// What of a log does not hold.
#[derive(Debug, thiserror::Error)]
pub enum ExportFault {
    /// The first line.
    #[error("header: {reason}")]
    Header {
        /// What is wrong with it.
        reason: String,
    },
    /// It names another key than the one that it is verified with.
    #[error("signature: the log is that of the key {found}, not of {expected}")]
    Key {
        /// The key that was expected.
        expected: PublicKey,
        /// The key that it names.
        found: PublicKey,
    },
    /// The checkpoint does not hold.
    #[error("signature: the checkpoint is not believed")]
    Checkpoint(#[source] CheckpointError),
    /// The line of a root document.
    #[error("root document {place}: it does not have the hash that stands beside it")]
    RootLine {
        /// Which of them, from 1.
        place: usize,
    },
    /// A root document that does not follow from what is trusted.
    #[error("root document {place}: it is not believed")]
    RootDocument {
        /// Which of them, from 1.
        place: usize,
        /// Why.
        #[source]
        source: TrustError,
    },
    /// A line that is not one of an entry.
    #[error("entry {entry}: its line does not begin with the hash of a leaf")]
    Line {
        /// Which.
        entry: u64,
    },
    /// The entry was changed, or its hash.
    #[error("entry {entry}: it does not have the hash that stands beside it")]
    LeafHash {
        /// Which.
        entry: u64,
    },
    /// What stands there is no entry, or not that of this place.
    #[error("entry {entry}: it cannot be read")]
    Entry {
        /// Which.
        entry: u64,
        /// Why.
        #[source]
        source: EntryError,
    },
    /// Entries are missing at the end.
    #[error("entry {found}: the log ends before it, and the checkpoint covers {expected} entries")]
    Ends {
        /// How many entries the checkpoint covers.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// There are more entries than the checkpoint covers.
    #[error("entry {expected}: the checkpoint covers only the {expected} entries before it")]
    Uncovered {
        /// How many entries the checkpoint covers.
        expected: u64,
    },
    /// What it says of roots and approvals is not so.
    #[error(transparent)]
    Authority(#[from] AuthorityFault),
    /// The entries are not those that were signed.
    #[error("proof: the entries have the root {found}, and the checkpoint says {expected}")]
    Root {
        /// The root that was signed.
        expected: Digest,
        /// The root of the entries.
        found: Digest,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    key: PublicKey,
    checkpoint: String,
    #[serde(default)]
    roots: usize,
}

/// The first line of an export, which so many root documents follow.
#[must_use]
pub fn export_header(key: &PublicKey, checkpoint: &SignedCheckpoint, roots: usize) -> String {
    let checkpoint = String::from_utf8_lossy(&checkpoint.to_bytes()).into_owned();
    let header = Header { format: FORMAT.to_owned(), key: key.clone(), checkpoint, roots };
    let mut line =
        serde_json::to_string(&header).expect("a header has string keys and no failing serialisers");
    line.push('\n');
    line
}

/// The line of one root document, by its envelope.
#[must_use]
pub fn export_root_line(envelope: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(envelope);
    let text = serde_json::to_vec(&text).expect("a string is written without failing");
    [Digest::of(envelope).hex().as_bytes(), b" ", &text, b"\n"].concat()
}

/// The line of one entry.
#[must_use]
pub fn export_line(entry: &[u8]) -> Vec<u8> {
    [MerkleTree::leaf_hash(entry).hex().as_bytes(), b" ", entry, b"\n"].concat()
}

/// A log of which every entry and the signature were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLog {
    /// What was signed.
    pub checkpoint: Checkpoint,
    /// The key that signed it.
    pub key: PublicKey,
}

/// Verifies entries, one after the other, against a checkpoint.
#[derive(Debug)]
pub struct LogVerifier {
    checkpoint: SignedCheckpoint,
    key: PublicKey,
    edge: Edge,
}

impl LogVerifier {
    /// Begins with a checkpoint that `key` must have signed.
    pub fn begin(checkpoint: &[u8], key: &PublicKey) -> Result<Self, ExportFault> {
        let checkpoint = SignedCheckpoint::open(checkpoint, key).map_err(ExportFault::Checkpoint)?;
        Ok(Self { checkpoint, key: key.clone(), edge: Edge::new() })
    }

    /// What was signed.
    #[must_use]
    pub const fn checkpoint(&self) -> &SignedCheckpoint {
        &self.checkpoint
    }

    /// The next entry. It is believed only once the whole log is.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Entry, ExportFault> {
        let (place, expected) = (self.edge.size(), self.checkpoint.checkpoint().size);
        if place >= expected {
            return Err(ExportFault::Uncovered { expected });
        }
        let entry =
            Entry::parse(bytes, place).map_err(|source| ExportFault::Entry { entry: place, source })?;
        self.edge.append(MerkleTree::leaf_hash(bytes), |_, _, _| {});
        Ok(entry)
    }

    /// Whether the entries are those that were signed.
    pub fn finish(self) -> Result<VerifiedLog, ExportFault> {
        let checkpoint = self.checkpoint.checkpoint().clone();
        let (found, root) = (self.edge.size(), self.edge.root());
        if found != checkpoint.size {
            return Err(ExportFault::Ends { expected: checkpoint.size, found });
        }
        if root != checkpoint.root {
            return Err(ExportFault::Root { expected: checkpoint.root, found: root });
        }
        Ok(VerifiedLog { checkpoint, key: self.key })
    }
}

/// Verifies an export, line by line.
#[derive(Debug)]
pub struct ExportVerifier {
    log: LogVerifier,
    roots: usize,
}

impl ExportVerifier {
    /// Begins with the first line, without its newline. `key` is the log's key, from somewhere that is trusted.
    pub fn begin(header: &[u8], key: &PublicKey) -> Result<Self, ExportFault> {
        let wrong = |reason: String| ExportFault::Header { reason };
        let header: Header = serde_json::from_slice(header).map_err(|error| wrong(error.to_string()))?;
        let roots_max = match header.format.as_str() {
            FORMAT => EXPORT_ROOTS_MAX,
            FORMAT_WITHOUT_ROOTS => 0,
            other => return Err(wrong(format!("its format is `{other}`; this program reads `{FORMAT}`"))),
        };
        if header.roots > roots_max {
            let reason = format!("it names {} root documents; at most {roots_max} are read", header.roots);
            return Err(wrong(reason));
        }
        if header.key != *key {
            return Err(ExportFault::Key { expected: key.clone(), found: header.key });
        }
        let log = LogVerifier::begin(header.checkpoint.as_bytes(), key)?;
        Ok(Self { log, roots: header.roots })
    }

    /// How many lines of root documents come before the entries.
    #[must_use]
    pub const fn roots(&self) -> usize {
        self.roots
    }

    /// The envelope in the line of the root document at `place`, from 1. Whether it is believed is for
    /// [`follow_roots`](crate::follow_roots).
    pub fn root(place: usize, line: &[u8]) -> Result<Vec<u8>, ExportFault> {
        let parts = hash_and_rest(line);
        let envelope = parts.and_then(|(hash, text)| {
            let text: String = serde_json::from_slice(text).ok()?;
            (Digest::of(text.as_bytes()).hex().as_bytes() == hash).then(|| text.into_bytes())
        });
        envelope.ok_or(ExportFault::RootLine { place })
    }

    /// The next line of an entry, without its newline.
    pub fn line(&mut self, line: &[u8]) -> Result<Entry, ExportFault> {
        let entry = self.log.edge.size();
        let (hash, bytes) = hash_and_rest(line).ok_or(ExportFault::Line { entry })?;
        if MerkleTree::leaf_hash(bytes).hex().as_bytes() != hash {
            return Err(ExportFault::LeafHash { entry });
        }
        self.log.push(bytes)
    }

    /// Whether the entries are those that were signed.
    pub fn finish(self) -> Result<VerifiedLog, ExportFault> {
        self.log.finish()
    }
}

fn hash_and_rest(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (hash, rest) = line.split_at_checked(2 * Digest::LEN)?;
    Some((hash, rest.strip_prefix(b" ")?))
}

#[cfg(test)]
mod tests;
