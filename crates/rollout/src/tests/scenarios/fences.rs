//! Hosts that are stated to be off: for how long that counts, and how they come back if they are on again.

use muster_model::{Code, HostMode, Membership, RosterRevision};

use super::super::link::Hold;
use super::super::papers::{added_roster, host_name, signed_roster, signed_roster_of};
use super::super::world::World;
use super::{codes, is_opened};
use crate::fleet::{MissedRoster, Phase, State};

impl World {
    /// The machine is off, and the coordinator has noticed.
    fn switch_off(&mut self, index: usize) {
        self.reboot(index);
        for link in std::mem::take(&mut self.machines[index].old_links) {
            self.stream_left(index, &link);
        }
    }

    /// Hands a roster in that parks a host which is stated to be off.
    fn state_off(&mut self, number: usize) -> Result<(), muster_model::Refusal> {
        self.fenced.insert(host_name(number));
        let outcome = self.park(number);
        self.fenced.clear();
        outcome
    }

    /// Hosts 2 and 3 of three are off, and were asked to leave before anybody stated so.
    fn two_off() -> Self {
        let mut world = Self::settled();
        for index in [1, 2] {
            world.switch_off(index);
            world.park(index + 1).expect("it may answer yet");
        }
        world.rest();
        assert_eq!(world.awaited(), ["host-2", "host-3"]);
        world
    }

    fn awaited(&self) -> Vec<String> {
        let fleet = self.coordinator.fleet.as_ref().expect("it is up");
        fleet.awaited().iter().map(ToString::to_string).collect()
    }

    fn state_of(&self, number: usize) -> State {
        let fleet = self.coordinator.fleet.as_ref().expect("it is up");
        let all = fleet.hosts().into_iter().chain(fleet.parked());
        all.into_iter().find(|view| view.host == host_name(number)).expect("a host of the roster").state
    }

    fn hosts_in_force(&self) -> usize {
        self.roster_in_force().hosts().len()
    }
}

#[test]
fn two_that_are_off_are_parked_on_two_statements_one_after_the_other() {
    for is_restarted in [false, true] {
        let mut world = World::two_off();
        world.state_off(2).expect("its machine is off");
        assert_eq!((world.awaited(), world.hosts_in_force()), (vec!["host-3".to_owned()], 3));
        if is_restarted {
            world.crash_coordinator();
            world.start_coordinator();
            world.rest();
        }
        world.state_off(3).expect("its machine is off");
        assert_eq!(
            (world.hosts_in_force(), &world.violation),
            (1, &None),
            "what was said of host 2 still holds"
        );
        world.flip(1);
        world.expect_serves(&host_name(1), 1, 2);
    }
}

#[test]
fn what_is_stated_of_a_host_outlives_hosts_that_are_added_meanwhile() {
    let mut world = World::two_off();
    world.state_off(2).expect("its machine is off");
    let base = world.rosters.last().expect("there are some").clone();
    let revision = base.roster.revision().next().0;
    world
        .apply_roster(added_roster(&base, base.digest, revision, &[4]))
        .expect("an addition is taken at any time");
    assert_eq!(world.awaited(), ["host-3"]);
    world.state_off(3).expect("its machine is off");
    assert_eq!((world.hosts_in_force(), &world.violation), (2, &None));
}

#[test]
fn a_host_that_connects_is_not_off_for_any_later_leader() {
    let mut world = World::two_off();
    world.state_off(2).expect("its machine is off");
    world.machines[1].hold = Hold::Down;
    world.start_agent(1);
    world.rest();
    assert_eq!(world.awaited(), ["host-2", "host-3"], "it is on");
    assert!(world.coordinator.record.coming.as_ref().is_some_and(|coming| coming.fenced.is_empty()));
    // Neither another leader goes by the statement, nor does the next roster.
    world.cut(1);
    world.switch_off(1);
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    assert_eq!(world.awaited(), ["host-2", "host-3"]);
    world.state_off(3).expect("its machine is off");
    assert_eq!((world.awaited(), world.hosts_in_force()), (vec!["host-2".to_owned()], 3));
    world.state_off(2).expect("it is off again");
    assert_eq!((world.hosts_in_force(), &world.violation), (1, &None));
}

