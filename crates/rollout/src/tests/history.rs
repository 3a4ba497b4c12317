//! Random histories. `MUSTER_SEED=<n>` replays one of them, `MUSTER_HISTORIES=<n>` runs more.

use std::fmt::Write as _;
use std::ops::Range;

use muster_model::{BootTime, Closure, Digest, FlipMode, JoinReport, Nonce, Secret, ToHost, Token};

use super::machine::{Clock, Disk, Hold, Link, Origin, Pace, Tree};
use super::papers::host_name;
use super::world::{Mistake, RELEASES, World};
use crate::fleet::{Event, Fleet, Identity, Phase};
use crate::host::Mode;

/// How many histories are run unless it is told otherwise.
const HISTORIES: u64 = 3_000;
const ACTIONS_MAX: u64 = 250;
/// How often something is said in the coordinator's name, where that is the mistake.
const FORGED_PER_MILLE: u64 = 250;
const HOSTS_MAX: usize = 5;
/// How often a history flips at instants.
const FAST_PER_MILLE: u64 = 150;
/// Longer than a lease and shorter than a wait.
const PAUSE_MS_MAX: u64 = 450;
/// How many deadlines a world without faults needs at most.
const DEADLINES_TO_HEAL_MAX: usize = 8;
/// Lines of the trace that are shown; what matters is near its end.
const TRACE_LINES_MAX: usize = 400;

/// What went wrong in which history.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) seed: u64,
    pub(super) violation: String,
}

/// What a number of histories has covered.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Coverage {
    pub(super) decided: u64,
    pub(super) aborted: u64,
    pub(super) opens_forged: u64,
    pub(super) actions: u64,
}

/// Which faults a history has, and how often. Each history leaves some out, so that others get further.
#[derive(Debug, Clone, Copy)]
struct Weather {
    faults_per_mille: u64,
    kinds: u64,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Cut,
    GiveUp,
    HangUp,
    CrashAgent,
    Reboot,
    CrashCoordinator,
    Abort,
    Tamper,
    ServiceEnds,
    Deadline,
    Clone,
    RollBackDisk,
    AddHost,
    RemoveHost,
    Partition,
    PassTime,
}

const FAULTS: [Fault; 16] = [
    Fault::Cut,
    Fault::GiveUp,
    Fault::HangUp,
    Fault::CrashAgent,
    Fault::Reboot,
    Fault::CrashCoordinator,
    Fault::Abort,
    Fault::Tamper,
    Fault::ServiceEnds,
    Fault::Deadline,
    Fault::Clone,
    Fault::RollBackDisk,
    Fault::AddHost,
    Fault::RemoveHost,
    Fault::Partition,
    Fault::PassTime,
];

#[test]
fn random_histories_keep_every_invariant_and_settle() {
    let seeds = match number("MUSTER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MUSTER_HISTORIES").unwrap_or(HISTORIES),
    };
    let coverage = match search(None, seeds) {
        Ok(coverage) => coverage,
        Err(failure) => panic!("{}", explain(&failure, None)),
    };
    // A search that never gets anywhere finds nothing.
    let is_search = number("MUSTER_SEED").is_none();
    assert!(!is_search || (coverage.decided > 0 && coverage.aborted > 0), "{coverage:?}");
}

