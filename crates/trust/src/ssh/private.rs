//! Key files of OpenSSH: `openssh-key-v1`, described in its source as `PROTOCOL.key`.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::public::{ED25519, P256, P256_CURVE, Unusable};
use super::wire::Reader;
use crate::SigningKey;
use crate::keys::Pair;

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
const MAGIC: &[u8] = b"openssh-key-v1\0";

const SCALAR_LEN: usize = 32;

/// Whether a file claims to be one.
pub(crate) fn is_openssh(text: &[u8]) -> bool {
    text.trim_ascii_start().starts_with(BEGIN.as_bytes())
}

/// Reads the one key of an unencrypted file. The error says what is wrong with the file.
pub(crate) fn read_openssh(text: &[u8]) -> Result<SigningKey, String> {
    let malformed = || Unusable::Malformed.to_string();
    let bytes = unarmour(text).ok_or_else(malformed)?;
    let mut reader = Reader::new(bytes.strip_prefix(MAGIC).ok_or_else(malformed)?);
    let (cipher, _kdf, _options) =
        (|| Some((reader.string()?, reader.string()?, reader.string()?)))().ok_or_else(malformed)?;
    if cipher != b"none" {
        return Err(
            "it is encrypted; load it with `ssh-add` and name the key as `ssh-agent:` with its `.pub` file"
                .to_owned(),
        );
    }
    if reader.number() != Some(1) {
        return Err("it does not hold exactly one key".to_owned());
    }
    let private = (|| {
        reader.string()?;
        let private = reader.string()?;
        reader.end().map(|()| private)
    })();
    read_private(private.ok_or_else(malformed)?).map_err(|unusable| unusable.to_string())
}

/// The part that is encrypted in other files: two equal numbers, the key, a comment, and padding of 1, 2, 3 and so on.
fn read_private(bytes: &[u8]) -> Result<SigningKey, Unusable> {
    let mut reader = Reader::new(bytes);
    let (first, second) = (reader.number(), reader.number());
    let name = reader.string().and_then(|name| std::str::from_utf8(name).ok()).ok_or(Unusable::Malformed)?;
    let pair = match name {
        ED25519 => ed25519(&mut reader).map(Pair::Ed25519),
        P256 => p256(&mut reader).map(Pair::P256),
        _ => return Err(Unusable::Algorithm(name.to_owned())),
    };
    let is_whole = first == second
        && reader.string().is_some()
        && reader.rest().iter().zip(1..=u8::MAX).all(|(found, expected)| *found == expected);
    pair.filter(|_| is_whole).map(SigningKey::new).ok_or(Unusable::Malformed)
}

/// The public key, then the seed with the public key once more.
fn ed25519(reader: &mut Reader<'_>) -> Option<Ed25519KeyPair> {
    let public = reader.string()?;
    let (seed, again) = reader.string()?.split_at_checked(SCALAR_LEN)?;
    if public != again {
        return None;
    }
    Ed25519KeyPair::from_seed_and_public_key(seed, public).ok()
}

/// The name of the curve, the point, the scalar.
fn p256(reader: &mut Reader<'_>) -> Option<EcdsaKeyPair> {
    if reader.string()? != P256_CURVE.as_bytes() {
        return None;
    }
    let point = reader.string()?;
    let scalar = reader.positive()?;
    let scalar = scalar.strip_prefix(&[0]).unwrap_or(scalar);
    let mut padded = Zeroizing::new([0; SCALAR_LEN]);
    padded.get_mut(SCALAR_LEN.checked_sub(scalar.len())?..)?.copy_from_slice(scalar);
    EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_ASN1_SIGNING, &*padded, point).ok()
}

fn unarmour(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let body = text.strip_prefix(BEGIN)?.strip_suffix(END)?;
    // Reserved at once: growing would leave unwiped copies behind.
    let mut base64 = Zeroizing::new(String::with_capacity(body.len()));
    body.split_ascii_whitespace().for_each(|line| base64.push_str(line));
    let mut bytes = Zeroizing::new(Vec::with_capacity(base64.len()));
    STANDARD.decode_vec(base64.as_bytes(), &mut bytes).ok()?;
    Some(bytes)
}
