//! A coordinator that was lost, with and without a backup, is rebuilt from a fleet that serves all the while.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use muster_model::Code;
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body as FromAgent;
use muster_proto::v1::coordinator_frame::Body as ToAgent;

use crate::harness::impostor::Impostor;
use crate::harness::{
    Artifact, Fleet, Host, Observer, Operators, PATIENCE, artifact, run, until, wait_until,
};

fn tree(version: &str) -> Artifact {
    artifact(&[("bin/smars", version), ("conf/routing.toml", "venues = 154\n"), ("VERSION", version)])
}

/// A fleet of three that has served `1` and serves `2`.
fn serving() -> (Fleet, [String; 2]) {
    let fleet = Fleet::up(3);
    let digests = [fleet.release(&tree("1"), "1"), fleet.release(&tree("2"), "2")];
    (fleet, digests)
}

/// A fleet of three that serves `1`, with `2` deployed, whose coordinator is about to die at a point of the flip.
fn flipping(point: &str) -> (Fleet, [String; 2]) {
    let fleet = Fleet::up(3);
    let digests = [fleet.release(&tree("1"), "1"), fleet.push(&tree("2"), "2")];
    fleet.json(&["deploy", "2"]).expect_code(0);
    flip_until(&fleet, point);
    (fleet, digests)
}

/// Flips to `2`, and the coordinator dies on the way.
#[track_caller]
fn flip_until(fleet: &Fleet, point: &str) {
    let coordinator = fleet.coordinator();
    coordinator.kill();
    coordinator.start(&[("MUSTER_CRASH_AT", point)]);
    fleet.wait_connected(3);
    assert_ne!(fleet.json(&["flip", "2", "--timeout", "60s"]).code, 0);
    coordinator.wait_until_gone();
}

