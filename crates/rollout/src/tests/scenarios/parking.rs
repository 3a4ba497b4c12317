//! Hosts that are parked, come back, retire, or join while the others flip.

use muster_model::{BootTime, Code, Digest, FromHost, Membership, RosterRevision};

use super::super::link::Hold;
use super::super::machine::Pending;
use super::super::papers::{host_name, signed_roster, signed_roster_of};
use super::super::world::{Mistake, World};
use super::{codes, is_decided, is_opened};
use crate::fleet::{NextRoster, Phase, State};
use crate::host::{CloseCause, Event};

impl World {
    /// Host 3 of three is parked, and the others serve release 1 in epoch 2 since.
    fn parked() -> Self {
        let mut world = Self::settled();
        world.park(3).expect("the fleet is settled");
        world.rest();
        world.flip(1);
        world
    }

    fn view_of(&self, number: usize) -> crate::fleet::HostView {
        let fleet = self.coordinator.fleet.as_ref().expect("it is up");
        let all = fleet.hosts().into_iter().chain(fleet.parked());
        all.into_iter().find(|view| view.host == host_name(number)).expect("a host of the roster")
    }
}

#[test]
fn a_host_that_is_parked_closes_before_n_shrinks_and_the_others_flip_without_it() {
    let mut world = World::settled();
    world.machines[2].hold = Hold::Network;
    world.park(3).expect("the fleet is settled");
    world.rest();
    // Nothing is flipped in between, and nothing has changed for anybody.
    assert_eq!(world.roster_in_force().hosts().len(), 3);
    assert_eq!(world.view_of(3).state, State::Leaving);
    let refusal = world.propose(1).expect_err("the host has not closed");
    assert_eq!(codes(&refusal.blockers), [(Code::RemovalNeedsEvidence, Some("host-3"))]);
    world.expect_serves(&host_name(3), 0, 1);
    world.machines[2].hold = Hold::Nothing;
    world.rest();
    assert_eq!(world.machines[2].guard, None);
    assert_eq!(world.machines[2].record.membership, Membership::Excluded(RosterRevision(2)));
    assert_eq!((world.roster_in_force().hosts().len(), world.view_of(3).state), (2, State::Parked));
    assert!(world.view_of(3).session.is_some(), "it stays connected");
    world.flip(1);
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
    world.expect_serves(&host_name(1), 1, 2);
    assert_eq!((world.machines[2].guard, &world.violation), (None, &None));
}

#[test]
fn a_coordinator_that_says_that_a_host_has_closed_flips_nobody_over_it() {
    let mut world = World::settled();
    world.mistake = Some(Mistake::WithdrawalForged);
    world.park(3).expect("the fleet is settled");
    assert_eq!(world.roster_in_force().hosts().len(), 2, "it was said that it has closed");
    world.propose(1).expect("it takes the word for the host's");
    world.rest();
    let end = world.ends.last().expect("the rollout is given up");
    assert_eq!(codes(&end.blockers[..1])[0].0, Code::NotWithdrawn, "{end:?}");
    world.expect_serves(&host_name(1), 0, 1);
    world.expect_serves(&host_name(3), 0, 1);
    assert_eq!(world.violation, None);
}

#[test]
fn a_host_that_says_without_a_signature_that_it_has_closed_is_waited_for() {
    let mut world = World::settled();
    world.machines[2].hold = Hold::Network;
    world.park(3).expect("the fleet is settled");
    let session = world.machines[2].session().expect("it is connected");
    let message = FromHost::Withdrawn { roster: RosterRevision(2), at: BootTime(1) };
    world.coordinate(crate::fleet::Event::Message { host: host_name(3), session, message });
    assert_eq!(world.roster_in_force().hosts().len(), 3);
    assert_eq!(world.view_of(3).state, State::Leaving);
    world.machines[2].hold = Hold::Nothing;
    world.rest();
    assert_eq!(world.roster_in_force().hosts().len(), 2);
    assert_eq!(world.violation, None);
}

