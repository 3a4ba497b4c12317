//! Steps 3 and 9 to 12: stopping and starting to serve.

use muster_model::{
    BootTime, Code, Digest, Epoch, FlipMode, FromHost, Membership, Nonce, Refusal, RolloutId, Secrets,
};

use super::event::{CloseCause, Effect, GuardState, Measured, Now, Purpose, Resume, SealPurpose};
use super::prepare::stale_rollout;
use super::record::{Mode, Next, Serving, Switch, SwitchStage};
use super::{Entropy, Host, Out, Quiesced, Stream};

impl Host {
    /// Step 10. "The agent ... stops the service, verifies, persists CLOSED(k), and only then acknowledges."
    pub(super) fn close(&mut self, k: RolloutId, out: &mut Out) {
        // "CLOSE(k): the agent stops renewing, drains under the running deadline."
        self.lease.take_if(|lease| lease.k == k);
        match &mut self.record.mode {
            Mode::Armed { k: armed, .. } if *armed == k => {
                self.close_attempts = 0;
                self.closing = Some(k);
                out.effects.push(Effect::Close { cause: CloseCause::Rollout(k), attempt: 0 });
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
        cause: CloseCause,
        outcome: Result<BootTime, Refusal>,
        now: Now,
        entropy: Entropy,
        out: &mut Out,
    ) {
        if outcome.is_ok() || !self.must_close(cause) {
            self.closing = self.closing.filter(|k| CloseCause::Rollout(*k) != cause);
            self.stopping = self.stopping.filter(|asked| *asked != cause);
        }
        let at = match outcome {
            Ok(at) => at,
            Err(refusal) => {
                self.close_attempts = self.close_attempts.saturating_add(1);
                let k = if let CloseCause::Rollout(k) = cause { Some(k) } else { None };
                out.refuse(k, refusal);
                // Only while it is called for: the next attempt comes after whatever the guard was asked meanwhile.
                if self.must_close(cause) {
                    out.effects.push(Effect::Close { cause, attempt: self.close_attempts });
                }
                return;
            }
        };
        self.close_attempts = 0;
        self.guard = GuardState::Dark;
        // What was prepared for being stopped is stopped: there is nothing to undo.
        self.quiesced = Quiesced::No;
        if let (Mode::Armed { k: armed, next, .. }, CloseCause::Rollout(k)) = (&self.record.mode, cause)
            && *armed == k
        {
            let secret = next.secret;
            self.record.mode = Mode::Closed { k, next: *next, fallback: None, at_boot_ms: at.0 };
            self.record.committed = None;
            out.record_changed = true;
            out.send(FromHost::Closed { k, secret, at });
        } else {
            self.stopped(cause, at, now, entropy, out);
        }
    }

    /// What the host may not serve is stopped.
    fn stopped(&mut self, cause: CloseCause, at: BootTime, now: Now, entropy: Entropy, out: &mut Out) {
        match self.record.membership {
            Membership::Excluded(by) => self.has_withdrawn(by, cause, at, now, out),
            Membership::Returned if self.stopping.is_none() => self.ask_to_return(entropy, out),
            Membership::Member
                if self.record.may_serve().is_some_and(|serving| serving.release.is_some()) =>
            {
                let detail = "what was served was not what this host may serve";
                self.ask_for_admission(Refusal::of(Code::GuardFailed, detail), entropy, out);
            }
            Membership::Returned | Membership::Member => {}
        }
    }

    /// Step 9. "An agent in ARMED(k) persists SERVE(e), destroys s."
    ///
    /// An order that was given up has resumed nobody: a host that was halted before stays so until the next one.
    pub(super) fn disarm(&mut self, k: RolloutId, out: &mut Out) {
        self.round.take_if(|round| round.k == k);
        self.lease.take_if(|lease| lease.k == k);
        match self.record.mode.clone() {
            Mode::Armed { switch: Some(Switch { stage: SwitchStage::Set, .. }), k: armed, .. }
                if armed == k =>
            {
                out.refuse(
                    Some(k),
                    Refusal::of(Code::Decided, format!("rollout {k} was decided: its guard flips")),
                );
            }
            Mode::Armed { k: armed, serving, .. } if armed == k => {
                self.record.mode = Mode::Serve(serving);
                self.stays_halted(k);
                self.destroy_secret(k, out);
                out.record_changed = true;
                // A fence that has latched stays: the guard tells what is served, and the host asks for admission.
                out.effects.push(Effect::Lift { k });
                self.unquiesce(out);
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
            Mode::Serve(_) => {
                self.destroy_secret(k, out);
                // The guard may have been given a deadline before the promise was durable.
                out.effects.push(Effect::Lift { k });
                self.unquiesce(out);
                out.send(FromHost::Disarmed { k });
            }
            Mode::Closed { .. } => {
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
        if let Some(refusal) = self.left_out() {
            out.refuse(None, refusal);
            return;
        }
        if let Some(refusal) = self.halted_at(self.leads_to(epoch)) {
            out.send(FromHost::dark(refusal));
            return;
        }
        match &self.record.mode {
            Mode::Serve(serving)
                if serving.epoch == epoch
                    && serving.release == Some(release)
                    && self.record.membership.is_member() =>
            {
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
                if next.mode == FlipMode::Strict && !next.closing.is_proven_by(secrets, next.max_lapsed) {
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
            out.send(FromHost::dark(refusal));
            return;
        }
        if let Mode::Closed { .. } = self.record.mode {
            self.record.mode = Mode::Serve(serving);
            self.record.committed = None;
            self.record.membership = Membership::Member;
            out.record_changed = true;
        }
        self.open_guard(epoch, release, out);
    }

    /// Has the guard open. The order that leads here is newer than any halt: older ones were refused.
    ///
    /// The halt stands until the guard has obeyed: an agent that dies before knows which one the order has lifted.
    fn open_guard(&mut self, epoch: Epoch, release: Digest, out: &mut Out) {
        self.resuming = self.record.halted.map_or(Resume::No, |halted| Resume::Yes(halted.halt));
        out.effects.push(Effect::Open { epoch, release, resume: self.resuming });
    }

    /// Steps 3 and 12, after the guard has answered.
    pub(super) fn opened(&mut self, epoch: Epoch, outcome: Result<BootTime, Refusal>, out: &mut Out) {
        let resuming = std::mem::replace(&mut self.resuming, Resume::No);
        let allowed = self.record.may_serve().filter(|serving| serving.epoch == epoch);
        let Some(release) = allowed.and_then(|serving| serving.release) else {
            return self.close_what_must_not_serve(out);
        };
        match outcome {
            Ok(at) => {
                self.guard = GuardState::Open(epoch, release);
                self.was_resumed(resuming, out);
                out.send(FromHost::Serving { epoch, at });
                // Step 12. "A full measurement, files and running processes, follows before SETTLED."
                out.effects.push(Effect::Measure { purpose: Purpose::Settle(epoch), release });
            }
            Err(refusal) => {
                self.guard = GuardState::Dark;
                out.send(FromHost::dark(refusal));
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
        if let Some(refusal) = self.left_out() {
            out.refuse(None, refusal);
            return;
        }
        if self.stopping.is_some() {
            let detail =
                "this host is still stopping what it served; once it has, it asks for another admission";
            out.send(FromHost::dark(Refusal::of(Code::HostDark, detail)));
            return;
        }
        let admitted = Serving { epoch, release: Some(release) };
        let has_no_history = self.record.last_k == RolloutId(0)
            && self.record.mode == Mode::Serve(Serving { epoch: Epoch(0), release: None });
        let is_new = has_no_history || self.may_return_to(epoch, release);
        // A host that is new, or was away, must learn the epoch also while the fleet is halted, or the order that resumes the fleet
        // would not fit it. It opens nothing.
        if let Some(refusal) = self.halted_at(self.record.last_k).filter(|_| !is_new) {
            out.send(FromHost::dark(refusal));
            return;
        }
        if !has_no_history && self.is_barred_by_glass(admitted, out) {
            return;
        }
        let is_settled = self.record.mode == Mode::Serve(admitted) && self.record.membership.is_member();
        if !is_new && !is_settled {
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
                if serving != admitted || !self.record.membership.is_member() {
                    self.record.mode = Mode::Serve(admitted);
                    self.record.membership = Membership::Member;
                    out.record_changed = true;
                }
                if let Some(refusal) = self.halted_at(self.record.last_k) {
                    out.send(FromHost::dark(refusal));
                } else {
                    self.open_guard(epoch, release, out);
                }
            }
            Err(refusal) => out.send(FromHost::dark(refusal)),
        }
    }

    /// The guard's own word on what is served: at the start, and whenever that changes by itself.
    pub(super) fn guard_says(
        &mut self,
        state: GuardState,
        since: BootTime,
        refusal: Option<Refusal>,
        entropy: Entropy,
        out: &mut Out,
    ) {
        let before = self.guard;
        self.guard = state;
        if self.switched(state, since, out) {
            return;
        }
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
        // A host that was left out has nothing to ask for.
        if went_dark && self.left_out().is_none() {
            // A fence latches: nothing that is granted now lifts it.
            self.lease = None;
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
    pub(super) fn ask_for_admission(&mut self, refusal: Refusal, entropy: Entropy, out: &mut Out) {
        let nonce = match &mut self.stream {
            Stream::Down => return,
            Stream::Joining { nonce } => *nonce,
            Stream::Joined { nonce: own, .. } => {
                *own = Nonce::from_bytes(entropy);
                *own
            }
        };
        let returned = self.record.membership == Membership::Returned;
        out.send(FromHost::Dark { refusal, nonce: Some(nonce), returned });
    }

    fn open_again(&mut self, serving: Serving, out: &mut Out) {
        let Serving { epoch, release: Some(release) } = serving else { return };
        if self.guard == GuardState::Open(epoch, release) {
            // Opening what is open has no second effect, and tells since when it is.
            self.open_guard(epoch, release, out);
        } else {
            self.opening = Some(serving);
            out.effects.push(Effect::CheckSeal { purpose: SealPurpose::Open(epoch), release });
        }
    }

    /// The rollout whose order leads to this epoch: the last one, or the one before, if the last was given up.
    fn leads_to(&self, epoch: Epoch) -> RolloutId {
        match &self.record.mode {
            Mode::Closed { fallback: Some(fallback), .. } if fallback.epoch == epoch => fallback.k,
            Mode::Closed { next, .. } => next.k,
            Mode::Serve(_) | Mode::Armed { .. } => self.record.last_k,
        }
    }

    /// Whether closing is still called for.
    fn must_close(&self, cause: CloseCause) -> bool {
        match (cause, &self.record.mode) {
            (CloseCause::Rollout(k), Mode::Armed { k: armed, .. }) => *armed == k,
            (CloseCause::Rollout(_), Mode::Serve(_) | Mode::Closed { .. }) => false,
            // A host that has a later revision has asked for that one.
            (CloseCause::LeftOut(_), _) => self.stopping == Some(cause),
            (CloseCause::NotAllowed, Mode::Serve(_) | Mode::Armed { .. } | Mode::Closed { .. }) => {
                let allowed =
                    self.record.may_serve().and_then(|it| Some(GuardState::Open(it.epoch, it.release?)));
                allowed != Some(self.guard)
            }
        }
    }

    pub(super) fn close_what_must_not_serve(&mut self, out: &mut Out) {
        // One that has the host leave is still to be answered, and comes first.
        self.stopping.get_or_insert(CloseCause::NotAllowed);
        out.effects.push(Effect::Close { cause: CloseCause::NotAllowed, attempt: 0 });
    }

    fn destroy_secret(&mut self, k: RolloutId, out: &mut Out) {
        if self.record.committed.take_if(|committed| committed.k == k).is_some() {
            out.record_changed = true;
        }
    }
}
