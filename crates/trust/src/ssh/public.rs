//! Public keys.

use std::fmt;
use std::path::Path;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use muster_model::{Digest, PublicKey};

use super::wire::Reader;
use crate::TrustError;
use crate::keys::read_small;

pub(super) const ED25519: &str = "ssh-ed25519";
pub(super) const P256: &str = "ecdsa-sha2-nistp256";
pub(super) const P256_CURVE: &str = "nistp256";

const POINT_LEN: usize = 65;
const UNCOMPRESSED: u8 = 4;

/// Why a key of OpenSSH cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// It is not written as a key is.
    Malformed,
    /// A key of another kind.
    Algorithm(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let make = "make one with `ssh-keygen -t ed25519`";
        match self {
            Self::Malformed => f.write_str("it is damaged, or not written by OpenSSH"),
            Self::Algorithm(name) if name.starts_with("sk-") => {
                write!(f, "{name} keys are refused: a security key signs more than the document; {make}")
            }
            Self::Algorithm(name) => {
                write!(
                    f,
                    "{} keys are refused, only Ed25519 and ECDSA P-256 are taken; {make}",
                    name.escape_debug()
                )
            }
        }
    }
}

/// A public key as people hand it over: our own text (`ed25519:…`, `p256:…`), or a line as in OpenSSH's `.pub` files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyText {
    /// The key.
    pub key: PublicKey,
    /// What OpenSSH's line says of it behind the key, such as `alice@example`.
    pub comment: Option<String>,
}

impl KeyText {
    /// Reads the text. The error completes "… cannot be used: ".
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or("there is no key in it")?;
        if lines.next().is_some() {
            return Err("there is more than one key in it".to_owned());
        }
        if line.contains("PRIVATE KEY") {
            return Err("it is a private key, which nobody should hand over; name its public half".to_owned());
        }
        if let Ok(key) = line.parse() {
            return Ok(Self { key, comment: None });
        }
        let mut words = line.splitn(3, char::is_whitespace);
        let (algorithm, blob) = (words.next(), words.next().and_then(|blob| STANDARD.decode(blob).ok()));
        let (Some(algorithm), Some(blob)) = (algorithm, blob) else {
            return Err(
                "a public key is `ed25519:…`, `p256:…`, or a line as in OpenSSH's `.pub` files".to_owned()
            );
        };
        if Reader::new(&blob).string() != Some(algorithm.as_bytes()) {
            return Err(Unusable::Malformed.to_string());
        }
        let key = of_blob(&blob).map_err(|unusable| unusable.to_string())?;
        let comment = words.next().map(str::trim).filter(|comment| !comment.is_empty()).map(str::to_owned);
        Ok(Self { key, comment })
    }
}

/// Reads a public key from a file, as [`KeyText`] has it.
pub fn public_key(path: &Path) -> Result<KeyText, TrustError> {
    let bytes = read_small(path)?;
    let content =
        |reason: String| TrustError::KeyFileContent { path: path.to_owned(), reason: reason.into() };
    let text = std::str::from_utf8(&bytes).map_err(|_| content("it is not text".to_owned()))?;
    KeyText::parse(text).map_err(content)
}

/// The public key of RFC 8709 (Ed25519) or RFC 5656 (P-256).
pub(super) fn of_blob(blob: &[u8]) -> Result<PublicKey, Unusable> {
    let mut reader = Reader::new(blob);
    let name = reader.string().and_then(|name| std::str::from_utf8(name).ok()).ok_or(Unusable::Malformed)?;
    let key = match name {
        ED25519 => reader.string().and_then(|key| key.try_into().ok()).map(PublicKey::Ed25519),
        P256 => {
            let curve = reader.string();
            let point = reader.string();
            point.filter(|_| curve == Some(P256_CURVE.as_bytes())).and_then(compressed)
        }
        _ => return Err(Unusable::Algorithm(name.to_owned())),
    };
    reader.end().and(key).ok_or(Unusable::Malformed)
}

/// What `ssh-keygen -l` shows.
pub(super) fn fingerprint(blob: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Digest::of(blob).as_bytes()))
}

/// SEC 1, 2.3.3: the first byte of a compressed point tells whether `y` is odd. It must lie on the curve.
pub(super) fn compressed(point: &[u8]) -> Option<PublicKey> {
    let point: &[u8; POINT_LEN] = point.try_into().ok()?;
    ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).ok()?;
    let [UNCOMPRESSED, coordinates @ ..] = point else { return None };
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    let mut key = [0; 33];
    key[0] = 2 + (y[y.len() - 1] & 1);
    key[1..].copy_from_slice(x);
    Some(PublicKey::P256(key))
}
