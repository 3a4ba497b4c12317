//! Random histories. `MUSTER_SEED=<n>` replays one of them, `MUSTER_HISTORIES=<n>` runs more.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Instant;

use muster_model::{BootTime, Digest, FlipMode};

use super::dead::leave_and_come_back;
use super::faults::{FAULTS, PAUSE_MS_MAX, inflict, is_duplicate, recover, some_clock};
use super::link::{Delay, Hold, Route};
use super::machine::{Driver, Image, Machine, Pace, Run};
use super::papers::host_name;
use super::provoke::{FORGED_PER_MILLE, forge, move_who_waits, provoke};
use super::random::SplitMix64;
use super::world::{Mistake, RELEASES, Seen, World};
use crate::fleet::{Fleet, Phase};
use crate::host::Mode;

/// How many histories are run unless it is told otherwise.
const HISTORIES: u64 = 3_000;
const ACTIONS_MAX: u64 = 400;
/// Enough hosts for any mistake to show, where little gets in its way.
const FEW_HOSTS: usize = 3;
/// How much more happens in a large fleet.
const ACTIONS_FOR_HOST: u64 = 60;
/// Up to how many hosts faults are as frequent as they may be: in a larger fleet each of them stops all hosts.
const FAIR_HOSTS: u64 = 5;
/// How much more often something goes wrong while hosts are armed or close.
const CRITICAL_WEIGHT: u64 = 6;
/// How often a host falls silent, if it is the worst moment for it.
const SILENCED_PER_MILLE: u64 = 100;
/// How often a host loses its guard or its power while it is armed.
const CUT_SHORT_PER_MILLE: u64 = 40;
/// How often it is its guard.
const GUARD_KILLED_PER_MILLE: u64 = 800;
/// Where that is the mistake: how much more the time of day is off than hosts attest.
const FAR_OFF: i64 = 20;
/// How long a service may take to start at an instant.
const START_MS_MAX: u64 = 20;
/// How often a history flips at instants.
const FAST_PER_MILLE: u64 = 150;
/// How many deadlines a world without faults needs at most.
const DEADLINES_TO_HEAL_MAX: usize = 8;
/// Histories that are compared with themselves.
const TRACED_SEEDS: [u64; 6] = [1, 2, 3, 5, 8, 13];
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
    pub(super) hosts: u64,
    pub(super) seen: Seen,
}

/// Which faults a history has, and how often. Each history leaves some out, so that others get further.
#[derive(Debug, Clone, Copy)]
struct Weather {
    faults_per_mille: u64,
    kinds: u64,
}

#[test]
fn random_histories_keep_every_invariant_and_settle() {
    let seeds = match number("MUSTER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MUSTER_HISTORIES").unwrap_or(HISTORIES),
    };
    let (begun, histories) = (Instant::now(), seeds.end - seeds.start);
    let coverage = match search(None, seeds) {
        Ok(coverage) => coverage,
        Err(failure) => panic!("{}", explain(&failure, None)),
    };
    print_rate(histories, coverage, begun);
    // A search that never gets anywhere finds nothing.
    let is_search = number("MUSTER_SEED").is_none();
    let is_found = coverage.decided > 0 && coverage.aborted > 0 && coverage.seen.is_complete();
    assert!(!is_search || histories < HISTORIES || is_found, "{coverage:?}");
}

#[test]
fn two_runs_of_a_seed_give_identical_traces() {
    let traces = || TRACED_SEEDS.map(|seed| trace(seed, None)).map(|trace| Digest::of(trace.as_bytes()));
    let (first, second) = std::thread::scope(|scope| {
        let (first, second) = (scope.spawn(traces), scope.spawn(traces));
        (first.join().expect("a history panicked"), second.join().expect("a history panicked"))
    });
    assert_eq!(first, second);
    assert_eq!(first, traces());
}

#[expect(clippy::print_stderr, reason = "a figure to report, for whoever runs many histories")]
fn print_rate(histories: u64, coverage: Coverage, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!(
        "{histories} histories in {seconds:.1} s, {:.0} a second: {coverage:?}",
        histories as f64 / seconds
    );
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
        sum.hosts += part.hosts;
        sum.seen.add(part.seen);
    }
    Ok(sum)
}

