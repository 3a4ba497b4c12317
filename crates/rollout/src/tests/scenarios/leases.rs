//! Steps 7 to 11 and 14: leases, fences, the wait for silent hosts, and flips at an instant.

use muster_guard::LeaseState;
use muster_model::{BootTime, Code, FlipMode, HostMode, RolloutId, ToHost};

use super::super::link::Hold;
use super::super::machine::{GuardWork, Machine, Pending};
use super::super::world::World;
use super::{codes, is_armed, is_arming, is_closed, is_decided, is_opened};
use crate::fleet::{Outcome, Phase};
use crate::host::Mode;

/// Host 2 is armed for a rollout that was decided, and hears nothing any more. The coordinator does not know.
fn decided_with_a_silent_host() -> World {
    let mut world = World::settled();
    world.flip_until(1, is_decided);
    assert!(is_armed(&world.machines[1].record.mode));
    world.hold_still(1);
    world
}

/// Host 1 is armed, and stays so because host 3 takes long to arm.
fn armed_while_another_arms() -> (World, RolloutId) {
    let mut world = World::settled();
    world.hold_arming_of(2);
    let k = world.flip_until(1, is_arming);
    world.expect_until(|world| is_armed(&world.machines[0].record.mode));
    (world, k)
}

/// Hosts 1 and 2 serve the new release, and host 3 lapsed while they closed.
fn opened_over_the_third_host() -> World {
    let mut world = World::running(3, 1);
    world.flip(0);
    world.flip_until(1, is_decided);
    world.hold_still(2);
    world.rest();
    assert!(world.pass_deadline());
    world.rest();
    assert!(is_opened(&world.coordinator.record.phase));
    world
}

impl World {
    /// A partition: what is sent to a host does not arrive, and nobody notices.
    fn hold_still(&mut self, index: usize) {
        self.machines[index].hold = Hold::Network;
    }

    fn let_go(&mut self, index: usize) {
        self.machines[index].hold = Hold::Nothing;
    }

    /// Has a host take long to arm, so that the others stay armed meanwhile.
    fn hold_arming_of(&mut self, index: usize) {
        self.machines[index].hold = Hold::Arming;
    }

    /// Lets everything happen that is under way on a machine.
    fn settle(&mut self, index: usize) {
        loop {
            let mut pending = Vec::new();
            self.machines[index].pending(self.now, &mut pending);
            let Some(first) = pending.first() else { return };
            self.advance(index, *first);
        }
    }

    fn pass(&mut self, ms: u64) {
        self.pass_time(self.now + ms);
    }
}

fn lease_of(machine: &Machine) -> BootTime {
    match machine.lease.hold() {
        LeaseState::Armed(armed) => armed.deadline_boot_ms,
        hold @ (LeaseState::Free | LeaseState::Decided(_) | LeaseState::Fenced(_)) => {
            panic!("the guard holds no deadline: {hold:?}")
        }
    }
}

const fn is_fenced(machine: &Machine) -> bool {
    matches!(machine.lease.hold(), LeaseState::Fenced(_))
}

#[test]
fn a_silent_host_fences_and_the_others_open_after_the_wait() {
    let mut world = decided_with_a_silent_host();
    world.rest();
    assert!(is_decided(&world.coordinator.record.phase), "nothing opens before the wait is over");
    assert!(world.machines[1].guard.is_some(), "its lease has not ended");
    assert!(world.machines[0].guard.is_none() && world.machines[2].guard.is_none());

    assert!(world.pass_deadline());
    assert!(world.machines[1].guard.is_none(), "it has fenced itself");
    assert!(matches!(world.machines[1].record.mode, Mode::Armed { .. }), "a lapsed deadline keeps the mode");
    world.rest();
    assert_eq!(world.violation, None);
    let Phase::Opened(opening) = world.coordinator.record.phase.clone() else { panic!("opened") };
    assert!(opening.lapsed.contains(&world.machines[1].name));
    assert!(!world.coordinator.record.offers.include(&world.machines[1].name), "nothing was offered to it");
    world.expect_serves(&world.machines[0].name, 1, 2);
    world.expect_serves(&world.machines[2].name, 1, 2);

    // It comes back dark, closes, and then serves: that is the one end there is to tell.
    let told = world.ends.len();
    world.let_go(1);
    world.rest();
    world.expect_all_serve(1, 2);
    let outcomes: Vec<Outcome> = world.ends[told..].iter().map(|end| end.outcome).collect();
    assert_eq!(outcomes, [Outcome::Flipped]);
}

