//! Steps 7, 8 and 14: the promise to stop serving, and the deadline that the guard holds for it.

use std::time::Duration;

use muster_model::{BootTime, Code, FlipMode, FromHost, Refusal, RolloutId, UnixTime};

use super::event::{Effect, GuardState, Instant, Now, Purpose, SealPurpose};
use super::prepare::stale_rollout;
use super::record::{Mode, Next, Serving, Switch, SwitchStage};
use super::{Accepted, Host, Lease, Out, Stage};

impl Host {
    /// Step 7. "Agent refuses k ≤ last_k, except ARMED(k), which is acknowledged again without extending the deadline."
    pub(super) fn arm(&mut self, k: RolloutId, instant: Option<UnixTime>, now: Now, out: &mut Out) {
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
        let Some(round) = self.round.as_mut().filter(|round| round.k == k) else {
            out.refuse(Some(k), not_prepared(k));
            return;
        };
        let Stage::Prepared(accepted) = round.stage else {
            out.refuse(Some(k), not_prepared(k));
            return;
        };
        match switch_at(&accepted, instant, now) {
            Ok(switch) => {
                round.stage = Stage::Leasing(accepted, switch);
                let (purpose, release) = (SealPurpose::Arm(k), accepted.next.release);
                out.effects.push(Effect::CheckSeal { purpose, release });
            }
            Err(refusal) => {
                self.round = None;
                self.unquiesce(out);
                out.refuse(Some(k), refusal);
            }
        }
    }

    /// Step 7. "It checks the seal, sets the guard's deadline to now + D ..."
    pub(super) fn seal_checked_to_arm(
        &mut self,
        k: RolloutId,
        outcome: Result<(), Refusal>,
        now: Now,
        out: &mut Out,
    ) {
        let Some(round) = self.round.as_ref().filter(|round| round.k == k) else { return };
        let Stage::Leasing(accepted, switch) = round.stage else { return };
        if let Err(refusal) = outcome {
            self.round = None;
            self.unquiesce(out);
            out.refuse(Some(k), refusal);
            return;
        }
        match self.record.may_serve() {
            // What is closed needs no deadline.
            None => self.armed(k, accepted, switch, now, out),
            Some(serving) => {
                let deadline = deadline(now.boot, &accepted, switch);
                let clock_error_ms = accepted.timing.clock_error_ms;
                let instant = switch.map(|switch| Instant { at: switch.at_boot_ms, clock_error_ms });
                out.effects.push(Effect::Lease { k, deadline, serving: serving.epoch, instant });
            }
        }
    }

    /// Step 7. "... persists ARMED(k), acknowledges."
    pub(super) fn leased(&mut self, k: RolloutId, outcome: Result<(), Refusal>, now: Now, out: &mut Out) {
        let round = self.round.as_ref().filter(|round| round.k == k);
        let leasing = match round.map(|round| &round.stage) {
            Some(Stage::Leasing(accepted, switch)) => Some((*accepted, *switch)),
            Some(
                Stage::Fresh { .. }
                | Stage::Attesting { .. }
                | Stage::Verified(_)
                | Stage::Quiescing(_)
                | Stage::Prepared(_),
            )
            | None => None,
        };
        match (leasing, outcome) {
            (Some((accepted, switch)), Ok(())) => self.armed(k, accepted, switch, now, out),
            (Some(_), Err(refusal)) => {
                self.round = None;
                self.unquiesce(out);
                out.refuse(Some(k), refusal);
            }
            // The rollout was given up meanwhile. Nobody was told that this host is armed, and it has not been since
            // this very process asked for the deadline, so that lifting it again is safe. A deadline that is found
            // after a restart is another matter: the journal may have been set back.
            (None, Ok(())) if k > self.record.last_k => out.effects.push(Effect::Lift { k }),
            (None, _) => {}
        }
    }

