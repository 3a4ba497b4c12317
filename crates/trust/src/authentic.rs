//! Signing documents, and believing them by a threshold of keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_model::{Digest, Document, DocumentKind, PublicKey, RoleKeys, Verified};

use crate::dsse::{ENVELOPE_BYTES_MAX, Envelope, Signature, pae};
use crate::keys::{Signer, is_signed_by};
use crate::{DocumentName, TrustError};

/// How much may be hashed for one envelope, in bytes: about a second of work.
const WORK_BYTES_MAX: u64 = 1 << 30;

/// What one check of a signature costs besides hashing the message, in bytes that could be hashed in that time.
const CHECK_COST_BYTES: u64 = 64 << 10;

/// A document whose signatures were verified, with the bytes that prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentic<T> {
    document: Verified<T>,
    payload_digest: Digest,
    envelope_digest: Digest,
    signers: Vec<PublicKey>,
    raw: Arc<[u8]>,
}

impl<T> Authentic<T> {
    /// The document.
    #[must_use]
    pub const fn document(&self) -> &Verified<T> {
        &self.document
    }

    /// The document, without its envelope.
    #[must_use]
    pub fn into_document(self) -> Verified<T> {
        self.document
    }

    /// The digest of the bytes that were signed: what other documents refer to.
    #[must_use]
    pub const fn payload_digest(&self) -> Digest {
        self.payload_digest
    }

    /// The digest of the whole envelope. It changes when a signature is added.
    #[must_use]
    pub const fn envelope_digest(&self) -> Digest {
        self.envelope_digest
    }

    /// The keys that may sign it and did, each once, sorted.
    #[must_use]
    pub fn signers(&self) -> &[PublicKey] {
        &self.signers
    }

    /// The envelope as it arrived.
    #[must_use]
    pub const fn raw(&self) -> &Arc<[u8]> {
        &self.raw
    }

    /// The digest of the envelope as this crate would write it: the same for all layouts of its JSON.
    pub(crate) fn normal_digest(&self) -> Digest {
        Envelope::parse(&self.raw).expect("an authentic envelope was parsed before").normal().digest()
    }

    /// The same envelope for what its document stands for. The caller has worked that out of verified documents alone.
    #[expect(clippy::disallowed_methods, reason = "the proof is that of the document it was worked out of")]
    pub(crate) fn standing_for<U>(self, document: U) -> Authentic<U> {
        let Self { document: _, payload_digest, envelope_digest, signers, raw } = self;
        Authentic { document: Verified::assert(document), payload_digest, envelope_digest, signers, raw }
    }

    /// Binds a document to the envelope that it was parsed from. The caller has verified `signers`.
    #[expect(clippy::disallowed_methods, reason = "this is the one place where the proof is made")]
    pub(crate) fn new(document: T, signers: Vec<PublicKey>, envelope: &Envelope) -> Self {
        Self {
            document: Verified::assert(document),
            payload_digest: Digest::of(envelope.payload()),
            envelope_digest: envelope.digest(),
            signers,
            raw: Arc::clone(envelope.raw()),
        }
    }
}

/// Signs a document with every one of `signers`.
///
/// A document that could not be parsed again is refused before anything is signed.
pub fn sign<T: Document>(document: &T, signers: &[&dyn Signer]) -> Result<Envelope, TrustError> {
    let payload = document.to_bytes();
    parse::<T>(&payload, &T::KIND.into())?;
    let message = pae(T::KIND.payload_type(), &payload);
    let signatures =
        signers.iter().map(|signer| signature(*signer, &message)).collect::<Result<Vec<_>, _>>()?;
    seal(T::KIND, payload, signatures)
}

/// Adds a signature to an envelope that holds a document of type `T`. A key that has signed already is not added again.
///
/// What is signed was parsed first, so that nobody signs what is not what it claims to be.
pub fn add_signature<T: Document>(envelope: &Envelope, signer: &dyn Signer) -> Result<Envelope, TrustError> {
    let name = T::KIND.into();
    check_payload_type(envelope, T::KIND, &name)?;
    parse::<T>(envelope.payload(), &name)?;
    let message = envelope.message();
    let signatures = envelope.signatures();
    if signatures.iter().any(|present| is_signed_by(signer.public(), &message, &present.sig)) {
        return Ok(envelope.clone());
    }
    let signatures = [signatures, &[signature(signer, &message)?]].concat();
    seal(T::KIND, envelope.payload().to_vec(), signatures)
}

/// Puts the signatures of envelopes of one and the same document together: of each of `keys` that signed it one
/// signature, and no others. An envelope cannot grow beyond that, whoever sends what.
pub fn join_signatures<T: Document>(
    envelopes: &[&Envelope],
    keys: &RoleKeys,
) -> Result<Envelope, TrustError> {
    let name: DocumentName = T::KIND.into();
    let Some((first, others)) = envelopes.split_first() else {
        return Err(TrustError::OtherPayload { document: name });
    };
    let mut joined = Vec::new();
    for envelope in envelopes {
        check_payload_type(envelope, T::KIND, &name)?;
        parse::<T>(envelope.payload(), &name)?;
    }
    if others.iter().any(|other| other.payload() != first.payload()) {
        return Err(TrustError::OtherPayload { document: name });
    }
    let message = first.message();
    for envelope in envelopes {
        for key in signers(envelope, &name, keys)? {
            let is_new = |joined: &Vec<Signature>| {
                !joined.iter().any(|known| is_signed_by(&key, &message, &known.sig))
            };
            let by_key = |it: &&Signature| is_signed_by(&key, &message, &it.sig);
            if is_new(&joined)
                && let Some(signature) = envelope.signatures().iter().find(by_key)
            {
                joined.push(Signature { keyid: Some(key.id().to_string()), sig: signature.sig.clone() });
            }
        }
    }
    seal(T::KIND, first.payload().to_vec(), joined)
}

