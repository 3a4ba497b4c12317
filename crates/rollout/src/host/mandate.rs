//! Whom a host obeys after its coordinator was lost.

use muster_model::{Code, Incarnation, Leadership, Mandate, Refusal};

use super::event::Effect;
use super::{Host, Out, Stream};

impl Host {
    /// "New incarnation by a signed order." It says nothing yet: the session that it was shown for still has to begin.
    pub(super) fn mandated(&mut self, mandate: &Mandate, out: &mut Out) {
        if mandate.fleet != self.record.fleet {
            let detail = format!("the mandate is for the fleet {}", mandate.fleet);
            out.refuse(None, Refusal::of(Code::Unmandated, detail));
            return;
        }
        if mandate.roster.revision < self.record.roster_revision {
            let detail = format!(
                "the mandate is for revision {} of the roster, and this host has seen revision {}",
                mandate.roster.revision, self.record.roster_revision
            );
            out.refuse(None, Refusal::of(Code::RosterChanged, detail));
            return;
        }
        self.mandated = Some(mandate.incarnation);
    }

    /// Whether a session may not begin: a coordinator of a later life speaks, and nobody has signed that it may.
    ///
    /// A host that has obeyed none yet has promised nothing, and takes the first.
    #[must_use]
    pub fn is_unmandated(&self, leadership: Leadership) -> bool {
        let obeyed = self.record.leadership.incarnation;
        obeyed != Incarnation(0)
            && leadership.incarnation > obeyed
            && self.mandated != Some(leadership.incarnation)
    }

    pub(super) fn refuse_unmandated(&mut self, leadership: Leadership, out: &mut Out) {
        let detail = format!(
            "no mandate was shown for the incarnation {}; this host has obeyed {}",
            leadership.incarnation, self.record.leadership.incarnation
        );
        self.stream = Stream::Down;
        let refusal = Refusal::of(Code::Unmandated, detail);
        out.refuse(None, refusal.clone());
        out.effects.push(Effect::Hang(refusal));
    }
}
