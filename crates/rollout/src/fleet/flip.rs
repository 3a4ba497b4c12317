//! Steps 10 to 13: from the decision to a settled fleet. Nothing here can be given up, and nothing opens early.

use std::sync::Arc;

use muster_model::{
    Blocker, BootId, BootTime, Code, Commitment, Digest, Epoch, HostMode, RolloutId, Secret, Secrets, ToHost,
};

use super::record::{Armament, Offers, Opening, Phase};
use super::rollout::{Progress, reached};
use super::{DarkWindow, Effect, End, Fleet, Out, Outcome, Report, Stage};
use crate::gate;

/// What is known of the closing of a decided rollout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Closing {
    commitments: Arc<[Commitment]>,
    secrets: Vec<Option<Secret>>,
    first_close: BootTime,
    clock: HostClock,
}

/// What is known of the opening of a completed rollout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Opened {
    /// Unknown to a leader that took over: then there is no figure to report.
    timing: Option<Timing>,
    reported: Reported,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Timing {
    first_close: BootTime,
    first_serving: Option<BootTime>,
    last_serving: Option<BootTime>,
    clock: HostClock,
}

/// Times on the hosts' own clock, which mean something only while all of them share one boot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct HostClock {
    boots: Vec<BootId>,
    first_closed: Option<BootTime>,
    first_opened: Option<BootTime>,
    last_opened: Option<BootTime>,
}

/// Whether those who watch were told how the rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reported {
    No,
    Dark,
}

impl Closing {
    pub(super) fn new(commitments: Arc<[Commitment]>, now: BootTime) -> Self {
        let secrets = vec![None; commitments.len()];
        Self { commitments, secrets, first_close: now, clock: HostClock::default() }
    }

    pub(super) fn done(&self) -> usize {
        self.secrets.iter().flatten().count()
    }

    pub(super) fn has_closed(&self, index: usize) -> bool {
        self.secrets.get(index).is_some_and(Option::is_some)
    }
}

impl Opened {
    /// The state of a leader that did not see the rollout being closed.
    pub(super) const fn resumed() -> Self {
        Self { timing: None, reported: Reported::No }
    }
}

impl Fleet {
    /// Step 10: a host is closed, durably, and reveals its secret. Step 11: after the last one, OPENED.
    ///
    /// P4: OPENED implies that every outstanding session was CLOSED. This version knows no leases, so a host that is
    /// silent is waited for without end, visibly; nothing ever opens early.
    pub(super) fn closed(&mut self, index: usize, k: RolloutId, secret: Secret, at: BootTime, out: &mut Out) {
        let Phase::Decided(armament) = &self.record.phase else { return };
        if armament.rollout.k != k {
            return;
        }
        let Progress::Closing(closing) = &mut self.progress else { return };
        if closing.commitments.get(index) != Some(&secret.commitment()) {
            let detail = "the closing secret is not the one that its attestation committed to";
            self.trouble(index, Code::ClosingUnproven, detail);
            self.trouble_while_opening(index, out);
            return;
        }
        closing.secrets[index] = Some(secret);
        let boot = self.hosts[index].session.as_ref().map(|session| session.boot_id.clone());
        closing.clock.closed(boot, at);
        let done = closing.secrets.iter().flatten().count();
        let host = &mut self.hosts[index];
        host.set_mode(HostMode::Closed(k));
        host.serves(None);
        reached(k, Stage::Closed, Some(&host.name), done, out);
        let Some(secrets) = closing.secrets.iter().copied().collect::<Option<Secrets>>() else { return };
        let (first_close, clock) = (closing.first_close, closing.clock.clone());
        reached(k, Stage::Closed, None, done, out);
        let armament = armament.clone();
        self.open_fleet(
            armament,
            secrets,
            Timing { first_close, first_serving: None, last_serving: None, clock },
            out,
        );
    }

    /// Step 12 for one host that is closed for rollout `k` and waits to be told.
    pub(super) fn open_closed(&mut self, index: usize, k: RolloutId, out: &mut Out) {
        if self.record.phase.opening().is_none() {
            let detail = format!("it is closed for rollout {k}, which the fleet has left behind");
            self.trouble(index, Code::StaleRollout, detail);
            return;
        }
        self.open(index, k, out);
    }

