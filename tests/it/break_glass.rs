//! Break glass: what operators prepare for the case that there is no coordinator.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{Fleet, artifact};

/// A fleet of two that serves 1.0.
fn serving() -> (Fleet, String) {
    let fleet = Fleet::up(2);
    let tree = artifact(&[("lib/a", "a")]);
    let digest = fleet.release(&tree, "1.0");
    (fleet, digest)
}

#[test]
fn a_token_is_for_what_is_served_and_says_so() {
    let (fleet, digest) = serving();
    let file = fleet.scratch().join("glass.json");
    let out = file.to_str().unwrap();
    let issue = |host, release, more: &[&str]| {
        let first =
            ["break-glass", "issue", "--host", host, "--release", release, "--reason", "night", "--out", out];
        fleet.json(&[&first, more].concat())
    };
    let refused = issue("host-9", "1.0", &[]).expect_code(11);
    assert!(refused.stderr.contains("host-9"), "{refused}");
    issue("host-1", "9.9", &[]).expect_code(11);
    issue("host-1", "1.0", &["--valid", "8d"]).expect_code(1);
    assert!(!file.exists());
    let issued = issue("host-1", "1.0", &["--valid", "1h"]).expect_code(0).json();
    assert_eq!((&issued["release"], &issued["epoch"]), (&digest.as_str().into(), &1.into()));
    assert_eq!((&issued["complete"], &issued["hosts"][0]), (&true.into(), &"host-1".into()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = fleet.json(&["break-glass", "show", out]).expect_code(0).json();
    assert_eq!((&shown["id"], &shown["expired"]), (&issued["id"], &false.into()));
    // Signing again with the same key changes nothing; what was tampered with is signed by nobody.
    let signed = fleet.json(&["break-glass", "sign", out]).expect_code(0).json();
    assert_eq!((&signed["id"], &signed["complete"]), (&issued["id"], &true.into()));
    issue("host-1", "1.0", &[]).expect_code(1);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("\"payload\":\"e", "\"payload\":\"f", 1)).unwrap();
    fleet.json(&["break-glass", "show", out]).expect_code(12);
}
