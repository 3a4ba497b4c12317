//! The host's half: one state machine for each fleet on a host.
//!
//! The agent trusts nothing that it can check itself: it measures, verifies and remembers, and does what it is told only
//! where its record allows it. The other half is [`crate::fleet`].

mod event;
mod flip;
mod glass;
mod halt;
mod lease;
mod mandate;
mod membership;
mod prepare;
mod record;

use muster_model::{
    BootTime, Code, Commitment, Digest, Epoch, FromHost, Incarnation, JoinReport, JournalHead, Leadership,
    Nonce, Refusal, RolloutId, Secret, ServingReport, Timing, ToHost,
};

pub use event::{
    CloseCause, Effect, Event, Evidence, GuardState, Halt, Instant, Measured, Now, Profile, Purpose, Resume,
    SealPurpose,
};
pub use glass::{GlassCase, Unsealed};
pub use record::{
    Committed, Halted, History, HostRecord, Mode, Next, RECORD_FORMAT, Serving, Switch, SwitchStage,
};

use crate::Step as AnyStep;

/// A step of the host's half.
pub type Step = AnyStep<HostRecord, Effect>;

/// 32 random bytes that the driver draws for each event.
pub type Entropy = [u8; 32];

/// One fleet on this host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    record: HostRecord,
    profile: Profile,
    stream: Stream,
    guard: GuardState,
    /// What the host does for a rollout that it has not armed for. Volatile.
    round: Option<Round>,
    /// What the host is about to serve. Volatile.
    opening: Option<Serving>,
    /// How often the guard failed to close in a row.
    close_attempts: u32,
    /// The rollout that the guard was told to close for, until it has answered. Volatile.
    closing: Option<RolloutId>,
    /// Why the guard was told last to stop what the host may not serve, until it has. Nothing is opened meanwhile: another attempt at
    /// stopping would meet it. Volatile.
    stopping: Option<CloseCause>,
    /// Whether the guard is being asked to end a halt. Volatile: what it says before it answers is older.
    resuming: Resume,
    /// Step 8: what is needed to renew the lease. Volatile: after a restart nothing is renewed any more.
    lease: Option<Lease>,
    quiesced: Quiesced,
    halting: Halting,
    /// The incarnation that the operators have signed for. Volatile: it is shown in every session.
    mandated: Option<Incarnation>,
}

/// Whether the coordinator was told that the host has obeyed a halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Halting {
    Told,
    Untold,
}

/// Whether the service was prepared for being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Quiesced {
    /// An agent that has just started does not know.
    Unknown,
    No,
    Yes,
}

/// The lease of an armed host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Lease {
    k: RolloutId,
    timing: Timing,
    /// The latest request, from 1 on; only its answer counts.
    n: u64,
    /// When it was sent, or when the host armed.
    sent: BootTime,
}

/// The stream to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stream {
    Down,
    /// JOIN was sent; nothing else counts before JOINED.
    Joining {
        nonce: Nonce,
    },
    /// The session stands. An admission must show the nonce, so that none of a former session or boot counts.
    Joined {
        leadership: Leadership,
        nonce: Nonce,
    },
}

/// A rollout up to the point where the host arms.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Round {
    k: RolloutId,
    to: Digest,
    stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    /// Step 4: the nonce was sent.
    Fresh { nonce: Nonce },
    /// Step 5: the attestation was sent or is being made, for this root.
    Attesting { nonce_root: Digest },
    /// Step 7: everything is verified; the tree is being sealed.
    Verified(Accepted),
    /// Step 7: the tree is sealed; the service is being prepared for the end.
    Quiescing(Accepted),
    /// Step 7: the host is ready to arm.
    Prepared(Accepted),
    /// Step 7: the guard is being given its deadline.
    Leasing(Accepted, Option<Switch>),
}

/// What the documents of a rollout have this host do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Accepted {
    next: record::Next,
    roster_revision: muster_model::RosterRevision,
    timing: Timing,
}

#[derive(Default)]
struct Out {
    record_changed: bool,
    effects: Vec<Effect>,
}

impl Host {
    /// The host with the record that its journal holds, before it is connected.
    #[must_use]
    pub const fn new(record: HostRecord, profile: Profile) -> Self {
        Self {
            record,
            profile,
            stream: Stream::Down,
            guard: GuardState::Unknown,
            round: None,
            opening: None,
            close_attempts: 0,
            closing: None,
            stopping: None,
            resuming: Resume::No,
            lease: None,
            quiesced: Quiesced::Unknown,
            halting: Halting::Told,
            mandated: None,
        }
    }

