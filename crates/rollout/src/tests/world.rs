//! The simulated world: a coordinator with its disk, machines, and the network between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use muster_model::{
    Attestation, BootTime, Digest, FlipMode, HostName, Incarnation, Leadership, Order, Refusal, Release,
    RolloutId, Roster, SessionId, UnixTime, Verified, Withdrawal,
};

use super::clock::Clock;
use super::coordinator::{Coordinator, Seat};
use super::disk::Death;
use super::machine::{Machine, Pace, Pending, Tree};
use super::papers::{SignedRoster, fleet_name, host_name, release, signed_roster};
use super::random::SplitMix64;
use crate::fleet::{End, Event, Fleet, FleetRecord, Identity, Papers, Stage};

/// How many releases there are.
pub(super) const RELEASES: usize = 3;
/// How often slow work is passed over for something else.
const SLOWNESS: usize = 4;
/// How much may happen before a world without faults must be at rest.
const ACTIONS_TO_REST_MAX: usize = 1_000;
/// Up to how many machines each event takes its own time.
const HOSTS_IN_STEP: usize = 5;
/// How late a leader's timer fires at most, but for a leader that does not run.
const TIMER_LATE_MAX: Duration = Duration::from_millis(500);

/// A mistake that is planted in the simulator, never in the code under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mistake {
    /// The guard says that nothing is served before that is so.
    ClosedBeforeDark,
    /// ARMED is lost when the agent restarts.
    ArmedNotDurable,
    /// The service is enabled at boot.
    StartsAtBoot,
    /// A decided rollout is not closed again after a host or a coordinator was lost.
    CloseNotRepeated,
    /// An admission of a former session is made to fit the current one.
    StaleAdmit,
    /// An armed host is told to disarm although the rollout goes on.
    StrayDisarm,
    /// A host speaks before its record is durable.
    HostSpeaksBeforeWriting,
    /// The coordinator speaks before its record is durable.
    CoordinatorSpeaksBeforeWriting,
    /// Someone who speaks for the coordinator opens hosts before all have closed.
    ForgedOpen,
    /// CLOSE cancels the guard's deadline before the service is down.
    CloseCancelsDeadline,
    /// The coordinator waits a little less than `W` for silent hosts.
    WaitTooShort,
    /// A new leader takes the time before it for part of the wait.
    WaitSkippedAtTakeOver,
    /// The lease counts from when the grant was received.
    LeaseFromReceipt,
    /// A host is removed although it was offered service since it had closed or lapsed.
    RemovedAfterOffer,
    /// A leader that was deposed grants without asking the store whether it still leads.
    GrantWithoutReading,
    /// What was written is claimed to be durable before it is synced.
    DurableBeforeSync,
    /// Trees are taken for good without a look at them.
    TreesNotLookedAt,
    /// The time of day is off by more than hosts attest.
    TimeOfDayOff,
    /// A guard that is started again does not take its lease up.
    LeaseNotTakenUp,
    /// The leader's timer never fires.
    TimerForgotten,
    /// A host takes the answer to an earlier closing for that to the one by which it leaves.
    ClosingsNotToldApart,
    /// A coordinator that was taken over says that a host has closed, which is shown nothing.
    WithdrawalForged,
    /// The same, and the others take that for the host's word.
    WithdrawalNotSigned,
}

