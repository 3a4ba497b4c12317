//! How the rest of the coordinator reaches a fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use muster_model::{
    Attestation, Blocker, Code, Digest, FleetName, HostName, HostPlace, Leadership, Refusal, RolloutId,
    Roster, SessionId, Standing, Verified,
};
use muster_proto::v1;
use muster_rollout::fleet::{
    FleetRecord, HostView, MissedRoster, NextRoster, Proposal, Report, RolloutView, leaves,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::answers::{Answers, HostAnswer, Waiting};
use super::connections::Connected;
use super::driver::Input;

/// The releases that each host has on disk, as it said last.
pub(crate) type Inventory = BTreeMap<HostName, Arc<Held>>;

/// What a host has.
#[derive(Debug)]
pub(crate) struct Held {
    /// The releases on its disk.
    pub(crate) manifests: BTreeSet<Digest>,
    /// The version of the root document that it goes by, if it says.
    pub(crate) root_version: Option<u64>,
    /// What becomes of its certificate, if it says.
    pub(crate) certificate: Option<v1::CertificateReport>,
    /// How much Muster may do to its service, if that is not all.
    pub(crate) enforce: Option<String>,
    /// What its measurements are worth, if it says.
    pub(crate) assurance: Option<v1::Assurance>,
}

/// A fleet, as it is reached from the gRPC edge.
#[derive(Debug)]
pub(crate) struct FleetHandle {
    pub(crate) name: FleetName,
    pub(super) inbox: mpsc::Sender<Input>,
    pub(super) reports: broadcast::Sender<Report>,
    pub(super) connected: watch::Receiver<Connected>,
    pub(super) roster: watch::Receiver<RosterInForce>,
    /// Fixed for as long as this process leads.
    leadership: Leadership,
    inventory: Mutex<Inventory>,
    /// The newest attestation of each host that was given for a check.
    attested: Mutex<BTreeMap<HostName, Attested>>,
    /// Who waits for answers to deployments and checks.
    waiting: Arc<Waiting>,
}

/// The roster in force, and its envelope's name.
#[derive(Debug, Clone)]
pub(crate) struct RosterInForce {
    pub(crate) roster: Arc<Verified<Roster>>,
    pub(crate) envelope: Digest,
    /// The one that was handed in and does not hold yet.
    pub(crate) coming: Option<(Arc<Verified<Roster>>, Digest)>,
    /// Those that left hosts out which are back, and may not know.
    pub(super) missed: Vec<MissedRoster>,
}

impl RosterInForce {
    /// See [`Fleet::shown_to_joining`](muster_rollout::fleet::Fleet::shown_to_joining).
    pub(crate) fn shown_to_joining(&self, host: &HostName, standing: &Standing) -> Digest {
        self.shown(host, |missed| missed.is_news_to(standing))
    }

    /// See [`Fleet::shown_to`](muster_rollout::fleet::Fleet::shown_to).
    pub(super) fn shown_to(&self, host: &HostName) -> Digest {
        self.shown(host, |_| true)
    }

    fn shown(&self, host: &HostName, is_news: impl Fn(&MissedRoster) -> bool) -> Digest {
        let missed = self.missed.iter().find(|missed| missed.hosts.contains(host) && is_news(missed));
        match (&self.coming, missed) {
            (Some((coming, envelope)), _) if leaves(&self.roster, coming, host) => *envelope,
            (_, Some(missed)) => missed.envelope,
            (_, None) => self.envelope,
        }
    }

    /// Whether anybody could be shown something else by this one.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let coming = |it: &Self| it.coming.as_ref().map(|(_, envelope)| *envelope);
        self.envelope == other.envelope && coming(self) == coming(other) && self.missed == other.missed
    }
}

/// An attestation and when it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Attested {
    pub(crate) attestation: Verified<Attestation>,
    pub(crate) envelope: Arc<[u8]>,
    pub(crate) arrived: Instant,
}

/// What is shown of a fleet at one moment.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) record: FleetRecord,
    pub(crate) hosts: Vec<HostView>,
    pub(crate) parked: Vec<HostView>,
    pub(crate) roster: Arc<Verified<Roster>>,
    /// The roster that does not hold yet, and the hosts that it waits for.
    pub(crate) coming: Option<(Arc<Verified<Roster>>, Vec<HostName>)>,
    pub(crate) rollout: Option<RolloutView>,
    pub(crate) rollout_age_ms: u64,
    pub(crate) acknowledged: usize,
    pub(crate) frozen: Option<Blocker>,
    /// Hosts that are set aside and have not proven that they have closed, and agents that do not know how.
    pub(crate) unproven: Vec<Blocker>,
    pub(crate) now: muster_model::BootTime,
}

impl FleetHandle {
    pub(super) fn new(
        name: FleetName,
        inbox: mpsc::Sender<Input>,
        reports: broadcast::Sender<Report>,
        connected: watch::Receiver<Connected>,
        roster: watch::Receiver<RosterInForce>,
        leadership: Leadership,
    ) -> Self {
        Self {
            name,
            inbox,
            reports,
            connected,
            roster,
            leadership,
            inventory: Mutex::default(),
            attested: Mutex::default(),
            waiting: Arc::default(),
        }
    }

