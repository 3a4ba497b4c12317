//! Which keys may sign what, changed while a fleet serves: by everybody's root keys, on every host, for good.

use std::fs;
use std::path::{Path, PathBuf};

use muster_audit::Kind;
use muster_trust::{KeyAlgorithm, SigningKey};

use crate::harness::audit::Log;
use crate::harness::{Fleet, Host, Output, PATIENCE, run, versioned, wait_until};

/// Makes a key and, beside it, the file with its public half.
#[track_caller]
fn new_key(folder: &Path, name: &str) -> PathBuf {
    let key = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
    let path = folder.join(format!("{name}.key"));
    key.write_new(&path).unwrap();
    fs::write(path.with_extension("pub"), key.public().to_string()).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The first root key, which `muster init` made.
fn first_root_key(fleet: &Fleet) -> PathBuf {
    fleet.dir().join("keys/root.key")
}

/// Writes the next root, has it signed and puts it into force.
#[track_caller]
fn rotate(fleet: &Fleet, edits: &[&str], keys: &[&Path]) -> Output {
    let draft = fleet.scratch().join("next.toml");
    let signed = draft.with_extension("json");
    for leftover in [&draft, &signed] {
        let _ = fs::remove_file(leftover);
    }
    fleet.json(&[&["root", "edit", "--out", text(&draft)], edits].concat()).expect_code(0);
    let keys: Vec<&str> = keys.iter().flat_map(|key| ["--key", text(key)]).collect();
    let said = fleet.json(&[&["root", "sign", text(&draft)][..], &keys].concat()).expect_code(0);
    assert_eq!(said.json()["complete"], true, "{said}");
    fleet.json(&["root", "apply", text(&signed)]).expect_code(0)
}

/// Every one of these hosts keeps the root of this version.
#[track_caller]
fn wait_followed(hosts: &[Host], version: u64) {
    for host in hosts {
        let kept = host.folder().join(format!("roots/{version}.json"));
        wait_until(&format!("{} follows root {version}", host.name()), PATIENCE, || {
            kept.exists().then_some(())
        });
    }
}

/// Has the context sign with another key.
fn sign_with(fleet: &Fleet, field: &str, key: &Path) {
    let context = fs::read_to_string(fleet.context()).unwrap();
    let lines = context.lines().map(|line| {
        if line.starts_with(field) { format!("{field} = \"{}\"", text(key)) } else { line.to_owned() }
    });
    fs::write(fleet.context(), lines.collect::<Vec<_>>().join("\n")).unwrap();
}

#[track_caller]
fn apply_roster(fleet: &Fleet) {
    let file = fleet.scratch().join("roster.toml");
    let _ = fs::remove_file(&file);
    fleet.json(&["roster", "draft", "--out", text(&file)]).expect_code(0);
    fleet.json(&["roster", "apply", text(&file)]).expect_code(0);
}

#[test]
fn an_operator_key_is_replaced_while_the_fleet_serves() {
    let fleet = Fleet::up(3);
    let one = fleet.release(&versioned("1"), "1");
    let old = fleet.dir().join("operator/operator-signing.key");
    let old_public = SigningKey::read(&old).unwrap().public().to_string();
    let new = new_key(fleet.scratch(), "alice");
    let two = fleet.push(&versioned("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);

    // One host is away, and must not be able to miss it.
    let away = fleet.host(3);
    away.agent.kill();
    fleet.wait_connected(2);
    let (add, remove) =
        (format!("operator={}", text(&new.with_extension("pub"))), format!("operator={old_public}"));
    let applied = rotate(&fleet, &["--add", &add, "--remove", &remove], &[&first_root_key(&fleet)]);
    assert_eq!((&applied.json()["version"], &applied.json()["hosts"]), (&2.into(), &2.into()), "{applied}");
    wait_followed(&[fleet.host(1), fleet.host(2)], 2);
    away.agent.start(&[]);
    fleet.wait_connected(3);
    wait_followed(&[away], 2);

    // The receipt of that time goes with the root of that time, and says so.
    let receipt = fleet.json(&["receipt", "show"]).expect_code(0).json();
    assert_eq!((&receipt["root_version"], &receipt["earlier_root"]), (&1.into(), &true.into()), "{receipt}");

    // The key that was removed signs nothing any more, nor does what it signed count.
    let refused = fleet.json(&["flip", "2"]).expect_code(12);
    assert!(refused.to_string().contains("operator"), "{refused}");
    fleet.assert_all_serve(&one);
    sign_with(&fleet, "operator_key", &new);
    let old_roster = fleet.json(&["flip", "2"]);
    assert_ne!(old_roster.code, 0, "the roster is still signed by the key that was removed: {old_roster}");
    fleet.assert_all_serve(&one);
    apply_roster(&fleet);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&two);

    // A restart of everything brings nothing back.
    fleet.down();
    fleet.start(&[]);
    fleet.wait_connected(3);
    sign_with(&fleet, "operator_key", &old);
    fleet.json(&["flip", "1"]).expect_code(12);
    sign_with(&fleet, "operator_key", &new);
    fleet.json(&["flip", "1"]).expect_code(0);
    fleet.assert_all_serve(&one);
}

#[test]
fn a_release_of_a_key_that_was_removed_is_refused_until_it_is_signed_anew() {
    let fleet = Fleet::up(2);
    let one = fleet.release(&versioned("1"), "1");
    let tree = versioned("2");
    fleet.push(&tree, "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    let old = fleet.dir().join("operator/release-signing.key");
    let old_public = SigningKey::read(&old).unwrap().public().to_string();
    let new = new_key(fleet.scratch(), "builder");
    let (add, remove) =
        (format!("release={}", text(&new.with_extension("pub"))), format!("release={old_public}"));
    rotate(&fleet, &["--add", &add, "--remove", &remove], &[&first_root_key(&fleet)]);
    wait_followed(&fleet.hosts(), 2);
    let refused = fleet.json(&["flip", "2"]).expect_code(12);
    assert!(refused.to_string().contains("0 of 1 release keys"), "{refused}");
    fleet.assert_all_serve(&one);

    sign_with(&fleet, "release_key", &new);
    let two = fleet.push(&tree, "2");
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&two);
    let listed = fleet.json(&["release", "list"]).expect_code(0).to_string();
    assert!(listed.contains(&two) && !listed.contains(&one), "{listed}");
    // The other one is deployed everywhere, and cannot be gone back to until it is signed anew.
    fleet.json(&["flip", "1"]).expect_code(12);
    fleet.push(&versioned("1"), "1");
    fleet.json(&["flip", "1"]).expect_code(0);
    fleet.assert_all_serve(&one);
}

#[test]
fn an_expired_root_stops_flips_says_how_to_go_on_and_is_renewed() {
    let fleet = Fleet::up(2);
    let one = fleet.release(&versioned("1"), "1");
    let two = fleet.push(&versioned("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    rotate(&fleet, &["--expires", "3s"], &[&first_root_key(&fleet)]);
    wait_followed(&fleet.hosts(), 2);
    wait_until("the root has expired", PATIENCE, || {
        (fleet.json(&["root", "show"]).json()["expired"] == true).then_some(())
    });
    let refused = fleet.json(&["flip", "2"]).expect_code(12);
    assert!(refused.to_string().contains("muster root edit"), "{refused}");
    fleet.assert_all_serve(&one);

    // Everything starts again with it, and hosts go on serving: that is how its successor gets through.
    fleet.down();
    fleet.start(&[]);
    fleet.wait_connected(2);
    fleet.assert_all_serve(&one);
    rotate(&fleet, &[], &[&first_root_key(&fleet)]);
    wait_followed(&fleet.hosts(), 3);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&two);
}

#[test]
fn a_root_needs_the_thresholds_of_both_roots() {
    let fleet = Fleet::up(1);
    let first = first_root_key(&fleet);
    let (alice, bob) = (new_key(fleet.scratch(), "alice"), new_key(fleet.scratch(), "bob"));
    let [draft, signed] = ["next.toml", "next.json"].map(|name| fleet.scratch().join(name));
    let adds = [&alice, &bob].map(|key| format!("root={}", text(&key.with_extension("pub"))));
    let edit = [
        "root",
        "edit",
        "--out",
        text(&draft),
        "--add",
        &adds[0],
        "--add",
        &adds[1],
        "--threshold",
        "root=2",
    ];
    fleet.json(&edit).expect_code(0);

    let stranger = new_key(fleet.scratch(), "mallory");
    fleet.json(&["root", "sign", text(&draft), "--key", text(&stranger)]).expect_code(2);
    // The present root's one key is not enough for the next one.
    let said = fleet.json(&["root", "sign", text(&draft), "--key", text(&first)]).expect_code(0);
    assert_eq!(said.json()["present_root"]["missing"], 0, "{said}");
    assert_eq!(said.json()["next_root"]["missing"], 1, "{said}");
    let unsigned = said.json()["next_root"]["unsigned"].to_string();
    assert!(unsigned.contains("alice") && unsigned.contains("bob"), "{said}");
    fleet.json(&["root", "apply", text(&signed)]).expect_code(12);
    // To sign again with the same key is not to sign twice.
    let again = fleet.json(&["root", "sign", text(&signed), "--key", text(&first)]).expect_code(0);
    assert_eq!(again.json()["complete"], false, "{again}");
    fleet.json(&["root", "apply", text(&signed)]).expect_code(12);
    let last = fleet.json(&["root", "sign", text(&signed), "--key", text(&bob)]).expect_code(0);
    assert_eq!(last.json()["complete"], true, "{last}");
    fleet.json(&["root", "apply", text(&signed)]).expect_code(0);
    wait_followed(&fleet.hosts(), 2);
    let shown = fleet.json(&["root", "show"]).expect_code(0).json();
    assert_eq!((&shown["version"], &shown["roles"][0]["threshold"]), (&2.into(), &2.into()), "{shown}");
    let kept = fleet.dir().join("operator/root.1.json");
    assert_eq!(fleet.json(&["root", "show", text(&kept)]).expect_code(0).json()["version"], 1);

    // Another operator's context still has the first root; it follows by itself.
    fs::copy(&kept, fleet.dir().join("operator/root.json")).unwrap();
    let followed = fleet.json(&["root", "apply"]).expect_code(0);
    assert_eq!(followed.json()["version"], 2, "{followed}");
    let offline =
        run(&["root", "show", text(&fleet.dir().join("operator/root.json")), "--output", "json"], &[]);
    assert_eq!(offline.expect_code(0).json()["version"], 2);
}

/// The kinds of the log's entries that are about roots and approvals, with the version where one is named.
fn of_roots(fleet: &Fleet) -> Vec<(String, Option<u64>)> {
    let log =
        fleet.json(&["audit", "log", "--kind", "root", "--kind", "approval", "--kind", "refusal"]).json();
    let entries = log["results"].as_array().unwrap().iter();
    entries.map(|it| (it["kind"].as_str().unwrap().to_owned(), it["root_version"].as_u64())).collect()
}

/// Replaces the operator key of the root of one version by a new one, and returns that.
fn rotate_operator(fleet: &Fleet, name: &str, present: &Path) -> PathBuf {
    let new = new_key(fleet.scratch(), name);
    let add = format!("operator={}", text(&new.with_extension("pub")));
    let remove = format!("operator={}", SigningKey::read(present).unwrap().public());
    rotate(fleet, &["--add", &add, "--remove", &remove], &[&first_root_key(fleet)]);
    sign_with(fleet, "operator_key", &new);
    new
}

#[test]
fn the_audit_log_and_its_witnesses_go_through_a_change_of_roots() {
    let fleet = Fleet::up(2);
    fleet.release(&versioned("1"), "1");
    let two = fleet.push(&versioned("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    let old = fleet.dir().join("operator/operator-signing.key");
    rotate_operator(&fleet, "alice", &old);
    wait_followed(&fleet.hosts(), 2);
    let status = wait_until("all hosts say that they follow", PATIENCE, || {
        let status = fleet.json(&["status"]).expect_code(0).json();
        let follow = status["hosts"].as_array()?.iter().all(|host| host["root_version"] == 2);
        follow.then_some(status)
    });
    assert_eq!(status["root_version"], 2, "{status}");
    apply_roster(&fleet);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&two);
    let expected =
        [("root", Some(1)), ("approval", None), ("root", Some(2)), ("approval", Some(2)), ("approval", None)];
    let expected = expected.map(|(kind, version)| (kind.to_owned(), version));
    assert_eq!(of_roots(&fleet), expected);

    // Everything starts anew: the log has nothing to add, and every host still believes it.
    fleet.down();
    fleet.start(&[]);
    fleet.wait_connected(2);
    assert_eq!(of_roots(&fleet), expected);
    fleet.json(&["flip", "1"]).expect_code(0);
    fleet.json(&["status", "--check"]).expect_code(0);

    let live = fleet.json(&["audit", "verify", "--live"]).expect_code(0).json();
    let export = fleet.scratch().join("all.audit");
    fleet.json(&["audit", "export", text(&export)]).expect_code(0);
    fleet.down();
    let verify = ["audit", "verify", text(&export)];
    let offline = fleet.json(&verify).expect_code(0).json();
    for verified in [&live, &offline] {
        let versions = (&verified["root_version_first"], &verified["root_version_last"]);
        assert_eq!(versions, (&1.into(), &2.into()), "{verified}");
        let approvals = (&verified["approvals_verified"], &verified["approvals_unverified"]);
        assert_eq!(approvals, (&4.into(), &0.into()), "{verified}");
    }
    // What is not known is said, and another root than the log's is a contradiction.
    let [first, second] = ["root.1.json", "root.json"].map(|name| fleet.dir().join("operator").join(name));
    let half = fleet.json(&[&verify[..], &["--root", text(&second)]].concat()).expect_code(0).json();
    assert_eq!(half["approvals_unverified"], 1, "{half}");
    let all = ["--root", text(&first), "--root", text(&second)];
    let both = fleet.json(&[&verify[..], &all].concat()).expect_code(0).json();
    assert_eq!(both["approvals_verified"], 4, "{both}");
    // With nothing but the first root: the export carries those that follow.
    let key = fs::read_to_string(fleet.dir().join("audit.pub")).unwrap();
    let elsewhere = fleet.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::copy(&first, elsewhere.join("root.json")).unwrap();
    let pinned = elsewhere.join("root.json");
    let alone = ["--root", text(&pinned), "--key", key.trim_end(), "--output", "json"];
    let alone = run(&[&verify[..], &alone].concat(), &[]).expect_code(0).json();
    assert_eq!(
        (&alone["approvals_verified"], &alone["approvals_unverified"]),
        (&4.into(), &0.into()),
        "{alone}"
    );
    assert_eq!((&alone["orders_verified"], &alone["orders_unverified"]), (&3.into(), &0.into()), "{alone}");
    let other = Fleet::up(1);
    let foreign = other.dir().join("operator/root.json");
    let refused = fleet.json(&[&verify[..], &["--root", text(&foreign)]].concat()).expect_code(12);
    assert!(refused.to_string().contains("root document 1: it is not believed"), "{refused}");
}

#[test]
fn an_approval_by_a_key_of_another_time_is_found_in_a_log_that_was_rewritten_with_its_key() {
    let fleet = Fleet::up(1);
    fleet.release(&versioned("1"), "1");
    fleet.push(&versioned("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    let old = fleet.dir().join("operator/operator-signing.key");
    let new = rotate_operator(&fleet, "alice", &old);
    wait_followed(&fleet.hosts(), 2);
    apply_roster(&fleet);
    fleet.json(&["flip", "2"]).expect_code(0);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let mut log = Log::of(&fleet);
    let last = log.parsed().iter().rposition(|entry| entry.kind == Kind::Approval).unwrap();
    let [old, new] = [old, new].map(|key| SigningKey::read(&key).unwrap().public().to_string());
    let entry = String::from_utf8(log.entries[last].clone()).unwrap();
    assert!(entry.contains(&new), "{entry}");
    log.entries[last] = entry.replace(&new, &old).into_bytes();
    log.write();
    coordinator.start(&[]);
    fleet.wait_connected(1);
    let refused = fleet.json(&["audit", "verify", "--live"]).expect_code(12);
    let named = format!("entry {last}: {old} is no key that approves by root version 2");
    assert!(refused.to_string().contains(&named), "{refused}");
}

#[test]
fn a_root_that_was_written_down_by_a_coordinator_that_died_at_once_may_be_another_the_next_time() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&versioned("1"), "1");
    let coordinator = fleet.coordinator();
    coordinator.kill();
    // Its first append is that of its lead.
    coordinator.start(&[("MUSTER_CRASH_AT", "coordinator.audit.covered#2")]);
    fleet.wait_connected(1);
    let [draft, signed] = ["lost.toml", "lost.json"].map(|name| fleet.scratch().join(name));
    fleet.json(&["root", "edit", "--out", text(&draft), "--expires", "9d"]).expect_code(0);
    fleet.json(&["root", "sign", text(&draft), "--key", text(&first_root_key(&fleet))]).expect_code(0);
    assert_ne!(fleet.json(&["root", "apply", text(&signed)]).code, 0);
    coordinator.wait_until_gone();
    coordinator.start(&[]);
    fleet.wait_connected(1);
    let root = |version| ("root".to_owned(), Some(version));
    let approval = |version| ("approval".to_owned(), version);
    let lost = [root(1), approval(None), root(2), approval(Some(2)), root(1)];
    assert_eq!(of_roots(&fleet), lost);

    // Nobody has followed it, so that another one may have its number.
    rotate_operator(&fleet, "alice", &fleet.dir().join("operator/operator-signing.key"));
    wait_followed(&fleet.hosts(), 2);
    assert_eq!(of_roots(&fleet)[lost.len()..], [root(2), approval(Some(2))]);
    fleet.json(&["audit", "verify", "--live"]).expect_code(0);
    fleet.json(&["root", "apply", text(&signed)]).expect_code(12);
    fleet.assert_all_serve(&one);
}
