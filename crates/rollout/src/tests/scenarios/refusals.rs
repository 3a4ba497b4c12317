//! What coordinator and hosts refuse, each with its code.

use muster_model::{
    Closure, Code, Digest, Epoch, Nonce, OnFailure, Order, RolloutId, RosterRevision, Secret, Secrets,
    ToHost, UnixTime,
};

use super::super::machine::Pending;
use super::super::world::World;
use super::{codes, is_arming, is_closed, is_decided};
use crate::host::{Event, GuardState, Halt, Mode};

#[test]
fn a_second_proposal_is_told_which_rollout_is_under_way() {
    let mut world = World::settled();
    world.propose(1).expect("the first is in order");
    let refusal = world.propose(2).expect_err("one at a time");
    assert_eq!(refusal.code(), Some(Code::Busy));
    assert!(refusal.to_string().contains("rollout 2"), "{refusal}");
    world.rest();
    world.expect_all_serve(1, 2);
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Order)) -> Option<Code> {
    let mut world = World::settled();
    let proposal = world.proposal(1, change);
    let refusal = world.propose_this(&proposal).expect_err("the order is not in order");
    world.rest();
    world.expect_all_serve(0, 1);
    refusal.code()
}

#[test]
fn an_order_must_say_exactly_what_is_true() {
    assert_eq!(refused(|order| order.from = Some(Digest::of(b"other"))), Some(Code::OrderStale));
    assert_eq!(refused(|order| order.from = None), Some(Code::OrderStale));
    assert_eq!(refused(|order| order.expires_unix_ms = UnixTime(1)), Some(Code::OrderExpired));
    assert_eq!(refused(|order| order.not_before_unix_ms = UnixTime(u64::MAX)), Some(Code::OrderExpired));
    assert_eq!(refused(|order| order.roster_revision = RosterRevision(7)), Some(Code::RosterChanged));
    assert_eq!(refused(|order| order.roster = Digest::of(b"other")), Some(Code::RosterChanged));
    assert_eq!(refused(|order| order.hosts = 2), Some(Code::RosterChanged));
    // One that rolls back by itself comes with the signed order to do so.
    assert_eq!(refused(|order| order.on_failure = OnFailure::Rollback), Some(Code::OrderInvalid));
    assert_eq!(refused(|order| order.counter = RolloutId(1)), Some(Code::Superseded));
    assert_eq!(refused(|order| order.counter = RolloutId(9)), Some(Code::Superseded));
}

#[test]
fn a_release_that_is_served_already_is_refused() {
    let mut world = World::settled();
    let proposal = world.proposal(0, |_| {});
    let refusal = world.propose_this(&proposal).expect_err("it is served");
    assert_eq!(refusal.code(), Some(Code::AlreadyServing));
}

#[test]
fn a_host_whose_guard_is_silent_does_not_arm() {
    let mut world = World::settled();
    let k = world.flip_until(1, is_arming);
    world.host_event(
        1,
        Event::Guard { state: GuardState::Unknown, since: None, halt: Halt::Running, refusal: None },
    );
    world.say(1, ToHost::Arm { k, instant: None });
    assert_eq!(world.refusal_of(1), Some(Code::GuardFailed));
    world.rest();
    assert_eq!(codes(&world.last_end().blockers), [(Code::GuardFailed, Some("host-2"))]);
    world.expect_all_serve(0, 1);
}

#[test]
fn who_is_waited_for_after_the_decision_is_named() {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    let fleet = world.coordinator.fleet.as_ref().expect("it leads");
    let waiting: Vec<_> = fleet.hosts().into_iter().flat_map(|host| host.blockers).collect();
    assert_eq!(codes(&waiting).iter().filter(|(code, _)| *code == Code::HostSilent).count(), 3);
    world.rest();
    let fleet = world.coordinator.fleet.as_ref().expect("it leads");
    assert!(fleet.hosts().iter().all(|host| host.blockers.is_empty()));
}

/// All hosts have closed for release 1, and the coordinator has not heard of host 1. With the N secrets.
fn all_closed() -> (World, Vec<Secret>) {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    // Host 1 is the last to say so.
    while !world.machines.iter().all(|machine| is_closed(&machine.record.mode)) {
        let mut pending = world.pending();
        pending.retain(|(index, what)| (*index, *what) != (0, Pending::Up));
        let (index, what) = pending[0];
        world.advance(index, what);
    }
    let secret = |mode: &Mode| match mode {
        Mode::Closed { next, .. } => next.secret,
        Mode::Serve(_) | Mode::Armed { .. } => panic!("every host is closed"),
    };
    let secrets = world.machines.iter().map(|machine| secret(&machine.record.mode)).collect();
    (world, secrets)
}

fn open(world: &World, secrets: Vec<Secret>) -> ToHost {
    let release = world.releases[1].manifest;
    ToHost::Open {
        k: RolloutId(2),
        epoch: Epoch(2),
        release,
        secrets: secrets.into_iter().map(Closure::Revealed).collect(),
    }
}

