//! Hosts that a joiner's key adds: they come like others, and nobody flips without them who has seen them.

use muster_model::{Code, Membership, RosterRevision, Verified};

use super::super::link::Hold;
use super::super::papers::{SignedRoster, added_roster, signed_roster};
use super::super::world::World;
use crate::fleet::Phase;
use crate::host::Event;

impl World {
    /// What operators have signed.
    fn base(&self) -> SignedRoster {
        self.rosters[0].clone()
    }

    /// The addition of host-4 to it.
    fn with_four(&self) -> SignedRoster {
        let base = self.base();
        added_roster(&base, base.digest, 2, &[4])
    }

    /// Shows a roster to a machine, as a coordinator does.
    fn show_this(&mut self, index: usize, shown: &SignedRoster) {
        self.host_event(index, Event::RosterShown(Box::new(Verified::clone(&shown.roster))));
    }

    fn held(&self, index: usize) -> (u64, Option<usize>) {
        let record = &self.machines[index].record;
        (record.roster_revision.0, record.additions.as_ref().map(|additions| additions.hosts.len()))
    }
}

#[test]
fn hosts_are_added_one_after_the_other_and_flip_with_the_others() {
    let mut world = World::settled();
    world.apply_roster(world.with_four()).expect("it goes on from what is in force");
    let (base, four) = (world.base(), world.with_four());
    world.apply_roster(added_roster(&base, four.digest, 3, &[4, 5])).expect("and once more");
    world.rest();
    world.deploy_everywhere();
    world.report_deployed();
    world.rest();
    world.expect_all_serve(0, 1);
    world.flip(1);
    world.expect_all_serve(1, 2);
    assert_eq!(world.machines.len(), 5);
    for index in 0..5 {
        assert_eq!(world.held(index), (3, Some(2)), "it verified the roster, and keeps who was added");
    }
    world.change_roster(5).expect("operators sign what there is");
    world.flip(0);
    world.expect_all_serve(0, 3);
    assert_eq!(world.held(0), (4, None), "what operators sign takes its place");
}

#[test]
fn an_addition_that_does_not_go_on_from_what_is_in_force_is_refused() {
    let mut world = World::settled();
    let (base, four) = (world.base(), world.with_four());
    let foreign = signed_roster(1, 2);
    let refused = |world: &mut World, next| world.apply_roster(next).expect_err("out of turn").to_string();
    let said = refused(&mut world, added_roster(&foreign, foreign.digest, 2, &[4]));
    assert!(said.contains("another roster than the one in force"), "{said}");
    world.apply_roster(four.clone()).expect("it is in turn");
    let said = refused(&mut world, four.clone());
    assert!(said.contains("the next one is 3"), "{said}");
    let said = refused(&mut world, added_roster(&base, base.digest, 3, &[4, 5]));
    assert!(said.contains("another roster than the one in force"), "{said}");
    let said = refused(&mut world, added_roster(&base, four.digest, 3, &[5, 6]));
    assert!(said.contains("host-4 was added in revision 2"), "{said}");
    world.change_roster(4).expect("operators may at any time");
    let said = refused(&mut world, added_roster(&base, four.digest, 4, &[4, 5, 6]));
    assert!(said.contains("revision 1 of the operators, and revision 3 has been seen"), "{said}");
}

#[test]
fn a_host_that_has_seen_an_addition_flips_under_no_other_roster() {
    let mut world = World::settled();
    let four = world.with_four();
    world.show_this(1, &four);
    assert_eq!(world.held(1), (2, Some(1)));
    // The operators were shown a roster without host-4, and sign the next one of the same revision.
    world.change_roster(3).expect("the coordinator knows of no addition");
    world.flip(1);
    assert_eq!(world.refusal_of(1), Some(Code::RosterChanged));
    world.expect_all_serve(0, 1);
    // Knowing of it, they sign a later one.
    world.change_roster(3).expect("the next one");
    world.flip(1);
    world.expect_all_serve(1, 2);
    assert_eq!(world.held(1), (3, None));
}

#[test]
fn what_a_host_has_seen_added_is_not_taken_back_by_joiners_nor_by_a_restart() {
    let mut world = World::settled();
    let (base, four) = (world.base(), world.with_four());
    world.show_this(0, &four);
    world.rest();
    for (follows, revision, added) in [(base.digest, 2, &[5][..]), (four.digest, 3, &[5, 6])] {
        world.show_this(0, &added_roster(&base, follows, revision, added));
        assert_eq!(world.refusal_of(0), Some(Code::RosterChanged));
        assert_eq!(world.held(0), (2, Some(1)));
    }
    world.crash_agent(0);
    world.start_agent(0);
    world.rest();
    world.show_this(0, &signed_roster(2, 3));
    assert_eq!(world.refusal_of(0), Some(Code::RosterChanged));
    assert_eq!(world.held(0), (2, Some(1)));
    world.show_this(0, &added_roster(&base, four.digest, 3, &[4, 7]));
    assert_eq!(world.held(0), (3, Some(2)));
    world.show_this(0, &base);
    world.show_this(0, &four);
    assert_eq!(world.held(0), (3, Some(2)), "what is older is passed over");
    world.show_this(0, &signed_roster(4, 3));
    assert_eq!(world.held(0), (4, None));
    assert_eq!(world.coordinator.record.phase, Phase::Settled);
}

/// To a host that was away for too long the addition is too old: it goes by what operators have signed.
#[test]
fn who_has_closed_for_what_operators_signed_is_not_waited_for_once_hosts_are_added_to_that() {
    let mut world = World::settled();
    world.machines[2].hold = Hold::Up;
    world.park(3).expect("the fleet is settled");
    world.rest();
    assert_eq!((world.machines[2].guard, world.roster_in_force().hosts().len()), (None, 3));
    world.machines[2].hold = Hold::Network;
    let base = world.rosters.last().expect("there are some").clone();
    world.apply_roster(added_roster(&base, base.digest, 3, &[4])).expect("taken at any time");
    world.machines[2].shown.clear();
    world.cut(2);
    world.machines[2].hold = Hold::Nothing;
    // It takes the addition for nothing more than what it goes on from, which it has seen.
    assert!(world.run_until(|world| !world.machines[2].shown.is_empty()));
    world.machines[2].shown.clear();
    world.expect_until(|world| world.roster_in_force().revision() == RosterRevision(3));
    assert_eq!(world.machines[2].record.membership, Membership::Excluded(RosterRevision(2)));
    assert_eq!(world.roster_in_force().hosts().len(), 3, "1, 2 and 4");
    assert_eq!(world.violation, None);
}