/// Runs histories until one breaks an invariant.
pub(super) fn search(mistake: Option<Mistake>, seeds: Range<u64>) -> Result<Coverage, Failure> {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|at| {
                let seeds = seeds.clone();
                scope.spawn(move || {
                    let mut sum = Coverage::default();
                    for seed in seeds.filter(|seed| seed % threads == at) {
                        let mut world = new_world(seed, mistake);
                        live(&mut world);
                        sum.add(&world);
                        if let Some(violation) = world.violation {
                            return Err(Failure { seed, violation });
                        }
                    }
                    Ok(sum)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a history panicked")).collect::<Vec<_>>()
    });
    let mut sum = Coverage::default();
    for result in results {
        let part = result?;
        sum.decided += part.decided;
        sum.aborted += part.aborted;
        sum.opens_forged += part.opens_forged;
        sum.actions += part.actions;
    }
    Ok(sum)
}

/// Lives a failed history again, and tells it.
pub(super) fn explain(failure: &Failure, mistake: Option<Mistake>) -> String {
    let mut world = new_world(failure.seed, mistake);
    world.log = Some(Vec::new());
    live(&mut world);
    let log = world.log.unwrap_or_default();
    let mut text = String::new();
    for line in log.iter().skip(log.len().saturating_sub(TRACE_LINES_MAX)) {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "{}\nreplay with MUSTER_SEED={}", failure.violation, failure.seed);
    text
}

impl Coverage {
    fn add(&mut self, world: &World) {
        let decided =
            world.fates.values().filter(|fate| **fate == super::world::Fate::Decided).count() as u64;
        self.decided += decided;
        self.aborted += world.fates.len() as u64 - decided;
        self.opens_forged += world.opens_forged;
        self.actions += ACTIONS_MAX;
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("the variable is a number"))
}

fn new_world(seed: u64, mistake: Option<Mistake>) -> World {
    let hosts = 2 + usize::try_from(seed % 3).expect("small");
    let mut world = World::new(hosts, seed);
    world.mistake = mistake;
    world
}

/// One history: faults for a while, then none, and then the fleet must be well.
fn live(world: &mut World) {
    world.deploy_everywhere();
    world.start_all();
    let weather =
        Weather { faults_per_mille: [0, 20, 60, 150][world.random.index(4)], kinds: world.random.next() };
    if weather.faults_per_mille > 0 && weather.kinds & 1 << 32 == 0 {
        world.crash_per_mille = [2, 10][world.random.index(2)];
    }
    world.guard_fails_per_mille = [0, 0, 50, 300][world.random.index(4)];
    world.guard_pace = [Pace::Usual, Pace::Slow][world.random.index(2)];
    world.slow_per_mille = [0, 100, 300][world.random.index(3)];
    world.max_lapsed = [0, 1, 2][world.random.index(3)];
    // The mistakes are all about what strict mode promises.
    if world.mistake.is_none() && world.random.chance(FAST_PER_MILLE) {
        world.mode = FlipMode::Fast;
    }
    set_clocks(world);
    for _ in 0..ACTIONS_MAX {
        act(world, weather);
        world.check();
        if world.violation.is_some() {
            return;
        }
    }
    heal(world);
    if world.violation.is_none() {
        flip_once_more(world);
    }
}

/// Clocks that are as far off as is allowed for, and guards that take as long as they may.
fn set_clocks(world: &mut World) {
    let timing = world.roster_in_force().policy().timing;
    let rho = i64::try_from(timing.rate_error_ppm).expect("small");
    let mut drift_ppm = || [-rho, 0, rho][world.random.index(3)];
    world.clock = Clock { drift_ppm: drift_ppm() };
    let drifts: Vec<i64> = world.machines.iter().map(|_| drift_ppm()).collect();
    for (machine, drift_ppm) in world.machines.iter_mut().zip(drifts) {
        machine.clock = Clock { drift_ppm };
        machine.fence_ms = [1, timing.fence_ms][world.random.index(2)];
    }
}

fn act(world: &mut World, weather: Weather) {
    world.now += world.random.below(5);
    if world.random.chance(weather.faults_per_mille) {
        let kind = world.random.index(FAULTS.len());
        if weather.kinds & 1 << kind == 0 {
            let host = world.random.index(world.machines.len());
            note!(world, "{:?} {}", FAULTS[kind], world.machines[host].name);
            inflict(world, FAULTS[kind], host);
            return;
        }
    }
    if world.mistake.is_some() && world.random.chance(FORGED_PER_MILLE) {
        forge(world);
        provoke(world);
    }
    match world.random.below(100) {
        0..=5 => {
            let to = world.random.index(RELEASES);
            if world.coordinator.fleet.is_some() {
                note!(world, "propose {to}");
                let _ = world.propose(to);
            }
        }
        6..=9 => {
            let host = world.random.index(world.machines.len());
            recover(world, host);
        }
        10..=24 => {
            let host = world.random.index(world.machines.len());
            world.connect(host);
        }
        25.. => {
            world.progress();
        }
    }
}

fn inflict(world: &mut World, fault: Fault, host: usize) {
    match fault {
        Fault::Cut => world.cut(host),
        Fault::GiveUp => world.give_up(host),
        Fault::HangUp => {
            if world.machines[host].link.is_some() {
                world.hang_up(host);
                world.host_event(host, crate::host::Event::Disconnected);
            }
        }
        Fault::CrashAgent => world.crash_agent(host),
        Fault::Reboot => world.reboot(host),
        Fault::CrashCoordinator => world.crash_coordinator(),
        Fault::Abort => {
            if world.coordinator.fleet.is_some() {
                let _ = world.abort();
            }
        }
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
        Fault::AddHost => {
            let hosts = world.machines.len() + 1;
            // Whoever was removed stays away: its journal is of another life.
            let nobody_left = world.roster_in_force().hosts().len() == world.machines.len();
            if world.coordinator.fleet.is_some() && hosts <= HOSTS_MAX && nobody_left {
                let _ = world.change_roster(hosts);
            }
        }
        Fault::RemoveHost => {
            let hosts = world.roster_in_force().hosts().len() - 1;
            if world.coordinator.fleet.is_some() && hosts > 0 {
                if world.mistake == Some(Mistake::RemovedAfterOffer) {
                    world.fenced.insert(host_name(hosts + 1));
                    world.give_up(hosts);
                }
                let _ = world.change_roster(hosts);
            }
        }
        Fault::Partition => world.machines[host].hold = Hold::Network,
        Fault::PassTime => {
            let pause = world.random.below(PAUSE_MS_MAX);
            world.pass_time(world.now + pause);
        }
    }
}

/// What time and people put right.
fn recover(world: &mut World, host: usize) {
    note!(world, "recover {}", world.machines[host].name);
    match world.random.below(5) {
        4 => world.machines[host].hold = Hold::Nothing,
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
        _ => {
            if matches!(world.machines[host].disk, Disk::Newest) && is_duplicate(world, host) {
                world.readmit(&host_name(host + 1));
            }
        }
    }
}

fn is_duplicate(world: &World, host: usize) -> bool {
    let session = world.coordinator.sessions.get(&host_name(host + 1));
    session.is_some_and(|session| session.identity == Identity::Duplicate)
}

/// Another machine with the same identity shows a token that the first one has used up. It must not be let in, and the
/// identity must be quarantined.
fn join_a_clone(world: &mut World, host: usize) {
    let name = host_name(host + 1);
    let Some(known) = world.coordinator.sessions.get(&name).cloned() else { return };
    let is_member = world.roster_in_force().position(&name).is_some();
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
    let is_let_in = fleet.hosts().iter().any(|view| view.session == Some(session));
    if is_let_in || !is_duplicate(world, host) {
        world.violate(format!("P9: a clone of {name} was let in"));
    }
}

/// The machine is restored from an image that is older than what it told when it joined last.
fn roll_back_disk(world: &mut World, host: usize) {
    let Some(known) = world.coordinator.sessions.get(&host_name(host + 1)) else { return };
    let machine = &world.machines[host];
    if known.readmitted || matches!(machine.disk, Disk::RolledBack(_)) {
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
    let newest =
        (std::mem::replace(&mut machine.record, record), std::mem::replace(&mut machine.journal, journal));
    machine.disk = Disk::RolledBack(Box::new(newest));
}

/// Brings about what a mistake about leases shows in: a host that hears nothing any more, at the worst moment.
fn provoke(world: &mut World) {
    let is_decided = matches!(world.coordinator.record.phase, Phase::Decided(_));
    match world.mistake {
        Some(Mistake::WaitTooShort | Mistake::WaitSkippedAtTakeOver) if is_decided => {
            let held = world.random.index(world.machines.len());
            if matches!(world.machines[held].record.mode, Mode::Armed { .. }) {
                world.machines[held].hold = Hold::Network;
            }
            if world.mistake == Some(Mistake::WaitSkippedAtTakeOver) {
                world.crash_coordinator();
                world.start_coordinator();
            }
            world.pass_deadline();
        }
        Some(Mistake::CloseCancelsDeadline) if is_decided => {
            let failing = world.random.index(world.machines.len());
            world.machines[failing].closes_to_fail = 1;
            let tried = world.machines[failing].lease.is_none() && world.machines[failing].guard.is_some();
            if tried && matches!(world.machines[failing].record.mode, Mode::Armed { .. }) {
                world.crash_agent(failing);
                world.pass_deadline();
            }
        }
        Some(Mistake::StaleAdmit) if world.random.chance(FORGED_PER_MILLE) => {
            let rebooted = world.random.index(world.machines.len());
            world.reboot(rebooted);
            world.start_agent(rebooted);
        }
        Some(_) | None => {}
    }
}

/// Says something in the coordinator's name that it would not say now.
fn forge(world: &mut World) {
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

/// No faults any more, and everything that people can put right is put right: then the fleet must settle.
fn heal(world: &mut World) {
    note!(world, "--- heal ---");
    world.crash_per_mille = 0;
    world.guard_fails_per_mille = 0;
    for index in 0..world.machines.len() {
        world.machines[index].hold = Hold::Nothing;
        if matches!(world.machines[index].disk, Disk::RolledBack(_)) {
            world.reboot(index);
            let machine = &mut world.machines[index];
            if let Disk::RolledBack(newest) = std::mem::replace(&mut machine.disk, Disk::Newest) {
                (machine.record, machine.journal) = *newest;
            }
        }
    }
    world.deploy_everywhere();
    world.start_all();
    // What is still under way may show an old token.
    world.rest();
    for index in 0..world.machines.len() {
        if is_duplicate(world, index) {
            world.readmit(&host_name(index + 1));
        }
    }
    world.rest();
    pass_deadlines(world);
    world.report_deployed();
    world.rest();
    expect_settled(world, "after everything was put right");
}

/// A rollout that waits for an answer that was lost is given up at its deadline; one that was decided has the others open
/// once the lease of whoever is silent must have ended; one in fast mode flips at its instant.
fn pass_deadlines(world: &mut World) {
    for _ in 0..DEADLINES_TO_HEAL_MAX {
        if !world.pass_deadline() {
            return;
        }
        world.rest();
    }
}

/// A fleet that is well can flip.
fn flip_once_more(world: &mut World) {
    note!(world, "--- flip once more ---");
    let epoch = world.coordinator.record.epoch;
    let serving = world.coordinator.record.serving;
    let to = world.releases.iter().position(|release| Some(release.manifest) != serving).expect("three");
    if let Err(refusal) = world.propose(to) {
        return world.violate(format!("stuck: a settled fleet cannot flip: {refusal}"));
    }
    world.rest();
    pass_deadlines(world);
    expect_settled(world, "after one more flip");
    if world.coordinator.record.epoch != epoch.next() {
        let why = world.ends.last().map(|end| format!("{:?}", end.blockers));
        world.violate(format!("stuck: one more flip was given up: {why:?}"));
    }
}

fn expect_settled(world: &mut World, when: &str) {
    let record = &world.coordinator.record;
    if record.phase != Phase::Settled {
        let deadline: Option<BootTime> = world.coordinator.fleet.as_ref().and_then(Fleet::next_deadline);
        let stuck = format!("stuck {when}: {:?}, deadline {deadline:?}", record.phase);
        return world.violate(stuck);
    }
    let expected = record.serving.map(|release: Digest| (record.epoch, release));
    let roster = world.roster_in_force();
    let other = world
        .machines
        .iter()
        .find(|machine| roster.position(&machine.name).is_some() && machine.guard != expected)
        .map(|machine| format!("stuck {when}: {} serves {:?}", machine.name, machine.guard));
    if let Some(other) = other {
        world.violate(other);
    }
}