/// Lives a failed history again, and tells it.
pub(super) fn explain(failure: &Failure, mistake: Option<Mistake>) -> String {
    let trace = trace(failure.seed, mistake);
    let lines = trace.lines().count();
    let mut text = String::new();
    for line in trace.lines().skip(lines.saturating_sub(TRACE_LINES_MAX)) {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "{}\nreplay with MUSTER_SEED={}", failure.violation, failure.seed);
    text
}

/// All that happens in a history.
fn trace(seed: u64, mistake: Option<Mistake>) -> String {
    let mut world = new_world(seed, mistake);
    world.log = Some(Vec::new());
    live(&mut world);
    world.log.unwrap_or_default().join("\n")
}

impl Seen {
    const fn add(&mut self, other: Self) {
        self.lapsed += other.lapsed;
        self.fast += other.fast;
        self.refused_writes += other.refused_writes;
        self.torn += other.torn;
        self.leases_lost += other.leases_lost;
        self.taken_up += other.taken_up;
        self.parked += other.parked;
        self.unparked += other.unparked;
        self.off += other.off;
        self.not_off += other.not_off;
        self.told += other.told;
        self.exchanged += other.exchanged;
    }

    /// Whether each has happened.
    const fn is_complete(self) -> bool {
        let is_lapsed_and_fast = self.lapsed > 0 && self.fast > 0;
        let is_lost_and_found = self.torn > 0 && self.leases_lost > 0 && self.taken_up > 0;
        let is_moved = self.parked > 0 && self.unparked > 0;
        let is_stated = self.off > 0 && self.not_off > 0 && self.told > 0 && self.exchanged > 0;
        is_lapsed_and_fast && self.refused_writes > 0 && is_lost_and_found && is_moved && is_stated
    }
}

impl Coverage {
    fn add(&mut self, world: &World) {
        let decided =
            world.fates.values().filter(|fate| **fate == super::world::Fate::Decided).count() as u64;
        self.decided += decided;
        self.aborted += world.fates.len() as u64 - decided;
        self.opens_forged += world.opens_forged;
        self.hosts += world.machines.len() as u64;
        self.seen.add(world.seen);
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("the variable is a number"))
}

fn new_world(seed: u64, mistake: Option<Mistake>) -> World {
    let hosts = if mistake.is_some() { FEW_HOSTS } else { hosts_of(seed) };
    let mut world = World::new(hosts, seed);
    world.mistake = mistake;
    world
}

/// Most fleets are small: there histories get further.
fn hosts_of(seed: u64) -> usize {
    let mut random = SplitMix64::new(!seed);
    match random.below(1_000) {
        0..=9 => 20 + random.index(31),
        _ => 3 + random.index(6),
    }
}

/// One history: faults for a while, then none, and then the fleet must be well.
fn live(world: &mut World) {
    world.deploy_everywhere();
    let weather = some_weather(world);
    set_machines(world);
    world.start_all();
    for _ in 0..ACTIONS_MAX.max(ACTIONS_FOR_HOST * world.machines.len() as u64) {
        act(world, weather);
        world.check();
        if world.violation.is_some() {
            return;
        }
    }
    goes_on(world);
}

/// The first part of a history, until the coordinator is lost for good; then everything on the hosts that people can put right
/// is put right, and they are on their own until all that runs by itself has ended.
pub(super) fn lived_until_the_loss(seed: u64) -> World {
    let mut world = new_world(seed, None);
    world.deploy_everywhere();
    let weather = some_weather(&mut world);
    set_machines(&mut world);
    world.start_all();
    for _ in 0..world.random.below(ACTIONS_MAX) {
        act(&mut world, weather);
        world.check();
    }
    mend(&mut world);
    world.crash_coordinator();
    for index in 0..world.machines.len() {
        world.start_agent(index);
    }
    world.rest();
    outlast_leases(&mut world);
    world
}

/// A coordinator leads again: the fleet must settle, and flip.
pub(super) fn goes_on(world: &mut World) {
    heal(world);
    if world.violation.is_none() {
        flip_once_more(world);
    }
    if world.violation.is_none() {
        leave_and_come_back(world);
    }
    if world.violation.is_none() && !world.parked.is_empty() {
        take_all_back(world);
    }
}

