//! Disks that are full, read-only, set back or gone, on either side; and backups that are taken while everything moves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use muster_model::{Code, Digest};

use crate::harness::{
    Artifact, Caller, Daemon, Fleet, Host, Observer, Output, PATIENCE, artifact, refusal_of, run, wait_until,
};

/// The host that things happen to.
const VICTIM: usize = 2;

fn tree(version: &str) -> Artifact {
    artifact(&[("bin/smars", version), ("VERSION", version)])
}

/// A fleet of three that serves `1`, with `2` known to the coordinator.
fn serving() -> (Fleet, [String; 2]) {
    let fleet = Fleet::up(3);
    let first = fleet.release(&tree("1"), "1");
    let second = fleet.push(&tree("2"), "2");
    (fleet, [first, second])
}

/// Starts an agent again with a fault in its environment, or without one.
fn restart(fleet: &Fleet, agent: &Daemon, fault: Option<&str>) {
    if agent.is_running() {
        agent.kill();
    }
    fleet.wait_connected(2);
    let environment: Vec<(&str, &str)> = fault.map(|fault| ("MUSTER_FAULT_AT", fault)).into_iter().collect();
    agent.start(&environment);
    fleet.wait_connected(3);
}

/// Waits until all hosts serve a release and nothing is in the way.
#[track_caller]
fn wait_well(fleet: &Fleet, digest: &str) {
    wait_until(&format!("all is well with {digest}"), PATIENCE, || {
        let all = fleet.hosts().iter().all(|host| host.serves().as_deref() == Some(digest));
        (all && fleet.json(&["status", "--check"]).code == 0).then_some(())
    });
}

fn fetched(deployed: &Output, host: &Host) -> u64 {
    let rows = deployed.json()["results"].as_array().unwrap().clone();
    rows.iter().find(|row| row["host"] == host.name()).unwrap()["fetched_bytes"].as_u64().unwrap()
}

#[test]
fn a_disk_that_takes_nothing_is_named_and_half_of_a_release_is_none() {
    let (fleet, [first, second]) = serving();
    let victim = fleet.host(VICTIM);
    for (fault, code) in [
        ("agent.blob.write:ENOSPC", "no-space"),
        ("agent.blob.write:EROFS", "read-only"),
        ("agent.install:ENOSPC", "no-space"),
        ("agent.install:EROFS", "read-only"),
    ] {
        restart(&fleet, &victim.agent, Some(fault));
        let deployed = fleet.json(&["deploy", "2"]).expect_code(10);
        deployed.expect_blocker(code, victim.name(), "");
        assert_eq!(deployed.json()["deployed"], 2, "{fault}: {deployed}");
        assert!(!victim.tree(&second).exists(), "{fault}");
        let listed = fleet.json(&["status"]).json()["hosts"][VICTIM - 1]["deployed"].clone();
        assert!(listed.as_array().unwrap().iter().all(|it| it["digest"] != second.as_str()), "{fault}");
        fleet.json(&["flip", "2"]).expect_code(10).expect_blocker("not-deployed", victim.name(), "");
        fleet.assert_all_serve(&first);
    }
    // The last two attempts had fetched everything before they could not install it.
    restart(&fleet, &victim.agent, None);
    let deployed = fleet.json(&["deploy", "2"]).expect_code(0);
    assert_eq!(fetched(&deployed, &victim), 0, "what had arrived is not fetched again: {deployed}");
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&second);
}

/// A small file system, for as long as this lives.
struct Small(PathBuf);

