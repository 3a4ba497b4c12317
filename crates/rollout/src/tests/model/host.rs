//! Hosts: their agents, and the connections to the leaders.

use muster_model::{
    Assurance, BootGate, BootId, ClockState, Code, Comparable, Digest, Documents, Durable, Epoch, FromHost,
    HostFacts, JournalHead, Leadership, Nonce, Refusal, Scope, SessionId, ToHost, UnixTime, Verified,
};

use super::super::papers::{host_name, key_of};
use super::config::{Mistake, Pace};
use super::papers::{FENCE_TICKS, TICK_MS, unix_now};
use super::state::{Asker, End, Guard, GuardWork, LeaderEnd, Machine, Permitted, Promise, Stream, Up, Work};
use super::turn::{CutShort, Turn};
use crate::Step;
use crate::host::{
    Effect, Event, Evidence, Host, HostRecord, Measured, Mode, Now, Profile, Purpose, SealPurpose,
};

impl Machine {
    pub(super) fn new(record: HostRecord, index: usize) -> Self {
        Self {
            agent: Host::new(record, profile(index, 0)),
            boots: 0,
            guard: Guard::default(),
            work: Vec::new(),
            streams: Vec::new(),
            sessions: 0,
            draws: 0,
            refused_by: None,
            copy: None,
            permitted: Permitted::No,
            asked_at: None,
        }
    }

    /// The agent's end of its connection is gone. What it sent may still arrive.
    pub(super) fn hang_up(&mut self) {
        if let Some(stream) = self.current_mut() {
            stream.host_end = End::Gone;
            stream.down.clear();
        }
        self.forget_streams();
    }

    pub(super) fn forget_streams(&mut self) {
        self.streams.retain(|it| it.host_end == End::Open || it.leader_end != LeaderEnd::Gone);
    }
}

