//! The digest of what was measured.

use muster_model::{Digest, Entry, EntryKind, EntryPath, LinkTarget, Manifest, Mode, TreeRules};
use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};

use crate::walk::{Found, FoundKind, Walked};

/// Begins what is hashed for a tree that no manifest describes, so that it hashes to no manifest's digest.
const IRREGULAR: &[u8] = b"muster.irregular/1\n";

/// The digest of the manifest of what was found, or of a description of it where no manifest can say it.
/// `kept` are the rules as far as the host keeps them.
pub(super) fn digest(expected: &Manifest, walked: &Walked, kept: TreeRules) -> Digest {
    let entries: Option<Vec<Entry>> = walked
        .found
        .iter()
        .filter(|found| !is_unlisted_mutable(expected, found))
        .map(|found| Some(Entry { path: found.path.clone(), kind: entry_kind(found)? }))
        .collect();
    entries
        .filter(|_| walked.beyond.is_empty())
        .and_then(|entries| Manifest::new(entries, kept.clone()).ok())
        .map_or_else(|| irregular(walked, &kept), |manifest| manifest.digest())
}

/// Whether this is what came to be at a mutable path that is not an entry: nobody's concern.
pub(super) fn is_unlisted_mutable(expected: &Manifest, found: &Found) -> bool {
    matches!(found.kind, FoundKind::Mutable(_)) && expected.entry(&found.path).is_none()
}

/// None for what no entry can be.
pub(super) fn entry_kind(found: &Found) -> Option<EntryKind> {
    let mode = || Mode::new(found.stamp.permissions()).ok();
    match &found.kind {
        FoundKind::Dir | FoundKind::Mutable(FileType::Directory) => Some(EntryKind::Dir { mode: mode()? }),
        FoundKind::File { digest: Some(digest), .. } => {
            Some(EntryKind::File { mode: mode()?, size: found.stamp.size, digest: *digest })
        }
        FoundKind::Symlink { target } => {
            LinkTarget::from_bytes(target).ok().map(|target| EntryKind::Symlink { target })
        }
        FoundKind::File { digest: None, .. }
        | FoundKind::Mutable(_)
        | FoundKind::Special(_)
        | FoundKind::Unreadable(_) => None,
    }
}

fn irregular(walked: &Walked, kept: &TreeRules) -> Digest {
    let mut hasher = Sha256::new_with_prefix(IRREGULAR);
    let mut add = |path: Option<&EntryPath>, what: String| {
        hasher.update(format!("{path:?} {what}\n"));
    };
    for found in &walked.found {
        let kind = match &found.kind {
            FoundKind::Dir => "dir".to_owned(),
            FoundKind::File { digest, .. } => format!("file {} {digest:?}", found.stamp.size),
            FoundKind::Symlink { target } => format!("symlink {target:?}"),
            FoundKind::Mutable(file_type) => format!("mutable {file_type:?}"),
            FoundKind::Special(what) => (*what).to_owned(),
            FoundKind::Unreadable(why) => format!("unreadable {why}"),
        };
        add(Some(&found.path), format!("{:04o} {kind}", found.stamp.permissions()));
    }
    for (folder, error) in &walked.beyond {
        add(Some(folder), format!("beyond {error:?}"));
    }
    add(None, format!("{kept:?}"));
    Digest::from_bytes(hasher.finalize().into())
}
