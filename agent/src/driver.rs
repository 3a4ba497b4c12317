//! One fleet on this host: events in, records and effects out.
//!
//! The driver owns the state machine and the journal, and handles one event at a time: it asks the machine, makes its
//! records durable, and only then carries out the effects, in order. Whatever takes long runs beside it and comes
//! back as another event. It chooses nothing.

mod audit;
mod drift;
mod drill;
mod effects;
mod guard_news;
mod input;
mod papers;
mod work;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use muster_daemon::{DECISIONS, Machine, Shutdown, crash_point};
use muster_guard::{DriverKind, FleetState, Guard, GuardError, Opened, RefusalCode};
use muster_model::{BootTime, Durable, FleetName, FromHost, HostName, Nonce, Refusal, Scope};
use muster_proto::convert;
use muster_proto::v1::agent_frame::Body;
use muster_rollout::host::{
    Effect, Event, GuardState, Halt, History, Host, HostRecord, Now, Profile, Purpose, Step,
};
use muster_trust::SigningKey;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::deploy::Deployer;
use crate::documents::Library;
use crate::guard_queue::{Answer, Ask, GuardQueue, Queued, told};
use crate::journal::Journal;
use crate::measure::{Lanes, Trees};
use crate::papers::{Papers, ShownSecrets};
use crate::pulse::Beat;
use crate::uplink::Uplink;
use crate::witness::Witness;
use crate::{AgentError, DriftSettings, JournalError, refusal};
use drift::Drift;
use drill::{Drilled, Drills, fence_ms};
pub(crate) use input::Input;
use work::Works;

/// How many inputs may wait for a driver.
pub(crate) const INBOX_MAX: usize = 256;

/// How long the coordinator may take to answer JOIN before the stream counts as lost.
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);

const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// How soon a guard is asked again that did not answer.
const GUARD_AGAIN: Duration = Duration::from_secs(2);

/// What a driver works with.
pub(crate) struct Tools {
    pub(crate) fleet: FleetName,
    pub(crate) host: HostName,
    pub(crate) machine: Machine,
    pub(crate) trees: Arc<Trees>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) library: Arc<Library>,
    pub(crate) papers: Arc<Papers>,
    pub(crate) key: Arc<SigningKey>,
    pub(crate) deployer: Deployer,
    /// After what time a fence is tried anew at first.
    pub(crate) drill_again: Duration,
    /// How the served tree is watched; `None`: it is not.
    pub(crate) drift: Option<DriftSettings>,
    /// What was seen of the coordinator's audit log.
    pub(crate) witness: Witness,
}

/// The driver of one fleet.
pub(crate) struct FleetDriver {
    tools: Tools,
    host: Host,
    profile: Profile,
    /// Taken out only while a write is under way.
    journal: Option<Journal>,
    inbox: mpsc::Receiver<Input>,
    /// The driver's own inbox, for what runs beside it.
    post: mpsc::Sender<Input>,
    uplink: Option<Uplink>,
    session: Session,
    guard: GuardQueue,
    guard_presence: Presence,
    drill: Drilled,
    drills: Drills,
    drift: Drift,
    works: Works,
    /// What the host was last told to open with.
    shown_secrets: Option<ShownSecrets>,
    due: Option<Instant>,
    again: Backoff,
}

/// How far this fleet's session over the present stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    /// There is none, and none is being begun.
    None,
    /// The guard is asked first what is served.
    AskingGuard,
    /// JOIN was sent.
    Joining,
    /// JOINED came.
    Joined,
}

/// Whether the guard answered last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// It did.
    Present,
    /// It did not, and is asked again soon.
    Silent,
    /// It is asked again now.
    Asked,
    /// It is gone, until it is found.
    Lost,
}

