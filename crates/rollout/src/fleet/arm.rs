//! Steps 7 to 9: arming all hosts or none, renewing their leases, and the decision.

use std::sync::Arc;
use std::time::Duration;

use muster_model::{
    Blocker, BootTime, Code, Commitment, Digest, Epoch, FlipMode, HostMode, RolloutId, SessionId, ToHost,
    UnixTime,
};

use super::flip::{Closing, Switching};
use super::record::{Armament, Offers, Phase};
use super::rollout::{Progress, count, reached};
use super::{Effect, Fleet, Out, Stage};

/// Step 7, phase PREPARING: every host has verified and sealed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Preparing {
    pub(super) evidence: Digest,
    pub(super) commitments: Arc<[Commitment]>,
    pub(super) prepared: Vec<bool>,
    pub(super) deadline: BootTime,
}

/// Step 7, still in phase PREPARING: every host answers soon enough.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Probing {
    evidence: Digest,
    commitments: Arc<[Commitment]>,
    pub(super) answered: Vec<bool>,
    pub(super) deadline: BootTime,
}

/// Step 7, phase ARMING.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Arming {
    commitments: Arc<[Commitment]>,
    pub(super) armed: Vec<bool>,
    pub(super) deadline: BootTime,
    renewals: Renewals,
}

/// Step 8: requests that wait for the read that covers them, and those that one is under way for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Renewals {
    reads: u64,
    waiting: Vec<Request>,
    /// Empty if no read is under way.
    reading: Vec<Request>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Request {
    index: usize,
    session: SessionId,
    n: u64,
}

