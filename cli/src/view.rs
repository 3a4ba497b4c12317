//! What reports share.

use muster_model::{Digest, PublicKey, Root};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use serde::Serialize;

use crate::connect::KnownRelease;

/// A release as reports name it: always with its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ReleaseView {
    /// The version, for people.
    pub(crate) version: String,
    /// The manifest's digest: what the release is.
    pub(crate) digest: Digest,
}

impl ReleaseView {
    /// Version and the beginning of the digest, for tables.
    pub(crate) fn short(&self) -> String {
        format!("{} {}", self.version, self.digest.short())
    }

    /// From the wire, where it is optional.
    pub(crate) fn optional(wire: Option<&v1::ReleaseRef>) -> Result<Option<Self>, ConvertError> {
        wire.map(Self::try_from).transpose()
    }
}

impl std::fmt::Display for ReleaseView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.version, self.digest)
    }
}

impl TryFrom<&v1::ReleaseRef> for ReleaseView {
    type Error = ConvertError;

    fn try_from(wire: &v1::ReleaseRef) -> Result<Self, Self::Error> {
        let release = convert::release_ref(wire)?;
        Ok(Self { version: release.version.to_string(), digest: release.manifest })
    }
}

impl From<&KnownRelease> for ReleaseView {
    fn from(known: &KnownRelease) -> Self {
        Self { version: known.release.version.to_string(), digest: known.release.manifest }
    }
}

/// A key as it is told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct KeyView {
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// The key.
    pub(crate) key: PublicKey,
}

impl KeyView {
    /// As the root names it.
    pub(crate) fn of(root: &Root, key: &PublicKey) -> Self {
        Self { name: root.name_of(key).map(str::to_owned), key: key.clone() }
    }
}

impl std::fmt::Display for KeyView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.key),
            None => write!(f, "{}", self.key),
        }
    }
}

/// The most names that a line has.
const LISTED_MAX: usize = 8;

/// Some names, and how many more there are.
pub(crate) fn listed(names: &[impl std::fmt::Display]) -> String {
    let first: Vec<String> = names.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    match names.len().saturating_sub(LISTED_MAX) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// The name of a phase.
pub(crate) const fn phase_text(phase: v1::Phase) -> &'static str {
    match phase {
        v1::Phase::Unspecified => "unknown",
        v1::Phase::Settled => "settled",
        v1::Phase::Preparing => "preparing",
        v1::Phase::Arming => "arming",
        v1::Phase::Decided => "decided",
        v1::Phase::Opened => "opened",
    }
}