#[test]
fn were_a_word_that_nobody_signed_taken_two_releases_would_be_served() {
    let mut world = World::settled();
    world.mistake = Some(Mistake::WithdrawalNotSigned);
    world.park(3).expect("the fleet is settled");
    assert_eq!(world.roster_in_force().hosts().len(), 2, "it was said that it has closed");
    world.propose(1).expect("nothing is missing");
    world.rest();
    let violation = world.violation.expect("host 3 serves on");
    assert!(violation.starts_with("P1:"), "{violation}");
}

#[test]
fn a_host_that_was_parked_while_it_was_away_is_waited_for_until_it_says_so_or_is_stated_to_be_off() {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    world.machines[2].hold = Hold::Network;
    world.rest();
    while !is_opened(&world.coordinator.record.phase) {
        assert!(world.pass_deadline(), "{:?}", world.coordinator.record.phase);
        world.rest();
    }
    let lapsed = world.coordinator.record.phase.opening().expect("it is opened").lapsed.clone();
    assert!(lapsed.contains(&host_name(3)));
    world.park(3).expect("its lease has lapsed");
    world.rest();
    assert_eq!(world.roster_in_force().hosts().len(), 2);
    let refusal = world.propose(2).expect_err("nobody but host 3 can say that it has closed");
    assert_eq!(codes(&refusal.blockers), [(Code::NotWithdrawn, Some("host-3"))]);
    let view = world.view_of(3);
    assert!(view.blockers.iter().any(|blocker| blocker.code == Code::NotWithdrawn), "{view:?}");
    // Its word outlives the leader that has heard it.
    world.machines[2].hold = Hold::Nothing;
    world.cut(2);
    world.rest();
    world.crash_agent(2);
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    world.flip(2);
    assert_eq!(world.violation, None);
}

#[test]
fn a_host_that_is_stated_to_be_off_gives_no_word_and_stays_so_in_later_rosters() {
    let mut world = World::settled();
    world.reboot(2);
    for link in std::mem::take(&mut world.machines[2].old_links) {
        world.stream_left(2, &link);
    }
    world.fenced.insert(host_name(3));
    world.park(3).expect("its machine is off");
    world.fenced.clear();
    world.change_roster(4).expect("the fleet is settled");
    let entry = world.roster_in_force().parked()[0].clone();
    assert_eq!((entry.since, entry.fenced), (Some(RosterRevision(2)), true));
    world.deploy_everywhere();
    world.report_deployed();
    world.rest();
    world.flip(1);
    assert_eq!(world.violation, None);
}

#[test]
fn a_word_of_a_later_roster_than_any_that_is_known_takes_the_place_of_none() {
    let mut world = World::parked();
    let words = world.coordinator.withdrawals.clone();
    world.forge_withdrawal(&host_name(3), RosterRevision(9));
    assert_eq!(world.coordinator.withdrawals, words);
    assert!(world.view_of(3).blockers.iter().any(|blocker| blocker.code == Code::NotWithdrawn));
    world.flip(2);
}

#[test]
fn an_agent_that_knows_no_withdrawals_keeps_everybody_from_being_set_aside() {
    use muster_model::{JoinReport, Token};
    let mut world = World::settled();
    world.cut(2);
    world.connect(2);
    let link = world.machines[2].link.as_mut().expect("it connects");
    let Some(super::super::link::Up::Join(report)) = link.up.pop() else { panic!("it joins first") };
    let session = link.session;
    let report = JoinReport { protocol: crate::fleet::PROTOCOL_OF_WITHDRAWALS - 1, ..*report };
    let host = host_name(3);
    let next_token = Token::from_bytes([9; 32]);
    world.coordinate(crate::fleet::Event::Joining { host, session, report, next: next_token });
    let refusal =
        world.apply_roster(signed_roster_of(2, 3, &[3].into())).expect_err("it could not read that roster");
    assert_eq!(codes(&refusal.blockers), [(Code::AgentTooOld, Some("host-3"))]);
}

#[test]
fn a_host_that_comes_back_measures_and_serves_what_the_others_serve_by_then() {
    let mut world = World::parked();
    world.machines[2].trees = [super::super::machine::Tree::Missing; 3];
    world.unpark(3).expect("the fleet is settled");
    world.rest();
    assert_eq!(world.view_of(3).state, State::Joining);
    assert_eq!(world.machines[2].guard, None, "it does not have what the others serve");
    world.deploy_everywhere();
    world.report_deployed();
    world.rest();
    world.expect_all_serve(1, 2);
    assert_eq!(world.view_of(3).state, State::Serving);
    world.flip(2);
    world.expect_all_serve(2, 3);
}