impl FleetDriver {
    pub(crate) fn new(
        tools: Tools,
        (journal, record): (Journal, HostRecord),
        profile: Profile,
        guard: Arc<dyn Guard>,
        (post, inbox): (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    ) -> Self {
        let (drill_again, drift) = (tools.drill_again, Drift::new(tools.drift));
        Self {
            guard: GuardQueue::new(tools.machine.clone(), guard, tools.fleet.clone()),
            host: Host::new(record, profile.clone()),
            tools,
            profile,
            journal: Some(journal),
            inbox,
            post,
            uplink: None,
            session: Session::None,
            guard_presence: Presence::Present,
            drill: Drilled::No,
            drills: Drills::new(drill_again),
            drift,
            works: Works::default(),
            shown_secrets: None,
            due: None,
            again: Backoff::new(AGAIN_FIRST, AGAIN_MAX),
        }
    }

    /// Runs until the agent ends. An error means that the process must end: what is durable is not known any more.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> Result<(), AgentError> {
        let mut requested = pin!(shutdown.requested());
        loop {
            self.follow_serving();
            let (due, drift_due, drift) = (self.due, self.drift.due(), self.drift.changed());
            let (lease_due, drill_due) = (self.host.next_deadline(), self.drills.due());
            let input = tokio::select! {
                biased;
                () = &mut requested => return Ok(()),
                input = self.inbox.recv() => input.expect("the driver itself holds a sender of its inbox"),
                () = reached(due) => Input::Due,
                () = reached(drill_due) => Input::DrillDue,
                () = drift.notified() => Input::DriftHinted,
                () = reached(drift_due) => Input::DriftDue,
                () = reached_on_boot_clock(&self.tools.machine, lease_due) => Input::LeaseDue,
            };
            self.take(input).await?;
        }
    }

