//! Halt: an operator's word that nothing is served any more, until an order says otherwise.

use muster_model::{Code, FromHost, Refusal, RolloutId};

use super::event::{Effect, GuardState, Halt, Resume};
use super::{Halting, Host, Out};

impl Host {
    /// The fleet was halted after its rollout `k`.
    ///
    /// The mode stays as it is: an armed host keeps its promise, a closed one its secret.
    pub(super) fn halt(&mut self, k: RolloutId, out: &mut Out) {
        let at = k.max(self.record.last_k);
        if self.record.halted.is_none_or(|halted| halted < at) {
            self.record.halted = Some(at);
            out.record_changed = true;
        }
        // What is about to be opened was offered before the halt.
        self.opening = None;
        self.lease = None;
        self.halting = Halting::Untold;
        out.effects.push(Effect::Halt);
    }

    /// The guard has obeyed. One that served until then has told that it is dark; one that did not says so now.
    pub(super) fn tell_halted(&mut self, guard: GuardState, halt: Halt, out: &mut Out) {
        if (self.halting, halt, guard) == (Halting::Untold, Halt::Halted, GuardState::Dark)
            && let Some(refusal) = self.halted_at(self.record.last_k)
        {
            self.halting = Halting::Told;
            out.send(FromHost::Dark { refusal, nonce: None });
        }
    }

    /// Someone halted the host's guard, perhaps while no agent ran: it is the host's word as well.
    pub(super) fn guard_was_halted(&mut self, halt: Halt, out: &mut Out) {
        if halt == Halt::Halted && self.record.halted.is_none() && self.resuming == Resume::No {
            self.record.halted = Some(self.record.last_k);
            self.opening = None;
            self.lease = None;
            out.record_changed = true;
        }
    }

    /// A halt that the guard never heard of, because the agent died on the way or the guard was gone, is still to be done.
    pub(super) fn halt_what_serves(&self, out: &mut Out) {
        if self.record.halted.is_some() && matches!(self.guard, GuardState::Open(..)) {
            out.effects.push(Effect::Halt);
        }
    }

    /// Why rollout `k` opens nothing here: it is not newer than the halt.
    pub(super) fn halted_at(&self, k: RolloutId) -> Option<Refusal> {
        let halted = self.record.halted.filter(|halted| k <= *halted)?;
        let detail = format!("this host was halted after rollout {halted}; only a newer order resumes it");
        Some(Refusal::of(Code::Halted, detail))
    }
}
