//! Many who ask at once, and who ask while others act.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Artifact, Fleet, Observer, Output, PATIENCE, artifact, wait_until};

fn tree(version: &str) -> Artifact {
    artifact(&[("bin/smars", version), ("VERSION", version)])
}

/// A fleet of three that serves the first of the digests, with the second deployed as `2`.
fn serving() -> (Fleet, [String; 2]) {
    let fleet = Fleet::up(3);
    let first = fleet.release(&tree("1"), "1");
    let second = fleet.push(&tree("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    (fleet, [first, second])
}

/// Runs commands at the same time.
fn at_once(fleet: &Fleet, commands: &[&[&str]]) -> Vec<Output> {
    thread::scope(|scope| {
        let running: Vec<_> =
            commands.iter().map(|command| scope.spawn(move || fleet.json(command))).collect();
        running.into_iter().map(|command| command.join().unwrap()).collect()
    })
}

#[test]
fn a_check_beside_a_rollout_answers_and_names_only_who_is_silent() {
    let (fleet, [first, second]) = serving();
    let halted = fleet.host(3);
    halted.agent.stop();
    thread::scope(|scope| {
        let flip = scope.spawn(|| fleet.json(&["flip", "2", "--timeout", "90s"]));
        wait_until("the rollout is under way", PATIENCE, || {
            (fleet.json(&["status"]).text_at("/phase") == "preparing").then_some(())
        });
        let checked = fleet.json(&["check", "--release", "2", "--timeout", "6s"]).expect_code(11);
        // Silent at first, and gone once the connection has been seen to be dead.
        let blockers = checked.blockers();
        let named = |code: &str| ["host-silent", "host-missing"].contains(&code);
        assert!(
            blockers.iter().all(|it| named(it.code.as_str())
                && it.host.as_ref().is_some_and(|host| host.as_str() == halted.name())),
            "{checked}"
        );
        fleet.assert_all_serve(&first);
        halted.agent.cont();
        let flip = flip.join().unwrap();
        // The check took a while: the host may have been given up before it went on.
        match flip.code {
            0 => fleet.assert_all_serve(&second),
            _ => drop(flip.expect_code(11).expect_blocker("session-lost", halted.name(), "")),
        }
    });
}

#[test]
fn two_operators_deploy_two_releases_that_share_most_of_their_bytes() {
    let (fleet, [first, _]) = serving();
    let shared: Vec<(String, String)> =
        (0..24).map(|n| (format!("data/{n}"), format!("{n} ").repeat(40_000))).collect();
    let mut digests = Vec::new();
    for version in ["4", "5"] {
        let tree = tree(version);
        for (path, text) in &shared {
            tree.write(path, text);
        }
        digests.push(fleet.push(&tree, version));
    }
    let deploy: [&[&str]; 4] = [&["deploy", "4"], &["deploy", "5"], &["deploy", "4"], &["deploy", "5"]];
    for deployed in at_once(&fleet, &deploy) {
        let deployed = deployed.expect_code(0);
        assert_eq!(deployed.json()["deployed"], 3, "{deployed}");
    }
    fleet.assert_all_serve(&first);
    for (version, digest) in ["4", "5"].into_iter().zip(&digests) {
        fleet.json(&["check", "--release", version]).expect_code(0);
        fleet.json(&["flip", version]).expect_code(0);
        fleet.assert_all_serve(digest);
    }
}

#[test]
fn many_checks_at_once_are_all_answered() {
    let (fleet, [first, _]) = serving();
    let check: [&[&str]; 2] = [&["check", "--release", "1"], &["check", "--release", "2"]];
    for checked in at_once(&fleet, &check.repeat(8)) {
        assert_eq!(checked.expect_code(0).text_at("/gate"), "open");
    }
    fleet.assert_all_serve(&first);
}

#[test]
fn an_abort_and_a_flip_agree_on_who_was_first() {
    let (fleet, digests) = serving();
    let observer = Observer::of(&fleet);
    let mut serves = 0;
    for delay_ms in [0, 30, 60, 90, 120, 200] {
        let to = 1 - serves;
        let (flip, aborted) = thread::scope(|scope| {
            let flip = scope.spawn(|| fleet.json(&["flip", ["1", "2"][to], "--timeout", "90s"]));
            let asked = Instant::now();
            wait_until("its turn", PATIENCE, || {
                (asked.elapsed() >= Duration::from_millis(delay_ms)).then_some(())
            });
            let aborted = wait_until("the abort or the flip is first", PATIENCE, || {
                match fleet.json(&["abort"]).code {
                    0 => Some(true),
                    _ => flip.is_finished().then_some(false),
                }
            });
            (flip.join().unwrap(), aborted)
        });
        if aborted {
            let flip = flip.expect_code(17);
            flip.expect_blocker("aborted-by-operator", "", "");
            assert_eq!(flip.text_at("/outcome"), "unchanged");
        } else {
            flip.expect_code(0);
            serves = to;
        }
        fleet.assert_all_serve(&digests[serves]);
    }
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_deployment_that_its_coordinator_did_not_survive_is_carried_on() {
    let (fleet, [first, _]) = serving();
    let big = tree("6");
    for n in 0..24 {
        big.write(&format!("data/{n}"), &format!("{n:03}").repeat(300_000));
    }
    let digest = fleet.push(&big, "6");
    let coordinator = fleet.coordinator();
    let blobs = fleet.host(1).folder().join("blobs");
    // Finished ones: each has its whole digest for a name, in a folder of those that begin alike.
    let count = || -> usize {
        let folders = fs::read_dir(&blobs).unwrap().flatten();
        let files = folders.filter_map(|folder| fs::read_dir(folder.path()).ok()).flatten().flatten();
        files.filter(|file| file.file_name().len() == 64).count()
    };
    let before = count();
    let deployed = thread::scope(|scope| {
        let deploy = scope.spawn(|| fleet.json(&["deploy", "6"]));
        wait_until("blobs arrive", PATIENCE, || (count() > before + 4 || deploy.is_finished()).then_some(()));
        coordinator.kill();
        deploy.join().unwrap()
    });
    // On a fast disk it may have been through.
    assert!([0, 1].contains(&deployed.code), "{deployed}");
    assert!(count() > before, "{deployed}");
    fleet.assert_all_serve(&first);
    coordinator.start(&[]);
    fleet.wait_connected(3);
    let deployed = fleet.json(&["deploy", "6"]).expect_code(0).json();
    let total = 24 * 900_000;
    let fetched = deployed["results"][0]["fetched_bytes"].as_u64().unwrap();
    assert!(fetched < total, "{fetched} of {total}: what had arrived is not fetched again");
    fleet.json(&["flip", "6"]).expect_code(0);
    fleet.assert_all_serve(&digest);
}
