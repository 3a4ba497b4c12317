//! The coordinator's half: one state machine for each fleet.
//!
//! It relays, keeps count and decides. It never acts by itself: [`Fleet::handle`] and the operator's calls return a
//! [`Step`], and the driver writes and sends. The other half is [`crate::host`].

mod arm;
mod event;
mod figures;
mod flip;
mod halt;
mod missed;
mod parked;
mod propose;
mod record;
mod rollout;
mod roster;
mod session;
mod view;
mod wait;
mod withdrawals;

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_model::{
    Blocker, BootId, BootTime, BrokenGlass, Commitment, Digest, Epoch, HostMode, HostName, Membership, Nonce,
    RolloutId, Roster, Secrets, SessionId, ToHost, UnixTime, Verified,
};

pub use event::{DarkWindow, Effect, End, Event, Limits, NextRoster, Outcome, Proposal, Report, Stage};
pub use record::{
    Armament, Base, ComingRoster, FleetRecord, Identity, MissedRoster, Offers, Opening, Papers, Phase,
    PreviousToken, RECORD_FORMAT, Record, Rollout, SessionRecord, WithdrawalRecord, is_bound_to, roster_ref,
};
pub use roster::leaves;
pub use view::{HostView, RolloutView, State};

use crate::Step as AnyStep;
use rollout::Progress;

/// A step of the coordinator's half.
pub type Step = AnyStep<Record, Effect>;

/// The newest protocol version this half speaks; agents below [`PROTOCOL_MIN`] are blockers, never parse errors.
pub const PROTOCOL: u32 = 2;
/// The oldest that knows withdrawals, and rosters that say since when hosts are set aside. It is asked for only while one is in force or
/// coming.
pub const PROTOCOL_OF_WITHDRAWALS: u32 = 2;
/// The oldest agent protocol that takes part.
pub const PROTOCOL_MIN: u32 = 1;

/// One fleet, as its coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fleet {
    record: FleetRecord,
    roster: Arc<Verified<Roster>>,
    hosts: Vec<Host>,
    /// The hosts that are parked, in the order of the roster.
    parked: Vec<Host>,
    /// The roster that the record has as coming.
    coming: Option<Arc<Verified<Roster>>>,
    /// The newest word of each host that it has closed, by name: also of those that have retired and are let in no more.
    withdrawals: BTreeMap<HostName, WithdrawalRecord>,
    progress: Progress,
    /// What was known of the opening from which the rollout under way sets out: it counts again if that is given up.
    set_aside: Option<flip::Opened>,
    /// The closing secrets of the last completed flip, for hosts that are still to open.
    secrets: Secrets,
    /// One moment on both clocks, from the last proposal: an instant of the day is told by it.
    clock: Option<(BootTime, UnixTime)>,
    limits: Limits,
}

/// What a new leader knows beside the fleet's record.
#[derive(Debug, Clone)]
pub struct Inheritance {
    /// The roster in force.
    pub roster: Arc<Verified<Roster>>,
    /// The one that was handed in and does not hold yet.
    pub coming: Option<Arc<Verified<Roster>>>,
    /// The hosts' sessions.
    pub sessions: Vec<SessionRecord>,
    /// The words of hosts that they have closed, each verified by the key in it.
    pub withdrawals: Vec<WithdrawalRecord>,
    /// Of a decided rollout: the commitments of the N attestations, in the order of the roster.
    pub commitments: Vec<Commitment>,
    /// Of an opened one: the N closing secrets, in the order of the roster.
    pub secrets: Secrets,
}

