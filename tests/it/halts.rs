//! Halts by a person at one host, with nobody else there.

use muster_model::Code;

use crate::harness::{FLEET, Fleet, Host, Observer, Output, run_program};

/// What somebody types at the host itself.
fn at(host: &Host, verb: &str, arguments: &[&str]) -> Output {
    let config = host.folder().join("agent.toml");
    let first = [verb, FLEET, "--config", config.to_str().unwrap()];
    run_program("muster-agent", &[&first, arguments].concat(), &[])
}

#[test]
fn a_host_is_halted_by_hand_though_its_agent_and_its_coordinator_are_dead() {
    let (fleet, [first, second]) = Fleet::serving(3);
    let observer = Observer::of(&fleet);
    let (victim, coordinator) = (fleet.host(2), fleet.coordinator());
    coordinator.kill();
    victim.agent.kill();
    assert!(at(&victim, "status", &[]).expect_code(0).stdout.contains("permit   epoch 1"));

    let halted = at(&victim, "halt", &["--reason", "orders sent twice"]).expect_code(0);
    assert!(halted.stdout.contains("demo is halted on this host"), "{halted}");
    assert!(halted.stdout.contains("halted   orders sent twice"), "{halted}");
    assert_eq!(victim.serves(), None);
    assert_eq!(fleet.host(1).serves().as_ref(), Some(&first), "the others go on");

    // Nothing that is started again opens it.
    victim.guard.kill();
    victim.guard.start(&[]);
    victim.agent.start(&[]);
    coordinator.start(&[]);
    fleet.wait_connected(3);
    fleet.wait_named(&victim, Code::Halted);
    assert_eq!(victim.serves(), None);
    assert!(at(&victim, "status", &[]).expect_code(0).stdout.contains("halted   orders sent twice"));

    // An order does, also one for another release: the whole fleet goes through the gate.
    let resumed = fleet.json(&["resume"]).expect_code(0);
    assert_eq!(resumed.text_at("/outcome"), "flipped");
    fleet.wait_settled(&first);
    at(&victim, "halt", &["--reason", "again"]).expect_code(0);
    fleet.wait_named(&victim, Code::Halted);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.wait_settled(&second);
    observer.expect_one_release_at_a_time();
}

#[test]
fn a_halt_of_a_fleet_that_is_not_here_names_those_that_are() {
    let fleet = Fleet::up(1);
    let config = fleet.host(1).folder().join("agent.toml");
    let arguments = ["halt", "smars", "--reason", "x", "--config", config.to_str().unwrap()];
    let refused = run_program("muster-agent", &arguments, &[]).expect_code(1);
    assert!(refused.stderr.contains("smars") && refused.stderr.contains(FLEET), "{refused}");
}
