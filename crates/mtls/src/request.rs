//! The asking side of a certificate: a key of one's own, and the request that proves its possession.

use std::fmt;

use muster_model::Digest;
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use zeroize::Zeroizing;

use crate::error::Error;

/// A new private key, and what has to be sent to have it certified.
pub struct KeyRequest {
    key: Zeroizing<KeyPair>,
}

impl KeyRequest {
    /// Makes a new ECDSA P-256 key.
    pub fn generate() -> Result<Self, Error> {
        let key = KeyPair::generate().map(Zeroizing::new);
        key.map(|key| Self { key }).map_err(|source| Error::Signing { what: "a private key", source })
    }

    /// Takes a key that was made before, as [`Self::key_pem`] gave it.
    pub fn from_key_pem(pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(pem).map(Zeroizing::new);
        key.map(|key| Self { key })
            .map_err(|source| Error::Signing { what: "a request from this key", source })
    }

    /// The key as PEM (PKCS#8); wiped from memory when dropped.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// The digest of the public key.
    #[must_use]
    pub fn spki_pin(&self) -> Digest {
        Digest::of(&self.key.subject_public_key_info())
    }

    /// The request (PKCS#10, DER). It names nobody: whoever signs it knows for whom.
    pub fn to_der(&self) -> Result<Vec<u8>, Error> {
        let request = CertificateParams::default().serialize_request(&*self.key);
        let request = request.map_err(|source| Error::Signing { what: "a certificate request", source })?;
        Ok(request.der().to_vec())
    }
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").field("spki_pin", &self.spki_pin()).finish_non_exhaustive()
    }
}
