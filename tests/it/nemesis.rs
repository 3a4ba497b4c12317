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
use std::time::Instant;

use self::lab::Lab;
use self::plan::Plan;
use self::tally::Tally;
use self::watch::Watch;
use crate::harness::{Network, Observer};

/// Each has a seed of its own.
const FLEETS: u64 = 4;

/// Of all fleets together, where nothing else is asked for.
const ROLLOUTS: u64 = 20;

/// Carries out the plan of one fleet's seed.
fn nemesis_of(fleet: u64) {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("MUSTER_SEED").unwrap_or(1) + fleet - 1;
    let rollouts = number("MUSTER_NEMESIS").unwrap_or(ROLLOUTS).div_ceil(FLEETS);
    let plan = Plan::of(seed, rollouts.try_into().unwrap());
    Network::room(|network| carry_out(network, &plan));
}

#[expect(
    clippy::print_stderr,
    reason = "a plan is what replays a failure, and figures belong to every result"
)]
fn carry_out(network: &Network, plan: &Plan) {
    let (seed, rollouts) = (plan.seed, FLEETS * plan.rollouts.len() as u64);
    let replay =
        format!("MUSTER_SEED={seed} MUSTER_NEMESIS={rollouts} cargo test --test it nemesis::fleet_1");
    eprintln!("to replay: {replay} -- --ignored --nocapture\n{plan}");
    let lab = Lab::new(network, &plan.rates_ppm);
    let (observer, watch) = (Observer::of_services(&lab.fleet), Watch::begin(&lab.fleet));
    let tally = Tally::begin();
    let mut served = operator::settle(&lab, &observer, &tally);
    for (number, rollout) in plan.rollouts.iter().enumerate() {
        let ordered = acts::go(&lab, &watch, rollout, &served.version, served.last_k, &tally);
        let healing = Instant::now();
        operator::mend(&lab);
        let settled = operator::settle(&lab, &observer, &tally);
        let ended = operator::ended(&lab, &served, &settled);
        eprintln!("{number:3} {rollout}: {ended:?}, exit code {}, {:.1?}", ordered.code, healing.elapsed());
        tally.ended(ended, healing.elapsed());
        served = settled;
    }
    let served = operator::flip_undisturbed(&lab, &observer, &served, &tally);
    drop(watch);
    let seen = observer.expect_one_release_at_a_time();
    tally.observed(&seen, operator::read_logs(&lab));
    lab.fleet.down();
    operator::assert_journals_tell(&lab, &served);
    eprintln!("{tally}");
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
