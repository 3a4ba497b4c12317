//! Documents and manifests that nobody should believe.

use std::collections::BTreeMap;

use muster_model::{
    Digest, FleetName, Flip, FlipMode, OnFailure, Order, Release, RolloutId, RosterRef, Version,
};
use muster_trust::{KeyAlgorithm, SigningKey};
use serde_json::Value;

use super::{FLEET, now};

/// A key that no root names.
pub(crate) fn strangers_key() -> SigningKey {
    SigningKey::generate(KeyAlgorithm::Ed25519).unwrap()
}

/// A release of the fleet.
pub(crate) fn release(version: &str, manifest: Digest) -> Release {
    Release {
        fleet: FleetName::new(FLEET).unwrap(),
        version: Version::new(version).unwrap(),
        manifest,
        builder: None,
        source_revision: None,
        created_unix_ms: now(),
        expires_unix_ms: None,
        flags: BTreeMap::new(),
    }
}

/// An order for the next hour.
pub(crate) fn order(counter: u64, roster: RosterRef, from: Option<Digest>, to: Digest) -> Order {
    let (fleet, now) = (FleetName::new(FLEET).unwrap(), now());
    let flip = Flip { from, to, mode: FlipMode::Strict, on_failure: OnFailure::Hold, max_lapsed: 0 };
    Order::new(fleet, RolloutId(counter), roster, flip, now..now.after(std::time::Duration::from_secs(3600)))
        .unwrap()
}

/// The envelope without its signatures.
pub(crate) fn unsigned(envelope: &[u8]) -> Vec<u8> {
    edited(envelope, |envelope| envelope["signatures"] = Value::Array(Vec::new()))
}

/// The envelope with another payload type: what was signed as one kind of document, shown as another.
pub(crate) fn passed_off_as(envelope: &[u8], payload_type: &str) -> Vec<u8> {
    edited(envelope, |envelope| envelope["payloadType"] = payload_type.into())
}

/// The envelope with its first signature once more, under another key id.
pub(crate) fn signed_twice(envelope: &[u8]) -> Vec<u8> {
    edited(envelope, |envelope| {
        let signatures = envelope["signatures"].as_array_mut().unwrap();
        let mut again = signatures[0].clone();
        again["keyid"] = "somebody else".into();
        signatures.push(again);
    })
}

fn edited(envelope: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = serde_json::from_slice(envelope).unwrap();
    edit(&mut value);
    serde_json::to_vec(&value).unwrap()
}

/// A well-formed manifest of one file.
pub(crate) fn manifest_of(path: &str, size: u64, digest: Digest) -> Vec<u8> {
    let file =
        format!(r#"{{"path":"{path}","type":"file","mode":"0644","size":{size},"digest":"{digest}"}}"#);
    format!("{}\n{file}\n", header(1, size)).into_bytes()
}

fn header(entries: u64, bytes: u64) -> String {
    format!(
        r#"{{"format":"muster.manifest/1","entries":{entries},"bytes":{bytes},"absent":[],"external":[],"mutable":[],"variants":[]}}"#
    )
}

/// Manifests that are refused, each with a part of the reason.
pub(crate) fn hostile_manifests() -> Vec<(&'static str, Vec<u8>)> {
    let file = |path: &str, size: u64| {
        let digest = Digest::of(b"a");
        format!(r#"{{"path":"{path}","type":"file","mode":"0644","size":{size},"digest":"{digest}"}}"#)
    };
    let dir = |path: &str| format!(r#"{{"path":"{path}","type":"dir","mode":"0755"}}"#);
    let link =
        |path: &str, target: &str| format!(r#"{{"path":"{path}","type":"symlink","target":"{target}"}}"#);
    let lines = |header: String, entries: &[String]| {
        let mut text = header + "\n";
        entries.iter().for_each(|line| text += &(line.clone() + "\n"));
        text.into_bytes()
    };
    let whole = |entries: &[String], bytes: u64| lines(header(entries.len() as u64, bytes), entries);
    let variants = header(0, 0).replace("\"variants\":[]", "\"variants\":[{\"class\":\"x\"}]");
    vec![
        ("has a component `.` or `..`", whole(&[file("../evil", 1)], 1)),
        ("has a component `.` or `..`", whole(&[dir("a"), file("a/../../evil", 1)], 1)),
        ("is absolute", whole(&[file("/etc/passwd", 1)], 1)),
        ("a path is empty", whole(&[file("", 1)], 1)),
        ("is listed twice", whole(&[file("a", 1), file("a", 1)], 2)),
        ("is out of order", whole(&[file("b", 1), file("a", 1)], 2)),
        ("lies under the symlink `a`", whole(&[link("a", "/etc"), file("a/passwd", 1)], 1)),
        ("lies under the file `a`", whole(&[file("a", 1), file("a/b", 1)], 2)),
        ("is in a folder that is not listed", whole(&[file("a/b", 1)], 1)),
        ("leads in a circle", whole(&[link("a", "b"), link("b", "a")], 0)),
        ("bytes; at most", whole(&[file("a", u64::MAX)], u64::MAX)),
        ("the tree has more than", whole(&[file("a", 1 << 40), file("b", 1)], (1 << 40) + 1)),
        ("the header states 5 entries, 1 follow", lines(header(5, 1), &[file("a", 1)])),
        ("the header states 9 bytes, the files have 1", lines(header(1, 9), &[file("a", 1)])),
        ("entries; at most 1000000", lines(header(1_000_001, 0), &[])),
        ("set-user-id", whole(&[file("a", 1).replace("0644", "4755")], 1)),
        ("unknown field `owner`", whole(&[dir("a").replace("}", ",\"owner\":\"root\"}")], 0)),
        ("format `muster.manifest/9`", lines(header(0, 0).replace("/1", "/9"), &[])),
        ("`variants`", lines(variants, &[])),
        ("not in its one encoding", whole(&[dir("a").replace("\":\"", "\": \"")], 0)),
        ("the manifest is cut off", header(0, 0).into_bytes()),
        ("is malformed", b"\x00\xff\xfe\n".to_vec()),
        ("the manifest is cut off", Vec::new()),
    ]
}
