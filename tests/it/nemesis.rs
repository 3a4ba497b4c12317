//! The nemesis: real machines, as far as one kernel can make them, on which everything fails that can, several things at a
//! time, in one rollout after the other. An observer that shares no code with the programs asks every service all the
//! time what it serves, and evaluates P1.
//!
//! What is done follows from a seed ([`plan`]), and the time at which it is done from the state that the rollout is in
//! ([`watch`]). Schedulers and networks are not a seed's to command, so that a seed replays what is done, not what comes of
//! it; a failure prints the seed and the plan.
//!
//! - `MUSTER_SEED=<n>` gives the first fleet this seed and the others those after it, instead of 1 to 4: a failure is
//!   replayed with its seed and the first fleet;
//! - `MUSTER_NEMESIS=<rollouts>` runs so many rollouts, on the four fleets together.
//!
//! A run of [`LONG`] rollouts or more is judged as a whole, once the last fleet is done: then everything must have happened
//! that can.
//!
//! It needs root, `ip`, `nft` and `cc`.

mod acts;
mod disks;
mod lab;
mod operator;
mod plan;
mod planted;
mod tally;
mod watch;

use std::env;
use std::time::{Duration, Instant};

use self::lab::{Lab, SKEW_MAX, TIMING};
use self::plan::{Order, Plan};
use self::tally::Tally;
use self::watch::Watch;
use crate::harness::{FastFlip, Network, Observer, Seen};

/// Each has a seed of its own.
const FLEETS: u64 = 4;

/// Of all fleets together, where nothing else is asked for.
const ROLLOUTS: u64 = 20;

/// In so many rollouts everything happens.
const LONG: u64 = 100;

/// Two releases that are served together for as long as a host is waited for are seen, whatever else the machine does.
const BLIND_MAX: Duration = TIMING.wait();

/// And usually if they are for a part of that which no wrong deadline stays below.
const USUALLY_BLIND_MAX: Duration = Duration::from_millis(50);

/// For how much of the time a host may be out of sight, of 1.
const OUT_OF_SIGHT_MAX: f64 = 0.2;

/// Carries out the plan of one fleet's seed.
fn nemesis_of(fleet: u64) {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("MUSTER_SEED").unwrap_or(1) + fleet - 1;
    let rollouts = number("MUSTER_NEMESIS").unwrap_or(ROLLOUTS);
    let is_alone = env::var_os("NEXTEST").is_some();
    assert!(
        rollouts < LONG || !is_alone,
        "a long run is judged as a whole, in one process: it needs `cargo test`"
    );
    let plan = Plan::of(seed, rollouts.div_ceil(FLEETS).try_into().unwrap());
    let tally = Network::room(|network| carry_out(network, &plan));
    if let Some(all) = tally.of_all(FLEETS.try_into().unwrap())
        && rollouts >= LONG
    {
        judge(&all);
    }
}

#[expect(clippy::print_stderr, reason = "figures belong to every result")]
fn judge(all: &Tally) {
    eprintln!("all fleets: {all}");
    all.expect_everything();
}

#[expect(
    clippy::print_stderr,
    reason = "a plan is what replays a failure, and figures belong to every result"
)]
fn carry_out(network: &Network, plan: &Plan) -> Tally {
    let (seed, rollouts) = (plan.seed, FLEETS * plan.rollouts.len() as u64);
    let replay =
        format!("MUSTER_SEED={seed} MUSTER_NEMESIS={rollouts} cargo test --test it nemesis::fleet_1");
    eprintln!("to replay: {replay} -- --ignored --nocapture\n{plan}");
    let lab = Lab::new(network, &plan.clocks);
    let (observer, watch) = (Observer::of_services(&lab.fleet), Watch::begin(&lab.fleet));
    let tally = Tally::begin();
    let mut served = operator::settle(&lab, &observer, &tally);
    let mut fast = Vec::new();
    for (number, rollout) in plan.rollouts.iter().enumerate() {
        let is_fast = rollout.order == Order::FlipFast;
        let flip = is_fast.then(|| FastFlip::ordered(acts::next_in_fast_mode(&served.version), SKEW_MAX));
        let ordered = acts::go(&lab, &watch, rollout, &served.version, served.last_k, &tally);
        let healing = Instant::now();
        operator::mend(&lab);
        let settled = operator::settle(&lab, &observer, &tally);
        fast.extend(flip.map(FastFlip::over));
        let ended = operator::ended(&lab, &served, &settled);
        eprintln!("{number:3} {rollout}: {ended:?}, exit code {}, {:.1?}", ordered.code, healing.elapsed());
        tally.ended(ended, healing.elapsed());
        served = settled;
    }
    let served = operator::flip_undisturbed(&lab, &observer, &served, &tally);
    drop(watch);
    let seen = observer.expect_one_release_but_for(&fast);
    expect_sight(&seen);
    tally.observed(&seen, operator::read_logs(&lab));
    lab.fleet.down();
    operator::assert_journals_tell(&lab, &served);
    eprintln!("{tally}");
    tally
}

/// An observer that did not look often enough has shown nothing.
#[track_caller]
fn expect_sight(seen: &Seen) {
    assert!(seen.blind <= BLIND_MAX, "blind for longer than {BLIND_MAX:?}: {seen:?}");
    assert!(seen.usually_blind <= USUALLY_BLIND_MAX, "usually blind for longer: {seen:?}");
    assert!(seen.out_of_sight <= OUT_OF_SIGHT_MAX, "out of sight for too long: {seen:?}");
}

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn fleet_1_serves_one_release_at_a_time_and_settles() {
    nemesis_of(1);
}

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn fleet_2_serves_one_release_at_a_time_and_settles() {
    nemesis_of(2);
}

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn fleet_3_serves_one_release_at_a_time_and_settles() {
    nemesis_of(3);
}

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn fleet_4_serves_one_release_at_a_time_and_settles() {
    nemesis_of(4);
}