    /// Hands an input to the driver. Fails only while the coordinator ends.
    pub(crate) async fn tell(&self, input: Input) -> Result<(), Refusal> {
        self.inbox.send(input).await.map_err(|_| ending())
    }

    /// What the fleet looks like now.
    pub(crate) async fn view(&self) -> Result<View, Refusal> {
        self.ask(Input::View).await
    }

    /// Whether a rollout would be taken at this moment.
    pub(crate) async fn rehearse(&self, proposal: Proposal) -> Result<(), Refusal> {
        self.ask(|reply| Input::Rehearse(Box::new(proposal), reply)).await?
    }

    /// Proposes a rollout.
    pub(crate) async fn propose(&self, proposal: Proposal) -> Result<(), Refusal> {
        self.ask(|reply| Input::Propose(Box::new(proposal), reply)).await?
    }

    /// Gives a rollout up.
    pub(crate) async fn abort(&self, k: Option<RolloutId>, reason: Blocker) -> Result<RolloutId, Refusal> {
        self.ask(|reply| Input::Abort { k, reason, reply }).await?
    }

    /// Has every host stop, and returns the last rollout: only a later one resumes the fleet.
    pub(crate) async fn halt(&self, reason: Blocker) -> Result<RolloutId, Refusal> {
        self.ask(|reply| Input::Halt { reason, reply }).await?
    }

    /// Whether a roster would be taken at this moment.
    pub(crate) async fn rehearse_roster(&self, next: NextRoster) -> Result<(), Refusal> {
        self.ask(|reply| Input::RehearseRoster(Box::new(next), reply)).await?
    }

    /// Makes a roster the next one.
    pub(crate) async fn apply_roster(&self, next: NextRoster) -> Result<(), Refusal> {
        self.ask(|reply| Input::ApplyRoster(Box::new(next), reply)).await?
    }

    /// Forgets what is remembered of a host's identity.
    pub(crate) async fn readmit(&self, host: HostName) -> Result<(), Refusal> {
        self.ask(|reply| Input::Readmit(host, reply)).await?
    }

    /// The reports from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Report> {
        self.reports.subscribe()
    }

    /// The hosts that have a session, and every change of it.
    pub(crate) fn connected(&self) -> watch::Receiver<Connected> {
        self.connected.clone()
    }

    /// Whether this is the host's session. What comes over any other one changes nothing.
    pub(crate) fn is_current(&self, host: &HostName, session: SessionId) -> bool {
        self.connected.borrow().get(host).is_some_and(|outbox| outbox.session == session)
    }

    /// The roster in force.
    pub(crate) fn roster(&self) -> RosterInForce {
        self.roster.borrow().clone()
    }

    /// Puts leadership and fleet on a frame.
    pub(crate) fn frame(&self, body: v1::coordinator_frame::Body) -> v1::CoordinatorFrame {
        stamp(&self.name, self.leadership, body)
    }

    /// Takes note of what a host has.
    pub(crate) fn set_inventory(&self, host: HostName, held: Held) {
        lock(&self.inventory).insert(host, Arc::new(held));
    }

    /// What each host has, as it said last.
    pub(crate) fn inventory(&self) -> Inventory {
        lock(&self.inventory).clone()
    }

    /// Remembers an attestation that was given for a check.
    pub(crate) fn remember(&self, attested: Attested) {
        lock(&self.attested).insert(attested.attestation.host.clone(), attested);
    }

    /// The newest attestation of `host`, if it is for `manifest`.
    pub(crate) fn remembered(&self, host: &HostName, manifest: Digest) -> Option<Attested> {
        let attested = lock(&self.attested).get(host).cloned();
        attested.filter(|it| it.attestation.compared.manifest == manifest)
    }

    /// Forgets what hosts said that are not in the roster.
    pub(super) fn forget_strangers(&self, roster: &Roster) {
        let is_known =
            |host: &HostName| matches!(roster.place(host), Some(HostPlace::Serving | HostPlace::Parked));
        lock(&self.inventory).retain(|host, _| is_known(host));
        lock(&self.attested).retain(|host, _| roster.position(host).is_some());
    }

    /// Begins to wait for the answers to `request`.
    pub(crate) fn await_answers(&self, request: u64) -> Answers {
        self.waiting.begin(request)
    }

    /// Passes on what a host said about a request; nobody may be waiting any more.
    pub(crate) fn answer(&self, request: u64, answer: HostAnswer) {
        self.waiting.answer(request, answer);
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.tell(input(reply)).await?;
        answer.await.map_err(|_| ending())
    }
}

/// A frame with the fleet's name and the leadership that speaks.
pub(crate) fn stamp(
    fleet: &FleetName,
    leadership: Leadership,
    body: v1::coordinator_frame::Body,
) -> v1::CoordinatorFrame {
    v1::CoordinatorFrame {
        fleet: fleet.as_str().to_owned(),
        incarnation: leadership.incarnation.0,
        term: leadership.term.0,
        body: Some(body),
    }
}

/// Maps are left whole by a panic elsewhere: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ending() -> Refusal {
    Refusal::of(Code::CoordinatorRestarted, "the coordinator is shutting down")
}
