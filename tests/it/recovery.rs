//! The recovery table on real processes: coordinator and agents killed at every point, restarted, and carried on, while an
//! observer looks whether two releases are ever served at once.

use std::thread;

use crate::harness::{Artifact, Fleet, Observer, PATIENCE, artifact, until, wait_until};

/// A fleet of three that serves `1`, with `2` deployed.
struct Scene {
    fleet: Fleet,
    digests: [String; 2],
    serving: usize,
}

/// What must follow from a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The rollout is given up, and the old release is served.
    Unchanged,
    /// The rollout is carried on, and the new release is served.
    CarriedOn,
}

fn tree(version: &str) -> Artifact {
    artifact(&[("bin/smars", version), ("conf/routing.toml", "venues = 154\n"), ("VERSION", version)])
}

impl Scene {
    fn new() -> Self {
        let fleet = Fleet::up(3);
        let first = fleet.release(&tree("1"), "1");
        let second = fleet.push(&tree("2"), "2");
        fleet.json(&["deploy", "2"]).expect_code(0);
        Self { fleet, digests: [first, second], serving: 0 }
    }

    /// The version that is not served.
    fn other(&self) -> &'static str {
        ["2", "1"][self.serving]
    }

    /// Waits until the fleet is settled, all hosts serve what they should, and nothing is in the way.
    #[track_caller]
    fn settle(&mut self, then: Then) {
        if then == Then::CarriedOn {
            self.serving = 1 - self.serving;
        }
        let digest = &self.digests[self.serving];
        wait_until(&format!("the fleet is settled on {digest}"), PATIENCE, || {
            let status = self.fleet.json(&["status"]);
            if status.code != 0 {
                return None;
            }
            let status = status.json();
            let all = self.fleet.hosts().iter().all(|host| host.serves().as_ref() == Some(digest));
            let calm = status["phase"] == "settled" && status["blockers"].as_array()?.is_empty();
            (all && calm && status["serving"]["digest"] == *digest).then_some(())
        });
    }

    /// The coordinator dies at `point` of a flip and is started again.
    #[track_caller]
    fn coordinator_dies_at(&mut self, point: &str, then: Then) {
        let coordinator = self.fleet.coordinator();
        coordinator.kill();
        coordinator.start(&[("MUSTER_CRASH_AT", point)]);
        self.fleet.wait_connected(3);
        let flip = self.fleet.json(&["flip", self.other(), "--timeout", "90s"]);
        assert_ne!(flip.code, 0, "{point}: {flip}");
        coordinator.wait_until_gone();
        coordinator.start(&[]);
        self.settle(then);
    }

    /// The agent of host-2 dies at `point` of a flip and is started again.
    #[track_caller]
    fn agent_dies_at(&mut self, point: &str, then: Then) {
        let agent = self.fleet.host(2).agent;
        agent.kill();
        self.fleet.wait_connected(2);
        agent.start(&[("MUSTER_CRASH_AT", point)]);
        self.fleet.wait_connected(3);
        let flip = thread::scope(|scope| {
            let flip = scope.spawn(|| self.fleet.json(&["flip", self.other(), "--timeout", "90s"]));
            agent.wait_until_gone();
            agent.start(&[]);
            flip.join().unwrap()
        });
        match then {
            Then::Unchanged => drop(flip.expect_code(11).expect_blocker("session-lost", "host-2", "")),
            // Whoever watches is told once that a host is dark, and need not wait for it.
            Then::CarriedOn => assert!([0, 18].contains(&flip.code), "{point}: {flip}"),
        }
        self.settle(then);
    }

    /// A flip succeeds after all that.
    #[track_caller]
    fn flip(&mut self) {
        self.fleet.json(&["flip", self.other()]).expect_code(0);
        self.settle(Then::CarriedOn);
    }
}

#[test]
fn coordinator_killed_before_the_decision_gives_the_rollout_up() {
    let mut scene = Scene::new();
    let observer = Observer::of(&scene.fleet);
    for phase in ["preparing", "arming"] {
        for when in ["before", "persisted"] {
            scene.coordinator_dies_at(&format!("coordinator.{phase}.{when}"), Then::Unchanged);
        }
    }
    scene.coordinator_dies_at("coordinator.decided.before", Then::Unchanged);
    scene.flip();
    observer.expect_one_release_at_a_time();
}

#[test]
fn coordinator_killed_after_the_decision_goes_forward() {
    let mut scene = Scene::new();
    let observer = Observer::of(&scene.fleet);
    scene.coordinator_dies_at("coordinator.decided.persisted", Then::CarriedOn);
    scene.coordinator_dies_at("coordinator.opened.before", Then::CarriedOn);
    scene.coordinator_dies_at("coordinator.opened.persisted", Then::CarriedOn);
    // A leader that takes over writes the phase that it finds: the first time is not the flip's.
    scene.coordinator_dies_at("coordinator.settled.before#2", Then::CarriedOn);
    scene.coordinator_dies_at("coordinator.settled.persisted#2", Then::CarriedOn);
    scene.flip();
    let seen = observer.expect_one_release_at_a_time();
    assert_eq!(seen.releases, 2, "{seen:?}");
}

