//! The protocol's table of recovery: who dies when, and what follows.

use std::time::Duration;

use muster_guard::{FenceCause, LeaseState};
use muster_model::{BootTime, Code, HostMode};

use super::super::ledger::Survives;
use super::super::link::Hold;
use super::super::machine::{Driver, Pending};
use super::super::world::World;
use super::{codes, is_armed, is_arming, is_closed, is_decided, is_opened};
use crate::fleet::{Outcome, Phase};
use crate::host::{HostRecord, Mode};

/// The coordinator dies in `phase` of a flip from release 0 to 1, and another leader takes over.
fn coordinator_dies_in(phase: fn(&Phase) -> bool) -> World {
    let mut world = World::settled();
    world.flip_until(1, phase);
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    world
}

#[test]
fn coordinator_dies_in_preparing_and_service_is_not_touched() {
    let world = coordinator_dies_in(|phase| matches!(phase, Phase::Preparing(_)));
    assert_eq!(codes(&world.last_end().blockers), [(Code::CoordinatorRestarted, None)]);
    world.expect_all_serve(0, 1);
}

#[test]
fn coordinator_dies_in_arming_and_the_next_leader_gives_up() {
    let world = coordinator_dies_in(is_arming);
    assert_eq!(codes(&world.last_end().blockers), [(Code::CoordinatorRestarted, None)]);
    world.expect_all_serve(0, 1);
}

