//! Whom a host obeys after its coordinator was lost, and which rosters it has seen.

use muster_model::{Code, Incarnation, Leadership, Mandate, Refusal, Roster};

use super::event::Effect;
use super::record::HostRecord;
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

    /// Keeps in mind that there is this roster: no mandate for an earlier one counts any more, and no rollout under one.
    pub(super) fn roster_shown(&mut self, roster: &Roster, out: &mut Out) {
        if let Err(refusal) = self.check_follows(roster) {
            out.refuse(None, refusal);
            return;
        }
        self.hold_additions(roster, out);
        if roster.fleet() == &self.record.fleet && roster.revision() > self.record.roster_revision {
            self.record.roster_revision = roster.revision();
            out.record_changed = true;
        }
    }

    /// A joiner's key signs alone: what this host has seen added, no roster leaves out that its operators did not sign knowing of it.
    pub(super) fn check_follows(&self, roster: &Roster) -> Result<(), Refusal> {
        let HostRecord { fleet, roster_revision: held, additions, .. } = &self.record;
        if roster.fleet() != fleet || roster.revision() < *held {
            return Ok(());
        }
        let refused = |error| Refusal::of(Code::RosterChanged, format!("the roster is refused: {error}"));
        roster.check_follows(*held, additions.as_ref()).map_err(refused)
    }

    /// From now on this host takes part in nothing that leaves out who was added.
    pub(super) fn hold_additions(&mut self, roster: &Roster, out: &mut Out) {
        let record = &mut self.record;
        let is_older = roster.revision() < record.roster_revision;
        if roster.fleet() != &record.fleet || is_older || roster.additions() == record.additions.as_ref() {
            return;
        }
        record.additions = roster.additions().cloned();
        record.roster_revision = roster.revision();
        out.record_changed = true;
    }
}
