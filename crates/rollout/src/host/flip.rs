//! Steps 3, 7 and 9 to 12: promising, stopping and starting to serve.

use muster_model::{BootTime, Code, Digest, Epoch, FromHost, Nonce, Refusal, RolloutId, Secrets};

use super::event::{Effect, GuardState, Measured, Purpose, SealPurpose};
use super::prepare::stale_rollout;
use super::record::{Mode, Next, Serving};
use super::{Entropy, Host, Out, Stage, Stream};

impl Host {
    /// Step 7. "Agent refuses k ≤ last_k, except ARMED(k), which is acknowledged again."
    pub(super) fn arm(&mut self, k: RolloutId, out: &mut Out) {
        match &self.record.mode {
            Mode::Armed { k: armed, .. } | Mode::Closed { k: armed, .. } if *armed == k => {
                out.send(FromHost::Armed { k });
                return;
            }
            Mode::Serve(_) | Mode::Armed { .. } | Mode::Closed { .. } => {}
        }
        if k <= self.record.last_k {
            out.refuse(Some(k), stale_rollout(k, self.record.last_k));
            return;
        }
        if let Some(refusal) = self.without_guard() {
            out.refuse(Some(k), refusal);
            return;
        }
        let prepared = self.round.as_ref().filter(|round| round.k == k);
        let Some(Stage::Prepared { next, .. }) = prepared.map(|round| &round.stage) else {
            out.refuse(
                Some(k),
                Refusal::of(Code::WrongState, format!("this host has not prepared rollout {k}")),
            );
            return;
        };
        out.effects.push(Effect::CheckSeal { purpose: SealPurpose::Arm(k), release: next.release });
    }

    /// Step 7. "It checks the seal ... persists ARMED(k), acknowledges."
    pub(super) fn seal_checked_to_arm(&mut self, k: RolloutId, outcome: Result<(), Refusal>, out: &mut Out) {
        let prepared = self.round.take_if(|round| round.k == k);
        let Some(Stage::Prepared { next, roster_revision }) = prepared.map(|round| round.stage) else {
            return;
        };
        if let Err(refusal) = outcome {
            out.refuse(Some(k), refusal);
            return;
        }
        self.record.mode = match self.record.mode.clone() {
            Mode::Serve(serving) | Mode::Armed { serving, .. } => Mode::Armed { k, serving, next },
            // "At a dark CLOSED(k'), k' < k, ARM(k) persists CLOSED(k) and counts as armed and closed."
            Mode::Closed { next: waiting, at_boot_ms, fallback, .. } => {
                Mode::Closed { k, next, fallback: Some(fallback.unwrap_or(waiting)), at_boot_ms }
            }
        };
        // P1: a seal or a measurement that is still under way for what was offered before must not open it after the
        // host has closed for k. If k is given up, the host is told again.
        self.opening = None;
        self.record.last_k = k;
        self.record.roster_revision = self.record.roster_revision.max(roster_revision);
        out.record_changed = true;
        out.send(FromHost::Armed { k });
    }

    /// Step 10. "The agent ... stops the service, verifies, persists CLOSED(k), and only then acknowledges."
    pub(super) fn close(&mut self, k: RolloutId, out: &mut Out) {
        match &mut self.record.mode {
            Mode::Armed { k: armed, .. } if *armed == k => {
                self.close_attempts = 0;
                out.effects.push(Effect::Close { k: Some(k), attempt: 0 });
            }
            Mode::Closed { k: closed, next, fallback, at_boot_ms } if *closed == k => {
                // CLOSE means that k was decided: what was to follow if it were given up never will. This must be
                // durable before the secret is out, or this host could be opened for the rollout before.
                let (secret, at) = (next.secret, BootTime(*at_boot_ms));
                if fallback.take().is_some() {
                    out.record_changed = true;
                }
                out.send(FromHost::Closed { k, secret, at });
            }
            Mode::Serve(_) | Mode::Armed { .. } | Mode::Closed { .. } => {
                out.refuse(
                    Some(k),
                    Refusal::of(Code::WrongState, format!("this host is not armed for rollout {k}")),
                );
            }
        }
    }

