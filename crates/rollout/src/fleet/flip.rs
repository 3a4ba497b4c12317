//! Steps 10 to 14: from the decision to a settled fleet. Nothing here can be given up, and nothing opens early.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_model::{
    Blocker, BootTime, Closure, Code, Commitment, Digest, Epoch, FlipMode, HostMode, HostName, Membership,
    Refusal, RolloutId, Secret, Secrets, ToHost,
};

use super::figures::Figures;
use super::record::{Armament, Offers, Opening, Phase};
use super::rollout::{Progress, reached};
use super::wait::Wait;
use super::{DarkWindow, Effect, End, Fleet, Out, Outcome, Report, Stage};
use crate::gate;

/// What is known of the closing of a decided rollout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Closing {
    commitments: Arc<[Commitment]>,
    secrets: Vec<Option<Secret>>,
    figures: Figures,
    pub(super) wait: Wait,
}

/// What is known of the hosts of a decided rollout in fast mode.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Switching {
    switches: Vec<Option<Switched>>,
    figures: Figures,
    pub(super) wait: Wait,
}

/// What a host did at the instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Switched {
    /// It serves the new release, and says what it measures of it.
    Yes,
    /// It did so before it joined, and may have said to nobody what it measured.
    BeforeItJoined,
    /// It said that it will not: it fences.
    No,
}

/// What is known of the opening of a completed rollout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Opened {
    /// Unknown to a leader that took over: then there is no figure to report.
    figures: Option<Figures>,
    reported: Reported,
    rolled_back: RolledBack,
    /// Until then a host whose connection was lost may come back, before the rollout is told to have ended without it.
    patience: Option<BootTime>,
}

/// Whether those who watch were told how the rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reported {
    No,
    Dark,
}

/// Step 15: whether the order to roll back was used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum RolledBack {
    No,
    /// It is being proposed: how the rollout ends is not known before that is.
    Proposed,
    /// It was not taken, for these reasons.
    Refused(Vec<Blocker>),
}

/// Step 15. "`rollback` above a threshold (default 10 %, at least 2 hosts)": one host in this many.
const FAILED_HOSTS_ONE_IN: usize = 10;
const FAILED_HOSTS_MIN: usize = 2;

impl Closing {
    pub(super) fn new(commitments: Arc<[Commitment]>, now: BootTime) -> Self {
        let secrets = vec![None; commitments.len()];
        Self { commitments, secrets, figures: Figures::new(Some(now)), wait: Wait::NotBegun }
    }

    pub(super) fn done(&self) -> usize {
        self.secrets.iter().flatten().count()
    }

    pub(super) fn has_closed(&self, index: usize) -> bool {
        self.secrets.get(index).is_some_and(Option::is_some)
    }

    /// Why every host counts as closed: its secret, or what it committed to.
    fn closures(&self) -> Secrets {
        let closure = |(secret, commitment): (&Option<Secret>, &Commitment)| match secret {
            Some(secret) => Closure::Revealed(*secret),
            None => Closure::Lapsed(*commitment),
        };
        self.secrets.iter().zip(&*self.commitments).map(closure).collect()
    }
}

impl Switching {
    pub(super) fn new(hosts: usize) -> Self {
        Self { switches: vec![None; hosts], figures: Figures::new(None), wait: Wait::NotBegun }
    }

    pub(super) fn done(&self) -> usize {
        self.switches.iter().filter(|it| matches!(it, Some(Switched::Yes | Switched::BeforeItJoined))).count()
    }
}

impl Opened {
    /// The state of a leader that did not see the rollout being closed.
    pub(super) const fn resumed() -> Self {
        Self::new(None)
    }

    const fn new(figures: Option<Figures>) -> Self {
        Self { figures, reported: Reported::No, rolled_back: RolledBack::No, patience: None }
    }

    /// How long it waits for hosts that may come back.
    pub(super) const fn patience(&self) -> Option<BootTime> {
        self.patience
    }