    async fn take(&mut self, input: Input) -> Result<(), AgentError> {
        match input {
            Input::Attached(uplink) => {
                self.uplink = Some(uplink);
                self.begin_session();
            }
            Input::Detached => {
                self.uplink = None;
                self.session = Session::None;
                self.due = None;
                self.step(Event::Disconnected).await?;
            }
            Input::AuditShown(offer) => self.audit_shown(*offer).await?,
            Input::RootFollowed | Input::CertificateChanged => self.tell_inventory(),
            Input::AskAtRest(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.host.is_at_rest());
            }
            Input::Beat(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.beat());
            }
            Input::Mandated(mandate) => self.step(Event::Mandated(mandate)).await?,
            Input::GlassSettled(settlement) => {
                let was_broken = self.host.record().is_glass_broken();
                self.step(Event::GlassSettled(settlement)).await?;
                if was_broken && !self.host.record().is_glass_broken() {
                    // The next session begins with what this host is by now.
                    self.end_stream();
                }
            }
            Input::RosterShown(roster) => self.step(Event::RosterShown(roster)).await?,
            Input::Recall => self.testify(),
            Input::Said(leadership, message) => self.said(leadership, message).await?,
            Input::Answered(answer) => self.answered(*answer).await?,
            Input::GuardChanged(change) => self.guard_changed(change).await?,
            Input::Done(ticket, event) => {
                if self.works.is_current(ticket) {
                    self.step(event).await?;
                }
            }
            Input::AttestCheck { purpose, challenge, measured, reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(self.host.attest_check(purpose, challenge, measured));
            }
            Input::DrillDue => self.drill_again()?,
            Input::DriftHinted => self.drift_hinted(),
            Input::DriftDue => self.look_for_drift(),
            Input::DriftLooked(looked) => self.looked_for_drift(*looked).await?,
            Input::LeaseDue => self.step(Event::DeadlineReached).await?,
            Input::Due => {
                self.due = None;
                match self.session {
                    Session::Joining => {
                        tracing::warn!(fleet = %self.tools.fleet, "the coordinator does not answer JOIN");
                        self.end_stream();
                    }
                    Session::None | Session::AskingGuard if self.uplink.is_some() => self.begin_session(),
                    Session::None | Session::AskingGuard | Session::Joined => {}
                }
            }
        }
        Ok(())
    }

    const fn beat(&self) -> Beat {
        match self.session {
            Session::None | Session::AskingGuard | Session::Joining => Beat::Alone,
            Session::Joined if self.host.is_at_rest() => Beat::AtRest,
            Session::Joined => Beat::InRollout,
        }
    }

    /// One turn: step, write if there is something to write, then the effects in order.
    async fn step(&mut self, event: Event) -> Result<(), AgentError> {
        let machine = &self.tools.machine;
        let entropy = machine.random().map_err(|source| AgentError::Random { source })?;
        let (boot, unix) = machine.now();
        let now = Now { boot, unix };
        let effects = match self.host.handle(event, now, entropy) {
            Step::Act(effects) => effects,
            Step::Write(write) => {
                // P7: no message leaves before the record it speaks of is durable.
                let durable = self.make_durable(write.records().to_vec()).await?;
                let effects = write.into_effects(durable);
                effects.iter().filter_map(point_after_write).for_each(crash_point);
                effects
            }
        };
        for effect in effects {
            self.carry_out(effect);
        }
        Ok(())
    }

    async fn make_durable(&mut self, records: Vec<HostRecord>) -> Result<Durable, AgentError> {
        let mut journal = self.journal.take().expect("the journal is back after each write");
        for record in &records {
            tracing::trace!(target: DECISIONS, host = %self.tools.host, ?record, "writes");
        }
        let written = self.tools.machine.run_blocking(move || {
            let outcome = journal.append(&records);
            (journal, outcome)
        });
        let (journal, outcome) = written.await.map_err(|source| AgentError::Task { source })?;
        self.journal = Some(journal);
        outcome.map_err(|source| self.journal_failed(source))
    }

    fn journal_failed(&self, source: JournalError) -> AgentError {
        AgentError::Journal {
            host: self.tools.host.clone(),
            fleet: self.tools.fleet.clone(),
            source: Box::new(source),
        }
    }

    /// Step 2 begins with the guard: JOIN tells what is served at this moment.
    fn begin_session(&mut self) {
        self.session = Session::AskingGuard;
        match self.drill {
            Drilled::No => {
                self.drill = Drilled::Asked;
                self.ask(Ask::Drill);
            }
            Drilled::Asked | Drilled::Yes(_) => {}
        }
        self.ask(self.first_question());
    }

    /// What the guard is asked before a session begins.
    fn first_question(&self) -> Ask {
        match self.host.record().history {
            History::Whole => Ask::Status,
            // "Journal and anchor disagree: permit revoked."
            History::Lost => Ask::Shut,
        }
    }

    async fn answered(&mut self, answer: Answer) -> Result<(), AgentError> {
        let at = self.guard.finished(&answer);
        self.start_asking();
        let Answer { ask, outcome, drill, .. } = answer;
        if let (Ask::Open { .. } | Ask::Close { .. }, Ok(_)) = (ask, &outcome) {
            // It obeyed before it was looked for: what it serves is known, and needs no new session, unless no fence could be tried while
            // it was gone. Then nothing is said any more in this one: that all is well would be believed before it is so.
            if self.guard_presence != Presence::Present && self.drill == Drilled::No {
                self.end_stream();
                self.uplink = None;
            }
            self.guard_presence = Presence::Present;
        }
        match ask {
            Ask::Status | Ask::Shut => self.looked(ask, outcome).await,
            Ask::Drill => self.drilled(drill, &outcome),
            Ask::Quiesce { k } => {
                let outcome = self.or_refusal(outcome, at).map(|_| ());
                self.step(Event::Quiesced { k, outcome }).await
            }
            Ask::Arm(armed) => {
                let outcome = self.or_refusal(outcome, at).map(|_| ());
                self.step(Event::Leased { k: armed.k, outcome }).await
            }
            Ask::Decide { k, .. } => {
                let outcome = self.or_refusal(outcome, at).map(|_| ());
                self.step(Event::SwitchSet { k, outcome }).await
            }
            // Neither is waited for. A lease that was not extended ends in a fence, which the guard tells by itself.
            Ask::Renew { .. } | Ask::Unquiesce => {
                let _ = self.or_refusal(outcome, at);
                Ok(())
            }
            Ask::Disarm { .. } | Ask::Halt => match outcome {
                Ok(state) => self.step(self.told(&state)).await,
                Err(error) => {
                    let _ = self.disobeyed(&error);
                    self.ask(Ask::Status);
                    Ok(())
                }
            },
            Ask::Close { cause, .. } => {
                let outcome = self.or_refusal(outcome, at);
                self.step(Event::Closed { cause, outcome }).await
            }
            Ask::Open { opened, .. } => self.opened(opened, outcome, at).await,
        }
    }

    /// The guard has opened, or says why not.
    async fn opened(
        &mut self,
        opened: Opened,
        outcome: Result<FleetState, GuardError>,
        at: BootTime,
    ) -> Result<(), AgentError> {
        let refused = outcome.as_ref().err().map(GuardError::code);
        let outcome = self.or_refusal(outcome, at);
        let refusal = outcome.as_ref().err().cloned();
        self.step(Event::Opened { epoch: opened.epoch, outcome }).await?;
        match refused {
            // A guard that says no has closed; of one that says nothing, nothing is known.
            Some(None) => {
                self.step(silent(refusal)).await?;
                self.look_again();
            }
            // By somebody else than the one whom this opening was to follow.
            Some(Some(RefusalCode::Halted)) => self.ask(Ask::Status),
            // The fence that has latched is not complete: its hook may take a while. A new session brings the offer again.
            Some(Some(RefusalCode::Fenced)) => self.look_again(),
            Some(Some(_)) | None => {}
        }
        Ok(())
    }

    /// The guard told what is served, or does not answer.
    async fn looked(&mut self, ask: Ask, outcome: Result<FleetState, GuardError>) -> Result<(), AgentError> {
        let is_known = outcome.is_ok();
        let event = match outcome {
            Ok(state) => {
                if self.session == Session::AskingGuard {
                    self.take_facts(&state);
                }
                self.told(&state)
            }
            Err(error) => {
                tracing::warn!(fleet = %self.tools.fleet, error = error.chain(), "the guard did not answer");
                let refusal = refusal::of_guard(&self.tools.host, &error);
                self.look_again();
                silent(Some(refusal))
            }
        };
        let was_lost = self.guard_presence != Presence::Present;
        let could_serve = self.host.record().may_serve().is_some_and(|serving| serving.release.is_some());
        if self.session != Session::AskingGuard
            && is_known
            && was_lost
            && (could_serve || self.drill == Drilled::No)
        {
            // The coordinator was told what may no longer be so, and an admission may have met a guard that was gone; or
            // no fence could be tried, without which the host takes part in no flip. A new session tells what is served
            // now, brings a new admission, and begins with the drill. In this one nothing is said any more: that all is
            // well would be believed before it is so.
            self.end_stream();
            self.uplink = None;
        }
        self.step(event).await?;
        if is_known {
            self.guard_presence = Presence::Present;
        }
        let has_tried = self.drill != Drilled::Asked;
        if self.session == Session::AskingGuard && ask == self.first_question() && has_tried {
            if !is_known && ask == Ask::Shut {
                // A host without a history joins only once nothing is served here.
                return self.put_off();
            }
            return self.join().await;
        }
        Ok(())
    }

    async fn join(&mut self) -> Result<(), AgentError> {
        self.recall_roster().await?;
        self.session = Session::Joining;
        // An operator may have settled meanwhile what this host does not believe.
        self.tools.witness.begin_session()?;
        self.due = Some(Instant::now() + JOIN_TIMEOUT);
        let nonce = self.tools.machine.random().map_err(|source| AgentError::Random { source })?;
        let journal = self.journal.as_ref().expect("the journal is back after each write").head();
        self.step(Event::Connected { nonce: Nonce::from_bytes(nonce), journal }).await
    }

    /// Tries to begin a session again later, over the same stream: the sessions of other fleets go on.
    fn put_off(&mut self) -> Result<(), AgentError> {
        let random = self.tools.machine.random_u64().map_err(|source| AgentError::Random { source })?;
        self.session = Session::None;
        self.due = Some(Instant::now() + self.again.next(random));
        Ok(())
    }

    /// What closing proves depends on the guard's driver, and how long a fence takes was measured by it. Both are taken
    /// over before a session begins, when nothing volatile of a session before is left.
    fn take_facts(&mut self, state: &FleetState) {
        let before = self.profile.facts.clone();
        let facts = &mut self.profile.facts;
        facts.scope = match state.driver {
            DriverKind::Link => Scope::Link,
            DriverKind::Supervise | DriverKind::Systemd => Scope::Process,
        };
        if let Drilled::Yes(drill) = self.drill {
            facts.fence_ms = Some(fence_ms(drill));
            facts.drain_ms = drill.drain_ms_max;
        }
        if *facts != before {
            self.host = Host::new(self.host.record().clone(), self.profile.clone());
        }
    }

    fn told(&self, state: &FleetState) -> Event {
        told(state, self.host.record().may_serve(), &self.tools.host)
    }

    /// Whether the guard was halted, as far as it has said so: a change that it tells says nothing about that.
    fn halt_so_far(&self) -> Halt {
        self.host.record().halted.and_then(|halted| halted.halt).map_or(Halt::Running, Halt::Halted)
    }

    fn disobeyed(&self, error: &GuardError) -> Refusal {
        tracing::warn!(fleet = %self.tools.fleet, error = error.chain(), "the guard did not obey");
        refusal::of_guard(&self.tools.host, error)
    }

    fn or_refusal(&self, outcome: Result<FleetState, GuardError>, at: BootTime) -> Result<BootTime, Refusal> {
        match outcome {
            Ok(_) => Ok(at),
            Err(error) => Err(self.disobeyed(&error)),
        }
    }

    fn ask(&mut self, ask: Ask) {
        match self.guard.push(ask) {
            Queued::Taken => self.start_asking(),
            Queued::Full => {
                tracing::warn!(fleet = %self.tools.fleet, ?ask, "too much waits for the guard");
                self.end_stream();
            }
        }
    }

    fn start_asking(&mut self) {
        while let Some(asking) = self.guard.start() {
            let post = self.post.clone();
            tokio::spawn(post_answer(asking, post));
        }
    }

    fn end_stream(&self) {
        if let Some(uplink) = &self.uplink {
            uplink.end();
        }
    }

    fn send(&self, message: FromHost) {
        if let Some(uplink) = &self.uplink {
            tracing::trace!(target: DECISIONS, host = %self.tools.host, ?message, "says");
            let mut body = convert::to_coordinator(message);
            if let Body::Join(join) = &mut body {
                join.audit = self.tools.witness.seen();
            }
            uplink.send(&self.tools.fleet, body);
        }
    }
}

