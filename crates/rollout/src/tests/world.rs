//! The simulated world: a coordinator with its disk, machines, and the network between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_model::{
    Attestation, Blocker, BootTime, Code, Digest, Durable, Flip, FlipMode, HostName, Incarnation, OnFailure,
    Order, Purpose, Refusal, Release, RolloutId, Roster, SessionId, ToHost, Token, UnixTime, Verified,
};

use super::machine::{Clock, Link, Machine, Origin, Pace, Pending, Tree, Up};
use super::papers::{SignedRoster, fleet_name, host_name, release, secrets_in, signed_roster};
use super::random::SplitMix64;
use crate::Step;
use crate::fleet::{
    Effect, End, Event, Fleet, FleetRecord, Identity, Inheritance, Limits, NextRoster, Papers, Phase,
    Proposal, Record, Report, SessionRecord, Stage,
};

/// How many releases there are.
pub(super) const RELEASES: usize = 3;
/// How often slow work is passed over for something else.
const SLOWNESS: usize = 4;
/// How much may happen before a world without faults must be at rest.
const ACTIONS_TO_REST_MAX: usize = 5_000;

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
    /// Hosts of which an operator states that their machines are off.
    pub(super) fenced: BTreeSet<HostName>,
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
    attestations: Vec<Verified<Attestation>>,
    sessions: u64,
    pub(super) ends: Vec<End>,
    pub(super) stages: Vec<(RolloutId, Stage)>,
    /// Sessions that were refused, with the host's name.
    pub(super) refused: Vec<(HostName, Refusal)>,
    pub(super) fates: BTreeMap<RolloutId, Fate>,
    pub(super) targets: BTreeMap<RolloutId, Digest>,
    pub(super) opens_forged: u64,
    /// Orders to roll back that the coordinator called for by itself.
    pub(super) rollbacks: Vec<Papers>,
    pub(super) violation: Option<String>,
    pub(super) log: Option<Vec<String>>,
}

/// What became of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Aborted,
    Decided,
}

/// The coordinator's disk and process.
#[derive(Debug, Clone)]
pub(super) struct Coordinator {
    /// Nothing while it is down.
    pub(super) fleet: Option<Fleet>,
    pub(super) record: FleetRecord,
    pub(super) sessions: BTreeMap<HostName, SessionRecord>,
    pub(super) documents: BTreeMap<Digest, Arc<[u8]>>,
    /// Whether what it does follows from a host that joins.
    is_joining: bool,
    /// Whether it follows from a take-over.
    is_taking_over: bool,
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
            guard_fails_per_mille: 0,
            guard_pace: Pace::Usual,
            slow_per_mille: 0,
            shared_boot: false,
            clock: Clock { drift_ppm: 0 },
            mode: FlipMode::Strict,
            max_lapsed: 1,
            coordinator: Coordinator {
                fleet: None,
                record,
                sessions: BTreeMap::new(),
                documents: BTreeMap::new(),
                is_joining: false,
                is_taking_over: false,
            },
            machines: Vec::new(),
            releases: (0..RELEASES).map(release).collect(),
            release_papers: (0..RELEASES).map(|at| Digest::of(format!("paper {at}").as_bytes())).collect(),
            rosters: vec![roster],
            orders: BTreeMap::new(),
            attestations: Vec::new(),
            sessions: 0,
            ends: Vec::new(),
            stages: Vec::new(),
            refused: Vec::new(),
            fates: BTreeMap::new(),
            targets: BTreeMap::new(),
            opens_forged: 0,
            rollbacks: Vec::new(),
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

    /// Step 1: a new leader, from what is on the disk.
    pub(super) fn start_coordinator(&mut self) {
        if self.coordinator.fleet.is_some() {
            return;
        }
        let coordinator = &self.coordinator;
        let commitments = match &coordinator.record.phase {
            Phase::Decided(armament) => coordinator
                .documents
                .get(&armament.evidence)
                .map(|evidence| self.attestations_in(evidence))
                .unwrap_or_default()
                .into_iter()
                .filter_map(|attestation| match attestation.purpose {
                    Purpose::Rollout { commitment, .. } => Some(commitment),
                    Purpose::Check => None,
                })
                .collect(),
            Phase::Settled | Phase::Preparing(_) | Phase::Arming(_) | Phase::Opened(_) => Vec::new(),
        };
        let secrets = coordinator.record.phase.opening().map(|opening| {
            coordinator.documents.get(&opening.secrets).map(|bytes| secrets_in(bytes)).unwrap_or_default()
        });
        let inheritance = Inheritance {
            roster: self.roster_in_force(),
            sessions: coordinator.sessions.values().cloned().collect(),
            commitments,
            secrets: secrets.unwrap_or_default(),
        };
        let (fleet, step) = Fleet::take_over(
            coordinator.record.clone(),
            inheritance,
            Limits::default(),
            self.clock.at(self.now),
        );
        self.coordinator.fleet = Some(fleet);
        self.coordinator.is_taking_over = true;
        self.fleet_step(step);
        self.coordinator.is_taking_over = false;
    }

