//! The task that drives one fleet's state machine. It makes no decisions: it writes what a step says, then does it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_audit::Kind;
use muster_daemon::{DECISIONS, Machine, crash_point};
use muster_model::{
    Blocker, BootTime, Digest, Durable, Epoch, FleetName, HostName, Refusal, RolloutId, SessionId, ToHost,
};
use muster_proto::convert::to_agent;
use muster_proto::v1;
use muster_proto::v1::coordinator_frame::Body as FrameBody;
use muster_rollout::fleet::{
    Effect, Event, Fleet, FleetRecord, NextRoster, Outcome, Phase, Proposal, Record, Report, Step,
};
use muster_store::StoreError;
use muster_trust::RootChain;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::connections::{Connections, Outbox};
use super::contingency;
use super::drift::DriftNotes;
use super::glass::GlassNotes;
use super::handle::{FleetHandle, RosterInForce, View, stamp};
use super::rosters::RosterNotes;
use crate::audit::{self, AuditHandle};
use crate::ledger::{Documents, Entry, LedgerHandle};
use crate::metrics::Counts;
use crate::receipt;
use crate::status::chain;

/// Inputs that wait for a driver; senders wait when it is full.
const INBOX_INPUTS: usize = 4096;
/// Inputs that are worked out before their records are written together.
const BATCH_INPUTS: usize = 512;
/// Reports that a slow watcher may fall behind by; whoever falls behind further learns the end from the record. The
/// room for them is taken when the fleet is opened.
const REPORTS: usize = 4096;
/// Between two attempts to make a receipt that could not be made, as where the disk was full.
const RECEIPT_RETRY: Duration = Duration::from_secs(2);

/// Something for a fleet's driver.
#[derive(Debug)]
pub(crate) enum Input {
    /// Something that happened.
    Event(Box<Event>),
    /// A host asks for a session; its frames go to the outbox once it has one.
    Joining(Box<Event>, HostName, Outbox),
    /// Would this be taken? Nothing changes, and nothing is written.
    Rehearse(Box<Proposal>, oneshot::Sender<Result<(), Refusal>>),
    /// An operator's wish, with where to answer.
    Propose(Box<Proposal>, oneshot::Sender<Result<(), Refusal>>),
    /// See [`Fleet::abort`].
    Abort { k: Option<RolloutId>, reason: Blocker, reply: oneshot::Sender<Result<RolloutId, Refusal>> },
    /// See [`Fleet::halt`].
    Halt { reason: Blocker, reply: oneshot::Sender<Result<RolloutId, Refusal>> },
    /// Would [`Fleet::apply_roster`] take it now?
    RehearseRoster(Box<NextRoster>, oneshot::Sender<Result<(), Refusal>>),
    /// See [`Fleet::apply_roster`].
    ApplyRoster(Box<NextRoster>, oneshot::Sender<Result<(), Refusal>>),
    /// See [`Fleet::readmit`].
    Readmit(HostName, oneshot::Sender<Result<(), Refusal>>),
    /// What does the fleet look like?
    View(oneshot::Sender<View>),
}

/// An answer to an operator, given once what it speaks of is durable.
enum Answer {
    Done(oneshot::Sender<Result<(), Refusal>>, Result<(), Refusal>),
    Numbered(oneshot::Sender<Result<RolloutId, Refusal>>, Result<RolloutId, Refusal>),
}

/// Where a driver writes, and what it verifies with.
pub(crate) struct Place {
    pub(crate) machine: Machine,
    pub(crate) ledger: LedgerHandle,
    pub(crate) audit: AuditHandle,
    pub(crate) counts: Counts,
    pub(crate) documents: Documents,
    pub(crate) roots: Arc<RootChain>,
}

