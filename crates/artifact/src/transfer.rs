//! Which blobs a host lacks for a release.

use std::collections::BTreeMap;

use muster_model::{Digest, Manifest};

use crate::{ArtifactError, BlobStore};

/// What has to be fetched before a release can be installed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Each blob once with its size in bytes, the largest first: one that starts late would be waited for
    /// alone.
    pub missing: Vec<(Digest, u64)>,
    /// The bytes of all of them.
    pub bytes: u64,
}

/// Compares a manifest with a store. What an interrupted deployment fetched is there and is not fetched
/// again.
pub fn plan(manifest: &Manifest, blobs: &BlobStore) -> Result<Plan, ArtifactError> {
    let wanted: BTreeMap<Digest, u64> = manifest.files().map(|(_, size, digest)| (digest, size)).collect();
    let mut missing = Vec::new();
    for (digest, size) in wanted {
        if !blobs.contains(digest, Some(size))? {
            missing.push((digest, size));
        }
    }
    missing.sort_unstable_by_key(|&(digest, size)| (std::cmp::Reverse(size), digest));
    let bytes = missing.iter().map(|(_, size)| size).sum();
    Ok(Plan { missing, bytes })
}
