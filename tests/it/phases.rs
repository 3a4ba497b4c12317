//! Guards, whole hosts and whole fleets that die in the middle of a flip; and what is told of it.

use std::fs;
use std::thread;

use muster_model::{Blocker, Code};
use serde_json::Value;

use crate::harness::{Artifact, Fleet, Host, Observer, Output, PATIENCE, artifact, wait_until};

/// The host that things happen to.
const VICTIM: usize = 2;

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

fn names(output: &Output, code: Code, host: &str) -> bool {
    let at = |blocker: &Blocker| blocker.host.as_ref().is_some_and(|named| named.as_str() == host);
    output.blockers().iter().any(|blocker| blocker.code == code && at(blocker))
}

/// Waits until the status names this of the victim.
#[track_caller]
fn wait_named(fleet: &Fleet, code: Code) {
    let victim = fleet.host(VICTIM);
    wait_until(&format!("the status names {code} at {}", victim.name()), PATIENCE, || {
        let status = fleet.json(&["status"]);
        (status.code == 0 && names(&status, code, victim.name())).then_some(())
    });
}

#[track_caller]
fn wait_phase(fleet: &Fleet, phase: &str) {
    wait_until(&format!("the fleet is {phase}"), PATIENCE, || {
        let status = fleet.json(&["status"]);
        (status.code == 0 && status.text_at("/phase") == phase).then_some(())
    });
}

/// Waits until the fleet is settled on a release, and nothing is in the way of anything.
#[track_caller]
fn wait_settled(fleet: &Fleet, digest: &str) {
    wait_until(&format!("the fleet is settled on {digest}"), PATIENCE, || {
        let status = fleet.json(&["status", "--check"]);
        if status.code != 0 {
            return None;
        }
        let status = status.json();
        let all = fleet.hosts().iter().all(|host| host.serves().as_deref() == Some(digest));
        (all && status["phase"] == "settled" && status["serving"]["digest"] == digest).then_some(())
    });
}

/// How the last rollout ended, as anyone can ask later.
#[track_caller]
fn last_end(fleet: &Fleet) -> Value {
    fleet.json(&["status"]).expect_code(0).json()["last_end"].clone()
}

/// Flips, and meanwhile does this. The flip is waited for without haste: whoever is halted or dead comes back.
fn flip_while(fleet: &Fleet, version: &str, meanwhile: impl FnOnce()) -> Output {
    thread::scope(|scope| {
        let flip = scope.spawn(|| fleet.json(&["flip", version, "--timeout", "90s"]));
        meanwhile();
        flip.join().unwrap()
    })
}

/// Starts the agent again so that it dies at this point.
fn let_die_at(fleet: &Fleet, host: &Host, point: &str) {
    host.agent.kill();
    fleet.wait_connected(2);
    host.agent.start(&[("MUSTER_CRASH_AT", point)]);
    fleet.wait_connected(3);
}

