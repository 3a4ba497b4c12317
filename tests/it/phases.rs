//! Guards, whole hosts and whole fleets that die in the middle of a flip; and what is told of it.

use std::fs;

use muster_model::Code;

use crate::harness::{Fleet, Host, Observer, PATIENCE, until, versioned, wait_until};

/// The host that things happen to.
const VICTIM: usize = 2;

/// After all that: the fleet goes on serving the first release, and nothing is in the way of a flip to the second.
#[track_caller]
fn flips_after_all(fleet: &Fleet, first: &str, second: &str) {
    fleet.wait_settled(first);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.wait_settled(second);
}

#[test]
fn a_rollout_that_a_death_has_ended_is_reported_with_the_reason() {
    let (fleet, [first, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let coordinator = fleet.coordinator();
    fleet.let_coordinator_die_at("coordinator.arming.persisted");
    fleet.json(&["flip", "2"]).expect_code(1);
    coordinator.wait_until_gone();
    fleet.assert_all_serve(&first);
    coordinator.start(&[]);
    fleet.wait_settled(&first);
    let end = fleet.last_end();
    assert_eq!((&end["k"], &end["outcome"]), (&2.into(), &"unchanged".into()), "{end}");
    assert_eq!(end["blockers"][0]["code"], "coordinator-restarted", "{end}");

    let victim = fleet.host(VICTIM);
    fleet.let_die_at(&victim, "agent.armed.persisted");
    let flip = fleet.json(&["flip", "2"]).expect_code(11);
    flip.expect_blocker("session-lost", victim.name(), "");
    assert_eq!(flip.text_at("/outcome"), "unchanged");
    fleet.assert_all_serve(&first);
    let end = fleet.last_end();
    assert_eq!((&end["k"], &end["outcome"]), (&3.into(), &"unchanged".into()), "{end}");
    assert_eq!(end["blockers"][0]["host"], victim.name(), "{end}");

    victim.agent.wait_until_gone();
    victim.agent.start(&[]);
    flips_after_all(&fleet, &first, &second);
    assert_eq!(fleet.last_end()["outcome"], "flipped");
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_host_without_its_guard_goes_on_serving_and_takes_part_in_no_flip() {
    let (fleet, [first, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let victim = fleet.host(VICTIM);
    victim.guard.kill();
    fleet.wait_named(&victim, Code::GuardFailed);
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
    flips_after_all(&fleet, &first, &second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_guard_killed_before_the_decision_gives_the_rollout_up() {
    let (fleet, [first, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let (victim, halted) = (fleet.host(VICTIM), fleet.host(3).agent);
    halted.stop();
    let flip = fleet.flip_while("2", || {
        fleet.wait_phase("preparing");
        victim.guard.kill();
        fleet.wait_named(&victim, Code::GuardFailed);
        halted.cont();
    });
    assert_eq!(flip.text_at("/outcome"), "unchanged", "{flip}");
    flip.expect_blocker("guard-failed", victim.name(), "");
    fleet.assert_all_serve(&first);
    victim.guard.start(&[]);
    flips_after_all(&fleet, &first, &second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_guard_killed_after_the_decision_is_waited_for() {
    let (fleet, [first, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let victim = fleet.host(VICTIM);
    let others = [fleet.host(1), fleet.host(3)];
    for (point, phase, from, to) in [
        ("agent.close.before-guard", "decided", &first, &second),
        ("agent.open.before-guard", "opened", &second, &first),
    ] {
        fleet.let_die_at(&victim, point);
        let flip = fleet.flip_while(to, || {
            victim.agent.wait_until_gone();
            victim.guard.kill();
            victim.agent.start(&[]);
            fleet.wait_connected(3);
            fleet.wait_named(&victim, Code::GuardFailed);
            fleet.wait_phase(phase);
            // Either the old release is served by one, or the new one by two; never both.
            let (mine, theirs) =
                if phase == "decided" { (Some(from.clone()), None) } else { (None, Some(to.clone())) };
            assert_eq!(victim.serves(), mine, "{point}");
            until("the others do as they were told", || others.iter().all(|host| host.serves() == theirs));
            victim.guard.start(&[]);
            fleet.wait_settled(to);
        });
        // Whoever watches is told of a dark host once, and need not wait for it.
        let expected: &[i32] = if phase == "decided" { &[0] } else { &[0, 18] };
        assert!(expected.contains(&flip.code), "{flip}");
    }
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_silent_host_fences_and_keeps_the_others_closed_where_the_order_lets_none_lapse() {
    let (fleet, [_, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let victim = fleet.host(VICTIM);
    fleet.let_die_at(&victim, "agent.close.before-guard");
    let flip = fleet.json(&["flip", "2", "--max-lapsed", "0", "--timeout", "10s"]).expect_code(16);
    assert_eq!(flip.text_at("/outcome"), "pending");
    flip.expect_blocker("host-missing", victim.name(), "");
    // Its guard has fenced by itself, and long after the wait the others are closed still: nothing opens early.
    until("the silent host has fenced", || victim.serves().is_none());
    let status = fleet.json(&["status"]).expect_code(0);
    assert_eq!(status.text_at("/phase"), "decided");
    assert!(status.names(&victim, Code::HostMissing));
    assert_eq!((fleet.host(1).serves(), fleet.host(3).serves()), (None, None), "nothing opens early");
    fleet.json(&["flip", "2"]).expect_code(14).expect_blocker("busy", "", "");
    fleet.json(&["abort"]).expect_code(17).expect_blocker("decided", "", "");
    victim.agent.start(&[]);
    fleet.wait_settled(&second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_host_whose_guard_is_halted_takes_part_in_nothing() {
    let (fleet, [first, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let victim = fleet.host(VICTIM);
    victim.guard.stop();
    let flip = fleet.json(&["flip", "2", "--timeout", "5s"]);
    assert_eq!(flip.text_at("/outcome"), "unchanged");
    fleet.assert_all_serve(&first);
    victim.guard.cont();
    fleet.wait_settled(&first);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.wait_settled(&second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn an_agent_that_started_before_its_guard_tries_a_fence_once_the_guard_is_there() {
    let fleet = Fleet::up(2);
    let victim = fleet.host(VICTIM);
    victim.agent.kill();
    victim.guard.kill();
    victim.agent.start(&[]);
    until("its agent misses the guard", || victim.agent.log().contains("the guard did not answer"));
    victim.guard.start(&[]);
    let first = fleet.push(&versioned("1"), "1");
    until("it can deploy", || fleet.json(&["deploy", "1"]).code == 0);
    until("it can take part", || fleet.json(&["flip", "1"]).code == 0);
    fleet.wait_settled(&first);
}

#[test]
fn a_power_cut_after_the_decision_loses_nothing() {
    let (fleet, [_, second]) = Fleet::patient(3).with_two_releases();
    let observer = Observer::of(&fleet);
    for host in fleet.hosts() {
        host.agent.kill();
    }
    for host in fleet.hosts() {
        host.agent.start(&[("MUSTER_CRASH_AT", "agent.closed.persisted")]);
    }
    fleet.wait_connected(3);
    let flip = fleet.flip_while("2", || {
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
    fleet.wait_settled(&second);
    fleet.json(&["rollback"]).expect_code(0);
    observer.expect_one_release_at_a_time();
}

/// Kills what runs on a host and lets its guard find a permit of another boot, as a reboot does.
pub(crate) fn reboot(host: &Host) {
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
    let (fleet, [first, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let (victim, coordinator) = (fleet.host(VICTIM), fleet.coordinator());
    coordinator.kill();
    reboot(&victim);
    until("its guard revokes the permit", || victim.serves().is_none());
    victim.agent.start(&[]);
    until("its agent finds no coordinator", || victim.agent.log().contains("cannot connect"));
    assert_eq!(victim.serves(), None, "nobody has admitted it");
    assert_eq!(fleet.host(1).serves().as_ref(), Some(&first), "the others go on");
    coordinator.start(&[]);
    fleet.wait_settled(&first);

    // While it is armed: the rollout is given up, and it is admitted to what was served.
    fleet.let_die_at(&victim, "agent.armed.persisted");
    fleet.json(&["flip", "2"]).expect_code(11).expect_blocker("session-lost", victim.name(), "");
    victim.agent.wait_until_gone();
    reboot(&victim);
    victim.agent.start(&[]);
    fleet.wait_settled(&first);

    // After the decision, before it has closed: there is nothing to close, and the fleet goes forward.
    fleet.let_die_at(&victim, "agent.close.before-guard");
    let flip = fleet.flip_while("2", || {
        victim.agent.wait_until_gone();
        reboot(&victim);
        victim.agent.start(&[]);
        fleet.wait_settled(&second);
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
    let first = fleet.release(&versioned("1"), "1");
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
    until("the service dies with its guard", || service(1).is_none());
    fleet.wait_named(&victim, Code::GuardFailed);
    victim.guard.start(&[]);
    fleet.wait_settled(&first);
    let new = wait_until("it runs again", PATIENCE, || service(1));
    assert_ne!(old, new);

    // Killed in the middle of a flip: dark until it is back, then forward.
    let second = fleet.push(&versioned("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    victim.agent.kill();
    victim.agent.start(&[("MUSTER_CRASH_AT", "agent.open.before-guard")]);
    fleet.wait_connected(2);
    let flip = fleet.flip_while("2", || {
        victim.agent.wait_until_gone();
        assert_eq!(service(1), None, "it was stopped before anything opened");
        victim.guard.kill();
        victim.agent.start(&[]);
        victim.guard.start(&[]);
        fleet.wait_settled(&second);
    });
    assert!([0, 18].contains(&flip.code), "{flip}");
    wait_until("the new service runs", PATIENCE, || service(2));
}