    /// Step 10, after the guard has proven that nothing is served.
    pub(super) fn closed(
        &mut self,
        k: Option<RolloutId>,
        outcome: Result<BootTime, Refusal>,
        entropy: Entropy,
        out: &mut Out,
    ) {
        let at = match outcome {
            Ok(at) => at,
            Err(refusal) => {
                self.close_attempts = self.close_attempts.saturating_add(1);
                out.refuse(k, refusal);
                // Only while it is called for: the next attempt comes after whatever the guard was asked meanwhile.
                if self.must_close(k) {
                    out.effects.push(Effect::Close { k, attempt: self.close_attempts });
                }
                return;
            }
        };
        self.close_attempts = 0;
        self.guard = GuardState::Dark;
        if let (Mode::Armed { k: armed, next, .. }, Some(k)) = (&self.record.mode, k)
            && *armed == k
        {
            let secret = next.secret;
            self.record.mode = Mode::Closed { k, next: *next, fallback: None, at_boot_ms: at.0 };
            self.record.committed = None;
            out.record_changed = true;
            out.send(FromHost::Closed { k, secret, at });
        } else if k.is_none() && self.record.may_serve().is_some_and(|serving| serving.release.is_some()) {
            let refusal = Refusal::of(Code::GuardFailed, "what was served was not what this host may serve");
            self.ask_for_admission(refusal, entropy, out);
        }
    }

    /// Step 9. "An agent in ARMED(k) persists SERVE(e), destroys s."
    pub(super) fn disarm(&mut self, k: RolloutId, out: &mut Out) {
        self.round.take_if(|round| round.k == k);
        match self.record.mode.clone() {
            Mode::Armed { k: armed, serving, .. } if armed == k => {
                self.record.mode = Mode::Serve(serving);
                self.destroy_secret(k, out);
                out.record_changed = true;
                out.send(FromHost::Disarmed { k });
            }
            Mode::Closed { k: armed, fallback: Some(fallback), at_boot_ms, .. } if armed == k => {
                self.record.mode = Mode::Closed { k, next: fallback, fallback: None, at_boot_ms };
                self.destroy_secret(k, out);
                out.record_changed = true;
                out.send(FromHost::Disarmed { k });
            }
            Mode::Closed { k: closed, fallback: None, .. } if closed == k => {
                // Closed without a way back: k was decided, and another host may serve what follows.
                out.refuse(
                    Some(k),
                    Refusal::of(Code::Decided, format!("this host has closed for rollout {k}")),
                );
            }
            Mode::Serve(_) | Mode::Closed { .. } => {
                self.destroy_secret(k, out);
                out.send(FromHost::Disarmed { k });
            }
            Mode::Armed { k: armed, .. } => {
                let detail = format!("this host is armed for rollout {armed}, not {k}");
                out.refuse(Some(k), Refusal::of(Code::StaleRollout, detail));
            }
        }
    }

    /// Step 12. "A host opens only with all N secrets. OPEN(k) needs last_k = k on the host."
    pub(super) fn open(
        &mut self,
        k: RolloutId,
        epoch: Epoch,
        release: Digest,
        secrets: &Secrets,
        out: &mut Out,
    ) {
        if k != self.record.last_k {
            out.refuse(None, stale_rollout(k, self.record.last_k));
            return;
        }
        match &self.record.mode {
            Mode::Serve(serving) if serving.epoch == epoch && serving.release == Some(release) => {
                self.open_again(*serving, out);
            }
            Mode::Closed { next, fallback, .. } => {
                let fits = |next: &&Next| next.epoch == epoch && next.release == release;
                let Some(next) = Some(next).filter(fits).or(fallback.as_ref().filter(fits)) else {
                    let detail = format!("this host does not wait for epoch {epoch} of {release}");
                    out.refuse(None, Refusal::of(Code::StaleEpoch, detail));
                    return;
                };
                // P1 and P4, checked by the host itself: whoever knows all N secrets knows that N hosts are closed.
                if !next.closing.is_proven_by(secrets) {
                    let detail =
                        "the closing secrets shown are not those that the hosts of this rollout committed to";
                    out.refuse(None, Refusal::of(Code::ClosingUnproven, detail));
                    return;
                }
                self.opening = Some(Serving { epoch, release: Some(release) });
                out.effects.push(Effect::CheckSeal { purpose: SealPurpose::Open(epoch), release });
            }
            Mode::Serve(_) | Mode::Armed { .. } => {
                let detail = format!("this host is not closed, so it cannot be opened for epoch {epoch}");
                out.refuse(None, Refusal::of(Code::WrongState, detail));
            }
        }
    }

