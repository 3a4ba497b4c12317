//! What may go wrong in the network while a fleet flips.
//!
//! In each scenario a seed says how many hosts there are, whom the trouble meets, when it begins and how long it lasts. In all
//! of them at most one release is served at any step, and in the end, with the trouble over, every host serves the one that
//! the coordinator says. Every seed is run twice, and must decide the same.

use std::env;
use std::time::Duration;

use muster_proto::v1::rollout_end::Outcome;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::guard::Fencing;
use crate::operator::Stage;
use crate::papers::{host, timing};
use crate::world::{COORDINATOR, Run, Start, Trouble, World, run};

/// How many seeds of each scenario are run where nobody says.
const SEEDS: u64 = 2;

/// A flip takes less than this where nothing is in its way.
const FLIP: Duration = Duration::from_millis(120);

/// A latency with which renewals are too slow for a lease, and one with which they are not.
const SLOW: std::ops::Range<u64> = 20..900;

/// What happens to the network, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing goes either way between the coordinator and a host, and what is lost is lost.
    Cut,
    /// Nothing that a host sends arrives.
    Deaf,
    /// Nothing that is sent to a host arrives.
    Mute,
    /// Everything between the coordinator and a host is held up, and arrives later.
    Held,
    /// Everything between the coordinator and a host takes its time.
    Slow(Duration),
    /// The coordinator loses its power, and is started again.
    Restarted,
}

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// So long after the flip was ordered.
    After(Duration),
    /// As soon as the host is armed.
    Armed,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ahead,
    Present(Duration),
    Over,
}

/// One trouble.
#[derive(Debug, Clone)]
struct Fault {
    kind: Kind,
    victim: usize,
    point: Point,
    lasting: Duration,
    state: State,
    /// How long the victim went on serving after it was met while it was armed, if it went dark while it was.
    dark_after: Option<Duration>,
}

impl Fault {
    fn begins(&self, world: &World<'_>) -> bool {
        let (stage, since) = world.progress.now();
        match self.point {
            _ if !(Stage::Flipping..=Stage::Watching).contains(&stage) => false,
            Point::After(delay) => world.sim.elapsed() >= since + delay || stage > Stage::Flipping,
            Point::Armed => world.guards[self.victim - 1].is_armed(),
        }
    }

    fn begin(&self, world: &mut World<'_>) {
        let victim = host(self.victim);
        let victim = victim.as_str();
        match self.kind {
            Kind::Cut => world.sim.partition(victim, COORDINATOR),
            Kind::Deaf => world.sim.partition_oneway(victim, COORDINATOR),
            Kind::Mute => world.sim.partition_oneway(COORDINATOR, victim),
            Kind::Held => world.sim.hold(victim, COORDINATOR),
            Kind::Slow(latency) => world.sim.set_link_latency(victim, COORDINATOR, latency),
            Kind::Restarted => world.power_off_coordinator(),
        }
    }

    fn end(&self, world: &mut World<'_>) {
        let victim = host(self.victim);
        let victim = victim.as_str();
        match self.kind {
            Kind::Cut => world.sim.repair(victim, COORDINATOR),
            Kind::Deaf => world.sim.repair_oneway(victim, COORDINATOR),
            Kind::Mute => world.sim.repair_oneway(COORDINATOR, victim),
            Kind::Held => world.sim.release(victim, COORDINATOR),
            Kind::Slow(_) => world.sim.set_link_latency(victim, COORDINATOR, Duration::from_millis(2)),
            Kind::Restarted => world.power_on_coordinator(),
        }
    }
}

impl Trouble for Fault {
    fn before_step(&mut self, world: &mut World<'_>) {
        let now = world.sim.elapsed();
        match self.state {
            State::Ahead if self.begins(world) => {
                self.begin(world);
                self.state = State::Present(now);
            }
            State::Present(since) => {
                if self.dark_after.is_none() && world.is_dark(self.victim) {
                    self.dark_after = Some(now - since);
                }
                if now >= since + self.lasting {
                    self.end(world);
                    self.state = State::Over;
                }
            }
            State::Ahead | State::Over => {}
        }
    }

    fn is_present(&self) -> bool {
        matches!(self.state, State::Present(_))
    }
}

/// One run of a scenario, with what became of the trouble.
struct Told {
    seed: u64,
    fault: Fault,
    run: Run,
}

impl Told {
    fn is_fenced(&self) -> bool {
        self.run.fenced.contains(&self.fault.victim)
    }
}

/// Runs a scenario from each seed, twice.
fn each_seed(fault: impl Fn(&mut SmallRng) -> (Kind, Point, Duration)) -> Vec<Told> {
    let mut all = Vec::new();
    for seed in seeds() {
        let mut chance = SmallRng::seed_from_u64(seed);
        let hosts = chance.random_range(3..=5);
        let victim = chance.random_range(1..=hosts);
        let (kind, point, lasting) = fault(&mut chance);
        let fault = Fault { kind, victim, point, lasting, state: State::Ahead, dark_after: None };
        let mut met = fault.clone();
        let start = Start { seed, hosts, fencing: Fencing::Kept };
        let first = run(start, &mut met);
        let second = run(start, &mut fault.clone());
        check_same(seed, &first, &second);
        check_outcome(seed, &first);
        all.push(Told { seed, fault: met, run: first });
    }
    all
}

