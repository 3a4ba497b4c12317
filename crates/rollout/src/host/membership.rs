//! Membership, on a host: which rosters it has seen, and whether they have it serve.

use muster_model::{BootTime, Code, Digest, Epoch, Membership, Refusal, Roster, RosterRevision, Withdrawal};

use super::event::{CloseCause, Effect, Now};
use super::record::{HostRecord, Mode, Serving};
use super::{Entropy, Host, Out, Stream};

impl Host {
    /// Keeps in mind that there is this roster: no mandate for an earlier one counts any more, and no rollout under one.
    ///
    /// "A host shown a validly signed, newer roster without itself closes." It needs nobody's word that the roster holds: whoever
    /// shows it can do no more with it than take this host's service away.
    pub(super) fn roster_shown(&mut self, roster: &Roster, entropy: Entropy, out: &mut Out) {
        if roster.fleet() != &self.record.fleet {
            return;
        }
        if let Err(refusal) = self.check_follows(roster) {
            out.refuse(None, refusal);
            return;
        }
        let (revision, newest) = (roster.revision(), self.record.roster_revision);
        // The same name with another key is another machine.
        let member = roster.member(&self.record.host);
        let has_it_serve =
            member.is_some_and(|member| member.attestation_key == self.profile.attestation_key);
        match (has_it_serve, self.record.membership) {
            (true, Membership::Excluded(by)) if revision > by => self.take_back(entropy, out),
            (true, Membership::Excluded(by)) => {
                let detail = format!(
                    "revision {revision} of the roster is not later than {by}, which leaves this host out"
                );
                out.refuse(None, Refusal::of(Code::RosterChanged, detail));
            }
            (false, Membership::Excluded(by)) if revision > by => self.leave_out(revision, out),
            // Shown again: whoever shows it has not heard that this host has closed.
            (false, Membership::Excluded(by)) if revision == by => self.withdraw(out),
            (false, Membership::Member | Membership::Returned) if revision >= newest => {
                self.leave_out(revision, out);
            }
            (true, Membership::Member | Membership::Returned) | (false, _) => {}
        }
        self.hold_additions(roster, out);
        if revision > newest {
            self.record.roster_revision = revision;
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

    /// Has the guard stop. The record that bars every opening is written before it is asked.
    pub(super) fn withdraw(&mut self, out: &mut Out) {
        let Membership::Excluded(by) = self.record.membership else { return };
        self.close_attempts = 0;
        let cause = CloseCause::LeftOut(by);
        self.stopping = Some(cause);
        out.effects.push(Effect::Close { cause, attempt: 0 });
    }

    /// P14: the guard has proven that nothing is served, and the record keeps it so.
    ///
    /// Only the answer to what this exclusion has asked of the guard proves it. That of an earlier closing may come while an opening
    /// of the time in between still waits for the guard.
    pub(super) fn has_withdrawn(
        &self,
        by: RosterRevision,
        cause: CloseCause,
        at: BootTime,
        now: Now,
        out: &mut Out,
    ) {
        // Whoever is not connected tells it when it has joined.
        if cause == CloseCause::LeftOut(by) && self.stream != Stream::Down {
            let HostRecord { fleet, host, last_k, .. } = &self.record;
            let (fleet, host, boot) = (fleet.clone(), host.clone(), self.profile.boot_id().clone());
            let withdrawal = Box::new(Withdrawal::new(fleet, host, by, *last_k, boot, now.unix));
            out.effects.push(Effect::SignWithdrawal { withdrawal, at });
        }
    }

    /// Why this host takes part in nothing.
    pub(super) fn left_out(&self) -> Option<Refusal> {
        let Membership::Excluded(by) = self.record.membership else { return None };
        let detail = format!(
            "revision {by} of the roster does not have this host serve, and it has seen no later one"
        );
        Some(Refusal::of(Code::HostNotInRoster, detail))
    }

    /// Whether a host that has come back may be admitted to `admitted`. It cannot know what the others have done meanwhile; what
    /// they serve is never older than what it served itself.
    pub(super) fn may_return_to(&self, epoch: Epoch, release: Digest) -> bool {
        let Serving { epoch: last, release: served } = self.record.last_served();
        let is_same = served.is_none_or(|served| served == release);
        self.record.membership == Membership::Returned && (epoch > last || (epoch == last && is_same))
    }

    fn leave_out(&mut self, by: RosterRevision, out: &mut Out) {
        self.record.membership = Membership::Excluded(by);
        out.record_changed = true;
        self.leave_round(out);
        self.opening = None;
        self.withdraw(out);
    }

    /// A later roster has it serve again. Whatever it was armed or closed for is over, or that roster would not hold.
    fn take_back(&mut self, entropy: Entropy, out: &mut Out) {
        self.record.mode = Mode::Serve(self.record.last_served());
        self.record.committed = None;
        self.record.membership = Membership::Returned;
        out.record_changed = true;
        if self.stopping.is_none() {
            self.ask_to_return(entropy, out);
        }
    }

    /// A later roster has it serve again, and nothing that was served before is left.
    pub(super) fn ask_to_return(&mut self, entropy: Entropy, out: &mut Out) {
        let detail = "a later roster has this host serve again; it was not admitted yet";
        self.ask_for_admission(Refusal::of(Code::HostDark, detail), entropy, out);
    }
}
