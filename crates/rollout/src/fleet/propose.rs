//! Step 4: taking an order, and giving a rollout up on an operator's word.

use muster_model::{
    Blocker, BootTime, Code, Digest, FlipMode, OnFailure, Order, OrderKind, Refusal, RolloutId, ToHost,
};

use super::record::{Base, Identity, Phase, Rollout, is_bound_to};
use super::rollout::{Gathering, Progress, reached};
use super::{Fleet, Out, Proposal, Stage, Step};
use crate::gate;

impl Fleet {
    /// Whether a proposal would be taken now.
    pub fn rehearse(&self, proposal: &Proposal) -> Result<(), Refusal> {
        self.base_for(proposal).map(drop)
    }

    /// Step 4. "Propose, at `flip`, legal in SETTLED and OPENED: signed order; PREPARING(k) durable."
    pub fn propose(&mut self, proposal: &Proposal, now: BootTime) -> Result<Step, Refusal> {
        let base = self.base_for(proposal)?;
        let order = &proposal.order;
        let rollout = Rollout {
            k: order.counter,
            to: order.to,
            papers: proposal.papers,
            mode: order.mode,
            max_lapsed: order.max_lapsed,
            contingency: proposal.contingency,
            base,
        };
        self.clock = Some((now, proposal.now));
        self.record.last_k = rollout.k;
        let mut out = Out { record_changed: true, ..Out::default() };
        self.broadcast(&ToHost::Propose { k: rollout.k, to: rollout.to }, &mut out);
        reached(rollout.k, Stage::Proposed, None, 0, &mut out);
        self.record.phase = Phase::Preparing(rollout);
        let gathering =
            Gathering { nonces: vec![None; self.hosts.len()], deadline: now.after(self.limits.attest) };
        let before = std::mem::replace(&mut self.progress, Progress::Gathering(gathering));
        self.set_aside = if let Progress::Opening(opened) = before { Some(opened) } else { None };
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

    /// What a rollout to `proposal` would start from and fall back to.
    fn base_for(&self, proposal: &Proposal) -> Result<Base, Refusal> {
        self.check_not_ahead()?;
        let base = match &self.record.phase {
            Phase::Settled => Base::Settled,
            Phase::Opened(opening) => Base::Opened(Box::new(opening.clone())),
            Phase::Preparing(rollout) => return Err(busy(rollout)),
            Phase::Arming(armament) | Phase::Decided(armament) => return Err(busy(&armament.rollout)),
        };
        self.check_proposal(proposal)?;
        let mut blockers = self.unavailable();
        blockers.extend(self.unfinished_change());
        blockers.extend(self.unproven());
        if blockers.is_empty() { Ok(base) } else { Err(Refusal { blockers }) }
    }

    fn check_proposal(&self, proposal: &Proposal) -> Result<(), Refusal> {
        let (order, release, record) = (&proposal.order, &proposal.release, &self.record);
        let refuse = |code, detail: String| Err(Refusal::of(code, detail));
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
        if record.serving == Some(order.to) && !(order.kind == OrderKind::Resume && self.can_resume()) {
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
        match (order.on_failure, proposal.contingency) {
            (OnFailure::Hold, None) | (OnFailure::Rollback, Some(_)) => {}
            (OnFailure::Hold, Some(_)) | (OnFailure::Rollback, None) => {
                let detail =
                    "an order that rolls back by itself comes with the signed order to do so, no other does";
                return refuse(Code::OrderInvalid, detail.to_owned());
            }
        }
        if order.mode == FlipMode::Fast && matches!(record.phase, Phase::Opened(_)) {
            let detail = "hosts are still to open; only a settled fleet can flip at an instant";
            return refuse(Code::Busy, detail.to_owned());
        }
        Ok(())
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
            } else {
                blockers.extend(self.untold(&host.name));
            }
            blockers.extend(host.broken_glass());
        }
        blockers
    }
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
