//! A host believes nothing that it can check: documents that do not fit together, or not this host, are refused in
//! PREPARE, while service is not touched.

use muster_model::{
    Attestation, Code, Commitment, Digest, FleetName, FromHost, MerkleTree, Order, Purpose, Refusal, Release,
    RolloutId, RosterRevision, SessionId, ToHost, UnixTime, Verified, Withdrawal,
};

use super::super::link::Hold;
use super::super::machine::Work;
use super::super::papers::{SignedRoster, host_name, signed_roster};
use super::super::world::World;
use super::{is_closed, is_decided};
use crate::fleet::{self, Phase};
use crate::host::{Event, Evidence, Mode};

/// Proposes a flip, shows host 2 other evidence than the coordinator's, and returns why it refuses.
#[track_caller]
fn shown(mut world: World, to: usize, change: impl FnOnce(&mut Evidence)) -> Option<Code> {
    let release = world.position_of(world.coordinator.record.serving.expect("the fleet serves"));
    let epoch = world.coordinator.record.epoch.0;
    world.propose(to).expect("the proposal is in order");
    let is_verify = |work: &Work| matches!(work, Work::Verify { .. });
    world.expect_until(|world| world.machines[1].work.iter().any(|(work, _)| is_verify(work)));
    let at = world.machines[1].work.iter().position(|(work, _)| is_verify(work)).expect("just seen");
    let (work, _) = world.machines[1].work.swap_remove(at);
    let Event::Verified { k, outcome: Ok(mut evidence) } = world.finish(1, work) else {
        panic!("the evidence is good before it is changed");
    };
    change(&mut evidence);
    world.host_event(1, Event::Verified { k, outcome: Ok(evidence) });
    world.rest();
    assert_eq!((&world.coordinator.record.phase, &world.violation), (&Phase::Settled, &None));
    for member in world.roster_in_force().hosts() {
        world.expect_serves(&member.name, release, epoch);
    }
    world.refusal_of(1)
}

fn order(change: impl FnOnce(&mut Order)) -> Option<Code> {
    shown(World::settled(), 1, |evidence| edit(&mut evidence.order, change))
}

fn release(change: impl FnOnce(&mut Release)) -> Option<Code> {
    shown(World::settled(), 1, |evidence| edit(&mut evidence.release, change))
}

/// Changes the attestation of the host at `index`.
fn attestation(index: usize, change: impl FnOnce(&mut Attestation)) -> Option<Code> {
    shown(World::settled(), 1, |evidence| edit(&mut evidence.attestations[index], change))
}

fn edit<T: Clone>(document: &mut Verified<T>, change: impl FnOnce(&mut T)) {
    let mut changed = T::clone(document);
    change(&mut changed);
    *document = Verified::assert(changed);
}

/// Puts another roster in its place, with an order that is bound to it.
fn bind(evidence: &mut Evidence, signed: &SignedRoster) {
    let in_force = fleet::roster_ref(&signed.roster, signed.digest);
    edit(&mut evidence.order, |order| {
        (order.roster, order.roster_revision) = (in_force.digest, in_force.revision);
        order.hosts = in_force.hosts;
    });
    evidence.roster = Verified::clone(&signed.roster);
    evidence.roster_digest = signed.digest;
}

#[test]
fn the_order_must_be_for_this_rollout_now() {
    let other = Digest::of(b"other");
    assert_eq!(order(|it| it.counter = RolloutId(9)), Some(Code::OrderInvalid));
    assert_eq!(order(|it| it.to = other), Some(Code::OrderInvalid));
    assert_eq!(order(|it| it.from = None), Some(Code::OrderStale));
    assert_eq!(order(|it| it.expires_unix_ms = UnixTime(1)), Some(Code::OrderExpired));
    assert_eq!(order(|it| it.not_before_unix_ms = UnixTime(u64::MAX)), Some(Code::OrderExpired));
    assert_eq!(order(|it| it.roster = other), Some(Code::RosterChanged));
    assert_eq!(release(|it| it.manifest = other), Some(Code::OrderInvalid));
    assert_eq!(release(|it| it.expires_unix_ms = Some(UnixTime(1))), Some(Code::ReleaseExpired));
}

