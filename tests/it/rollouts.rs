//! Several operators at once, and rollouts that are given up.

use std::thread;

use crate::harness::{Artifact, Fleet, Observer, Output, PATIENCE, artifact, wait_until};

/// P13 with the times of a local fleet: twice what its one clock may be off, and its longest fence.
const SKEW_MS_MAX: u64 = 2 + 500;

fn tree(version: &str) -> Artifact {
    artifact(&[("bin/smars", version), ("VERSION", version)])
}

fn serving() -> (Fleet, String) {
    let fleet = Fleet::up(3);
    let digest = fleet.release(&tree("1"), "1");
    for version in ["2", "3"] {
        fleet.push(&tree(version), version);
        fleet.json(&["deploy", version]).expect_code(0);
    }
    (fleet, digest)
}

#[test]
fn of_two_flips_at_once_one_wins_and_the_other_is_told_by_whom() {
    let (fleet, _) = serving();
    let observer = Observer::of(&fleet);
    let codes: Vec<(i32, Vec<String>)> = thread::scope(|scope| {
        let flips = ["2", "3"].map(|version| {
            let fleet = &fleet;
            scope.spawn(move || {
                let flip = fleet.json(&["flip", version]);
                let codes = flip.blockers().iter().map(|it| it.code.as_str().to_owned()).collect();
                (flip.code, codes)
            })
        });
        flips.map(|flip| flip.join().unwrap()).into()
    });
    let won = codes.iter().filter(|(code, _)| *code == 0).count();
    // One after the other is possible too: then the second order starts from what is no longer served.
    assert!(won >= 1, "{codes:?}");
    for (code, blockers) in codes.iter().filter(|(code, _)| *code != 0) {
        assert!([13, 14].contains(code), "{codes:?}");
        assert!(
            blockers.iter().all(|it| ["busy", "superseded", "order-stale"].contains(&it.as_str())),
            "{codes:?}"
        );
    }
    observer.expect_one_release_at_a_time();
}

#[test]
fn rollout_whose_host_is_halted_is_busy_and_can_be_given_up() {
    let (fleet, digest) = serving();
    let halted = fleet.host(2).agent;
    halted.stop();
    thread::scope(|scope| {
        let first = scope.spawn(|| fleet.json(&["flip", "2", "--timeout", "60s"]));
        wait_until("the rollout is under way", PATIENCE, || {
            (fleet.json(&["status"]).text_at("/phase") == "preparing").then_some(())
        });
        let second = fleet.json(&["flip", "3"]).expect_code(14);
        let busy = second.blockers();
        assert!(
            busy.iter().any(|it| it.code.as_str() == "busy" && it.detail.contains("rollout 2")),
            "{second}"
        );
        fleet.json(&["abort", "7"]).expect_code(13).expect_blocker("stale-rollout", "", "");
        fleet.json(&["abort"]).expect_code(0);
        let first = first.join().unwrap().expect_code(17);
        first.expect_blocker("aborted-by-operator", "", "");
        assert_eq!(first.text_at("/outcome"), "unchanged");
    });
    fleet.json(&["abort"]).expect_code(17).expect_blocker("nothing-to-abort", "", "");
    fleet.assert_all_serve(&digest);
    halted.cont();
    fleet.wait_connected(3);
    fleet.json(&["flip", "2"]).expect_code(0);
}

#[test]
fn flip_that_takes_too_long_is_given_up() {
    let (fleet, digest) = serving();
    let halted = fleet.host(2).agent;
    halted.stop();
    let flip = fleet.json(&["flip", "2", "--timeout", "1s"]).expect_code(16);
    flip.expect_blocker("timed-out", "", "");
    assert_eq!(flip.text_at("/outcome"), "unchanged");
    fleet.assert_all_serve(&digest);
    halted.cont();
    fleet.wait_connected(3);
    fleet.json(&["flip", "2"]).expect_code(0);
}

#[test]
fn fast_flip_tells_its_mode_and_its_skew_and_so_does_its_receipt() {
    let (fleet, digest) = serving();
    let mode = |shown: &Output| shown.text_at("/mode");
    assert_eq!(mode(&fleet.json(&["receipt", "show"]).expect_code(0)), "strict");
    let flip = fleet.json(&["flip", "2", "--mode", "fast"]).expect_code(0);
    assert_eq!((mode(&flip).as_str(), flip.text_at("/outcome").as_str()), ("fast", "flipped"));
    let window = flip.json()["dark_window"].clone();
    assert!(window["bound_ms"].is_null(), "a fast flip has no dark window: {flip}");
    let skew_ms = window["spread_ms"].as_u64().unwrap();
    assert!(skew_ms <= SKEW_MS_MAX, "{flip}");
    let receipt = fleet.json(&["receipt", "show"]).expect_code(0);
    assert_eq!(mode(&receipt), "fast", "{receipt}");
    let told = fleet.muster(&["receipt", "show"]).expect_code(0);
    assert!(told.stdout.contains("fast mode: all hosts at one instant"), "{told}");
    let serving = fleet.host(1).serves().unwrap();
    assert_ne!(serving, digest);
    fleet.assert_all_serve(&serving);
}

#[test]
fn checks_and_deployments_run_beside_each_other_and_beside_a_flip() {
    let (fleet, _) = serving();
    for version in ["4", "5"] {
        fleet.push(&tree(version), version);
    }
    thread::scope(|scope| {
        let commands: [&[&str]; 6] = [
            &["deploy", "4"],
            &["deploy", "5"],
            &["check", "--release", "2"],
            &["check", "--release", "3"],
            &["check", "--release", "1"],
            &["flip", "2"],
        ];
        let running = commands.map(|command| scope.spawn(|| fleet.json(command)));
        for command in running {
            command.join().unwrap().expect_code(0);
        }
    });
    for version in ["4", "5"] {
        fleet.json(&["check", "--release", version]).expect_code(0);
    }
}

#[test]
fn host_that_is_added_stays_dark_until_it_has_the_serving_release() {
    let (fleet, digest) = serving();
    fleet.json(&["host", "issue", "host-4", "--fleet", "demo"]).expect_code(0);
    let outsider = fleet.outsider("host-4");
    let roster = fleet.scratch().join("roster.toml");
    let path = roster.to_str().unwrap();
    fleet
        .muster(&["roster", "draft", "--fleet", "demo", "--boot-gate", "optional", "--out", path])
        .expect_code(0);
    fleet.json(&["roster", "apply", path]).expect_code(0);
    outsider.guard.start(&[]);
    outsider.agent.start(&[]);
    fleet.wait_connected(4);
    assert_eq!(outsider.serves(), None);
    fleet.json(&["flip", "2"]).expect_code(10).expect_blocker("not-deployed", "host-4", "");
    fleet.json(&["deploy", "1"]).expect_code(0);
    wait_until("host-4 serves", PATIENCE, || (outsider.serves().as_ref() == Some(&digest)).then_some(()));
    fleet.json(&["deploy", "2"]).expect_code(0);
    fleet.json(&["flip", "2"]).expect_code(0);
    assert_eq!(outsider.serves(), fleet.host(1).serves());
}
