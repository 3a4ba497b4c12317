//! Values that reports share.

use muster_model::{Digest, Version};

use super::{ConvertError, digest};
use crate::v1;

/// A release as reports name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseRef {
    /// The version, for people.
    pub version: Version,
    /// The manifest's digest: what the release is.
    pub manifest: Digest,
}

/// A release as reports name it.
pub fn release_ref(wire: &v1::ReleaseRef) -> Result<ReleaseRef, ConvertError> {
    Ok(ReleaseRef {
        version: Version::new(&wire.version).map_err(|error| ConvertError::invalid("version", error))?,
        manifest: digest("manifest", &wire.manifest)?,
    })
}

impl From<ReleaseRef> for v1::ReleaseRef {
    fn from(release: ReleaseRef) -> Self {
        Self { version: release.version.as_str().to_owned(), manifest: release.manifest.as_bytes().to_vec() }
    }
}