struct Driver {
    fleet: Fleet,
    place: Place,
    handle: Arc<FleetHandle>,
    inbox: mpsc::Receiver<Input>,
    connections: Connections,
    roster: watch::Sender<RosterInForce>,
    rollout_since: Option<(RolloutId, BootTime)>,
    /// What effects bring about at once; it comes before anything else.
    follow_ups: Vec<Event>,
    receipt_owed: Option<OwedReceipt>,
    /// The phase that the audit log speaks of, and the last rollout in it.
    audited: Option<(&'static str, RolloutId)>,
    drift_notes: DriftNotes,
    glass_notes: GlassNotes,
    roster_notes: RosterNotes,
    /// What is handed to the audit log after this batch.
    notes: Vec<muster_audit::Entry>,
}

/// A flip has completed, and its receipt could not be made yet.
struct OwedReceipt {
    k: RolloutId,
    epoch: Epoch,
    again: Instant,
}

impl OwedReceipt {
    /// A flip is settled before its receipt is made, and the last leader may not have come to that.
    fn inherited(fleet: &FleetRecord, ledger: &LedgerHandle) -> Option<Self> {
        let completed = fleet.completed.as_ref().filter(|_| fleet.phase == Phase::Settled)?;
        let is_made = ledger.history(&fleet.fleet).receipts.contains_key(&fleet.epoch);
        (!is_made).then(|| Self { k: completed.k, epoch: fleet.epoch, again: Instant::now() })
    }
}

/// Starts the driver of a fleet that was just taken over; `first` is the step of the take-over.
pub(crate) fn spawn(
    fleet: Fleet,
    first: Step,
    roster_notes: RosterNotes,
    place: Place,
) -> (Arc<FleetHandle>, impl Future<Output = Result<(), StoreError>> + Send) {
    let (inbox_in, inbox) = mpsc::channel(INBOX_INPUTS);
    let (reports, _) = broadcast::channel(REPORTS);
    let connections = Connections::new(fleet.record().fleet.clone());
    let record = fleet.record();
    let in_force = in_force(&fleet);
    let (roster, roster_out) = watch::channel(in_force);
    let handle = Arc::new(FleetHandle::new(
        record.fleet.clone(),
        inbox_in,
        reports,
        connections.watch(),
        roster_out,
        record.leadership,
    ));
    let receipt_owed = OwedReceipt::inherited(record, &place.ledger);
    let driver = Driver {
        fleet,
        place,
        handle: Arc::clone(&handle),
        inbox,
        connections,
        roster,
        rollout_since: None,
        follow_ups: Vec::new(),
        receipt_owed,
        audited: None,
        drift_notes: DriftNotes::default(),
        glass_notes: GlassNotes::default(),
        roster_notes,
        notes: Vec::new(),
    };
    (handle, driver.run(first))
}

impl Driver {
    async fn run(mut self, first: Step) -> Result<(), StoreError> {
        self.notes.extend(self.roster_notes.look(&self.fleet, &self.place.audit));
        self.carry_out(vec![first], Vec::new()).await?;
        loop {
            let Some(inputs) = self.next_inputs().await else { return Ok(()) };
            let mut steps = Vec::with_capacity(inputs.len());
            let mut answers = Vec::new();
            for input in inputs {
                self.work_out(input, &mut steps, &mut answers);
            }
            self.carry_out(steps, answers).await?;
            self.make_owed_receipt().await?;
        }
    }

    /// Waits for an input, the deadline, or the time to try a receipt again, and takes whatever else has arrived.
    async fn next_inputs(&mut self) -> Option<Vec<Input>> {
        let deadline = async {
            match self.fleet.next_deadline() {
                Some(deadline) => {
                    tokio::time::sleep(
                        deadline.since(self.place.machine.boot_time()).max(Duration::from_millis(1)),
                    )
                    .await
                }
                None => std::future::pending().await,
            }
        };
        let receipt = async {
            match &self.receipt_owed {
                Some(owed) => tokio::time::sleep_until(owed.again).await,
                None => std::future::pending().await,
            }
        };
        let mut inputs: Vec<Input> = std::mem::take(&mut self.follow_ups)
            .into_iter()
            .map(|event| Input::Event(Box::new(event)))
            .collect();
        if inputs.is_empty() {
            inputs.extend(tokio::select! {
                biased;
                // First, so that no flood of messages puts it off; it is never due twice without one of them between.
                () = deadline => Some(Input::Event(Box::new(Event::DeadlineReached))),
                () = receipt => None,
                input = self.inbox.recv() => Some(input?),
            });
        }
        while inputs.len() < BATCH_INPUTS
            && let Ok(input) = self.inbox.try_recv()
        {
            inputs.push(input);
        }
        Some(inputs)
    }