    fn armed(&mut self, k: RolloutId, accepted: Accepted, switch: Option<Switch>, now: Now, out: &mut Out) {
        let Accepted { next, roster_revision, timing } = accepted;
        self.round = None;
        self.record.mode = match self.record.mode.clone() {
            // "At ARMED(k') it becomes ARMED(k) and keeps a latched fence": the guard does.
            Mode::Serve(serving) | Mode::Armed { serving, .. } => {
                // One that came back and was not admitted serves nothing that a lease could be for.
                if self.record.may_serve().is_some() {
                    self.lease = Some(Lease { k, timing, n: 0, sent: now.boot });
                }
                Mode::Armed { k, serving, next, switch }
            }
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

    /// Step 8. "Agent sends REQ(n) and remembers `t_send`."
    pub(super) fn renew(&mut self, now: Now, out: &mut Out) {
        let Some(lease) = &mut self.lease else { return };
        if now.boot < lease.sent.after(lease.timing.renewal()) {
            return;
        }
        lease.n += 1;
        lease.sent = now.boot;
        out.send(FromHost::Renew { k: lease.k, n: lease.n });
    }

    /// Step 8. "Deadline = max(deadline, t_send + D), only if n is its latest, its mode is ARMED(k) and no fence has
    /// latched." P5: it counts from when the request was sent, never from when the answer came. The guard takes the
    /// later of two deadlines, and none after a fence.
    pub(super) fn granted(&self, k: RolloutId, n: u64, out: &mut Out) {
        let Some(lease) = self.lease.filter(|lease| lease.k == k && lease.n == n && n > 0) else { return };
        let Mode::Armed { k: armed, switch, .. } = &self.record.mode else { return };
        if *armed == k {
            let deadline =
                capped(lease.sent.after(lease.timing.lease()), *switch, lease.timing.clock_error_ms);
            out.effects.push(Effect::Extend { k, deadline });
        }
    }

    /// Step 14. "DECIDED replaces the deadline by T in the guard: the host flips at T."
    pub(super) fn set(&mut self, k: RolloutId, out: &mut Out) {
        if let Some(refusal) = self.left_out() {
            // What was decided before a roster left it out goes on without it.
            out.refuse(Some(k), refusal);
            return;
        }
        match &mut self.record.mode {
            Mode::Armed { k: armed, next, switch: Some(switch), .. } if *armed == k => {
                if switch.stage != SwitchStage::Set {
                    switch.stage = SwitchStage::Set;
                    out.record_changed = true;
                }
                self.lease = None;
                let Next { epoch, release, .. } = *next;
                out.effects.push(Effect::Switch { k, at: switch.at_boot_ms, epoch, release });
            }
            Mode::Serve(_) | Mode::Armed { .. } | Mode::Closed { .. } => {
                let detail = format!("this host is not armed for rollout {k} in fast mode");
                out.refuse(Some(k), Refusal::of(Code::WrongState, detail));
            }
        }
    }

    /// Step 14, after the guard has answered. One that will not flip fences at its deadline.
    pub(super) fn switch_set(&mut self, k: RolloutId, outcome: Result<(), Refusal>, out: &mut Out) {
        match outcome {
            Ok(()) => out.send(FromHost::Set { k }),
            Err(refusal) => out.refuse(Some(k), refusal),
        }
    }

    /// Step 14: whether the guard has flipped at the instant, as it was told to. Then the host serves what follows.
    pub(super) fn switched(&mut self, state: GuardState, since: BootTime, out: &mut Out) -> bool {
        let (
            Mode::Armed { next, switch: Some(Switch { stage: SwitchStage::Set, .. }), .. },
            GuardState::Open(epoch, release),
        ) = (&self.record.mode, state)
        else {
            return false;
        };
        if (next.epoch, next.release) != (epoch, release) || self.left_out().is_some() {
            return false;
        }
        self.record.mode = Mode::Serve(Serving { epoch, release: Some(release) });
        self.record.committed = None;
        out.record_changed = true;
        out.send(FromHost::Serving { epoch, at: since });
        out.effects.push(Effect::Measure { purpose: Purpose::Settle(epoch), release });
        true
    }
}

/// Step 14. "The instant T is fixed in ARM and turned into BOOTTIME once, then."
fn switch_at(accepted: &Accepted, instant: Option<UnixTime>, now: Now) -> Result<Option<Switch>, Refusal> {
    match (accepted.next.mode, instant) {
        (FlipMode::Strict, None) => Ok(None),
        (FlipMode::Fast, Some(instant)) => {
            let ahead =
                instant.0.checked_sub(now.unix.0).filter(|ahead| *ahead > accepted.timing.clock_error_ms);
            let Some(ahead) = ahead else {
                return Err(Refusal::of(
                    Code::TimedOut,
                    "the instant of the flip has passed by this host's clock",
                ));
            };
            let at_boot_ms = now.boot.after(Duration::from_millis(ahead));
            Ok(Some(Switch { at_boot_ms, stage: SwitchStage::Armed }))
        }
        (FlipMode::Strict, Some(_)) | (FlipMode::Fast, None) => {
            Err(Refusal::of(Code::OrderInvalid, "the rollout is not armed in the mode that was ordered"))
        }
    }
}

/// Step 7: "now + D"; step 14: "deadlines are capped at T − ε".
fn deadline(now: BootTime, accepted: &Accepted, switch: Option<Switch>) -> BootTime {
    capped(now.after(accepted.timing.lease()), switch, accepted.timing.clock_error_ms)
}

fn capped(deadline: BootTime, switch: Option<Switch>, clock_error_ms: u64) -> BootTime {
    let cap = switch.map(|switch| BootTime(switch.at_boot_ms.0.saturating_sub(clock_error_ms)));
    cap.map_or(deadline, |cap| deadline.min(cap))
}

fn not_prepared(k: RolloutId) -> Refusal {
    Refusal::of(Code::WrongState, format!("this host has not prepared rollout {k}"))
}