#[test]
fn a_parked_host_stays_dark_whatever_befalls_it_or_its_coordinator() {
    let mut world = World::parked();
    for upset in [World::reboot, World::crash_agent, World::cut] {
        upset(&mut world, 2);
        world.start_agent(2);
        world.rest();
        assert!(world.view_of(3).session.is_some() && world.view_of(3).blockers.is_empty());
    }
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    world.report_deployed();
    world.rest();
    assert_eq!((world.view_of(3).state, world.machines[2].guard), (State::Parked, None));
    assert_eq!(world.violation, None);
}

#[test]
fn a_host_that_dies_before_its_guard_has_stopped_stops_at_its_next_start_without_any_coordinator() {
    let mut world = World::settled();
    let signed = signed_roster_of(2, 3, &[3].into());
    let envelope = signed.envelope;
    world.rosters.push(signed);
    world.crash_coordinator();
    world.show(2, envelope);
    world.crash_agent(2);
    assert_eq!(world.machines[2].record.membership, Membership::Excluded(RosterRevision(2)));
    assert_eq!(world.machines[2].record.may_serve(), None);
    assert!(world.machines[2].guard.is_some(), "its guard has not stopped yet");
    world.start_agent(2);
    world.rest();
    assert_eq!((world.machines[2].guard, &world.violation), (None, &None));
    world.expect_serves(&host_name(1), 0, 1);
}

#[test]
fn a_host_whose_word_was_lost_says_again_that_it_has_closed_whether_or_not_it_is_shown_the_roster_again() {
    let mut world = World::settled();
    world.machines[2].hold = Hold::Up;
    world.park(3).expect("the fleet is settled");
    world.rest();
    assert_eq!((world.machines[2].guard, world.roster_in_force().hosts().len()), (None, 3));
    world.cut(2);
    world.machines[2].hold = Hold::Nothing;
    // What it is shown before its session has begun it may have answered too early.
    assert!(world.run_until(|world| !world.machines[2].shown.is_empty()));
    world.machines[2].shown.clear();
    world.rest();
    assert_eq!(world.roster_in_force().hosts().len(), 2);
    assert_eq!(world.view_of(3).state, State::Parked);
}

#[test]
fn a_coordinator_that_is_lost_while_a_host_is_asked_to_leave_goes_on_where_it_was() {
    let mut world = World::settled();
    world.machines[2].hold = Hold::Network;
    world.park(3).expect("the fleet is settled");
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    assert_eq!(world.view_of(3).state, State::Leaving);
    world.machines[2].hold = Hold::Nothing;
    world.cut(2);
    world.rest();
    assert_eq!((world.view_of(3).state, world.machines[2].guard), (State::Parked, None));
}

