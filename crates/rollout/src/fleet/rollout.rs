//! Steps 4 to 9: from a proposal to the decision, and giving up before it.

use std::sync::Arc;

use muster_model::{
    Attestation, Blocker, BootTime, Code, Commitment, Digest, Documents, FlipMode, HostMode, MerkleTree,
    Nonce, OnFailure, Order, Purpose, Refusal, RolloutId, Secrets, ToHost, Verified,
};

use super::flip::{Closing, Opened};
use super::record::{Armament, Base, Identity, Offers, Papers, Phase, Rollout, is_bound_to};
use super::{Effect, End, Fleet, Inheritance, Out, Outcome, Proposal, Report, Stage, Step};
use crate::gate::{self, Answer, Question};

/// What is gathered for the phase that the record is in. Volatile: a new leader begins without it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Progress {
    /// Nothing is under way.
    None,
    /// Step 4, phase PREPARING: every host's fresh nonce.
    Gathering(Gathering),
    /// Step 5, phase PREPARING: every host's attestation.
    Attesting(Attesting),
    /// Step 7, phase PREPARING: every host has verified and sealed.
    Preparing(Preparing),
    /// Step 7, phase ARMING.
    Arming(Arming),
    /// Steps 10 and 11, phase DECIDED.
    Closing(Closing),
    /// Steps 12 and 13, phase OPENED.
    Opening(Opened),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Gathering {
    nonces: Vec<Option<Nonce>>,
    deadline: BootTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Attesting {
    nonce_root: Digest,
    answers: Vec<Option<HostAnswer>>,
    deadline: BootTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum HostAnswer {
    Attested { attestation: Box<Verified<Attestation>>, envelope: Arc<[u8]> },
    Refused(Vec<Blocker>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Preparing {
    evidence: Digest,
    commitments: Arc<[Commitment]>,
    prepared: Vec<bool>,
    deadline: BootTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Arming {
    commitments: Arc<[Commitment]>,
    armed: Vec<bool>,
    deadline: BootTime,
}

impl Gathering {
    pub(super) fn done(&self) -> usize {
        self.nonces.iter().flatten().count()
    }
}

impl Attesting {
    pub(super) fn done(&self) -> usize {
        self.answers.iter().flatten().count()
    }
}

impl Preparing {
    pub(super) fn done(&self) -> usize {
        count(&self.prepared)
    }
}

impl Arming {
    pub(super) fn done(&self) -> usize {
        count(&self.armed)
    }
}

impl Progress {
    pub(super) const fn deadline(&self) -> Option<BootTime> {
        match self {
            Self::Gathering(it) => Some(it.deadline),
            Self::Attesting(it) => Some(it.deadline),
            Self::Preparing(it) => Some(it.deadline),
            Self::Arming(it) => Some(it.deadline),
            Self::None | Self::Closing(_) | Self::Opening(_) => None,
        }
    }
}

impl Fleet {
    /// Step 1: what a new leader does about the phase that it finds.
    pub(super) fn resume(&mut self, commitments: Vec<Commitment>, now: BootTime, out: &mut Out) {
        match self.record.phase.clone() {
            Phase::Settled => {}
            Phase::Preparing(_) | Phase::Arming(_) => {
                let detail = "the coordinator was restarted before the rollout was decided";
                self.abort_with(vec![Blocker::fleet(Code::CoordinatorRestarted, detail)], out);
            }
            // "If phase = DECIDED ... forward only." Hosts are told to close when they join.
            Phase::Decided(_) => self.progress = Progress::Closing(Closing::new(commitments.into(), now)),
            Phase::Opened(_) => self.progress = Progress::Opening(Opened::resumed()),
        }
    }

    /// Step 4. "Propose, at `flip`, legal in SETTLED and OPENED: signed order; PREPARING(k) durable."
    pub fn propose(&mut self, proposal: &Proposal, now: BootTime) -> Result<Step, Refusal> {
        self.check_proposal(proposal)?;
        let order = &proposal.order;
        let base = match &self.record.phase {
            Phase::Settled => Base::Settled,
            Phase::Opened(opening) => Base::Opened(opening.clone()),
            Phase::Preparing(rollout) => return Err(busy(rollout)),
            Phase::Arming(armament) | Phase::Decided(armament) => return Err(busy(&armament.rollout)),
        };
        let blockers = self.unavailable();
        if !blockers.is_empty() {
            return Err(Refusal { blockers });
        }
        let rollout = Rollout { k: order.counter, to: order.to, papers: proposal.papers, base };
        self.record.last_k = rollout.k;
        let mut out = Out { record_changed: true, ..Out::default() };
        self.broadcast(&ToHost::Propose { k: rollout.k, to: rollout.to }, &mut out);
        reached(rollout.k, Stage::Proposed, None, 0, &mut out);
        self.record.phase = Phase::Preparing(rollout);
        self.progress = Progress::Gathering(Gathering {
            nonces: vec![None; self.hosts.len()],
            deadline: now.after(self.limits.attest),
        });
        Ok(self.step(out))
    }

    /// An operator gives up rollout `k`, or whichever is under way. Legal before DECIDED.
    pub fn abort(&mut self, k: Option<RolloutId>, reason: Blocker) -> Result<(RolloutId, Step), Refusal> {
        let nothing =
            || Refusal::of(Code::NothingToAbort, format!("no rollout of {} is under way", self.record.fleet));
        let rollout = self.record.phase.rollout().ok_or_else(nothing)?;
        let current = rollout.k;
        if k.is_some_and(|k| k != current) {
            let detail = format!("rollout {current} is under way, not the one that was named");
            return Err(Refusal::of(Code::StaleRollout, detail));
        }
        if matches!(self.record.phase, Phase::Decided(_)) {
            let detail = format!(
                "rollout {current} was decided; it can only go forward, or be rolled back afterwards"
            );
            return Err(Refusal::of(Code::Decided, detail));
        }
        let mut out = Out::default();
        self.abort_with(vec![reason], &mut out);
        Ok((current, self.step(out)))
    }

    /// Step 4: a host's nonce. The last one closes the list.
    pub(super) fn fresh(&mut self, index: usize, k: RolloutId, nonce: Nonce, now: BootTime, out: &mut Out) {
        let Some((k, to)) = self.under_way(k) else { return };
        let Progress::Gathering(gathering) = &mut self.progress else { return };
        gathering.nonces[index] = Some(nonce);
        let Some(nonces) = gathering.nonces.iter().copied().collect::<Option<Vec<Nonce>>>() else { return };
        let tree = MerkleTree::new(nonces.iter().map(|nonce| &nonce.as_bytes()[..]));
        let nonce_root = tree.root();
        let answers = vec![None; self.hosts.len()];
        self.progress =
            Progress::Attesting(Attesting { nonce_root, answers, deadline: now.after(self.limits.attest) });
        for index in 0..self.hosts.len() {
            let proof = tree.proof(index).expect("the tree has one leaf for each host");
            self.send(index, ToHost::Attest { k, to, nonce_root, proof }, out);
        }
    }

    /// Step 5: a host's attestation.
    pub(super) fn attested(
        &mut self,
        index: usize,
        k: RolloutId,
        attestation: Verified<Attestation>,
        envelope: Arc<[u8]>,
        now: BootTime,
        out: &mut Out,
    ) {
        self.answered(
            index,
            k,
            HostAnswer::Attested { attestation: Box::new(attestation), envelope },
            now,
            out,
        );
    }

    /// Step 5: a host says why it cannot attest. The others are heard too, so that every reason is told at once.
    pub(super) fn cannot_attest(
        &mut self,
        index: usize,
        k: RolloutId,
        refusal: Refusal,
        now: BootTime,
        out: &mut Out,
    ) {
        self.answered(index, k, HostAnswer::Refused(refusal.blockers), now, out);
    }

    /// Step 7: a host has verified everything and sealed its tree. After the last one: "ARMING(k) durable, then ARM(k)."
    pub(super) fn prepared(&mut self, index: usize, k: RolloutId, now: BootTime, out: &mut Out) {
        let Some((k, _)) = self.under_way(k) else { return };
        let Progress::Preparing(preparing) = &mut self.progress else { return };
        preparing.prepared[index] = true;
        let done = count(&preparing.prepared);
        reached(k, Stage::Prepared, Some(&self.hosts[index].name), done, out);
        if done < self.hosts.len() {
            return;
        }
        let (evidence, commitments) = (preparing.evidence, Arc::clone(&preparing.commitments));
        let Phase::Preparing(rollout) = self.record.phase.clone() else { return };
        reached(k, Stage::Prepared, None, done, out);
        self.record.phase = Phase::Arming(Armament { rollout, evidence });
        out.record_changed = true;
        let armed = vec![false; self.hosts.len()];
        self.progress = Progress::Arming(Arming { commitments, armed, deadline: now.after(self.limits.arm) });
        self.broadcast(&ToHost::Arm { k }, out);
    }

    /// Step 7: a host has armed. Step 9: "All N ARMED on the same sessions: DECIDED(k)."
    ///
    /// The sessions are the same, because a session that ends before the decision gives the rollout up.
    pub(super) fn armed(&mut self, index: usize, k: RolloutId, now: BootTime, out: &mut Out) {
        // Also of a rollout that was given up meanwhile: OPEN needs the host's last k.
        self.hosts[index].has_armed(k);
        if self.under_way(k).is_none() {
            return;
        }
        let Progress::Arming(arming) = &mut self.progress else { return };
        arming.armed[index] = true;
        let done = count(&arming.armed);
        let commitments = Arc::clone(&arming.commitments);
        reached(k, Stage::Armed, Some(&self.hosts[index].name), done, out);
        if done < self.hosts.len() {
            return;
        }
        let Phase::Arming(armament) = self.record.phase.clone() else { return };
        reached(k, Stage::Armed, None, done, out);
        self.record.phase = Phase::Decided(armament);
        out.record_changed = true;
        self.progress = Progress::Closing(Closing::new(commitments, now));
        reached(k, Stage::Decided, None, done, out);
        self.broadcast(&ToHost::Close { k }, out);
    }

    /// A host gives a reason why it does not go on.
    pub(super) fn refused(
        &mut self,
        index: usize,
        k: Option<RolloutId>,
        refusal: Refusal,
        now: BootTime,
        out: &mut Out,
    ) {
        let host = self.hosts[index].name.clone();
        let blockers: Vec<Blocker> =
            refusal.blockers.iter().map(|blocker| gate::at_host(blocker, &host)).collect();
        match (&self.progress, k.and_then(|k| self.under_way(k))) {
            (Progress::Gathering(_), Some(_)) => self.abort_with(blockers, out),
            (Progress::Attesting(_), Some((k, _))) => {
                self.cannot_attest(index, k, Refusal { blockers }, now, out)
            }
            (Progress::Preparing(_) | Progress::Arming(_), Some(_)) => self.abort_with(blockers, out),
            (Progress::None | Progress::Closing(_) | Progress::Opening(_), _) | (_, None) => {
                self.hosts[index].trouble = blockers;
                self.trouble_while_opening(index, out);
            }
        }
    }

    /// A session has ended: before the decision that gives the rollout up.
    pub(super) fn lost(&mut self, index: usize, out: &mut Out) {
        let host = &self.hosts[index].name;
        let blocker = Blocker::host(
            Code::SessionLost,
            host,
            "its connection was lost while the rollout depended on it",
        );
        match &self.progress {
            Progress::Gathering(_)
            | Progress::Attesting(_)
            | Progress::Preparing(_)
            | Progress::Arming(_) => {
                self.abort_with(vec![blocker], out);
            }
            Progress::Closing(_) | Progress::Opening(_) => {
                if let Some(k) = self.completing() {
                    out.effects
                        .push(Effect::Report(Report::Trouble { k, blockers: vec![gate::missing(host)] }));
                }
            }
            Progress::None => {}
        }
    }

    /// A step took longer than it may.
    pub(super) fn deadline_reached(&mut self, now: BootTime, out: &mut Out) {
        if self.progress.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let silent = |done: &dyn Fn(usize) -> bool, code, what: &str| -> Vec<Blocker> {
            let late = self.hosts.iter().enumerate().filter(|(index, _)| !done(*index));
            late.map(|(_, host)| Blocker::host(code, &host.name, format!("it did not {what} in time")))
                .collect()
        };
        let blockers = match &self.progress {
            Progress::Gathering(it) => {
                silent(&|i| it.nonces[i].is_some(), Code::HostSilent, "answer the proposal")
            }
            Progress::Attesting(it) => self.judge(it),
            Progress::Preparing(it) => silent(&|i| it.prepared[i], Code::TimedOut, "prepare"),
            Progress::Arming(it) => silent(&|i| it.armed[i], Code::TimedOut, "arm"),
            Progress::None | Progress::Closing(_) | Progress::Opening(_) => return,
        };
        self.abort_with(blockers, out);
    }

    /// Step 9. "On any time-out or refusal: back to the phase it came from, offers to all; DISARM(k)."
    pub(super) fn abort_with(&mut self, blockers: Vec<Blocker>, out: &mut Out) {
        let (Phase::Preparing(rollout) | Phase::Arming(Armament { rollout, .. })) = &self.record.phase else {
            return;
        };
        let (k, to, base) = (rollout.k, rollout.to, rollout.base.clone());
        self.progress = match base {
            Base::Settled => Progress::None,
            Base::Opened(_) => Progress::Opening(Opened::resumed()),
        };
        self.record.phase = base.into();
        self.record.offers = Offers::All;
        out.record_changed = true;
        self.broadcast(&ToHost::Disarm { k }, out);
        let end =
            End { k, to, outcome: Outcome::Unchanged, epoch: self.record.epoch, blockers, dark_window: None };
        out.effects.push(Effect::Report(Report::Ended(end)));
        self.settle_if_measured(out);
    }

    /// Step 9: a host is back where it was. One that is dark is told what it may serve.
    pub(super) fn disarmed(&mut self, index: usize, k: RolloutId, out: &mut Out) {
        let host = &mut self.hosts[index];
        match host.mode() {
            Some(HostMode::Armed(armed, epoch)) if armed == k => host.set_mode(HostMode::Serve(epoch)),
            Some(HostMode::Serve(_) | HostMode::Armed(..) | HostMode::Closed(_)) | None => {}
        }
        self.reconcile(index, out);
    }

    /// The rollout that can still be given up, if it is `k`.
    fn under_way(&self, k: RolloutId) -> Option<(RolloutId, Digest)> {
        self.record.phase.rollout().filter(|rollout| rollout.k == k).map(|rollout| (rollout.k, rollout.to))
    }

    fn answered(&mut self, index: usize, k: RolloutId, answer: HostAnswer, now: BootTime, out: &mut Out) {
        if self.under_way(k).is_none() {
            return;
        }
        let Progress::Attesting(attesting) = &mut self.progress else { return };
        let is_good = matches!(answer, HostAnswer::Attested { .. });
        attesting.answers[index] = Some(answer);
        let done =
            attesting.answers.iter().filter(|it| matches!(it, Some(HostAnswer::Attested { .. }))).count();
        if is_good {
            reached(k, Stage::Attested, Some(&self.hosts[index].name), done, out);
        }
        if attesting.answers.iter().any(Option::is_none) {
            return;
        }
        let attesting = attesting.clone();
        let blockers = self.judge(&attesting);
        if blockers.is_empty() {
            self.prepare(k, attesting, now, out);
        } else {
            self.abort_with(blockers, out);
        }
    }

    /// Step 6: the gate, on what has been answered so far.
    fn judge(&self, attesting: &Attesting) -> Vec<Blocker> {
        let Some(rollout) = self.record.phase.rollout() else { return Vec::new() };
        let question = Question {
            manifest: rollout.to,
            challenge: Some(attesting.nonce_root),
            rollout: Some(rollout.k),
        };
        gate::evaluate(&self.roster, &question, |index, _| match &attesting.answers[index] {
            Some(HostAnswer::Attested { attestation, .. }) => Answer::Attested(attestation),
            Some(HostAnswer::Refused(blockers)) => Answer::Refused(blockers),
            None if self.hosts[index].session.is_none() => Answer::Missing,
            None => Answer::Silent,
        })
    }

    /// Step 7. "PREPARE: each host verifies release, roster, order, approvals and the N attestations."
    fn prepare(&mut self, k: RolloutId, attesting: Attesting, now: BootTime, out: &mut Out) {
        let Some(rollout) = self.record.phase.rollout() else { return };
        let Papers { order, release, roster } = rollout.papers;
        let mut evidence = Vec::new();
        let mut commitments = Vec::with_capacity(attesting.answers.len());
        for answer in attesting.answers.into_iter().flatten() {
            let HostAnswer::Attested { attestation, envelope } = answer else { return };
            let Purpose::Rollout { commitment, .. } = attestation.purpose else { return };
            commitments.push(commitment);
            evidence.extend_from_slice(&envelope);
            evidence.push(b'\n');
        }
        reached(k, Stage::Attested, None, commitments.len(), out);
        let evidence = Self::keep_document(evidence, out);
        let documents = Documents { order, release, roster, evidence };
        self.broadcast(&ToHost::Prepare { k, epoch: self.record.epoch.next(), documents }, out);
        self.progress = Progress::Preparing(Preparing {
            evidence,
            commitments: commitments.into(),
            prepared: vec![false; self.hosts.len()],
            deadline: now.after(self.limits.prepare),
        });
    }

    fn check_proposal(&self, proposal: &Proposal) -> Result<(), Refusal> {
        let (order, release, record) = (&proposal.order, &proposal.release, &self.record);
        let refuse = |code, detail: String| Err(Refusal::of(code, detail));
        if let Some(blocker) = &self.frozen {
            return Err(Refusal::because(blocker.clone()));
        }
        if let Some(rollout) = self.record.phase.rollout() {
            return Err(busy(rollout));
        }
        if order.fleet != record.fleet || release.fleet != record.fleet || release.manifest != order.to {
            return refuse(Code::OrderInvalid, "the order and the release are not for each other".to_owned());
        }
        if order.counter != record.last_k.next() {
            let detail = format!(
                "the order is for rollout {}, the next one is {}",
                order.counter,
                record.last_k.next()
            );
            return refuse(Code::Superseded, detail);
        }
        if !is_bound_to(order, &record.roster) {
            let detail = format!(
                "the order is for {} hosts of roster revision {}, in force is revision {} with {} hosts",
                order.hosts, order.roster_revision, record.roster.revision, record.roster.hosts
            );
            return refuse(Code::RosterChanged, detail);
        }
        if record.serving == Some(order.to) {
            return refuse(
                Code::AlreadyServing,
                format!("epoch {} serves {} already", record.epoch, order.to),
            );
        }
        if order.from != record.serving {
            let name =
                |digest: Option<Digest>| digest.map_or("nothing".to_owned(), |digest| digest.to_string());
            let detail =
                format!("the order starts from {}, served is {}", name(order.from), name(record.serving));
            return refuse(Code::OrderStale, detail);
        }
        check_validity(order, proposal)?;
        match (order.mode, order.on_failure) {
            (FlipMode::Strict, OnFailure::Hold) => Ok(()),
            (FlipMode::Fast, _) => {
                refuse(Code::Unsupported, "this version flips in strict mode only".to_owned())
            }
            (FlipMode::Strict, OnFailure::Rollback) => {
                refuse(Code::Unsupported, "this version holds when a host fails to start".to_owned())
            }
        }
    }

    /// The hosts that cannot take part, with the reasons.
    fn unavailable(&self) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        for host in &self.hosts {
            let duplicate = host.identity.as_ref().is_some_and(|it| it.identity == Identity::Duplicate);
            if duplicate {
                let detail = "its identity was used by two machines; settle it with `muster host readmit`";
                blockers.push(Blocker::host(Code::DuplicateHost, &host.name, detail));
            } else if host.session.is_none() {
                blockers.push(gate::missing(&host.name));
                blockers.extend(host.trouble.iter().cloned());
            }
        }
        blockers
    }
}

impl Inheritance {
    /// What a fleet without any history inherits.
    #[must_use]
    pub fn none(roster: Arc<Verified<muster_model::Roster>>) -> Self {
        Self { roster, sessions: Vec::new(), commitments: Vec::new(), secrets: Secrets::default() }
    }
}

pub(super) fn reached(
    k: RolloutId,
    stage: Stage,
    host: Option<&muster_model::HostName>,
    done: usize,
    out: &mut Out,
) {
    out.effects.push(Effect::Report(Report::Reached { k, stage, host: host.cloned(), done }));
}

pub(super) fn count(flags: &[bool]) -> usize {
    flags.iter().filter(|flag| **flag).count()
}

fn busy(rollout: &Rollout) -> Refusal {
    Refusal::of(Code::Busy, format!("rollout {} to {} is under way", rollout.k, rollout.to))
}

fn check_validity(order: &Order, proposal: &Proposal) -> Result<(), Refusal> {
    let now = proposal.now;
    if now < order.not_before_unix_ms || now >= order.expires_unix_ms {
        let detail = "the order is not valid at this time; is this machine's clock right?";
        return Err(Refusal::of(Code::OrderExpired, detail));
    }
    if proposal.release.expires_unix_ms.is_some_and(|expiry| now >= expiry) {
        let detail = format!("release {} has expired", proposal.release.version);
        return Err(Refusal::of(Code::ReleaseExpired, detail));
    }
    Ok(())
}
