use std::fs::{self, Permissions};
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::fixture::{hex_bytes, key};

// RFC 8410, section 10.3, and its public key in section 10.1.
const RFC_8410_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
";
const RFC_8410_PUBLIC: &str = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

// The key of DSSE's test vector, as `openssl pkcs8 -topk8` writes it.
const DSSE_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg1z7EN/1jRuNhnF6/
3/8PaRaASVWtMqyaxJKw7eH2/7ehRANCAARnzTkPd6o1nLCMIjX2UicEk6ntgysK
vMAfcJVMA5DSOAx4K9VOJpElpE9EM6/xQyzpThK8pzqmesgM6hJgjd90
-----END PRIVATE KEY-----
";
const DSSE_PUBLIC: &str = "p256:AmfNOQ93qjWcsIwiNfZSJwSTqe2DKwq8wB9wlUwDkNI4";

fn write(folder: &TempDir, text: &str, mode: u32) -> PathBuf {
    let path = folder.path().join("key.pem");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn published_keys_are_read_and_written_as_they_were() {
    let folder = TempDir::new().unwrap();
    for (pem, public) in [(RFC_8410_KEY, RFC_8410_PUBLIC), (DSSE_KEY, DSSE_PUBLIC)] {
        let key = SigningKey::read(&write(&folder, pem, 0o600)).unwrap();
        assert_eq!(key.public().to_string(), public);
        assert_eq!(*key.to_pem(), pem);
        assert_eq!(format!("{key:?}"), format!("SigningKey({public})"), "nothing private is shown");
    }
}

#[test]
fn ed25519_signs_as_in_rfc_8032() {
    // Section 7.1, test 2.
    let mut der = hex_bytes("302e020100300506032b657004220420");
    der.extend(hex_bytes("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"));
    let key = SigningKey::from_pkcs8(&der).unwrap();
    let expected = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                    085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
    assert_eq!(key.sign(&[0x72]).unwrap(), hex_bytes(expected));
}

#[test]
fn both_algorithms_sign_survive_a_file_and_bind_key_and_message() {
    let folder = TempDir::new().unwrap();
    for algorithm in [KeyAlgorithm::Ed25519, KeyAlgorithm::P256] {
        let path = folder.path().join(format!("{algorithm:?}.pem"));
        let made = SigningKey::generate(algorithm).unwrap();
        made.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let read = SigningKey::read(&path).unwrap();
        assert_eq!(read.public(), made.public());

        let signature = read.sign(b"message").unwrap();
        assert!(is_signed_by(made.public(), b"message", &signature));
        assert!(!is_signed_by(made.public(), b"massage", &signature));
        assert!(!is_signed_by(made.public(), b"message", &signature[1..]));
        assert!(!is_signed_by(made.public(), b"message", &[]));
        let other = SigningKey::generate(algorithm).unwrap();
        assert!(!is_signed_by(other.public(), b"message", &signature));
    }
}

#[test]
fn a_public_key_that_is_no_point_verifies_nothing() {
    let signature = key(1).sign(b"message").unwrap();
    assert!(!is_signed_by(&PublicKey::P256([0xff; 33]), b"message", &signature));
    assert!(!is_signed_by(&PublicKey::Ed25519([0xff; 32]), b"message", &signature));
}

#[test]
fn a_key_that_others_may_touch_is_refused() {
    let folder = TempDir::new().unwrap();
    for mode in [0o600, 0o400, 0o700] {
        assert!(SigningKey::read(&write(&folder, RFC_8410_KEY, mode)).is_ok(), "{mode:o}");
    }
    for mode in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o666] {
        let error = SigningKey::read(&write(&folder, RFC_8410_KEY, mode)).unwrap_err();
        assert!(matches!(error, TrustError::KeyFileMode { mode: found, .. } if found == mode), "{mode:o}");
        assert!(error.to_string().contains("chmod 600"));
    }
}

#[test]
fn an_existing_file_is_never_replaced() {
    let folder = TempDir::new().unwrap();
    let path = write(&folder, "precious", 0o600);
    let error = key(1).write_new(&path).unwrap_err();
    assert!(matches!(error, TrustError::KeyFile { action: "create", .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn what_is_no_key_file_is_refused_with_its_path() {
    let folder = TempDir::new().unwrap();
    let encrypted = RFC_8410_KEY.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let cut = RFC_8410_KEY.replace("MC4C", "MC4D");
    let large = format!("{RFC_8410_KEY}{}", "#".repeat(20_000));
    for text in ["", "hello", &encrypted, &cut, &large] {
        let error = SigningKey::read(&write(&folder, text, 0o600)).unwrap_err();
        assert!(matches!(error, TrustError::KeyFileContent { .. }), "{text}: {error}");
        assert!(error.to_string().contains("key.pem"));
    }
    let folder_itself = folder.path().join("folder");
    fs::create_dir(&folder_itself).unwrap();
    assert!(matches!(SigningKey::read(&folder_itself), Err(TrustError::KeyFileContent { .. })));
    let missing = SigningKey::read(&folder.path().join("missing")).unwrap_err();
    assert!(matches!(missing, TrustError::KeyFile { action: "open", .. }));
}
