//! The receipt in somebody else's hands: a folder with the receipt, the root document and nothing else.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Fleet, program, versioned};

/// Runs `muster receipt verify` there. Gives the exit code and what was said.
fn verify(folder: &Path) -> (Option<i32>, String) {
    let output = Command::new(program("muster"))
        .args(["receipt", "verify", "flip.receipt", "--root", "root.json"])
        .current_dir(folder)
        .env_clear()
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn a_receipt_is_proof_in_another_folder_and_one_flipped_bit_is_named() {
    let fleet = Fleet::up(2);
    fleet.release(&versioned("1"), "1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flip.receipt");
    fleet.json(&["receipt", "show", "--out", path.to_str().unwrap()]).expect_code(0);
    fs::copy(fleet.dir().join("root.json"), folder.path().join("root.json")).unwrap();
    drop(fleet);
    let (code, said) = verify(folder.path());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("all 2 hosts of demo"), "{said}");

    let receipt = fs::read_to_string(&path).unwrap();
    let json: Value = serde_json::from_str(&receipt).unwrap();
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
    for (pointer, named) in [
        ("/format", "format"),
        ("/order/payload", "order"),
        ("/order/payloadType", "order"),
        ("/roster/payload", "roster"),
        ("/release/signatures/0/sig", "release"),
        ("/attestations/0/payload", "attestation of host-1"),
        ("/attestations/1/signatures/0/sig", "attestation of host-2"),
        ("/secrets/1", "closing secret of host-2"),
        ("/order/signatures/0/keyid", "key id"),
        ("/digest", "digest"),
    ] {
        let value = text(pointer);
        // A digit becomes another digit, so that the text stays what it is: hex, base64.
        let half = value.len() / 2;
        let digit = value[half..].find(|c: char| c.is_ascii_digit()).unwrap_or_default();
        let at = receipt.rfind(&value).unwrap() + half + digit;
        let mut flipped = receipt.clone().into_bytes();
        flipped[at] ^= 1;
        fs::write(&path, flipped).unwrap();
        let (code, said) = verify(folder.path());
        assert_eq!(code, Some(12), "{pointer}: {said}");
        assert!(said.contains(named), "{pointer}: no `{named}`: {said}");
    }
}