    /// Step 12. "Checks the seal, flips the link, persists SERVE(e+1), starts the service."
    ///
    /// The record comes first: a host that dies in between is dark in SERVE(e+1), and is told to open again.
    pub(super) fn seal_checked_to_open(&mut self, epoch: Epoch, outcome: Result<(), Refusal>, out: &mut Out) {
        let Some(serving @ Serving { release: Some(release), .. }) =
            self.opening.take_if(|it| it.epoch == epoch)
        else {
            return;
        };
        if let Err(refusal) = outcome {
            out.send(FromHost::Dark { refusal, nonce: None });
            return;
        }
        if let Mode::Closed { .. } = self.record.mode {
            self.record.mode = Mode::Serve(serving);
            self.record.committed = None;
            out.record_changed = true;
        }
        out.effects.push(Effect::Open { epoch, release });
    }

    /// Steps 3 and 12, after the guard has answered.
    pub(super) fn opened(&mut self, epoch: Epoch, outcome: Result<BootTime, Refusal>, out: &mut Out) {
        let allowed = self.record.may_serve().filter(|serving| serving.epoch == epoch);
        let Some(release) = allowed.and_then(|serving| serving.release) else {
            return self.close_what_must_not_serve(out);
        };
        match outcome {
            Ok(at) => {
                self.guard = GuardState::Open(epoch, release);
                out.send(FromHost::Serving { epoch, at });
                // Step 12. "A full measurement, files and running processes, follows before SETTLED."
                out.effects.push(Effect::Measure { purpose: Purpose::Settle(epoch), release });
            }
            Err(refusal) => {
                self.guard = GuardState::Dark;
                out.send(FromHost::Dark { refusal, nonce: None });
            }
        }
    }

    /// Step 13, after the measurement.
    pub(super) fn measured_to_settle(
        &mut self,
        epoch: Epoch,
        outcome: Result<Measured, Refusal>,
        out: &mut Out,
    ) {
        if self.record.may_serve().is_none_or(|serving| serving.epoch != epoch) {
            return;
        }
        match outcome {
            Ok(_) => out.send(FromHost::Measured { epoch }),
            Err(refusal) => out.refuse(None, refusal),
        }
    }

    /// Step 3. "The agent accepts only its own nonce and mode SERVE(e), re-measures, opens."
    pub(super) fn admit(&mut self, epoch: Epoch, release: Digest, nonce: Nonce, out: &mut Out) {
        let Stream::Joined { nonce: own, .. } = self.stream else { return };
        if own != nonce {
            out.refuse(
                None,
                Refusal::of(Code::StaleSession, "the admission does not answer this session's nonce"),
            );
            return;
        }
        let admitted = Serving { epoch, release: Some(release) };
        let is_new = self.record.last_k == RolloutId(0)
            && self.record.mode == Mode::Serve(Serving { epoch: Epoch(0), release: None });
        if !is_new && self.record.mode != Mode::Serve(admitted) {
            let detail = format!("this host cannot be admitted to epoch {epoch} of {release}");
            out.refuse(None, Refusal::of(Code::StaleEpoch, detail));
            return;
        }
        self.opening = Some(admitted);
        out.effects.push(Effect::Measure { purpose: Purpose::Admit(epoch), release });
    }

    /// Step 3, after the measurement.
    pub(super) fn measured_to_admit(
        &mut self,
        epoch: Epoch,
        outcome: Result<Measured, Refusal>,
        out: &mut Out,
    ) {
        let Some(admitted @ Serving { release: Some(release), .. }) =
            self.opening.take_if(|it| it.epoch == epoch)
        else {
            return;
        };
        let Mode::Serve(serving) = self.record.mode else { return };
        match outcome {
            Ok(_) => {
                if serving != admitted {
                    self.record.mode = Mode::Serve(admitted);
                    out.record_changed = true;
                }
                out.effects.push(Effect::Open { epoch, release });
            }
            Err(refusal) => out.send(FromHost::Dark { refusal, nonce: None }),
        }
    }

