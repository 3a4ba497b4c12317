//! Key files: PKCS#8, OpenSSH's private keys, and public keys as people hand them over.

use muster_model::PublicKey;
use muster_trust::{KeyText, Signer as _, SigningKey, is_signed_by};

use crate::Verdict;

pub(crate) fn run(bytes: &[u8]) -> Verdict {
    let private = SigningKey::parse(bytes);
    if let Ok(key) = &private {
        let signature = key.sign(b"message").unwrap();
        assert!(is_signed_by(key.public(), b"message", &signature), "the halves of a key are of one key");
        assert!(!is_signed_by(key.public(), b"massage", &signature));
    }
    let public = std::str::from_utf8(bytes).ok().and_then(|text| KeyText::parse(text).ok());
    if let Some(KeyText { key, .. }) = &public {
        assert_eq!(key.to_string().parse::<PublicKey>().as_ref(), Ok(key));
        let again = KeyText::parse(&key.to_string()).unwrap();
        assert_eq!((&again.key, again.comment), (key, None));
    }
    assert!(private.is_err() || public.is_none(), "a private key is not to be handed over");
    (private.is_ok() || public.is_some()).into()
}
