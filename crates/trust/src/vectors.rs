//! Envelopes that cross over between this crate and securesystemslib and in-toto; `vectors/make.py` is their side.

use std::path::{Path, PathBuf};

use muster_model::{Document as _, PublicKey, Release, RoleKeys};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::authentic::check_threshold;
use crate::dsse::Envelope;
use crate::fixture::{fleet_name, manifest, release};
use crate::ssh::read_openssh;
use crate::{Signer, SigningKey, TrustError, sign, verify};

/// Names a file to which the envelopes of this crate are written, for their side to verify.
const OUT_VARIABLE: &str = "MUSTER_VECTORS_OUT";

const OURS: &str = include_str!("../vectors/ours.json");
const THEIRS: &str = include_str!("../vectors/theirs.json");

#[derive(Deserialize)]
struct Theirs {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    envelope: Box<RawValue>,
    keys: Vec<String>,
    threshold: u32,
    accepted: bool,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// The key of a file that `ssh-keygen` made. It is public, whatever its mode.
fn key(name: &str) -> SigningKey {
    read_openssh(&std::fs::read(folder().join("openssh").join(name)).unwrap()).unwrap()
}

fn envelopes() -> Value {
    let release = release(&fleet_name(), manifest());
    let envelopes = [&["ed25519"][..], &["ecdsa"], &["ed25519", "ecdsa"]].map(|names| {
        let keys: Vec<SigningKey> = names.iter().map(|name| key(name)).collect();
        let signers: Vec<&dyn Signer> = keys.iter().map(|key| key as &dyn Signer).collect();
        let mut envelope: Value = serde_json::from_slice(sign(&release, &signers).unwrap().raw()).unwrap();
        // For their side, which must know whose public keys to take; it is no part of the envelope.
        envelope["signers"] = json!(names);
        envelope
    });
    json!({ "envelopes": envelopes })
}

#[test]
fn what_they_sign_is_read_as_they_mean_it_and_their_attacks_are_refused() {
    let theirs: Theirs = serde_json::from_str(THEIRS).unwrap();
    assert!(theirs.vectors.len() >= 13, "{}", theirs.vectors.len());
    for Vector { name, envelope, keys, threshold, accepted } in theirs.vectors {
        let keys: Vec<PublicKey> = keys.iter().map(|name| key(name).public().clone()).collect();
        let trusted = RoleKeys { threshold, keys };
        let parsed = Envelope::parse(envelope.get().as_bytes()).unwrap();
        let checked = check_threshold(&parsed, &Release::KIND.into(), "release", &trusted);
        assert_eq!(checked.is_ok(), accepted, "{name}: {checked:?}");
        if let Err(error) = checked {
            assert!(matches!(error, TrustError::Threshold { .. }), "{name}: {error}");
        }
        let whole = verify::<Release>(envelope.get().as_bytes(), &trusted);
        let is_link = matches!(whole, Err(TrustError::Document { .. }));
        assert_eq!(whole.is_ok() || is_link, accepted, "{name}: {whole:?}");
    }
}

#[test]
fn what_was_committed_for_them_is_what_is_signed_today() {
    let ours = envelopes();
    if let Some(path) = std::env::var_os(OUT_VARIABLE) {
        std::fs::write(path, format!("{ours:#}\n")).unwrap();
    }
    let committed: Value = serde_json::from_str(OURS).unwrap();
    // Ed25519 signatures are the same each time, those of ECDSA are not.
    assert_eq!(committed["envelopes"][0], ours["envelopes"][0]);
    for (committed, ours) in
        committed["envelopes"].as_array().unwrap().iter().zip(ours["envelopes"].as_array().unwrap())
    {
        assert_eq!(committed["payload"], ours["payload"]);
        let names = committed["signers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| key(name.as_str().unwrap()).public().clone());
        let trusted = RoleKeys { threshold: 1, keys: names.collect() };
        let mut envelope = committed.clone();
        envelope.as_object_mut().unwrap().remove("signers");
        verify::<Release>(envelope.to_string().as_bytes(), &trusted).unwrap();
    }
}
