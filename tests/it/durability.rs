//! What is on disk: journals and databases that were cut, altered, lost or set back, disks that are full, backups.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Artifact, Fleet, PATIENCE, artifact, wait_until};

fn tree(version: &str) -> Artifact {
    artifact(&[("bin/smars", version), ("VERSION", version)])
}

/// A fleet of three that serves `1`, with `2` deployed.
fn serving() -> (Fleet, String) {
    let fleet = Fleet::up(3);
    let digest = fleet.release(&tree("1"), "1");
    fleet.push(&tree("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    (fleet, digest)
}

/// sled's log within a store's folder.
fn log_of(store: &Path) -> PathBuf {
    store.join("db/db")
}

/// Turns every byte of the second half of a file round: wherever records are, they are hit.
fn spoil(file: &Path) {
    let len = fs::metadata(file).unwrap().len();
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0xff);
    file.write_all_at(&bytes, 0).unwrap();
}

fn cut(file: &Path) {
    OpenOptions::new().write(true).open(file).unwrap().set_len(64).unwrap();
}

/// Damages the journal of host-2 and sees that the gate is shut until an operator has settled it.
fn journal_damaged_by(damage: fn(&Path)) {
    let (fleet, digest) = serving();
    let host = fleet.host(2);
    host.agent.kill();
    damage(&log_of(&host.folder().join("fleets/demo/journal")));
    host.agent.start(&[]);
    wait_until("the lost history is named", PATIENCE, || {
        let status = fleet.json(&["status"]);
        status.blockers().iter().any(|it| it.code.as_str() == "history-lost").then_some(())
    });
    fleet.json(&["flip", "2"]).expect_code(11).expect_blocker("history-lost", "host-2", "");
    assert_eq!(fleet.host(1).serves().as_ref(), Some(&digest));
    fleet.json(&["host", "readmit", "host-2"]).expect_code(0);
    fleet.wait_connected(3);
    wait_until("host-2 serves again", PATIENCE, || (host.serves().as_ref() == Some(&digest)).then_some(()));
    fleet.json(&["flip", "2"]).expect_code(0);
}

#[test]
fn journal_that_was_cut_shuts_the_gate_until_it_is_settled() {
    journal_damaged_by(cut);
}

#[test]
fn journal_that_was_altered_shuts_the_gate_until_it_is_settled() {
    journal_damaged_by(spoil);
}

#[test]
fn machine_that_was_made_anew_is_refused_until_it_is_readmitted() {
    let (fleet, digest) = serving();
    let host = fleet.host(2);
    host.agent.kill();
    fs::remove_dir_all(host.folder().join("fleets/demo/journal")).unwrap();
    host.agent.start(&[]);
    wait_until("the identity is quarantined", PATIENCE, || {
        let status = fleet.json(&["status"]);
        status.blockers().iter().any(|it| it.code.as_str() == "duplicate-host").then_some(())
    });
    fleet.json(&["flip", "2"]).expect_code(11).expect_blocker("duplicate-host", "host-2", "");
    fleet.json(&["host", "readmit", "host-2"]).expect_code(0);
    fleet.wait_connected(3);
    wait_until("host-2 serves again", PATIENCE, || (host.serves().as_ref() == Some(&digest)).then_some(()));
    fleet.json(&["flip", "2"]).expect_code(0);
}

/// Damages the coordinator's database: it refuses to start and names the way back, and a backup is that way.
fn ledger_damaged_by(damage: fn(&Path)) {
    let (fleet, digest) = serving();
    let backup = fleet.scratch().join("state.tar");
    fleet.json(&["backup", "--out", backup.to_str().unwrap()]).expect_code(0);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let state = fleet.dir().join("coordinator/state");
    damage(&log_of(&state.join("ledger")));
    coordinator.start(&[]);
    coordinator.wait_until_gone();
    let log = coordinator.log();
    assert!(log.lines().last().unwrap().contains("restore"), "{log}");
    fleet.assert_all_serve(&digest);

    fs::rename(&state, fleet.scratch().join("damaged")).unwrap();
    fleet.json(&["restore", backup.to_str().unwrap(), "--state", state.to_str().unwrap()]).expect_code(0);
    coordinator.start(&[]);
    fleet.rebuild();
    fleet.wait_connected(3);
    // The hosts have the bytes; the coordinator needs them again to give them to others.
    fleet.push(&tree("2"), "2");
    fleet.json(&["flip", "2"]).expect_code(0);
}

#[test]
fn ledger_that_was_cut_is_refused_and_restored_from_a_backup() {
    ledger_damaged_by(cut);
}

#[test]
fn ledger_that_was_altered_is_refused_and_restored_from_a_backup() {
    ledger_damaged_by(spoil);
}

#[test]
fn backup_that_is_older_than_its_hosts_leads_only_with_what_they_remember() {
    let (fleet, _) = serving();
    let backup = fleet.scratch().join("state.tar");
    fleet.json(&["backup", "--out", backup.to_str().unwrap()]).expect_code(0);
    fleet.json(&["flip", "2"]).expect_code(0);
    let served = fleet.host(1).serves().unwrap();
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let state = fleet.dir().join("coordinator/state");
    fs::rename(&state, fleet.scratch().join("newer")).unwrap();
    fleet.json(&["restore", backup.to_str().unwrap(), "--state", state.to_str().unwrap()]).expect_code(0);
    coordinator.start(&[]);
    wait_until("the coordinator answers", PATIENCE, || {
        let status = fleet.json(&["status"]);
        (status.code != 1).then(|| status.expect_code(11).expect_blocker("rebuilding", "", ""))
    });
    fleet.assert_all_serve(&served);
    assert_ne!(fleet.json(&["flip", "2"]).code, 0);
    fleet.rebuild();
    let status = fleet.json(&["status"]).expect_code(0);
    assert_eq!(status.json()["epoch"], 2, "{status}");
    assert_eq!(status.text_at("/serving/digest"), served);
    fleet.assert_all_serve(&served);
}

#[test]
fn backup_of_a_database_that_was_cut_back_leads() {
    let fleet = Fleet::up(1);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let config = fleet.dir().join("coordinator/coordinator.toml");
    let mut config = OpenOptions::new().append(true).open(config).unwrap();
    writeln!(config, "records_between_snapshots = 5").unwrap();
    coordinator.start(&[]);
    fleet.wait_connected(1);
    fleet.release(&tree("1"), "1");
    let digest = fleet.release(&tree("2"), "2");
    assert!(coordinator.log().contains("cut back to a snapshot"), "{}", coordinator.log());
    let backup = fleet.scratch().join("state.tar");
    fleet.json(&["backup", "--out", backup.to_str().unwrap()]).expect_code(0);
    coordinator.kill();
    let state = fleet.dir().join("coordinator/state");
    fs::rename(&state, fleet.scratch().join("before")).unwrap();
    fleet.json(&["restore", backup.to_str().unwrap(), "--state", state.to_str().unwrap()]).expect_code(0);
    coordinator.start(&[]);
    fleet.rebuild();
    fleet.wait_connected(1);
    fleet.assert_all_serve(&digest);
    fleet.push(&tree("1"), "1");
    fleet.json(&["rollback"]).expect_code(0);
}

#[test]
fn backup_that_was_altered_restores_nothing() {
    let (fleet, _) = serving();
    let backup = fleet.scratch().join("state.tar");
    fleet.json(&["backup", "--out", backup.to_str().unwrap()]).expect_code(0);
    let mut bytes = fs::read(&backup).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&backup, &bytes).unwrap();
    let state = fleet.scratch().join("restored");
    let restore = fleet.json(&["restore", backup.to_str().unwrap(), "--state", state.to_str().unwrap()]);
    assert_ne!(restore.code, 0, "{restore}");
    bytes.truncate(middle);
    fs::write(&backup, &bytes).unwrap();
    let restore = fleet.json(&["restore", backup.to_str().unwrap(), "--state", state.to_str().unwrap()]);
    assert_ne!(restore.code, 0, "{restore}");
}