#[test]
fn a_rollout_ends_without_a_host_whose_connection_is_lost_once_it_had_time_to_come_back() {
    // Its stream ends only when all the others have opened and measured.
    let mut world = opened_over_the_third_host();
    let told = world.ends.len();
    world.cut(2);
    assert_eq!(world.ends.len(), told, "it may be back soon");
    let mut back_in_time = world.clone();

    assert!(world.pass_deadline());
    let end = world.last_end();
    assert_eq!((world.ends.len(), end.outcome), (told + 1, Outcome::Dark));
    assert_eq!(codes(&end.blockers), [(Code::HostMissing, Some("host-3"))]);
    assert!(!world.pass_deadline(), "that is told once");
    world.let_go(2);
    world.rest();
    world.expect_all_serve(1, 2);

    back_in_time.let_go(2);
    back_in_time.rest();
    back_in_time.expect_all_serve(1, 2);
    let outcomes: Vec<Outcome> = back_in_time.ends[told..].iter().map(|end| end.outcome).collect();
    assert_eq!(outcomes, [Outcome::Flipped]);
}

#[test]
fn no_more_hosts_lapse_than_the_order_allows() {
    let mut world = World::settled();
    world.max_lapsed = 0;
    world.flip_until(1, is_decided);
    world.hold_still(1);
    world.rest();
    assert!(world.pass_deadline());
    world.rest();
    assert!(is_decided(&world.coordinator.record.phase), "the others stay dark");
    assert!(!world.pass_deadline(), "and nothing is left to wait for but the host");
    world.let_go(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn an_armed_host_renews_from_when_it_sent_its_request() {
    let (mut world, _) = armed_while_another_arms();
    let first = lease_of(&world.machines[0]);
    let renewal = world.roster_in_force().policy().timing.renewal().as_millis();
    world.pass(u64::try_from(renewal).expect("short"));
    let sent = world.machines[0].clock.at(world.now);
    world.advance(0, Pending::Due);
    // The answer takes its time.
    world.pass(50);
    world.settle(0);
    let lease = world.roster_in_force().policy().timing.lease();
    assert_eq!(lease_of(&world.machines[0]), sent.after(lease));
    assert!(lease_of(&world.machines[0]) > first);
}

#[test]
fn a_host_that_fences_while_others_arm_has_the_rollout_given_up_and_is_admitted_again() {
    let (mut world, _) = armed_while_another_arms();
    // Host 1 hears nothing for longer than its lease lasts.
    world.hold_still(0);
    world.pass(400);
    assert!(world.machines[0].guard.is_none());
    assert!(is_fenced(&world.machines[0]));
    world.let_go(0);
    world.let_go(2);
    world.rest();
    assert_eq!(world.last_end().outcome, Outcome::Unchanged);
    world.expect_all_serve(0, 1);
}

#[test]
fn no_grant_lifts_a_fence_that_has_latched() {
    let (mut world, k) = armed_while_another_arms();
    world.machines[0].hold = Hold::Network;
    let renewal = world.roster_in_force().policy().timing.renewal().as_millis();
    world.pass(u64::try_from(renewal).expect("short"));
    world.advance(0, Pending::Due);
    let first = lease_of(&world.machines[0]);
    world.say(0, ToHost::Grant { k, n: 1 });
    world.settle(0);
    assert!(lease_of(&world.machines[0]) > first, "that is the request which is asked for");

    world.pass(400);
    let late = |world: &mut World| {
        world.say(0, ToHost::Grant { k, n: 1 });
        world.machines[0].guard_work.iter().any(|work| matches!(work, GuardWork::Extend { .. }))
    };
    // The guard has fenced, and its agent does not know yet: the latch holds by itself.
    assert!(late(&mut world));
    world.settle(0);
    assert!(world.machines[0].guard.is_none());
    assert!(is_fenced(&world.machines[0]));
    // The agent knows, and does not even ask.
    assert!(!late(&mut world));
    assert_eq!(world.violation, None);
}

#[test]
fn a_new_leader_waits_out_the_full_time() {
    let mut world = decided_with_a_silent_host();
    world.rest();
    let wait = world.roster_in_force().policy().timing.wait_ms;
    world.pass(wait - 10);
    world.crash_coordinator();
    world.start_coordinator();
    let now = BootTime(world.now);
    let deadline = world.coordinator.fleet.as_ref().and_then(crate::fleet::Fleet::next_deadline);
    assert_eq!(deadline, Some(BootTime(now.0 + wait)));
    world.let_go(1);
    world.cut(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_host_that_lapsed_can_be_removed_while_the_others_are_open() {
    let mut world = opened_over_the_third_host();
    world.change_roster(2).expect("nothing was offered to it since its lease lapsed");
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
    assert_eq!(world.violation, None);
}

#[test]
fn a_host_that_was_offered_service_again_cannot_be_removed() {
    let mut world = opened_over_the_third_host();
    // It comes back, closes, and is told to open; whether it has, nobody knows.
    world.let_go(2);
    world.expect_until(|world| is_closed(&world.machines[2].record.mode));
    let host = world.machines[2].name.clone();
    world.expect_until(|world| world.coordinator.record.offers.include(&host));
    world.hold_still(2);
    let refusal = world.change_roster(2).expect_err("it may serve");
    assert_eq!(codes(&refusal.blockers), [(Code::RemovalNeedsEvidence, Some("host-3"))]);
}

#[test]
fn hosts_flip_at_the_instant_in_fast_mode() {
    let mut world = World::settled();
    world.mode = FlipMode::Fast;
    world.flip_until(1, is_decided);
    world.rest();
    assert!(is_decided(&world.coordinator.record.phase));
    world.expect_serves(&world.machines[0].name, 0, 1);
    world.pass(3000);
    world.rest();
    world.expect_all_serve(1, 2);
    let window = world.last_end().dark_window.expect("it was timed");
    assert_eq!(window.bound_ms, 0);
}

#[test]
fn a_host_that_does_not_hear_the_decision_fences_before_the_instant() {
    let mut world = World::settled();
    world.mode = FlipMode::Fast;
    world.flip_until(1, is_decided);
    world.hold_still(1);
    world.rest();
    world.pass(3000);
    assert!(world.machines[1].guard.is_none());
    world.expect_serves(&world.machines[0].name, 1, 2);
    world.rest();
    world.pass_deadline();
    world.rest();
    assert!(is_opened(&world.coordinator.record.phase));
    world.let_go(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_host_that_flips_at_the_instant_and_is_told_to_close_before_it_could_say_so_is_admitted_again() {
    let mut world = World::settled();
    world.mode = FlipMode::Fast;
    world.flip_until(1, is_decided);
    world.rest();
    world.hold_still(0);
    world.pass(3000);
    let said = world.machines[0].guard_work.pop_front().expect("its guard has flipped");
    world.rest();
    world.pass_deadline();
    assert!(is_opened(&world.coordinator.record.phase));
    world.let_go(0);
    world.cut(0);
    world.expect_until(|world| !world.machines[0].guard_work.is_empty());
    world.machines[0].guard_work.push_front(said);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_host_that_flipped_at_the_instant_and_refuses_to_close_has_no_blocker_once_it_has_measured() {
    let mut world = World::settled();
    world.mode = FlipMode::Fast;
    world.flip_until(1, is_decided);
    world.rest();
    world.pass(2050);
    while !world.machines[0].guard_work.is_empty() {
        world.advance(0, Pending::Guard);
    }
    let k = world.coordinator.record.last_k;
    world.say(0, ToHost::Close { k });
    assert_eq!(world.refusal_of(0), Some(Code::WrongState));
    world.rest();
    world.expect_all_serve(1, 2);
    let views = world.coordinator.fleet.as_ref().expect("it leads").hosts();
    assert!(views.iter().all(|view| view.blockers.is_empty()), "{views:?}");
}

#[test]
fn a_host_that_refuses_to_close_after_it_has_measured_what_it_flipped_to_has_no_blocker() {
    let mut world = World::settled();
    world.mode = FlipMode::Fast;
    world.flip_until(1, is_decided);
    world.rest();
    world.pass(2050);
    world.rest();
    world.expect_all_serve(1, 2);
    let k = world.coordinator.record.last_k;
    // It was said before the host was heard, and arrives after it has measured.
    world.say(0, ToHost::Close { k });
    assert_eq!(world.refusal_of(0), Some(Code::WrongState));
    world.rest();
    let views = world.coordinator.fleet.as_ref().expect("it leads").hosts();
    assert!(views.iter().all(|view| view.blockers.is_empty()), "{views:?}");
    world.mode = FlipMode::Strict;
    world.flip(0);
    world.expect_all_serve(0, 3);
}

/// Decided in fast mode; the second host has flipped and is not heard, the others are and have measured.
fn flipped_at_the_instant_with_one_host_unheard() -> World {
    let mut world = World::settled();
    world.mode = FlipMode::Fast;
    world.flip_until(1, is_decided);
    world.rest();
    world.hold_still(1);
    world.pass(2050);
    world.rest();
    assert!(is_decided(&world.coordinator.record.phase));
    world.expect_serves(&world.machines[0].name, 1, 2);
    world
}

#[test]
fn hosts_that_flipped_at_the_instant_and_measured_before_their_coordinator_was_lost_measure_again() {
    let mut world = flipped_at_the_instant_with_one_host_unheard();
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    world.let_go(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn a_host_that_flipped_at_the_instant_and_joins_again_before_the_others_are_heard_measures_again() {
    let mut world = flipped_at_the_instant_with_one_host_unheard();
    world.cut(0);
    world.rest();
    world.let_go(1);
    world.rest();
    world.expect_all_serve(1, 2);
}

#[test]
fn too_many_hosts_that_do_not_start_call_for_the_order_to_roll_back() {
    let mut world = World::settled();
    let proposal = world.proposal_with_contingency(1);
    world.propose_this(&proposal).expect("in order");
    world.machines[0].opens_to_fail = 10;
    world.rest();
    assert_eq!(world.rollbacks, [], "one host is held");
    world.machines[0].opens_to_fail = 0;
    world.report_deployed();
    world.rest();
    world.expect_all_serve(1, 2);

    let proposal = world.proposal_with_contingency(2);
    world.propose_this(&proposal).expect("in order");
    world.machines[0].opens_to_fail = 1;
    world.machines[1].opens_to_fail = 1;
    world.rest();
    assert_eq!(world.rollbacks, [proposal.contingency.expect("it has one")]);

    // It is tried once: given up, it leaves what was opened.
    world.propose(1).expect("it leads back");
    world.expect_until(|world| world.coordinator.record.phase.rollout().is_some());
    world.abort().expect("it is not decided");
    world.report_deployed();
    world.machines[0].opens_to_fail = 1;
    world.machines[1].opens_to_fail = 1;
    world.rest();
    assert_eq!(world.rollbacks.len(), 1);
}

#[test]
fn an_armed_host_is_shown_with_the_time_that_is_left() {
    let mut world = World::settled();
    world.hold_arming_of(2);
    world.flip_until(1, is_arming);
    world.expect_until(|world| {
        let fleet = world.coordinator.fleet.as_ref().expect("it is up");
        matches!(fleet.hosts()[0].mode, Some(HostMode::Armed(..)))
    });
    let fleet = world.coordinator.fleet.as_ref().expect("it is up");
    let until = fleet.hosts()[0].leased_until.expect("it is armed");
    assert!(until >= lease_of(&world.machines[0]), "never less than it has");
    assert_eq!(fleet.hosts()[2].leased_until, None);
}

#[test]
fn a_host_that_did_not_hear_that_its_rollout_was_given_up_keeps_its_bound() {
    let (mut world, _) = armed_while_another_arms();
    let bound = |world: &World| world.coordinator.fleet.as_ref().expect("it is up").hosts()[0].leased_until;
    world.expect_until(|world| bound(world).is_some());
    world.hold_still(0);
    let armed_until = bound(&world);
    assert!(world.pass_deadline(), "host 3 did not arm in time");
    world.rest();
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
    assert_eq!(bound(&world), armed_until, "it may serve until then, and not longer");
    world.let_go(0);
    world.let_go(2);
    world.rest();
    assert_eq!(bound(&world), None);
    world.expect_all_serve(0, 1);
}
