//! What the nemesis does: a value that follows from a seed alone.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::Cut;

/// How far a machine's clock may be off, in millionths: within the ρ of a tenth that the roster says.
const PPM_MAX: i64 = 90_000;

const HOSTS_MAX: usize = 4;

/// How many faults there may be at a time.
const ACTS_MAX: usize = 3;

/// How long a guard may hang: a part of what a fence may take (F is 2 s). One that hangs for longer is a machine that
/// was paused, and fleets with such machines are outside of what is claimed.
const GUARD_HANGS_MS_MAX: u64 = 200;

/// Everything that is done to one fleet.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) hosts: usize,
    /// By how many millionths each machine's clock runs fast; the first is the coordinator's.
    pub(super) rates_ppm: Vec<i64>,
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

const AGENT_POINTS: [&str; 9] = [
    "agent.attest.persisted",
    "agent.arm.before-guard",
    "agent.armed.persisted",
    "agent.armed.before-ack",
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
        let rates_ppm = (0..=hosts).map(|_| random.random_range(-PPM_MAX..=PPM_MAX)).collect();
        let rollouts = (0..rollouts).map(|_| Rollout::random(&mut random, hosts)).collect();
        Self { seed, hosts, rates_ppm, rollouts }
    }
}

impl Rollout {
    fn random(random: &mut SmallRng, hosts: usize) -> Self {
        let order =
            *[Order::Flip, Order::Flip, Order::FlipWithoutLapse, Order::Rollback].choose(random).unwrap();
        let count = random.random_range(1..=ACTS_MAX);
        let mut acts: Vec<Act> = Vec::new();
        while acts.len() < count {
            let act = Act::random(random, hosts);
            if acts.iter().all(|other| other.fault.subject() != act.fault.subject()) {
                acts.push(act);
            }
        }
        Self { order, acts }
    }
}

impl Act {
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
        // At once, soon, or at any time within a lease.
        let delay_ms = match random.random_range(0..4) {
            0 | 1 => 0,
            2 => random.random_range(0..100),
            _ => random.random_range(0..1500),
        };
        // Shorter than a lease, or long enough for the others to open.
        let lasts_ms =
            if random.random() { random.random_range(50..1500) } else { random.random_range(1500..5500) };
        let holds_up_guard = matches!(fault, Fault::Suspend(Daemon::Guard(_)));
        let lasts_ms = if holds_up_guard { lasts_ms.min(GUARD_HANGS_MS_MAX) } else { lasts_ms };
        Self { when, delay: Duration::from_millis(delay_ms), fault, lasts: Duration::from_millis(lasts_ms) }
    }
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
        let Self { seed, hosts, rates_ppm, rollouts } = self;
        writeln!(
            f,
            "seed {seed}: {hosts} hosts, {} rollouts, clocks off by {rates_ppm:?} ppm",
            rollouts.len()
        )?;
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
    let hang = |act: &&&Act| matches!(act.fault, Fault::Suspend(Daemon::Guard(_)));
    assert!(acts.iter().filter(hang).all(|act| act.lasts <= Duration::from_millis(GUARD_HANGS_MS_MAX)));
}
