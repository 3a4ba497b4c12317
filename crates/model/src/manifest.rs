//! The manifest: the closed-world list of an artifact's entries, and the exact bytes that are hashed.
//!
//! Format `muster.manifest/1` is JSON Lines: a header, then one line for each entry in the order of the
//! paths' bytes, each ended by a newline. Every manifest has exactly one encoding; any other is refused, so
//! that a digest names one tree and a tree has one digest. The root folder is not an entry: its name and mode
//! belong to the host.
//!
//! ```json
//! {"format":"muster.manifest/1","entries":3,"bytes":9,"absent":[],"external":[],"mutable":[],"variants":[]}
//! {"path":"bin","type":"dir","mode":"0755"}
//! {"path":"bin/run","type":"symlink","target":"server"}
//! {"path":"bin/server","type":"file","mode":"0755","size":9,"digest":"sha256:…"}
//! ```
//!
//! A symlink is measured by its target's text. One that leads out of the tree is allowed, as installed trees
//! are full of them, but what it leads to is not measured: [`Manifest::links_out`] names these, and
//! `external` is the way to have the other end measured too. One that leads round in a circle is refused.

mod change;
mod check;
mod difference;
mod error;
mod lines;
mod links;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use change::{Change, ChangeKind, Rule, diff};
pub use difference::{Difference, DifferenceKind, Place};
pub use error::{ManifestError, RuleList};

use crate::{Digest, EntryPath, HostPath, LinkTarget};

/// The largest manifest in bytes.
pub const MAX_MANIFEST_BYTES: usize = 256 << 20;
/// The greatest number of entries of a tree.
pub const MAX_ENTRIES: usize = 1_000_000;
/// The largest file in bytes: what a file offset can hold.
pub const MAX_FILE_BYTES: u64 = i64::MAX as u64;
/// The most bytes that all files of a tree have together: 1 TiB.
pub const MAX_TREE_BYTES: u64 = 1 << 40;
/// The greatest number of paths in each list of [`TreeRules`].
pub const MAX_RULES: usize = 4096;
/// How many symlinks the resolution of one path may take, as on Linux.
pub const MAX_LINKS: usize = 40;

/// A tree's entries and rules, checked, with the digest of their one encoding.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
    rules: TreeRules,
    total_bytes: u64,
    digest: Digest,
}

/// One folder, file or symlink of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Where it is.
    pub path: EntryPath,
    /// What it is.
    #[serde(flatten)]
    pub kind: EntryKind,
}

/// What an entry is, with all of it that is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum EntryKind {
    /// A folder.
    Dir {
        /// Its permissions.
        mode: Mode,
    },
    /// A regular file.
    File {
        /// Its permissions.
        mode: Mode,
        /// Its length in bytes.
        size: u64,
        /// SHA-256 of its content.
        digest: Digest,
    },
    /// A symlink. It has no permissions of its own.
    Symlink {
        /// Where it points to.
        target: LinkTarget,
    },
}

/// Permission bits, at most `0777`: set-user-id, set-group-id and sticky bits have no place in a tree.
/// Written with four octal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(u16);

/// Why a number or a text is not a [`Mode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// A bit outside `0777`.
    #[error("mode {bits:04o} has set-user-id, set-group-id or sticky bits; only 0777 is allowed")]
    Special {
        /// The bits given.
        bits: u32,
    },
    /// Not four octal digits.
    #[error("`{text}` is not a mode: four octal digits are needed")]
    Syntax {
        /// The text given.
        text: String,
    },
}

/// What a release says about paths beyond listing its entries.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeRules {
    /// Paths on the host at which there must be nothing, such as a binary of former times. In the tree itself
    /// whatever is not an entry must be absent anyway.
    pub absent: Vec<HostPath>,
    /// Paths on the host that belong to the service though they are not in the tree.
    pub external: Vec<External>,
    /// Paths in the tree that the service writes to. Nothing below such a path is measured or listed. Where
    /// the path itself is a folder entry, installing makes the folder and its type and mode are measured;
    /// where it is not an entry, a file or folder may come and go there. The folder that it is in is an entry
    /// or the root.
    pub mutable: Vec<EntryPath>,
}