fn some_weather(world: &mut World) -> Weather {
    let rarely = |per_mille: u64, hosts: u64| (per_mille * FAIR_HOSTS / hosts.max(FAIR_HOSTS)).max(1);
    let hosts = world.machines.len() as u64;
    let faults = [0, 5, 15, 50][world.random.index(4)];
    let weather = Weather {
        faults_per_mille: if faults == 0 { 0 } else { rarely(faults, hosts) },
        kinds: world.random.next(),
    };
    if faults > 0 && weather.kinds & 1 << 32 == 0 {
        world.crash_per_mille = rarely([4, 20][world.random.index(2)], hosts);
    }
    world.guard_fails_per_mille = [0, 0, 50, 300][world.random.index(4)];
    world.guard_disk_fails_per_mille = [0, 0, 0, 50][world.random.index(4)];
    world.hooks_fail_per_mille = [0, 0, 0, 100][world.random.index(4)] * FAIR_HOSTS / hosts.max(FAIR_HOSTS);
    world.guard_pace = [Pace::Usual, Pace::Slow][world.random.index(2)];
    world.slow_per_mille = [0, 100, 300][world.random.index(3)];
    world.read_ms_max = [0, 5, 40][world.random.index(3)];
    world.max_lapsed = [0, 1, 2][world.random.index(3)];
    world.drifts = world.random.chance(750);
    // All mistakes but one are about what strict mode promises.
    let is_fast = match world.mistake {
        None => world.random.chance(FAST_PER_MILLE),
        Some(mistake) => mistake == Mistake::TimeOfDayOff,
    };
    world.mode = if is_fast { FlipMode::Fast } else { FlipMode::Strict };
    weather
}

/// Clocks that are as far off as is allowed for, links of all lengths, and guards that take as long as they may.
fn set_machines(world: &mut World) {
    let timing = world.roster_in_force().policy().timing;
    let attested = i64::try_from(timing.clock_error_ms).expect("small");
    let is_off = world.mistake == Some(Mistake::TimeOfDayOff);
    let error = if is_off { attested * FAR_OFF } else { attested };
    world.clock = some_clock(world);
    let jitter_ms = [0, 2, 10][world.random.index(3)];
    for index in 0..world.machines.len() {
        let clock = some_clock(world);
        let machine = &mut world.machines[index];
        let random = &mut world.random;
        machine.clock = clock;
        machine.unix_error_ms = [-error, 0, error][random.index(3)];
        machine.driver = [Driver::Link, Driver::Supervise][random.index(2)];
        machine.fence_ms = [1, timing.fence_ms][random.index(2)];
        machine.hook_ms = [0, (timing.fence_ms - machine.fence_ms) / 2][random.index(2)];
        machine.drain_ms = [0, 0, 20, 60][random.index(4)];
        machine.start_ms = random.below(START_MS_MAX);
        if jitter_ms > 0 {
            let mut delay = || Delay { least_ms: random.below(jitter_ms), jitter_ms };
            machine.route = Route { up: delay(), down: delay() };
        }
    }
}

fn act(world: &mut World, weather: Weather) {
    let pause = world.pause(5);
    world.pass_time(world.now + pause);
    // What goes wrong between ARM and OPENED is what the protocol is for.
    let weight = match world.coordinator.record.phase {
        Phase::Arming(_) | Phase::Decided(_) => CRITICAL_WEIGHT,
        Phase::Settled | Phase::Preparing(_) | Phase::Opened(_) => 1,
    };
    if world.random.chance(weather.faults_per_mille * weight) {
        let kind = world.random.index(FAULTS.len());
        if weather.kinds & 1 << kind == 0 {
            let host = world.random.index(world.machines.len());
            note!(world, "{} {:?} {}", world.now, FAULTS[kind], world.machines[host].name);
            inflict(world, FAULTS[kind], host);
            return;
        }
    }
    if weather.faults_per_mille > 0 && weather.kinds & 1 << 33 == 0 && world.random.chance(SILENCED_PER_MILLE)
    {
        silence_an_armed_host(world);
    }
    if weather.faults_per_mille > 0
        && weather.kinds & 1 << 34 == 0
        && world.random.chance(CUT_SHORT_PER_MILLE)
    {
        cut_a_lease_short(world);
    }
    if weather.faults_per_mille > 0 && weather.kinds & 3 << 35 == 0 && world.random.chance(FORGED_PER_MILLE) {
        move_who_waits(world);
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
            if !world.progress() {
                world.idle(PAUSE_MS_MAX);
            }
        }
    }
}

/// A host that has armed for a rollout that is decided hears nothing any more.
fn silence_an_armed_host(world: &mut World) {
    let host = world.random.index(world.machines.len());
    let is_decided = matches!(world.coordinator.record.phase, Phase::Decided(_));
    if is_decided && matches!(world.machines[host].record.mode, Mode::Armed { .. }) {
        note!(world, "{} {} is cut off", world.now, world.machines[host].name);
        world.machines[host].hold = Hold::Network;
    }
}