impl Fleet {
    /// Step 7: a host has verified everything and sealed its tree. After the last one all are asked to answer at once.
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
        reached(k, Stage::Prepared, None, done, out);
        // "Renewals' p99 below D/3 ... all streams healthy": of N hosts that all must answer the slowest counts.
        let deadline = now.after(self.roster.policy().timing.renewal());
        let answered = vec![false; self.hosts.len()];
        self.progress = Progress::Probing(Probing { evidence, commitments, answered, deadline });
        self.broadcast(&ToHost::Probe { k }, out);
    }

    /// Step 7: a host answers soon enough. After the last one: "ARMING(k) durable, then ARM(k)."
    pub(super) fn probed(&mut self, index: usize, k: RolloutId, now: BootTime, out: &mut Out) {
        let Some((k, _)) = self.under_way(k) else { return };
        let Progress::Probing(probing) = &mut self.progress else { return };
        if now > probing.deadline {
            return self.deadline_reached(now, out);
        }
        probing.answered[index] = true;
        let done = count(&probing.answered);
        if done < self.hosts.len() {
            return;
        }
        let (evidence, commitments) = (probing.evidence, Arc::clone(&probing.commitments));
        let Phase::Preparing(rollout) = self.record.phase.clone() else { return };
        reached(k, Stage::Probed, None, done, out);
        let (instant, deadline) = match rollout.mode {
            FlipMode::Strict => (None, now.after(self.limits.arm)),
            FlipMode::Fast => {
                // "No DECIDE later than T−ε−margin": a quarter of the lead is left for telling it to all.
                let decide_by = self.limits.fast_lead.mul_f32(0.75).min(self.limits.arm);
                (self.unix_after(now, self.limits.fast_lead), now.after(decide_by))
            }
        };
        self.record.phase = Phase::Arming(Armament { rollout, evidence, instant });
        out.record_changed = true;
        let armed = vec![false; self.hosts.len()];
        let renewals = Renewals::default();
        self.progress = Progress::Arming(Arming { commitments, armed, deadline, renewals });
        self.broadcast(&ToHost::Arm { k, instant }, out);
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
        if now > arming.deadline {
            return self.deadline_reached(now, out);
        }
        arming.armed[index] = true;
        let done = count(&arming.armed);
        let commitments = Arc::clone(&arming.commitments);
        self.leased_until(index, now);
        reached(k, Stage::Armed, Some(&self.hosts[index].name), done, out);
        if done < self.hosts.len() {
            return;
        }
        let Phase::Arming(armament) = self.record.phase.clone() else { return };
        let mode = armament.rollout.mode;
        reached(k, Stage::Armed, None, done, out);
        self.record.phase = Phase::Decided(armament);
        out.record_changed = true;
        reached(k, Stage::Decided, None, done, out);
        match mode {
            FlipMode::Strict => {
                self.progress = Progress::Closing(Closing::new(commitments, now));
                self.broadcast(&ToHost::Close { k }, out);
            }
            FlipMode::Fast => {
                // A host that was told the decision serves without a lease from the instant on.
                self.record.offers = Offers::All;
                self.progress = Progress::Switching(Switching::new(self.hosts.len()));
                self.broadcast(&ToHost::Set { k }, out);
            }
        }
        out.effects.push(Effect::BeginWait);
    }

    /// Step 8. "The coordinator batches requests and does one linearizable read begun after receipt."
    pub(super) fn renew(&mut self, index: usize, k: RolloutId, n: u64, out: &mut Out) {
        if self.under_way(k).is_none() {
            return;
        }
        let Some(session) = self.hosts[index].session.as_ref().map(|session| session.id) else { return };
        let Progress::Arming(arming) = &mut self.progress else { return };
        let renewals = &mut arming.renewals;
        // Only a host's latest request can be granted, so there is never more than one of it.
        renewals.waiting.retain(|request| request.index != index);
        renewals.waiting.push(Request { index, session, n });
        if renewals.reading.is_empty() {
            renewals.read(out);
        }
    }

    /// Step 8: "I lead, phase is ARMING, k is mine" held at a read that was begun after these requests came. P5.
    pub(super) fn lead_confirmed(&mut self, read: u64, now: BootTime, out: &mut Out) {
        let Phase::Arming(armament) = &self.record.phase else { return };
        let k = armament.rollout.k;
        let Progress::Arming(arming) = &mut self.progress else { return };
        let renewals = &mut arming.renewals;
        if renewals.reads != read {
            return;
        }
        let granted = std::mem::take(&mut renewals.reading);
        if !renewals.waiting.is_empty() {
            renewals.read(out);
        }
        for Request { index, session, n } in granted {
            let is_current = self.hosts[index].session.as_ref().is_some_and(|it| it.id == session);
            if is_current {
                self.leased_until(index, now);
                self.send(index, ToHost::Grant { k, n }, out);
            }
        }
    }

    /// Step 7: who has not answered, or not armed, in time.
    pub(super) fn too_slow(&self) -> Vec<Blocker> {
        match &self.progress {
            Progress::Probing(it) => {
                self.late(Code::RenewalsSlow, "answer fast enough to renew a lease", |index| {
                    it.answered[index]
                })
            }
            Progress::Preparing(it) => {
                self.late(Code::TimedOut, "prepare in time", |index| it.prepared[index])
            }
            Progress::Arming(it) => self.late(Code::TimedOut, "arm in time", |index| it.armed[index]),
            Progress::None
            | Progress::Gathering(_)
            | Progress::Attesting(_)
            | Progress::Closing(_)
            | Progress::Switching(_)
            | Progress::Opening(_) => Vec::new(),
        }
    }

    /// A blocker for each host that has not `done` what it should have.
    pub(super) fn late(&self, code: Code, what: &str, done: impl Fn(usize) -> bool) -> Vec<Blocker> {
        let late = self.hosts.iter().enumerate().filter(|(index, _)| !done(*index));
        late.map(|(_, host)| Blocker::host(code, &host.name, format!("it did not {what}"))).collect()
    }

    /// Takes note, for whoever looks, of the latest time until which an armed host may serve.
    fn leased_until(&mut self, index: usize, now: BootTime) {
        let lease = self.roster.policy().timing.lease();
        let host = &mut self.hosts[index];
        match host.mode() {
            Some(HostMode::Armed(..)) => host.leased_until = Some(now.after(lease)),
            Some(HostMode::Serve(_) | HostMode::Closed(_)) | None => {}
        }
    }

    /// The time of day `later` than `now`, by the clock that the order's validity was checked with.
    fn unix_after(&self, now: BootTime, later: Duration) -> Option<UnixTime> {
        let (boot, unix) = self.clock?;
        Some(unix.after(now.since(boot)).after(later))
    }

    /// The epoch that the rollout under way begins.
    pub(super) fn epoch_to_come(&self) -> Epoch {
        self.record.epoch.next()
    }
}

impl Preparing {
    pub(super) fn done(&self) -> usize {
        count(&self.prepared)
    }
}

impl Probing {
    pub(super) fn done(&self) -> usize {
        count(&self.answered)
    }
}

impl Arming {
    pub(super) fn done(&self) -> usize {
        count(&self.armed)
    }
}

impl Renewals {
    /// Begins a read for all that wait.
    fn read(&mut self, out: &mut Out) {
        self.reads += 1;
        self.reading = std::mem::take(&mut self.waiting);
        out.effects.push(Effect::ConfirmLead { read: self.reads });
    }
}
