//! Spaces without a mistake: every invariant holds in each of their states.

use std::io::Write as _;
use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use super::config::{CALM, Clock, Config, Fault, Pace, Schedule, Sight};
use super::state::State;
use super::{Action, FlipModel};

/// Explores a whole space. Every invariant must hold in it, and it must show what it was made for.
#[track_caller]
fn explore(short: Config, long: Config) {
    let config = if is_long() { long } else { short };
    let start = Instant::now();
    let threads = if is_long() { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    let checker = FlipModel::new(config)
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    report(&config, &checker, start);
    for property in checker.model().properties() {
        let discovery = checker.discovery(property.name);
        match (property.expectation, discovery) {
            (Expectation::Always, None) | (Expectation::Sometimes, Some(_)) => {}
            (Expectation::Always, Some(path)) => {
                panic!("{}: {}\n{}", config.name, property.name, tell(path.into_vec()));
            }
            (Expectation::Sometimes | Expectation::Eventually, _) => {
                panic!("{}: the space does not contain: {}", config.name, property.name);
            }
        }
    }
}

/// Explores a space, breadth first, until `property` does not hold.
#[track_caller]
pub(super) fn expect_broken(config: Config, property: &'static str) {
    let start = Instant::now();
    let finish_when = HasDiscoveries::AllOf([property].into());
    let checker = FlipModel::new(config).checker().finish_when(finish_when).spawn_bfs().join();
    report(&config, &checker, start);
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{} was not found", config.name));
    let steps = path.into_vec();
    if is_long() {
        say(&format!("{} shows {property} in {} steps\n{}", config.name, steps.len() - 1, tell(steps)));
    }
}

/// The steps that lead to a state, each with what it left.
fn tell(steps: Vec<(State, Option<Action>)>) -> String {
    let mut text = String::new();
    for (state, action) in steps {
        text.push_str(&state.summary());
        if let Some(action) = action {
            text.push_str(&format!("\n{action:?}: "));
        }
    }
    text
}

fn report(config: &Config, checker: &impl Checker<FlipModel>, start: Instant) {
    if std::env::var_os("MUSTER_MODEL").is_some() {
        say(&format!(
            "{}: {} states, {} unique, depth {}, {:.1} s",
            config.name,
            checker.state_count(),
            checker.unique_state_count(),
            checker.max_depth(),
            start.elapsed().as_secs_f64()
        ));
    }
}

fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("stderr can be written");
}

fn is_long() -> bool {
    std::env::var("MUSTER_MODEL").is_ok_and(|value| value == "long")
}

impl State {
    /// One line.
    fn summary(&self) -> String {
        let record = &self.store.record;
        let phase = super::state::PhaseName::of(&record.phase);
        let mut text = format!(
            "t{} {phase:?} term {} k {} e {}",
            self.now, record.leadership.term, record.last_k, record.epoch
        );
        for machine in &self.machines {
            let standing = machine.agent.record().standing();
            let served = machine.guard.serving.map(|(epoch, _)| epoch.0);
            let deadline =
                machine.guard.lease.map(|lease| (lease.deadline.0 / super::papers::TICK_MS, lease.latch));
            text.push_str(&format!(" | {:?} serves {served:?} until {deadline:?}", standing.mode));
        }
        if let Some((promise, what)) = &self.history.broken {
            text.push_str(&format!(" | {promise:?}: {what}"));
        }
        text
    }
}

const TAKE_OVERS: &[Sight] = &[
    Sight::TwoLeaders,
    Sight::TakeOverInSettled,
    Sight::TakeOverInPreparing,
    Sight::TakeOverInArming,
    Sight::TakeOverInDecided,
    Sight::TakeOverInOpened,
];

/// Everything that does not need a clock to do harm.
const ANY: &[Fault] = &[
    Fault::Cut,
    Fault::GiveUp,
    Fault::Lose,
    Fault::Copy,
    Fault::Twice,
    Fault::Restart,
    Fault::DieAfterWriting,
    Fault::Reboot,
    Fault::Stop,
    Fault::StopAfterWriting,
    Fault::TakeOver,
    Fault::Abort,
];

#[test]
fn every_order_of_a_flip() {
    let short = Config {
        name: "every order",
        ticks: 1,
        drain: Pace::Later,
        work: Pace::Later,
        schedule: Schedule::Every,
        ..CALM
    };
    explore(short, Config { ticks: 3, renewals: 1, ..short });
}

