//! Hosts that come, go, exist twice or forget.

use muster_model::{Code, JoinReport, Nonce, Token};

use super::super::machine::Pending;
use super::super::papers::host_name;
use super::super::world::World;
use super::{codes, is_decided, is_opened};
use crate::fleet::Event;

pub(super) fn report(world: &World, index: usize, token: Option<Token>) -> JoinReport {
    let machine = &world.machines[index];
    JoinReport {
        token,
        boot_id: world.coordinator.sessions[&machine.name].boot_id.clone(),
        agent_version: "0.1.0".to_owned(),
        protocol: crate::fleet::PROTOCOL,
        nonce: Nonce::from_bytes([9; 32]),
        journal: machine.journal,
        standing: machine.record.standing(),
        serving: muster_model::ServingReport::Dark,
    }
}

/// A machine that says it is host `index`.
pub(super) fn join(world: &mut World, index: usize, report: JoinReport) -> Option<Code> {
    let before = world.refused.len();
    let session = world.next_session();
    let next = Token::from_bytes(world.random.bytes());
    world.coordinate(Event::Joining { host: host_name(index + 1), session, report, next });
    world.refused.get(before).and_then(|(_, refusal)| refusal.code())
}

#[test]
fn a_spent_token_quarantines_the_identity_until_an_operator_settles_it() {
    let mut world = World::settled();
    let spent = world.machines[1].record.token;
    world.cut(1);
    world.rest();
    let clone = report(&world, 1, spent);
    assert_eq!(join(&mut world, 1, clone), Some(Code::DuplicateHost));
    let refusal = world.propose(1).expect_err("a rollout needs every host to be one machine");
    assert_eq!(codes(&refusal.blockers), [(Code::DuplicateHost, Some("host-2"))]);
    // The quarantine outlives the leader, and the right machine does not get out of it by itself.
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    world.connect(1);
    world.rest();
    assert_eq!(world.propose(1).expect_err("still quarantined").code(), Some(Code::DuplicateHost));
    world.readmit(&host_name(2));
    world.rest();
    world.flip(1);
    world.expect_all_serve(1, 2);
}

#[test]
fn a_join_that_is_overtaken_by_a_newer_one_is_late_and_no_second_machine() {
    let mut world = World::settled();
    let token = world.machines[1].record.token;
    let late = report(&world, 1, token);
    let session = world.next_session();
    world.cut(1);
    world.rest();
    let next = Token::from_bytes([3; 32]);
    world.coordinate(Event::Joining { host: host_name(2), session, report: late, next });
    assert_eq!(world.refused.last().and_then(|(_, refusal)| refusal.code()), Some(Code::StaleSession));
    world.flip(1);
    world.expect_all_serve(1, 2);
}