#[test]
fn receipt_that_a_crash_lost_is_made_at_take_over() {
    let mut scene = Scene::new();
    // The fleet is settled, durably, and the coordinator dies before it makes the receipt.
    scene.coordinator_dies_at("coordinator.settled.persisted#2", Then::CarriedOn);
    let receipt = scene.fleet.scratch().join("receipt.json");
    let receipt = receipt.to_str().unwrap();
    let show = ["receipt", "show", "--epoch", "2", "--out", receipt];
    until("the receipt is made", || scene.fleet.json(&show).code == 0);
    let root = scene.fleet.dir().join("root.json");
    let verify = ["receipt", "verify", receipt, "--root", root.to_str().unwrap()];
    let verified = scene.fleet.json(&verify).expect_code(0);
    assert!(verified.stdout.contains(&scene.digests[1]), "{verified}");
}

#[test]
fn agent_killed_before_the_decision_gives_the_rollout_up() {
    let mut scene = Scene::new();
    let observer = Observer::of(&scene.fleet);
    for point in ["agent.attest.persisted", "agent.armed.persisted", "agent.armed.before-ack"] {
        scene.agent_dies_at(point, Then::Unchanged);
    }
    scene.flip();
    observer.expect_one_release_at_a_time();
}

#[test]
fn agent_killed_after_the_decision_is_waited_for_and_carries_on() {
    let mut scene = Scene::new();
    let observer = Observer::of(&scene.fleet);
    for point in [
        "agent.close.before-guard",
        "agent.closed.persisted",
        "agent.open.persisted",
        "agent.open.before-guard",
        "agent.serving.before-ack",
    ] {
        scene.agent_dies_at(point, Then::CarriedOn);
    }
    scene.flip();
    observer.expect_one_release_at_a_time();
}

#[test]
fn agent_killed_while_it_joins_is_no_second_machine() {
    let mut scene = Scene::new();
    let agent = scene.fleet.host(2).agent;
    agent.kill();
    agent.start(&[("MUSTER_CRASH_AT", "agent.joined.persisted")]);
    agent.wait_until_gone();
    agent.start(&[]);
    scene.fleet.wait_connected(3);
    scene.settle(Then::Unchanged);
    scene.flip();
}

#[test]
fn agent_killed_while_it_deploys_keeps_what_has_arrived() {
    let scene = Scene::new();
    let third = artifact(&[("a", "first"), ("b", "second"), ("c", "third"), ("d", "fourth")]);
    let digest = scene.fleet.push(&third, "3");
    let host = scene.fleet.host(2);
    host.agent.kill();
    for point in ["agent.deploy.blob#3", "agent.deploy.before-install", "agent.deploy.installed"] {
        host.agent.start(&[("MUSTER_CRASH_AT", point)]);
        scene.fleet.wait_connected(3);
        let deploy = scene.fleet.json(&["deploy", "3", "--timeout", "2s"]).expect_code(11);
        deploy.expect_blocker("host-missing", "host-2", "");
        host.agent.wait_until_gone();
        scene.fleet.assert_all_serve(&scene.digests[0]);
    }
    host.agent.start(&[]);
    scene.fleet.wait_connected(3);
    scene.fleet.json(&["deploy", "3"]).expect_code(0);
    scene.fleet.json(&["check", "--release", "3"]).expect_code(0);
    assert!(host.tree(&digest).join("a").exists());
}

#[test]
fn guard_killed_under_a_settled_fleet_changes_nothing_and_is_found_again() {
    let mut scene = Scene::new();
    let guard = scene.fleet.host(3).guard;
    guard.kill();
    scene.fleet.assert_all_serve(&scene.digests[0]);
    guard.start(&[]);
    scene.settle(Then::Unchanged);
    scene.flip();
}

#[test]
fn host_silent_after_the_decision_fences_and_the_others_open_after_the_wait() {
    let mut scene = Scene::new();
    let observer = Observer::of(&scene.fleet);
    let agent = scene.fleet.host(2).agent;
    agent.kill();
    // It dies when it is told to close: the rollout is decided, and this host is silent.
    agent.start(&[("MUSTER_CRASH_AT", "agent.close.before-guard")]);
    scene.fleet.wait_connected(3);
    // The guard fences it when its lease ends, and once that must be over the others open.
    let flip = scene.fleet.json(&["flip", "2", "--timeout", "30s"]).expect_code(18);
    assert_eq!(flip.text_at("/outcome"), "dark");
    flip.expect_blocker("host-missing", "host-2", "");
    assert_eq!(scene.fleet.host(2).serves(), None);
    for number in [1, 3] {
        assert_eq!(scene.fleet.host(number).serves().as_ref(), Some(&scene.digests[1]));
    }
    let status = scene.fleet.json(&["status"]).expect_code(0);
    assert_eq!(status.text_at("/phase"), "opened");
    scene.fleet.json(&["abort"]).expect_code(17).expect_blocker("nothing-to-abort", "", "");
    agent.start(&[]);
    scene.settle(Then::CarriedOn);
    observer.expect_one_release_at_a_time();
}