/// The guard of a host that is armed or fences itself is killed, or the power goes.
fn cut_a_lease_short(world: &mut World) {
    let host = world.random.index(world.machines.len());
    let machine = &world.machines[host];
    if machine.lease.due().is_none() {
        return;
    }
    note!(world, "{} the lease of {} is cut short", world.now, machine.name);
    if world.random.chance(GUARD_KILLED_PER_MILLE) {
        world.guard_dies(host);
    } else {
        world.reboot(host);
    }
}

/// No faults any more, and everything that people can put right is put right: then the fleet must settle.
fn heal(world: &mut World) {
    note!(world, "--- heal ---");
    mend(world);
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
    outlast_leases(world);
    world.report_deployed();
    world.rest();
    resume(world);
    // Whoever joins once that is over may have been halted as well.
    resume(world);
    expect_settled(world, "after everything was put right");
}

/// No faults any more, on any machine.
fn mend(world: &mut World) {
    world.crash_per_mille = 0;
    world.guard_fails_per_mille = 0;
    world.guard_disk_fails_per_mille = 0;
    world.hooks_fail_per_mille = 0;
    world.stop_deposed();
    for index in 0..world.machines.len() {
        world.machines[index].hold = Hold::Nothing;
        world.machines[index].route = Route::default();
        world.machines[index].run = Run::Running;
        world.guard_returns(index);
        if matches!(world.machines[index].image, Image::RolledBack(_)) {
            world.reboot(index);
            let machine = &mut world.machines[index];
            if let Image::RolledBack(newest) = std::mem::replace(&mut machine.image, Image::Newest) {
                let (record, journal) = *newest;
                machine.install(record, journal);
            }
        }
    }
}

/// A fleet that was halted, or a host, serves nothing until an order resumes it.
pub(super) fn resume(world: &mut World) {
    let roster = world.roster_in_force();
    let is_member = |machine: &&Machine| roster.position(&machine.name).is_some();
    let halted: Vec<&Machine> =
        world.machines.iter().filter(is_member).filter(|it| it.record.halted.is_some()).collect();
    if let Some(open) = halted.iter().find(|machine| machine.guard.is_some()) {
        let violation = format!("stuck: {} is halted and serves", open.name);
        return world.violate(violation);
    }
    if halted.is_empty() && world.coordinator.record.halted.is_none() {
        return;
    }
    note!(world, "--- resume ---");
    let serving = world.coordinator.record.serving;
    let to = world.releases.iter().position(|it| Some(it.manifest) == serving).unwrap_or_default();
    if world.violation.is_some() || world.coordinator.fleet.is_none() {
        return;
    }
    // Hosts that are still to open cannot flip at an instant.
    let proposal = world.proposal(to, |order| order.mode = FlipMode::Strict);
    if let Err(refusal) = world.propose_this(&proposal) {
        return world.violate(format!("stuck: a fleet that is halted cannot resume: {refusal}"));
    }
    world.rest();
    pass_deadlines(world);
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

/// A guard that was gone when its rollout was given up has taken its deadline up again, and nobody lifts it: it ends in a
/// fence, and the host is admitted again.
fn outlast_leases(world: &mut World) {
    for _ in 0..DEADLINES_TO_HEAL_MAX * world.machines.len() {
        let Some((at, _)) = world.next_alarm() else { return };
        world.pass_time(at);
        world.rest();
    }
}

/// A fleet that is well can flip.
pub(super) fn flip_once_more(world: &mut World) {
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

/// Whoever was parked serves again what the others serve by now.
fn take_all_back(world: &mut World) {
    note!(world, "--- take all back ---");
    let hosts = world.hosts_listed();
    world.parked.clear();
    if let Err(refusal) = world.change_roster(hosts) {
        return world.violate(format!("stuck: hosts that were parked cannot come back: {refusal}"));
    }
    world.rest();
    resume(world);
    expect_settled(world, "after all were taken back");
    world.seen.unparked += 1;
}

pub(super) fn expect_settled(world: &mut World, when: &str) {
    let record = &world.coordinator.record;
    if let Some(coming) = &record.coming {
        let revision = coming.roster.revision;
        let stuck = format!("stuck {when}: revision {revision} does not come to hold in {:?}", record.phase);
        return world.violate(stuck);
    }
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
