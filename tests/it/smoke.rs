//! The thin line from a tree to a flip and back, with real programs; and the harness itself.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::harness::{Fleet, PATIENCE, artifact, program, run, wait_until};

#[test]
fn from_a_tree_to_a_flip_and_back() {
    let fleet = Fleet::up(2);
    let tree = artifact(&[("bin/server", "#!/bin/sh\necho one\n"), ("conf/server.toml", "port = 1\n")]);

    let packed = fleet.json(&["release", "pack", tree.argument(), "--fleet", "demo", "--version", "1.0"]);
    let one = packed.expect_code(0).text_at("/digest");
    assert_eq!(fleet.push(&tree, "1.0"), one, "what is pushed is what was packed");
    let again = fleet.json(&["release", "push", tree.argument(), "--version", "1.0"]).expect_code(0);
    assert_eq!(again.json()["existed"], true);

    let early = fleet.json(&["flip", "1.0"]).expect_code(10);
    early.expect_blocker("not-deployed", "host-1", "");
    early.expect_blocker("not-deployed", "host-2", "");

    let deployed = fleet.json(&["deploy", "1.0"]).expect_code(0);
    assert_eq!(deployed.json()["schema"], "muster.deploy/1");
    assert!(
        fleet.hosts().iter().all(|host| host.serves().is_none()),
        "deploying changes nothing that is served"
    );
    fleet.json(&["check", "--release", &one]).expect_code(0);
    let flipped = fleet.json(&["flip", "1.0"]).expect_code(0);
    assert_eq!(flipped.json()["outcome"], "flipped");
    fleet.assert_all_serve(&one);

    tree.write("bin/server", "#!/bin/sh\necho two\n");
    let two = fleet.release(&tree, "2.0");
    assert_ne!(one, two);
    fleet.assert_all_serve(&two);
    let stale = fleet.json(&["flip", "2.0"]).expect_code(13);
    stale.expect_blocker("already-serving", "", "");

    let status = fleet.json(&["status"]).expect_code(0).json();
    assert_eq!(status["serving"]["digest"], json!(two));
    let back = fleet.json(&["rollback"]).expect_code(0);
    assert_eq!(back.json()["outcome"], "rolled_back");
    fleet.assert_all_serve(&one);
}

#[test]
fn a_tampered_tree_shuts_the_gate_and_is_repaired() {
    let fleet = Fleet::up(2);
    let tree = artifact(&[("bin/server", "#!/bin/sh\necho one\n"), ("lib/a", "a")]);
    let one = fleet.release(&tree, "1.0");
    tree.write("lib/a", "b");
    let two = fleet.push(&tree, "2.0");
    fleet.json(&["deploy", "2.0"]).expect_code(0);

    std::fs::write(fleet.host(2).tree(&two).join("lib/a"), "c").unwrap();
    let checked = fleet.json(&["check", "--release", "2.0"]).expect_code(10);
    let blocker = checked.expect_blocker("mismatch", "host-2", "lib/a");
    assert!(blocker.expected.is_some() && blocker.measured.is_some());
    fleet.json(&["flip", "2.0"]).expect_code(10).expect_blocker("mismatch", "host-2", "lib/a");
    fleet.assert_all_serve(&one);

    fleet.json(&["deploy", "2.0"]).expect_code(0);
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two);
}

#[test]
fn whoever_is_killed_comes_back_and_the_old_release_goes_on() {
    let fleet = Fleet::up(2);
    let tree = artifact(&[("lib/a", "a")]);
    let one = fleet.release(&tree, "1.0");
    tree.write("lib/a", "b");
    fleet.push(&tree, "2.0");

    let (host, coordinator) = (fleet.host(2), fleet.coordinator());
    host.agent.stop();
    let silent = fleet.json(&["check", "--release", "1.0", "--timeout", "1s"]).expect_code(11);
    silent.expect_blocker("host-silent", "host-2", "");
    host.agent.cont();
    fleet.json(&["check", "--release", "1.0"]).expect_code(0);

    host.agent.kill();
    let missed = fleet.json(&["deploy", "2.0", "--timeout", "1s"]).expect_code(11);
    missed.expect_blocker("host-missing", "host-2", "");
    fleet.json(&["flip", "2.0"]).expect_code(11).expect_blocker("host-missing", "host-2", "");
    fleet.assert_all_serve(&one);

    host.agent.start(&[]);
    fleet.wait_connected(2);
    coordinator.kill();
    assert_eq!(fleet.json(&["status"]).code, 1, "nobody answers");
    fleet.assert_all_serve(&one);
    coordinator.start(&[]);
    fleet.wait_connected(2);
    let two = fleet.release(&tree, "2.0");
    fleet.assert_all_serve(&two);
}

