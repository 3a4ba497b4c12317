//! The audit log, with real processes: what is in it, that it cannot be taken back, and that it survives every crash.

use std::fs;

use muster_audit::Kind;
use muster_model::Code;
use muster_mtls::Role;

use crate::harness::audit::Log;
use crate::harness::{
    Artifact, Caller, Fleet, Host, Output, PATIENCE, artifact, run, run_program, until, wait_until,
};

fn tree(version: &str) -> Artifact {
    artifact(&[("bin/smars", version)])
}

fn serving() -> (Fleet, String) {
    let fleet = Fleet::up(2);
    let first = fleet.release(&tree("1"), "1");
    let second = fleet.push(&tree("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    assert_ne!(first, second);
    (fleet, first)
}

#[track_caller]
fn kinds(log: &Output) -> Vec<String> {
    let listed = log.json()["results"].as_array().unwrap().clone();
    listed.iter().map(|entry| entry["kind"].as_str().unwrap().to_owned()).collect()
}

/// Whether `wanted` are in `kinds`, in this order.
fn in_order(kinds: &[String], wanted: &[&str]) -> bool {
    let mut kinds = kinds.iter();
    wanted.iter().all(|wanted| kinds.any(|kind| kind == wanted))
}

fn audit_key(fleet: &Fleet) -> String {
    fs::read_to_string(fleet.dir().join("audit.pub")).unwrap().trim_end().to_owned()
}

/// Waits until the host says that it does not believe the log.
#[track_caller]
fn wait_distrust(fleet: &Fleet, host: &Host) -> Output {
    wait_until(&format!("{} says audit-rewritten", host.name()), PATIENCE, || {
        let status = fleet.json(&["status"]);
        let says = status.code == 0
            && status.blockers().iter().any(|it| {
                it.code == Code::AuditRewritten
                    && it.host.as_ref().is_some_and(|at| at.as_str() == host.name())
            });
        says.then_some(status)
    })
}

#[test]
fn a_flip_and_a_halt_leave_the_expected_entries_and_an_export_that_verifies() {
    let (fleet, _) = serving();
    let log = fleet.json(&["audit", "log"]).expect_code(0);
    let expected = [
        "began", "roster", "lead", "release", "order", "approval", "phase", "phase", "phase", "phase",
        "phase", "ended", "release",
    ];
    assert!(in_order(&kinds(&log), &expected), "{log}");
    let orders = fleet.json(&["audit", "log", "--kind", "order", "--fleet", "demo"]).expect_code(0);
    let order = orders.json()["results"][0].clone();
    assert!(order["who"].as_str().unwrap().contains("/operator/"), "{orders}");
    assert!(order["documents"]["order"].as_str().unwrap().starts_with("sha256:"), "{orders}");
    assert_eq!(kinds(&fleet.json(&["audit", "log", "--fleet", "other"])), [""; 0]);

    // A refusal is in it, and an override stays in the status until somebody has looked at it.
    assert_ne!(fleet.json(&["abort"]).code, 0);
    assert_eq!(fleet.json(&["status"]).json()["open_overrides"].as_array().unwrap().len(), 0);
    fleet.json(&["halt", "demo", "--reason", "smoke", "--yes"]).expect_code(0);
    fleet.json(&["resume"]).expect_code(0);
    let status = fleet.json(&["status", "--check"]).expect_code(0);
    let open = status.json()["open_overrides"][0].clone();
    assert_eq!((open["kind"].as_str(), open["detail"].as_str()), (Some("halt"), Some("smoke")), "{status}");
    let entry = open["entry"].to_string();
    fleet.json(&["audit", "reconcile", &entry, "--reason", "it was a candle"]).expect_code(0);
    fleet.json(&["audit", "reconcile", &entry, "--reason", "again"]).expect_code(11);
    let status = fleet.json(&["status"]).expect_code(0);
    assert_eq!(status.json()["open_overrides"].as_array().unwrap().len(), 0, "{status}");
    let log = fleet.json(&["audit", "log"]).expect_code(0);
    assert!(in_order(&kinds(&log), &["abort", "refusal", "halt", "order", "ended", "reconcile"]), "{log}");

    let file = fleet.scratch().join("all.audit");
    let path = file.to_str().unwrap();
    fleet.json(&["audit", "export", path]).expect_code(0);
    fleet.json(&["audit", "verify", "--live"]).expect_code(0);
    fleet.down();
    let key = audit_key(&fleet);
    let verified = run(&["audit", "verify", path, "--key", &key, "--output", "json"], &[]).expect_code(0);
    assert_eq!(verified.json()["entries"], kinds(&log).len());
    one_flipped_bit_is_named(&fs::read(&file).unwrap(), path, &key);
}

fn one_flipped_bit_is_named(export: &[u8], path: &str, key: &str) {
    let newlines = export.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    let newlines: Vec<usize> = newlines.collect();
    let dash = "\u{2014} ".as_bytes();
    let signature = export.windows(dash.len()).position(|bytes| bytes == dash).unwrap();
    for (position, named) in [
        (2, "header"),
        (signature + 60, "signature"),
        (newlines[0] + 200, "root document 1:"),
        (newlines[1] + 5, "entry 0:"),
        (newlines[4] + 100, "entry 3:"),
        (newlines[newlines.len() - 2] + 80, &format!("entry {}:", newlines.len() - 3)),
    ] {
        let mut flipped = export.to_vec();
        flipped[position] ^= 1;
        fs::write(path, flipped).unwrap();
        let refused = run(&["audit", "verify", path, "--key", key], &[]).expect_code(12);
        assert!(refused.stderr.contains(named), "{named}: {refused}");
    }
    // Whoever cuts an export whole cannot sign what is left of it.
    fs::write(path, &export[..=newlines[newlines.len() - 2]]).unwrap();
    let refused = run(&["audit", "verify", path, "--key", key], &[]).expect_code(12);
    assert!(refused.stderr.contains("the log ends before it"), "{refused}");
}

/// Waits until all hosts have kept a checkpoint of so many entries at least.
#[track_caller]
fn wait_seen(fleet: &Fleet, entries: u64) {
    for host in fleet.hosts() {
        let file = host.folder().join("fleets/demo/witness.json");
        wait_until(&format!("{} has seen {entries} entries", host.name()), PATIENCE, || {
            let kept: serde_json::Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            (kept["seen"]["size"].as_u64()? >= entries).then_some(())
        });
    }
}

/// What somebody does to a log who has its key.
type Deed = fn(&mut Log);

#[test]
fn a_log_that_was_cut_rewritten_or_reordered_is_noticed_by_the_next_host_that_joins() {
    let (fleet, first) = serving();
    let coordinator = fleet.coordinator();
    let deeds: [(&str, Deed); 3] = [
        ("cut", |log| log.entries.truncate(4)),
        ("rewritten", |log| {
            let wrong = log.parsed().iter().position(|entry| entry.kind == Kind::Roster).unwrap();
            let text = String::from_utf8(log.entries[wrong].clone()).unwrap();
            log.entries[wrong] = text.replace("/operator/operator", "/operator/nobody").into_bytes();
        }),
        ("reordered", |log| {
            log.entries.swap(2, 3);
            log.renumber();
        }),
    ];
    for (deed, does) in deeds {
        wait_seen(&fleet, 5);
        coordinator.kill();
        let mut log = Log::of(&fleet);
        let before = log.entries.clone();
        does(&mut log);
        assert_ne!(log.entries, before, "{deed}");
        log.write();
        coordinator.start(&[]);
        for host in fleet.hosts() {
            wait_distrust(&fleet, &host);
        }
        let refused = fleet.json(&["flip", "2"]).expect_code(12);
        // The first that says so ends the rollout.
        let said = refused.blockers();
        assert!(!said.is_empty() && said.iter().all(|it| it.code == Code::AuditRewritten), "{refused}");
        fleet.assert_all_serve(&first);
        // To whoever asks the coordinator alone, all is well: the hosts are the witnesses.
        fleet.json(&["audit", "verify", "--live"]).expect_code(0);
        fleet.hosts().iter().for_each(|host| accept(&fleet, host, deed));
    }
    fleet.json(&["flip", "2"]).expect_code(0);
}

#[test]
fn a_host_that_cannot_keep_a_checkpoint_stays_in_the_fleet_and_remembers_the_one_before() {
    let (fleet, _) = serving();
    let host = fleet.host(2);
    let folder = host.folder().join("fleets/demo");
    let seen = || fs::read_to_string(folder.join("witness.json")).unwrap();
    fs::create_dir(folder.join("witness.new")).unwrap();
    let before = seen();
    fleet.json(&["flip", "2"]).expect_code(0);
    until("the agent says so", || host.agent.log().contains("the checkpoint of the audit log is not kept"));
    assert!(host.agent.is_running(), "{}", host.agent.log());
    assert_eq!(seen(), before);
    fs::remove_dir(folder.join("witness.new")).unwrap();
    fleet.json(&["rollback"]).expect_code(0);
    until("the next checkpoint is kept", || seen() != before);
}

fn accept(fleet: &Fleet, host: &Host, why: &str) {
    let config = host.folder().join("agent.toml");
    let config = ["--config", config.to_str().unwrap()];
    let shown = run_program("muster-agent", &[&["audit", "show", "demo"], &config[..]].concat(), &[]);
    assert!(shown.expect_code(0).stdout.contains("DISTRUST"), "{why}");
    host.agent.kill();
    let accept = [&["audit", "accept", "demo", "--reason", why], &config[..]].concat();
    run_program("muster-agent", &accept, &[]).expect_code(0);
    host.agent.start(&[]);
    wait_until(&format!("{} believes again", host.name()), PATIENCE, || {
        let status = fleet.json(&["status"]);
        let connected = status.json()["hosts"].as_array()?.iter().any(|it| {
            it["host"] == host.name()
                && it["connected"] == true
                && it["blockers"].as_array().is_some_and(Vec::is_empty)
        });
        connected.then_some(())
    });
}

#[test]
fn denied_calls_are_in_the_log_and_a_flood_of_them_is_not() {
    const FLIP: &str = "/fleet.v1.Operations/Flip";
    let fleet = Fleet::up(1);
    let stranger = Caller::connect(&fleet, &fleet.credentials(Role::Viewer, "victor")).unwrap();
    let before = Log::of(&fleet).entries.len();
    for _ in 0..100 {
        stranger.call(FLIP).expect_err("a viewer may not flip");
    }
    let denied = wait_until("denied calls are in the log", PATIENCE, || {
        let listed = fleet.json(&["audit", "log", "--kind", "denied"]).expect_code(0);
        let listed = listed.json()["results"].as_array()?.clone();
        (listed.len() >= 8).then_some(listed)
    });
    assert!(denied[0]["who"].as_str().unwrap().ends_with("/viewer/victor"), "{denied:?}");
    assert_eq!(denied[0]["detail"], FLIP);
    // At most one more says how many there were, a minute later.
    let all = Log::of(&fleet).entries.len() - before;
    assert!(denied.len() <= 9 && all <= 9, "{all} entries, {denied:?}");

    // Nor do releases that are refused fill the disk: pipelines submit what they like.
    let pipeline = Caller::connect(&fleet, &fleet.credentials(Role::Pipeline, "petra")).unwrap();
    let before = Log::of(&fleet).entries.len();
    for _ in 0..30 {
        pipeline.submit(b"no release".to_vec()).expect_err("it is no release");
    }
    let refused = fleet.json(&["audit", "log", "--kind", "refusal"]).expect_code(0);
    assert!((8..=9).contains(&refused.json()["results"].as_array().unwrap().len()), "{refused}");
    assert!(Log::of(&fleet).entries.len() - before <= 10, "one of these may be that of the denied calls");
}

#[test]
fn a_coordinator_does_not_start_on_a_log_that_was_damaged_without_its_key() {
    let (fleet, _) = serving();
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let log = Log::of(&fleet);
    let whole = fs::read(log.file()).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for damaged in [&whole[..whole.len() / 2], &flipped] {
        fs::write(log.file(), damaged).unwrap();
        coordinator.start(&[]);
        coordinator.wait_until_gone();
        assert!(coordinator.log().lines().last().unwrap().contains("the audit log is damaged"));
    }
    fs::write(log.file(), &whole).unwrap();
    coordinator.start(&[]);
    fleet.wait_connected(2);
    fleet.json(&["flip", "2"]).expect_code(0);
}

#[test]
fn a_coordinator_that_dies_at_an_append_loses_nothing_that_it_has_said() {
    let (fleet, _) = serving();
    let coordinator = fleet.coordinator();
    let mut serves = 1;
    for point in ["before-append", "written", "uncovered", "covered"] {
        // The first append of a coordinator is that of its lead; those after it are an order, its phases and its end.
        for nth in [1, 2, 3, 5] {
            coordinator.kill();
            let before = Log::of(&fleet).entries;
            let crash = format!("coordinator.audit.{point}#{nth}");
            coordinator.start(&[("MUSTER_CRASH_AT", &crash)]);
            if nth > 1 {
                fleet.wait_connected(2);
                let to = if serves == 1 { "2" } else { "1" };
                fleet.json(&["flip", to]);
            }
            coordinator.wait_until_gone();
            let after = Log::of(&fleet).entries;
            assert_eq!(after[..before.len()], before, "{crash}");
            coordinator.start(&[]);
            fleet.wait_connected(2);
            let settled = wait_until(&format!("the fleet is settled after {crash}"), PATIENCE, || {
                let status = fleet.json(&["status", "--check"]);
                let json = (status.code == 0).then(|| status.json())?;
                (json["phase"] == "settled").then_some(json)
            });
            serves = if settled["serving"]["version"] == "1" { 1 } else { 2 };
            fleet.json(&["audit", "verify", "--live"]).expect_code(0);
        }
    }
}

#[test]
fn a_restored_coordinator_begins_a_log_that_names_the_one_before() {
    let (fleet, _) = serving();
    let backup = fleet.scratch().join("coordinator.backup");
    fleet.json(&["backup", "--out", backup.to_str().unwrap()]).expect_code(0);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let old = Log::of(&fleet);
    let state = fleet.dir().join("coordinator/state");
    fs::rename(&state, fleet.scratch().join("lost")).unwrap();
    run_program(
        "muster-coordinator",
        &["restore", "--from", backup.to_str().unwrap(), "--state", state.to_str().unwrap()],
        &[],
    )
    .expect_code(0);
    coordinator.start(&[]);
    fleet.rebuild();
    fleet.wait_connected(2);
    let log = fleet.json(&["audit", "log"]).expect_code(0);
    let began = log.json()["results"][0].clone();
    let previous = began["previous"].as_str().unwrap();
    assert!(previous.lines().nth(1).unwrap().parse::<usize>().unwrap() <= old.entries.len(), "{previous}");
    let status = wait_until("hosts believe the new log", PATIENCE, || {
        let status = fleet.json(&["status", "--check"]);
        (status.code == 0).then_some(status)
    });
    assert_eq!(status.json()["open_overrides"][0]["kind"], "restore", "{status}");
    fleet.json(&["flip", "2"]).expect_code(0);
}