#[test]
fn two_flips_over_time() {
    let short = Config {
        name: "two flips over time",
        rollouts: 2,
        ticks: 2,
        renewals: 1,
        sights: &[Sight::TwoFlipsCompleted, Sight::LeaseExtended],
        ..CALM
    };
    explore(short, Config { ticks: 4, ..short });
}

#[test]
fn a_network_that_fails() {
    let short = Config {
        name: "network",
        ticks: 3,
        clock: Clock::WhileDecided,
        faults: 1,
        kinds: &[Fault::Cut, Fault::GiveUp, Fault::Lose, Fault::Copy, Fault::Twice],
        sights: &[Sight::LapseThenOpen, Sight::LapsedHostServesAgain],
        ..CALM
    };
    explore(short, Config { faults: 2, ..short });
}

#[test]
fn hosts_that_die() {
    let short = Config {
        name: "hosts that die",
        ticks: 3,
        clock: Clock::WhileDecided,
        faults: 1,
        kinds: &[Fault::Restart, Fault::DieAfterWriting, Fault::Reboot],
        sights: &[Sight::RebootedHostServesAgain, Sight::LapseThenOpen],
        ..CALM
    };
    explore(short, Config { drain: Pace::Later, faults: 2, ..short });
}

#[test]
fn leaders_that_are_replaced() {
    let short = Config {
        name: "leaders",
        ticks: 3,
        clock: Clock::WhileDecided,
        faults: 1,
        kinds: &[Fault::TakeOver, Fault::Stop, Fault::StopAfterWriting],
        sights: TAKE_OVERS,
        ..CALM
    };
    explore(short, Config { faults: 2, ..short });
}

#[test]
fn leaders_that_are_replaced_while_leases_are_renewed() {
    let short = Config {
        name: "leaders and renewals",
        ticks: 2,
        renewals: 1,
        faults: 1,
        kinds: &[Fault::TakeOver],
        sights: &[Sight::LeaseExtended, Sight::TwoLeaders],
        ..CALM
    };
    explore(short, Config { ticks: 4, ..short });
}

#[test]
fn a_rollout_that_is_given_up_and_another() {
    let short = Config {
        name: "abort",
        faults: 2,
        kinds: &[Fault::Abort, Fault::Cut],
        rollouts: 2,
        sights: &[Sight::AbortThenFlip, Sight::TwoFlipsCompleted, Sight::RolloutFromOpened],
        ..CALM
    };
    let kinds = &[Fault::Abort, Fault::Cut, Fault::Reboot, Fault::TakeOver];
    explore(short, Config { kinds, removals: 1, ..short });
}

#[test]
fn a_host_that_is_removed() {
    let short = Config {
        name: "removal",
        ticks: 3,
        clock: Clock::WhileDecided,
        faults: 1,
        kinds: &[Fault::Cut],
        rollouts: 2,
        removals: 1,
        sights: &[Sight::RemovalInOpened, Sight::RemovalThenFlip],
        ..CALM
    };
    let kinds = &[Fault::Cut, Fault::GiveUp, Fault::Abort, Fault::Reboot];
    explore(short, Config { kinds, ..short });
}

#[test]
fn two_flips_and_any_faults_at_once() {
    let short = Config {
        name: "any faults",
        faults: 1,
        kinds: ANY,
        rollouts: 2,
        removals: 1,
        drain: Pace::Later,
        sights: &[Sight::TwoFlipsCompleted, Sight::AbortThenFlip, Sight::RolloutFromOpened],
        ..CALM
    };
    explore(short, Config { faults: 2, ..short });
}

#[test]
fn faults_at_both_hosts() {
    let short = Config { name: "both hosts", victims: 2, faults: 2, kinds: ANY, ..CALM };
    explore(short, Config { rollouts: 2, removals: 1, ..short });
}

#[test]
fn slow_work() {
    let short = Config {
        name: "slow work",
        faults: 1,
        kinds: &[Fault::Cut, Fault::Reboot, Fault::Abort, Fault::TakeOver],
        rollouts: 2,
        work: Pace::Later,
        drain: Pace::Later,
        sights: &[Sight::RebootedHostServesAgain, Sight::RolloutFromOpened],
        ..CALM
    };
    explore(short, Config { faults: 2, ..short });
}

#[test]
fn three_hosts() {
    let short = Config { name: "three hosts", hosts: 3, faults: 1, kinds: ANY, ..CALM };
    explore(short, Config { faults: 2, ..short });
}