#[test]
fn a_host_that_is_taken_back_is_not_off_any_more_and_a_key_is_not_the_other() {
    let mut world = World::two_off();
    world.state_off(2).expect("its machine is off");
    world.unpark(2).expect("nobody leaves who must not");
    world.park(2).expect("it is asked anew");
    assert_eq!(world.awaited(), ["host-2", "host-3"], "the statement was made of a time before");

    // Host 2 is to be another machine. A statement about that one is none about the machine that may serve.
    let mut world = World::two_off();
    world.state_off(2).expect("its machine is off");
    let next = |world: &World| world.coordinator.fleet.as_ref().expect("it is up").next_revision().0;
    let other = signed_roster_of(next(&world), 3, &[3].into()).with_key_of_host(2, 9);
    world.apply_roster(other).expect("what was stated of the old one holds");
    world.machines[1].hold = Hold::Down;
    world.start_agent(1);
    world.rest();
    assert_eq!(world.awaited(), ["host-2", "host-3"], "the old one is on");
    world.cut(1);
    world.switch_off(1);
    world.fenced.insert(host_name(2));
    let third = signed_roster_of(next(&world), 3, &[3].into()).with_key_of_host(2, 8);
    let refusal = world.apply_roster(third).expect_err("it speaks of the machine that was to come");
    assert_eq!(codes(&refusal.blockers), [(Code::RemovalNeedsEvidence, Some("host-2"))]);
}

#[test]
fn what_is_kept_until_the_fleet_settles_does_not_keep_the_dead_from_leaving() {
    let mut world = World::settled();
    world.flip_until(1, is_opened);
    world.switch_off(2);
    world.change_roster(4).expect("it is kept");
    assert_eq!(world.hosts_in_force(), 3);
    world.state_off(3).expect("it is off, and the fleet cannot settle with it");
    assert_eq!((world.hosts_in_force(), &world.violation), (3, &None), "host 4 has come for host 3");
    world.deploy_everywhere();
    world.report_deployed();
    world.rest();
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
    world.expect_serves(&host_name(4), 1, 2);
    world.flip(2);
    world.expect_serves(&host_name(1), 2, 3);
}

#[test]
fn who_has_closed_for_a_roster_that_is_taken_back_while_others_open_serves_on_whoever_joins_by_that() {
    for hosts in [3, 4] {
        let mut world = World::settled();
        world.flip_until(1, is_opened);
        // Host 2 keeps the roster from holding, and host 3 has closed for it.
        world.machines[1].hold = Hold::Network;
        world.parked.insert(2);
        world.park(3).expect("hosts may leave while others open");
        world.rest();
        assert_eq!(world.machines[2].record.membership, Membership::Excluded(RosterRevision(2)));
        world.parked.clear();
        world.change_roster(hosts).expect("it parks nobody any more");
        world.machines[1].hold = Hold::Nothing;
        world.deploy_everywhere();
        world.rest();
        world.report_deployed();
        world.rest();
        world.expect_all_serve(1, 2);
        assert_eq!(world.hosts_in_force(), hosts);
    }
}

#[test]
fn a_host_that_was_parked_and_taken_back_while_it_was_off_comes_back_by_itself() {
    for has_flipped in [false, true] {
        let mut world = World::settled();
        world.switch_off(2);
        world.state_off(3).expect("its machine is off");
        if has_flipped {
            world.flip(1);
        }
        world.unpark(3).expect("the fleet is settled");
        world.crash_coordinator();
        world.start_coordinator();
        world.rest();
        let refusal = world.propose(2).expect_err("it is not there");
        assert_eq!(codes(&refusal.blockers), [(Code::HostMissing, Some("host-3"))]);
        // It is shown that it was left out before anything else, and loses its connection over that.
        world.start_agent(2);
        world.expect_until(|world| {
            world.machines[2].record.membership == Membership::Excluded(RosterRevision(2))
        });
        world.cut(2);
        world.rest();
        let (release, epoch) = if has_flipped { (1, 2) } else { (0, 1) };
        world.expect_all_serve(release, epoch);
        assert_eq!(world.state_of(3), State::Serving);
        assert!(world.coordinator.record.missed.is_empty());
        world.flip(2);
        world.expect_all_serve(2, epoch + 1);
    }
}

#[test]
fn nothing_is_asked_of_a_host_that_is_still_told_that_it_was_left_out_and_nothing_offered() {
    for has_flipped in [false, true] {
        let mut world = World::settled();
        world.switch_off(2);
        world.state_off(3).expect("its machine is off");
        if has_flipped {
            world.flip(1);
        }
        world.unpark(3).expect("the fleet is settled");
        world.start_agent(2);
        // It has joined, and hears nothing yet.
        world.expect_until(|world| world.machines[2].session().is_some());
        world.machines[2].hold = Hold::Network;
        world.rest();
        let refusal = world.propose(2).expect_err("it goes by another time");
        assert_eq!(codes(&refusal.blockers), [(Code::HostDark, Some("host-3"))]);
        world.report_deployed();
        assert!(!world.coordinator.record.offers.include(&host_name(3)));
        world.machines[2].hold = Hold::Nothing;
        world.rest();
        let (release, epoch) = if has_flipped { (1, 2) } else { (0, 1) };
        world.expect_all_serve(release, epoch);
    }
}

