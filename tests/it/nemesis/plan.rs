//! What the nemesis does: a value that follows from a seed alone.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::acts::FLIP_TIMEOUT;
use super::lab::{FAST_LEAD, TIMING};
use crate::harness::{ClockOff, Cut};

/// How fast or slow a machine's clock may run, in millionths: within the ρ of a tenth that the roster says.
const PPM_MAX: i64 = 90_000;

/// How far a machine's time of day may be off at all times. What the hosts state, and the roster allows, is more: from when the instant
/// of a flip in fast mode is fixed until it comes, their clocks may drift as well.
const TIME_OFF_MS_MAX: i64 = 50;

const MILLION: u64 = 1_000_000;

const HOSTS_MAX: usize = 4;

/// How many faults there may be at a time.
const ACTS_MAX: usize = 3;

/// How long a guard may hang: a part of what a fence may take. One that hangs for longer is a machine that was paused, and
/// fleets with such machines are outside of what is claimed.
const GUARD_HANGS_MS_MAX: u64 = TIMING.fence_ms / 10;

/// Everything that is done to one fleet.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) hosts: usize,
    /// How far each machine's clock is off; the first is the coordinator's.
    pub(super) clocks: Vec<ClockOff>,
    pub(super) rollouts: Vec<Rollout>,
}

/// One order, and what goes on meanwhile.
#[derive(Debug)]
pub(super) struct Rollout {
    pub(super) order: Order,
    pub(super) acts: Vec<Act>,
}

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// A flip to a release that is not served, as usual.
    Flip,
    /// The same, over no host that is silent.
    FlipWithoutLapse,
    /// A flip in fast mode, to a release that no other order flips to.
    FlipFast,
    /// What was served before.
    Rollback,
}

/// One fault: when, what, and for how long.
#[derive(Debug, Clone)]
pub(super) struct Act {
    pub(super) when: When,
    /// How long after that.
    pub(super) delay: Duration,
    pub(super) fault: Fault,
    pub(super) lasts: Duration,
}

/// A state of the rollout, in the order in which they are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum When {
    /// Before the order is given.
    Before,
    /// As it is given.
    Ordered,
    /// The fleet prepares.
    Preparing,
    /// The fleet arms.
    Arming,
    /// Some host is armed.
    Armed,
    /// The decision is durable.
    Decided,
    /// Some host has closed.
    Closed,
    /// The new release may be opened.
    Opened,
}

/// What the nemesis does. Machine 0 is the coordinator's, and host `n` is on machine `n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Kills a daemon, and starts it again in the end.
    Kill(Daemon),
    /// Lets a daemon die at a named point, if it comes by, and starts it again later.
    DieAt(Daemon, &'static str),
    /// Suspends a daemon.
    Suspend(Daemon),
    /// Kills a host's service.
    KillService(usize),
    /// Cuts machines off from the fleet's network.
    CutOff(Vec<usize>, Cut),
    /// Fills the disk that a machine's state is on.
    FillDisk(usize),
    /// Sets a machine's time of day to so many hours off.
    SetClock(usize, i64),
    /// An operator gives up whatever is under way.
    Abort,
    /// An operator halts the fleet, and resumes it in the end.
    Halt,
    /// A second operator orders another flip.
    SecondFlip,
}

/// A daemon of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daemon {
    Coordinator,
    Agent(usize),
    Guard(usize),
}

/// What only one fault may be about at a time.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    Daemon(Daemon),
    Service(usize),
    Network,
    Disk(usize),
    Clock(usize),
    Operators,
}

const COORDINATOR_POINTS: [&str; 9] = [
    "coordinator.preparing.before",
    "coordinator.preparing.persisted",
    "coordinator.arming.before",
    "coordinator.arming.persisted",
    "coordinator.decided.before",
    "coordinator.decided.persisted",
    "coordinator.opened.before",
    "coordinator.opened.persisted",
    "coordinator.settled.before#2",
];

const AGENT_POINTS: [&str; 10] = [
    "agent.attest.persisted",
    "agent.arm.before-guard",
    "agent.armed.persisted",
    "agent.armed.before-ack",
    "agent.set.persisted",
    "agent.close.before-guard",
    "agent.closed.persisted",
    "agent.open.persisted",
    "agent.open.before-guard",
    "agent.serving.before-ack",
];

