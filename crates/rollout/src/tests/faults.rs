//! What goes wrong in a history, and what time and people put right.

use muster_model::{JoinReport, Nonce, Token};

use super::clock::Clock;
use super::link::{Delay, Hold, Route};
use super::machine::{Image, Run, Tree};
use super::papers::host_name;
use super::world::{Mistake, RELEASES, World};
use crate::fleet::{Event, Identity};

/// Longer than a lease and shorter than a wait.
pub(super) const PAUSE_MS_MAX: u64 = 450;
/// How many hosts may be added to those that a history begins with.
const HOSTS_ADDED_MAX: usize = 1;
/// What a slow link adds to a message: too much for some steps, and not for all.
const SLOW_LINK_MS: [u64; 4] = [20, 60, 150, 400];
/// What a clock may show when a history begins.
const CLOCK_OFFSET_MS_MAX: u64 = 1_000_000_000;

/// One thing that may go wrong.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    Cut,
    GiveUp,
    HangUp,
    /// A second stream while the first is still there.
    SecondStream,
    CrashAgent,
    StopAgent,
    Reboot,
    GuardDies,
    CrashCoordinator,
    PowerOffCoordinator,
    Depose,
    StopDeposed,
    Abort,
    Halt,
    HaltByHand,
    Tamper,
    ServiceEnds,
    Deadline,
    Clone,
    RollBackDisk,
    AddHost,
    RemoveHost,
    Park,
    Unpark,
    /// A machine is off, and somebody states so.
    StateOff,
    /// A new machine takes the place of one that is off.
    Exchange,
    Partition,
    PartitionUp,
    PartitionDown,
    SlowLink,
    PassTime,
}

pub(super) const FAULTS: [Fault; 31] = [
    Fault::Cut,
    Fault::GiveUp,
    Fault::HangUp,
    Fault::SecondStream,
    Fault::CrashAgent,
    Fault::StopAgent,
    Fault::Reboot,
    Fault::GuardDies,
    Fault::CrashCoordinator,
    Fault::PowerOffCoordinator,
    Fault::Depose,
    Fault::StopDeposed,
    Fault::Abort,
    Fault::Halt,
    Fault::HaltByHand,
    Fault::Tamper,
    Fault::ServiceEnds,
    Fault::Deadline,
    Fault::Clone,
    Fault::RollBackDisk,
    Fault::AddHost,
    Fault::RemoveHost,
    Fault::Park,
    Fault::Unpark,
    Fault::StateOff,
    Fault::Exchange,
    Fault::Partition,
    Fault::PartitionUp,
    Fault::PartitionDown,
    Fault::SlowLink,
    Fault::PassTime,
];

/// A clock that is as far off in rate as is allowed for, or not at all.
pub(super) fn some_clock(world: &mut World) -> Clock {
    let timing = world.roster_in_force().policy().timing;
    let rho = i64::try_from(timing.rate_error_ppm).expect("small");
    let rate = if world.drifts { [-rho, 0, rho][world.random.index(3)] } else { 0 };
    Clock::new(rate, world.random.below(CLOCK_OFFSET_MS_MAX))
}

pub(super) fn inflict(world: &mut World, fault: Fault, host: usize) {
    match fault {
        Fault::Cut => world.cut(host),
        Fault::GiveUp => world.give_up(host),
        Fault::HangUp => leave(world, host),
        Fault::SecondStream => {
            leave(world, host);
            world.connect(host);
        }
        Fault::CrashAgent => world.crash_agent(host),
        Fault::StopAgent => world.machines[host].run = Run::Stopped,
        Fault::Reboot => world.reboot(host),
        Fault::GuardDies => world.guard_dies(host),
        Fault::CrashCoordinator => world.crash_coordinator(),
        Fault::PowerOffCoordinator => world.power_off_coordinator(),
        Fault::Depose => {
            let clock = some_clock(world);
            world.depose(clock);
        }
        Fault::StopDeposed => world.stop_deposed(),
        Fault::Abort => {
            if world.coordinator.fleet.is_some() {
                let _ = world.abort();
            }
        }
        Fault::Halt => world.halt(),
        Fault::HaltByHand => world.halt_by_hand(host),
        Fault::Tamper => {
            let release = world.random.index(RELEASES);
            world.machines[host].trees[release] =
                if world.random.chance(500) { Tree::Tampered } else { Tree::Missing };
        }
        Fault::ServiceEnds => world.end_service(host),
        Fault::Deadline => {
            world.pass_deadline();
        }
        Fault::Clone => join_a_clone(world, host),
        Fault::RollBackDisk => roll_back_disk(world, host),
        Fault::AddHost => add_host(world),
        Fault::RemoveHost => remove_host(world),
        Fault::Park => park(world, host + 1),
        Fault::Unpark => unpark(world),
        Fault::StateOff => state_off(world, host),
        Fault::Exchange => exchange(world, host),
        Fault::Partition => world.machines[host].hold = Hold::Network,
        Fault::PartitionUp => world.machines[host].hold = Hold::Up,
        Fault::PartitionDown => world.machines[host].hold = Hold::Down,
        Fault::SlowLink => slow_down(world, host),
        Fault::PassTime => {
            let pause = world.random.below(PAUSE_MS_MAX);
            world.pass_time(world.now + pause);
        }
    }
}

