//! Many who ask at once, and who ask while others act.

use std::fs;
use std::thread;

use crate::harness::{Fleet, Observer, Output, until, versioned};

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
    let (fleet, [first, second]) = Fleet::serving(3);
    let halted = fleet.host(3);
    halted.agent.stop();
    let flip = fleet.flip_while("2", || {
        fleet.wait_phase("preparing");
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
    });
    // The check took a while: the host may have been given up before it went on.
    match flip.code {
        0 => fleet.assert_all_serve(&second),
        _ => drop(flip.expect_code(11).expect_blocker("session-lost", halted.name(), "")),
    }
}

#[test]
fn two_operators_deploy_two_releases_that_share_most_of_their_bytes() {
    let (fleet, [first, _]) = Fleet::serving(3);
    let shared: Vec<(String, String)> =
        (0..24).map(|n| (format!("data/{n}"), format!("{n} ").repeat(40_000))).collect();
    let mut digests = Vec::new();
    for version in ["4", "5"] {
        let tree = versioned(version);
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
    let (fleet, [first, _]) = Fleet::serving(3);
    let check: [&[&str]; 2] = [&["check", "--release", "1"], &["check", "--release", "2"]];
    for checked in at_once(&fleet, &check.repeat(8)) {
        assert_eq!(checked.expect_code(0).text_at("/gate"), "open");
    }
    fleet.assert_all_serve(&first);
}

/// An operator who asks to abort is refused with this reason.
#[track_caller]
fn abort_is_refused(fleet: &Fleet, reason: &str) {
    fleet.json(&["abort"]).expect_code(17).expect_blocker(reason, "", "");
}

/// A flip to `2` during which the coordinator dies at this point. Then nobody answers, until it is started again.
#[track_caller]
fn flip_until_coordinator_dies_at(fleet: &Fleet, point: &str) {
    fleet.let_coordinator_die_at(point);
    fleet.json(&["flip", "2", "--max-lapsed", "0", "--timeout", "90s"]).expect_code(1);
    fleet.coordinator().wait_until_gone();
    fleet.json(&["abort"]).expect_code(1);
}

/// In every state that a rollout can be held in, the operator who aborts it and the one who flips are told the same.
#[test]
fn an_abort_and_a_flip_agree_on_who_was_first() {
    let (fleet, [first, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let (coordinator, victim) = (fleet.coordinator(), fleet.host(2));
    abort_is_refused(&fleet, "nothing-to-abort");

    // PREPARING, as long as a host does not answer: of two who abort one does it.
    victim.agent.stop();
    let flip = fleet.flip_while("2", || {
        fleet.wait_phase("preparing");
        let mut aborts = at_once(&fleet, &[&["abort"], &["abort"]]);
        aborts.sort_by_key(|abort| abort.code);
        let [done, late] = aborts.try_into().ok().expect("two were begun");
        done.expect_code(0);
        late.expect_code(17).expect_blocker("nothing-to-abort", "", "");
    });
    flip.expect_blocker("aborted-by-operator", "", "");
    assert_eq!(flip.expect_code(17).text_at("/outcome"), "unchanged");
    victim.agent.cont();
    fleet.wait_settled(&first);

    // ARMING, with all hosts armed and the decision not yet durable: there is none.
    flip_until_coordinator_dies_at(&fleet, "coordinator.decided.before");
    coordinator.start(&[]);
    fleet.wait_settled(&first);
    abort_is_refused(&fleet, "nothing-to-abort");
    assert_eq!(fleet.last_end()["blockers"][0]["code"], "coordinator-restarted");

    // DECIDED, durably, before any host was told: a host that is silent holds it there.
    flip_until_coordinator_dies_at(&fleet, "coordinator.decided.persisted");
    victim.agent.stop();
    coordinator.start(&[]);
    fleet.wait_phase("decided");
    abort_is_refused(&fleet, "decided");
    victim.agent.cont();
    fleet.wait_settled(&second);

    // DECIDED, with a host that does not close and must not lapse.
    fleet.let_die_at(&victim, "agent.close.before-guard");
    let flip = fleet.flip_so_while(&["1", "--max-lapsed", "0"], || {
        fleet.wait_phase("decided");
        abort_is_refused(&fleet, "decided");
        victim.agent.start(&[]);
    });
    flip.expect_code(0);
    fleet.wait_settled(&first);

    // OPENED, with a host that has not opened yet: the new release is served.
    fleet.let_die_at(&victim, "agent.open.before-guard");
    let flip = fleet.flip_while("2", || {
        victim.agent.wait_until_gone();
        fleet.wait_phase("opened");
        abort_is_refused(&fleet, "nothing-to-abort");
        victim.agent.start(&[]);
    });
    // Whoever watches is told once that a host is dark, and need not wait for it.
    assert!([0, 18].contains(&flip.code), "{flip}");
    fleet.wait_settled(&second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_deployment_that_its_coordinator_did_not_survive_is_carried_on() {
    let (fleet, [first, _]) = Fleet::serving(3);
    let big = versioned("6");
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
        until("blobs arrive", || count() > before + 4 || deploy.is_finished());
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