#[test]
fn a_host_that_cannot_answer_is_parked_on_the_statement_that_it_is_off() {
    let mut world = World::settled();
    world.park(3).expect("it may answer yet");
    world.reboot(2);
    world.coordinator.fleet.as_ref().expect("it is up");
    for link in std::mem::take(&mut world.machines[2].old_links) {
        world.stream_left(2, &link);
    }
    world.rest();
    assert_eq!(world.roster_in_force().hosts().len(), 3, "nothing proves that it is dark");
    world.fenced.insert(host_name(3));
    world.change_roster(3).expect("its machine is off");
    assert_eq!(
        (world.roster_in_force().revision(), world.roster_in_force().hosts().len()),
        (RosterRevision(3), 2)
    );
    world.fenced.clear();
    // It was not, or is on again.
    world.start_agent(2);
    world.rest();
    assert_eq!((world.view_of(3).state, world.machines[2].guard), (State::Parked, None));
    world.flip(1);
    world.unpark(3).expect("the fleet is settled");
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_host_that_is_asked_to_leave_may_be_asked_to_stay_whether_or_not_it_has_closed() {
    for has_heard in [true, false] {
        let mut world = World::settled();
        world.machines[1].hold = Hold::Network;
        world.machines[2].hold = if has_heard { Hold::Nothing } else { Hold::Network };
        world.parked.insert(2);
        world.park(3).expect("the fleet is settled");
        world.rest();
        assert_eq!(world.machines[2].guard.is_none(), has_heard);
        assert_eq!(world.roster_in_force().hosts().len(), 3, "host 2 has not closed");
        world.parked.clear();
        world.change_roster(3).expect("it parks nobody any more");
        for index in 1..3 {
            world.machines[index].hold = Hold::Nothing;
        }
        world.rest();
        world.expect_all_serve(0, 1);
        world.flip(1);
        world.expect_all_serve(1, 2);
    }
}

/// Host 3 of three was told to leave, and then to stay; its guard has not come to anything of it yet. With the roster that parks it again.
fn with_a_slow_guard() -> (World, Digest) {
    let mut world = World::settled();
    let [parks, takes_back, parks_again] = [(2, true), (3, false), (4, true)].map(|(revision, parks)| {
        let parked = if parks { [3].into() } else { std::collections::BTreeSet::new() };
        let signed = signed_roster_of(revision, 3, &parked);
        let envelope = signed.envelope;
        world.rosters.push(signed);
        envelope
    });
    world.show(2, parks);
    world.show(2, takes_back);
    (world, parks_again)
}

#[test]
fn a_host_says_that_it_has_closed_only_on_the_answer_to_what_it_asked_when_it_was_told() {
    let (mut world, parks_again) = with_a_slow_guard();
    world.show(2, parks_again);
    world.machines[2].link.as_mut().expect("it is connected").up.clear();
    let has_said = |world: &World| world.machines[2].link.as_ref().is_some_and(|link| !link.up.is_empty());
    let at = world.machines[2].clock.at(world.now);
    for cause in [CloseCause::NotAllowed, CloseCause::LeftOut(RosterRevision(2))] {
        world.host_event(2, Event::Closed { cause, outcome: Ok(at) });
        assert!(!has_said(&world), "an opening of the time in between may still wait for the guard");
    }
    world.advance(2, Pending::Guard);
    assert!(!has_said(&world) && world.machines[2].guard.is_none());
    world.advance(2, Pending::Guard);
    assert!(has_said(&world));
    assert_eq!(world.violation, None);
}

#[test]
fn a_host_that_comes_back_is_opened_only_once_it_has_stopped() {
    use muster_model::{Epoch, ToHost};
    let (mut world, _) = with_a_slow_guard();
    let (nonce, release) = (world.machines[2].nonce.expect("it has joined"), world.releases[0].manifest);
    world.say(2, ToHost::Admit { epoch: Epoch(1), release, nonce });
    assert_eq!(
        world.machines[2].work.len(),
        0,
        "the closing may fail, and the next attempt would meet the opening"
    );
    world.machines[2].closes_to_fail = 2;
    for tries in 1..=3 {
        assert_eq!(world.machines[2].guard_work.len(), 1, "try {tries}");
        assert!(world.machines[2].guard.is_some());
        world.advance(2, Pending::Guard);
    }
    assert_eq!(world.machines[2].guard, None);
    assert_ne!(world.machines[2].nonce, Some(nonce), "it asks for another admission");
    world.rest();
    assert_eq!(world.violation, None);
}

#[test]
fn an_old_roster_is_refused_by_a_parked_host_and_takes_nobody_back() {
    let mut world = World::parked();
    let older = world.rosters[0].envelope;
    world.show(2, older);
    assert_eq!(world.refusal_of(2), Some(Code::RosterChanged));
    assert_eq!(world.machines[2].record.membership, Membership::Excluded(RosterRevision(2)));
    // One of the same revision that has it serve is no later one.
    let other = signed_roster(2, 3);
    let envelope = other.envelope;
    world.rosters.push(other);
    world.show(2, envelope);
    assert_eq!(world.machines[2].record.membership, Membership::Excluded(RosterRevision(2)));
    world.rest();
    assert_eq!(world.machines[2].guard, None);
}

#[test]
fn a_parked_host_refuses_every_offer() {
    use muster_model::{Epoch, Secrets, ToHost};
    let mut world = World::parked();
    let release = world.releases[0].manifest;
    let nonce = world.machines[2].nonce.expect("it has joined");
    let k = world.machines[2].record.last_k;
    for offer in [
        ToHost::Admit { epoch: Epoch(1), release, nonce },
        ToHost::Open { k, epoch: Epoch(1), release, secrets: Secrets::default() },
        ToHost::Propose { k: k.next().next().next(), to: release },
    ] {
        world.machines[2].refusals.clear();
        world.say(2, offer);
        assert_eq!(world.refusal_of(2), Some(Code::HostNotInRoster));
    }
    world.rest();
    assert_eq!(world.machines[2].guard, None);
}

#[test]
fn a_host_that_has_another_key_in_the_roster_is_another_machine_and_closes() {
    let mut world = World::settled();
    let other = signed_roster(2, 3).with_key_of_host(3, 9);
    let envelope = other.envelope;
    world.rosters.push(other);
    world.show(2, envelope);
    world.rest();
    assert_eq!(world.machines[2].guard, None);
    world.expect_serves(&host_name(2), 0, 1);
}

#[test]
fn who_joins_during_a_rollout_is_kept_until_it_is_over() {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    world.change_roster(4).expect("it is kept");
    assert_eq!(world.roster_in_force().hosts().len(), 3, "the rollout began with three");
    let refusal = world.park(3).expect_err("nobody leaves during a rollout");
    assert_eq!(refusal.code(), Some(Code::Busy));
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
    assert_eq!(world.roster_in_force().hosts().len(), 4);
    assert_eq!(world.view_of(4).state, State::Joining);
    world.deploy_everywhere();
    world.report_deployed();
    world.rest();
    world.expect_all_serve(1, 2);
    assert_eq!(world.view_of(4).state, State::Serving);
}

#[test]
fn who_joins_may_leave_again_before_it_was_offered_anything() {
    let mut world = World::settled();
    world.change_roster(4).expect("the fleet is settled");
    world.crash_agent(3);
    world.rest();
    assert_eq!(world.view_of(4).state, State::Joining);
    world.change_roster(3).expect("it was offered nothing");
    world.rest();
    world.expect_serves(&host_name(3), 0, 1);
}

#[test]
fn who_has_retired_comes_back_with_another_key_only() {
    let mut world = World::settled();
    world.park(3).expect("the fleet is settled");
    world.rest();
    let parked = signed_roster_of(3, 3, &[3].into());
    let [host] = parked.roster.parked() else { panic!("one is parked") };
    let retired = muster_model::Roster::new(
        parked.roster.fleet().clone(),
        RosterRevision(3),
        parked.roster.policy(),
        parked.roster.hosts().to_vec(),
    );
    let retired =
        retired.and_then(|roster| roster.setting_aside(Vec::new(), vec![host.clone()])).expect("valid");
    let next = NextRoster {
        digest: muster_model::Digest::of(&muster_model::Document::to_bytes(&retired)),
        roster: muster_model::Verified::assert(retired),
        envelope: muster_model::Digest::of(b"retired"),
        fenced: std::collections::BTreeSet::new(),
    };
    world.rosters.push(super::super::papers::SignedRoster {
        roster: std::sync::Arc::new(next.roster.clone()),
        digest: next.digest,
        envelope: next.envelope,
    });
    let step = world.coordinator.fleet.as_mut().expect("it is up").apply_roster(next).expect("it is parked");
    world.fleet_step(step);
    world.rest();
    assert!(world.machines[2].session().is_none(), "it is let in no more");
    world.parked.clear();
    let refusal = world.change_roster(3).expect_err("it has the key that has retired");
    assert_eq!(codes(&refusal.blockers), [(Code::RosterChanged, Some("host-3"))]);
}

#[test]
fn a_host_that_serves_is_not_retired_before_it_was_parked() {
    let mut world = World::settled();
    let refusal = world.change_roster(2).expect_err("it may serve");
    assert!(refusal.to_string().contains("host park"), "{refusal}");
    world.flip_until(1, is_opened);
    assert_eq!(world.park(3).map_err(|refusal| refusal.code()), Ok(()), "hosts may leave while others open");
    world.rest();
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
    assert_eq!((world.view_of(3).state, world.machines[2].guard), (State::Parked, None));
}
