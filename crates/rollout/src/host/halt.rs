//! Halt: an operator's word that nothing is served any more, until an order says otherwise.

use muster_model::{Code, FromHost, Refusal, RolloutId};

use super::event::{Effect, GuardState, Halt};
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

    /// Someone halted the host's guard, perhaps while no agent ran: it is the host's word as well. And the host's word is
    /// the guard's, if the guard has not heard it yet.
    pub(super) fn guard_was_halted(&mut self, guard: GuardState, halt: Halt, out: &mut Out) {
        match (halt, self.record.halted) {
            (Halt::Halted, None) => {
                self.record.halted = Some(self.record.last_k);
                self.opening = None;
                self.lease = None;
                out.record_changed = true;
            }
            (Halt::Running, Some(_)) if guard != GuardState::Unknown => out.effects.push(Effect::Halt),
            (Halt::Halted, Some(_)) | (Halt::Running, _) => {}
        }
    }

    /// Why rollout `k` opens nothing here: it is not newer than the halt.
    pub(super) fn halted_at(&self, k: RolloutId) -> Option<Refusal> {
        let halted = self.record.halted.filter(|halted| k <= *halted)?;
        let detail = format!("this host was halted after rollout {halted}; only a newer order resumes it");
        Some(Refusal::of(Code::Halted, detail))
    }
}
