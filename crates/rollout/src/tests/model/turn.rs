//! One action: what it changes, and the promises that it could break.

use std::time::Duration;

use muster_model::{BootTime, Epoch, HostName, Purpose, RolloutId, ToHost};

use super::FlipModel;
use super::config::Mistake;
use super::papers::{FENCE_TICKS, TICK_MS};
use super::state::{Fate, Latch, Machine, Promise, State};
use crate::fleet::{Armament, FleetRecord, Limits, Phase};
use crate::host::{HostRecord, Mode};

/// A state while an action is being taken.
pub(super) struct Turn<'a> {
    pub(super) model: &'a FlipModel,
    pub(super) state: State,
    pub(super) cut_short: CutShort,
    pub(super) is_taking_over: bool,
}

/// Who dies as soon as it has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CutShort {
    Nobody,
    Leader,
    Agent,
}

impl<'a> Turn<'a> {
    pub(super) const fn new(model: &'a FlipModel, state: State) -> Self {
        Self { model, state, cut_short: CutShort::Nobody, is_taking_over: false }
    }

    pub(super) const fn now(&self) -> BootTime {
        BootTime(self.state.now * TICK_MS)
    }

    pub(super) const fn mistake(&self) -> Option<Mistake> {
        self.model.config.mistake
    }

    pub(super) fn host_name(&self, index: usize) -> HostName {
        self.state.machines[index].agent.record().host.clone()
    }

    /// 32 bytes that differ wherever the protocol needs them to, and nowhere else: a counter of all that was ever drawn
    /// would keep states apart that are alike.
    pub(super) fn entropy_of(&self, kind: u8, index: usize, first: u64, second: u64) -> [u8; 32] {
        let mut bytes = [kind; 32];
        bytes[1] = u8::try_from(index).expect("few hosts");
        bytes[8..16].copy_from_slice(&first.to_le_bytes());
        bytes[16..24].copy_from_slice(&second.to_le_bytes());
        bytes
    }

    /// Notes what an action broke. The first counts.
    pub(super) fn break_promise(&mut self, promise: Promise, what: impl FnOnce() -> String) {
        if self.state.history.broken.is_none() {
            self.state.history.edit().broken = Some((promise, what()));
        }
    }

    /// The clock ticks, unless a guard would not have fenced in time: a fence takes less than `F`.
    pub(super) fn tick(&mut self) {
        self.state.now += 1;
    }

    /// What must hold when the fleet's record is written.
    pub(super) fn check_fleet_record(&mut self, next: &FleetRecord) {
        let before = self.state.store.record.clone();
        if next.epoch < before.epoch || next.last_k < before.last_k || next.leadership < before.leadership {
            self.break_promise(Promise::P6, || "a counter of the coordinator's fell".to_owned());
        }
        if let Some(rollout) = next.phase.rollout()
            && self.state.history.targets.get(&rollout.k) != Some(&rollout.to)
        {
            let before = self.state.history.edit().targets.insert(rollout.k, rollout.to);
            if before.is_some() {
                self.break_promise(Promise::P10, || format!("rollout {} has two targets", rollout.k));
            }
        }
        if let (Phase::Arming(was), false) = (&before.phase, matches!(next.phase, Phase::Arming(_))) {
            self.state.history.edit().left_arming = Some((was.rollout.k, self.state.now));
        }
        match (&before.phase, &next.phase) {
            (Phase::Decided(was), Phase::Decided(is)) if was == is => {}
            (Phase::Arming(was), Phase::Decided(is)) if was == is => {
                self.decide(is.rollout.k, Fate::Decided);
                self.check_decided(is, next);
            }
            (_, Phase::Decided(_)) => {
                self.break_promise(Promise::P10, || "decided from another phase than ARMING".to_owned());
            }
            (Phase::Decided(was), Phase::Opened(is)) if was.rollout.k == is.k => {
                self.check_opened(is.k, |host| is.lapsed.contains(host));
            }
            (Phase::Decided(was), _) => {
                let k = was.rollout.k;
                self.break_promise(Promise::P10, || format!("rollout {k} was decided and then left"));
            }
            (Phase::Preparing(_) | Phase::Arming(_), Phase::Settled | Phase::Opened(_)) => {
                if let Some(rollout) = before.phase.rollout() {
                    self.decide(rollout.k, Fate::Aborted);
                }
            }
            (Phase::Settled | Phase::Preparing(_) | Phase::Arming(_) | Phase::Opened(_), _) => {}
        }
    }

    /// P7: nothing is said of what is not durable. Returns in whose name it is said.
    pub(super) fn check_spoken(&mut self, slot: usize, message: &ToHost) -> muster_model::Leadership {
        let leadership = self.leadership_of(slot);
        let Some(leader) = self.state.leaders[slot].as_ref() else { return leadership };
        let record = leader.fleet.record();
        if leader.durable != (record.leadership, record.revision) {
            self.break_promise(Promise::P7, || format!("{message:?} was said before its record was durable"));
        }
        leadership
    }