    /// A later rollout was given up, for these reasons. If it was the rollback, that is how the rollback ended.
    pub(super) fn outlived(mut self, reasons: &[Blocker]) -> Self {
        if self.rolled_back == RolledBack::Proposed {
            self.rolled_back = RolledBack::Refused(reasons.to_vec());
        }
        self
    }
}

impl Fleet {
    /// Step 10: a host is closed, durably, and reveals its secret.
    pub(super) fn closed(
        &mut self,
        index: usize,
        k: RolloutId,
        secret: Secret,
        at: BootTime,
        now: BootTime,
        out: &mut Out,
    ) {
        if self.record.phase.opening().is_some_and(|opening| opening.k == k) {
            // It was silent until the others had opened, and has caught up now.
            self.has_closed(index, k);
            self.reconcile(index, out);
            return;
        }
        if self.under_way(k).is_none() {
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
        closing.figures.closed(boot, at);
        let done = closing.done();
        self.has_closed(index, k);
        reached(k, Stage::Closed, Some(&self.hosts[index].name), done, out);
        self.open_if_closed(now, out);
    }

    fn has_closed(&mut self, index: usize, k: RolloutId) {
        let host = &mut self.hosts[index];
        host.set_mode(HostMode::Closed(k));
        host.serves(None);
    }

    /// Step 11. What was decided is durable: silent hosts have `W` from now on.
    pub(super) fn wait_begun(&mut self, now: BootTime) {
        let timing = self.roster.policy().timing;
        match &mut self.progress {
            Progress::Closing(closing) => closing.wait.begin(now, timing),
            // The deadlines of hosts that were not told the decision end before the instant, which is still to come.
            Progress::Switching(switching) => switching.wait.begin(now.after(self.limits.fast_lead), timing),
            Progress::None
            | Progress::Gathering(_)
            | Progress::Attesting(_)
            | Progress::Preparing(_)
            | Progress::Probing(_)
            | Progress::Arming(_)
            | Progress::Opening(_) => {}
        }
    }

    /// Step 11: the wait may be over.
    pub(super) fn waited(&mut self, now: BootTime, out: &mut Out) {
        match &self.progress {
            Progress::Closing(_) => self.open_if_closed(now, out),
            Progress::Switching(_) => self.open_if_switched(now, out),
            Progress::None
            | Progress::Gathering(_)
            | Progress::Attesting(_)
            | Progress::Preparing(_)
            | Progress::Probing(_)
            | Progress::Arming(_)
            | Progress::Opening(_) => {}
        }
    }

    /// Step 11. "For each outstanding session: CLOSED, or `W` elapsed."
    ///
    /// P4: and of no more hosts has it only elapsed than the signed order allows. Beyond that the rollout stays in
    /// DECIDED, visibly, until enough hosts have closed.
    fn open_if_closed(&mut self, now: BootTime, out: &mut Out) {
        let Phase::Decided(armament) = &self.record.phase else { return };
        let Progress::Closing(closing) = &mut self.progress else { return };
        let k = armament.rollout.k;
        let silent = closing.secrets.len() - closing.done();
        if silent > 0 {
            let was_over = closing.wait == Wait::Over;
            if !closing.wait.is_over(now) {
                return;
            }
            if silent > armament.rollout.max_lapsed as usize {
                if !was_over {
                    self.report_silent(k, armament.rollout.max_lapsed, out);
                }
                return;
            }
        }
        let (secrets, figures) = (closing.closures(), closing.figures.clone());
        let lapsed = self.hosts.iter().enumerate().filter(|(index, _)| !closing.has_closed(*index));
        let lapsed: BTreeSet<HostName> = lapsed.map(|(_, host)| host.name.clone()).collect();
        let armament = armament.clone();
        reached(k, Stage::Closed, None, self.hosts.len() - lapsed.len(), out);
        self.open_fleet(armament, secrets, lapsed, figures, out);
        for index in 0..self.hosts.len() {
            // Why it did not open another release says nothing about this one, and is no answer to be waited for.
            self.hosts[index].trouble.clear();
            self.reconcile(index, out);
        }
        self.report_if_halted(k, out);
    }

    /// A fleet that was halted after the decision has closed, and opens nothing.
    fn report_if_halted(&mut self, k: RolloutId, out: &mut Out) {
        if self.record.halted.is_none() {
            return;
        }
        for index in 0..self.hosts.len() {
            let detail = format!(
                "the fleet was halted while rollout {k} was completed: it has closed and does not open"
            );
            self.trouble(index, Code::Halted, detail);
        }
        self.report_if_all_answered(out);
    }

    fn report_silent(&self, k: RolloutId, max_lapsed: u32, out: &mut Out) {
        let Progress::Closing(closing) = &self.progress else { return };
        let silent = self.hosts.iter().enumerate().filter(|(index, _)| !closing.has_closed(*index));
        let blockers = silent.map(|(_, host)| {
            let detail = format!(
                "it has not closed, and the order lets the others open over at most {max_lapsed} such hosts"
            );
            Blocker::host(Code::ClosingUnproven, &host.name, detail)
        });
        out.effects.push(Effect::Report(Report::Trouble { k, blockers: blockers.collect() }));
    }

    /// Step 14: a host flipped at the instant.
    fn has_switched(&mut self, index: usize, at: BootTime, now: BootTime, out: &mut Out) {
        let boot = self.hosts[index].session.as_ref().map(|session| session.boot_id.clone());
        let epoch = self.epoch_to_come();
        let Progress::Switching(switching) = &mut self.progress else { return };
        if switching.switches[index] != Some(Switched::Yes) {
            switching.switches[index] = Some(Switched::Yes);
            switching.figures.opened(boot, at, now);
        }
        let host = &mut self.hosts[index];
        host.trouble.clear();
        host.set_mode(HostMode::Serve(epoch));
        host.serves(Some(epoch));
        if self.record.joining.remove(&host.name) {
            out.record_changed = true;
        }
        self.open_if_switched(now, out);
    }

    /// Step 14: a host that was told the decision says that it cannot flip.
    pub(super) fn will_not_switch(&mut self, index: usize, now: BootTime, out: &mut Out) {
        let Progress::Switching(switching) = &mut self.progress else { return };
        switching.switches[index].get_or_insert(Switched::No);
        self.open_if_switched(now, out);
    }

    /// Step 14: once every host has flipped, or can only have fenced.
    fn open_if_switched(&mut self, now: BootTime, out: &mut Out) {
        let Phase::Decided(armament) = &self.record.phase else { return };
        let Progress::Switching(switching) = &mut self.progress else { return };
        if switching.switches.iter().any(Option::is_none) && !switching.wait.is_over(now) {
            return;
        }
        if switching.done() == 0 && !switching.wait.is_over(now) {
            // Those that were not heard may have.
            return;
        }
        let (armament, switching) = (armament.clone(), switching.clone());
        self.open_fleet(armament, Secrets::default(), BTreeSet::new(), switching.figures, out);
        for (index, switched) in switching.switches.into_iter().enumerate() {
            // A host of which neither was heard will say what it did; one that is away, when it returns. One that is
            // told to open although it serves measures again.
            if self.hosts[index].serving().is_none() || switched == Some(Switched::BeforeItJoined) {
                self.reconcile(index, out);
            }
        }
    }

    /// Step 14: a host joins that flipped at the instant while nobody heard it.
    pub(super) fn had_switched(&mut self, index: usize, now: BootTime, out: &mut Out) {
        self.has_switched(index, now, now, out);
        if let Progress::Switching(switching) = &mut self.progress {
            switching.switches[index] = Some(Switched::BeforeItJoined);
        }
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
        if matches!(self.progress, Progress::Switching(_)) && epoch == self.epoch_to_come() {
            return self.has_switched(index, at, now, out);
        }
        if epoch != self.record.epoch {
            let detail =
                format!("it says that it serves epoch {epoch}; the fleet is at {}", self.record.epoch);
            self.trouble(index, Code::StaleEpoch, detail);
            return;
        }
        let host = &mut self.hosts[index];
        host.trouble.clear();
        host.was_resumed();
        match host.mode() {
            // It has armed since it began to serve this epoch.
            Some(HostMode::Armed(_, armed_at)) if armed_at == epoch => {}
            Some(HostMode::Armed(..) | HostMode::Serve(_) | HostMode::Closed(_)) | None => {
                host.set_mode(HostMode::Serve(epoch));
            }
        }
        host.serves(Some(epoch));
        host.has_membership(Membership::Member);
        if self.record.joining.remove(&host.name) {
            out.record_changed = true;
        }
        let boot = host.session.as_ref().map(|session| session.boot_id.clone());
        let opened =
            if let Progress::Opening(it) = &mut self.progress { Some(it) } else { self.set_aside.as_mut() };
        if let Some(figures) = opened.and_then(|opened| opened.figures.as_mut()) {
            figures.opened(boot, at, now);
        }
        if let Phase::Opened(opening) = &self.record.phase {
            let done = self.hosts.iter().filter(|host| host.serving() == Some(epoch)).count();
            reached(opening.k, Stage::Serving, Some(&self.hosts[index].name), done, out);
        }
    }

    /// Step 13. "All N SERVING and measured: SETTLED."
    ///
    /// In fast mode a host may have measured before the last one has flipped.
    pub(super) fn measured(&mut self, index: usize, epoch: Epoch, out: &mut Out) {
        let is_switching = matches!(self.progress, Progress::Switching(_));
        let awaited = if is_switching { self.epoch_to_come() } else { self.record.epoch };
        let host = &mut self.hosts[index];
        if epoch != awaited || host.serving() != Some(epoch) {
            return;
        }
        host.measured = Some(epoch);
        // In fast mode it may have been told to close before it could say that it had flipped, and have refused that.
        host.trouble.clear();
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
            Progress::Opening(Opened { figures: Some(figures), .. }) => figures.dark_window(),
            Progress::Opening(Opened { figures: None, .. })
            | Progress::None
            | Progress::Gathering(_)
            | Progress::Attesting(_)
            | Progress::Preparing(_)
            | Progress::Probing(_)
            | Progress::Arming(_)
            | Progress::Closing(_)
            | Progress::Switching(_) => None,
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
            self.roll_back_if_many_fail(out);
            self.report_if_all_answered(out);
        }
    }