#[test]
fn an_image_of_a_machine_that_is_stated_to_be_off_contradicts_that_and_a_new_machine_does_not() {
    for (is_image, awaited) in [(true, vec!["host-2", "host-3"]), (false, vec!["host-3"])] {
        let mut world = World::two_off();
        world.state_off(2).expect("its machine is off");
        let token = is_image.then(|| muster_model::Token::from_bytes([7; 32]));
        let report = super::membership::report(&world, 1, token);
        assert_eq!(super::membership::join(&mut world, 1, report), Some(Code::DuplicateHost));
        assert_eq!(world.awaited(), awaited);
    }
}

#[test]
fn a_host_that_was_not_off_after_all_closes_before_it_serves_what_the_others_do() {
    let mut world = World::settled();
    // Cut off and serving: the statement is not true.
    world.machines[2].hold = Hold::Network;
    world.give_up(2);
    world.state_off(3).expect("nobody knows better");
    world.unpark(3).expect("the fleet is settled");
    world.machines[2].hold = Hold::Nothing;
    world.expect_until(|world| world.machines[2].guard.is_none());
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn a_host_that_closed_for_a_rollout_of_its_time_comes_back_and_freezes_nobody() {
    let mut world = World::settled();
    // It closes, and the others open and settle without it.
    world.flip_until(1, is_opened);
    let k = world.coordinator.record.last_k;
    assert_eq!(world.machines[2].record.standing().mode, HostMode::Closed(k));
    world.switch_off(2);
    world.state_off(3).expect("its machine is off");
    world.rest();
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
    world.flip(0);
    world.unpark(3).expect("the fleet is settled");
    // By its word it has closed for what this fleet does not remember as completed.
    world.coordinator.record.completed = None;
    let record = world.coordinator.record.clone();
    world.crash_coordinator();
    world.coordinator.install(record);
    world.start_coordinator();
    world.rest();
    world.start_agent(2);
    world.rest();
    let fleet = world.coordinator.fleet.as_ref().expect("it is up");
    assert_eq!(fleet.frozen(), None);
    let is_freeze = |code| code == Some(Code::RolledBackCoordinator);
    assert!(
        !world.refused.iter().any(|(_, refusal)| is_freeze(refusal.code())),
        "nobody was frozen meanwhile"
    );
    world.expect_all_serve(0, 3);
}

#[test]
fn a_host_whose_key_was_changed_and_changed_back_while_it_was_off_is_told() {
    let mut world = World::settled();
    world.switch_off(2);
    world.fenced.insert(host_name(3));
    world.apply_roster(signed_roster(2, 3).with_key_of_host(3, 9)).expect("its machine is off");
    world.fenced.clear();
    world.apply_roster(signed_roster(3, 3)).expect("the other machine never came");
    world.rest();
    let missed = world.coordinator.record.missed_by(&host_name(3)).expect("it may come back");
    assert_eq!(missed.revision, RosterRevision(2));
    world.start_agent(2);
    world
        .expect_until(|world| world.machines[2].record.membership == Membership::Excluded(RosterRevision(2)));
    world.rest();
    assert!(world.coordinator.record.missed.is_empty());
    world.expect_all_serve(0, 1);
}

#[test]
fn who_has_returned_is_told_that_it_was_left_out_again_if_it_has_promised_something_since() {
    let world = World::settled();
    let missed = MissedRoster {
        revision: RosterRevision(5),
        envelope: muster_model::Digest::of(b"an envelope"),
        hosts: [host_name(3)].into(),
    };
    let standing = world.machines[2].record.standing();
    let is_news = |membership, mode, revision| {
        let roster_revision = RosterRevision(revision);
        missed.is_news_to(&muster_model::Standing { membership, mode, roster_revision, ..standing.clone() })
    };
    let (k, epoch) = (standing.last_k, muster_model::Epoch(1));
    for mode in [HostMode::Closed(k), HostMode::Armed(k, epoch)] {
        assert!(is_news(Membership::Returned, mode, 4) && is_news(Membership::Member, mode, 4));
        assert!(!is_news(Membership::Returned, mode, 5), "it has seen that one");
        assert!(!is_news(Membership::Excluded(RosterRevision(3)), mode, 4));
    }
    assert!(!is_news(Membership::Returned, HostMode::Serve(epoch), 4), "it comes back as it is");
}