#[test]
fn the_roster_must_be_the_orders_and_list_this_host() {
    let fewer = signed_roster(1, 1);
    let unbound = shown(World::settled(), 1, |evidence| {
        evidence.roster = Verified::clone(&fewer.roster);
        evidence.roster_digest = fewer.digest;
    });
    assert_eq!(unbound, Some(Code::RosterChanged));
    let bound = shown(World::settled(), 1, |evidence| bind(evidence, &fewer));
    assert_eq!(bound, Some(Code::HostNotInRoster));
}

#[test]
fn the_roster_must_not_be_older_than_one_that_was_seen() {
    let mut world = World::settled();
    world.change_roster(3).expect("the fleet is settled");
    world.flip(1);
    let older = signed_roster(1, 3);
    assert_eq!(shown(world, 2, |evidence| bind(evidence, &older)), Some(Code::RosterChanged));
}

#[test]
fn each_host_that_is_set_aside_must_have_given_its_own_word_since_then() {
    let parked = || {
        let mut world = World::settled();
        world.park(3).expect("the fleet is settled");
        world.rest();
        world
    };
    let missing = shown(parked(), 1, |evidence| drop(evidence.withdrawals.pop()));
    assert_eq!(missing, Some(Code::NotWithdrawn));
    let changes: [fn(&mut Withdrawal); 4] = [
        |it| it.roster_revision = RosterRevision(1),
        |it| it.roster_revision = RosterRevision(3),
        |it| it.host = host_name(2),
        |it| it.fleet = FleetName::new("other").expect("a name"),
    ];
    for change in changes {
        let refused = shown(parked(), 1, |evidence| edit(&mut evidence.withdrawals[0], change));
        assert_eq!(refused, Some(Code::NotWithdrawn));
    }
}

#[test]
fn the_attestations_must_be_n_and_the_same() {
    let missing = shown(World::settled(), 1, |evidence| {
        evidence.attestations.pop();
    });
    assert_eq!(missing, Some(Code::BadAttestation));
    let swapped = shown(World::settled(), 1, |evidence| evidence.attestations.swap(0, 2));
    assert_eq!(swapped, Some(Code::StaleAttestation));
    let other = Digest::of(b"other");
    assert_eq!(attestation(0, |it| it.purpose = Purpose::Check), Some(Code::StaleAttestation));
    assert_eq!(attestation(0, |it| it.challenge = other), Some(Code::StaleAttestation));
    assert_eq!(attestation(2, |it| it.compared.measured = other), Some(Code::Mismatch));
    assert_eq!(attestation(2, |it| it.compared.files += 1), Some(Code::Mismatch));
    assert_eq!(attestation(2, |it| it.compared.uniform = Some(other)), Some(Code::Mismatch));
    let same_but_other = |it: &mut Attestation| {
        it.compared.manifest = other;
        it.compared.measured = other;
    };
    assert_eq!(attestation(0, same_but_other), Some(Code::Mismatch));
    // All alike is not enough: it must be the release.
    let alike = shown(World::settled(), 1, |evidence| {
        evidence.attestations.iter_mut().for_each(|it| edit(it, |it| it.compared.measured = other));
    });
    assert_eq!(alike, Some(Code::Mismatch));
    let another = shown(World::settled(), 1, |evidence| {
        evidence.attestations.iter_mut().for_each(|it| edit(it, same_but_other));
    });
    assert_eq!(another, Some(Code::Mismatch));
}