    /// Kills the coordinator. What it sent may still arrive; nothing reaches it any more.
    pub(super) fn crash_coordinator(&mut self) {
        note!(self, "  the coordinator dies");
        self.coordinator.fleet = None;
        for machine in &mut self.machines {
            for link in machine.link.iter_mut().chain(&mut machine.old_links) {
                link.server_open = false;
                link.up.clear();
            }
        }
    }

    /// Cuts the connection to a host: both ends know, and all that was under way is lost.
    pub(super) fn cut(&mut self, index: usize) {
        let Some(link) = self.machines[index].link.take() else { return };
        self.stream_left(index, &link);
        self.host_event(index, crate::host::Event::Disconnected);
    }

    /// The coordinator gives a stream up; what it sent may still arrive.
    pub(super) fn give_up(&mut self, index: usize) {
        let Some(link) = &mut self.machines[index].link else { return };
        let session = link.session;
        if std::mem::replace(&mut link.server_open, false) {
            let host = self.machines[index].name.clone();
            self.coordinate(Event::Left { host, session });
        }
    }

    /// The coordinator learns that a stream ended.
    pub(super) fn stream_left(&mut self, index: usize, link: &Link) {
        if link.server_open {
            let host = self.machines[index].name.clone();
            self.coordinate(Event::Left { host, session: link.session });
        }
    }

    /// Something of a host's arrives at the coordinator.
    pub(super) fn deliver_up(&mut self, index: usize, session: SessionId, up: Up) {
        let host = self.machines[index].name.clone();
        let event = match up {
            Up::Join(report) => {
                let next = Token::from_bytes(self.random.bytes());
                Event::Joining { host, session, report: *report, next }
            }
            Up::Message(message) => Event::Message { host, session, message: *message },
            Up::Attested(k, attestation) => {
                let envelope = format!("{}", self.attestations.len()).into_bytes();
                let attestation = Verified::assert(*attestation);
                self.attestations.push(attestation.clone());
                Event::Attested { host, session, k, attestation, envelope: envelope.into() }
            }
        };
        self.coordinate(event);
    }

    /// Hands an event to the coordinator and does what follows.
    pub(super) fn coordinate(&mut self, event: Event) {
        note!(self, "  coordinator <- {event:?}");
        let now = self.clock.at(self.now);
        self.coordinator.is_joining = matches!(event, Event::Joining { .. });
        if let Some(fleet) = &mut self.coordinator.fleet {
            let step = fleet.handle(event, now);
            self.fleet_step(step);
        }
        self.coordinator.is_joining = false;
    }

    /// Writes what a step says and then does what it says, or dies on the way.
    pub(super) fn fleet_step(&mut self, step: crate::fleet::Step) {
        let records = step.records().to_vec();
        let effects = match step {
            Step::Act(effects) => effects,
            Step::Write(write) => write.into_effects(Durable::assert(0)),
        };
        let speaks_first = self.mistake == Some(Mistake::CoordinatorSpeaksBeforeWriting);
        let crash_at = self.crash_point(records.len() + effects.len());
        let mut at = 0;
        if !speaks_first {
            for record in &records {
                if crash_at == Some(at) {
                    return self.crash_coordinator();
                }
                at += 1;
                self.persist_fleet(record);
            }
        }
        for effect in effects {
            if crash_at == Some(at) {
                return self.crash_coordinator();
            }
            at += 1;
            self.fleet_effect(effect);
        }
        if speaks_first {
            for record in &records {
                self.persist_fleet(record);
            }
        }
    }

    /// Proposes a flip to one of the releases.
    pub(super) fn propose(&mut self, to: usize) -> Result<RolloutId, Refusal> {
        let proposal = self.proposal(to, |_| {});
        self.propose_this(&proposal)
    }

