//! What all signed documents share: a type, a format version, and bytes that are parsed once.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest document that is parsed, in bytes: a roster of 10,000 hosts has about 2 MiB.
pub const MAX_DOCUMENT_BYTES: usize = 8 << 20;

/// Which document a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DocumentKind {
    /// The root of trust: keys, roles and thresholds.
    Root,
    /// The exact set of hosts of a fleet.
    Roster,
    /// Hosts that a delegated key adds to a roster.
    Addition,
    /// A named manifest of a fleet.
    Release,
    /// The statement of one flip.
    Order,
    /// What one host measured.
    Attestation,
    /// That a coordinator of a new incarnation leads a fleet.
    Mandate,
    /// That one host has closed because a roster sets it aside.
    Withdrawal,
    /// That a host may start a release with no coordinator.
    GlassToken,
    /// That operators have looked at what a host did without a coordinator.
    GlassSettlement,
}

impl DocumentKind {
    /// The word used for this kind in texts and file names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Roster => "roster",
            Self::Addition => "addition",
            Self::Release => "release",
            Self::Order => "order",
            Self::Attestation => "attestation",
            Self::Mandate => "mandate",
            Self::Withdrawal => "withdrawal",
            Self::GlassToken => "break-glass token",
            Self::GlassSettlement => "glass settlement",
        }
    }

    /// The DSSE payload type. It is signed together with the payload, so that no document passes for another.
    #[must_use]
    pub const fn payload_type(self) -> &'static str {
        match self {
            Self::Root => "application/vnd.muster.root+json",
            Self::Roster => "application/vnd.muster.roster+json",
            Self::Addition => "application/vnd.muster.addition+json",
            Self::Release => "application/vnd.in-toto+json",
            Self::Order => "application/vnd.muster.order+json",
            Self::Attestation => "application/vnd.muster.attestation+json",
            Self::Mandate => "application/vnd.muster.mandate+json",
            Self::Withdrawal => "application/vnd.muster.withdrawal+json",
            Self::GlassToken => "application/vnd.muster.break-glass+json",
            Self::GlassSettlement => "application/vnd.muster.glass-settlement+json",
        }
    }
}

/// Why bytes are not a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// More bytes than any document has.
    #[error("this {kind} has {len} bytes; at most {max} are read")]
    TooLarge {
        /// Which document.
        kind: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Not JSON of the expected shape: syntax, an unknown or a missing field, a value out of range.
    #[error("this is not a valid {kind}: {reason}")]
    Syntax {
        /// Which document.
        kind: &'static str,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// The format version is not one that this program reads.
    #[error("this {kind} has format `{found}`; this program reads `{supported}` (is the sender newer?)")]
    Format {
        /// Which document.
        kind: &'static str,
        /// What the document says.
        found: String,
        /// What is supported.
        supported: &'static str,
    },
    /// The shape is right, the content is not.
    #[error("this {kind} does not hold together: {reason}")]
    Invalid {
        /// Which document.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A value that travels as the payload of a signed envelope.
pub trait Document: Sized {
    /// Which document it is.
    const KIND: DocumentKind;

    /// Parses the exact bytes that were signed. Strict: an unknown field is an error.
    fn parse(bytes: &[u8]) -> Result<Self, DocumentError>;

    /// The bytes to sign: compact JSON with fields in the order of declaration.
    fn to_bytes(&self) -> Vec<u8>;
}

/// Parses JSON of type `T`, bounded in size.
pub(crate) fn parse_json<T: DeserializeOwned>(kind: DocumentKind, bytes: &[u8]) -> Result<T, DocumentError> {
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(DocumentError::TooLarge { kind: kind.name(), len: bytes.len(), max: MAX_DOCUMENT_BYTES });
    }
    serde_json::from_slice(bytes)
        .map_err(|error| DocumentError::Syntax { kind: kind.name(), reason: error.to_string() })
}

/// Writes compact JSON.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("model values have string keys and no failing serialisers")
}

/// Checks a document's format version.
pub(crate) fn check_format(
    kind: DocumentKind,
    found: &str,
    supported: &'static str,
) -> Result<(), DocumentError> {
    if found == supported {
        return Ok(());
    }
    Err(DocumentError::Format { kind: kind.name(), found: found.to_owned(), supported })
}