impl Small {
    /// Mounts one of `kib` KiB over a folder; nothing where that is not allowed.
    fn over(folder: &Path, kib: u32) -> Option<Self> {
        let size = format!("size={kib}k,mode=0700");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).output();
        mount.is_ok_and(|it| it.status.success()).then(|| Self(folder.to_owned()))
    }

    fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&self.0).status().unwrap();
        assert!(grown.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

#[test]
fn a_coordinators_disk_that_fills_up_is_named_and_an_upload_goes_on_where_it_stopped() {
    let fleet = Fleet::up(1);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let blobs = fleet.dir().join("coordinator/state/blobs");
    let kept = fleet.scratch().join("kept");
    // A real full disk where that can be had, the error of one elsewhere.
    fs::rename(&blobs, &kept).unwrap();
    fs::create_dir(&blobs).unwrap();
    let small = Small::over(&blobs, 2048);
    let copied = Command::new("cp").arg("-a").arg(kept.join(".")).arg(&blobs).status().unwrap();
    assert!(copied.success());
    let fault = [("MUSTER_FAULT_AT", "coordinator.blob.write:ENOSPC")];
    coordinator.start(if small.is_some() { &[] } else { &fault });
    fleet.wait_connected(1);

    let noise = |seed: u8| -> String {
        (0..400_000_u32)
            .map(|i| char::from((b'a' + u8::try_from((i >> 4) % 26).unwrap()) ^ (seed & 1)))
            .collect()
    };
    let big = artifact(&[]);
    for file in 0..8_u8 {
        big.write(&format!("data-{file}"), &format!("{file}{}", noise(file)));
    }
    let push = ["release", "push", big.argument(), "--version", "9"];
    let refused = fleet.json(&push).expect_code(10);
    assert!(refused.stdout.contains("no-space"), "{refused}");
    assert_eq!(fleet.json(&["deploy", "9"]).expect_code(11).code, 11, "no half of a release is known");
    match &small {
        Some(small) => small.grow(),
        None => {
            coordinator.kill();
            coordinator.start(&[]);
            fleet.wait_connected(1);
        }
    }
    let pushed = fleet.json(&push).expect_code(0);
    if small.is_some() {
        let uploaded = pushed.json()["uploaded"].as_u64().unwrap();
        assert!((1..8).contains(&uploaded), "what had arrived is not sent again: {pushed}");
    }
    fleet.json(&["deploy", "9"]).expect_code(0);
    fleet.json(&["flip", "9"]).expect_code(0);
    // Before the file system goes away below it.
    coordinator.kill();
}

#[test]
fn a_coordinators_disk_that_fails_is_not_called_full() {
    let fleet = Fleet::up(1);
    let coordinator = fleet.coordinator();
    for (fault, code) in
        [("coordinator.blob.write:ENOSPC", Code::NoSpace), ("coordinator.blob.write:EIO", Code::StoreFailed)]
    {
        coordinator.kill();
        coordinator.start(&[("MUSTER_FAULT_AT", fault)]);
        fleet.wait_connected(1);
        let caller = Caller::operator(&fleet);
        let status = caller.upload(Digest::of(b"bytes"), 5, b"bytes").unwrap_err();
        let refusal = refusal_of(&status);
        assert_eq!(refusal.code(), Some(code), "{fault}: {refusal}");
        assert!(refusal.to_string().contains("the coordinator's store"), "{refusal}");
    }
}

#[test]
fn a_coordinator_whose_database_takes_nothing_ends_and_says_so() {
    let (fleet, [first, second]) = serving();
    let coordinator = fleet.coordinator();
    for fault in ["coordinator.ledger:ENOSPC", "coordinator.ledger:EIO"] {
        coordinator.kill();
        coordinator.start(&[("MUSTER_FAULT_AT", fault)]);
        coordinator.wait_until_gone();
        let log = coordinator.log();
        let last = log.lines().last().unwrap();
        assert!(last.contains("database could not be written"), "{fault}: {last}");
        fleet.json(&["status"]).expect_code(1);
        fleet.assert_all_serve(&first);
        coordinator.start(&[]);
        fleet.wait_connected(3);
    }
    fleet.json(&["deploy", "2"]).expect_code(0);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&second);
}

fn journal(host: &Host) -> PathBuf {
    host.folder().join("fleets/demo/journal")
}

/// Lets a host in again whose journal cannot be used: it begins anew, and an operator has settled that it is the one.
#[track_caller]
fn make_anew(fleet: &Fleet, host: &Host, digest: &str) {
    if host.agent.is_running() {
        host.agent.kill();
    }
    fs::remove_dir_all(journal(host)).unwrap();
    fleet.json(&["host", "readmit", host.name()]).expect_code(0);
    host.agent.start(&[]);
    wait_well(fleet, digest);
}