    /// A proposal whose order was changed before it was signed.
    pub(super) fn proposal(&mut self, to: usize, change: impl FnOnce(&mut Order)) -> Proposal {
        let record = &self.coordinator.record;
        let to = self.releases[to].manifest;
        let now = self.unix_now();
        let flip = Flip {
            from: record.serving,
            to,
            mode: self.mode,
            on_failure: OnFailure::Hold,
            max_lapsed: self
                .max_lapsed
                .min(u32::try_from(self.roster_in_force().hosts().len() - 1).expect("few hosts")),
        };
        let validity = now..UnixTime(now.0 + Order::VALIDITY_MS_MAX);
        let mut order = Order::new(fleet_name(), record.last_k.next(), record.roster, flip, validity)
            .expect("the parts fit together");
        change(&mut order);
        let order = Verified::assert(order);
        let paper = Digest::of_parts(&[b"order", &order.counter.0.to_le_bytes(), order.to.as_bytes()]);
        self.orders.insert(paper, order.clone());
        let at = self.position_of(to);
        let papers = Papers {
            order: paper,
            release: self.release_papers[at],
            roster: self.coordinator.record.roster_envelope,
        };
        Proposal { order, release: self.releases[at].clone(), papers, contingency: None, now }
    }

    /// A proposal that comes with the signed order to roll back.
    pub(super) fn proposal_with_contingency(&mut self, to: usize) -> Proposal {
        let mut proposal = self.proposal(to, |order| order.on_failure = OnFailure::Rollback);
        let order = Digest::of_parts(&[b"back from", proposal.papers.order.as_bytes()]);
        proposal.contingency = Some(Papers { order, ..proposal.papers });
        proposal
    }

    /// Proposes what may or may not be in order.
    pub(super) fn propose_this(&mut self, proposal: &Proposal) -> Result<RolloutId, Refusal> {
        let now = self.clock.at(self.now);
        let fleet = self.coordinator.fleet.as_mut().expect("the coordinator is up");
        let step = fleet.propose(proposal, now)?;
        self.check_propose();
        self.fleet_step(step);
        Ok(proposal.order.counter)
    }

    /// An operator gives the rollout up.
    pub(super) fn abort(&mut self) -> Result<RolloutId, Refusal> {
        let fleet = self.coordinator.fleet.as_mut().expect("the coordinator is up");
        let (k, step) = fleet.abort(None, Blocker::fleet(Code::AbortedByOperator, "by ops"))?;
        self.fleet_step(step);
        Ok(k)
    }

    /// An operator settles that a host's identity is one machine.
    pub(super) fn readmit(&mut self, host: &HostName) {
        let Some(fleet) = &mut self.coordinator.fleet else { return };
        if let Ok(step) = fleet.readmit(host) {
            self.fleet_step(step);
        }
    }

    /// Applies the next roster, with machines 1 to `hosts`; those that are new start without anything deployed.
    pub(super) fn change_roster(&mut self, hosts: usize) -> Result<(), Refusal> {
        let next = signed_roster(self.coordinator.record.roster.revision.0 + 1, hosts);
        let fleet = self.coordinator.fleet.as_mut().expect("the coordinator is up");
        let step = fleet.apply_roster(NextRoster {
            roster: Verified::clone(&next.roster),
            digest: next.digest,
            envelope: next.envelope,
            fenced: self.fenced.clone(),
        })?;
        self.rosters.push(next);
        for number in self.machines.len() + 1..=hosts {
            self.machines.push(Machine::new(fleet_name(), host_name(number)));
            self.start_agent(number - 1);
        }
        self.fleet_step(step);
        Ok(())
    }

