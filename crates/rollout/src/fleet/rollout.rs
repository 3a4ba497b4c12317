//! Steps 4 to 7 and 9: from the hosts' nonces to their evidence, and giving up before the decision.

use std::sync::Arc;

use muster_model::{
    Attestation, Blocker, BootTime, Code, Commitment, Digest, Documents, FlipMode, HostMode, MerkleTree,
    Nonce, Purpose, Refusal, RolloutId, Secrets, ToHost, Verified,
};

use super::arm::{Arming, Preparing, Probing};
use super::flip::{Closing, Opened, Switching};
use super::record::{Armament, Base, Offers, Papers, Phase};
use super::{Effect, End, Fleet, Inheritance, Out, Outcome, Report, Stage};
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
    /// Step 7, phase PREPARING: every host answers soon enough.
    Probing(Probing),
    /// Steps 7 to 9, phase ARMING.
    Arming(Arming),
    /// Steps 10 and 11, phase DECIDED in strict mode.
    Closing(Closing),
    /// Step 14, phase DECIDED in fast mode.
    Switching(Switching),
    /// Steps 12 and 13, phase OPENED.
    Opening(Opened),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Gathering {
    pub(super) nonces: Vec<Option<Nonce>>,
    pub(super) deadline: BootTime,
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

impl Progress {
    pub(super) const fn deadline(&self) -> Option<BootTime> {
        match self {
            Self::Gathering(it) => Some(it.deadline),
            Self::Attesting(it) => Some(it.deadline),
            Self::Preparing(it) => Some(it.deadline),
            Self::Probing(it) => Some(it.deadline),
            Self::Arming(it) => Some(it.deadline),
            Self::Closing(it) => it.wait.deadline(),
            Self::Switching(it) => it.wait.deadline(),
            Self::Opening(it) => it.patience(),
            Self::None => None,
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
            // "If phase = DECIDED, restart the full W." Forward only: hosts are told when they join.
            Phase::Decided(armament) => {
                self.progress = match armament.rollout.mode {
                    FlipMode::Strict => Progress::Closing(Closing::new(commitments.into(), now)),
                    FlipMode::Fast => Progress::Switching(Switching::new(self.hosts.len())),
                };
                out.effects.push(Effect::BeginWait);
            }
            Phase::Opened(_) => self.progress = Progress::Opening(Opened::resumed()),
        }
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

    /// A host gives a reason why it does not go on.
    pub(super) fn refused(
        &mut self,
        index: usize,
        k: Option<RolloutId>,
        refusal: Refusal,
        now: BootTime,
        out: &mut Out,
    ) {
        if refusal.code() == Some(Code::WrongState) && self.is_past(index) {
            // What it was told had crossed with what it said itself: it has done more than that.
            return;
        }
        let host = self.hosts[index].name.clone();
        let blockers: Vec<Blocker> =
            refusal.blockers.iter().map(|blocker| gate::at_host(blocker, &host)).collect();
        match (&self.progress, k.and_then(|k| self.under_way(k))) {
            (Progress::Gathering(_), Some(_)) => self.abort_with(blockers, out),
            (Progress::Attesting(_), Some((k, _))) => {
                self.cannot_attest(index, k, Refusal { blockers }, now, out)
            }
            (Progress::Preparing(_) | Progress::Probing(_) | Progress::Arming(_), Some(_)) => {
                self.abort_with(blockers, out);
            }
            (Progress::Switching(_), Some(_)) => {
                self.hosts[index].trouble = blockers;
                self.trouble_while_opening(index, out);
                self.will_not_switch(index, now, out);
            }
            (Progress::None | Progress::Closing(_) | Progress::Opening(_), _) | (_, None) => {
                self.hosts[index].trouble = blockers;
                self.trouble_while_opening(index, out);
            }
        }
    }

    /// Whether a host has measured what the rollout leads to that is completed, or was last, and nothing is asked of it since.
    fn is_past(&self, index: usize) -> bool {
        let epoch = match &self.progress {
            Progress::None | Progress::Opening(_) => self.record.epoch,
            Progress::Switching(_) => self.epoch_to_come(),
            Progress::Gathering(_)
            | Progress::Attesting(_)
            | Progress::Preparing(_)
            | Progress::Probing(_)
            | Progress::Arming(_)
            | Progress::Closing(_) => return false,
        };
        self.hosts[index].measured == Some(epoch)
    }

    /// A session has ended: before the decision that gives the rollout up.
    pub(super) fn lost(&mut self, index: usize, now: BootTime, out: &mut Out) {
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
            | Progress::Probing(_)
            | Progress::Arming(_) => {
                self.abort_with(vec![blocker], out);
            }
            Progress::Closing(_) | Progress::Switching(_) | Progress::Opening(_) => {
                self.lost_while_completing(index, now, out);
            }
            Progress::None => {}
        }
    }

    /// A step took longer than it may.
    pub(super) fn deadline_reached(&mut self, now: BootTime, out: &mut Out) {
        if self.progress.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let blockers = match &self.progress {
            Progress::Gathering(it) => {
                self.late(Code::HostSilent, "answer the proposal in time", |index| it.nonces[index].is_some())
            }
            Progress::Attesting(it) => self.judge(it),
            Progress::Preparing(_) | Progress::Probing(_) | Progress::Arming(_) => self.too_slow(),
            Progress::Closing(_) | Progress::Switching(_) => return self.waited(now, out),
            Progress::Opening(_) => return self.patience_over(out),
            Progress::None => return,
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
            Base::Opened(_) => {
                let opened = self.set_aside.take().unwrap_or_else(Opened::resumed);
                Progress::Opening(opened.outlived(&blockers))
            }
        };
        self.record.phase = base.into();
        self.record.offers = Offers::All;
        out.record_changed = true;
        // Until when an armed host may serve is kept until it says that it is disarmed: it may not have heard.
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
    pub(super) fn under_way(&self, k: RolloutId) -> Option<(RolloutId, Digest)> {
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
            mode: rollout.mode,
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
        let words = match self.words() {
            Ok(words) => words.iter().flat_map(|word| [*word, "\n"]).collect::<String>(),
            Err(missing) => return self.abort_with(missing, out),
        };
        let mut evidence = Vec::new();
        let mut commitments = Vec::with_capacity(attesting.answers.len());
        for answer in attesting.answers.into_iter().flatten() {
            let HostAnswer::Attested { attestation, envelope } = answer else { return };
            let Purpose::Rollout { commitment, .. } = attestation.purpose else { return };
            commitments.push(commitment);
            evidence.extend_from_slice(&envelope);
            evidence.push(b'\n');
        }
        evidence.extend_from_slice(words.as_bytes());
        reached(k, Stage::Attested, None, commitments.len(), out);
        let evidence = Self::keep_document(evidence, out);
        let documents = Documents { order, release, roster, evidence };
        self.broadcast(&ToHost::Prepare { k, epoch: self.epoch_to_come(), documents }, out);
        self.progress = Progress::Preparing(Preparing {
            evidence,
            commitments: commitments.into(),
            prepared: vec![false; self.hosts.len()],
            deadline: now.after(self.limits.prepare),
        });
    }
}

impl Inheritance {
    /// What a fleet without any history inherits.
    #[must_use]
    pub fn none(roster: Arc<Verified<muster_model::Roster>>) -> Self {
        Self {
            roster,
            coming: None,
            sessions: Vec::new(),
            withdrawals: Vec::new(),
            commitments: Vec::new(),
            secrets: Secrets::default(),
        }
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