/// A host of the roster, as far as it is known at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Host {
    name: HostName,
    identity: Option<SessionRecord>,
    session: Option<Session>,
    /// What it stated last, whether or not it is still connected.
    known: Option<Known>,
    /// When it connected or was lost.
    since: Option<BootTime>,
    /// What is wrong with it beyond a missing connection.
    trouble: Vec<Blocker>,
    /// Why this coordinator must not lead: the host remembers more than it does.
    ahead: Option<Blocker>,
    /// While it is armed: until when it may serve at the latest, on the coordinator's clock.
    leased_until: Option<BootTime>,
    /// The epoch that it measured in full since it began to serve it.
    measured: Option<Epoch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    id: SessionId,
    boot_id: BootId,
    /// What an admission over this session must show: the host's newest.
    nonce: Nonce,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Known {
    mode: HostMode,
    last_k: RolloutId,
    serving: Option<Epoch>,
    halted: Option<RolloutId>,
    agent_version: String,
    protocol: u32,
    membership: Membership,
    /// The break-glass tokens that were used on it.
    glass: Vec<BrokenGlass>,
}

/// What a step is made of while it is worked out.
#[derive(Default)]
struct Out {
    documents: Vec<Record>,
    sessions: Vec<Record>,
    record_changed: bool,
    effects: Vec<Effect>,
}

impl Fleet {
    /// Step 1: takes the lead in the next term.
    ///
    /// A rollout that was not decided is given up; one that was is carried on. All volatile acknowledgements are
    /// forgotten: hosts tell again what they are when they join.
    pub fn take_over(
        mut record: FleetRecord,
        inheritance: Inheritance,
        limits: Limits,
        now: BootTime,
    ) -> (Self, Step) {
        record.leadership.term = record.leadership.term.next();
        let mut sessions: BTreeMap<HostName, SessionRecord> =
            inheritance.sessions.into_iter().map(|session| (session.host.clone(), session)).collect();
        let hosts = inheritance.roster.hosts().iter();
        let hosts: Vec<_> =
            hosts.map(|member| Host::new(&member.name, sessions.remove(&member.name))).collect();
        let parked = inheritance.roster.parked().iter();
        let parked = parked.map(|it| Host::new(&it.name, sessions.remove(&it.name))).collect();
        let mut fleet = Self {
            hosts,
            parked,
            roster: inheritance.roster,
            coming: inheritance.coming,
            withdrawals: inheritance.withdrawals.into_iter().map(|it| (it.host.clone(), it)).collect(),
            progress: Progress::None,
            set_aside: None,
            secrets: inheritance.secrets,
            clock: None,
            limits,
            record,
        };
        let mut out = Out { record_changed: true, ..Out::default() };
        fleet.resume(inheritance.commitments, now, &mut out);
        let step = fleet.step(out);
        (fleet, step)
    }

    /// Takes note of an event and works out what follows.
    pub fn handle(&mut self, event: Event, now: BootTime) -> Step {
        let mut out = Out::default();
        match event {
            Event::Joining { host, session, report, next } => {
                self.join(&host, session, report, next, now, &mut out)
            }
            Event::Left { host, session } => self.leave(&host, session, now, &mut out),
            Event::Message { host, session, message } => {
                if let Some(index) = self.current(&host, session) {
                    self.message(index, message, now, &mut out);
                } else {
                    self.parked_says(&host, session, message, &mut out);
                }
            }
            Event::Attested { host, session, k, attestation, envelope } => {
                if let Some(index) = self.current(&host, session) {
                    self.attested(index, k, attestation, envelope, now, &mut out);
                }
            }
            Event::Withdrew { host, session, withdrawal, attestation_key, envelope } => {
                self.withdrew(&host, session, &withdrawal, attestation_key, &envelope, &mut out);
            }
            Event::Deployed { host, session, manifest } => {
                if let Some(index) = self.current(&host, session)
                    && self.record.serving == Some(manifest)
                {
                    self.reconcile(index, &mut out);
                }
            }
            Event::LeadConfirmed { read } => self.lead_confirmed(read, now, &mut out),
            Event::WaitBegun => self.wait_begun(now),
            Event::RollBackRefused(refusal) => self.rollback_refused(refusal, &mut out),
            Event::DeadlineReached => self.deadline_reached(now, &mut out),
        }
        self.step(out)
    }

