//! DSSE 1.0 envelopes: <https://github.com/secure-systems-lab/dsse>.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use muster_model::{Digest, MAX_DOCUMENT_BYTES};
use serde::{Deserialize, Serialize};

/// The largest envelope that is read, in bytes: the largest document in base64, with room for its signatures.
pub const ENVELOPE_BYTES_MAX: usize = 12 << 20;

/// The most signatures that an envelope may carry.
pub const SIGNATURES_MAX: usize = 100;

const _: () =
    assert!(MAX_DOCUMENT_BYTES / 3 * 4 < ENVELOPE_BYTES_MAX, "every document fits into an envelope");

/// One signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What the signer says of its key. It is not signed and decides nothing.
    pub keyid: Option<String>,
    /// The signature over [`pae`] of the payload type and the payload.
    pub sig: Vec<u8>,
}

/// A signed payload as it travels. Nothing in it is to be believed before it was verified.
///
/// The JSON is read strictly. DSSE has consumers ignore fields that they do not know; we refuse them, because every
/// envelope here is made by us, and bytes that nobody reads are a place to hide things in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    payload_type: String,
    payload: Vec<u8>,
    signatures: Vec<Signature>,
    raw: Arc<[u8]>,
}

/// Why bytes are not an [`Envelope`].
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// More bytes than are read.
    #[error("it has {len} bytes; at most {max} are read")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Not the JSON of an envelope.
    #[error(
        "it is not the JSON of a DSSE envelope with `payload`, `payloadType`, `signatures` and nothing else"
    )]
    Syntax {
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A field is not base64, neither standard nor URL-safe.
    #[error("its field `{field}` is not base64")]
    Base64 {
        /// Which field.
        field: &'static str,
        /// What the decoder said.
        #[source]
        source: base64::DecodeError,
    },
    /// No signature, or more than are read.
    #[error("it carries {found} signatures; from 1 to {SIGNATURES_MAX} are read")]
    Signatures {
        /// How many there are.
        found: usize,
    },
}

impl Envelope {
    /// Reads an envelope of at most [`ENVELOPE_BYTES_MAX`] bytes. No signature is verified.
    pub fn parse(raw: &[u8]) -> Result<Self, EnvelopeError> {
        Self::parse_bounded(raw, ENVELOPE_BYTES_MAX)
    }

    /// Reads an envelope of at most `max` bytes.
    pub(crate) fn parse_bounded(raw: &[u8], max: usize) -> Result<Self, EnvelopeError> {
        if raw.len() > max {
            return Err(EnvelopeError::TooLarge { len: raw.len(), max });
        }
        let wire: Wire<'_> =
            serde_json::from_slice(raw).map_err(|source| EnvelopeError::Syntax { source })?;
        check_signature_count(wire.signatures.len())?;
        let signatures = wire.signatures.into_iter().map(|signature| {
            let keyid = signature.keyid.filter(|keyid| !keyid.is_empty()).map(Cow::into_owned);
            Ok(Signature { keyid, sig: decode("sig", &signature.sig)? })
        });
        Ok(Self {
            payload_type: wire.payload_type.into_owned(),
            payload: decode("payload", &wire.payload)?,
            signatures: signatures.collect::<Result<_, _>>()?,
            raw: Arc::from(raw),
        })
    }

    /// Writes an envelope: compact JSON without a line break, standard base64.
    pub(crate) fn new(
        payload_type: &str,
        payload: Vec<u8>,
        signatures: Vec<Signature>,
    ) -> Result<Self, EnvelopeError> {
        check_signature_count(signatures.len())?;
        let wire = Wire {
            payload: STANDARD.encode(&payload).into(),
            payload_type: payload_type.into(),
            signatures: signatures
                .iter()
                .map(|signature| WireSignature {
                    keyid: signature.keyid.as_deref().map(Cow::from),
                    sig: STANDARD.encode(&signature.sig).into(),
                })
                .collect(),
        };
        let raw = serde_json::to_vec(&wire).expect("an envelope has string keys and no failing serialisers");
        if raw.len() > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::TooLarge { len: raw.len(), max: ENVELOPE_BYTES_MAX });
        }
        Ok(Self { payload_type: payload_type.to_owned(), payload, signatures, raw: raw.into() })
    }

    /// The same envelope as [`Envelope::new`] writes it.
    ///
    /// What was read in another layout may be written in one byte more than may be read; it stays as it is then.
    pub(crate) fn normal(self) -> Self {
        Self::new(&self.payload_type, self.payload.clone(), self.signatures.clone()).unwrap_or(self)
    }

    /// What the payload claims to be.
    #[must_use]
    pub fn payload_type(&self) -> &str {
        &self.payload_type
    }

    /// The exact bytes that were signed.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The signatures, of which none is verified.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The envelope's bytes as they arrived.
    #[must_use]
    pub fn raw(&self) -> &Arc<[u8]> {
        &self.raw
    }

    /// The digest of [`Envelope::raw`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.raw)
    }

    /// What every signature of this envelope signs.
    pub(crate) fn message(&self) -> Vec<u8> {
        pae(&self.payload_type, &self.payload)
    }
}

/// DSSE's pre-authentication encoding, which is what gets signed:
///
/// ```text
/// PAE(type, body) = "DSSEv1" + SP + LEN(type) + SP + type + SP + LEN(body) + SP + body
/// ```
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let header = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [header.as_bytes(), payload].concat()
}

const READ_STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, READ);
const READ_URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, READ);
const READ: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Reads either alphabet, but no mixture, with or without padding. Bits that no byte uses must be zero, so that no two
/// texts of one alphabet and padding mean the same bytes.
fn decode(field: &'static str, text: &str) -> Result<Vec<u8>, EnvelopeError> {
    let engine = if text.contains(['-', '_']) { &READ_URL_SAFE } else { &READ_STANDARD };
    engine.decode(text).map_err(|source| EnvelopeError::Base64 { field, source })
}

fn check_signature_count(found: usize) -> Result<(), EnvelopeError> {
    if (1..=SIGNATURES_MAX).contains(&found) { Ok(()) } else { Err(EnvelopeError::Signatures { found }) }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(borrow)]
    payload: Cow<'a, str>,
    #[serde(borrow, rename = "payloadType")]
    payload_type: Cow<'a, str>,
    #[serde(borrow)]
    signatures: Vec<WireSignature<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    keyid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    sig: Cow<'a, str>,
}

#[cfg(test)]
mod tests;
