//! Halt and resume.

use muster_model::{Code, OrderKind, RolloutId};

use super::super::machine::{Driver, GuardWork, Pending};
use super::super::world::World;
use super::{is_armed, is_arming, is_closed, is_decided, is_opened};
use crate::fleet::{Outcome, Phase};

impl World {
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
fn a_halt_after_the_decision_outlives_it_and_is_undone_by_no_order_signed_before() {
    let mut world = World::settled();
    let proposal = world.proposal_with_contingency(1);
    world.propose_this(&proposal).expect("in order");
    world.expect_until(|world| is_decided(&world.coordinator.record.phase));
    world.cut(1);
    world.halt();
    world.rest();
    world.expect_all_dark();
    assert_eq!(world.coordinator.record.halted, Some(RolloutId(2)), "the halt is not older than the rollout");
    assert_eq!(world.rollbacks, [], "what was halted did not fail");
    assert_eq!(world.last_end().outcome, Outcome::Dark);
    world.reboot(1);
    world.start_agent(1);
    world.rest();
    world.expect_all_dark();
    world.flip(0);
    world.expect_all_serve(0, 3);
}

#[test]
fn hosts_that_were_halted_by_hand_are_not_rolled_back() {
    let mut world = World::settled();
    let proposal = world.proposal_with_contingency(1);
    world.propose_this(&proposal).expect("in order");
    world.expect_until(|world| is_opened(&world.coordinator.record.phase));
    world.halt_by_hand(0);
    world.halt_by_hand(1);
    world.rest();
    assert_eq!(world.rollbacks, []);
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
fn a_host_that_is_halted_by_hand_while_it_is_connected_can_be_resumed() {
    let mut world = World::settled();
    world.halt_by_hand(1);
    world.rest();
    let fleet = world.coordinator.fleet.as_ref().expect("it is up");
    assert_eq!(fleet.hosts()[1].halted, Some(RolloutId(1)), "it says so when it is offered to serve again");
    world.flip(0);
    world.expect_all_serve(0, 2);
    let fleet = world.coordinator.fleet.as_ref().expect("it is up");
    assert_eq!(fleet.hosts()[1].halted, None);
}

#[test]
fn a_fleet_that_was_halted_resumes_with_a_host_that_joined_meanwhile() {
    let mut world = World::settled();
    world.halt();
    world.rest();
    world.change_roster(4).expect("it is settled");
    world.deploy_everywhere();
    world.rest();
    world.report_deployed();
    world.rest();
    world.expect_all_dark();
    world.flip(0);
    world.expect_all_serve(0, 2);
}

#[test]
fn a_halt_that_the_guard_did_not_hear_of_is_done_when_the_agent_is_back() {
    let mut world = World::settled();
    world.halt();
    world.advance(1, Pending::Down);
    assert!(world.machines[1].record.halted.is_some() && world.machines[1].guard.is_some());
    world.machines[1].guard_work.clear();
    world.crash_agent(1);
    world.start_agent(1);
    world.rest();
    world.expect_all_dark();
}

#[test]
fn a_halt_while_the_guard_is_gone_is_done_when_it_is_back() {
    let mut world = World::settled();
    world.guard_dies(1);
    world.halt();
    world.rest();
    assert!(world.machines[1].guard.is_some(), "a link goes on without a guard");
    world.guard_returns(1);
    world.rest();
    world.expect_all_dark();
}

#[test]
fn a_guard_that_tells_of_a_halt_while_it_is_asked_to_end_it_does_not_halt_the_host_again() {
    let mut world = World::settled();
    world.halt();
    world.rest();
    world.propose(0).expect("an order resumes it");
    let opens = |work: &GuardWork| matches!(work, GuardWork::Open { .. });
    world.expect_until(|world| world.machines[1].guard_work.iter().any(opens));
    world.machines[1].guard_work.push_front(GuardWork::Say);
    world.rest();
    world.expect_all_serve(0, 2);
    assert_eq!(world.machines[1].record.halted, None);
}

#[test]
fn an_agent_that_dies_while_its_guard_is_asked_to_end_a_halt_needs_no_other_order() {
    for is_asked in [false, true] {
        let mut world = World::settled();
        world.halt();
        world.rest();
        world.propose(0).expect("an order resumes it");
        let opens = |work: &GuardWork| matches!(work, GuardWork::Open { .. });
        world.expect_until(|world| world.machines[1].guard_work.front().is_some_and(opens));
        let asked = world.machines[1].guard_work.pop_front().expect("it was just seen");
        world.crash_agent(1);
        if is_asked {
            // The guard serves, and nobody has heard it say so.
            drop(world.ask_guard(1, &asked));
        }
        assert_eq!(world.machines[1].guard.is_some(), is_asked);
        world.start_agent(1);
        world.rest();
        world.expect_all_serve(0, 2);
        assert_eq!(world.machines[1].record.halted, None);
    }
}

#[test]
fn an_order_that_was_given_up_resumes_nobody() {
    let mut world = World::settled();
    world.halt_by_hand(1);
    world.rest();
    world.flip_until(1, is_arming);
    world.expect_until(|world| is_armed(&world.machines[1].record.mode));
    world.abort().expect("it is not decided");
    world.rest();
    assert_eq!((world.machines[1].guard, world.violation.clone()), (None, None));
    // Nor does it after a restart.
    world.crash_agent(1);
    world.start_agent(1);
    world.rest();
    assert_eq!(world.machines[1].guard, None);
    world.flip(0);
    world.expect_all_serve(0, 2);
}

#[test]
fn a_second_halt_by_hand_outlives_the_order_that_resumes_after_the_first() {
    let opens = |work: &GuardWork| matches!(work, GuardWork::Open { .. });
    let reached: [fn(&World) -> bool; 4] = [
        |world| world.machines[1].record.committed.is_some(),
        |world| is_armed(&world.machines[1].record.mode),
        |world| is_closed(&world.machines[1].record.mode),
        |world| world.machines[1].guard_work.iter().any(|work| matches!(work, GuardWork::Open { .. })),
    ];
    for (number, moment) in reached.into_iter().enumerate() {
        let mut world = World::settled();
        world.halt_by_hand(1);
        world.rest();
        let order = world.proposal(0, |_| {});
        world.propose_this(&order).expect("a host is halted");
        world.expect_until(moment);
        // Whatever the guard was asked before, it is halted now.
        world.halt_by_hand(1);
        let asked = world.machines[1].guard_work.iter().any(opens);
        assert_eq!(asked, number == 3, "moment {number}");
        world.rest();
        assert_eq!(world.machines[1].guard, None, "moment {number}");
        assert!(world.machines[1].record.halted.is_some(), "moment {number}");
        assert_eq!(world.violation, None);
        // And the next order does resume it.
        world.flip(0);
        assert_eq!(world.machines[1].record.halted, None, "moment {number}");
        assert!(world.machines.iter().all(|machine| machine.guard.is_some()), "moment {number}");
    }
}

#[test]
fn a_halt_by_hand_is_not_taken_for_one_that_the_guard_never_heard_of() {
    let reached: [fn(&World) -> bool; 2] = [
        |world| world.machines[1].record.committed.is_some(),
        |world| world.machines[1].record.last_k == RolloutId(2),
    ];
    for moment in reached {
        let mut world = World::settled();
        world.machines[1].driver = Driver::Supervise;
        world.guard_dies(1);
        world.halt();
        world.rest();
        world.guard_returns(1);
        world.rest();
        assert_eq!(world.machines[1].record.halted.map(|halted| halted.halt), Some(None));
        world.propose(0).expect("an order resumes it");
        world.expect_until(moment);
        world.halt_by_hand(1);
        world.rest();
        assert_eq!((world.machines[1].guard, world.violation.clone()), (None, None));
        assert!(world.machines[1].record.halted.is_some());
        world.flip(0);
        assert!(world.machines.iter().all(|machine| machine.guard.is_some()));
    }
}

#[test]
fn a_settled_fleet_that_is_not_halted_is_not_resumed() {
    let mut world = World::settled();
    let resume = world.proposal(0, |_| {});
    let refusal = world.propose_this(&resume).expect_err("it serves");
    assert_eq!(refusal.code(), Some(Code::AlreadyServing));
    assert!(!is_opened(&world.coordinator.record.phase));
}
