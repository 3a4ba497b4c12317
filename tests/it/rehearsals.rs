//! Rehearsals: a release's self-test on every host, before anything is flipped.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::harness::{Artifact, Fleet, Host, Output, artifact};

/// Says that it was run, and does what the release says.
const SELF_TEST: &[&str] = &["sh", "./bin/self-test"];

fn tree(self_test: &str) -> Artifact {
    artifact(&[("bin/self-test", self_test), ("lib/a", "a")])
}

/// Names the self-test in root's file on the host, as an administrator does.
fn name_self_test(host: &Host, command: &[&str], timeout_ms: i64) {
    let file = host.folder().join("guard.toml");
    let mut config: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    let of_fleet = config["fleets"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
    let command = command.iter().map(|word| toml::Value::from(*word)).collect::<Vec<_>>();
    let rehearse = toml::Table::from_iter([
        ("command".to_owned(), command.into()),
        ("timeout_ms".to_owned(), timeout_ms.into()),
    ]);
    of_fleet.insert(
        "hooks".to_owned(),
        toml::Table::from_iter([("rehearse".to_owned(), rehearse.into())]).into(),
    );
    fs::write(&file, config.to_string()).unwrap();
}

/// The guards read their configurations when they start.
fn restart(fleet: &Fleet) {
    fleet.down().expect_code(0);
    fleet.start(&[]);
    fleet.wait_connected(fleet.hosts().len());
}

fn up(hosts: usize) -> Fleet {
    let fleet = Fleet::up(hosts);
    fleet.hosts().iter().for_each(|host| name_self_test(host, SELF_TEST, 60_000));
    restart(&fleet);
    fleet
}

#[track_caller]
fn row(output: &Output, host: &str) -> Value {
    let rows = output.json()["results"].as_array().unwrap().clone();
    rows.into_iter().find(|row| row["host"] == host).unwrap_or_else(|| panic!("no {host}: {output}"))
}

#[test]
fn a_release_is_rehearsed_where_it_is_deployed_and_nothing_that_is_served_changes() {
    let fleet = up(2);
    let notes = fleet.scratch().join("notes");
    let one = fleet.release(&tree("exit 1\n"), "1.0");
    let note = format!("echo \"$MUSTER_HOST $MUSTER_HOOK $MUSTER_DIGEST $PWD\" >> {}\n", notes.display());
    let two = fleet.push(&tree(&note), "2.0");

    fleet.json(&["rehearse", "2.0"]).expect_code(10).expect_blocker("not-deployed", "host-1", "");
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    let rehearsed = fleet.json(&["rehearse", "2.0"]).expect_code(0);
    assert_eq!(rehearsed.json()["schema"], "muster.rehearse/1");
    assert_eq!((&rehearsed.json()["passed"], &rehearsed.json()["hosts"]), (&2.into(), &2.into()));
    assert!(row(&rehearsed, "host-2")["took_ms"].is_u64());
    let mut told: Vec<String> = fs::read_to_string(&notes).unwrap().lines().map(str::to_owned).collect();
    told.sort();
    let line = |host: &Host| format!("{} rehearse {two} {}", host.name(), host.tree(&two).display());
    let expected: Vec<String> = fleet.hosts().iter().map(line).collect();
    assert_eq!(told, expected);
    fleet.assert_all_serve(&one);
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two);
    fleet.json(&["rehearse", "1.0"]).expect_code(12);
    fleet.assert_all_serve(&two);
}

#[test]
fn one_host_that_fails_is_named_with_what_its_self_test_wrote_last() {
    let fleet = up(3);
    let script =
        "[ $MUSTER_HOST = host-2 ] || exit 0\nyes flood | head -c 3000000\necho the port is taken\nexit 3\n";
    fleet.push(&tree(script), "1.0");
    fleet.json(&["deploy", "1.0"]).expect_code(0);
    let failed = fleet.json(&["rehearse", "1.0"]).expect_code(12);
    let blocker = failed.expect_blocker("hook-failed", "host-2", "");
    assert!(blocker.detail.ends_with("the port is taken"), "{failed}");
    assert!(blocker.detail.len() < 16 * 1024, "{} bytes", blocker.detail.len());
    assert_eq!(failed.json()["passed"], 2);
    assert_eq!(row(&failed, "host-2")["passed"], false);
    assert_eq!(row(&failed, "host-3")["passed"], true);

    // One that takes too long, one that has none.
    name_self_test(&fleet.host(1), &["sleep", "600"], 200);
    let host = fleet.host(3);
    let file = host.folder().join("guard.toml");
    let mut config: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    config["fleets"].as_array_mut().unwrap()[0].as_table_mut().unwrap().remove("hooks");
    fs::write(&file, config.to_string()).unwrap();
    restart(&fleet);
    let failed = fleet.json(&["rehearse", "1.0"]).expect_code(12);
    let late = failed.expect_blocker("hook-failed", "host-1", "");
    assert!(late.detail.contains("it took too long and was killed"), "{failed}");
    let none = failed.expect_blocker("hook-failed", "host-3", "");
    assert!(none.detail.contains("`hooks.rehearse` in guard.toml"), "{failed}");
    assert_eq!(failed.json()["passed"], 0);
}

#[test]
fn bytes_that_are_not_the_releases_are_not_run_and_a_self_test_that_changes_them_is_seen() {
    let fleet = up(1);
    let notes = fleet.scratch().join("notes");
    let script = format!("echo run >> {}\n[ -e /nowhere ] || exit 0\n", notes.display());
    let one = fleet.push(&tree(&script), "1.0");
    fleet.json(&["deploy", "1.0"]).expect_code(0);
    let changed = fleet.host(1).tree(&one).join("lib/a");
    fs::set_permissions(&changed, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&changed, "b").unwrap();
    fleet.json(&["rehearse", "1.0"]).expect_code(10).expect_blocker("mismatch", "host-1", "lib/a");
    assert!(!notes.exists(), "what was tampered with is not run");

    fleet.push(&tree("chmod u+w lib/a && echo c > lib/a\n"), "2.0");
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    fleet.json(&["rehearse", "2.0"]).expect_code(10).expect_blocker("mismatch", "host-1", "lib/a");
}