    /// Step 12. "OPEN(k, e+1) carries all N secrets." `k` is the host's own last rollout.
    pub(super) fn open(&mut self, index: usize, k: RolloutId, out: &mut Out) {
        let Some(release) = self.record.serving else { return };
        let secrets = self.secrets.clone();
        let epoch = self.record.epoch;
        self.offer(index, ToHost::Open { k, epoch, release, secrets }, out);
    }

    /// Step 12: a host serves.
    pub(super) fn serving(&mut self, index: usize, epoch: Epoch, at: BootTime, now: BootTime, out: &mut Out) {
        if epoch != self.record.epoch {
            let detail =
                format!("it says that it serves epoch {epoch}; the fleet is at {}", self.record.epoch);
            self.trouble(index, Code::StaleEpoch, detail);
            return;
        }
        let host = &mut self.hosts[index];
        host.trouble.clear();
        if !matches!(host.mode(), Some(HostMode::Armed(..))) {
            host.set_mode(HostMode::Serve(epoch));
        }
        host.serves(Some(epoch));
        let boot = host.session.as_ref().map(|session| session.boot_id.clone());
        if let Progress::Opening(Opened { timing: Some(timing), .. }) = &mut self.progress {
            timing.first_serving.get_or_insert(now);
            timing.last_serving = timing.last_serving.max(Some(now));
            timing.clock.opened(boot, at);
        }
        if let Phase::Opened(opening) = &self.record.phase {
            let done = self.hosts.iter().filter(|host| host.serving() == Some(epoch)).count();
            reached(opening.k, Stage::Serving, Some(&self.hosts[index].name), done, out);
        }
    }

    /// Step 13. "All N SERVING and measured: SETTLED."
    pub(super) fn measured(&mut self, index: usize, epoch: Epoch, out: &mut Out) {
        let host = &mut self.hosts[index];
        if epoch != self.record.epoch || host.serving() != Some(epoch) {
            return;
        }
        host.measured = Some(epoch);
        let Phase::Opened(opening) = &self.record.phase else { return };
        let done = self.hosts.iter().filter(|host| host.measured == Some(epoch)).count();
        reached(opening.k, Stage::Measured, Some(&self.hosts[index].name), done, out);
        if done < self.hosts.len() {
            self.report_if_all_answered(out);
            return;
        }
        self.settle_if_measured(out);
    }

    /// Step 13. The last measurement may also have come while a rollout that was then given up was being prepared.
    pub(super) fn settle_if_measured(&mut self, out: &mut Out) {
        let Phase::Opened(opening) = &self.record.phase else { return };
        let k = opening.k;
        let done = self.hosts.iter().filter(|host| host.measured == Some(self.record.epoch)).count();
        if done < self.hosts.len() {
            return;
        }
        let dark_window = match &self.progress {
            Progress::Opening(Opened { timing: Some(timing), .. }) => timing.dark_window(),
            Progress::Opening(Opened { timing: None, .. })
            | Progress::None
            | Progress::Gathering(_)
            | Progress::Attesting(_)
            | Progress::Preparing(_)
            | Progress::Arming(_)
            | Progress::Closing(_) => None,
        };
        reached(k, Stage::Measured, None, done, out);
        self.record.completed = Some(opening.clone());
        self.record.phase = Phase::Settled;
        self.progress = Progress::None;
        out.record_changed = true;
        self.report_end(k, Outcome::Flipped, Vec::new(), dark_window, out);
        // Hosts that are new in the roster, or came back meanwhile, are admitted now.
        for index in 0..self.hosts.len() {
            self.reconcile(index, out);
        }
    }

    /// The completed rollout, while hosts are still to close, open or measure.
    pub(super) fn completing(&self) -> Option<RolloutId> {
        match &self.record.phase {
            Phase::Decided(armament) => Some(armament.rollout.k),
            Phase::Opened(opening) => Some(opening.k),
            Phase::Settled | Phase::Preparing(_) | Phase::Arming(_) => None,
        }
    }

    /// Tells those who watch what is in the way at a host.
    pub(super) fn trouble_while_opening(&mut self, index: usize, out: &mut Out) {
        if let Some(k) = self.completing() {
            let blockers = self.hosts[index].trouble.clone();
            out.effects.push(Effect::Report(Report::Trouble { k, blockers }));
            self.report_if_all_answered(out);
        }
    }