    /// Step 15. "`on_failure` says `hold` or `rollback` above a threshold, and only if the rollback's own gate is open."
    fn roll_back_if_many_fail(&mut self, out: &mut Out) {
        // What somebody has halted did not fail, and must not be resumed by an order that was signed before.
        if self.can_resume() {
            return;
        }
        let Phase::Opened(Opening { contingency: Some(papers), .. }) = &self.record.phase else { return };
        let Progress::Opening(opened) = &mut self.progress else { return };
        let (epoch, joining) = (self.record.epoch, &self.record.joining);
        // Who came with a removal was not asked whether it has the release.
        let fails = |host: &&super::Host| {
            let is_new = joining.contains(&host.name);
            host.session.is_some() && !is_new && host.serving() != Some(epoch) && !host.trouble.is_empty()
        };
        let failed = self.hosts.iter().filter(fails).count();
        let threshold = self.hosts.len().div_ceil(FAILED_HOSTS_ONE_IN).max(FAILED_HOSTS_MIN);
        if failed >= threshold && opened.rolled_back == RolledBack::No {
            opened.rolled_back = RolledBack::Proposed;
            out.effects.push(Effect::RollBack(*papers));
        }
    }

    /// Step 11. "Compare-and-swap to OPENED(k, e+1) with evidence for each host and the list of offers."
    fn open_fleet(
        &mut self,
        armament: Armament,
        secrets: Secrets,
        lapsed: BTreeSet<HostName>,
        figures: Figures,
        out: &mut Out,
    ) {
        let Armament { rollout, evidence, instant: _ } = armament;
        let bytes = secrets.as_bytes().to_vec();
        let k = rollout.k;
        let opening = Opening {
            k,
            papers: rollout.papers,
            evidence,
            secrets: Self::keep_document(bytes, out),
            mode: rollout.mode,
            lapsed,
            contingency: rollout.contingency,
        };
        self.secrets = secrets;
        self.record.epoch = self.record.epoch.next();
        // A fleet that resumes what it served can still be rolled back to what was served before that.
        if self.record.serving != Some(rollout.to) {
            self.record.previous = self.record.serving.replace(rollout.to);
        }
        // Only an order that is newer than the halt ends it.
        self.record.halted.take_if(|halted| *halted < k);
        // "OPENED lists whom it offers." Nothing was offered to a host whose lease has lapsed: until something is, that
        // is evidence enough for removing it. An offer is recorded before it is sent.
        self.record.offers = match rollout.mode {
            FlipMode::Strict => {
                let is_offered = |name: &&HostName| !opening.lapsed.contains(*name) && !self.is_leaving(name);
                let names = self.hosts.iter().map(|host| &host.name);
                Offers::Only(names.filter(is_offered).cloned().collect())
            }
            // Who leaves was dark before this was carried on, or it would not be known that the fleet may be.
            FlipMode::Fast if self.coming.is_some() => {
                let stays = self.hosts.iter().filter(|host| !self.is_leaving(&host.name));
                Offers::Only(stays.map(|host| host.name.clone()).collect())
            }
            FlipMode::Fast => Offers::All,
        };
        self.record.phase = Phase::Opened(opening);
        out.record_changed = true;
        self.no_leases();
        self.progress = Progress::Opening(Opened::new(Some(figures)));
        self.set_aside = None;
        reached(k, Stage::Opened, None, self.hosts.len(), out);
    }

