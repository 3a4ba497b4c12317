//! The end of a history: machines that are off leave on the statement that they are, and are taken back before they are on again.

use super::faults::{others_stay, switch_off};
use super::history::{expect_settled, flip_once_more, resume};
use super::link::Hold;
use super::papers::host_name;
use super::world::World;

/// One or two machines lose their power. Perhaps they are asked to leave first, as nobody knows; then it is stated of one after the
/// other that it is off, and the others go on. All are taken back while they are off, and must come back by themselves.
pub(super) fn leave_and_come_back(world: &mut World) {
    note!(world, "--- the dead leave ---");
    // A leader may have died over the last roster that was handed in.
    let roster = world.roster_in_force();
    let listed = 1..=world.machines.len();
    world.parked = listed.filter(|number| roster.parked_host(&host_name(*number)).is_some()).collect();
    let mut dead = Vec::new();
    for _ in 0..2 {
        let host = world.random.index(world.machines.len());
        if !dead.contains(&host) && switch_off(world, host) {
            dead.push(host);
            let is_asked = world.random.chance(700);
            if is_asked && others_stay(world, host) {
                expect_taken(world, |world| world.park(host + 1));
            }
        }
    }
    let mut left = Vec::new();
    for host in dead {
        restart_perhaps(world);
        if !others_stay(world, host) {
            // Somebody has to go on.
            world.start_agent(host);
            world.rest();
            continue;
        }
        state_off(world, host);
        if world.roster_in_force().member(&host_name(host + 1)).is_some() && world.random.chance(500) {
            is_on_for_a_moment(world, host);
            state_off(world, host);
        }
        left.push(host);
    }
    let roster = world.roster_in_force();
    if let Some(host) = left.iter().find(|host| roster.member(&host_name(*host + 1)).is_some()) {
        return world.violate(format!("stuck: {} is stated to be off and has not left", host_name(host + 1)));
    }
    if world.violation.is_none() && world.random.chance(700) {
        flip_once_more(world);
    }
    for host in left {
        restart_perhaps(world);
        expect_taken(world, |world| world.unpark(host + 1));
    }
    restart_perhaps(world);
    world.start_all();
    world.rest();
    // A host that was halted before the others were resumed.
    resume(world);
    expect_settled(world, "after those came back who had been off");
}

fn state_off(world: &mut World, host: usize) {
    world.fenced.insert(host_name(host + 1));
    expect_taken(world, |world| world.park(host + 1));
    world.fenced.clear();
}

/// It connects and hears nothing, and is off again: nobody may go by what was stated before.
fn is_on_for_a_moment(world: &mut World, host: usize) {
    world.machines[host].hold = Hold::Down;
    world.start_agent(host);
    world.rest();
    world.machines[host].hold = Hold::Nothing;
    switch_off(world, host);
    restart_perhaps(world);
}

fn restart_perhaps(world: &mut World) {
    if world.violation.is_none() && world.random.chance(300) {
        world.crash_coordinator();
        world.start_coordinator();
        world.rest();
    }
}

fn expect_taken(world: &mut World, hand_in: impl FnOnce(&mut World) -> Result<(), muster_model::Refusal>) {
    if world.violation.is_none()
        && let Err(refusal) = hand_in(world)
    {
        world.violate(format!("stuck: a roster that is in order is not taken: {refusal}"));
    }
}