    /// The operator deployed the serving release on every host again.
    pub(super) fn report_deployed(&mut self) {
        let Some(manifest) = self.coordinator.record.serving else { return };
        for index in 0..self.machines.len() {
            if let Some(session) = self.machines[index].session() {
                let host = self.machines[index].name.clone();
                self.coordinate(Event::Deployed { host, session, manifest });
            }
        }
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

    /// All that could happen next without any fault.
    pub(super) fn pending(&self) -> Vec<(usize, Pending)> {
        let mut all = Vec::new();
        let mut of_one = Vec::new();
        for (index, machine) in self.machines.iter().enumerate() {
            machine.pending(self.now, &mut of_one);
            all.extend(of_one.drain(..).map(|pending| (index, pending)));
        }
        all
    }

    /// Does something that is under way, if anything is.
    pub(super) fn progress(&mut self) -> bool {
        let pending = self.pending();
        if pending.is_empty() {
            return false;
        }
        let pause = self.random.below(3);
        self.pass_time(self.now + pause);
        let mut choice = pending[self.random.index(pending.len())];
        for _ in 0..SLOWNESS {
            if matches!(
                (choice.1, self.guard_pace),
                (Pending::Work(_, Pace::Slow), _) | (Pending::Guard, Pace::Slow)
            ) {
                choice = pending[self.random.index(pending.len())];
            }
        }
        let (index, what) = choice;
        note!(self, "{} {what:?}", self.machines[index].name);
        self.advance(index, what);
        self.check();
        true
    }

    /// Lets everything that is under way happen until `done` or until there is nothing left; agents connect.
    pub(super) fn run_until(&mut self, mut done: impl FnMut(&Self) -> bool) -> bool {
        for _ in 0..ACTIONS_TO_REST_MAX {
            if done(self) {
                return true;
            }
            let mut connected = false;
            for index in 0..self.machines.len() {
                // A host that is refused would try again for ever.
                connected |= self.is_welcome(index) && self.connect(index);
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

    fn persist_fleet(&mut self, record: &Record) {
        match record {
            Record::Document(digest, bytes) => {
                self.coordinator.documents.insert(*digest, Arc::clone(bytes));
            }
            Record::Session(session) => {
                self.coordinator.sessions.insert(session.host.clone(), session.clone());
            }
            Record::Fleet(record) => {
                note!(self, "    durable: {:?}", record.phase);
                self.check_fleet_record(record);
                self.coordinator.record = FleetRecord::clone(record);
            }
        }
    }

    fn fleet_effect(&mut self, effect: Effect) {
        note!(self, "    coordinator -> {effect:?}");
        match effect {
            Effect::Send { host, session, message } => {
                let is_repeated = self.coordinator.is_joining && matches!(message, ToHost::Close { .. });
                if self.mistake == Some(Mistake::CloseNotRepeated) && is_repeated {
                    return;
                }
                self.check_to_host(&host, &message);
                let leadership = self.coordinator.record.leadership;
                if let Some(link) = self.open_link(&host, session) {
                    link.accepted |= matches!(message, ToHost::Joined { .. });
                    link.down.push_back((leadership, message, Origin::Coordinator));
                }
            }
            Effect::EndSession { host, session, refusal } => {
                self.refused.push((host.clone(), refusal.clone()));
                let leadership = self.coordinator.record.leadership;
                if let Some(link) = self.open_link(&host, session) {
                    link.down.push_back((leadership, ToHost::Refuse { refusal }, Origin::Coordinator));
                    link.server_open = false;
                    link.accepted = false;
                    link.up.clear();
                }
            }
            // The simulator has one leader at a time: what it reads is always so.
            Effect::ConfirmLead { read } => self.coordinate(Event::LeadConfirmed { read }),
            Effect::BeginWait => self.begin_wait(),
            Effect::RollBack(papers) => self.rollbacks.push(papers),
            Effect::Report(Report::Ended(end)) => self.ends.push(end),
            Effect::Report(Report::Reached { k, stage, host: None, .. }) => self.stages.push((k, stage)),
            Effect::Report(Report::Reached { .. } | Report::Trouble { .. }) => {}
        }
    }

    fn begin_wait(&mut self) {
        let wait = self.roster_in_force().policy().timing.wait_ms;
        let too_early = match self.mistake {
            Some(Mistake::WaitTooShort) => wait / 2,
            Some(Mistake::WaitSkippedAtTakeOver) if self.coordinator.is_taking_over => wait,
            Some(_) | None => 0,
        };
        let now = BootTime(self.clock.at(self.now).0.saturating_sub(too_early));
        note!(self, "  coordinator <- WaitBegun at {now:?}");
        if let Some(fleet) = &mut self.coordinator.fleet {
            let step = fleet.handle(Event::WaitBegun, now);
            self.fleet_step(step);
        }
    }

    fn is_welcome(&self, index: usize) -> bool {
        let name = &self.machines[index].name;
        let is_quarantined = self
            .coordinator
            .sessions
            .get(name)
            .is_some_and(|it| it.identity == Identity::Duplicate && !it.readmitted);
        self.roster_in_force().position(name).is_some() && !is_quarantined
    }

    fn open_link(&mut self, host: &HostName, session: SessionId) -> Option<&mut Link> {
        let machine = self.machines.iter_mut().find(|machine| machine.name == *host)?;
        machine
            .link
            .iter_mut()
            .chain(&mut machine.old_links)
            .find(|link| link.session == session && link.server_open)
    }
}