    /// Takes note of an event and works out what follows. `entropy` must be fresh for each call.
    pub fn handle(&mut self, event: Event, now: Now, entropy: Entropy) -> Step {
        let mut out = Out::default();
        match event {
            Event::Connected { nonce, journal } => self.connected(nonce, journal, &mut out),
            Event::Disconnected => self.disconnected(&mut out),
            Event::Message { leadership, message } => {
                self.message(leadership, message, now, entropy, &mut out);
            }
            Event::Mandated(mandate) => self.mandated(&mandate, &mut out),
            Event::GlassSettled(settlement) => self.glass_settled(&settlement, entropy, &mut out),
            Event::RosterShown(roster) => self.roster_shown(&roster, entropy, &mut out),
            Event::Measured { purpose, outcome } => match purpose {
                Purpose::Attest(k) => self.measured_to_attest(k, outcome, &mut out),
                Purpose::Admit(epoch) => self.measured_to_admit(epoch, outcome, &mut out),
                Purpose::Settle(epoch) => self.measured_to_settle(epoch, outcome, &mut out),
            },
            Event::Verified { k, outcome } => self.verified(k, outcome, &mut out),
            Event::Sealed { k, outcome } => self.sealed(k, outcome, &mut out),
            Event::SealChecked { purpose, outcome } => match purpose {
                SealPurpose::Arm(k) => self.seal_checked_to_arm(k, outcome, now, &mut out),
                SealPurpose::Open(epoch) => self.seal_checked_to_open(epoch, outcome, &mut out),
            },
            Event::Quiesced { k, outcome } => self.quiesced(k, outcome, &mut out),
            Event::Leased { k, outcome } => self.leased(k, outcome, now, &mut out),
            Event::SwitchSet { k, outcome } => self.switch_set(k, outcome, &mut out),
            Event::DeadlineReached => self.renew(now, &mut out),
            Event::Closed { cause, outcome } => self.closed(cause, outcome, now, entropy, &mut out),
            Event::Opened { epoch, outcome } => self.opened(epoch, outcome, &mut out),
            Event::Guard { state, since, halt, refusal } => {
                self.guard_was_halted(halt, &mut out);
                self.guard_says(state, since.unwrap_or(now.boot), refusal, entropy, &mut out);
                self.halt_what_serves(&mut out);
                self.tell_halted(state, halt, &mut out);
            }
        }
        let records = if out.record_changed { vec![self.record.clone()] } else { Vec::new() };
        Step::new(records, out.effects)
    }