#[test]
fn a_journal_without_its_anchor_starts_no_agent_and_names_the_way_back() {
    let (fleet, [first, second]) = serving();
    let victim = fleet.host(VICTIM);
    for spoil in
        [|anchor: &Path| fs::remove_file(anchor).unwrap(), |anchor: &Path| fs::write(anchor, "").unwrap()]
    {
        victim.agent.kill();
        spoil(&journal(&victim).join("anchor"));
        victim.agent.start(&[]);
        victim.agent.wait_until_gone();
        let log = victim.agent.log();
        let last = log.lines().last().unwrap();
        assert!(last.contains("anchor") && last.contains("readmit"), "{last}");
        fleet.wait_connected(2);
        fleet.json(&["flip", "2"]).expect_code(11).expect_blocker("host-missing", victim.name(), "");
        fleet.assert_all_serve(&first);
        make_anew(&fleet, &victim, &first);
    }
    fleet.json(&["deploy", "2"]).expect_code(0);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&second);
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[test]
fn a_journal_that_was_set_back_is_noticed() {
    let (fleet, [_, second]) = serving();
    let observer = Observer::of(&fleet);
    let victim = fleet.host(VICTIM);
    fleet.json(&["deploy", "2"]).expect_code(0);
    victim.agent.kill();
    let old = fleet.scratch().join("journal");
    copy(&journal(&victim), &old);
    victim.agent.start(&[]);
    fleet.wait_connected(3);
    fleet.json(&["flip", "2"]).expect_code(0);

    victim.agent.kill();
    fs::remove_dir_all(journal(&victim)).unwrap();
    copy(&old, &journal(&victim));
    victim.agent.start(&[]);
    wait_until("the old journal is named", PATIENCE, || {
        let status = fleet.json(&["status"]);
        let named = |code: &str| ["rolled-back-disk", "duplicate-host"].contains(&code);
        status.blockers().iter().any(|it| named(it.code.as_str())).then_some(())
    });
    let flip = fleet.json(&["flip", "1"]).expect_code(11);
    assert!(flip.blockers().iter().all(|it| it.host.as_ref().unwrap().as_str() == victim.name()), "{flip}");
    assert_eq!(fleet.host(1).serves().as_ref(), Some(&second), "the others go on");
    // By its journal it may not serve what it serves, so that it stops.
    wait_until("the host goes dark", PATIENCE, || victim.serves().is_none().then_some(()));

    make_anew(&fleet, &victim, &second);
    fleet.json(&["flip", "1"]).expect_code(0);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_backup_taken_at_any_moment_of_a_flip_is_whole() {
    let (fleet, _) = serving();
    fleet.json(&["deploy", "2"]).expect_code(0);
    let done = AtomicBool::new(false);
    let backups = thread::scope(|scope| {
        let taking = scope.spawn(|| {
            let mut taken = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let file = fleet.scratch().join(format!("{}.backup", taken.len()));
                fleet.json(&["backup", "--out", file.to_str().unwrap()]).expect_code(0);
                taken.push(file);
            }
            taken
        });
        for version in ["2", "1", "2"] {
            fleet.json(&["flip", version]).expect_code(0);
        }
        done.store(true, Ordering::Relaxed);
        taking.join().unwrap()
    });
    assert!(backups.len() > 1, "{backups:?}");
    for (number, backup) in backups.iter().enumerate() {
        let state = fleet.scratch().join(format!("state-{number}"));
        let restore = ["restore", backup.to_str().unwrap(), "--state", state.to_str().unwrap()];
        run(&restore, &[]).expect_code(0);
    }

    // The newest of them leads: nothing has happened since.
    let newest = fleet.scratch().join("newest.backup");
    fleet.json(&["backup", "--out", newest.to_str().unwrap()]).expect_code(0);
    fleet.coordinator().kill();
    let state = fleet.dir().join("coordinator/state");
    fs::remove_dir_all(&state).unwrap();
    run(&["restore", newest.to_str().unwrap(), "--state", state.to_str().unwrap()], &[]).expect_code(0);
    fleet.coordinator().start(&[]);
    fleet.rebuild();
    let digest = fleet.host(1).serves().unwrap();
    wait_well(&fleet, &digest);
    // Blobs are in no backup: a deployment says which are missing, and whoever has the tree brings them back.
    fleet.push(&tree("1"), "1");
    fleet.json(&["deploy", "1"]).expect_code(0);
    fleet.json(&["flip", "1"]).expect_code(0);
}