/// Everything there is.
#[derive(Debug, Clone)]
pub(super) struct World {
    /// Milliseconds, on every clock.
    pub(super) now: u64,
    pub(super) random: SplitMix64,
    pub(super) mistake: Option<Mistake>,
    /// How often a step is cut short by a crash.
    pub(super) crash_per_mille: u64,
    /// How often the guard cannot do what it is asked.
    pub(super) guard_fails_per_mille: u64,
    /// How often it cannot write what it must keep.
    pub(super) guard_disk_fails_per_mille: u64,
    /// Hosts of which an operator states that their machines are off.
    pub(super) fenced: BTreeSet<HostName>,
    /// Hosts of which it was stated that they are off, in a roster that was handed in, and that were not let in since.
    pub(super) stated: BTreeMap<HostName, Heard>,
    /// The hosts that the newest roster parks, by number.
    pub(super) parked: BTreeSet<usize>,
    /// The rosters that hosts were shown last: the one in force, and the coming one.
    pub(super) shown_last: (Digest, Option<Digest>),
    /// How soon guards do what they are asked.
    pub(super) guard_pace: Pace,
    /// How often work takes very long.
    pub(super) slow_per_mille: u64,
    /// Whether all hosts run on one machine, and so share a clock.
    pub(super) shared_boot: bool,
    /// The coordinator's clock.
    pub(super) clock: Clock,
    /// How the fleet flips.
    pub(super) mode: FlipMode,
    pub(super) max_lapsed: u32,
    pub(super) coordinator: Coordinator,
    pub(super) machines: Vec<Machine>,
    pub(super) releases: Vec<Verified<Release>>,
    pub(super) release_papers: Vec<Digest>,
    pub(super) rosters: Vec<SignedRoster>,
    pub(super) orders: BTreeMap<Digest, Verified<Order>>,
    pub(super) attestations: Vec<Verified<Attestation>>,
    /// The words of hosts that they have closed, which they have signed; and those that nobody has.
    pub(super) withdrawals: Vec<Verified<Withdrawal>>,
    pub(super) forged: Vec<Verified<Withdrawal>>,
    sessions: u64,
    /// How long a read of the leadership takes at most; 0 if it is answered at once.
    pub(super) read_ms_max: u64,
    /// Whether clocks are off in rate.
    pub(super) drifts: bool,
    /// How many hosts there were when it began.
    pub(super) hosts_at_first: usize,
    /// How often a hook fails.
    pub(super) hooks_fail_per_mille: u64,
    /// Counts what reaches a leader and what it writes.
    pub(super) events: u64,
    /// When the store left ARMING for a rollout, in these events.
    pub(super) left_arming: BTreeMap<RolloutId, u64>,
    /// Since when a leader that has not changed could complete a decided rollout, on its clock.
    pub(super) completing: Option<(RolloutId, Leadership, BootTime)>,
    /// Since when two releases are served at once, in fast mode.
    pub(super) mixed_since: Option<u64>,
    /// How long before its instant the last rollout in fast mode was armed.
    pub(super) instant_ahead_ms: u64,
    pub(super) ends: Vec<End>,
    pub(super) stages: Vec<(RolloutId, Stage)>,
    /// Sessions that were refused, with the host's name.
    pub(super) refused: Vec<(HostName, Refusal)>,
    pub(super) fates: BTreeMap<RolloutId, Fate>,
    pub(super) targets: BTreeMap<RolloutId, Digest>,
    pub(super) opens_forged: u64,
    /// Orders to roll back that the coordinator called for by itself.
    pub(super) rollbacks: Vec<Papers>,
    pub(super) seen: Seen,
    pub(super) violation: Option<String>,
    pub(super) log: Option<Vec<String>>,
}

/// How often what a history is about has happened in it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// A flip was completed over hosts that were silent.
    pub(super) lapsed: u64,
    /// A flip in fast mode was completed.
    pub(super) fast: u64,
    /// A leader that was deposed wanted to write.
    pub(super) refused_writes: u64,
    /// The power went while something was written.
    pub(super) torn: u64,
    /// The power went, and the last word on a lease with it.
    pub(super) leases_lost: u64,
    /// A guard was killed and started again over what it had served, and took up a deadline that still ran.
    pub(super) taken_up: u64,
    /// A host was parked that had been offered service.
    pub(super) parked: u64,
    /// One that was parked serves again.
    pub(super) unparked: u64,
    /// A roster held on the statement that a host is off.
    pub(super) off: u64,
    /// A host connected of which that was stated in a roster that did not hold yet.
    pub(super) not_off: u64,
    /// A host was told that it had been left out before, and had been a member.
    pub(super) told: u64,
    /// A roster that has hosts leave and others join came to hold in OPENED.
    pub(super) exchanged: u64,
}

/// Something that could happen next.
#[derive(Debug, Clone, Copy)]
enum Next {
    Host(usize, Pending),
    /// The deadline of a leader has come.
    Timer(Seat),
    Read(usize),
}

/// Whether a host has asked to be let in since it was stated to be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    No,
    /// Whoever heard it may have died over that.
    Perhaps,
}

/// What became of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Aborted,
    Decided,
}