#[test]
fn the_evidence_must_contain_the_hosts_own_commitment() {
    let stranger = |it: &mut Attestation| {
        let Purpose::Rollout { k, .. } = it.purpose else { panic!("it is for a rollout") };
        it.purpose = Purpose::Rollout { k, commitment: Commitment(Digest::of(b"other")) };
    };
    assert_eq!(attestation(1, stranger), Some(Code::BadAttestation));
}

#[test]
fn documents_that_do_not_verify_give_the_rollout_up_and_name_the_host() {
    let mut world = World::settled();
    world.propose(1).expect("the proposal is in order");
    let is_verify = |work: &Work| matches!(work, Work::Verify { .. });
    world.expect_until(|world| world.machines[1].work.iter().any(|(work, _)| is_verify(work)));
    let refusal = Refusal::of(Code::SignatureInvalid, "two approvals are missing");
    world.host_event(1, Event::Verified { k: RolloutId(2), outcome: Err(refusal) });
    world.rest();
    assert_eq!(super::codes(&world.last_end().blockers), [(Code::SignatureInvalid, Some("host-2"))]);
    world.expect_all_serve(0, 1);
}

#[test]
fn a_host_attests_only_where_its_own_nonce_is_in_the_root() {
    let mut world = World::settled();
    let k = world.propose(1).expect("the proposal is in order");
    world.expect_until(|world| world.machines[1].link.as_ref().is_some_and(|link| !link.up.is_empty()));
    let tree = MerkleTree::new([&b"another day"[..], &b"another host"[..]]);
    let proof = tree.proof(1).expect("the tree has two leaves");
    let to = world.releases[1].manifest;
    world.say(1, ToHost::Attest { k, to, nonce_root: tree.root(), proof });
    assert_eq!(world.refusal_of(1), Some(Code::StaleAttestation));
    assert_eq!(world.machines[1].record.committed, None);
}

/// The closing secrets of hosts that are armed.
fn secret_of(world: &World, index: usize) -> muster_model::Secret {
    match &world.machines[index].record.mode {
        Mode::Armed { next, .. } | Mode::Closed { next, .. } => next.secret,
        Mode::Serve(_) => panic!("the host is armed"),
    }
}

#[test]
fn a_closing_secret_that_was_not_committed_to_does_not_count() {
    let mut world = World::settled();
    let k = world.flip_until(1, is_decided);
    for index in 1..3 {
        world.machines[index].hold = Hold::Up;
    }
    world.expect_until(|world| world.coordinator.fleet.as_ref().is_some_and(|it| it.acknowledged() == 1));
    for index in 1..3 {
        let host = world.machines[index].name.clone();
        let session = world.machines[index].session().expect("it is connected");
        // Host 1 has shown its own, the others show host 1's as well.
        let secret = secret_of(&world, 0);
        let at = muster_model::BootTime(world.now);
        let message = FromHost::Closed { k, secret, at };
        world.coordinate(fleet::Event::Message { host, session, message });
    }
    assert!(is_decided(&world.coordinator.record.phase));
    let views = world.coordinator.fleet.as_ref().expect("it is up").hosts();
    assert!(views[0].blockers.is_empty());
    assert_eq!(views[1].blockers[0].code, Code::ClosingUnproven);
    for index in 1..3 {
        world.machines[index].hold = Hold::Nothing;
    }
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn what_comes_over_another_session_does_not_count() {
    let mut world = World::settled();
    let k = world.flip_until(1, is_decided);
    for index in 0..3 {
        let host = world.machines[index].name.clone();
        let (secret, at) = (secret_of(&world, index), muster_model::BootTime(world.now));
        let message = FromHost::Closed { k, secret, at };
        world.coordinate(fleet::Event::Message { host, session: SessionId(u64::MAX), message });
    }
    assert!(matches!(world.coordinator.record.phase, Phase::Decided(_)));
    assert!(!world.machines.iter().any(|machine| is_closed(&machine.record.mode)));
    world.rest();
    world.expect_all_serve(1, 2);
}
