//! Flips that succeed, that are given up, and that are rolled back.

use muster_model::{Code, Epoch, FlipMode, RolloutId, ToHost};

use super::super::link::Delay;
use super::super::machine::Tree;
use super::super::world::World;
use super::{codes, is_armed, is_arming, is_closed, is_decided, is_opened};
use crate::fleet::{Outcome, Phase, Stage};
use crate::host::Mode;

/// An instant is no further ahead.
const INSTANT_MS_MAX: u64 = 10_000;

#[test]
fn a_flip_goes_through_every_stage_and_settles() {
    let mut world = World::running(3, 1);
    let k = world.flip(0);
    world.expect_all_serve(0, 1);
    let stages: Vec<Stage> = world.stages.iter().map(|(_, stage)| *stage).collect();
    let expected = [
        Stage::Proposed,
        Stage::Attested,
        Stage::Prepared,
        Stage::Probed,
        Stage::Armed,
        Stage::Decided,
        Stage::Closed,
        Stage::Opened,
        Stage::Measured,
    ];
    assert_eq!(stages, expected);
    let end = world.last_end();
    assert_eq!((end.k, end.outcome, end.epoch), (k, Outcome::Flipped, Epoch(1)));
}

#[test]
fn a_host_that_is_missing_is_named_when_a_flip_is_proposed() {
    let mut world = World::settled();
    world.cut(1);
    let refusal = world.propose(1).expect_err("a host is missing");
    assert_eq!(codes(&refusal.blockers), [(Code::HostMissing, Some("host-2"))]);
    assert_eq!(world.coordinator.record.last_k, RolloutId(1), "a refused order uses no number up");
}

#[test]
fn a_tree_that_differs_shuts_the_gate_and_names_host_and_path() {
    let mut world = World::settled();
    world.machines[1].trees[1] = Tree::Tampered;
    world.machines[2].trees[1] = Tree::Missing;
    world.flip(1);
    let end = world.last_end();
    assert_eq!(end.outcome, Outcome::Unchanged);
    let expected = [(Code::Mismatch, Some("host-2")), (Code::NotDeployed, Some("host-3"))];
    assert_eq!(codes(&end.blockers), expected, "all reasons are told at once");
    assert_eq!(end.blockers[0].path.as_deref(), Some("bin/server"));
    world.expect_all_serve(0, 1);
}