impl World {
    /// A fleet of `hosts` machines with all releases deployed, before anything is started.
    pub(super) fn new(hosts: usize, seed: u64) -> Self {
        let roster = signed_roster(1, hosts);
        let record = FleetRecord::first(&roster.roster, roster.digest, roster.envelope, Incarnation(1));
        let mut world = Self {
            now: 1,
            random: SplitMix64::new(seed),
            mistake: None,
            crash_per_mille: 0,
            fenced: BTreeSet::new(),
            stated: BTreeMap::new(),
            parked: BTreeSet::new(),
            shown_last: (record.roster_envelope, None),
            guard_fails_per_mille: 0,
            guard_disk_fails_per_mille: 0,
            guard_pace: Pace::Usual,
            slow_per_mille: 0,
            shared_boot: false,
            clock: Clock::exact(),
            mode: FlipMode::Strict,
            max_lapsed: 1,
            coordinator: Coordinator::new(record),
            machines: Vec::new(),
            releases: (0..RELEASES).map(release).collect(),
            release_papers: (0..RELEASES).map(|at| Digest::of(format!("paper {at}").as_bytes())).collect(),
            rosters: vec![roster],
            orders: BTreeMap::new(),
            attestations: Vec::new(),
            withdrawals: Vec::new(),
            forged: Vec::new(),
            sessions: 0,
            read_ms_max: 0,
            drifts: false,
            hosts_at_first: hosts,
            hooks_fail_per_mille: 0,
            events: 0,
            left_arming: BTreeMap::new(),
            completing: None,
            mixed_since: None,
            instant_ahead_ms: 0,
            ends: Vec::new(),
            stages: Vec::new(),
            refused: Vec::new(),
            fates: BTreeMap::new(),
            targets: BTreeMap::new(),
            opens_forged: 0,
            rollbacks: Vec::new(),
            seen: Seen::default(),
            violation: None,
            log: None,
        };
        for number in 1..=hosts {
            world.machines.push(Machine::new(fleet_name(), host_name(number)));
        }
        world
    }

    /// The same, started, connected and at rest.
    pub(super) fn running(hosts: usize, seed: u64) -> Self {
        let mut world = Self::new(hosts, seed);
        world.deploy_everywhere();
        world.start_all();
        world.rest();
        world
    }

    pub(super) fn deploy_everywhere(&mut self) {
        for machine in &mut self.machines {
            machine.trees = [Tree::Good; RELEASES];
        }
    }

    /// Starts whatever is down.
    pub(super) fn start_all(&mut self) {
        self.start_coordinator();
        for index in 0..self.machines.len() {
            self.start_agent(index);
        }
    }

    /// Cuts the connection to a host: both ends know, and all that was under way is lost.
    pub(super) fn cut(&mut self, index: usize) {
        let Some(link) = self.machines[index].link.take() else { return };
        self.stream_left(index, &link);
        self.host_event(index, crate::host::Event::Disconnected);
    }

    /// Lets the deadline of the coordinator pass, if there is one.
    pub(super) fn pass_deadline(&mut self) -> bool {
        let Some(deadline) = self.coordinator.fleet.as_ref().and_then(Fleet::next_deadline) else {
            return false;
        };
        self.pass_time(self.clock.when(deadline));
        self.coordinate(Event::DeadlineReached);
        true
    }

    /// All that could happen next on the machines without any fault.
    pub(super) fn pending(&self) -> Vec<(usize, Pending)> {
        let mut all = Vec::new();
        let mut of_one = Vec::new();
        for (index, machine) in self.machines.iter().enumerate() {
            machine.pending(self.now, &mut of_one);
            all.extend(of_one.drain(..).map(|pending| (index, pending)));
        }
        all
    }

    /// All that could happen next.
    fn next(&self) -> Vec<Next> {
        let mut all: Vec<Next> =
            self.pending().into_iter().map(|(index, pending)| Next::Host(index, pending)).collect();
        all.extend(
            [Seat::Leading, Seat::Deposed]
                .into_iter()
                .filter(|it| self.overdue(*it).is_some())
                .map(Next::Timer),
        );
        all.extend(self.coordinator.reads_due(self.now).map(Next::Read));
        all
    }

    /// By how much the timer of a leader is late, if it is due.
    fn overdue(&self, seat: Seat) -> Option<Duration> {
        let deadline = self.coordinator.at(seat).and_then(Fleet::next_deadline)?;
        let now = self.clock_of(seat).at(self.now);
        let is_forgotten = self.mistake == Some(Mistake::TimerForgotten);
        (deadline <= now && !is_forgotten).then(|| now.since(deadline))
    }

    /// Does something that is under way, if anything is. What is on its way arrives, however long it takes.
    pub(super) fn progress(&mut self) -> bool {
        let mut next = self.next();
        if next.is_empty() {
            let arrivals = self.machines.iter().filter_map(Machine::next_arrival);
            let guards = self.machines.iter().filter_map(Machine::next_step_of_guard);
            let Some(at) = arrivals.chain(guards).chain(self.coordinator.next_read()).min() else {
                return false;
            };
            self.pass_time(at);
            next = self.next();
        }
        if next.is_empty() {
            return true;
        }
        let pause = self.pause(3);
        self.pass_time(self.now + pause);
        let mut choice = next[self.random.index(next.len())];
        for _ in 0..SLOWNESS {
            if matches!(
                (choice, self.guard_pace),
                (Next::Host(_, Pending::Work(_, Pace::Slow)), _)
                    | (Next::Host(_, Pending::Guard), Pace::Slow)
            ) {
                choice = next[self.random.index(next.len())];
            }
        }
        if self.overdue(Seat::Leading).is_some_and(|late| late > TIMER_LATE_MAX) {
            choice = Next::Timer(Seat::Leading);
        }
        match choice {
            Next::Host(index, what) => {
                note!(self, "{} {} {what:?}", self.now, self.machines[index].name);
                self.advance(index, what);
            }
            Next::Timer(seat) => self.coordinate_as(seat, Event::DeadlineReached),
            Next::Read(at) => self.finish_read(at),
        }
        self.check();
        true
    }

