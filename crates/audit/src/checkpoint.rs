//! Checkpoints: what a log states of itself (C2SP tlog-checkpoint).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_model::{Digest, Incarnation, PublicKey};
use muster_trust::Signer;

use crate::note::{NoteError, NoteKey, SignedNote};

/// The longest origin, in bytes.
pub const ORIGIN_BYTES_MAX: usize = 255;

/// What parts the trust domain from the incarnation in the name of one of our logs.
const WITHIN_DOMAIN: &str = "/muster-audit/";

/// The origin of the log that a coordinator keeps in one life of its database.
#[must_use]
pub fn origin(trust_domain: &str, incarnation: Incarnation) -> String {
    format!("{trust_domain}{WITHIN_DOMAIN}{incarnation}")
}

/// The life of the database whose log this is.
#[must_use]
pub fn incarnation_of(origin: &str) -> Option<Incarnation> {
    let (_, number) = origin.rsplit_once(WITHIN_DOMAIN)?;
    decimal(number).map(Incarnation)
}

/// How many entries a log has, and the root over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// How many entries.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Digest,
}

/// A checkpoint whose signature by the log's key was verified, or made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: SignedNote,
}

/// Why a checkpoint is not believed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The note, or its signature.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is not a checkpoint.
    #[error("the note is not a checkpoint: {reason}")]
    Syntax {
        /// What is wrong.
        reason: &'static str,
    },
}

impl Checkpoint {
    /// The exact text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root.as_bytes()))
    }

    /// Reads exactly what [`Checkpoint::text`] writes. Extension lines, which our logs never have, are refused.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let wrong = |reason| CheckpointError::Syntax { reason };
        let lines: Vec<&str> = text.splitn(4, '\n').collect();
        let [origin, size, root, ""] = lines[..] else {
            return Err(wrong("it does not have three lines"));
        };
        if origin.is_empty() || origin.len() > ORIGIN_BYTES_MAX {
            return Err(wrong("its origin is empty or too long"));
        }
        let size = decimal(size).ok_or(wrong("its second line is not a number of entries"))?;
        let root = STANDARD.decode(root).ok().and_then(|bytes| bytes.try_into().ok());
        let root = root.map(Digest::from_bytes).ok_or(wrong("its third line is not a root"))?;
        Ok(Self { origin: origin.to_owned(), size, root })
    }
}

impl SignedCheckpoint {
    /// Signs a checkpoint under the name of its log.
    pub fn sign(checkpoint: Checkpoint, signer: &dyn Signer) -> Result<Self, CheckpointError> {
        let note = SignedNote::sign(checkpoint.text(), &checkpoint.origin, signer)?;
        Ok(Self { checkpoint, note })
    }

    /// Reads a checkpoint that `key` has signed under the name of its log.
    pub fn open(bytes: &[u8], key: &PublicKey) -> Result<Self, CheckpointError> {
        let note = SignedNote::parse(bytes)?;
        let checkpoint = Checkpoint::parse(note.text())?;
        note.verify(&NoteKey::new(&checkpoint.origin, key)?)?;
        Ok(Self { checkpoint, note })
    }

    /// What it states.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The signed note.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.note.to_string().into_bytes()
    }
}

/// "the ASCII decimal encoding of the number of leaves with no leading zeroes".
fn decimal(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use muster_trust::{KeyAlgorithm, SigningKey};

    use super::*;

    const ROOT: &str = "qINS1GRFhWHwdkUeqLEoP4yEMkTBBzxBkGwGQlVlVcs=";

    #[test]
    fn the_text_has_one_form() {
        let text = format!("muster.local/muster-audit/17\n20852163\n{ROOT}\n");
        let checkpoint = Checkpoint::parse(&text).unwrap();
        assert_eq!(checkpoint.size, 20_852_163);
        assert_eq!(checkpoint.text(), text);
        assert_eq!(incarnation_of(&checkpoint.origin), Some(Incarnation(17)));
        assert_eq!(checkpoint.origin, origin("muster.local", Incarnation(17)));
        for wrong in [
            text.trim_end().to_owned(),
            text.replace("20852163", "020852163"),
            text.replace("20852163", "+1"),
            text.replace("20852163", ""),
            text.replace("20852163", "18446744073709551616"),
            text.replace("Vcs=", "Vcs"),
            text.replace("qINS", "qIN"),
            format!("{text}more\n"),
            format!("\n{text}"),
            text.replace("muster.local", &"m".repeat(ORIGIN_BYTES_MAX)),
        ] {
            assert!(Checkpoint::parse(&wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(incarnation_of("example.com/log"), None);
        assert_eq!(incarnation_of("a/muster-audit/01"), None);
    }

    #[test]
    fn a_checkpoint_is_believed_with_its_logs_key_alone() {
        let key = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
        let checkpoint = Checkpoint { origin: origin("a", Incarnation(1)), size: 3, root: Digest::of(b"r") };
        let signed = SignedCheckpoint::sign(checkpoint.clone(), &key).unwrap();
        let bytes = signed.to_bytes();
        assert_eq!(*SignedCheckpoint::open(&bytes, key.public()).unwrap().checkpoint(), checkpoint);
        let other = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
        assert!(SignedCheckpoint::open(&bytes, other.public()).is_err());
        // A note of the same key about another log.
        let elsewhere = SignedNote::sign(checkpoint.text(), "b/muster-audit/1", &key).unwrap();
        let refused = SignedCheckpoint::open(elsewhere.to_string().as_bytes(), key.public());
        assert!(matches!(refused, Err(CheckpointError::Note(NoteError::NotSigned { .. }))));
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1;
            assert!(SignedCheckpoint::open(&flipped, key.public()).is_err(), "byte {position}");
        }
    }
}
