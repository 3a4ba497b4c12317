//! Two leaders: one that was deposed still runs, and does not know.

use super::super::clock::Clock;
use super::super::link::Hold;
use super::super::machine::Pending;
use super::super::world::{Fate, World};
use super::{is_armed, is_arming};
use crate::fleet::Phase;

/// Hosts are armed for a rollout whose leader was deposed; one has not armed yet.
fn deposed_in_arming() -> World {
    let mut world = World::settled();
    world.machines[2].hold = Hold::Arming;
    world.flip_until(1, is_arming);
    world.expect_until(|world| is_armed(&world.machines[0].record.mode));
    world.depose(Clock::exact());
    assert!(world.coordinator.deposed.is_some());
    assert_eq!(world.coordinator.record.phase, Phase::Settled, "the new leader has given the rollout up");
    world
}

#[test]
fn a_deposed_leader_grants_nothing_and_stops_when_it_asks_whether_it_leads() {
    let mut world = deposed_in_arming();
    let deadline = |world: &World| *world.machines[0].lease.hold();
    let before = deadline(&world);
    let renewal = world.roster_in_force().policy().timing.renewal().as_millis();
    world.pass_time(world.now + u64::try_from(renewal).expect("short"));
    world.advance(0, Pending::Due);
    while world.coordinator.deposed.is_some() {
        world.advance(0, Pending::Up);
    }
    assert_eq!(deadline(&world), before);
    world.machines[2].hold = Hold::Nothing;
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn a_deposed_leader_cannot_decide() {
    let mut world = deposed_in_arming();
    let k = world.coordinator.record.last_k;
    // Its last host arms, and it would decide: the store refuses what it writes.
    world.machines[2].hold = Hold::Nothing;
    world.expect_until(|world| world.coordinator.deposed.is_none());
    assert_eq!(world.fates.get(&k), Some(&Fate::Aborted));
    world.rest();
    world.expect_all_serve(0, 1);
    world.flip(1);
    world.expect_all_serve(1, 2);
}

#[test]
fn a_deposed_leader_lets_no_host_in() {
    let mut world = World::settled();
    world.depose(Clock::exact());
    let sessions = world.coordinator.sessions.clone();
    let deposed = world.coordinator.deposed.as_ref().map(|it| it.fleet.record().leadership);
    world.cut(0);
    // By the random choice of a leader it finds the deposed one sooner or later.
    while world.machines[0].link.as_ref().map(|link| link.leadership) != deposed {
        world.cut(0);
        assert!(world.connect(0));
    }
    world.advance(0, Pending::Up);
    assert!(world.coordinator.deposed.is_none());
    assert_eq!(world.coordinator.sessions, sessions);
    world.rest();
    world.expect_all_serve(0, 1);
}