    fn work_out(&mut self, input: Input, steps: &mut Vec<Step>, answers: &mut Vec<Answer>) {
        let now = self.place.machine.boot_time();
        let mut settle = |result: Result<Step, Refusal>| result.map(|step| steps.push(step));
        match input {
            Input::Event(event) => {
                if let Event::Left { host, session } = &*event {
                    // Whoever sends outside of rollouts must not take a host for connected that has left.
                    self.connections.cut_off(host, *session);
                }
                let (place, fleet) = (&self.place, &self.handle.name);
                self.notes.extend(self.drift_notes.take((&place.audit, &place.counts), fleet, &event, now));
                steps.push(self.fleet.handle(*event, now));
            }
            Input::Joining(event, host, outbox) => {
                let fleet = &self.handle.name;
                self.notes.extend(self.glass_notes.take(&self.place.audit, fleet, &event));
                self.connections.ask(host, outbox);
                steps.push(self.fleet.handle(*event, now));
            }
            Input::Rehearse(proposal, reply) => {
                // Whoever asked may be gone.
                let _ = reply.send(self.fleet.rehearse(&proposal));
            }
            Input::Propose(proposal, reply) => {
                let result = settle(self.fleet.propose(&proposal, now));
                answers.push(Answer::Done(reply, result));
            }
            Input::Abort { k, reason, reply } => {
                let result = self.fleet.abort(k, reason).map(|(k, step)| {
                    steps.push(step);
                    k
                });
                answers.push(Answer::Numbered(reply, result));
            }
            Input::Halt { reason, reply } => {
                steps.push(self.fleet.halt(reason));
                answers.push(Answer::Numbered(reply, Ok(self.fleet.record().last_k)));
            }
            Input::RehearseRoster(next, reply) => {
                // Whoever asked may be gone.
                let _ = reply.send(self.fleet.clone().apply_roster(*next).map(drop));
            }
            Input::ApplyRoster(next, reply) => {
                let result = settle(self.fleet.apply_roster(*next));
                answers.push(Answer::Done(reply, result));
            }
            Input::Readmit(host, reply) => {
                let result = settle(self.fleet.readmit(&host));
                answers.push(Answer::Done(reply, result));
            }
            Input::View(reply) => {
                // Whoever asked may be gone.
                let _ = reply.send(self.view(now));
            }
        }
        self.notes.extend(self.roster_notes.look(&self.fleet, &self.place.audit));
        self.note_rollout(now);
    }

    /// P7: writes everything the steps want written, in one go, and only then lets their effects out.
    async fn carry_out(&mut self, steps: Vec<Step>, answers: Vec<Answer>) -> Result<(), StoreError> {
        let mut steps = steps.into_iter();
        let mut writes = None;
        // What comes before the first write speaks of nothing that is not durable.
        while writes.is_none()
            && let Some(step) = steps.next()
        {
            match step {
                Step::Act(effects) => self.carry_out_all(effects).await?,
                Step::Write(write) => writes = Some(write),
            }
        }
        if let Some(write) = writes {
            let rest = steps.as_slice();
            let records = newest(write.records().iter().chain(rest.iter().flat_map(Step::records)));
            let proof = self.write(records).await?;
            self.publish_roster();
            self.carry_out_all(write.into_effects(proof)).await?;
            for step in steps {
                let effects = match step {
                    Step::Act(effects) => effects,
                    Step::Write(write) => write.into_effects(proof),
                };
                self.carry_out_all(effects).await?;
            }
        }
        self.connections.forget_asking();
        self.connections.flush();
        // Hosts first: what was written is the last state of the batch, and holds whatever becomes of its entry.
        self.note_phase().await;
        if !self.notes.is_empty() {
            self.place.audit.note(std::mem::take(&mut self.notes)).await;
        }
        for answer in answers {
            // Whoever asked may be gone; what was asked is done all the same.
            match answer {
                Answer::Done(reply, result) => drop(reply.send(result)),
                Answer::Numbered(reply, result) => drop(reply.send(result)),
            }
        }
        Ok(())
    }