/// The agent gives its stream up.
fn leave(world: &mut World, host: usize) {
    if world.machines[host].link.is_some() {
        world.hang_up(host);
        world.host_event(host, crate::host::Event::Disconnected);
    }
}

fn slow_down(world: &mut World, host: usize) {
    let least_ms = SLOW_LINK_MS[world.random.index(SLOW_LINK_MS.len())];
    let slow = Delay { least_ms, jitter_ms: least_ms };
    let route: &mut Route = &mut world.machines[host].route;
    if world.random.chance(500) {
        route.up = slow;
    } else {
        route.down = slow;
    }
}

fn add_host(world: &mut World) {
    let hosts = world.machines.len() + 1;
    // Whoever was removed stays away: its journal is of another life.
    let nobody_left = world.hosts_listed() == world.machines.len();
    let has_room = hosts <= world.hosts_at_first + HOSTS_ADDED_MAX;
    if world.coordinator.fleet.is_some() && has_room && nobody_left {
        let _ = world.change_roster(hosts);
    }
}

fn remove_host(world: &mut World) {
    let hosts = world.hosts_listed() - 1;
    let are_left = world.parked.range(..=hosts).count() < hosts;
    if world.coordinator.fleet.is_some() && are_left {
        if world.mistake == Some(Mistake::RemovedAfterOffer) {
            world.fenced.insert(host_name(hosts + 1));
            world.give_up(hosts);
        }
        let _ = world.change_roster(hosts);
    }
}

/// A host is asked to leave for a while, whatever it is at.
pub(super) fn park(world: &mut World, number: usize) {
    let are_left = world.parked.len() + 1 < world.hosts_listed();
    let is_listed = number <= world.hosts_listed() && !world.parked.contains(&number);
    if world.coordinator.fleet.is_some() && are_left && is_listed {
        let _ = world.park(number);
    }
}

/// A machine is switched off, and is parked on the statement that it is; it may be on again at any time.
fn state_off(world: &mut World, host: usize) {
    if !switch_off(world, host) {
        return;
    }
    let other = world.random.index(world.machines.len());
    let does_another_wait = world.random.chance(400) && other != host && switch_off(world, other);
    if does_another_wait && others_stay(world, other) {
        let _ = world.park(other + 1);
    }
    if others_stay(world, host) {
        world.fenced.insert(host_name(host + 1));
        let _ = world.park(host + 1);
        world.fenced.clear();
    }
    let is_parked = world.parked.contains(&(host + 1));
    if is_parked && world.coordinator.fleet.is_some() && world.random.chance(300) {
        let _ = world.unpark(host + 1);
    }
}

/// A machine that serves loses its power, and the coordinator notices, if others would go on without it.
pub(super) fn switch_off(world: &mut World, host: usize) -> bool {
    let is_serving = world.roster_in_force().member(&host_name(host + 1)).is_some();
    // Who has lost its disk may be refused for as long as it is parked, and its life before with it.
    let is_whole = matches!(world.machines[host].image, Image::Newest);
    if !others_stay(world, host) || !is_serving || !is_whole {
        return false;
    }
    world.reboot(host);
    for link in std::mem::take(&mut world.machines[host].old_links) {
        world.stream_left(host, &link);
    }
    true
}