impl Turn<'_> {
    /// Hands an event to an agent, writes what it says and then does what it says, or dies on the way.
    pub(super) fn host_event(&mut self, index: usize, event: Event) {
        let entropy = self.entropy_for(index, &event);
        let now = Now { boot: self.now(), unix: unix_now() };
        let machine = self.state.machines[index].edit();
        let before = machine.agent.record().clone();
        let step = machine.agent.handle(event, now, entropy);
        let after = machine.agent.record().clone();
        self.check_host_record(&before, &after);
        if self.cut_short == CutShort::Agent && !step.records().is_empty() {
            self.cut_short = CutShort::Nobody;
            return self.restart(index);
        }
        let effects = match step {
            Step::Act(effects) => effects,
            Step::Write(write) => write.into_effects(Durable::assert(0)),
        };
        for effect in effects {
            self.host_effect(index, effect);
        }
    }

    /// The agent connects to a coordinator that says it leads.
    pub(super) fn connect(&mut self, index: usize, slot: usize) {
        let machine = self.state.machines[index].edit();
        machine.sessions += 1;
        machine.streams.push(Stream {
            session: SessionId(machine.sessions),
            slot,
            up: std::collections::VecDeque::new(),
            down: std::collections::VecDeque::new(),
            host_end: End::Open,
            leader_end: LeaderEnd::Open,
        });
        let nonce = Nonce::from_bytes(self.entropy_of(3, index, self.state.machines[index].sessions, 0));
        // No disk is rolled back here, so that where the journal stands tells nothing.
        let journal = JournalHead { seq: 0, hash: Digest::from_bytes([0; 32]) };
        self.host_event(index, Event::Connected { nonce, journal });
    }

    /// What a leader said arrives.
    pub(super) fn hear(&mut self, index: usize, leadership: Leadership, message: ToHost) {
        match &message {
            ToHost::Admit { .. } | ToHost::Open { .. } => {
                self.state.machines[index].edit().permitted = Permitted::Yes;
            }
            ToHost::Joined { .. }
            | ToHost::Propose { .. }
            | ToHost::Attest { .. }
            | ToHost::Prepare { .. }
            | ToHost::Probe { .. }
            | ToHost::Arm { .. }
            | ToHost::Grant { .. }
            | ToHost::Set { .. }
            | ToHost::Halt { .. }
            | ToHost::Close { .. }
            | ToHost::Disarm { .. }
            | ToHost::Refuse { .. } => {}
        }
        self.host_event(index, Event::Message { leadership, message });
    }

    /// A copy of what was said before arrives once more, over the current stream.
    pub(super) fn hear_copy(&mut self, index: usize) -> Option<()> {
        let machine = self.state.machines[index].edit();
        let (leadership, message) = machine.copy.take()?;
        machine.current()?;
        let armed_for = machine.promised();
        match (self.mistake(), &message, armed_for) {
            (Some(Mistake::StaleAdmitAccepted), ToHost::Admit { epoch, release, .. }, _) => {
                self.ask_guard(index, GuardWork::Open { epoch: *epoch, release: *release });
            }
            (Some(Mistake::StaleDisarmAccepted), ToHost::Disarm { .. }, Some(k)) => {
                self.host_event(index, Event::Message { leadership, message: ToHost::Disarm { k } });
            }
            // An OPEN shows no nonce. What keeps an old one from doing harm is that it names the host's last rollout.
            (_, ToHost::Open { .. }, _) => self.hear(index, leadership, message),
            // Any other copy gives no permit: whatever it brings about must be right without it.
            _ => self.host_event(index, Event::Message { leadership, message }),
        }
        Some(())
    }

    /// The agent is killed and started: what it asked of the guard and did not get is forgotten.
    pub(super) fn restart(&mut self, index: usize) {
        let mistake = self.mistake();
        let machine = self.state.machines[index].edit();
        machine.hang_up();
        machine.work.clear();
        machine.guard.waiting.clear();
        if let Some(draining) = &mut machine.guard.draining {
            draining.asked_by = Asker::Nobody;
        }
        let mut record = machine.agent.record().clone();
        if let (Some(Mistake::ArmedNotDurable), Mode::Armed { serving, .. }) = (mistake, &record.mode) {
            record.mode = Mode::Serve(*serving);
            machine.guard.lease = None;
        }
        machine.agent = Host::new(record, profile(index, machine.boots));
        machine.refused_by = None;
        machine.asked_at = None;
        self.guard_speaks(index);
    }

    /// The machine is switched off and on: nothing that was in memory is left.
    pub(super) fn reboot(&mut self, index: usize) {
        let machine = self.state.machines[index].edit();
        machine.boots += 1;
        let serving = machine.guard.serving;
        machine.guard = Guard::default();
        machine.permitted = Permitted::No;
        if self.mistake() == Some(Mistake::ServiceStartsAtBoot) {
            self.state.machines[index].edit().guard.serving = serving;
        }
        self.restart(index);
    }

    /// Work that took time is done.
    pub(super) fn finish(&mut self, index: usize, at: usize) {
        let work = self.state.machines[index].edit().work.remove(at);
        self.do_work(index, work);
    }

    fn host_effect(&mut self, index: usize, effect: Effect) {
        match effect {
            Effect::Send(message) => self.send_up(index, message),
            Effect::SignAndSend(k, attestation) => self.push_up(index, Up::Attested(k, attestation)),
            Effect::Measure { purpose: purpose @ Purpose::Admit(_), release } => {
                self.work(index, Work::Measure { purpose, release });
            }
            Effect::Measure { purpose: purpose @ (Purpose::Attest(_) | Purpose::Settle(_)), release } => {
                self.do_work(index, Work::Measure { purpose, release });
            }
            Effect::CheckSeal { purpose: purpose @ SealPurpose::Open(_), release: _ } => {
                self.work(index, Work::CheckSeal { purpose });
            }
            Effect::CheckSeal { purpose: purpose @ SealPurpose::Arm(_), release: _ } => {
                self.do_work(index, Work::CheckSeal { purpose });
            }
            Effect::Verify { k, documents } => {
                let outcome = self.verify(&documents);
                self.host_event(index, Event::Verified { k, outcome });
            }
            Effect::Seal { k, release: _ } => self.host_event(index, Event::Sealed { k, outcome: Ok(()) }),
            Effect::Quiesce { k } => self.ask_guard(index, GuardWork::Quiesce { k }),
            Effect::Lease { k, deadline, .. } => self.ask_guard(index, GuardWork::Lease { k, deadline }),
            Effect::Extend { k, deadline } => self.ask_guard(index, GuardWork::Extend { k, deadline }),
            Effect::Lift { k } => self.ask_guard(index, GuardWork::Lift { k }),
            Effect::Close { cause, .. } => self.ask_guard(index, GuardWork::Close { cause }),
            Effect::Open { epoch, release, resume: _ } => {
                self.ask_guard(index, GuardWork::Open { epoch, release });
            }
            Effect::Hang(_) => {
                let machine = self.state.machines[index].edit();
                let slot = machine.current().map(|stream| stream.slot);
                machine.hang_up();
                let refused_by = slot.map(|slot| self.leadership_of(slot));
                self.state.machines[index].edit().refused_by = refused_by;
            }
            // Only what the model leaves out brings these about: fast mode, halts, and hooks.
            // Nobody is set aside here.
            Effect::Unquiesce | Effect::Switch { .. } | Effect::Halt | Effect::SignWithdrawal { .. } => {}
        }
    }

    fn send_up(&mut self, index: usize, message: FromHost) {
        self.check_from_host(index, &message);
        let now = self.now();
        let machine = self.state.machines[index].edit();
        machine.draws += u64::from(matches!(message, FromHost::Dark { nonce: Some(_), .. }));
        if matches!(message, FromHost::Renew { .. }) {
            machine.asked_at = Some(now);
        }
        let up = if let FromHost::Join(report) = message {
            Up::Join(Box::new(report))
        } else {
            Up::Message(Box::new(message))
        };
        self.push_up(index, up);
    }

    fn push_up(&mut self, index: usize, up: Up) {
        let stream = self.state.machines[index].edit().current_mut();
        if let Some(stream) = stream.filter(|stream| stream.leader_end != LeaderEnd::Gone) {
            stream.up.push_back(up);
        }
    }

    pub(super) fn work(&mut self, index: usize, work: Work) {
        match self.model.config.work {
            Pace::AtOnce => self.do_work(index, work),
            Pace::Later => self.state.machines[index].edit().work.push(work),
        }
    }

    fn do_work(&mut self, index: usize, work: Work) {
        match work {
            Work::Measure { purpose, release } => {
                let compared =
                    Comparable { manifest: release, measured: release, files: 3, bytes: 100, uniform: None };
                let measured = Measured {
                    compared,
                    at: unix_now(),
                    elapsed_ms: 5,
                    clock_error_ms: Some(1),
                    assurance: Assurance::Sha256,
                };
                self.host_event(index, Event::Measured { purpose, outcome: Ok(measured) });
            }
            Work::CheckSeal { purpose } => {
                self.host_event(index, Event::SealChecked { purpose, outcome: Ok(()) });
            }
            Work::Notice => self.guard_speaks(index),
        }
    }

    fn verify(&self, documents: &Documents) -> Result<Box<Evidence>, Refusal> {
        let unknown = || Refusal::of(Code::BlobMissing, "the coordinator has no such document");
        let papers = &self.model.papers;
        let roster = papers.roster_in(documents.roster).ok_or_else(unknown)?;
        let attestations = self.attestations_in(documents.evidence).ok_or_else(unknown)?;
        Ok(Box::new(Evidence {
            order: papers.order_in(documents.order).ok_or_else(unknown)?.clone(),
            release: papers.release_in(documents.release).ok_or_else(unknown)?.clone(),
            roster: Verified::clone(&roster.roster),
            roster_digest: roster.digest,
            attestations: attestations.into_iter().cloned().collect(),
            withdrawals: Vec::new(),
            now: unix_now(),
        }))
    }

    /// Nonces and secrets of a rollout are drawn once for each host and rollout, since a number is never used twice; a
    /// nonce for an admission differs with the session and with each that was drawn before.
    fn entropy_for(&self, index: usize, event: &Event) -> [u8; 32] {
        let machine = &self.state.machines[index];
        if let Event::Message { message: ToHost::Propose { k, .. } | ToHost::Attest { k, .. }, .. } = event {
            self.entropy_of(1, index, k.0, 0)
        } else {
            self.entropy_of(2, index, machine.sessions, machine.draws)
        }
    }

    /// P7: no message of a host's without its durable record before it.
    fn check_from_host(&mut self, index: usize, message: &FromHost) {
        let machine = &self.state.machines[index];
        let record = machine.agent.record();
        let is_durable = match message {
            FromHost::Armed { k } => machine.promised() == Some(*k),
            FromHost::Closed { k, .. } => {
                matches!(&record.mode, Mode::Closed { k: closed, fallback: None, .. } if closed == k)
            }
            FromHost::Disarmed { k } => !matches!(&record.mode, Mode::Armed { k: armed, .. } if armed == k),
            FromHost::Serving { epoch, .. } => record.may_serve().is_some_and(|it| it.epoch == *epoch),
            FromHost::Confirmed => record.token.is_some(),
            FromHost::Join(report) => report.standing == record.standing(),
            FromHost::Renew { k, .. } => matches!(&record.mode, Mode::Armed { k: armed, .. } if armed == k),
            FromHost::Fresh { .. }
            | FromHost::Withdrawn { .. }
            | FromHost::CannotAttest { .. }
            | FromHost::Prepared { .. }
            | FromHost::Probed { .. }
            | FromHost::Set { .. }
            | FromHost::Measured { .. }
            | FromHost::Dark { .. }
            | FromHost::Refused { .. } => true,
        };
        if !is_durable {
            self.break_promise(Promise::P7, || format!("{message:?} was said before it was durable"));
        }
    }
}

/// What a host says of itself: the boot, and nothing else that ever changes.
fn profile(index: usize, boots: u8) -> Profile {
    let boot_id = BootId::new(&format!("{boots:08x}-0000-0000-0000-0000000000{index:02x}"));
    Profile {
        facts: HostFacts {
            epoch: Epoch(0),
            serving: None,
            boot_id: boot_id.expect("a UUID"),
            scope: Scope::Link,
            boot_gate: BootGate::Volatile,
            clock: ClockState::Steady,
            clock_error_ms: Some(1),
            fence_ms: Some(FENCE_TICKS * TICK_MS),
            drain_ms: 0,
            assurance: Assurance::Sha256,
            agent_version: String::new(),
            agent_config: Digest::from_bytes([7; 32]),
            measured_unix_ms: UnixTime(0),
            elapsed_ms: 0,
        },
        protocol: crate::fleet::PROTOCOL,
        attestation_key: key_of(&host_name(index + 1)),
    }
}