/// A small file system, for as long as this lives.
struct Small(PathBuf);

impl Small {
    /// Mounts one of `mib` MiB over a folder; nothing where that is not allowed.
    fn over(folder: &Path, mib: u32) -> Option<Self> {
        let size = format!("size={mib}m,mode=0700");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).output().ok()?;
        mount.status.success().then(|| Self(folder.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

#[test]
fn disk_that_fills_up_while_blobs_arrive_is_named_and_deployment_resumes() {
    let (fleet, digest) = serving();
    let host = fleet.host(2);
    let big = artifact(&[]);
    for file in 0..6_u8 {
        let noise: String = (0..1_000_000_u32)
            .map(|i| char::from(b'a' + u8::try_from((i.wrapping_mul(31) >> 7) % 26).unwrap()))
            .collect();
        big.write(&format!("data-{file}"), &format!("{file}{noise}"));
    }
    fleet.push(&big, "3");
    host.agent.kill();
    // A real full disk where that can be had, the error of one elsewhere.
    let small = Small::over(&host.folder().join("blobs"), 3);
    let environment: &[(&str, &str)] =
        if small.is_some() { &[] } else { &[("MUSTER_FAULT_AT", "agent.blob.write:ENOSPC")] };
    host.agent.start(environment);
    fleet.wait_connected(3);
    let deploy = fleet.json(&["deploy", "3"]).expect_code(10);
    deploy.expect_blocker("no-space", "host-2", "");
    fleet.json(&["check", "--release", "3"]).expect_code(10).expect_blocker("not-deployed", "host-2", "");
    fleet.assert_all_serve(&digest);

    match &small {
        // What has arrived stays.
        Some(Small(folder)) => {
            let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(folder).status().unwrap();
            assert!(grown.success());
        }
        None => {
            host.agent.kill();
            host.agent.start(&[]);
            fleet.wait_connected(3);
        }
    }
    let deploy = fleet.json(&["deploy", "3"]).expect_code(0);
    if small.is_some() {
        let hosts = deploy.json()["results"].as_array().unwrap().clone();
        let mine = hosts.iter().find(|it| it["host"] == "host-2").unwrap();
        assert!(mine["fetched_bytes"].as_u64().unwrap() < 6_000_000, "{deploy}");
    }
    fleet.json(&["flip", "3"]).expect_code(0);
    host.agent.kill();
}

#[test]
fn journal_that_cannot_be_written_ends_the_agent_and_nothing_is_said() {
    let (fleet, digest) = serving();
    let host = fleet.host(2);
    host.agent.kill();
    host.agent.start(&[("MUSTER_FAULT_AT", "agent.journal:EIO")]);
    host.agent.wait_until_gone();
    fleet.json(&["flip", "2"]).expect_code(11).expect_blocker("host-missing", "host-2", "");
    fleet.assert_all_serve(&digest);
    host.agent.start(&[]);
    fleet.wait_connected(3);
    fleet.json(&["flip", "2"]).expect_code(0);
}