#[test]
fn a_host_that_is_lost_while_arming_gives_the_flip_up() {
    let mut world = World::settled();
    world.flip_until(1, is_arming);
    world.cut(1);
    assert_eq!(codes(&world.last_end().blockers), [(Code::SessionLost, Some("host-2"))]);
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn hosts_that_do_not_arm_in_time_give_the_flip_up() {
    let mut world = World::settled();
    world.flip_until(1, is_arming);
    assert!(world.pass_deadline());
    let end = world.last_end();
    assert_eq!(end.blockers.len(), 3);
    assert!(end.blockers.iter().all(|blocker| blocker.code == Code::TimedOut), "{:?}", end.blockers);
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn an_operator_can_give_up_until_it_is_decided_and_not_afterwards() {
    let mut world = World::settled();
    assert_eq!(world.abort().expect_err("nothing is under way").code(), Some(Code::NothingToAbort));
    world.flip_until(1, is_arming);
    world.abort().expect("it is not decided");
    world.rest();
    world.expect_all_serve(0, 1);
    world.flip_until(1, is_decided);
    assert_eq!(world.abort().expect_err("it is decided").code(), Some(Code::Decided));
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_rollback_is_a_new_rollout_through_the_same_gate() {
    let mut world = World::settled();
    world.flip(1);
    world.expect_all_serve(1, 2);
    world.machines[0].trees[0] = Tree::Tampered;
    world.flip(0);
    assert_eq!(codes(&world.last_end().blockers), [(Code::Mismatch, Some("host-1"))]);
    world.expect_all_serve(1, 2);
    world.machines[0].trees[0] = Tree::Good;
    let k = world.flip(0);
    assert_eq!(k, RolloutId(4));
    world.expect_all_serve(0, 3);
}

/// Host 2 could not open epoch 2: its tree changed after it was sealed. The others serve.
fn opened_with_a_dark_host() -> World {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    world.machines[1].trees[1] = Tree::Tampered;
    world.rest();
    assert!(is_opened(&world.coordinator.record.phase));
    assert!(is_closed(&world.machines[1].record.mode));
    assert_eq!(world.machines[1].guard, None);
    assert_eq!(world.last_end().outcome, Outcome::Dark);
    assert_eq!(codes(&world.last_end().blockers), [(Code::SealBroken, Some("host-2"))]);
    world
}

#[test]
fn a_dark_host_takes_part_in_the_rollback() {
    let mut world = opened_with_a_dark_host();
    world.flip(0);
    world.expect_all_serve(0, 3);
}

#[test]
fn a_rollback_that_is_given_up_lets_the_dark_host_open_what_it_waited_for() {
    let mut world = opened_with_a_dark_host();
    let k = world.propose(0).expect("a rollback is legal in OPENED");
    world.expect_until(|world| world.machines[1].record.last_k == k);
    assert!(is_closed(&world.machines[1].record.mode), "it has armed at CLOSED");
    world.abort().expect("it is not decided");
    assert!(is_opened(&world.coordinator.record.phase));
    world.rest();
    assert_eq!(world.machines[1].guard, None);
    world.machines[1].trees[1] = Tree::Good;
    world.report_deployed();
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_fleet_whose_last_host_measured_during_a_rollback_settles_when_that_is_given_up() {
    let mut world = World::settled();
    world.flip_until(1, is_opened);
    world.expect_until(|world| world.machines.iter().all(|machine| machine.guard.is_some()));
    world.propose(0).expect("a rollback is legal in OPENED");
    world.machines[0].trees[0] = Tree::Tampered;
    world.rest();
    world.expect_all_serve(1, 2);
    let end = world.last_end();
    assert_eq!((end.outcome, end.epoch), (Outcome::Flipped, Epoch(2)));
    assert!(end.dark_window.is_some(), "what was measured before the rollback is not forgotten");
}

#[test]
fn a_slow_check_for_a_former_offer_does_not_open_a_host_that_has_closed() {
    let mut world = opened_with_a_dark_host();
    world.machines[1].trees[1] = Tree::Good;
    world.report_deployed();
    let is_asked = |world: &World| !world.machines[1].work.is_empty();
    world.expect_until(is_asked);
    let check = world.machines[1].work.pop().expect("the seal is being checked");
    let k = world.propose(0).expect("a rollback is legal in OPENED");
    world.expect_until(|world| matches!(world.fates.get(&k), Some(super::super::world::Fate::Decided)));
    world.machines[1].work.push(check);
    world.rest();
    world.expect_all_serve(0, 3);
}

#[test]
fn a_guard_that_cannot_stop_is_asked_again_and_nothing_opens_before() {
    let mut world = World::settled();
    world.machines[2].closes_to_fail = 3;
    world.flip(1);
    assert!(world.machines[2].refusals.iter().all(|refusal| refusal.code() == Some(Code::StopFailed)));
    assert_eq!(world.machines[2].refusals.len(), 3);
    world.expect_all_serve(1, 2);
}

#[test]
fn a_late_attempt_to_close_that_fails_is_not_repeated_once_the_host_was_opened() {
    let mut world = World::settled();
    let k = world.flip_until(1, is_decided);
    world.say(0, ToHost::Close { k });
    world.say(0, ToHost::Close { k });
    let late = world.machines[0].guard_work.pop_back().expect("it is asked twice");
    world.expect_until(|world| matches!(world.machines[0].record.mode, Mode::Serve(_)));
    world.machines[0].guard_work.push_front(late);
    world.machines[0].closes_to_fail = 1;
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_dark_host_whose_promise_came_too_late_is_told_to_open_for_its_own_last_rollout() {
    let mut world = World::settled();
    world.machines[2].opens_to_fail = 1;
    world.flip(1);
    world.propose(0).expect("a rollback is legal in OPENED");
    world.expect_until(|world| is_armed(&world.machines[2].record.mode));
    assert!(is_arming(&world.coordinator.record.phase));
    world.abort().expect("it is not decided");
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_guard_that_cannot_start_leaves_its_host_dark_and_is_asked_again_after_a_deployment() {
    let mut world = World::settled();
    world.machines[2].opens_to_fail = 1;
    world.flip(1);
    assert_eq!(codes(&world.last_end().blockers), [(Code::StartFailed, Some("host-3"))]);
    assert!(is_opened(&world.coordinator.record.phase));
    world.report_deployed();
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn why_a_host_stayed_dark_is_no_answer_in_the_rollout_after() {
    for seed in 1..=16 {
        let mut world = World::running(3, seed);
        world.flip(0);
        world.machines[2].opens_to_fail = 1;
        world.flip(1);
        assert_eq!(world.last_end().outcome, Outcome::Dark);
        let k = world.flip(0);
        let ends = world.ends.iter().filter(|end| end.k == k).map(|end| end.outcome);
        assert_eq!(ends.collect::<Vec<_>>(), [Outcome::Flipped], "seed {seed}");
    }
}

#[test]
fn the_dark_window_is_bounded_and_measured_where_hosts_share_a_clock() {
    let mut world = World::running(3, 1);
    world.flip(0);
    let window = world.last_end().dark_window.expect("this leader saw it");
    assert_eq!(window.measured_ms, None, "clocks of different machines cannot be compared");
    assert!(window.spread_ms <= window.bound_ms);

    let mut world = World::new(3, 1);
    world.shared_boot = true;
    world.deploy_everywhere();
    world.start_all();
    world.rest();
    world.flip(0);
    let window = world.last_end().dark_window.expect("this leader saw it");
    let measured_ms = window.measured_ms.expect("the clock is shared");
    assert!(window.spread_ms <= measured_ms && measured_ms <= window.bound_ms, "{window:?}");
}

#[test]
fn a_leader_that_did_not_see_the_flip_states_no_dark_window() {
    let mut world = World::settled();
    world.flip_until(1, is_opened);
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    assert_eq!(world.last_end().outcome, Outcome::Flipped);
    assert_eq!(world.last_end().dark_window, None);
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
}

#[test]
fn a_fast_flip_settles_although_a_host_has_measured_before_the_last_has_flipped() {
    let mut world = World::settled();
    world.mode = FlipMode::Fast;
    world.machines[1].route.up = Delay { least_ms: 50, jitter_ms: 0 };
    let k = world.flip(1);
    assert!(is_decided(&world.coordinator.record.phase), "the instant is still to come");
    world.idle(INSTANT_MS_MAX);
    world.rest();
    let end = world.last_end();
    assert_eq!((end.k, end.outcome), (k, Outcome::Flipped));
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
    world.expect_all_serve(1, 2);
}
