//! What brings a planted mistake to light: words that nobody meant, and the moments at which they do harm.

use muster_guard::LeaseState;
use muster_model::{Closure, Secret, ToHost};

use super::clock::Clock;
use super::faults::{PAUSE_MS_MAX, park, unpark};
use super::link::{Hold, Link, Origin};
use super::machine::{GuardWork, Machine, Pace};
use super::world::{Mistake, World};
use crate::fleet::Phase;
use crate::host::Mode;

/// How often something is said in the coordinator's name, where that is the mistake.
pub(super) const FORGED_PER_MILLE: u64 = 250;
/// A third of a lease, on the slowest clock.
const RENEWAL_MS: u64 = 115;

/// Brings about what a mistake about leases shows in: a host that hears nothing any more, at the worst moment.
pub(super) fn provoke(world: &mut World) {
    let is_decided = matches!(world.coordinator.record.phase, Phase::Decided(_));
    match world.mistake {
        Some(Mistake::WaitTooShort) if is_decided => {
            let held = world.random.index(world.machines.len());
            if matches!(world.machines[held].record.mode, Mode::Armed { .. }) {
                world.machines[held].hold = Hold::Network;
            }
            world.pass_deadline();
        }
        Some(Mistake::WaitSkippedAtTakeOver) if is_decided => take_over_beside_a_silent_host(world),
        Some(Mistake::CloseCancelsDeadline) if is_decided => {
            let failing = world.random.index(world.machines.len());
            world.machines[failing].closes_to_fail = 1;
            let is_lifted = *world.machines[failing].lease.hold() == LeaseState::Free;
            let tried = is_lifted && world.machines[failing].guard.is_some();
            if tried && matches!(world.machines[failing].record.mode, Mode::Armed { .. }) {
                world.crash_agent(failing);
                world.pass_deadline();
            }
        }
        Some(Mistake::LeaseNotTakenUp) if is_decided => {
            let killed = world.random.index(world.machines.len());
            if matches!(world.machines[killed].record.mode, Mode::Armed { .. }) {
                world.machines[killed].hold = Hold::Network;
                world.guard_dies(killed);
                world.pass_deadline();
            }
        }
        Some(Mistake::GrantWithoutReading)
            if matches!(world.coordinator.record.phase, Phase::Arming(_))
                && world.random.chance(FORGED_PER_MILLE) =>
        {
            // Its armed hosts go on asking it.
            world.depose(Clock::exact());
            world.pass_time(world.now + RENEWAL_MS);
        }
        Some(Mistake::TimerForgotten) if is_decided => {
            let held = world.random.index(world.machines.len());
            world.machines[held].hold = Hold::Network;
            world.pass_time(world.now + PAUSE_MS_MAX);
        }
        Some(Mistake::StaleAdmit) if world.random.chance(FORGED_PER_MILLE) => {
            let rebooted = world.random.index(world.machines.len());
            world.reboot(rebooted);
            world.start_agent(rebooted);
            world.connect(rebooted);
        }
        Some(Mistake::ClosingsNotToldApart) => {
            world.guard_pace = Pace::Slow;
            move_who_waits(world);
        }
        Some(_) | None => {}
    }
}

/// Who waits to open is parked, and who waits to close is asked back.
pub(super) fn move_who_waits(world: &mut World) {
    let index = world.random.index(world.machines.len());
    let (number, waiting) = (index + 1, &world.machines[index].guard_work);
    if world.parked.contains(&number) && !waiting.is_empty() {
        unpark(world);
    } else if world.parked.is_empty() && waiting.iter().any(GuardWork::may_serve) {
        park(world, number);
    }
}

/// One host is armed and hears nothing any more, the others have closed, and then another leader takes over.
fn take_over_beside_a_silent_host(world: &mut World) {
    let is_armed = |machine: &Machine| matches!(machine.record.mode, Mode::Armed { .. });
    let armed = world.machines.iter().filter(|machine| is_armed(machine)).count();
    match world.machines.iter().position(|machine| machine.hold == Hold::Network) {
        None => {
            let held = world.random.index(world.machines.len());
            if is_armed(&world.machines[held]) {
                world.machines[held].hold = Hold::Network;
            }
        }
        Some(held) if armed == 1 && world.machines[held].guard.is_some() => {
            world.crash_coordinator();
            world.start_coordinator();
        }
        Some(_) => {}
    }
}

/// Says something in the coordinator's name that it would not say now.
pub(super) fn forge(world: &mut World) {
    let index = world.random.index(world.machines.len());
    let leadership = world.coordinator.record.leadership;
    let machine = &world.machines[index];
    if machine.session().is_none() {
        return;
    }
    let message = match (world.mistake, &machine.record.mode) {
        (Some(Mistake::StaleAdmit), Mode::Serve(_)) => match (machine.offered, machine.nonce) {
            (Some((epoch, release)), Some(nonce)) if !machine.permitted => {
                ToHost::Admit { epoch, release, nonce }
            }
            _ => return,
        },
        (Some(Mistake::StrayDisarm), Mode::Armed { k, .. }) => ToHost::Disarm { k: *k },
        (Some(Mistake::ForgedOpen), Mode::Closed { k, next, .. }) => {
            let (k, epoch, release) = (*k, next.epoch, next.release);
            let mut secrets: Vec<Secret> =
                world.machines.iter().filter_map(|it| revealed(&it.record.mode)).collect();
            let wrong = Secret::from_bytes(world.random.bytes());
            match world.random.below(3) {
                // One too few, one wrong, or one too many.
                0 => secrets.truncate(secrets.len().saturating_sub(1)),
                1 => secrets[0] = wrong,
                2.. => secrets.push(wrong),
            }
            ToHost::Open { k, epoch, release, secrets: secrets.into_iter().map(Closure::Revealed).collect() }
        }
        _ => return,
    };
    note!(world, "forged for {}: {message:?}", world.machines[index].name);
    let link: Option<&mut Link> = world.machines[index].link.as_mut();
    if let Some(link) = link {
        world.opens_forged += u64::from(matches!(message, ToHost::Open { .. }));
        // Ahead of what the coordinator says, but within the session.
        let at = usize::from(matches!(link.down.front(), Some((_, ToHost::Joined { .. }, _))));
        link.down.insert(at, (leadership, message, Origin::Forger));
    }
}

/// What a host that has closed made known.
const fn revealed(mode: &Mode) -> Option<Secret> {
    match mode {
        Mode::Closed { next, .. } => Some(next.secret),
        Mode::Serve(_) | Mode::Armed { .. } => None,
    }
}