/// The point at which tests kill an agent that has written the record these effects speak of.
fn point_after_write(effect: &Effect) -> Option<&'static str> {
    match effect {
        Effect::Send(FromHost::Confirmed) => Some("agent.joined.persisted"),
        Effect::Send(FromHost::Armed { .. }) => Some("agent.armed.persisted"),
        Effect::Send(FromHost::Closed { .. }) => Some("agent.closed.persisted"),
        Effect::Measure { purpose: Purpose::Attest(_), .. } => Some("agent.attest.persisted"),
        Effect::Open { .. } => Some("agent.open.persisted"),
        Effect::Switch { .. } => Some("agent.set.persisted"),
        Effect::Send(_)
        | Effect::SignAndSend(..)
        | Effect::SignWithdrawal { .. }
        | Effect::Measure { .. }
        | Effect::Verify { .. }
        | Effect::Seal { .. }
        | Effect::CheckSeal { .. }
        | Effect::Quiesce { .. }
        | Effect::Unquiesce
        | Effect::Lease { .. }
        | Effect::Extend { .. }
        | Effect::Lift { .. }
        | Effect::Halt
        | Effect::Close { .. }
        | Effect::Hang(_) => None,
    }
}

async fn post_answer(asking: JoinHandle<Answer>, post: mpsc::Sender<Input>) {
    // A question that panics would never be answered; its panic ends in an answer already, so that this is the
    // runtime's end.
    if let Ok(answer) = asking.await {
        let _ = post.send(Input::Answered(Box::new(answer))).await;
    }
}

/// What the core is told of a guard that does not answer.
fn silent(refusal: Option<Refusal>) -> Event {
    Event::Guard { state: GuardState::Unknown, since: None, halt: Halt::Running, refusal }
}

/// Only renewals wait here: a host that sleeps too long asks too late, and its guard fences it.
async fn reached_on_boot_clock(machine: &Machine, due: Option<BootTime>) {
    match due {
        Some(due) => tokio::time::sleep(due.since(machine.boot_time())).await,
        None => std::future::pending().await,
    }
}

async fn reached(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
