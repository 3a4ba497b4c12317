//! Break glass: what operators prepare for the case that there is no coordinator.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use std::path::Path;

use crate::harness::{FLEET, Fleet, Host, Observer, Operators, Output, artifact, run_program, until};
use crate::phases::reboot;

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

/// What somebody types at the host itself.
fn at(host: &Host, token: &Path, environment: &[(&str, &str)]) -> Output {
    let config = host.folder().join("agent.toml");
    let arguments =
        ["break-glass", FLEET, "--token", token.to_str().unwrap(), "--config", config.to_str().unwrap()];
    run_program("muster-agent", &arguments, environment)
}

/// Issues a token for the first release, which the fleet serves.
fn issue(fleet: &Fleet, name: &str, host: &str, more: &[&str]) -> std::path::PathBuf {
    let file = fleet.scratch().join(name);
    let out = file.to_str().unwrap();
    let first = ["break-glass", "issue", "--host", host, "--release", "1", "--reason", "night", "--out", out];
    fleet.json(&[&first, more].concat()).expect_code(0);
    file
}

#[track_caller]
fn refuses(host: &Host, token: &Path, why: &str) {
    let refused = at(host, token, &[]).expect_code(1);
    assert!(refused.stderr.contains(why), "not `{why}`: {refused}");
    assert_eq!(host.serves(), None, "{refused}");
}