impl Plan {
    /// The plan of a seed. The same seed gives the same plan, and a longer one begins as a shorter one does.
    pub(super) fn of(seed: u64, rollouts: usize) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let hosts = random.random_range(2..=HOSTS_MAX);
        let clocks = (0..=hosts).map(|_| random_clock(&mut random)).collect();
        let rollouts = (0..rollouts).map(|_| Rollout::random(&mut random, hosts)).collect();
        Self { seed, hosts, clocks, rollouts }
    }
}

fn random_clock(random: &mut SmallRng) -> ClockOff {
    ClockOff {
        rate_ppm: random.random_range(-PPM_MAX..=PPM_MAX),
        time_ms: random.random_range(-TIME_OFF_MS_MAX..=TIME_OFF_MS_MAX),
    }
}

impl Rollout {
    fn random(random: &mut SmallRng, hosts: usize) -> Self {
        let all = [
            Order::Flip,
            Order::Flip,
            Order::FlipFast,
            Order::FlipFast,
            Order::FlipWithoutLapse,
            Order::Rollback,
        ];
        let order = *all.choose(random).unwrap();
        let count = random.random_range(1..=ACTS_MAX);
        let mut acts: Vec<Act> = Vec::new();
        // By chance alone few rollouts go on over a host: it takes milliseconds from the decision until all have closed.
        if order == Order::Flip && random.random() {
            acts.push(Act::lost_in_closing(random, hosts));
        }
        while acts.len() < count {
            let act = Act::random(random, hosts);
            let is_new = acts.iter().all(|other| other.fault.subject() != act.fault.subject());
            if is_new && act.suits(order) {
                acts.push(act);
            }
        }
        Self { order, acts }
    }
}

impl Act {
    /// A host is lost when it is told to close, and the others open meanwhile.
    fn lost_in_closing(random: &mut SmallRng, hosts: usize) -> Self {
        let point = *["agent.close.before-guard", "agent.closed.persisted"].choose(random).unwrap();
        let fault = Fault::DieAt(Daemon::Agent(random.random_range(1..=hosts)), point);
        let lasts = Duration::from_millis(random_long_ms(random));
        Self { when: When::Before, delay: Duration::ZERO, fault, lasts }
    }

    fn random(random: &mut SmallRng, hosts: usize) -> Self {
        let fault = Fault::random(random, hosts);
        let all = [
            When::Before,
            When::Ordered,
            When::Preparing,
            When::Arming,
            When::Armed,
            When::Armed,
            When::Decided,
            When::Decided,
            When::Closed,
            When::Opened,
        ];
        let when = *all.choose(random).unwrap();
        let when = if matches!(fault, Fault::DieAt(..)) { When::Before } else { when };
        // At once, soon, or at any time within a lease: the instant of a flip in fast mode comes within one.
        let delay_ms = match random.random_range(0..4) {
            0 | 1 => 0,
            2 => random.random_range(0..TIMING.lease_ms / 20),
            _ => random.random_range(0..TIMING.lease_ms),
        };
        let holds_up_guard = matches!(fault, Fault::Suspend(Daemon::Guard(_)));
        let lasts_ms = if holds_up_guard {
            random.random_range(1..=GUARD_HANGS_MS_MAX)
        } else {
            random_length_ms(random)
        };
        Self { when, delay: Duration::from_millis(delay_ms), fault, lasts: Duration::from_millis(lasts_ms) }
    }

    /// Whether it has an occasion in such a rollout, and is within what that one claims: the time of day counts in fast
    /// mode alone.
    fn suits(&self, order: Order) -> bool {
        let (is_of_strict, is_of_fast) = if let Fault::DieAt(_, point) = self.fault {
            (point.contains(".close"), point.contains(".set."))
        } else {
            (self.when == When::Closed || matches!(self.fault, Fault::SetClock(..)), false)
        };
        match order {
            Order::FlipFast => !is_of_strict,
            Order::Flip | Order::FlipWithoutLapse | Order::Rollback => !is_of_fast,
        }
    }
}