    /// When [`Event::DeadlineReached`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<BootTime> {
        self.lease.map(|lease| lease.sent.after(lease.timing.renewal()))
    }

    /// Whether no rollout is under way here, as far as this host knows, and nothing is about to be opened.
    #[must_use]
    pub const fn is_at_rest(&self) -> bool {
        matches!(self.record.mode, Mode::Serve(_)) && self.round.is_none() && self.opening.is_none()
    }

    /// The durable state, as of the last step.
    #[must_use]
    pub const fn record(&self) -> &HostRecord {
        &self.record
    }

    /// The rollout that this host is closing for at this moment: it cannot say yet that it has closed.
    #[must_use]
    pub const fn closing(&self) -> Option<RolloutId> {
        self.closing
    }

    /// Whether the guard has still to answer that it has stopped what this host may not serve.
    #[must_use]
    pub const fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// What the guard serves, as far as it is known.
    #[must_use]
    pub const fn guard(&self) -> GuardState {
        self.guard
    }

    /// Releases that must stay on disk: served, to be served, or being prepared.
    #[must_use]
    pub fn needed_releases(&self) -> Vec<Digest> {
        let mut needed = self.record.needed_releases();
        needed.extend(self.round.as_ref().map(|round| round.to));
        needed.extend(self.opening.and_then(|opening| opening.release));
        needed
    }

    /// Step 2. "Agent sends host, boot id, session token, record, nonce."
    fn connected(&mut self, nonce: Nonce, journal: JournalHead, out: &mut Out) {
        self.stream = Stream::Joining { nonce };
        // Acknowledgements of the stream before are worth nothing to the session that begins.
        self.leave_round(out);
        out.send(FromHost::Join(JoinReport {
            token: self.record.token,
            boot_id: self.profile.boot_id().clone(),
            agent_version: self.profile.facts.agent_version.clone(),
            protocol: self.profile.protocol,
            nonce,
            journal,
            standing: self.record.standing(),
            serving: self.serving_report(),
        }));
    }

    fn disconnected(&mut self, out: &mut Out) {
        self.stream = Stream::Down;
        self.leave_round(out);
    }

    /// Drops what was done for a rollout that the host has not armed for.
    fn leave_round(&mut self, out: &mut Out) {
        self.lease = None;
        self.round = None;
        if matches!(self.record.mode, Mode::Serve(_)) {
            self.unquiesce(out);
        }
    }

    /// Step 7: what the hook has begun is "reversed by abort".
    fn unquiesce(&mut self, out: &mut Out) {
        if self.quiesced != Quiesced::No {
            self.quiesced = Quiesced::No;
            out.effects.push(Effect::Unquiesce);
        }
    }

    fn message(
        &mut self,
        leadership: Leadership,
        message: ToHost,
        now: Now,
        entropy: Entropy,
        out: &mut Out,
    ) {
        // "Agents drop τ < τ_max and anything that does not come over the current stream."
        if leadership < self.record.leadership {
            let detail = format!(
                "term {} is over; this host has seen {}",
                leadership.term, self.record.leadership.term
            );
            out.refuse(None, Refusal::of(Code::StaleTerm, detail));
            return;
        }
        match (&self.stream, message) {
            (Stream::Joining { .. }, ToHost::Joined { .. }) if self.is_unmandated(leadership) => {
                self.refuse_unmandated(leadership, out);
            }
            (Stream::Joining { nonce }, ToHost::Joined { next }) => {
                self.stream = Stream::Joined { leadership, nonce: *nonce };
                self.record.leadership = leadership;
                self.record.token = Some(next);
                self.record.history = History::Whole;
                out.record_changed = true;
                out.send(FromHost::Confirmed);
                if self.left_out().is_some() {
                    // The coordinator may not have heard it over the session before.
                    self.withdraw(out);
                }
            }
            (Stream::Down | Stream::Joining { .. } | Stream::Joined { .. }, ToHost::Refuse { refusal }) => {
                self.stream = Stream::Down;
                out.effects.push(Effect::Hang(refusal));
            }
            (Stream::Joined { leadership: current, .. }, message) if *current == leadership => {
                self.obey(message, now, entropy, out);
            }
            (Stream::Down | Stream::Joining { .. } | Stream::Joined { .. }, _) => {
                out.refuse(
                    None,
                    Refusal::of(Code::StaleSession, "it does not belong to the session of this stream"),
                );
            }
        }
    }

    fn obey(&mut self, message: ToHost, now: Now, entropy: Entropy, out: &mut Out) {
        match message {
            ToHost::Propose { k, to } => self.propose(k, to, Nonce::from_bytes(entropy), out),
            ToHost::Attest { k, to, nonce_root, proof } => {
                self.attest(k, to, nonce_root, &proof, Secret::from_bytes(entropy), out);
            }
            ToHost::Prepare { k, epoch, documents } => self.prepare(k, epoch, documents, out),
            ToHost::Probe { k } => self.probe(k, out),
            ToHost::Arm { k, instant } => self.arm(k, instant, now, out),
            ToHost::Grant { k, n } => self.granted(k, n, out),
            ToHost::Set { k } => self.set(k, out),
            ToHost::Halt { k } => self.halt(k, out),
            ToHost::Close { k } => self.close(k, out),
            ToHost::Open { k, epoch, release, secrets } => self.open(k, epoch, release, &secrets, out),
            ToHost::Disarm { k } => self.disarm(k, out),
            ToHost::Admit { epoch, release, nonce } => self.admit(epoch, release, nonce, out),
            ToHost::Joined { .. } => {
                out.refuse(None, Refusal::of(Code::WrongState, "the session has begun already"));
            }
            // Handled before.
            ToHost::Refuse { .. } => {}
        }
    }

    /// The guard's own word counts, not what the record says should be.
    fn serving_report(&self) -> ServingReport {
        match (self.guard, self.record.may_serve()) {
            (GuardState::Open(epoch, digest), Some(serving))
                if serving.epoch == epoch && serving.release == Some(digest) =>
            {
                ServingReport::Open(epoch)
            }
            (GuardState::Unknown | GuardState::Dark | GuardState::Open(..), _) => ServingReport::Dark,
        }
    }

    fn facts(&self, measured: &Measured) -> muster_model::HostFacts {
        let serving = match self.guard {
            GuardState::Open(_, digest) => Some(digest),
            GuardState::Unknown | GuardState::Dark => None,
        };
        muster_model::HostFacts {
            epoch: self.record.may_serve().map_or(Epoch(0), |serving| serving.epoch),
            serving,
            measured_unix_ms: measured.at,
            elapsed_ms: measured.elapsed_ms,
            clock_error_ms: measured.clock_error_ms,
            assurance: measured.assurance,
            ..self.profile.facts.clone()
        }
    }

    /// The attestation of a check, a rehearsal or an adoption, which are outside of any rollout and change nothing.
    #[must_use]
    pub fn attest_check(
        &self,
        purpose: muster_model::Purpose,
        challenge: Digest,
        measured: Measured,
    ) -> muster_model::Attestation {
        let facts = self.facts(&measured);
        let (fleet, host) = (self.record.fleet.clone(), self.record.host.clone());
        muster_model::Attestation::new(fleet, host, purpose, challenge, measured.compared, facts)
    }

    fn attestation(
        &self,
        k: RolloutId,
        commitment: Commitment,
        nonce_root: Digest,
        measured: Measured,
    ) -> muster_model::Attestation {
        let facts = self.facts(&measured);
        let purpose = muster_model::Purpose::Rollout { k, commitment };
        let (fleet, host) = (self.record.fleet.clone(), self.record.host.clone());
        muster_model::Attestation::new(fleet, host, purpose, nonce_root, measured.compared, facts)
    }
}

impl Out {
    fn send(&mut self, message: FromHost) {
        self.effects.push(Effect::Send(message));
    }

    fn refuse(&mut self, k: Option<RolloutId>, refusal: Refusal) {
        self.send(FromHost::Refused { k, refusal });
    }
}
