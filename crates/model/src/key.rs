//! Public keys as documents name them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::Digest;

/// A public key for signatures, written `ed25519:<base64 of 32 bytes>` or `p256:<base64 of the 33-byte compressed point>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PublicKey {
    /// An Ed25519 key (RFC 8032).
    Ed25519([u8; 32]),
    /// An ECDSA key on NIST P-256, as a compressed point (SEC 1).
    P256([u8; 33]),
}

/// Why a text is not a [`PublicKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// No known algorithm before the colon.
    #[error("a public key begins with `ed25519:` or `p256:`")]
    Algorithm,
    /// Not base64 of the right number of bytes.
    #[error("an {algorithm} public key is the base64 of {len} bytes")]
    Bytes {
        /// The algorithm before the colon.
        algorithm: &'static str,
        /// How many bytes it has.
        len: usize,
    },
}

/// SHA-256 over a public key's text. A hint for finding a key; it decides nothing.
pub type KeyId = Digest;

impl PublicKey {
    /// The key's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        Digest::of(self.to_string().as_bytes())
    }

    fn parts(&self) -> (&'static str, &[u8]) {
        match self {
            Self::Ed25519(bytes) => ("ed25519", bytes),
            Self::P256(bytes) => ("p256", bytes),
        }
    }
}

fn decode<const N: usize>(algorithm: &'static str, text: &str) -> Result<[u8; N], PublicKeyError> {
    STANDARD
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(PublicKeyError::Bytes { algorithm, len: N })
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (algorithm, bytes) = self.parts();
        write!(f, "{algorithm}:{}", STANDARD.encode(bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("ed25519", rest)) => decode("ed25519", rest).map(Self::Ed25519),
            Some(("p256", rest)) => decode("p256", rest).map(Self::P256),
            Some(_) | None => Err(PublicKeyError::Algorithm),
        }
    }
}

impl TryFrom<String> for PublicKey {
    type Error = PublicKeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_strict() {
        let key = PublicKey::Ed25519([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        let short = PublicKeyError::Bytes { algorithm: "ed25519", len: 32 };
        assert_eq!("ed25519:AAAA".parse::<PublicKey>(), Err(short));
        assert_eq!("rsa:AAAA".parse::<PublicKey>(), Err(PublicKeyError::Algorithm));
    }
}