/// Shorter than a lease, or so long that the others have waited and opened by the clock of any coordinator.
fn random_length_ms(random: &mut SmallRng) -> u64 {
    if random.random_ratio(4, 5) {
        random.random_range(TIMING.lease_ms / 40..TIMING.lease_ms)
    } else {
        random_long_ms(random)
    }
}

fn random_long_ms(random: &mut SmallRng) -> u64 {
    let opened_ms = others_open_after_ms();
    random.random_range(opened_ms..opened_ms + TIMING.lease_ms)
}

/// From the decision, or shortly before it, until those that have closed are open, if one has not: the coordinator's clock may be slow.
const fn others_open_after_ms() -> u64 {
    slowed(TIMING.wait_ms) + TIMING.lease_ms / 4
}

/// What a clock may take for so many milliseconds of its own.
const fn slowed(ms: u64) -> u64 {
    ms * MILLION / (MILLION - PPM_MAX.unsigned_abs())
}

impl Fault {
    fn random(random: &mut SmallRng, hosts: usize) -> Self {
        let host = random.random_range(1..=hosts);
        let machine = random.random_range(0..=hosts);
        let daemon = *[Daemon::Coordinator, Daemon::Agent(host), Daemon::Guard(host)].choose(random).unwrap();
        match random.random_range(0..20) {
            0..3 => Self::Kill(daemon),
            3..6 if random.random() => {
                Self::DieAt(Daemon::Coordinator, COORDINATOR_POINTS.choose(random).unwrap())
            }
            3..6 => Self::DieAt(Daemon::Agent(host), AGENT_POINTS.choose(random).unwrap()),
            6..8 => Self::Suspend(daemon),
            8 => Self::KillService(host),
            9..14 => Self::cut(random, hosts),
            14 | 15 => Self::FillDisk(machine),
            16 => Self::SetClock(machine, *[-30, -3, 2, 26].choose(random).unwrap()),
            17 => Self::Abort,
            18 => Self::Halt,
            _ => Self::SecondFlip,
        }
    }

    /// One host, several, or the coordinator from all of them.
    fn cut(random: &mut SmallRng, hosts: usize) -> Self {
        let cut = *[Cut::Down, Cut::Outwards, Cut::Inwards, Cut::Both].choose(random).unwrap();
        let machines = match random.random_range(0..4) {
            0 => vec![0],
            1 => {
                let spared = random.random_range(1..=hosts);
                (1..=hosts).filter(|host| *host != spared).collect()
            }
            _ => vec![random.random_range(1..=hosts)],
        };
        Self::CutOff(machines, cut)
    }

    /// All words under which faults are counted.
    pub(super) const KINDS: [&str; 16] = [
        "coordinator killed",
        "agent killed",
        "guard killed",
        "died at a named point",
        "coordinator suspended",
        "agent suspended",
        "guard held up",
        "service killed",
        "link down",
        "cut off one way",
        "cut off",
        "disk full",
        "clock set",
        "aborted",
        "halted",
        "second flip",
    ];

    /// The word under which it is counted.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Kill(Daemon::Coordinator) => "coordinator killed",
            Self::Kill(Daemon::Agent(_)) => "agent killed",
            Self::Kill(Daemon::Guard(_)) => "guard killed",
            Self::DieAt(..) => "died at a named point",
            Self::Suspend(Daemon::Coordinator) => "coordinator suspended",
            Self::Suspend(Daemon::Agent(_)) => "agent suspended",
            Self::Suspend(Daemon::Guard(_)) => "guard held up",
            Self::KillService(_) => "service killed",
            Self::CutOff(_, Cut::Down) => "link down",
            Self::CutOff(_, Cut::Outwards | Cut::Inwards) => "cut off one way",
            Self::CutOff(_, Cut::Both) => "cut off",
            Self::FillDisk(_) => "disk full",
            Self::SetClock(..) => "clock set",
            Self::Abort => "aborted",
            Self::Halt => "halted",
            Self::SecondFlip => "second flip",
        }
    }

    const fn subject(&self) -> Subject {
        match self {
            Self::Kill(daemon) | Self::DieAt(daemon, _) | Self::Suspend(daemon) => Subject::Daemon(*daemon),
            Self::KillService(host) => Subject::Service(*host),
            Self::CutOff(..) => Subject::Network,
            Self::FillDisk(machine) => Subject::Disk(*machine),
            Self::SetClock(machine, _) => Subject::Clock(*machine),
            Self::Abort | Self::Halt | Self::SecondFlip => Subject::Operators,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, hosts, clocks, rollouts } = self;
        write!(f, "seed {seed}: {hosts} hosts, {} rollouts, clocks off by", rollouts.len())?;
        for ClockOff { rate_ppm, time_ms } in clocks {
            write!(f, " {rate_ppm} ppm and {time_ms} ms;")?;
        }
        writeln!(f)?;
        rollouts.iter().enumerate().try_for_each(|(number, rollout)| writeln!(f, "{number:3} {rollout}"))
    }
}