    /// P6: "τ_max, last_k, e and the order counter never fall on a host."
    pub(super) fn check_host_record(&mut self, before: &HostRecord, next: &HostRecord) {
        let fell = next.last_k < before.last_k
            || next.leadership < before.leadership
            || next.roster_revision < before.roster_revision
            || epoch_of(next) < epoch_of(before);
        if fell {
            self.break_promise(Promise::P6, || format!("a counter of {} fell", next.host));
        }
    }

    /// P10: one decision for each k.
    fn decide(&mut self, k: RolloutId, fate: Fate) {
        let before = self.state.history.edit().fates.insert(k, fate);
        if before.is_some_and(|before| before != fate) {
            self.break_promise(Promise::P10, || format!("rollout {k} was both decided and aborted"));
        }
    }

    /// P3: DECIDED implies N identical attestations and N ARMED under one roster revision.
    fn check_decided(&mut self, armament: &Armament, record: &FleetRecord) {
        let k = armament.rollout.k;
        if record.roster != self.state.store.record.roster {
            self.break_promise(Promise::P3, || "the roster changed during a rollout".to_owned());
        }
        let roster = self.roster_in_force();
        let unarmed = self.state.machines.iter().find(|machine| {
            roster.position(&machine.agent.record().host).is_some() && machine.promised() != Some(k)
        });
        if let Some(host) = unarmed.map(|machine| machine.agent.record().host.clone()) {
            self.break_promise(Promise::P3, || format!("{host} is not armed for rollout {k}"));
        }
        let evidence = self.attestations_in(armament.evidence).unwrap_or_default();
        let is_complete = evidence.len() == roster.hosts().len()
            && evidence.iter().zip(roster.hosts()).all(|(it, member)| {
                it.host == member.name
                    && it.matches()
                    && it.compared.manifest == armament.rollout.to
                    && it.compared == evidence[0].compared
                    && it.challenge == evidence[0].challenge
                    && matches!(it.purpose, Purpose::Rollout { k: attested, .. } if attested == k)
            });
        if !is_complete {
            self.break_promise(Promise::P3, || format!("rollout {k} rests on too little evidence"));
        }
    }

    /// P4: OPENED implies that every host is dark, and has closed but for as many as the order lets lapse.
    fn check_opened(&mut self, k: RolloutId, lapsed: impl Fn(&HostName) -> bool) {
        let roster = self.roster_in_force();
        let is_open = |machine: &Machine| {
            let record = machine.agent.record();
            let closed = matches!(&record.mode, Mode::Closed { k: closed, .. } if *closed == k);
            machine.guard.serving.is_some() || !(closed || lapsed(&record.host))
        };
        let open = self
            .state
            .machines
            .iter()
            .find(|machine| roster.position(&machine.agent.record().host).is_some() && is_open(machine));
        if let Some(host) = open.map(|machine| machine.agent.record().host.clone()) {
            self.break_promise(Promise::P4, || format!("rollout {k} was opened before {host} was closed"));
        }
    }
}

impl State {
    /// Whether the clock may tick: no guard may be late, and something must depend on the time, since it only ever counts
    /// from one moment to another.
    pub(super) fn may_tick(&self) -> bool {
        let next = (self.now + 1) * TICK_MS;
        let is_late = |machine: &Machine| {
            machine.running_lease().is_some_and(|it| it.deadline.0 + FENCE_TICKS * TICK_MS <= next)
        };
        let far = BootTime(next).after(limits().arm / 2);
        let awaits = |machine: &Machine| {
            machine.guard.lease.is_some_and(|lease| lease.latch == Latch::Open)
                || machine.agent.next_deadline().is_some()
        };
        let leader_awaits = self
            .leaders
            .iter()
            .flatten()
            .any(|leader| leader.fleet.next_deadline().is_some_and(|deadline| deadline < far));
        let is_awaited = leader_awaits || self.machines.iter().any(|machine| awaits(machine));
        is_awaited && !self.machines.iter().any(|machine| is_late(machine))
    }
}

/// So long that they never pass: what they lead to can be brought about by an operator as well, at any time.
pub(super) const fn limits() -> Limits {
    let day = Duration::from_secs(24 * 3600);
    Limits { attest: day, prepare: day, arm: day, fast_lead: day }
}

/// The epoch that a host serves, or served last.
fn epoch_of(record: &HostRecord) -> Epoch {
    match &record.mode {
        Mode::Serve(serving) | Mode::Armed { serving, .. } => serving.epoch,
        Mode::Closed { next, fallback, .. } => Epoch(fallback.as_ref().unwrap_or(next).epoch.0 - 1),
    }
}