    /// When [`Event::DeadlineReached`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<BootTime> {
        self.progress.deadline()
    }

    /// The durable state, as of the last step.
    #[must_use]
    pub const fn record(&self) -> &FleetRecord {
        &self.record
    }

    /// The roster in force.
    #[must_use]
    pub const fn roster(&self) -> &Arc<Verified<Roster>> {
        &self.roster
    }

    /// The position of `host`, if `session` is its current one. Whatever comes over another session is dropped: P9.
    fn current(&self, host: &HostName, session: SessionId) -> Option<usize> {
        let index = self.roster.position(host)?;
        let current = self.hosts[index].session.as_ref()?;
        (current.id == session).then_some(index)
    }

    /// Sends `message` to a host, if it is connected.
    fn send(&self, index: usize, message: ToHost, out: &mut Out) {
        let host = &self.hosts[index];
        if let Some(session) = &host.session {
            out.effects.push(Effect::Send { host: host.name.clone(), session: session.id, message });
        }
    }

    /// Sends the same message to every connected host.
    fn broadcast(&self, message: &ToHost, out: &mut Out) {
        for index in 0..self.hosts.len() {
            self.send(index, message.clone(), out);
        }
    }

    /// Takes note that no host is armed any more, as far as this leader has a say.
    fn no_leases(&mut self) {
        for host in &mut self.hosts {
            host.leased_until = None;
        }
    }

    /// Puts a document beside the records and returns its name.
    fn keep_document(bytes: Vec<u8>, out: &mut Out) -> Digest {
        let digest = Digest::of(&bytes);
        out.documents.push(Record::Document(digest, bytes.into()));
        digest
    }

    /// Documents come first, so that no record ever names one that is not there.
    fn step(&mut self, mut out: Out) -> Step {
        self.take_up_coming(&mut out);
        let mut records = out.documents;
        records.extend(out.sessions);
        if out.record_changed {
            self.record.revision += 1;
            records.push(Record::Fleet(Box::new(self.record.clone())));
        }
        Step::new(records, out.effects)
    }
}

impl Host {
    fn new(name: &HostName, identity: Option<SessionRecord>) -> Self {
        Self {
            name: name.clone(),
            identity,
            session: None,
            known: None,
            since: None,
            trouble: Vec::new(),
            ahead: None,
            leased_until: None,
            measured: None,
        }
    }

    fn membership(&self) -> Option<Membership> {
        self.known.as_ref().map(|known| known.membership)
    }

    fn has_membership(&mut self, membership: Membership) {
        if let Some(known) = &mut self.known {
            known.membership = membership;
        }
    }

    /// Takes note that the host serves `epoch`, or nothing.
    fn serves(&mut self, epoch: Option<Epoch>) {
        if let Some(known) = &mut self.known {
            known.serving = epoch;
            if epoch.is_some() {
                known.halted = None;
            }
        }
        if self.measured != epoch {
            self.measured = None;
        }
    }

    /// Takes note that the host is armed for rollout `k`.
    fn has_armed(&mut self, k: RolloutId) {
        if let Some(known) = &mut self.known {
            known.last_k = known.last_k.max(k);
            known.mode = match known.mode {
                HostMode::Serve(epoch) | HostMode::Armed(_, epoch) => HostMode::Armed(k, epoch),
                // "At a dark CLOSED(k'), k' < k, ARM(k) ... counts as armed and closed."
                HostMode::Closed(_) => HostMode::Closed(k),
            };
        }
    }

    fn mode(&self) -> Option<HostMode> {
        self.known.as_ref().map(|known| known.mode)
    }

    fn set_mode(&mut self, mode: HostMode) {
        if let Some(known) = &mut self.known {
            known.mode = mode;
        }
        match mode {
            HostMode::Armed(..) => {}
            HostMode::Serve(_) | HostMode::Closed(_) => self.leased_until = None,
        }
    }

    fn serving(&self) -> Option<Epoch> {
        self.known.as_ref().and_then(|known| known.serving)
    }
}