#[test]
fn a_host_opens_only_with_all_closing_secrets_in_order() {
    let (mut world, good) = all_closed();
    let wrong = Secret::from_bytes([0; 32]);
    let forged = [
        vec![],
        good[..2].to_vec(),
        vec![good[0], good[1], wrong],
        vec![good[1], good[0], good[2]],
        vec![good[0], good[0], good[0]],
        [good.clone(), vec![wrong]].concat(),
    ];
    for secrets in forged {
        world.say(1, open(&world, secrets));
        assert_eq!(world.refusal_of(1), Some(Code::ClosingUnproven));
        assert!(is_closed(&world.machines[1].record.mode));
        world.machines[1].refusals.clear();
    }
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_host_opens_only_what_it_waits_for() {
    let (mut world, secrets) = all_closed();
    let secrets: Secrets = secrets.into_iter().map(Closure::Revealed).collect();
    let release = world.releases[1].manifest;
    let old = ToHost::Open { k: RolloutId(1), epoch: Epoch(2), release, secrets: secrets.clone() };
    world.say(1, old);
    assert_eq!(world.refusal_of(1), Some(Code::StaleRollout));
    let other = ToHost::Open {
        k: RolloutId(2),
        epoch: Epoch(2),
        release: world.releases[2].manifest,
        secrets: secrets.clone(),
    };
    world.say(1, other);
    assert_eq!(world.refusal_of(1), Some(Code::StaleEpoch));
    let former =
        ToHost::Open { k: RolloutId(2), epoch: Epoch(1), release: world.releases[0].manifest, secrets };
    world.say(1, former);
    assert_eq!(world.refusal_of(1), Some(Code::StaleEpoch));
    assert!(is_closed(&world.machines[1].record.mode));
}

#[test]
fn a_host_that_is_armed_or_serves_is_not_opened_for_something_else() {
    let mut world = World::settled();
    let secrets: Secrets = [Closure::Revealed(Secret::from_bytes([1; 32])); 3].into_iter().collect();
    let release = world.releases[1].manifest;
    world.say(0, ToHost::Open { k: RolloutId(1), epoch: Epoch(2), release, secrets: secrets.clone() });
    assert_eq!(world.refusal_of(0), Some(Code::WrongState));
    world.flip_until(1, is_decided);
    world.say(0, ToHost::Open { k: RolloutId(2), epoch: Epoch(2), release, secrets });
    assert_eq!(world.refusal_of(0), Some(Code::WrongState));
}

#[test]
fn a_host_that_has_closed_for_good_does_not_go_back() {
    let (mut world, _) = all_closed();
    world.say(1, ToHost::Disarm { k: RolloutId(2) });
    assert_eq!(world.refusal_of(1), Some(Code::Decided));
    assert!(is_closed(&world.machines[1].record.mode));
    let (epoch, release) = (Epoch(1), world.releases[0].manifest);
    let nonce = world.machines[1].nonce.expect("it has joined");
    world.say(1, ToHost::Admit { epoch, release, nonce });
    assert_eq!(world.refusal_of(1), Some(Code::StaleEpoch));
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn an_admission_of_another_session_is_refused() {
    let mut world = World::settled();
    let former = world.machines[1].nonce.expect("it has joined");
    world.reboot(1);
    world.start_agent(1);
    world.expect_until(|world| world.machines[1].session().is_some());
    world.advance(1, Pending::Down);
    let (epoch, release) = (Epoch(1), world.releases[0].manifest);
    for nonce in [former, Nonce::from_bytes([5; 32])] {
        world.say(1, ToHost::Admit { epoch, release, nonce });
        assert_eq!(world.refusal_of(1), Some(Code::StaleSession));
    }
    assert_eq!(world.machines[1].guard, None);
}

#[test]
fn a_disarm_for_another_rollout_does_not_disarm() {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    world.say(1, ToHost::Disarm { k: RolloutId(1) });
    assert_eq!(world.refusal_of(1), Some(Code::StaleRollout));
    assert!(matches!(world.machines[1].record.mode, Mode::Armed { k: RolloutId(2), .. }));
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_rollout_that_is_over_cannot_be_armed_again() {
    let mut world = World::settled();
    world.say(1, ToHost::Arm { k: RolloutId(1), instant: None });
    assert_eq!(world.refusal_of(1), Some(Code::StaleRollout));
    world.say(1, ToHost::Arm { k: RolloutId(2), instant: None });
    assert_eq!(world.refusal_of(1), Some(Code::WrongState), "nothing was prepared");
    world.say(1, ToHost::Close { k: RolloutId(1) });
    assert_eq!(world.refusal_of(1), Some(Code::WrongState));
    world.expect_all_serve(0, 1);
}

#[test]
fn a_leader_that_was_deposed_is_not_obeyed() {
    let mut world = World::settled();
    let former = world.coordinator.record.leadership;
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    world.host_event(
        1,
        crate::host::Event::Message { leadership: former, message: ToHost::Close { k: RolloutId(1) } },
    );
    assert_eq!(world.refusal_of(1), Some(Code::StaleTerm));
    world.rest();
    world.expect_all_serve(0, 1);
}