    async fn write(&self, records: Vec<Record>) -> Result<Durable, StoreError> {
        let fleet = self.handle.name.clone();
        records.iter().for_each(|record| trace_record(&fleet, record));
        let phase = records.iter().rev().find_map(|record| match record {
            Record::Fleet(record) => Some(audit::phase_name(&record.phase)),
            Record::Document(..) | Record::Session(_) | Record::Withdrawal(_) => None,
        });
        let write = self.place.ledger.run(move |ledger| {
            crash_at(phase, "before");
            let proof = ledger.record(&fleet, &records);
            crash_at(phase, "persisted");
            proof
        });
        write.await
    }

    async fn carry_out_all(&mut self, effects: Vec<Effect>) -> Result<(), StoreError> {
        for effect in effects {
            match effect {
                Effect::Send { host, session, message } => self.send(&host, session, message),
                Effect::EndSession { host, session, refusal } => self.end_session(&host, session, refusal),
                Effect::ConfirmLead { read } => {
                    // Step 8: the read begins now, after everything that it is for has come.
                    self.place.ledger.run(|ledger| ledger.confirm()).await?;
                    self.follow_ups.push(Event::LeadConfirmed { read });
                }
                Effect::BeginWait => self.follow_ups.push(Event::WaitBegun),
                Effect::RollBack(papers) => {
                    let (documents, roots) = (self.place.documents.clone(), Arc::clone(&self.place.roots));
                    let (machine, handle) = (self.place.machine.clone(), Arc::clone(&self.handle));
                    let audit = self.place.audit.clone();
                    let place =
                        contingency::Place { machine, handle, documents, root: roots.in_force(), audit };
                    tokio::spawn(contingency::propose(place, papers));
                }
                Effect::Report(report) => self.report(report).await?,
            }
        }
        Ok(())
    }

    fn send(&mut self, host: &HostName, session: SessionId, message: ToHost) {
        let mut shown = None;
        if let ToHost::Joined { .. } = message {
            shown = self.connections.begin(session);
        }
        tracing::trace!(target: DECISIONS, fleet = %self.handle.name, %host, ?session, ?message, "says");
        let frame = stamp(&self.handle.name, self.fleet.record().leadership, to_agent(message));
        self.connections.send(host, session, frame);
        // Another roster was handed in between what the host was shown and the beginning of its session.
        let newest = self.fleet.shown_to(host);
        if shown.is_some_and(|shown| shown != newest) {
            self.show_roster(host, session, newest);
        }
    }

    fn show_roster(&mut self, host: &HostName, session: SessionId, envelope: Digest) {
        let body = FrameBody::RosterShown(v1::RosterShown { roster: envelope.as_bytes().to_vec() });
        self.connections.send(host, session, self.handle.frame(body));
    }

    fn end_session(&mut self, host: &HostName, session: SessionId, refusal: Refusal) {
        tracing::warn!(fleet = %self.handle.name, %host, %refusal, "session refused or ended");
        let body = to_agent(ToHost::Refuse { refusal });
        let frame = stamp(&self.handle.name, self.fleet.record().leadership, body);
        self.connections.send(host, session, frame);
        self.connections.cut_off(host, session);
    }

