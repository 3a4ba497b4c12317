//! Keys that sign documents, and the files they are kept in.

use std::error::Error;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use aws_lc_rs::encoding::{AsBigEndian as _, EcPublicKeyCompressedBin};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED, ED25519, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair as _, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_model::PublicKey;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::TrustError;
use crate::ssh::{is_openssh, read_openssh};

const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----\n";
const PEM_END: &str = "-----END PRIVATE KEY-----\n";

/// Bytes in one line of PEM: 64 characters of base64.
const PEM_LINE_BYTES: usize = 48;

/// A key file has about 250 bytes; beyond this it is something else.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

const MODE_OWNER_ONLY: u32 = 0o600;
const MODE_OTHERS_MASK: u32 = 0o077;

/// The length of a P-256 signature as `r ‖ s`. In ASN.1 practically all have 70 to 72 bytes.
const P256_FIXED_LEN: usize = 64;

/// Whatever can sign for one key, wherever that key is kept.
pub trait Signer: fmt::Debug + Send + Sync {
    /// The key that verifies what is signed here.
    fn public(&self) -> &PublicKey;

    /// Signs `message`: Ed25519 as in RFC 8032, P-256 with SHA-256 and ASN.1 as in RFC 3279.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError>;
}

/// What kind of key to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeyAlgorithm {
    /// Ed25519: the one to choose unless something else is demanded.
    #[default]
    Ed25519,
    /// ECDSA on NIST P-256.
    P256,
}

/// A private key in memory. The cryptographic library wipes it when it is dropped; `Debug` shows only its public half.
pub struct SigningKey {
    pair: Pair,
    public: PublicKey,
}

pub(crate) enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl SigningKey {
    /// Makes a new key.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, TrustError> {
        let pair = match algorithm {
            KeyAlgorithm::Ed25519 => Ed25519KeyPair::generate().map(Pair::Ed25519),
            KeyAlgorithm::P256 => EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Pair::P256),
        };
        pair.map(Self::new).map_err(|_| TrustError::KeyGeneration)
    }

    /// Reads an unencrypted file, PKCS#8 in PEM or one of OpenSSH, that nobody but its owner may touch.
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        let text = read_private(path)?;
        Self::parse(&text)
            .map_err(|reason| TrustError::KeyFileContent { path: path.to_owned(), reason: reason.into() })
    }

    /// Reads the text of such a file. The error says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if is_openssh(text) { read_openssh(text) } else { read_pkcs8(text) }
    }

    /// Writes the key into a new PKCS#8 PEM file of mode 0600. An existing file is never replaced.
    pub fn write_new(&self, path: &Path) -> Result<(), TrustError> {
        let failed = |action| move |source| TrustError::KeyFile { action, path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE_OWNER_ONLY)
            .open(path)
            .map_err(failed("create"))?;
        let written = file.write_all(self.to_pem().as_bytes()).and_then(|()| file.sync_all());
        if let Err(source) = written {
            // Half a key is of no use, and would stand in the way of the next attempt.
            let _ = std::fs::remove_file(path);
            return Err(failed("write")(source));
        }
        sync_folder_of(path).map_err(failed("make durable"))
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn new(pair: Pair) -> Self {
        let public = match &pair {
            Pair::Ed25519(pair) => PublicKey::Ed25519(
                pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes"),
            ),
            Pair::P256(pair) => {
                let point: EcPublicKeyCompressedBin<'_> =
                    pair.public_key().as_be_bytes().expect("a valid P-256 key has a compressed point");
                let point: &[u8] = point.as_ref();
                PublicKey::P256(point.try_into().expect("a compressed P-256 point has 33 bytes"))
            }
        };
        Self { pair, public }
    }

    pub(crate) fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(der)
            .map(Pair::Ed25519)
            .or_else(|_| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map(Pair::P256));
        pair.ok().map(Self::new)
    }

    fn to_pem(&self) -> Zeroizing<String> {
        let der = match &self.pair {
            Pair::Ed25519(pair) => pair.to_pkcs8v1(),
            Pair::P256(pair) => pair.to_pkcs8v1(),
        }
        .expect("a key pair in memory can be written as PKCS#8");
        let der: &[u8] = der.as_ref();
        // Reserved at once: growing would leave unwiped copies behind.
        let mut pem = Zeroizing::new(String::with_capacity(PEM_BEGIN.len() + der.len() * 2 + PEM_END.len()));
        pem.push_str(PEM_BEGIN);
        for line in der.chunks(PEM_LINE_BYTES) {
            STANDARD.encode_string(line, &mut pem);
            pem.push('\n');
        }
        pem.push_str(PEM_END);
        pem
    }
}