#[test]
fn coordinator_is_away_in_arming_for_longer_than_the_lease_and_hosts_fence() {
    let mut world = World::settled();
    world.flip_until(1, is_arming);
    world.expect_until(|world| world.machines.iter().all(|machine| is_armed(&machine.record.mode)));
    world.crash_coordinator();
    let timing = world.roster_in_force().policy().timing;
    world.pass_time(world.now + 2 * (timing.lease_ms + timing.fence_ms));
    assert!(world.machines.iter().all(|machine| machine.guard.is_none()), "none is left serving");
    world.start_coordinator();
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn coordinator_dies_in_decided_and_the_next_leader_goes_forward() {
    coordinator_dies_in(is_decided).expect_all_serve(1, 2);
}

#[test]
fn coordinator_dies_in_opened_and_the_next_leader_opens_again() {
    coordinator_dies_in(is_opened).expect_all_serve(1, 2);
}

#[test]
fn coordinator_dies_while_settled_and_service_goes_on() {
    let mut world = World::settled();
    world.crash_coordinator();
    world.rest();
    for machine in &world.machines {
        world.expect_serves(&machine.name, 0, 1);
    }
    world.start_coordinator();
    world.rest();
    world.expect_all_serve(0, 1);
}

/// Runs a flip to release 1 until host 2 is in `mode`.
fn flip_until_host_2(mode: fn(&Mode) -> bool) -> World {
    let mut world = World::settled();
    world.propose(1).expect("the proposal is in order");
    world.expect_until(|world| mode(&world.machines[1].record.mode));
    world
}

#[test]
fn agent_dies_in_serve_and_service_goes_on() {
    let mut world = World::settled();
    world.crash_agent(1);
    world.rest();
    world.expect_serves(&world.machines[1].name, 0, 1);
    world.start_agent(1);
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn agent_dies_in_armed_and_the_journal_restores_the_mode() {
    let mut world = flip_until_host_2(is_armed);
    assert!(is_arming(&world.coordinator.record.phase));
    world.cut(1);
    world.crash_agent(1);
    world.start_agent(1);
    let agent = world.machines[1].agent.as_ref().expect("it was started");
    assert!(matches!(agent.record().standing().mode, HostMode::Armed(..)), "never back to SERVE by itself");
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn agent_dies_after_it_has_said_that_it_is_armed_and_the_flip_goes_on() {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    assert!(is_armed(&world.machines[1].record.mode));
    world.crash_agent(1);
    world.start_agent(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn acknowledgement_is_lost_after_it_was_persisted_and_is_given_again() {
    for mode in [is_armed, is_closed] {
        let mut world = flip_until_host_2(mode);
        let (k, closed) = (world.machines[1].record.last_k, is_closed(&world.machines[1].record.mode));
        // What the host has said since does not arrive; it is asked again over the next session.
        world.cut(1);
        world.rest();
        // Before the decision the loss of the session gives the rollout up; after it there is only forward.
        if closed {
            world.expect_all_serve(1, 2);
        } else {
            world.expect_all_serve(0, 1);
        }
        assert_eq!(world.machines[1].record.last_k, k);
    }
}

#[test]
fn guard_dies_while_settled_and_service_goes_on_but_nothing_is_armed() {
    let mut world = World::settled();
    world.guard_dies(1);
    world.rest();
    world.expect_serves(&world.machines[1].name, 0, 1);
    world.propose(1).expect("the proposal is in order");
    world.rest();
    assert_eq!(world.last_end().outcome, Outcome::Unchanged);
    world.expect_serves(&world.machines[1].name, 0, 1);
    world.guard_returns(1);
    world.rest();
    world.flip(1);
    world.expect_all_serve(1, 2);
}

#[test]
fn agent_dies_in_closed_and_acknowledges_again() {
    let mut world = flip_until_host_2(is_closed);
    world.crash_agent(1);
    world.start_agent(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

/// Host 2 is armed for a rollout that was decided, hears nothing any more, and then its guard is killed.
fn guard_dies_while_armed(driver: Driver) -> World {
    let mut world = World::settled();
    world.machines[1].driver = driver;
    world.flip_until(1, is_decided);
    assert!(is_armed(&world.machines[1].record.mode));
    world.machines[1].hold = Hold::Network;
    world.guard_dies(1);
    world
}

fn deadline_of_host_2(world: &World) -> Option<u64> {
    match world.machines[1].lease.hold() {
        LeaseState::Armed(armed) => Some(world.machines[1].clock.when(armed.deadline_boot_ms)),
        LeaseState::Free | LeaseState::Decided(_) | LeaseState::Fenced(_) => None,
    }
}

#[test]
fn guard_dies_while_armed_and_takes_up_the_deadline_over_its_link() {
    let mut world = guard_dies_while_armed(Driver::Link);
    let deadline = deadline_of_host_2(&world);
    assert!(world.machines[1].guard.is_some(), "a link goes on without a guard");
    world.pass_time(world.machines[1].back_at.expect("its unit starts it again"));
    assert_eq!(deadline_of_host_2(&world), deadline);
    world.pass_time(deadline.expect("it is armed"));
    assert!(world.machines[1].guard.is_some(), "a fence takes its time");
    world.pass_time(world.now + world.machines[1].fence_ms);
    assert!(world.machines[1].guard.is_none());
    world.machines[1].hold = Hold::Nothing;
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn guard_dies_while_armed_and_fences_at_once_when_it_is_back_after_the_deadline() {
    let mut world = guard_dies_while_armed(Driver::Link);
    let late = deadline_of_host_2(&world).expect("it is armed") + 20;
    world.machines[1].back_at = Some(late);
    world.pass_time(late - 1);
    assert!(world.machines[1].guard.is_some());
    world.pass_time(late);
    assert!(world.machines[1].guard.is_none());
    let LeaseState::Fenced(fence) = world.machines[1].lease.hold() else { panic!("it has latched") };
    assert_eq!(fence.cause, FenceCause::DeadlinePassed);
    world.machines[1].hold = Hold::Nothing;
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn guard_dies_while_armed_and_its_service_with_it() {
    let mut world = guard_dies_while_armed(Driver::Supervise);
    assert!(world.machines[1].guard.is_none());
    world.guard_returns(1);
    assert!(deadline_of_host_2(&world).is_some(), "what is permitted is under the deadline still");
    world.machines[1].hold = Hold::Nothing;
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn guard_dies_while_settled_and_what_it_served_goes_on_or_is_admitted_again() {
    for driver in [Driver::Link, Driver::Supervise] {
        let mut world = World::settled();
        world.machines[1].driver = driver;
        world.guard_dies(1);
        assert_eq!(world.machines[1].guard.is_some(), driver == Driver::Link);
        world.rest();
        assert_eq!(world.machines[1].back_at, None, "nothing is urgent");
        world.guard_returns(1);
        world.rest();
        world.expect_all_serve(0, 1);
    }
}

#[test]
fn host_loses_power_and_the_last_word_on_its_lease_and_is_fenced_all_the_same() {
    let mut causes = Vec::new();
    for seed in 1..=32 {
        let mut world = World::running(3, seed);
        world.flip(0);
        world.flip_until(1, is_decided);
        let (machine, now) = (&mut world.machines[1], BootTime(world.now + 20));
        let k = machine.record.last_k;
        machine.lease.renew(now, k, now.after(Duration::from_millis(400))).expect("it is armed");
        machine.ledger.write(&machine.lease.record(&machine.boot_id(false)), Survives::Process);
        world.reboot(1);
        let LeaseState::Fenced(fence) = *world.machines[1].lease.hold() else { panic!("it was armed") };
        causes.push(fence.cause);
        assert_eq!(world.machines[1].guard, None);
        world.start_agent(1);
        world.rest();
        world.expect_all_serve(1, 2);
    }
    assert!(causes.contains(&FenceCause::Rebooted) && causes.contains(&FenceCause::RecordLost));
}

#[test]
fn host_reboots_in_serve_and_is_dark_until_it_is_admitted() {
    let mut world = World::settled();
    world.reboot(1);
    world.start_agent(1);
    assert_eq!(world.machines[1].guard, None);
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn host_reboots_in_armed_before_the_decision_and_is_admitted_after_the_abort() {
    let mut world = flip_until_host_2(is_armed);
    assert!(is_arming(&world.coordinator.record.phase));
    world.cut(1);
    world.reboot(1);
    world.start_agent(1);
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn host_reboots_in_armed_after_the_decision_and_the_flip_waits_for_it() {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    assert!(is_armed(&world.machines[1].record.mode));
    world.reboot(1);
    world.rest();
    assert!(is_decided(&world.coordinator.record.phase), "nothing opens early");
    assert!(world.machines.iter().all(|machine| machine.guard.is_none()));
    world.start_agent(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn host_reboots_in_closed_and_opens_when_it_returns() {
    let mut world = flip_until_host_2(is_closed);
    world.reboot(1);
    world.start_agent(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn host_that_is_away_while_the_others_open_is_told_when_it_returns() {
    let mut world = World::settled();
    world.flip_until(1, is_opened);
    world.reboot(1);
    world.rest();
    assert!(is_opened(&world.coordinator.record.phase));
    assert_eq!(world.machines[1].guard, None);
    world.start_agent(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn machine_that_is_made_anew_while_the_others_open_is_readmitted_and_the_fleet_settles() {
    let mut world = World::settled();
    world.flip_until(1, is_opened);
    world.reboot(1);
    let (fleet, host) = (world.machines[1].record.fleet.clone(), world.machines[1].record.host.clone());
    let journal = world.machines[1].journal;
    world.machines[1].install(HostRecord::first(fleet, host.clone()), journal);
    world.readmit(&host);
    world.start_agent(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn service_that_ends_by_itself_is_admitted_again() {
    let mut world = World::settled();
    world.end_service(2);
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn service_that_ends_between_join_and_joined_is_admitted_again() {
    let mut world = World::settled();
    world.cut(2);
    assert!(world.connect(2));
    world.end_service(2);
    world.advance(2, Pending::Guard);
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn first_join_whose_answer_was_lost_is_repeated_without_a_token() {
    let mut world = World::new(2, 1);
    world.deploy_everywhere();
    world.start_all();
    world.expect_until(|world| world.coordinator.sessions.len() == 2);
    assert!(world.machines.iter().any(|machine| machine.record.token.is_none()));
    world.cut(0);
    world.cut(1);
    world.rest();
    world.flip(0);
    world.expect_all_serve(0, 1);
}