/// Whether somebody is there to hand a roster in without this host, and it leaves others.
pub(super) fn others_stay(world: &World, host: usize) -> bool {
    let mut listed = 1..=world.hosts_listed();
    world.coordinator.fleet.is_some() && listed.any(|it| it != host + 1 && !world.parked.contains(&it))
}

/// A machine is replaced: the new one is listed, and whether or not it can join yet, the old one is off and leaves.
fn exchange(world: &mut World, host: usize) {
    add_host(world);
    state_off(world, host);
}

/// One that was parked, or is still asked to leave, is taken back.
pub(super) fn unpark(world: &mut World) {
    let parked: Vec<usize> = world.parked.iter().copied().collect();
    if world.coordinator.fleet.is_some() && !parked.is_empty() {
        let number = parked[world.random.index(parked.len())];
        let _ = world.unpark(number);
    }
}

/// What time and people put right.
pub(super) fn recover(world: &mut World, host: usize) {
    note!(world, "recover {}", world.machines[host].name);
    match world.random.below(8) {
        0 => world.start_coordinator(),
        1 => world.start_agent(host),
        2 => {
            let release = world.random.index(RELEASES);
            world.machines[host].trees[release] = Tree::Good;
            if let Some(session) = world.machines[host].session() {
                let (host, manifest) = (host_name(host + 1), world.releases[release].manifest);
                world.coordinate(Event::Deployed { host, session, manifest });
            }
        }
        3 => world.machines[host].run = Run::Running,
        4 => world.machines[host].hold = Hold::Nothing,
        5 => world.guard_returns(host),
        6 => world.machines[host].route = Route::default(),
        7.. => {
            if matches!(world.machines[host].image, Image::Newest) && is_duplicate(world, host) {
                world.readmit(&host_name(host + 1));
            }
        }
    }
}

pub(super) fn is_duplicate(world: &World, host: usize) -> bool {
    let session = world.coordinator.sessions.get(&host_name(host + 1));
    session.is_some_and(|session| session.identity == Identity::Duplicate)
}

/// Another machine with the same identity shows a token that the first one has used up. It must not be let in, and the
/// identity must be quarantined.
fn join_a_clone(world: &mut World, host: usize) {
    let name = host_name(host + 1);
    let Some(known) = world.coordinator.sessions.get(&name).cloned() else { return };
    let is_member = world.roster_in_force().place(&name).is_some();
    if world.coordinator.fleet.is_none() || known.readmitted || !is_member {
        return;
    }
    let spent = world.machines[host].history.iter().rev().find(|(record, _)| {
        record.token.is_some_and(|token| token != known.next && !known.accepts(Some(token)))
    });
    let Some((record, journal)) = spent.cloned() else { return };
    let session = world.next_session();
    let report = JoinReport {
        token: record.token,
        boot_id: known.boot_id,
        agent_version: "0.1.0".to_owned(),
        protocol: crate::fleet::PROTOCOL,
        nonce: Nonce::from_bytes(world.random.bytes()),
        journal,
        standing: record.standing(),
        serving: muster_model::ServingReport::Dark,
    };
    let next = Token::from_bytes(world.random.bytes());
    world.coordinate(Event::Joining { host: name.clone(), session, report, next });
    let Some(fleet) = &world.coordinator.fleet else { return };
    let is_let_in = fleet.hosts().iter().chain(&fleet.parked()).any(|view| view.session == Some(session));
    if is_let_in || !is_duplicate(world, host) {
        world.violate(format!("P9: a clone of {name} was let in"));
    }
}

/// The machine is restored from an image that is older than what it told when it joined last.
fn roll_back_disk(world: &mut World, host: usize) {
    let Some(known) = world.coordinator.sessions.get(&host_name(host + 1)) else { return };
    let machine = &world.machines[host];
    if known.readmitted || matches!(machine.image, Image::RolledBack(_)) {
        return;
    }
    let older: Vec<_> = machine.history.iter().filter(|(_, head)| head.seq < known.journal.seq).collect();
    if older.is_empty() {
        return;
    }
    let (record, journal) = older[world.random.clone().index(older.len())].clone();
    // By then nothing is under way any more.
    world.reboot(host);
    for link in std::mem::take(&mut world.machines[host].old_links) {
        world.stream_left(host, &link);
    }
    let machine = &mut world.machines[host];
    let newest = (machine.record.clone(), machine.journal);
    machine.install(record, journal);
    machine.image = Image::RolledBack(Box::new(newest));
}