    async fn report(&mut self, report: Report) -> Result<(), StoreError> {
        if let Report::Ended(end) = &report {
            self.place.counts.ended(&self.handle.name, end.outcome);
            tracing::info!(
                fleet = %self.handle.name, k = %end.k, outcome = ?end.outcome, epoch = %end.epoch,
                blockers = %Refusal { blockers: end.blockers.clone() }, "rollout ended"
            );
            // No host waits for what is written about the end.
            self.connections.flush();
            let fleet = self.handle.name.clone();
            let mut entries = vec![Entry::ended(&fleet, end)];
            if end.outcome == Outcome::Flipped {
                entries.extend(self.receipt(end.k, end.epoch).await);
            }
            self.place.ledger.run(move |ledger| ledger.append(entries)).await?;
            self.note_phase().await;
            let ended = audit::ended_entry(&self.place.audit, &self.handle.name, end);
            self.place.audit.write(vec![ended]).await?;
        }
        let is_end = matches!(report, Report::Ended(_));
        // Nobody may be watching.
        let _ = self.handle.reports.send(report);
        if is_end { self.show_audit().await } else { Ok(()) }
    }

    /// Puts the receipt of a completed flip together. A flip without one is still a flip; what is missing is owed.
    async fn receipt(&mut self, k: RolloutId, epoch: Epoch) -> Option<Entry> {
        let completed = self.fleet.record().completed.as_ref().filter(|opening| opening.k == k);
        let Some(opening) = completed.cloned() else {
            let fleet = &self.handle.name;
            tracing::error!(%fleet, %k, "its receipt was not made before another flip followed, and cannot be any more");
            return None;
        };
        let (documents, roots) = (self.place.documents.clone(), Arc::clone(&self.place.roots));
        let fleet = self.handle.name.clone();
        let made = move || receipt::assemble(&documents, &roots, &opening);
        match blocking(&self.place.machine, made).await {
            Ok(receipt) => Some(Entry::Receipt { fleet, epoch, receipt }),
            Err(error) => {
                tracing::error!(%fleet, %k, error = chain(&error), "no receipt could be made; it is tried again");
                self.receipt_owed = Some(OwedReceipt { k, epoch, again: Instant::now() + RECEIPT_RETRY });
                None
            }
        }
    }

    /// Tries again to make a receipt that is owed, if it is time; of a flip that another one has followed none can be made.
    async fn make_owed_receipt(&mut self) -> Result<(), StoreError> {
        let Some(owed) = self.receipt_owed.take_if(|owed| owed.again <= Instant::now()) else {
            return Ok(());
        };
        match self.receipt(owed.k, owed.epoch).await {
            Some(receipt) => {
                self.place.ledger.run(move |ledger| ledger.append(vec![receipt])).await.map(drop)
            }
            None => Ok(()),
        }
    }

    /// Hands the entry of a phase to the audit log once the ledger has it, and does not wait: hosts are waiting.
    async fn note_phase(&mut self) {
        let record = self.fleet.record();
        let mark = audit::phase_mark(record);
        let kind = if self.audited.is_none() { Kind::Lead } else { Kind::Phase };
        if self.audited.replace(mark) != Some(mark) {
            let entry = audit::phase_entry(&self.place.audit, kind, record);
            self.place.audit.note(vec![entry]).await;
        }
    }

    /// Shows all hosts how far the audit log has gone: what they have seen can be taken back from none of them.
    async fn show_audit(&mut self) -> Result<(), StoreError> {
        let hosts: Vec<_> = self
            .connections
            .current()
            .iter()
            .map(|(host, outbox)| (host.clone(), outbox.session, Arc::clone(&outbox.audit_shown)))
            .collect();
        let seen = hosts.iter().map(|(_, _, shown)| shown.load(Ordering::Relaxed)).collect();
        let offers = self.place.audit.offers(seen).await?;
        for (host, session, seen) in hosts {
            let Some(shown) = offers.get(&seen.load(Ordering::Relaxed)) else { continue };
            let frame = self.handle.frame(FrameBody::AuditShown(audit::on_wire(shown)));
            self.connections.send(&host, session, frame);
            seen.store(shown.size, Ordering::Relaxed);
        }
        Ok(())
    }

