//! How the rest of the coordinator reaches a fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use muster_model::{
    Attestation, Blocker, Code, Digest, FleetName, HostName, Leadership, Refusal, RolloutId, Roster,
    SessionId, Verified,
};
use muster_proto::v1;
use muster_rollout::fleet::{FleetRecord, HostView, NextRoster, Proposal, Report, RolloutView};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use super::driver::Input;

/// Frames that wait for a host's stream. A host that takes none for so long is cut off.
pub(crate) const OUTBOX_FRAMES: usize = 256;

/// The way to one host over one session.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    pub(crate) session: SessionId,
    pub(crate) frames: mpsc::Sender<v1::CoordinatorFrame>,
    /// Ends the host's stream.
    pub(crate) hang_up: Arc<Notify>,
}

/// The hosts that have a session at this moment.
pub(crate) type Connected = BTreeMap<HostName, Outbox>;

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
    /// Which releases each host has on disk, as it said last.
    inventory: Mutex<BTreeMap<HostName, BTreeSet<Digest>>>,
    /// The newest attestation of each host and release that was given for a check.
    attested: Mutex<BTreeMap<(HostName, Digest), Attested>>,
    /// Who waits for answers to deployments and checks.
    waiting: Mutex<BTreeMap<u64, mpsc::Sender<HostAnswer>>>,
}

/// The roster in force, and its envelope's name.
#[derive(Debug, Clone)]
pub(crate) struct RosterInForce {
    pub(crate) roster: Arc<Verified<Roster>>,
    pub(crate) envelope: Digest,
}

/// An attestation and when it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Attested {
    pub(crate) attestation: Verified<Attestation>,
    pub(crate) envelope: Arc<[u8]>,
    pub(crate) arrived: Instant,
}

/// What a host said about a deployment or a check.
#[derive(Debug)]
pub(crate) struct HostAnswer {
    pub(crate) host: HostName,
    pub(crate) body: v1::agent_frame::Body,
}

/// What is shown of a fleet at one moment.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) record: FleetRecord,
    pub(crate) hosts: Vec<HostView>,
    pub(crate) rollout: Option<RolloutView>,
    pub(crate) rollout_age_ms: u64,
    pub(crate) acknowledged: usize,
    pub(crate) frozen: Option<Blocker>,
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
            waiting: Mutex::default(),
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

    /// Proposes a rollout.
    pub(crate) async fn propose(&self, proposal: Proposal) -> Result<(), Refusal> {
        self.ask(|reply| Input::Propose(Box::new(proposal), reply)).await?
    }

    /// Gives a rollout up.
    pub(crate) async fn abort(&self, k: Option<RolloutId>, reason: Blocker) -> Result<RolloutId, Refusal> {
        self.ask(|reply| Input::Abort { k, reason, reply }).await?
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

    /// The roster in force.
    pub(crate) fn roster(&self) -> RosterInForce {
        self.roster.borrow().clone()
    }

    /// Puts leadership and fleet on a frame.
    pub(crate) fn frame(&self, body: v1::coordinator_frame::Body) -> v1::CoordinatorFrame {
        stamp(&self.name, self.leadership, body)
    }

    /// Takes note of the releases that a host has.
    pub(crate) fn set_inventory(&self, host: HostName, manifests: BTreeSet<Digest>) {
        lock(&self.inventory).insert(host, manifests);
    }

    /// The releases that each host has, as it said last.
    pub(crate) fn inventory(&self) -> BTreeMap<HostName, BTreeSet<Digest>> {
        lock(&self.inventory).clone()
    }

    /// Remembers an attestation that was given for a check.
    pub(crate) fn remember(&self, attested: Attested) {
        let key = (attested.attestation.host.clone(), attested.attestation.compared.manifest);
        lock(&self.attested).insert(key, attested);
    }

    /// The newest attestation of `host` for `manifest`.
    pub(crate) fn remembered(&self, host: &HostName, manifest: Digest) -> Option<Attested> {
        lock(&self.attested).get(&(host.clone(), manifest)).cloned()
    }

    /// Begins to wait for the answers to `request`.
    pub(crate) fn await_answers(self: &Arc<Self>, request: u64, capacity: usize) -> Answers {
        let (sender, receiver) = mpsc::channel(capacity);
        lock(&self.waiting).insert(request, sender);
        Answers { fleet: Arc::clone(self), request, receiver }
    }

    /// Passes on what a host said about a request; nobody may be waiting any more.
    pub(crate) fn answer(&self, request: u64, answer: HostAnswer) {
        let waiting = lock(&self.waiting).get(&request).cloned();
        let Some(waiting) = waiting else { return };
        // Half of the room is kept for how it ends.
        let is_progress = matches!(answer.body, v1::agent_frame::Body::DeployProgress(_));
        if is_progress && waiting.capacity() < waiting.max_capacity() / 2 {
            return;
        }
        if waiting.try_send(answer).is_err() {
            tracing::warn!(fleet = %self.name, request, "an answer was dropped: whoever asked is too slow or gone");
        }
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.tell(input(reply)).await?;
        answer.await.map_err(|_| ending())
    }
}

/// Answers to one request, until it is dropped.
#[derive(Debug)]
pub(crate) struct Answers {
    fleet: Arc<FleetHandle>,
    request: u64,
    receiver: mpsc::Receiver<HostAnswer>,
}

impl Answers {
    pub(crate) async fn next(&mut self) -> Option<HostAnswer> {
        self.receiver.recv().await
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        lock(&self.fleet.waiting).remove(&self.request);
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