#[test]
fn a_rollout_that_a_death_has_ended_is_reported_with_the_reason() {
    let (fleet, [first, second]) = serving();
    let observer = Observer::of(&fleet);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    coordinator.start(&[("MUSTER_CRASH_AT", "coordinator.arming.persisted")]);
    fleet.wait_connected(3);
    fleet.json(&["flip", "2"]).expect_code(1);
    coordinator.wait_until_gone();
    fleet.assert_all_serve(&first);
    coordinator.start(&[]);
    wait_settled(&fleet, &first);
    let end = last_end(&fleet);
    assert_eq!((&end["k"], &end["outcome"]), (&2.into(), &"unchanged".into()), "{end}");
    assert_eq!(end["blockers"][0]["code"], "coordinator-restarted", "{end}");

    let victim = fleet.host(VICTIM);
    let_die_at(&fleet, &victim, "agent.armed.persisted");
    let flip = fleet.json(&["flip", "2"]).expect_code(11);
    flip.expect_blocker("session-lost", victim.name(), "");
    assert_eq!(flip.text_at("/outcome"), "unchanged");
    fleet.assert_all_serve(&first);
    let end = last_end(&fleet);
    assert_eq!((&end["k"], &end["outcome"]), (&3.into(), &"unchanged".into()), "{end}");
    assert_eq!(end["blockers"][0]["host"], victim.name(), "{end}");

    victim.agent.wait_until_gone();
    victim.agent.start(&[]);
    wait_settled(&fleet, &first);
    fleet.json(&["flip", "2"]).expect_code(0);
    wait_settled(&fleet, &second);
    assert_eq!(last_end(&fleet)["outcome"], "flipped");
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_host_without_its_guard_goes_on_serving_and_takes_part_in_no_flip() {
    let (fleet, [first, second]) = serving();
    let observer = Observer::of(&fleet);
    let victim = fleet.host(VICTIM);
    victim.guard.kill();
    wait_named(&fleet, Code::GuardFailed);
    let flip = fleet.json(&["flip", "2"]).expect_code(18);
    flip.expect_blocker("guard-failed", victim.name(), "");
    assert_eq!(flip.text_at("/outcome"), "unchanged");
    fleet.assert_all_serve(&first);
    // The agent may come and go meanwhile.
    victim.agent.kill();
    victim.agent.start(&[]);
    fleet.wait_connected(3);
    fleet.json(&["flip", "2"]).expect_code(18).expect_blocker("guard-failed", victim.name(), "");
    fleet.assert_all_serve(&first);
    victim.guard.start(&[]);
    wait_settled(&fleet, &first);
    fleet.json(&["flip", "2"]).expect_code(0);
    wait_settled(&fleet, &second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_guard_killed_before_the_decision_gives_the_rollout_up() {
    let (fleet, [first, second]) = serving();
    let observer = Observer::of(&fleet);
    let (victim, halted) = (fleet.host(VICTIM), fleet.host(3).agent);
    halted.stop();
    let flip = flip_while(&fleet, "2", || {
        wait_phase(&fleet, "preparing");
        victim.guard.kill();
        wait_named(&fleet, Code::GuardFailed);
        halted.cont();
    });
    assert_eq!(flip.text_at("/outcome"), "unchanged", "{flip}");
    flip.expect_blocker("guard-failed", victim.name(), "");
    fleet.assert_all_serve(&first);
    victim.guard.start(&[]);
    wait_settled(&fleet, &first);
    fleet.json(&["flip", "2"]).expect_code(0);
    wait_settled(&fleet, &second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_guard_killed_after_the_decision_is_waited_for() {
    let (fleet, [first, second]) = serving();
    let observer = Observer::of(&fleet);
    let victim = fleet.host(VICTIM);
    let others = [fleet.host(1), fleet.host(3)];
    for (point, phase, from, to) in [
        ("agent.close.before-guard", "decided", &first, &second),
        ("agent.open.before-guard", "opened", &second, &first),
    ] {
        let_die_at(&fleet, &victim, point);
        let flip = flip_while(&fleet, to, || {
            victim.agent.wait_until_gone();
            victim.guard.kill();
            victim.agent.start(&[]);
            fleet.wait_connected(3);
            wait_named(&fleet, Code::GuardFailed);
            wait_phase(&fleet, phase);
            // Either the old release is served by one, or the new one by two; never both.
            let (mine, theirs) =
                if phase == "decided" { (Some(from.clone()), None) } else { (None, Some(to.clone())) };
            assert_eq!(victim.serves(), mine, "{point}");
            wait_until("the others do as they were told", PATIENCE, || {
                others.iter().all(|host| host.serves() == theirs).then_some(())
            });
            victim.guard.start(&[]);
            wait_settled(&fleet, to);
        });
        // Whoever watches is told of a dark host once, and need not wait for it.
        let expected: &[i32] = if phase == "decided" { &[0] } else { &[0, 18] };
        assert!(expected.contains(&flip.code), "{flip}");
    }
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_halted_host_keeps_the_rollout_decided_and_is_named() {
    let (fleet, [first, second]) = serving();
    let observer = Observer::of(&fleet);
    let victim = fleet.host(VICTIM);
    // The guard cannot stop what is served, so the agent is still closing when it is halted as well.
    victim.guard.stop();
    let flip = fleet.json(&["flip", "2", "--timeout", "10s"]).expect_code(16);
    assert_eq!(flip.text_at("/outcome"), "pending");
    flip.expect_blocker("host-silent", victim.name(), "");
    victim.agent.stop();
    for connected in [true, false] {
        wait_until("the host is seen to be silent, then to be gone", PATIENCE, || {
            let status = fleet.json(&["status"]).expect_code(0);
            assert_eq!(status.text_at("/phase"), "decided");
            let code = if connected { Code::HostSilent } else { Code::HostMissing };
            names(&status, code, victim.name()).then_some(())
        });
        fleet.json(&["flip", "2"]).expect_code(14).expect_blocker("busy", "", "");
        fleet.json(&["abort"]).expect_code(17).expect_blocker("decided", "", "");
        assert_eq!(victim.serves().as_ref(), Some(&first));
        assert_eq!((fleet.host(1).serves(), fleet.host(3).serves()), (None, None), "nothing opens early");
    }
    victim.guard.cont();
    victim.agent.cont();
    wait_settled(&fleet, &second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_power_cut_after_the_decision_loses_nothing() {
    let (fleet, [_, second]) = serving();
    let observer = Observer::of(&fleet);
    for host in fleet.hosts() {
        host.agent.kill();
    }
    for host in fleet.hosts() {
        host.agent.start(&[("MUSTER_CRASH_AT", "agent.closed.persisted")]);
    }
    fleet.wait_connected(3);
    let flip = flip_while(&fleet, "2", || {
        for host in fleet.hosts() {
            host.agent.wait_until_gone();
            host.guard.kill();
        }
        fleet.coordinator().kill();
    });
    assert_eq!(flip.code, 1, "{flip}");
    assert!(fleet.hosts().iter().all(|host| host.serves().is_none()), "all had closed");
    for host in fleet.hosts() {
        host.agent.start(&[]);
        host.guard.start(&[]);
    }
    fleet.coordinator().start(&[]);
    wait_settled(&fleet, &second);
    fleet.json(&["rollback"]).expect_code(0);
    observer.expect_one_release_at_a_time();
}

/// Kills what runs on a host and lets its guard find a permit of another boot, as a reboot does.
fn reboot(host: &Host) {
    if host.agent.is_running() {
        host.agent.kill();
    }
    host.guard.kill();
    let permit = find(host.folder(), "permit.json");
    let text = fs::read_to_string(&permit).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    fs::write(&permit, text.replace(boot.trim(), "00000000-0000-4000-8000-000000000000")).unwrap();
    host.guard.start(&[]);
}

fn find(folder: &std::path::Path, name: &str) -> std::path::PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            if entry.file_name() == name {
                return entry.path();
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    panic!("no {name} below {}", folder.display());
}

#[test]
fn a_host_that_boots_serves_nothing_until_it_is_admitted() {
    let (fleet, [first, second]) = serving();
    let observer = Observer::of(&fleet);
    let (victim, coordinator) = (fleet.host(VICTIM), fleet.coordinator());
    coordinator.kill();
    reboot(&victim);
    wait_until("its guard revokes the permit", PATIENCE, || victim.serves().is_none().then_some(()));
    victim.agent.start(&[]);
    wait_until("its agent finds no coordinator", PATIENCE, || {
        victim.agent.log().contains("cannot connect").then_some(())
    });
    assert_eq!(victim.serves(), None, "nobody has admitted it");
    assert_eq!(fleet.host(1).serves().as_ref(), Some(&first), "the others go on");
    coordinator.start(&[]);
    wait_settled(&fleet, &first);

    // While it is armed: the rollout is given up, and it is admitted to what was served.
    let_die_at(&fleet, &victim, "agent.armed.persisted");
    fleet.json(&["flip", "2"]).expect_code(11).expect_blocker("session-lost", victim.name(), "");
    victim.agent.wait_until_gone();
    reboot(&victim);
    victim.agent.start(&[]);
    wait_settled(&fleet, &first);

    // After the decision, before it has closed: there is nothing to close, and the fleet goes forward.
    let_die_at(&fleet, &victim, "agent.close.before-guard");
    let flip = flip_while(&fleet, "2", || {
        victim.agent.wait_until_gone();
        reboot(&victim);
        victim.agent.start(&[]);
        wait_settled(&fleet, &second);
    });
    flip.expect_code(0);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_supervised_service_dies_with_its_guard_and_comes_back_with_it() {
    let arguments = [
        "--driver",
        "supervise",
        "--command",
        "sh",
        "-c",
        "echo $$ > ../../service.$MUSTER_EPOCH; exec sleep 600",
    ];
    let fleet = Fleet::up_with(2, &arguments);
    let first = fleet.release(&tree("1"), "1");
    let victim = fleet.host(VICTIM);
    let file = |epoch: u32| victim.link().with_file_name(format!("service.{epoch}"));
    let service = |epoch: u32| -> Option<String> {
        let pid = fs::read_to_string(file(epoch)).ok()?;
        let pid = pid.trim().to_owned();
        fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| line.starts_with(b"sleep"))?;
        Some(pid)
    };
    let old = wait_until("the service runs", PATIENCE, || service(1));
    victim.guard.kill();
    wait_until("the service dies with its guard", PATIENCE, || service(1).is_none().then_some(()));
    wait_named(&fleet, Code::GuardFailed);
    victim.guard.start(&[]);
    wait_settled(&fleet, &first);
    let new = wait_until("it runs again", PATIENCE, || service(1));
    assert_ne!(old, new);

    // Killed in the middle of a flip: dark until it is back, then forward.
    let second = fleet.push(&tree("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    victim.agent.kill();
    victim.agent.start(&[("MUSTER_CRASH_AT", "agent.open.before-guard")]);
    fleet.wait_connected(2);
    let flip = flip_while(&fleet, "2", || {
        victim.agent.wait_until_gone();
        assert_eq!(service(1), None, "it was stopped before anything opened");
        victim.guard.kill();
        victim.agent.start(&[]);
        victim.guard.start(&[]);
        wait_settled(&fleet, &second);
    });
    assert!([0, 18].contains(&flip.code), "{flip}");
    wait_until("the new service runs", PATIENCE, || service(2));
}