    /// Nothing happens before the next timer, or for a while.
    pub(super) fn idle(&mut self, ms_max: u64) {
        let leader = self.coordinator.at(Seat::Leading).and_then(Fleet::next_deadline);
        let leader = leader.map(|deadline| self.clock.when(deadline));
        let agents = self.machines.iter().filter_map(Machine::next_due);
        let next = agents.chain(leader).chain(self.next_alarm().map(|(at, _)| at)).min();
        let until = next.unwrap_or(u64::MAX).min(self.now + ms_max);
        self.pass_time(until.max(self.now));
    }

    /// How long passes before something happens: in a large fleet many things happen at once.
    pub(super) fn pause(&mut self, bound: u64) -> u64 {
        let hosts = self.machines.len();
        let is_now = hosts > HOSTS_IN_STEP && self.random.index(hosts) >= HOSTS_IN_STEP;
        if is_now { 0 } else { self.random.below(bound) }
    }

    /// Lets everything that is under way happen until `done` or until there is nothing left; agents connect.
    pub(super) fn run_until(&mut self, mut done: impl FnMut(&Self) -> bool) -> bool {
        for _ in 0..ACTIONS_TO_REST_MAX * self.machines.len().max(HOSTS_IN_STEP) {
            if done(self) {
                return true;
            }
            let mut connected = false;
            for index in 0..self.machines.len() {
                // A host that is refused would try again for ever.
                let is_away = self.machines[index].link.is_none() && self.machines[index].agent.is_some();
                connected |= is_away && self.is_welcome(index) && self.connect(index);
            }
            if !connected && !self.progress() {
                return false;
            }
            if self.violation.is_some() {
                return false;
            }
        }
        self.violate("the world does not come to rest");
        false
    }

    /// Lets everything that is under way happen.
    pub(super) fn rest(&mut self) {
        self.run_until(|_| false);
    }

    /// What the crash that happens now cuts short, if one does.
    pub(super) fn crash_point(&mut self, len: usize) -> Option<usize> {
        (len > 0 && self.random.chance(self.crash_per_mille)).then(|| self.random.index(len))
    }

    pub(super) fn death(&mut self) -> Death {
        if self.random.chance(500) { Death::PowerOff } else { Death::Kill }
    }

    pub(super) fn violate(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert(what.into());
    }

    pub(super) fn unix_now(&self) -> UnixTime {
        UnixTime(1_000_000 + self.now)
    }

    pub(super) fn next_session(&mut self) -> SessionId {
        self.sessions += 1;
        SessionId(self.sessions)
    }

    /// The attestations that a document of evidence lists.
    pub(super) fn attestations_in(&self, evidence: &[u8]) -> Vec<&Verified<Attestation>> {
        std::str::from_utf8(evidence)
            .expect("the simulator's envelopes are text")
            .lines()
            .take_while(|line| line.starts_with(|first: char| first.is_ascii_digit()))
            .map(|line| &self.attestations[line.parse::<usize>().expect("a position")])
            .collect()
    }

    pub(super) fn position_of(&self, release: Digest) -> usize {
        self.releases.iter().position(|it| it.manifest == release).expect("a release of this world")
    }

    pub(super) fn roster_in_force(&self) -> Arc<Verified<Roster>> {
        let digest = self.coordinator.record.roster.digest;
        let signed = self.rosters.iter().find(|it| it.digest == digest).expect("a roster of this world");
        Arc::clone(&signed.roster)
    }

    pub(super) fn roster_coming(&self) -> Option<Arc<Verified<Roster>>> {
        let digest = self.coordinator.record.coming.as_ref()?.roster.digest;
        self.rosters.iter().find(|it| it.digest == digest).map(|it| Arc::clone(&it.roster))
    }

    /// How many hosts the newest roster lists, parked ones included.
    pub(super) fn hosts_listed(&self) -> usize {
        let roster = self.roster_coming().unwrap_or_else(|| self.roster_in_force());
        roster.hosts().len() + roster.parked().len()
    }

    fn is_welcome(&self, index: usize) -> bool {
        let name = &self.machines[index].name;
        let is_quarantined = self
            .coordinator
            .sessions
            .get(name)
            .is_some_and(|it| it.identity == Identity::Duplicate && !it.readmitted);
        self.roster_in_force().place(name).is_some() && !is_quarantined
    }
}
