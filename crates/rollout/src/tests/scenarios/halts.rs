//! Halt and resume.

use muster_model::{Blocker, Code, OrderKind, RolloutId};

use super::super::world::World;
use super::{is_arming, is_decided, is_opened};
use crate::fleet::{Outcome, Phase};

impl World {
    fn halt(&mut self) {
        let fleet = self.coordinator.fleet.as_mut().expect("the coordinator is up");
        let step = fleet.halt(Blocker::fleet(Code::Halted, "by ops"));
        self.fleet_step(step);
    }

    #[track_caller]
    fn expect_all_dark(&self) {
        assert_eq!(self.violation, None);
        for machine in &self.machines {
            assert_eq!(machine.guard, None, "{}", machine.name);
        }
    }
}

#[test]
fn a_halted_fleet_serves_nothing_until_an_order_resumes_it() {
    let mut world = World::settled();
    world.halt();
    world.rest();
    world.expect_all_dark();
    assert_eq!(world.coordinator.record.halted, Some(RolloutId(1)));

    // Neither a new session nor a reboot nor a new leader brings it back.
    for index in 0..3 {
        world.reboot(index);
        world.start_agent(index);
    }
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    world.expect_all_dark();

    let order = world.proposal(0, |_| {});
    assert_eq!(order.order.kind, OrderKind::Resume);
    world.propose_this(&order).expect("an order resumes it");
    world.rest();
    assert_eq!(world.last_end().outcome, Outcome::Flipped);
    world.expect_all_serve(0, 2);
    assert_eq!(world.coordinator.record.halted, None);
}

#[test]
fn a_halt_gives_up_a_rollout_that_is_not_decided() {
    let mut world = World::settled();
    world.flip_until(1, is_arming);
    world.halt();
    world.rest();
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
    assert_eq!(world.last_end().outcome, Outcome::Unchanged);
    world.expect_all_dark();
    // A halted fleet may also be led to another release.
    world.flip(2);
    world.expect_all_serve(2, 2);
}

#[test]
fn a_halt_after_the_decision_leaves_all_hosts_closed() {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    world.halt();
    world.rest();
    world.expect_all_dark();
    world.flip(0);
    world.expect_all_serve(0, 3);
}

#[test]
fn a_host_that_was_away_hears_of_the_halt_when_it_joins() {
    let mut world = World::settled();
    world.cut(1);
    world.halt();
    world.rest();
    assert!(world.machines[1].guard.is_none(), "it has joined and was told");
    world.expect_all_dark();
}

#[test]
fn a_host_that_was_halted_by_hand_is_dark_until_the_next_order() {
    let mut world = World::settled();
    world.halt_by_hand(1);
    world.rest();
    assert_eq!(world.machines[1].guard, None);
    world.expect_serves(&world.machines[0].name, 0, 1);
    // Not even a restart of the agent, or a new session, brings it back.
    world.crash_agent(1);
    world.start_agent(1);
    world.rest();
    assert_eq!(world.machines[1].guard, None);
    let fleet = world.coordinator.fleet.as_ref().expect("it is up");
    assert_eq!(fleet.hosts()[1].halted, Some(RolloutId(1)));
    let resume = world.proposal(0, |_| {});
    world.propose_this(&resume).expect("some host is halted");
    world.rest();
    world.expect_all_serve(0, 2);
}

#[test]
fn a_settled_fleet_that_is_not_halted_is_not_resumed() {
    let mut world = World::settled();
    let resume = world.proposal(0, |_| {});
    let refusal = world.propose_this(&resume).expect_err("it serves");
    assert_eq!(refusal.code(), Some(Code::AlreadyServing));
    assert!(!is_opened(&world.coordinator.record.phase));
}
