//! Why something is not a manifest: one name for each reason.

use std::fmt;

use super::{MAX_ENTRIES, MAX_FILE_BYTES, MAX_LINKS, MAX_MANIFEST_BYTES, MAX_RULES, MAX_TREE_BYTES};
use crate::{Digest, EntryPath, HostPath, PathError};

/// A list of the manifest's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleList {
    /// `absent`
    Absent,
    /// `external`
    External,
    /// `mutable`
    Mutable,
}

impl fmt::Display for RuleList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "absent",
            Self::External => "external",
            Self::Mutable => "mutable",
        })
    }
}

/// Why bytes or entries are not a manifest. `line` counts from 1, which is the header; the entries' lines are
/// those that the manifest has or would have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are what each message says")]
pub enum ManifestError {
    /// More bytes than any manifest has.
    #[error("this manifest has {len} bytes; at most {MAX_MANIFEST_BYTES} are read")]
    TooLarge { len: usize },
    /// A format version that this program does not read.
    #[error("this manifest has format `{found}`; this program reads `muster.manifest/1`")]
    Format { found: String },
    /// Not a JSON object of the expected shape: an unknown, missing or repeated field, or a value of the
    /// wrong type.
    #[error("line {line} of the manifest is malformed: {reason}")]
    Syntax { line: usize, reason: String },
    /// The same content in another spelling.
    #[error("line {line} of the manifest is not in its one encoding (blanks, order of fields, escapes)")]
    NotCanonical { line: usize },
    /// The last line does not end with a newline.
    #[error("line {line} of the manifest does not end: the manifest is cut off")]
    CutOff { line: usize },
    /// A path that no entry may have, or a target that no symlink may have.
    #[error("line {line} of the manifest has a bad path")]
    Path {
        line: usize,
        #[source]
        source: PathError,
    },
    /// A path in the header that is not allowed there.
    #[error("`{list}` has a bad path")]
    RulePath {
        list: RuleList,
        #[source]
        source: PathError,
    },
    /// Permission bits outside 0777.
    #[error(
        "`{path}` (line {line}) has mode {bits:04o}: set-user-id, set-group-id and sticky bits are refused"
    )]
    SpecialMode { line: usize, path: EntryPath, bits: u32 },
    /// The same path twice.
    #[error("`{path}` (line {line}) is listed twice")]
    Duplicate { line: usize, path: EntryPath },
    /// Entries that are not in the order of their paths' bytes.
    #[error("`{path}` (line {line}) is out of order: it stands after `{after}`")]
    Unsorted { line: usize, path: EntryPath, after: EntryPath },
    /// An entry whose folder is not listed.
    #[error("`{path}` (line {line}) is in a folder that is not listed")]
    NoParent { line: usize, path: EntryPath },
    /// An entry below a file.
    #[error("`{path}` (line {line}) lies under the file `{parent}`")]
    UnderFile { line: usize, path: EntryPath, parent: EntryPath },
    /// An entry below a symlink.
    #[error("`{path}` (line {line}) lies under the symlink `{parent}`")]
    UnderSymlink { line: usize, path: EntryPath, parent: EntryPath },
    /// A symlink that leads back to itself, or through too many others.
    #[error("the symlink `{path}` (line {line}) leads in a circle or through more than {MAX_LINKS} symlinks")]
    LinkCycle { line: usize, path: EntryPath },
    /// A file that is larger than a file can be.
    #[error("`{path}` (line {line}) has {size} bytes; at most {MAX_FILE_BYTES}")]
    FileTooLarge { line: usize, path: EntryPath, size: u64 },
    /// All files together are too large.
    #[error("the tree has more than {MAX_TREE_BYTES} bytes (reached at `{path}`, line {line})")]
    TreeTooLarge { line: usize, path: EntryPath },
    /// More entries than a tree may have.
    #[error("the tree has {entries} entries; at most {MAX_ENTRIES}")]
    TooManyEntries { entries: u64 },
    /// The header states another number of entries than follow.
    #[error("the header states {stated} entries, {found} follow")]
    EntriesStated { stated: u64, found: u64 },
    /// The header states another number of bytes than the files have.
    #[error("the header states {stated} bytes, the files have {found}")]
    BytesStated { stated: u64, found: u64 },
    /// One manifest for each class of hosts, which this version does not support.
    #[error("`variants` (one manifest for each class of hosts) are not supported yet")]
    VariantsUnsupported,
    /// A list of the header that is too long.
    #[error("`{list}` names {len} paths; at most {MAX_RULES}")]
    TooManyRules { list: RuleList, len: usize },
    /// A list of the header that is not sorted, or names a path twice.
    #[error("`{list}` is not sorted or names `{path}` twice")]
    RulesUnsorted { list: RuleList, path: String },
    /// A digest given for a check that takes none, or missing for the one that does, or an unknown check.
    #[error("external `{path}`: check `{check}` is unknown, lacks its digest, or takes none")]
    ExternalCheck { path: HostPath, check: String, digest: Option<Digest> },
    /// A mutable path inside another.
    #[error("mutable `{path}` lies inside mutable `{outer}`")]
    MutableNested { path: EntryPath, outer: EntryPath },
    /// A mutable path whose folder is not listed.
    #[error("mutable `{path}` is in a folder that is not listed")]
    MutableParent { path: EntryPath },
    /// A file or symlink at a mutable path, or any entry below one.
    #[error("`{path}` is listed though `{mutable}` is mutable: only a folder at that very path may be")]
    MutableEntry { path: EntryPath, mutable: EntryPath },
    /// An external path at or below one that must be absent.
    #[error("external `{path}` lies at or below `{absent}`, which must be absent")]
    AbsentExternal { path: HostPath, absent: HostPath },
}