#[test]
fn a_crash_point_ends_an_agent_where_it_says() {
    let fleet = Fleet::up(1);
    let agent = fleet.host(1).agent;
    agent.kill();
    agent.start(&[("MUSTER_CRASH_AT", "agent.deploy.before-install")]);
    fleet.wait_connected(1);
    let one = fleet.push(&artifact(&[("lib/a", "a")]), "1.0");
    fleet.json(&["deploy", "1.0", "--timeout", "2s"]).expect_code(11);
    agent.wait_until_gone();
    assert!(!fleet.host(1).tree(&one).exists());
    agent.start(&[]);
    fleet.json(&["deploy", "1.0"]).expect_code(0);
    assert!(fleet.host(1).tree(&one).exists());
}

#[test]
fn a_local_fleet_is_stopped_and_started_again_with_what_it_had() {
    let fleet = Fleet::up(2);
    let one = fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let dir = fleet.dir().to_str().unwrap();

    let twice = run(&["dev", "up", "--dir", dir, "--detach", "--output", "json"], &[]).expect_code(2);
    assert!(twice.text_at("/error").contains("already running"), "{twice}");
    let pids: Vec<_> = fleet.hosts().iter().flat_map(|host| [host.agent.pid(), host.guard.pid()]).collect();
    assert_eq!(fleet.down().json()["stopped"].as_array().map(Vec::len), Some(pids.len() + 1));
    for pid in pids {
        let command = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        assert!(command.is_empty(), "process {pid:?} is still there");
    }
    assert_eq!(
        fleet.down().json()["stopped"].as_array().map(Vec::len),
        Some(0),
        "stopping twice is no error"
    );

    let other = run(&["dev", "up", "--dir", dir, "--hosts", "3", "--detach"], &[]).expect_code(2);
    assert!(other.stderr.contains("a number of hosts of 2, and 3"), "{other}");
    let longer = run(&["dev", "up", "--dir", dir, "--lease", "15s", "--detach"], &[]).expect_code(2);
    assert!(longer.stderr.contains("a lease of 2000ms, and 15000ms"), "{longer}");
    let up = fleet.start(&[]).json();
    assert_eq!(up["schema"], "muster.dev/1");
    assert_eq!(up["context"], json!(fleet.context()));
    assert_eq!(up["hosts"][1]["agent_pid"], json!(fleet.host(2).agent.pid().as_raw_nonzero().get()));
    fleet.assert_all_serve(&one);
    let serving = || fleet.json(&["status", "--check"]).code == 0;
    wait_until("all is well again", PATIENCE, || serving().then_some(()));
}

#[test]
fn what_is_down_of_a_local_fleet_is_seen_and_started() {
    let fleet = Fleet::up(2);
    let one = fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let states = || -> Vec<bool> {
        let listed = fleet.json(&["dev", "ps"]).expect_code(0).json()["processes"].as_array().cloned();
        listed.unwrap().iter().map(|process| process["up"] == true && process["pid"].is_u64()).collect()
    };
    assert_eq!(states(), [true; 5]);
    let (agent, guard) = (fleet.host(2).agent, fleet.host(2).guard.pid());
    agent.kill();
    assert_eq!(states(), [true, true, true, true, false]);
    let dir = fleet.dir().to_str().unwrap();
    let up = run(&["dev", "up", "--dir", dir, "--detach"], &[]).expect_code(0);
    assert!(up.stdout.starts_with("host-2: agent was down, started\n"), "{up}");
    assert_eq!(fleet.host(2).guard.pid(), guard, "what ran goes on running");
    fleet.json(&["check", "--release", "1.0"]).expect_code(0);

    fleet.coordinator().kill();
    let up = fleet.start(&[]).json();
    assert_eq!(up["started"].as_array().map(Vec::len), Some(1), "{up}");
    assert_eq!(up["started"][0]["program"], "muster-coordinator", "{up}");
    fleet.json(&["check", "--release", "1.0"]).expect_code(0);
    fleet.assert_all_serve(&one);
    assert_eq!(fleet.down().json()["stopped"].as_array().map(Vec::len), Some(5));
    assert_eq!(states(), [false; 5]);
}

