//! Halt: an operator's word that nothing is served any more, until an order says otherwise.

use muster_model::{Code, FromHost, Refusal, RolloutId};

use super::event::{Effect, GuardState, Halt, Resume};
use super::record::{Halted, Mode};
use super::{Halting, Host, Out};

impl Host {
    /// The fleet was halted after its rollout `k`.
    ///
    /// The mode stays as it is: an armed host keeps its promise, a closed one its secret.
    pub(super) fn halt(&mut self, k: RolloutId, out: &mut Out) {
        let after = k.max(self.record.last_k);
        if self.record.halted.is_none_or(|halted| halted.after < after) {
            self.record.halted = Some(Halted { after, halt: None });
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
        if let (Halting::Untold, Halt::Halted(_), GuardState::Dark) = (self.halting, halt, guard)
            && let Some(refusal) = self.halted_at(self.record.last_k)
        {
            self.halting = Halting::Told;
            out.send(FromHost::dark(refusal));
        }
    }

    /// Someone halted the host's guard, perhaps while no agent ran: it is the host's word as well.
    ///
    /// A halt that is new ends whatever is under way: an order that was signed before it does not resume the host.
    pub(super) fn guard_was_halted(&mut self, halt: Halt, out: &mut Out) {
        let Halt::Halted(halt) = halt else { return };
        // What the guard says of a halt that it is being asked to lift is older than the question.
        let is_being_lifted = match self.resuming {
            Resume::No => false,
            Resume::Yes(lifted) => lifted.is_none_or(|lifted| lifted == halt),
        };
        let before = self.record.halted;
        if is_being_lifted || before.is_some_and(|it| it.halt == Some(halt)) {
            return;
        }
        let under_way =
            self.round.as_ref().map_or(self.record.last_k, |round| round.k.max(self.record.last_k));
        let committed = self.record.committed.map_or(self.record.last_k, |it| it.k.max(self.record.last_k));
        let after = match before {
            // The halt that was asked for, or heard of before the guard did. Once this host has committed itself to a
            // rollout since, it may as well be another one: the guard may have been gone when it was asked.
            Some(Halted { after, halt: None }) if committed <= after => after,
            Some(Halted { .. }) | None => under_way.max(committed),
        };
        self.record.halted = Some(Halted { after, halt: Some(halt) });
        self.opening = None;
        self.lease = None;
        out.record_changed = true;
    }

    /// A halt that the guard never heard of, because the agent died on the way or the guard was gone, is still to be done.
    ///
    /// What a newer order has opened is not what was halted.
    pub(super) fn halt_what_serves(&self, out: &mut Out) {
        let Some(Halted { after, .. }) = self.record.halted else { return };
        let is_lifted = matches!(self.record.mode, Mode::Serve(_)) && self.record.last_k > after;
        if !is_lifted && matches!(self.guard, GuardState::Open(..)) {
            out.effects.push(Effect::Halt);
        }
    }

    /// The guard serves again: the halt that it was asked to lift is over. One that came meanwhile is not.
    pub(super) fn was_resumed(&mut self, resuming: Resume, out: &mut Out) {
        let Resume::Yes(lifted) = resuming else { return };
        let last_k = self.record.last_k;
        if self.record.halted.take_if(|it| it.halt == lifted && it.after < last_k).is_some() {
            out.record_changed = true;
        }
    }

    /// The order of rollout `k` was given up, and lifts no halt.
    pub(super) fn stays_halted(&mut self, k: RolloutId) {
        if let Some(halted) = &mut self.record.halted {
            halted.after = halted.after.max(k);
        }
    }

    /// Why rollout `k` opens nothing here: it is not newer than the halt.
    pub(super) fn halted_at(&self, k: RolloutId) -> Option<Refusal> {
        let Halted { after, .. } = self.record.halted.filter(|halted| k <= halted.after)?;
        let detail = format!("this host was halted after rollout {after}; only a newer order resumes it");
        Some(Refusal::of(Code::Halted, detail))
    }
}