    fn publish_roster(&mut self) {
        let next = in_force(&self.fleet);
        let before = self.roster.borrow().clone();
        if before.says_the_same(&next) {
            return;
        }
        let holds = before.envelope != next.envelope;
        if holds {
            self.handle.forget_strangers(&next.roster);
        }
        self.roster.send_replace(next.clone());
        // Whoever leaves is shown the roster that has it leave, and nobody else before it holds.
        let shown =
            self.connections.current().iter().map(|(host, outbox)| (host, outbox, next.shown_to(host)));
        let shown = shown.filter(|(host, _, envelope)| holds || *envelope != before.shown_to(host));
        let shown: Vec<_> = shown.map(|(host, outbox, it)| (host.clone(), outbox.session, it)).collect();
        for (host, session, envelope) in shown {
            self.show_roster(&host, session, envelope);
        }
    }

    fn note_rollout(&mut self, now: BootTime) {
        let current = self.fleet.current_rollout().map(|rollout| rollout.k);
        if self.rollout_since.map(|(k, _)| k) != current {
            self.rollout_since = current.map(|k| (k, now));
        }
    }

    fn view(&self, now: BootTime) -> View {
        let age = self.rollout_since.map_or(Duration::ZERO, |(_, since)| now.since(since));
        View {
            record: self.fleet.record().clone(),
            hosts: self.fleet.hosts(),
            parked: self.fleet.parked(),
            roster: Arc::clone(self.fleet.roster()),
            coming: self.fleet.coming().map(|coming| (Arc::clone(coming), self.fleet.awaited())),
            rollout: self.fleet.current_rollout(),
            rollout_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            acknowledged: self.fleet.acknowledged(),
            frozen: self.fleet.frozen().cloned(),
            unproven: self.fleet.unproven(),
            now,
        }
    }
}

/// The roster in force, and the coming one.
fn in_force(fleet: &Fleet) -> RosterInForce {
    let record = fleet.record();
    let coming = fleet.coming().cloned().zip(record.coming.as_ref().map(|coming| coming.envelope));
    let (roster, envelope, missed) =
        (Arc::clone(fleet.roster()), record.roster_envelope, record.missed.clone());
    RosterInForce { roster, envelope, coming, missed }
}

/// The records to write: each replaces the one of its kind before it, so of a batch the last state is enough.
fn newest<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<Record> {
    let mut kept = Vec::new();
    let mut fleet = None;
    for record in records {
        match record {
            Record::Document(..) | Record::Session(_) | Record::Withdrawal(_) => kept.push(record.clone()),
            Record::Fleet(_) => fleet = Some(record.clone()),
        }
    }
    kept.extend(fleet);
    kept
}

/// Runs a blocking call and carries its panic on, if it has one.
pub(crate) async fn blocking<T: Send + 'static>(
    machine: &Machine,
    call: impl FnOnce() -> T + Send + 'static,
) -> T {
    match machine.run_blocking(call).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // A runtime that ends cancels blocking calls that have not begun; nothing is said after that.
            Err(_) => std::future::pending().await,
        },
    }
}

fn trace_record(fleet: &FleetName, record: &Record) {
    match record {
        Record::Document(digest, _) => tracing::trace!(target: DECISIONS, %fleet, %digest, "keeps"),
        Record::Fleet(record) => tracing::trace!(target: DECISIONS, %fleet, ?record, "writes"),
        Record::Session(session) => tracing::trace!(target: DECISIONS, %fleet, ?session, "writes"),
        Record::Withdrawal(word) => tracing::trace!(target: DECISIONS, %fleet, ?word, "writes"),
    }
}

/// `coordinator.<phase>.before` and `coordinator.<phase>.persisted`, for the tests of the recovery table.
fn crash_at(phase: Option<&str>, when: &str) {
    if let Some(phase) = phase {
        crash_point(&format!("coordinator.{phase}.{when}"));
    }
}