#[test]
fn a_disk_that_was_rolled_back_is_refused() {
    let mut world = World::settled();
    let mut older = report(&world, 1, None);
    world.cut(1);
    world.rest();
    world.cut(1);
    world.rest();
    world.cut(1);
    // Even with the right token: the journal is older than at the last join.
    older.token = world.machines[1].record.token;
    assert_eq!(join(&mut world, 1, older), Some(Code::RolledBackDisk));
    // A journal of the right length with another history is no better.
    let mut other = report(&world, 1, world.machines[1].record.token);
    other.journal.seq = world.coordinator.sessions[&host_name(2)].journal.seq;
    other.journal.hash = muster_model::Digest::of(b"another history");
    assert_eq!(join(&mut world, 1, other), Some(Code::RolledBackDisk));
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn a_lost_journal_is_refused_until_an_operator_settles_it() {
    let mut world = World::settled();
    world.cut(1);
    let mut lost = report(&world, 1, world.machines[1].record.token);
    lost.standing.history_lost = true;
    assert_eq!(join(&mut world, 1, lost.clone()), Some(Code::HistoryLost));
    world.readmit(&host_name(2));
    assert_eq!(join(&mut world, 1, lost), None);
}

#[test]
fn an_agent_that_is_too_old_is_a_blocker() {
    let mut world = World::settled();
    world.cut(1);
    let mut old = report(&world, 1, world.machines[1].record.token);
    old.protocol = crate::fleet::PROTOCOL_MIN - 1;
    assert_eq!(join(&mut world, 1, old), Some(Code::AgentTooOld));
    let refusal = world.propose(1).expect_err("the host is not connected");
    let expected = [(Code::HostMissing, Some("host-2")), (Code::AgentTooOld, Some("host-2"))];
    assert_eq!(codes(&refusal.blockers), expected);
}

#[test]
fn a_coordinator_that_is_older_than_its_hosts_does_not_lead() {
    let mut world = World::running(3, 1);
    let backup = world.coordinator.record.clone();
    world.flip(0);
    world.crash_coordinator();
    world.coordinator.install(backup);
    world.start_coordinator();
    // The old stream ends, and the agent comes back.
    world.advance(0, Pending::Down);
    world.connect(0);
    world.advance(0, Pending::Up);
    let refused = world.refused.last().and_then(|(_, refusal)| refusal.code());
    assert_eq!(refused, Some(Code::RolledBackCoordinator));
    let fleet = world.coordinator.fleet.as_ref().expect("it is up");
    assert_eq!(fleet.frozen().map(|blocker| blocker.code), Some(Code::RolledBackCoordinator));
    let refusal = world.propose(1).expect_err("it must not lead");
    assert_eq!(refusal.code(), Some(Code::RolledBackCoordinator));
    let refusal = world.change_roster(4).expect_err("it must not lead");
    assert_eq!(refusal.code(), Some(Code::RolledBackCoordinator));
}

#[test]
fn a_new_host_stays_dark_until_the_serving_release_is_deployed_on_it() {
    let mut world = World::settled();
    world.change_roster(4).expect("the fleet is settled");
    world.rest();
    assert_eq!(world.machines[3].guard, None);
    assert_eq!(world.machines[3].record.standing().last_k.0, 0);
    world.flip(1);
    assert!(world.last_end().blockers.iter().all(|blocker| blocker.host == Some(host_name(4))));
    world.deploy_everywhere();
    world.report_deployed();
    world.rest();
    world.expect_all_serve(0, 1);
    world.flip(1);
    world.expect_all_serve(1, 2);
}

#[test]
fn a_host_that_may_serve_cannot_be_removed() {
    let mut world = World::settled();
    let refusal = world.change_roster(2).expect_err("nothing proves that host 3 is dark");
    assert_eq!(codes(&refusal.blockers), [(Code::RemovalNeedsEvidence, Some("host-3"))]);
    // One that was never offered anything can.
    let mut world = World::running(3, 1);
    world.change_roster(2).expect("nothing was offered");
    world.rest();
    assert!(world.machines[2].session().is_none());
}

#[test]
fn a_host_whose_machine_is_stated_to_be_off_can_be_removed_unless_it_is_connected() {
    let mut world = World::settled();
    world.fenced.insert(host_name(3));
    let refusal = world.change_roster(2).expect_err("it is connected");
    assert_eq!(codes(&refusal.blockers), [(Code::RemovalNeedsEvidence, Some("host-3"))]);
    world.reboot(2);
    world.rest();
    world.change_roster(2).expect("its machine is off");
    world.start_agent(2);
    world.rest();
    assert!(world.machines[2].session().is_none(), "it is not in the roster");
    world.flip(1);
    assert_eq!(world.machines[0].guard, world.machines[1].guard);
}

#[test]
fn the_roster_does_not_change_while_a_rollout_is_under_way() {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    assert_eq!(world.change_roster(2).expect_err("under way").code(), Some(Code::Busy));
    world.expect_until(|world| is_opened(&world.coordinator.record.phase));
    let refusal = world.change_roster(2).expect_err("it may serve");
    assert_eq!(refusal.code(), Some(Code::RemovalNeedsEvidence));
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_host_that_was_away_does_not_bind_the_fleet_by_what_it_had_closed_for() {
    use muster_model::HostMode;
    let mut world = World::settled();
    world.propose(1).expect("in order");
    world.abort().expect("it is not decided");
    world.rest();
    world.cut(2);
    world.crash_agent(2);
    world.fenced.insert(host_name(3));
    world.change_roster(2).expect("its machine is off");
    world.fenced.clear();
    world.change_roster(3).expect("it is listed again");
    let mut report = away(&world);
    report.standing.mode = HostMode::Closed(world.coordinator.record.last_k);
    assert_eq!(join(&mut world, 2, report), None);
    let fleet = world.coordinator.fleet.as_ref().expect("it is up");
    assert_eq!(fleet.frozen(), None);
    assert_eq!(fleet.hosts()[2].blockers[0].code, Code::HostDark);
    assert_eq!(
        fleet.shown_to(&host_name(3)),
        world.rosters[1].envelope,
        "it is told first that it was left out"
    );
    world.change_roster(2).expect("it was offered nothing, and can be left out again");
}

/// What host 3 tells that was left out and listed again while it was away.
fn away(world: &World) -> JoinReport {
    let machine = &world.machines[2];
    JoinReport {
        token: None,
        boot_id: machine.boot_id(false),
        agent_version: "0.1.0".to_owned(),
        protocol: crate::fleet::PROTOCOL,
        nonce: Nonce::from_bytes([9; 32]),
        journal: machine.journal,
        standing: machine.record.standing(),
        serving: muster_model::ServingReport::Dark,
    }
}
