//! Packing: from a folder to its manifest.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;

use muster_model::{Entry, EntryKind, EntryPath, LinkTarget, Manifest, Mode, TreeRules};
use rustix::fs::FileType;

use crate::walk::{Found, FoundKind, Note, Reading, Walk, Walked};
use crate::{ArtifactError, OutsideLinks, Progress, Unpackable, UnpackableKind, VerityUse, handle};

/// How many unpackable entries an error names.
const NAMED_MAX: usize = 16;

/// How to pack.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// What the release says about paths beyond listing its entries.
    pub rules: TreeRules,
    /// What to do about symlinks that lead out of the tree.
    pub outside_links: OutsideLinks,
    /// How many threads read.
    pub jobs: NonZeroUsize,
}

/// A packed tree.
#[derive(Debug, Clone)]
pub struct Packed {
    /// What the tree is.
    pub manifest: Manifest,
    /// What its owner should know, in the order of the paths.
    pub warnings: Vec<Warning>,
}

/// Something that can be packed and probably should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub path: EntryPath,
    /// What.
    pub kind: WarningKind,
}

/// What a warning is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarningKind {
    /// A private key: it would be on every host and in the store, readable to whoever may read the release.
    PrivateKey,
    /// A symlink that leads out of the tree.
    LeadsOut {
        /// Where to.
        target: LinkTarget,
    },
}

/// Reads every byte of the folder `dir` and makes its manifest. The result depends on nothing but names,
/// types, modes, targets and bytes.
pub fn pack(dir: &Path, options: &PackOptions, progress: &Progress) -> Result<Packed, ArtifactError> {
    // The tree itself may be named through a symlink; what is in it may not.
    let resolved = dir.canonicalize().map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            return ArtifactError::TreeMissing { path: dir.to_owned() };
        }
        ArtifactError::io("find", dir, error)
    })?;
    let mut rules = options.rules.clone();
    rules.mutable.sort_unstable();
    let walk = Walk {
        reading: Reading::Packing,
        mutable: &rules.mutable,
        jobs: options.jobs,
        pace: None,
        verity: VerityUse::Off,
        progress,
    };
    let walked = walk.run(handle::open_tree(&resolved)?, dir)?;
    let (entries, mut warnings) = entries(dir, walked)?;
    let manifest = Manifest::new(entries, rules)
        .map_err(|source| ArtifactError::Manifest { path: dir.to_owned(), source })?;
    let leading_out = manifest.links_out();
    if options.outside_links == OutsideLinks::Refuse && !leading_out.is_empty() {
        let found = leading_out.iter().map(|entry| Unpackable {
            path: entry.path.to_string(),
            kind: UnpackableKind::LeadsOut(target(entry).to_string()),
        });
        return Err(refused(dir, found.collect()));
    }
    warnings.extend(leading_out.into_iter().map(|entry| Warning {
        path: entry.path.clone(),
        kind: WarningKind::LeadsOut { target: target(entry).clone() },
    }));
    warnings.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(Packed { manifest, warnings })
}

fn target(link: &Entry) -> &LinkTarget {
    match &link.kind {
        EntryKind::Symlink { target } => target,
        EntryKind::Dir { .. } | EntryKind::File { .. } => unreachable!("only symlinks lead out of a tree"),
    }
}

fn entries(dir: &Path, walked: Walked) -> Result<(Vec<Entry>, Vec<Warning>), ArtifactError> {
    let mut entries = Vec::with_capacity(walked.found.len());
    let mut warnings = Vec::new();
    let mut unpackable: Vec<_> = walked
        .beyond
        .iter()
        .map(|(folder, error)| Unpackable {
            path: folder.to_string(),
            kind: UnpackableKind::Path(error.to_string()),
        })
        .collect();
    for found in walked.found {
        if matches!(found.kind, FoundKind::File { note: Some(Note::PrivateKey), .. }) {
            warnings.push(Warning { path: found.path.clone(), kind: WarningKind::PrivateKey });
        }
        match entry_kind(&found) {
            Ok(Some(kind)) => entries.push(Entry { path: found.path, kind }),
            Ok(None) => {}
            Err(kind) => unpackable.push(Unpackable { path: found.path.to_string(), kind }),
        }
    }
    if unpackable.is_empty() { Ok((entries, warnings)) } else { Err(refused(dir, unpackable)) }
}

/// None for what is at a mutable path and is not a folder.
fn entry_kind(found: &Found) -> Result<Option<EntryKind>, UnpackableKind> {
    let mode = || {
        let bits = found.stamp.permissions();
        Mode::new(bits).map_err(|_| UnpackableKind::SpecialMode(bits))
    };
    Ok(Some(match &found.kind {
        FoundKind::Mutable(file_type) if *file_type != FileType::Directory => return Ok(None),
        FoundKind::Dir | FoundKind::Mutable(_) => EntryKind::Dir { mode: mode()? },
        FoundKind::File { note: Some(Note::Capabilities), .. } => return Err(UnpackableKind::Capabilities),
        FoundKind::File { digest, .. } => EntryKind::File {
            mode: mode()?,
            size: found.stamp.size,
            digest: digest.expect("a walk for packing reads every file"),
        },
        FoundKind::Symlink { target } => EntryKind::Symlink {
            target: LinkTarget::from_bytes(target)
                .map_err(|error| UnpackableKind::Path(error.to_string()))?,
        },
        FoundKind::Special(what) => return Err(UnpackableKind::Special(what)),
        FoundKind::Unreadable(why) => return Err(UnpackableKind::Unreadable(why.clone())),
    }))
}

fn refused(dir: &Path, mut found: Vec<Unpackable>) -> ArtifactError {
    let count = found.len();
    found.truncate(NAMED_MAX);
    ArtifactError::Unpackable { path: dir.to_owned(), found, count }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.kind {
            WarningKind::PrivateKey => write!(
                f,
                "`{path}` is a private key: every host and every reader of the release will have it; keep it \
                 outside the tree and name it as `external`"
            ),
            WarningKind::LeadsOut { target } => write!(
                f,
                "`{path}` points to `{target}` outside the tree: only the symlink is measured, not what it \
                 leads to; name that as `external` if it matters"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