/// Signs a roster that is written as TOML, and hands it to nobody.
#[track_caller]
fn sign(fleet: &Fleet, draft: &Path) -> PathBuf {
    fleet.json(&["roster", "sign", text(draft)]).expect_code(0);
    draft.with_extension("json")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn wait_settled(fleet: &Fleet, digest: &str) {
    wait_until(&format!("the fleet is settled on {digest}"), PATIENCE, || {
        let status = fleet.json(&["status"]);
        let all = fleet.hosts().iter().all(|host| host.serves().as_deref() == Some(digest));
        let calm = status.code == 0
            && status.json()["phase"] == "settled"
            && status.json()["serving"]["digest"] == digest
            && status.json()["blockers"].as_array().is_some_and(Vec::is_empty);
        (all && calm).then_some(())
    });
}

/// A flip to a release that is new, which needs everything: hosts, order, roster, bytes.
#[track_caller]
fn flip_to_something_new(fleet: &Fleet) -> String {
    let third = fleet.release(&tree("3"), "3");
    fleet.assert_all_serve(&third);
    third
}

#[test]
fn a_coordinator_that_was_lost_is_rebuilt_from_its_hosts_and_nothing_stops() {
    let (fleet, [first, second]) = serving();
    let observer = Observer::of(&fleet);
    fleet.lose_coordinator();
    assert_ne!(fleet.json(&["flip", "1"]).code, 0);
    let rebuilt = fleet.rebuild();
    assert_eq!(rebuilt.json()["hosts"], 3, "{rebuilt}");
    assert_eq!(rebuilt.json()["solo"], true, "{rebuilt}");
    wait_settled(&fleet, &second);
    let status = fleet.json(&["status"]).expect_code(0);
    assert_eq!(status.json()["epoch"], 2, "{status}");
    assert_eq!(status.json()["open_overrides"][0]["kind"], "rebuild", "{status}");

    // What was forgotten by the coordinator is there again: releases, the way back, and the receipt of what is served.
    let listed = fleet.json(&["release", "list"]).expect_code(0);
    assert!(listed.stdout.contains(&first) && listed.stdout.contains(&second), "{listed}");
    let receipt = fleet.scratch().join("receipt.json");
    let receipt = receipt.to_str().unwrap();
    until("the receipt is made", || {
        fleet.json(&["receipt", "show", "--epoch", "2", "--out", receipt]).code == 0
    });
    fleet.json(&["receipt", "verify", receipt]).expect_code(0);
    let third = flip_to_something_new(&fleet);
    fleet.json(&["rollback"]).expect_code(0);
    wait_settled(&fleet, &second);
    let seen = observer.expect_one_release_at_a_time();
    for (host, runs) in &seen.runs {
        assert_eq!(*runs, [second.clone(), third.clone(), second.clone()], "{host} stopped in between");
    }
}

#[test]
fn the_word_of_a_host_that_has_retired_outlives_the_coordinator_that_heard_it() {
    let (fleet, _) = serving();
    fleet.json(&["host", "retire", "host-3", "--reason", "sold"]).expect_code(0);
    fleet.release(&tree("3"), "3");
    fleet.lose_coordinator();
    fleet.rebuild();
    // It is let in no more and gives none again: it is in what the others keep of their last flip.
    fleet.release(&tree("4"), "4");
}

#[test]
fn a_coordinator_that_is_restored_from_a_backup_waits_for_a_mandate_as_well() {
    let (fleet, [_, second]) = serving();
    let backup = fleet.scratch().join("coordinator.backup");
    fleet.json(&["backup", "--out", backup.to_str().unwrap()]).expect_code(0);
    let observer = Observer::of(&fleet);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let state = fleet.dir().join("coordinator/state");
    fs::rename(&state, fleet.scratch().join("lost")).unwrap();
    run(&["restore", backup.to_str().unwrap(), "--state", state.to_str().unwrap()], &[]).expect_code(0);
    coordinator.start(&[]);
    wait_until("it says that it does not lead", PATIENCE, || {
        let status = fleet.json(&["status"]);
        (status.code != 1).then(|| status.expect_code(11).expect_blocker("rebuilding", "", ""))
    });
    fleet.rebuild();
    wait_settled(&fleet, &second);
    let again = fleet.json(&["coordinator", "rebuild", "--reason", "again"]);
    assert!(again.blockers().iter().any(|it| it.code == Code::WrongState), "{again}");
    let third = flip_to_something_new(&fleet);
    let seen = observer.expect_one_release_at_a_time();
    assert!(seen.runs.values().all(|runs| *runs == [second.clone(), third.clone()]), "{seen:?}");
}

#[test]
fn a_host_that_is_absent_is_waited_for_or_stated_to_be_off() {
    let (fleet, [_, second]) = serving();
    let absent = fleet.host(2);
    absent.agent.kill();
    fleet.lose_coordinator();
    let rebuild = ["coordinator", "rebuild", "--reason", "a test", "--timeout", "8s"];
    let waits = fleet.json(&rebuild).expect_code(11);
    assert_eq!(waits.expect_blocker("host-missing", absent.name(), "").code, Code::HostMissing);
    assert_eq!(waits.blockers().len(), 1, "{waits}");
    fleet.json(&["status"]).expect_code(11).expect_blocker("rebuilding", "", "");
    fleet.assert_all_serve(&second);

    // A restart of the coordinator forgets nothing that the operators have signed.
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    // It cannot be off and connected.
    absent.agent.start(&[]);
    wait_settled(&fleet, &second);
    flip_to_something_new(&fleet);
}

#[test]
fn a_host_that_is_off_for_good_is_left_out_by_a_signed_statement() {
    let (fleet, [_, second]) = serving();
    let off = fleet.host(3);
    off.agent.kill();
    fleet.lose_coordinator();
    let fenced = ["coordinator", "rebuild", "--reason", "host-3 burned as well", "--fenced", "host-3"];
    let rebuilt = fleet.json(&fenced).expect_code(0);
    assert_eq!(rebuilt.json()["fenced"][0], "host-3", "{rebuilt}");
    let status = fleet.json(&["status"]).expect_code(0);
    status.expect_blocker("host-missing", "host-3", "");
    let open = status.text_at("/open_overrides/0/detail");
    assert!(open.contains("host-3: ") && open.contains("stated to be off"), "{status}");
    // N is still three: only a roster changes that.
    fleet.push(&tree("3"), "3");
    fleet.json(&["deploy", "3", "--timeout", "2s"]).expect_code(11);
    fleet.json(&["flip", "3"]).expect_code(11).expect_blocker("host-missing", "host-3", "");
    assert_eq!(fleet.host(1).serves().as_ref(), Some(&second));
}

/// Operators sign a roster without it that no coordinator has ever put into force, so nobody has asked it to close.
#[test]
fn a_host_that_the_mandated_roster_drops_is_heard_before_the_others_go_on_without_it() {
    let (fleet, [_, second]) = serving();
    let observer = Observer::of(&fleet);
    let draft = fleet.scratch().join("two-hosts.toml");
    fleet.json(&["roster", "draft", "host-1", "host-2", "--out", text(&draft)]).expect_code(0);
    let roster = sign(&fleet, &draft);
    let dropped = fleet.host(3);
    dropped.agent.kill();
    fleet.lose_coordinator();
    let rebuild = ["coordinator", "rebuild", "--reason", "a test", "--timeout", "8s"];
    let waits = fleet.json(&[&rebuild[..], &["--roster", text(&roster)]].concat()).expect_code(12);
    let blocker = waits.expect_blocker("removal-needs-evidence", "host-3", "");
    assert!(blocker.detail.contains("earlier roster"), "{waits}");
    assert_eq!(dropped.serves().as_ref(), Some(&second), "its guard goes on");
    // The others keep what they know, whichever coordinator asks them.
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_answers();
    fleet.json(&["status"]).expect_code(11).expect_blocker("rebuilding", "", "");

    dropped.agent.start(&[]);
    wait_until("the coordinator leads two hosts", PATIENCE, || {
        let status = fleet.json(&["status"]);
        (status.code == 0 && status.json()["hosts_total"] == 2).then_some(())
    });
    assert_eq!(dropped.serves(), None, "it has closed before");
    fleet.wait_connected(2);
    let third = fleet.release(&tree("3"), "3");
    assert_eq!([1, 2].map(|number| fleet.host(number).serves()), [Some(third.clone()), Some(third)]);
    assert_eq!(dropped.serves(), None);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_rollout_that_goes_forward_counts_its_own_hosts_and_who_joins_comes_after_it() {
    let fleet = Fleet::up(3);
    let second = {
        fleet.release(&tree("1"), "1");
        fleet.push(&tree("2"), "2")
    };
    fleet.json(&["deploy", "2"]).expect_code(0);
    let joining = fleet.enrol("host-4");
    until("it has enrolled and waits", || fleet.coordinator().log().contains("host-not-in-roster"));
    let draft = fleet.scratch().join("four-hosts.toml");
    fleet.json(&["roster", "propose", "--from-pending", "--out", text(&draft)]).expect_code(0);
    let roster = sign(&fleet, &draft);
    flip_until(&fleet, "coordinator.opened.persisted");
    let observer = Observer::of(&fleet);
    assert!(fleet.hosts().iter().all(|host| host.serves().is_none()));
    fleet.lose_coordinator();
    let rebuild = ["coordinator", "rebuild", "--reason", "a test", "--timeout", "60s"];
    fleet.json(&[&rebuild[..], &["--roster", text(&roster)]].concat()).expect_code(0);
    wait_until("all three serve, and the roster holds", PATIENCE, || {
        let status = fleet.json(&["status"]);
        let serves = |host: &Host| host.serves().as_ref() == Some(&second);
        let holds = status.code == 0 && status.json()["roster_revision"] == 2;
        (holds && status.json()["epoch"] == 2 && fleet.hosts().iter().all(serves)).then_some(())
    });
    fleet.wait_connected(4);
    assert_eq!(fleet.push(&tree("2"), "2"), second, "its blobs are gone with the coordinator");
    fleet.json(&["deploy", "2"]).expect_code(0);
    until("who has joined serves with the others", || joining.serves().as_ref() == Some(&second));
    let third = flip_to_something_new(&fleet);
    assert_eq!(joining.serves(), Some(third));
    observer.expect_one_release_at_a_time();
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[test]
fn a_host_whose_disk_was_set_back_is_named() {
    let fleet = Fleet::up(3);
    fleet.release(&tree("1"), "1");
    let victim = fleet.host(2);
    let (journal, kept) = (victim.folder().join("fleets/demo/journal"), fleet.scratch().join("journal"));
    victim.agent.kill();
    copy(&journal, &kept);
    victim.agent.start(&[]);
    fleet.wait_connected(3);
    let second = fleet.release(&tree("2"), "2");

    victim.agent.kill();
    fs::remove_dir_all(&journal).unwrap();
    copy(&kept, &journal);
    fleet.lose_coordinator();
    victim.agent.start(&[]);
    let rebuild = ["coordinator", "rebuild", "--reason", "a test", "--timeout", "10s"];
    let refused = fleet.json(&rebuild).expect_code(12);
    refused.expect_blocker("rolled-back-disk", victim.name(), "");
    assert_eq!(fleet.host(1).serves().as_ref(), Some(&second));

    // Its machine made anew, it is a new host, which is admitted to what the others serve.
    victim.agent.kill();
    fs::remove_dir_all(&journal).unwrap();
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    victim.agent.start(&[]);
    wait_settled(&fleet, &second);
    flip_to_something_new(&fleet);
}

#[test]
fn a_rollout_that_was_not_decided_for_any_host_is_given_up() {
    // The decision is durable on the disk that is lost, and no host has heard of it.
    let (fleet, [first, _]) = flipping("coordinator.decided.persisted");
    let observer = Observer::of(&fleet);
    fleet.lose_coordinator();
    fleet.rebuild();
    wait_settled(&fleet, &first);
    flip_to_something_new(&fleet);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_rollout_for_which_hosts_have_closed_goes_forward() {
    let (fleet, [_, second]) = flipping("coordinator.opened.persisted");
    let observer = Observer::of(&fleet);
    assert!(fleet.hosts().iter().all(|host| host.serves().is_none()));
    fleet.lose_coordinator();
    fleet.rebuild();
    wait_settled(&fleet, &second);
    flip_to_something_new(&fleet);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_host_that_was_opened_over_opens_with_the_secrets_that_the_others_kept() {
    let fleet = Fleet::up(3);
    let [first, second] = [fleet.release(&tree("1"), "1"), fleet.push(&tree("2"), "2")];
    fleet.json(&["deploy", "2"]).expect_code(0);
    let observer = Observer::of(&fleet);
    let silent = fleet.host(2);
    silent.agent.kill();
    silent.agent.start(&[("MUSTER_CRASH_AT", "agent.close.before-guard")]);
    fleet.wait_connected(3);
    fleet.json(&["flip", "2", "--timeout", "30s"]).expect_code(18);
    assert_eq!(fleet.host(1).serves().as_ref(), Some(&second));
    fleet.lose_coordinator();
    silent.agent.start(&[]);
    fleet.rebuild();
    wait_settled(&fleet, &second);
    flip_to_something_new(&fleet);
    let seen = observer.expect_one_release_at_a_time();
    assert_eq!(seen.runs[silent.name()][..2], [first, second], "{seen:?}");
}

#[test]
fn the_coordinator_that_was_lost_is_not_obeyed_when_it_comes_back() {
    let (fleet, [_, second]) = serving();
    let lost = fleet.lose_coordinator();
    fleet.rebuild();
    wait_settled(&fleet, &second);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let state = fleet.dir().join("coordinator/state");
    let newer = fleet.scratch().join("newer");
    fs::rename(&state, &newer).unwrap();
    fs::rename(&lost, &state).unwrap();
    coordinator.start(&[]);
    wait_until("the old one is named", PATIENCE, || {
        let status = fleet.json(&["status"]);
        let named =
            status.code == 0 && status.blockers().iter().any(|it| it.code == Code::RolledBackCoordinator);
        named.then_some(())
    });
    assert_ne!(fleet.json(&["flip", "1"]).code, 0);
    fleet.assert_all_serve(&second);
    coordinator.kill();
    fs::rename(&state, &lost).unwrap();
    fs::rename(&newer, &state).unwrap();
    coordinator.start(&[]);
    wait_settled(&fleet, &second);
    flip_to_something_new(&fleet);
}

#[test]
fn a_coordinator_of_a_later_life_is_obeyed_by_nobody_without_a_mandate() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&tree("1"), "1");
    let strangers = crate::harness::forgery::strangers_key();
    let status = crate::harness::Caller::operator(&fleet).status();
    let roster = fleet.json(&["roster", "show"]).expect_code(0);
    let mandate = {
        let hosts = muster_model::RosterRef {
            digest: muster_model::Digest::of(roster.stdout.as_bytes()),
            revision: muster_model::RosterRevision(1),
            hosts: 1,
        };
        let incarnation = muster_model::Incarnation(status.incarnation + 1);
        let (fleet, reason) = ("demo".parse().unwrap(), "mine now".to_owned());
        muster_model::Mandate::new(fleet, incarnation, hosts, Vec::new(), reason).unwrap()
    };
    let impostor = Impostor::replace(&fleet);
    let joined = || ToAgent::Joined(v1::Joined { next_token: vec![7; 32] });
    for envelope in [None, Some(crate::harness::signed(&mandate, &strangers))] {
        impostor.hear("that it joins", |body| matches!(body, FromAgent::Join(_)).then_some(()));
        if let Some(envelope) = envelope {
            impostor.say_in_next_life(ToAgent::Mandate(v1::Mandate { envelope }));
        }
        impostor.say_in_next_life(joined());
        let refused = impostor.hear("that it refuses", |body| {
            let FromAgent::Refused(refused) = body else { return None };
            refused.refusal
        });
        assert_eq!(refused.blockers[0].code, Code::Unmandated.as_str(), "{refused:?}");
    }
    assert_eq!(fleet.host(1).serves().as_ref(), Some(&one));
    // Nobody has run away with the highest number there is: the real one is obeyed as before.
    drop(impostor);
    fleet.coordinator().start(&[]);
    fleet.wait_connected(1);
    flip_to_something_new(&fleet);
}

#[test]
fn where_two_must_sign_one_operator_rebuilds_nothing() {
    let (fleet, [_, second]) = serving();
    let operators = Operators::demand_two(&fleet);
    for host in fleet.hosts() {
        let index = host.folder().join("fleets/demo/papers/index.json");
        until("the host keeps the roster that two have signed", || {
            fs::read_to_string(&index).is_ok_and(|index| index.contains(r#""roster":{"revision":2"#))
        });
    }
    let lost = fleet.lose_coordinator();
    // The roots are kept by whoever signed them as well.
    let root = fleet.scratch().join("two.json");
    until("the coordinator has the root again", || {
        fleet.json(&["root", "apply", root.to_str().unwrap()]).code == 0
    });
    let mandate = fleet.scratch().join("mandate.json");
    let mandate = mandate.to_str().unwrap();
    let made = fleet.json(&["coordinator", "rebuild", "--reason", "a test", "--out", mandate]).expect_code(0);
    assert_eq!(made.json()["complete"], false, "{made}");
    let alone = fleet.json(&["coordinator", "rebuild", "--mandate", mandate]).expect_code(12);
    assert!(alone.stdout.contains("1 of 3"), "{alone}");
    let bob = [("MUSTER_CONTEXT", operators.bob.to_str().unwrap())];
    let signed = run(&["coordinator", "sign", mandate, "--output", "json"], &bob).expect_code(0);
    assert_eq!(signed.json()["complete"], true, "{signed}");
    let rebuilt = fleet.json(&["coordinator", "rebuild", "--mandate", mandate]).expect_code(0);
    assert_eq!(rebuilt.json()["solo"], false, "{rebuilt}");
    wait_settled(&fleet, &second);
    assert!(lost.exists());
}

/// Hosts come back to a rebuilt coordinator whatever they were doing, also one that restarts meanwhile.
#[test]
fn hosts_that_restart_while_the_coordinator_is_rebuilt_are_heard_again() {
    let (fleet, [_, second]) = serving();
    let restarting: Host = fleet.host(1);
    restarting.agent.kill();
    fleet.lose_coordinator();
    thread::scope(|scope| {
        let rebuilding = scope.spawn(|| fleet.rebuild());
        restarting.agent.start(&[("MUSTER_CRASH_AT", "agent.joined.persisted")]);
        restarting.agent.wait_until_gone();
        restarting.agent.start(&[]);
        rebuilding.join().unwrap();
    });
    wait_settled(&fleet, &second);
}