#[test]
fn a_dark_host_is_started_with_no_coordinator_and_flips_again_once_that_is_settled() {
    let (fleet, [first, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let victim = fleet.host(2);
    let token = issue(&fleet, "glass.json", "host-2", &[]);
    let another = issue(&fleet, "another.json", "host-2", &["--valid", "1h"]);
    let foreign = issue(&fleet, "foreign.json", "host-1", &[]);
    let expired = issue(&fleet, "expired.json", "host-2", &["--valid", "1ms"]);
    let later = issue(&fleet, "later.json", "host-2", &["--epoch", "2"]);
    let serves_on = at(&victim, &token, &[]).expect_code(1);
    assert!(serves_on.stderr.contains("the agent of this host runs"), "{serves_on}");

    fleet.coordinator().kill();
    reboot(&victim);
    until("its guard revokes the permit", || victim.serves().is_none());
    refuses(&victim, &foreign, "not for this host");
    refuses(&victim, &expired, "has expired");
    refuses(&victim, &later, "starts nothing else");
    let spoiled = fleet.scratch().join("spoiled.json");
    let text = fs::read_to_string(&token).unwrap();
    fs::write(&spoiled, text.replacen("\"payload\":\"eyJ", "\"payload\":\"eyK", 1)).unwrap();
    refuses(&victim, &spoiled, "signed");

    let started = at(&victim, &token, &[]).expect_code(0);
    assert!(started.stdout.contains("was started on this host without a coordinator"), "{started}");
    assert_eq!(victim.serves().as_ref(), Some(&first));
    reboot(&victim);
    until("its guard revokes the permit", || victim.serves().is_none());
    refuses(&victim, &token, "used on this host before");
    at(&victim, &another, &[]).expect_code(0);
    assert_eq!(victim.serves().as_ref(), Some(&first));

    // It is heard again: it goes on serving, everybody sees what was done, and nothing flips.
    victim.agent.start(&[]);
    fleet.coordinator().start(&[]);
    fleet.wait_connected(3);
    fleet.wait_named(&victim, muster_model::Code::BrokenGlass);
    fleet.assert_all_serve(&first);
    let status = fleet.json(&["status"]).expect_code(0).json();
    let told = status["hosts"][1]["broken_glass"].as_array().unwrap().clone();
    assert_eq!(told.len(), 2, "{status}");
    assert_eq!((&told[0]["reason"], &told[0]["settled"]), (&"night".into(), &false.into()));
    let shown = fleet.muster(&["status"]).expect_code(0);
    assert!(shown.stdout.contains("without a coordinator at 20"), "{shown}");
    let refused = fleet.json(&["flip", "2"]).expect_code(12);
    refused.expect_blocker("broken-glass", "host-2", "");
    let entries = || fleet.json(&["audit", "log"]).expect_code(0).stdout;
    assert_eq!(entries().matches("\"break-glass\"").count(), 2, "{}", entries());

    // An agent that is started again forgets nothing.
    victim.agent.kill();
    fleet.wait_connected(2);
    victim.agent.start(&[]);
    fleet.wait_connected(3);
    fleet.wait_named(&victim, muster_model::Code::BrokenGlass);
    fleet.json(&["break-glass", "settle", "host-1", "--reason", "x"]).expect_code(11);
    fleet.json(&["break-glass", "settle", "host-2", "--reason", "looked at"]).expect_code(0);
    assert!(entries().contains("\"settle-glass\""), "{}", entries());
    fleet.assert_all_serve(&first);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.wait_settled(&second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn what_differs_is_not_started_and_costs_no_token() {
    let (fleet, [first, _]) = Fleet::serving(1);
    let victim = fleet.host(1);
    let token = issue(&fleet, "glass.json", "host-1", &[]);
    fleet.coordinator().kill();
    reboot(&victim);
    until("its guard revokes the permit", || victim.serves().is_none());
    let extra = victim.tree(&first).join("extra");
    make_writable(&victim.tree(&first));
    fs::write(&extra, "nobody released this").unwrap();
    refuses(&victim, &token, "mismatch");
    fs::remove_file(&extra).unwrap();
    at(&victim, &token, &[]).expect_code(0);
    assert_eq!(victim.serves().as_ref(), Some(&first));
}

#[test]
fn whatever_dies_on_the_way_nothing_is_started_without_the_mark() {
    let (fleet, [first, _]) = Fleet::serving(2);
    let victim = fleet.host(2);
    let token = issue(&fleet, "glass.json", "host-2", &[]);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    reboot(&victim);
    until("its guard revokes the permit", || victim.serves().is_none());
    let die_at = |point| {
        let died = at(&victim, &token, &[("MUSTER_CRASH_AT", point)]);
        assert_ne!(died.code, 0, "{died}");
        assert_eq!(victim.serves(), None, "{died}");
    };
    // Before the mark the token has not been used; after it, it has, though nothing was started.
    die_at("agent.glass.before-journal");
    die_at("agent.glass.persisted");
    refuses(&victim, &token, "used on this host before");
    victim.agent.start(&[]);
    coordinator.start(&[]);
    fleet.wait_connected(2);
    fleet.wait_named(&victim, muster_model::Code::BrokenGlass);
    until("it is admitted to what the fleet serves", || victim.serves().as_ref() == Some(&first));
    fleet.json(&["flip", "2"]).expect_code(12).expect_blocker("broken-glass", "host-2", "");
}

#[test]
fn a_host_that_was_halted_is_started_only_by_a_token_that_says_so() {
    let (fleet, [first, _]) = Fleet::serving(1);
    let victim = fleet.host(1);
    let token = issue(&fleet, "glass.json", "host-1", &[]);
    let ends_halt = issue(&fleet, "halt.json", "host-1", &["--end-halt"]);
    fleet.coordinator().kill();
    let config = victim.folder().join("agent.toml");
    let halt = ["halt", FLEET, "--reason", "smoke", "--config", config.to_str().unwrap()];
    victim.agent.kill();
    run_program("muster-agent", &halt, &[]).expect_code(0);
    refuses(&victim, &token, "was halted");
    at(&victim, &ends_halt, &[]).expect_code(0);
    assert_eq!(victim.serves().as_ref(), Some(&first));
    // While glass is broken, it can be halted like any other, and stays so.
    run_program("muster-agent", &halt, &[]).expect_code(0);
    assert_eq!(victim.serves(), None);
    victim.agent.start(&[]);
    fleet.coordinator().start(&[]);
    fleet.wait_connected(1);
    fleet.wait_named(&victim, muster_model::Code::Halted);
    assert_eq!(victim.serves(), None);
}

#[test]
fn where_two_must_sign_one_starts_and_settles_nothing() {
    let fleet = Fleet::up(1);
    let tree = artifact(&[("lib/a", "a")]);
    let first = fleet.release(&tree, "1");
    let operators = Operators::demand_two(&fleet);
    let victim = fleet.host(1);
    let token = issue(&fleet, "glass.json", "host-1", &[]);
    fleet.coordinator().kill();
    reboot(&victim);
    until("its guard revokes the permit", || victim.serves().is_none());
    refuses(&victim, &token, "signed by 1");
    // The second signature needs no coordinator.
    let signed = operators.bob(&["break-glass", "sign", token.to_str().unwrap()]).expect_code(0).json();
    assert_eq!(signed["complete"], true, "{signed}");
    at(&victim, &token, &[]).expect_code(0);
    assert_eq!(victim.serves().as_ref(), Some(&first));
    victim.agent.start(&[]);
    fleet.coordinator().start(&[]);
    fleet.wait_connected(1);
    fleet.wait_named(&victim, muster_model::Code::BrokenGlass);

    let file = fleet.scratch().join("settlement.json");
    let out = file.to_str().unwrap();
    let made = fleet.json(&["break-glass", "settle", "host-1", "--reason", "looked at", "--out", out]);
    assert_eq!(made.expect_code(0).json()["complete"], false);
    fleet.json(&["break-glass", "settle", "--settlement", out]).expect_code(12);
    operators.bob(&["break-glass", "sign", out]).expect_code(0);
    fleet.json(&["break-glass", "settle", "--settlement", out]).expect_code(0);
    fleet.wait_settled(&first);
}

fn make_writable(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}