impl Signer for SigningKey {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        let signature = match &self.pair {
            Pair::Ed25519(pair) => pair.try_sign(message),
            Pair::P256(pair) => pair.sign(&SystemRandom::new(), message),
        };
        match signature {
            Ok(signature) => Ok(signature.as_ref().to_vec()),
            Err(source) => Err(TrustError::Signing { key: self.public.clone(), source: source.into() }),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

/// Whether `signature` is one of `message` by `key`. P-256 signatures are read in ASN.1 and as `r ‖ s`, since both are
/// in use with DSSE.
#[must_use]
pub fn is_signed_by(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    match key {
        PublicKey::Ed25519(bytes) => UnparsedPublicKey::new(&ED25519, bytes).verify(message, signature),
        PublicKey::P256(point) if signature.len() == P256_FIXED_LEN => {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
        }
        PublicKey::P256(point) => {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(message, signature)
        }
    }
    .is_ok()
}

/// The error says what is wrong with the file.
fn read_pkcs8(pem: &[u8]) -> Result<SigningKey, String> {
    let mut der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| {
        let has = |section: &str| pem.windows(section.len()).any(|window| window == section.as_bytes());
        let reason = if has("ENCRYPTED PRIVATE KEY") {
            "it is encrypted; use a key of OpenSSH with `ssh-add`, and name it as `ssh-agent:` with its `.pub` file"
        } else if has("BEGIN EC PRIVATE KEY") || has("BEGIN RSA PRIVATE KEY") {
            "it is not PKCS#8; write it anew with `openssl pkcs8 -topk8 -nocrypt` if it is ECDSA P-256"
        } else {
            "there is no section `PRIVATE KEY` (unencrypted PKCS#8) or `OPENSSH PRIVATE KEY` in it"
        };
        reason.to_owned()
    })?;
    let key = SigningKey::from_pkcs8(der.secret_pkcs8_der());
    der.zeroize();
    key.ok_or_else(|| "the key in it is neither Ed25519 nor ECDSA P-256".to_owned())
}

/// Reads a small file that anybody may read.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, TrustError> {
    let failed = |action| move |source| TrustError::KeyFile { action, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed("open"))?;
    let mut bytes = Vec::new();
    file.take(KEY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
    if bytes.len() as u64 > KEY_FILE_BYTES_MAX {
        let reason = "it is too large for a key".into();
        return Err(TrustError::KeyFileContent { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// Reads a file after making sure, on the open descriptor, that it is private.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, TrustError> {
    let failed = |action| move |source| TrustError::KeyFile { action, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed("open"))?;
    let metadata = file.metadata().map_err(failed("inspect"))?;
    if !metadata.is_file() {
        let reason = "it is not a regular file".into();
        return Err(TrustError::KeyFileContent { path: path.to_owned(), reason });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & MODE_OTHERS_MASK & !credential_rights(path) != 0 {
        return Err(TrustError::KeyFileMode { path: path.to_owned(), mode });
    }
    if metadata.len() > KEY_FILE_BYTES_MAX {
        let reason = "it is too large for a key".into();
        return Err(TrustError::KeyFileContent { path: path.to_owned(), reason });
    }
    // Reserved at once: growing would leave unwiped copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize));
    file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed("read"))?;
    Ok(bytes)
}

/// The rights of others that are none: the group's right to read a credential that systemd passes to this process is how
/// the access list shows that gives it to the service's user, and the folder is closed to everybody else.
fn credential_rights(path: &Path) -> u32 {
    const GROUP_READ: u32 = 0o040;
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty());
    if folder.is_some_and(|folder| path.parent() == Some(Path::new(&folder))) { GROUP_READ } else { 0 }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        Some(_) | None => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// A failure of whatever keeps a key.
pub(crate) type SigningFailure = Box<dyn Error + Send + Sync>;

#[cfg(test)]
mod tests;