impl fmt::Display for Rollout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.order)?;
        self.acts.iter().try_for_each(|act| write!(f, "; {act}"))
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { when, delay, fault, lasts } = self;
        write!(f, "{when:?} + {delay:?}: {fault:?} for {lasts:?}")
    }
}

#[test]
fn a_seed_gives_one_plan_and_a_longer_one_begins_like_it() {
    let (short, long) = (Plan::of(7, 5).to_string(), Plan::of(7, 500));
    let all = long.to_string();
    assert!(short.lines().skip(1).zip(all.lines().skip(1)).all(|(short, long)| short == long), "{short}");
    assert_ne!(short, Plan::of(8, 5).to_string());
    let acts: Vec<&Act> = long.rollouts.iter().flat_map(|rollout| &rollout.acts).collect();
    for when in [When::Before, When::Ordered, When::Preparing, When::Arming, When::Armed, When::Closed] {
        assert!(acts.iter().any(|act| act.when == when), "{when:?}");
    }
    for kind in Fault::KINDS {
        assert!(acts.iter().any(|act| act.fault.kind() == kind), "{kind}");
    }
    assert!(acts.iter().all(|act| Fault::KINDS.contains(&act.fault.kind())));
}

#[test]
fn a_fault_is_over_before_a_lease_is_or_lets_the_others_open() {
    let plan = Plan::of(7, 500);
    let lasts_ms = |act: &Act| u64::try_from(act.lasts.as_millis()).unwrap();
    let acts: Vec<&Act> = plan.rollouts.iter().flat_map(|rollout| &rollout.acts).collect();
    let (hangs, faults): (Vec<&Act>, Vec<&Act>) =
        acts.into_iter().partition(|act| matches!(act.fault, Fault::Suspend(Daemon::Guard(_))));
    assert!(hangs.iter().all(|act| lasts_ms(act) <= GUARD_HANGS_MS_MAX));
    let (short, long): (Vec<&Act>, Vec<&Act>) =
        faults.into_iter().partition(|act| lasts_ms(act) < TIMING.lease_ms);
    assert!(!short.is_empty() && !long.is_empty());
    let wait_ms = TIMING.wait_ms_min();
    assert!(long.iter().all(|act| lasts_ms(act) > wait_ms + wait_ms * 9 / 100), "the wait on a slow clock");
}

#[test]
fn no_fast_flip_meets_a_clock_that_is_further_off_than_its_host_states() {
    let plan = Plan::of(7, 500);
    let fast = plan.rollouts.iter().filter(|rollout| rollout.order == Order::FlipFast);
    let mut acts = fast.flat_map(|rollout| &rollout.acts).peekable();
    assert!(acts.peek().is_some());
    assert!(acts.all(|act| !matches!(act.fault, Fault::SetClock(..))));
    // The coordinator fixes the instant by what it knew of the time of day when it took the order.
    let (off_ms, ppm) = (TIME_OFF_MS_MAX.unsigned_abs(), PPM_MAX.unsigned_abs());
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
    let ahead_ms = ms(FAST_LEAD) + ms(FLIP_TIMEOUT) * ppm / MILLION + 2 * off_ms;
    let drift_ms = slowed(ahead_ms) - ahead_ms;
    assert!(off_ms + drift_ms <= TIMING.clock_error_ms, "{off_ms} and {drift_ms} ms");
    assert!(plan.clocks.iter().all(|clock| clock.time_ms.unsigned_abs() <= off_ms));
    assert!(plan.clocks.iter().all(|clock| clock.rate_ppm.unsigned_abs() <= ppm));
}