    /// Step 11. "Compare-and-swap to OPENED(k, e+1) with the evidence for each host and the list of offers."
    fn open_fleet(&mut self, armament: Armament, secrets: Secrets, timing: Timing, out: &mut Out) {
        let Armament { rollout, evidence } = armament;
        let bytes = secrets.as_bytes().to_vec();
        let k = rollout.k;
        let opening =
            Opening { k, papers: rollout.papers, evidence, secrets: Self::keep_document(bytes, out) };
        self.secrets = secrets;
        self.record.epoch = self.record.epoch.next();
        self.record.previous = self.record.serving.replace(rollout.to);
        self.record.phase = Phase::Opened(opening);
        // An offer is recorded before it is sent: this write holds the OPENs back.
        self.record.offers = Offers::All;
        out.record_changed = true;
        self.progress = Progress::Opening(Opened { timing: Some(timing), reported: Reported::No });
        reached(k, Stage::Opened, None, self.hosts.len(), out);
        for index in 0..self.hosts.len() {
            // Why it did not open another release says nothing about this one, and is no answer to be waited for.
            self.hosts[index].trouble.clear();
            self.open(index, k, out);
        }
    }

    /// Once every host has either measured what it serves or said why it cannot, there is nothing left to wait for.
    fn report_if_all_answered(&mut self, out: &mut Out) {
        let Phase::Opened(opening) = &self.record.phase else { return };
        let k = opening.k;
        let epoch = self.record.epoch;
        let Progress::Opening(opened) = &mut self.progress else { return };
        let unfinished = self.hosts.iter().filter(|host| host.measured != Some(epoch));
        let mut blockers: Vec<Blocker> = Vec::new();
        for host in unfinished {
            match host.trouble.as_slice() {
                [] if host.session.is_some() => return,
                [] => blockers.push(gate::missing(&host.name)),
                trouble => blockers.extend(trouble.iter().cloned()),
            }
        }
        if opened.reported == Reported::Dark {
            return;
        }
        opened.reported = Reported::Dark;
        self.report_end(k, Outcome::Dark, blockers, None, out);
    }

    fn report_end(
        &self,
        k: RolloutId,
        outcome: Outcome,
        blockers: Vec<Blocker>,
        dark_window: Option<DarkWindow>,
        out: &mut Out,
    ) {
        let to: Option<Digest> = self.record.serving;
        if let Some(to) = to {
            let end = End { k, to, outcome, epoch: self.record.epoch, blockers, dark_window };
            out.effects.push(Effect::Report(Report::Ended(end)));
        }
    }
}

impl Timing {
    fn dark_window(&self) -> Option<DarkWindow> {
        let (first, last) = (self.first_serving?, self.last_serving?);
        let to_ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let shared = self.clock.is_shared();
        let spread = match (shared, self.clock.first_opened, self.clock.last_opened) {
            (true, Some(first), Some(last)) => last.since(first),
            _ => last.since(first),
        };
        let measured = match (shared, self.clock.first_closed, self.clock.last_opened) {
            (true, Some(closed), Some(opened)) => Some(to_ms(opened.since(closed))),
            _ => None,
        };
        Some(DarkWindow {
            bound_ms: to_ms(last.since(self.first_close)),
            measured_ms: measured,
            spread_ms: to_ms(spread),
        })
    }
}

impl HostClock {
    fn closed(&mut self, boot: Option<BootId>, at: BootTime) {
        self.seen(boot);
        self.first_closed = Some(self.first_closed.map_or(at, |first| first.min(at)));
    }

    fn opened(&mut self, boot: Option<BootId>, at: BootTime) {
        self.seen(boot);
        self.first_opened = Some(self.first_opened.map_or(at, |first| first.min(at)));
        self.last_opened = self.last_opened.max(Some(at));
    }

    /// Two boots are all it takes to know that the clock is not shared.
    fn seen(&mut self, boot: Option<BootId>) {
        if let Some(boot) = boot
            && self.boots.len() < 2
            && !self.boots.contains(&boot)
        {
            self.boots.push(boot);
        }
    }

    const fn is_shared(&self) -> bool {
        self.boots.len() == 1
    }
}
