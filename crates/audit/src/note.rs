//! Signed notes: text that people can read, with signatures below it (C2SP signed-note).
//!
//! "A signed note consists of a text ending in newline, followed by a blank line, followed by one or more signature lines":
//! an em dash, a space, the key's name, a space, base64 of four bytes of the key's id and the signature.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_model::{Digest, PublicKey};
use muster_trust::{Signer, TrustError, is_signed_by};

/// The longest note that is read, in bytes.
pub const NOTE_BYTES_MAX: usize = 2048;

/// The most signatures that are read of one note.
pub const SIGNATURES_MAX: usize = 16;

const SIGNATURE_PREFIX: &str = "\u{2014} ";
const ID_BYTES: usize = 4;

/// "0x01: Ed25519 signatures as specified in RFC 8032".
const ED25519: u8 = 1;

/// Why a note is not believed.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// Not a signed note.
    #[error("this is not a signed note: {reason}")]
    Syntax {
        /// What is wrong.
        reason: &'static str,
    },
    /// A name that no key has, or a key that is not Ed25519.
    #[error("this is not a key of a signed note: {reason}")]
    Key {
        /// What is wrong.
        reason: &'static str,
    },
    /// The key has not signed it.
    #[error("it carries no signature of the key {name}")]
    NotSigned {
        /// The key's name.
        name: String,
    },
    /// The signature is not one of this text.
    #[error("the signature of the key {name} does not hold")]
    Signature {
        /// The key's name.
        name: String,
    },
    /// It could not be signed.
    #[error("the note could not be signed")]
    Signing(#[source] TrustError),
}

/// A key that verifies notes, with the name that it signs under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteKey {
    name: String,
    public: [u8; 32],
}

/// One signature below a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    /// The name of the key.
    pub name: String,
    id: [u8; ID_BYTES],
    signature: Vec<u8>,
}

/// A note and its signatures, of which nothing is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    signatures: Vec<NoteSignature>,
}

impl NoteKey {
    /// The key `public` under `name`.
    pub fn new(name: &str, public: &PublicKey) -> Result<Self, NoteError> {
        // "non-empty, well-formed UTF-8 containing neither Unicode spaces nor plus".
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+') {
            return Err(NoteError::Key {
                reason: "the name is empty, or has a space, a plus or a control character",
            });
        }
        match public {
            PublicKey::Ed25519(public) => Ok(Self { name: name.to_owned(), public: *public }),
            PublicKey::P256(_) => Err(NoteError::Key { reason: "it is not an Ed25519 key" }),
        }
    }

    /// Reads a key as other tools write it: `name+id+base64`.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let wrong = |reason| NoteError::Key { reason };
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("it does not have the form NAME+ID+KEY"));
        };
        let bytes = STANDARD.decode(key).map_err(|_| wrong("its last part is not base64"))?;
        let Some((&ED25519, public)) = bytes.split_first() else {
            return Err(wrong("it is not an Ed25519 key"));
        };
        let public = public.try_into().map_err(|_| wrong("an Ed25519 key has 32 bytes"))?;
        let key = Self::new(name, &PublicKey::Ed25519(public))?;
        if hex::encode(key.id()) == id { Ok(key) } else { Err(wrong("its id is that of another key")) }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// "key ID = SHA-256(key name || 0x0A || signature type || public key)\[:4\]".
    #[must_use]
    pub fn id(&self) -> [u8; ID_BYTES] {
        let hash = Digest::of_parts(&[self.name.as_bytes(), b"\n", &[ED25519], &self.public]);
        *hash.as_bytes().first_chunk().expect("a digest is longer than an id")
    }
}

impl fmt::Display for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[ED25519], &self.public[..]].concat());
        write!(f, "{}+{}+{key}", self.name, hex::encode(self.id()))
    }
}

impl SignedNote {
    /// Signs `text`, which ends with a newline, under `name`.
    pub fn sign(text: String, name: &str, signer: &dyn Signer) -> Result<Self, NoteError> {
        check_text(&text)?;
        let key = NoteKey::new(name, signer.public())?;
        let signature = signer.sign(text.as_bytes()).map_err(NoteError::Signing)?;
        let signature = NoteSignature { name: key.name.clone(), id: key.id(), signature };
        Ok(Self { text, signatures: vec![signature] })
    }

    /// Reads a note, strictly: there is one way to write each.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        let wrong = |reason| NoteError::Syntax { reason };
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(wrong("it is too long"));
        }
        let note = std::str::from_utf8(bytes).map_err(|_| wrong("it is not text"))?;
        let (text, below) =
            note.rsplit_once("\n\n").ok_or(wrong("no blank line parts text and signatures"))?;
        let text = format!("{text}\n");
        check_text(&text)?;
        let below = below.strip_suffix('\n').ok_or(wrong("it does not end with a newline"))?;
        let signatures: Vec<NoteSignature> =
            below.split('\n').take(SIGNATURES_MAX + 1).map(NoteSignature::parse).collect::<Result<_, _>>()?;
        if signatures.len() > SIGNATURES_MAX {
            return Err(wrong("it has too many signatures"));
        }
        Ok(Self { text, signatures })
    }

    /// What is signed, with its last newline. It says nothing until it is verified.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether `key` has signed it. Signatures of other keys do not matter; one of this key that does not hold does.
    pub fn verify(&self, key: &NoteKey) -> Result<(), NoteError> {
        let id = key.id();
        let signed = self.signatures.iter().find(|it| it.name == key.name && it.id == id);
        let signed = signed.ok_or_else(|| NoteError::NotSigned { name: key.name.clone() })?;
        let public = PublicKey::Ed25519(key.public);
        if is_signed_by(&public, self.text.as_bytes(), &signed.signature) {
            Ok(())
        } else {
            Err(NoteError::Signature { name: key.name.clone() })
        }
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for NoteSignature { name, id, signature } in &self.signatures {
            let bytes = STANDARD.encode([&id[..], signature].concat());
            writeln!(f, "{SIGNATURE_PREFIX}{name} {bytes}")?;
        }
        Ok(())
    }
}

impl NoteSignature {
    fn parse(line: &str) -> Result<Self, NoteError> {
        let wrong = |reason| NoteError::Syntax { reason };
        let parts = line.strip_prefix(SIGNATURE_PREFIX).and_then(|line| line.split_once(' '));
        let (name, bytes) = parts.ok_or(wrong("a line below the text is no signature"))?;
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '+') {
            return Err(wrong("a signature has no name"));
        }
        let bytes = STANDARD.decode(bytes).map_err(|_| wrong("a signature is not base64"))?;
        match bytes.split_first_chunk() {
            Some((id, signature)) if !signature.is_empty() => {
                Ok(Self { name: name.to_owned(), id: *id, signature: signature.to_vec() })
            }
            Some(_) | None => Err(wrong("a signature is too short")),
        }
    }
}

fn check_text(text: &str) -> Result<(), NoteError> {
    let wrong = |reason| Err(NoteError::Syntax { reason });
    if !text.ends_with('\n') || text.len() < 2 {
        return wrong("its text does not end with a newline");
    }
    if text.contains(|c: char| c < ' ' && c != '\n') {
        return wrong("it contains a control character");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