#[test]
fn a_host_of_a_local_fleet_is_stopped_and_started_by_itself() {
    let fleet = Fleet::up(2);
    let one = fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let host = fleet.host(2);
    let stopped = |arguments: &[&str]| -> usize {
        let output = fleet.json(&[&["dev", "stop", "host-2"], arguments].concat()).expect_code(0);
        output.json()["stopped"].as_array().map(Vec::len).unwrap()
    };
    let is_well = || (fleet.json(&["status", "--check"]).code == 0).then_some(());
    assert_eq!(stopped(&[]), 2);
    assert_eq!(stopped(&[]), 0, "stopping twice is no error");
    fleet.wait_connected(1);
    let missed = fleet.json(&["check", "--release", "1.0", "--timeout", "1s"]).expect_code(11);
    missed.expect_blocker("host-missing", "host-2", "");
    let started = fleet.muster(&["dev", "start", "host-2"]).expect_code(0);
    assert_eq!(started.stdout, "host-2: guard and agent were down, started\n");
    wait_until("all is well again", PATIENCE, is_well);

    let guard = host.guard.pid();
    assert_eq!(stopped(&["--only", "agent"]), 1);
    fleet.wait_connected(1);
    let started = fleet.muster(&["dev", "start", "host-1", "host-2"]).expect_code(0);
    assert_eq!(started.stdout, "host-2: agent was down, started\nhost-1: was up already\n");
    assert_eq!(host.guard.pid(), guard);
    wait_until("all is well again", PATIENCE, is_well);
    fleet.assert_all_serve(&one);

    let stranger = fleet.json(&["dev", "stop", "host-9"]).expect_code(11);
    assert!(stranger.text_at("/next").contains("host-1 to host-2"), "{stranger}");
}

#[test]
fn a_fleet_in_the_foreground_ends_with_its_command() {
    let temporary = tempfile::tempdir().unwrap();
    // Longer than the path of a socket may be.
    let dir = temporary.path().join("d".repeat(120));
    let mut up = Command::new(program("muster"))
        .args(["dev", "up", "--hosts", "1", "--dir", dir.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(up.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "the fleet runs until Ctrl-C"));
    let pid = std::fs::read_to_string(dir.join("hosts/host-1/agent.pid")).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert!(lines.any(|line| line.contains("the agent of host-1 ended")));
    kill_process(Pid::from_child(&up), Signal::TERM).unwrap();
    assert!(lines.any(|line| line.contains("stopped 2 processes")));
    assert_eq!(up.wait().unwrap().code(), Some(0));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let alone = temporary.path().join("muster");
    std::fs::copy(program("muster"), &alone).unwrap();
    let up = Command::new(&alone)
        .args(["dev", "up", "--detach", "--dir"])
        .arg(temporary.path().join("d"))
        .output();
    let up = up.unwrap();
    assert_eq!(up.status.code(), Some(1));
    let said = String::from_utf8(up.stderr).unwrap();
    assert!(said.contains(temporary.path().join("muster-coordinator").to_str().unwrap()), "{said}");
}

#[test]
fn only_the_fleets_own_processes_are_stopped() {
    let fleet = Fleet::up(1);
    let host = fleet.host(1);
    host.agent.kill();
    // The number of a process that is none of the fleet's, as after a reboot.
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(host.folder().join("agent.pid"), format!("{}\n", stranger.id())).unwrap();
    // A halted process ends as well.
    host.guard.stop();
    let stopped = fleet.down().json();
    assert_eq!(stopped["stopped"].as_array().map(Vec::len), Some(2), "{stopped}");
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger lives");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_supervised_service_runs_from_the_release_and_ends_with_the_fleet() {
    let fleet = Fleet::up_with(1, &["--driver", "supervise", "--command", "sh", "-c", "exec sleep 600"]);
    fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let host = fleet.host(1);
    let children = |pid: i32| -> Vec<i32> {
        // A process belongs to the thread that started it.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")));
        lists
            .flatten()
            .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|pid| pid.parse().ok())
            .collect()
    };
    let keepers = children(host.guard.pid().as_raw_nonzero().get());
    let services: Vec<i32> = keepers.iter().flat_map(|keeper| children(*keeper)).collect();
    assert_eq!(services.len(), 1, "keepers {keepers:?}");
    fleet.down();
    let command = std::fs::read(format!("/proc/{}/cmdline", services[0])).unwrap_or_default();
    assert!(command.is_empty(), "the service ended with its guard");
}