fn seeds() -> Vec<u64> {
    let number = |name| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("MUSTER_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("MUSTER_TRANSPORT_SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

fn check_same(seed: u64, first: &Run, second: &Run) {
    let (one, other) = (&first.trace, &second.trace);
    let same = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    if same < one.len().max(other.len()) {
        let context = one[..same].iter().rev().take(3).rev().cloned().collect::<Vec<_>>().join("\n");
        let (one, other) = (one.get(same), other.get(same));
        panic!("seed {seed}: after\n{context}\ntwo runs differ:\n{one:?}\n{other:?}");
    }
    let parts = |run: &Run| (run.outcomes.clone(), run.fenced.clone(), run.took);
    assert_eq!(parts(first), parts(second), "seed {seed}: two runs decide the same and end differently");
}

/// What the operator was told is what is so.
fn check_outcome(seed: u64, run: &Run) {
    let [before, after] = &run.releases;
    let (told, serving) = (run.outcomes.told, run.outcomes.serving_hex());
    let serving = serving.as_deref();
    match told {
        Some(Outcome::Flipped | Outcome::Pending) => assert_eq!(serving, Some(after.as_str()), "seed {seed}"),
        Some(Outcome::Unchanged) => assert_eq!(serving, Some(before.as_str()), "seed {seed}"),
        Some(Outcome::Dark | Outcome::Unspecified) | None => {
            assert!(serving == Some(before) || serving == Some(after), "seed {seed}: {serving:?}");
        }
    }
}

fn seconds(chance: &mut SmallRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(chance.random_range(range.start * 1000..range.end * 1000))
}

/// The longest that a lease lasts: no clock is slower than the simulation's by more than a twentieth.
fn lease_max() -> Duration {
    timing().lease() + timing().lease() / 19 + Duration::from_millis(5)
}

fn some_time(chance: &mut SmallRng) -> Point {
    Point::After(chance.random_range(Duration::ZERO..FLIP))
}

#[test]
fn a_host_that_is_cut_off() {
    each_seed(|chance| (Kind::Cut, some_time(chance), seconds(chance, 1..20)));
}

#[test]
fn a_host_that_is_cut_off_one_way() {
    each_seed(|chance| {
        let kind = if chance.random() { Kind::Deaf } else { Kind::Mute };
        (kind, some_time(chance), seconds(chance, 1..20))
    });
}

#[test]
fn a_host_that_is_cut_off_while_it_is_armed_is_fenced_by_its_lease() {
    let all = each_seed(|chance| (Kind::Cut, Point::Armed, seconds(chance, 5..20)));
    for told in &all {
        let seed = told.seed;
        let dark = told.fault.dark_after.unwrap_or_else(|| panic!("seed {seed}: it was never dark"));
        assert!(dark <= lease_max(), "seed {seed}: it served on for {dark:?}");
        assert!(
            told.is_fenced() || dark < FLIP,
            "seed {seed}: it was dark after {dark:?}, and not by its lease"
        );
    }
    assert!(all.iter().any(Told::is_fenced), "no seed ends in a fence");
}

#[test]
fn a_host_that_hears_nothing_once_it_is_armed_is_fenced_and_the_others_flip_without_it() {
    for told in each_seed(|chance| (Kind::Mute, Point::Armed, seconds(chance, 5..20))) {
        let seed = told.seed;
        let dark = told.fault.dark_after.unwrap_or_else(|| panic!("seed {seed}: it was never dark"));
        assert!(dark <= lease_max(), "seed {seed}: it served on for {dark:?}");
        assert!(told.is_fenced(), "seed {seed}: nothing but its lease could end its service");
        let after = told.run.releases[1].as_str();
        assert_eq!(told.run.outcomes.serving_hex().as_deref(), Some(after), "seed {seed}");
    }
}

/// The same with a guard that holds no deadline: the check of what is served must see it.
#[test]
#[should_panic(expected = "are served at once")]
fn a_guard_that_does_not_fence_is_caught() {
    let (kind, lasting) = (Kind::Mute, Duration::from_secs(20));
    let mut fault =
        Fault { kind, victim: 2, point: Point::Armed, lasting, state: State::Ahead, dark_after: None };
    run(Start { seed: 0, hosts: 3, fencing: Fencing::Forgotten }, &mut fault);
}

#[test]
fn a_host_whose_messages_are_held_up() {
    each_seed(|chance| {
        let point = if chance.random() { Point::Armed } else { some_time(chance) };
        (Kind::Held, point, seconds(chance, 1..12))
    });
}

#[test]
fn a_host_behind_a_slow_link() {
    each_seed(|chance| {
        let latency = Duration::from_millis(chance.random_range(SLOW));
        (Kind::Slow(latency), some_time(chance), seconds(chance, 5..30))
    });
}

#[test]
fn a_coordinator_that_loses_its_power_and_is_started_again() {
    each_seed(|chance| {
        let point = if chance.random() { Point::Armed } else { some_time(chance) };
        (Kind::Restarted, point, seconds(chance, 0..6))
    });
}