    /// Step 15. "A rollback that is refused leaves e+1 serving."
    pub(super) fn rollback_refused(&mut self, refusal: Refusal, out: &mut Out) {
        if let Progress::Opening(opened) = &mut self.progress
            && opened.rolled_back == RolledBack::Proposed
        {
            opened.rolled_back = RolledBack::Refused(refusal.blockers);
            self.report_if_all_answered(out);
        }
    }

    /// A host's connection was lost while the fleet opens: it may be back soon.
    pub(super) fn lost_while_completing(&mut self, index: usize, now: BootTime, out: &mut Out) {
        let Some(k) = self.completing() else { return };
        let blockers = vec![gate::missing(&self.hosts[index].name)];
        out.effects.push(Effect::Report(Report::Trouble { k, blockers }));
        if let Progress::Opening(opened) = &mut self.progress {
            opened.patience.get_or_insert(now.after(self.roster.policy().timing.wait()));
        }
    }

    /// Whoever is away now is not waited for any longer.
    pub(super) fn patience_over(&mut self, out: &mut Out) {
        if let Progress::Opening(opened) = &mut self.progress {
            opened.patience = None;
            self.report_if_all_answered(out);
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
                [] if host.session.is_some() || opened.patience.is_some() => return,
                [] => blockers.push(gate::missing(&host.name)),
                trouble => blockers.extend(trouble.iter().cloned()),
            }
        }
        match &opened.rolled_back {
            RolledBack::Proposed => return,
            RolledBack::Refused(reasons) => blockers.extend(reasons.iter().cloned()),
            RolledBack::No => {}
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