/// A path on the host that belongs to the service though it is not in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Where it is. Symlinks on the way are followed: what counts is what the service gets.
    pub path: HostPath,
    /// What is asked of it.
    #[serde(flatten)]
    pub check: ExternalCheck,
}

/// What is asked of an external path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "check", rename_all = "lowercase")]
pub enum ExternalCheck {
    /// A file with this content. The digest is public with the release: not for a secret that could be
    /// guessed.
    Digest {
        /// SHA-256 of its content.
        digest: Digest,
    },
    /// A file with the same content on all hosts of the fleet.
    Uniform,
    /// Anything at all.
    Present,
}

impl Manifest {
    /// Checks entries and rules, in any order, and brings them into the manifest's order.
    pub fn new(mut entries: Vec<Entry>, mut rules: TreeRules) -> Result<Self, ManifestError> {
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        rules.absent.sort_unstable();
        rules.mutable.sort_unstable();
        rules.external.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let total_bytes = check::check(&entries, &rules)?;
        let bytes = lines::encode(&entries, &rules, total_bytes);
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge { len: bytes.len() });
        }
        Ok(Self { entries, rules, total_bytes, digest: Digest::of(&bytes) })
    }

    /// Reads the exact bytes of a manifest. Strict: whatever [`Manifest::to_bytes`] would write otherwise is
    /// an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let lines::Parsed { entries, rules, stated_bytes } = lines::parse(bytes)?;
        let total_bytes = check::check(&entries, &rules)?;
        if total_bytes != stated_bytes {
            return Err(ManifestError::BytesStated { stated: stated_bytes, found: total_bytes });
        }
        Ok(Self { entries, rules, total_bytes, digest: Digest::of(bytes) })
    }

    /// The manifest's one encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        lines::encode(&self.entries, &self.rules, self.total_bytes)
    }

    /// SHA-256 of the encoding: the identity of the tree.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// All entries in the order of their paths' bytes; a folder comes before what is in it.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What the release says about other paths.
    #[must_use]
    pub const fn rules(&self) -> &TreeRules {
        &self.rules
    }

    /// The entry at `path`.
    #[must_use]
    pub fn entry(&self, path: &EntryPath) -> Option<&Entry> {
        find(&self.entries, path.as_bytes()).map(|index| &self.entries[index])
    }

    /// The regular files: path, size and digest.
    pub fn files(&self) -> impl Iterator<Item = (&EntryPath, u64, Digest)> {
        self.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::File { size, digest, .. } => Some((&entry.path, *size, *digest)),
            EntryKind::Dir { .. } | EntryKind::Symlink { .. } => None,
        })
    }

    /// The bytes of all files together.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The symlinks that lead out of the tree, whose other end is not measured.
    #[must_use]
    pub fn links_out(&self) -> Vec<&Entry> {
        links::leading_out(&self.entries).into_iter().map(|index| &self.entries[index]).collect()
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Manifest({}, {} entries, {} bytes)", self.digest, self.entries.len(), self.total_bytes)
    }
}

impl Mode {
    /// Checks permission bits.
    pub const fn new(bits: u32) -> Result<Self, ModeError> {
        if bits > 0o777 {
            return Err(ModeError::Special { bits });
        }
        #[expect(clippy::cast_possible_truncation, reason = "0o777 fits")]
        Ok(Self(bits as u16))
    }

    /// The permission bits.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Mode {
    type Error = ModeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.len() != 4 || !text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
            return Err(ModeError::Syntax {
                text: text.chars().take(16).flat_map(char::escape_debug).collect(),
            });
        }
        Self::new(u32::from_str_radix(&text, 8).expect("four octal digits are a number"))
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        mode.to_string()
    }
}

impl EntryKind {
    /// The word for the type in texts and documents.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Dir { .. } => "dir",
            Self::File { .. } => "file",
            Self::Symlink { .. } => "symlink",
        }
    }
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir { mode } => write!(f, "dir, mode {mode}"),
            Self::File { mode, size, digest } => write!(f, "file, mode {mode}, {size} bytes, {digest}"),
            Self::Symlink { target } => write!(f, "symlink to `{target}`"),
        }
    }
}

/// The index of the entry with this path among sorted entries.
fn find(entries: &[Entry], path: &[u8]) -> Option<usize> {
    entries.binary_search_by(|entry| entry.path.as_bytes().cmp(path)).ok()
}
