//! One mismatch between what a manifest says and what was found on a host.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{EntryPath, HostPath, PathError};

/// A path in the tree or on the host, told apart by the leading slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// A path in the tree.
    Tree(EntryPath),
    /// A path on the host.
    Host(HostPath),
}

/// In what way something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DifferenceKind {
    /// An entry is not there.
    Missing,
    /// Something is there that is not listed.
    Extra,
    /// It is of another type, such as a symlink in place of a folder.
    Type,
    /// Its permissions differ.
    Mode,
    /// Its size differs.
    Size,
    /// Its bytes differ.
    Content,
    /// The symlink points elsewhere.
    Target,
    /// It could not be read, or it changed while it was read.
    Unreadable,
    /// A path outside the tree is not as the release asks.
    External,
    /// A path that must be absent is there.
    Absent,
    /// It was replaced or written to since it was measured.
    Touched,
}

/// One mismatch between what a manifest says and what was found on a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Where.
    pub path: Place,
    /// In what way.
    pub kind: DifferenceKind,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub measured: String,
}

impl DifferenceKind {
    /// What is wrong, as the end of a sentence that begins with the path.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Missing => "is missing",
            Self::Extra => "should not be there",
            Self::Type => "is of another type",
            Self::Mode => "has other permissions",
            Self::Size => "has another size",
            Self::Content => "has other bytes",
            Self::Target => "points elsewhere",
            Self::Unreadable => "cannot be measured",
            Self::External => "is not as the release asks",
            Self::Absent => "must not exist",
            Self::Touched => "was changed since it was measured",
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, kind, expected, measured } = self;
        write!(f, "{path} {}: expected {expected}, measured {measured}", kind.describe())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(path) => fmt::Display::fmt(path, f),
            Self::Host(path) => fmt::Display::fmt(path, f),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.starts_with('/') {
            HostPath::from_text(&text).map(Self::Host)
        } else {
            EntryPath::from_text(&text).map(Self::Tree)
        }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}