/// Verifies that at least the threshold of unique keys signed a document of type `T`, then parses it.
pub fn verify<T: Document>(raw: &[u8], keys: &RoleKeys) -> Result<Authentic<T>, TrustError> {
    let name = T::KIND.into();
    let envelope = open(raw, ENVELOPE_BYTES_MAX, T::KIND, &name)?;
    let signers = check_threshold(&envelope, &name, signing_role(T::KIND), keys)?;
    let document = parse(envelope.payload(), &name)?;
    Ok(Authentic::new(document, signers, &envelope))
}

/// Reads an envelope of at most `bytes_max` bytes that claims to hold a document of this kind.
pub(crate) fn open(
    raw: &[u8],
    bytes_max: usize,
    kind: DocumentKind,
    name: &DocumentName,
) -> Result<Envelope, TrustError> {
    let envelope = Envelope::parse_bounded(raw, bytes_max)
        .map_err(|source| TrustError::Envelope { document: name.clone(), source })?;
    check_payload_type(&envelope, kind, name)?;
    Ok(envelope)
}

/// Parses a payload.
pub(crate) fn parse<T: Document>(payload: &[u8], name: &DocumentName) -> Result<T, TrustError> {
    T::parse(payload).map_err(|source| TrustError::Document { document: name.clone(), source })
}

/// The keys that signed, if they are enough. DSSE 1.0, multi-signature verification:
///
/// > A (t, n)-envelope is valid if the enclosed signatures pass the verification against at least t of n unique trusted
/// > public keys.
///
/// Keys are counted and not signatures, so one key counts once however often it signed and by whatever key ids. Key ids
/// are not looked at. Signatures by other keys are passed over.
pub(crate) fn check_threshold(
    envelope: &Envelope,
    document: &DocumentName,
    role: &'static str,
    trusted: &RoleKeys,
) -> Result<Vec<PublicKey>, TrustError> {
    let unique: BTreeSet<&PublicKey> = trusted.keys.iter().collect();
    let threshold = trusted.threshold as usize;
    if threshold == 0 || threshold > unique.len() {
        return Err(TrustError::Keys { role, threshold, keys: unique.len() });
    }
    let signers = signers(envelope, document, trusted)?;
    if signers.len() < threshold {
        return Err(TrustError::Threshold {
            document: document.clone(),
            role,
            signed: signers.len(),
            threshold,
            keys: unique.len(),
        });
    }
    Ok(signers)
}

/// The unique keys among `trusted` that signed, however many those are.
pub(crate) fn signers(
    envelope: &Envelope,
    document: &DocumentName,
    trusted: &RoleKeys,
) -> Result<Vec<PublicKey>, TrustError> {
    let unique: BTreeSet<&PublicKey> = trusted.keys.iter().collect();
    let message = envelope.message();
    let checks = unique.len() as u64 * envelope.signatures().len() as u64;
    if checks.saturating_mul(message.len() as u64 + CHECK_COST_BYTES) > WORK_BYTES_MAX {
        return Err(TrustError::TooMuchWork { document: document.clone(), checks });
    }
    let has_signed = |key: &PublicKey| {
        envelope.signatures().iter().any(|present| is_signed_by(key, &message, &present.sig))
    };
    Ok(unique.iter().filter(|key| has_signed(key)).map(|key| (*key).clone()).collect())
}

/// The role whose keys sign documents of this kind, as people call it.
const fn signing_role(kind: DocumentKind) -> &'static str {
    match kind {
        DocumentKind::Root => "root",
        DocumentKind::Roster
        | DocumentKind::Order
        | DocumentKind::Mandate
        | DocumentKind::GlassToken
        | DocumentKind::GlassSettlement => "operator",
        DocumentKind::Addition => "joiner",
        DocumentKind::Release => "release",
        DocumentKind::Attestation | DocumentKind::Withdrawal => "attestation",
    }
}

fn check_payload_type(
    envelope: &Envelope,
    kind: DocumentKind,
    document: &DocumentName,
) -> Result<(), TrustError> {
    if envelope.payload_type() == kind.payload_type() {
        return Ok(());
    }
    Err(TrustError::PayloadType {
        document: document.clone(),
        expected: kind.payload_type(),
        found: envelope.payload_type().to_owned(),
    })
}

fn signature(signer: &dyn Signer, message: &[u8]) -> Result<Signature, TrustError> {
    Ok(Signature { keyid: Some(signer.public().id().to_string()), sig: signer.sign(message)? })
}

fn seal(kind: DocumentKind, payload: Vec<u8>, signatures: Vec<Signature>) -> Result<Envelope, TrustError> {
    Envelope::new(kind.payload_type(), payload, signatures)
        .map_err(|source| TrustError::Envelope { document: kind.into(), source })
}

#[cfg(test)]
mod tests;