    /// The guard's own word on what is served: at the start, and whenever that changes by itself.
    pub(super) fn guard_says(
        &mut self,
        state: GuardState,
        refusal: Option<Refusal>,
        entropy: Entropy,
        out: &mut Out,
    ) {
        let before = self.guard;
        self.guard = state;
        let allowed = match (state, self.record.may_serve()) {
            (GuardState::Open(epoch, digest), Some(serving)) => {
                serving.epoch == epoch && serving.release == Some(digest)
            }
            (GuardState::Open(..), None) => false,
            (GuardState::Unknown | GuardState::Dark, _) => true,
        };
        if !allowed {
            self.close_what_must_not_serve(out);
            return;
        }
        let went_dark = matches!(before, GuardState::Open(..)) && !matches!(state, GuardState::Open(..));
        if went_dark {
            let refusal =
                refusal.unwrap_or_else(|| Refusal::of(Code::GuardFailed, "the guard no longer serves"));
            self.ask_for_admission(refusal, entropy, out);
        }
    }

    /// "Guard, while settled: service goes on, alarm, refuses to arm": nobody could stop what is served once it was decided.
    pub(super) fn without_guard(&self) -> Option<Refusal> {
        let is_lost = self.guard == GuardState::Unknown;
        is_lost.then(|| {
            Refusal::of(Code::GuardFailed, "its guard does not answer, so it could not stop serving")
        })
    }

    /// The epoch that would follow what this host serves or waits to serve.
    pub(super) fn next_epoch(&self) -> Epoch {
        match &self.record.mode {
            Mode::Serve(serving) | Mode::Armed { serving, .. } => serving.epoch.next(),
            Mode::Closed { next, fallback, .. } => fallback.as_ref().unwrap_or(next).epoch.next(),
        }
    }

    /// Tells the coordinator that this host is dark although it could serve. A host that is not connected tells it when
    /// it joins; one that waits for JOINED has told something else, and its nonce there is as good as a new one.
    fn ask_for_admission(&mut self, refusal: Refusal, entropy: Entropy, out: &mut Out) {
        let nonce = match &mut self.stream {
            Stream::Down => return,
            Stream::Joining { nonce } => *nonce,
            Stream::Joined { nonce: own, .. } => {
                *own = Nonce::from_bytes(entropy);
                *own
            }
        };
        out.send(FromHost::Dark { refusal, nonce: Some(nonce) });
    }

    fn open_again(&mut self, serving: Serving, out: &mut Out) {
        let Serving { epoch, release: Some(release) } = serving else { return };
        if self.guard == GuardState::Open(epoch, release) {
            // Opening what is open has no second effect, and tells since when it is.
            out.effects.push(Effect::Open { epoch, release });
        } else {
            self.opening = Some(serving);
            out.effects.push(Effect::CheckSeal { purpose: SealPurpose::Open(epoch), release });
        }
    }

    /// Whether closing, for rollout `k` or because of what is served, is still called for.
    fn must_close(&self, k: Option<RolloutId>) -> bool {
        match (k, &self.record.mode) {
            (Some(k), Mode::Armed { k: armed, .. }) => *armed == k,
            (Some(_), Mode::Serve(_) | Mode::Closed { .. }) => false,
            (None, Mode::Serve(serving) | Mode::Armed { serving, .. }) => {
                serving.release.is_none_or(|release| self.guard != GuardState::Open(serving.epoch, release))
            }
            (None, Mode::Closed { .. }) => true,
        }
    }

    fn close_what_must_not_serve(&mut self, out: &mut Out) {
        out.effects.push(Effect::Close { k: None, attempt: 0 });
    }

    fn destroy_secret(&mut self, k: RolloutId, out: &mut Out) {
        if self.record.committed.take_if(|committed| committed.k == k).is_some() {
            out.record_changed = true;
        }
    }
}
