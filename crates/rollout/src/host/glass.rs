//! Breaking glass: a host that is dark starts what it served last on the operators' word, with no coordinator.
//!
//! P1 is knowingly not claimed from then on: nobody proves that no other host serves another release. What keeps the harm small is
//! that a host starts only what it has served last itself, in the epoch that the token names, and never where it has promised anything.

use muster_model::{
    BrokenGlass, Code, Digest, FromHost, GlassSettlement, GlassToken, HaltId, Membership, PublicKey, Refusal,
    Roster, UnixTime, Verified,
};

use super::event::{GuardState, Resume};
use super::record::{History, HostRecord, Mode, Serving};
use super::{Entropy, Host, Out};

/// A token that somebody shows on the host, and what is known there.
#[derive(Debug, Clone, Copy)]
pub struct GlassCase<'a> {
    /// The token.
    pub token: &'a Verified<GlassToken>,
    /// Its id: the digest of its payload.
    pub id: Digest,
    /// The operators' keys that have signed it.
    pub signers: &'a [PublicKey],
    /// The newest roster that the host keeps.
    pub roster: &'a Verified<Roster>,
    /// The digest of its payload.
    pub roster_digest: Digest,
    /// The key that this host attests with.
    pub key: &'a PublicKey,
    /// What the guard serves.
    pub guard: GuardState,
    /// The halt that the guard knows of.
    pub halted: Option<HaltId>,
    /// Now, by the host's time of day: nothing better is at hand.
    pub now: UnixTime,
}

/// What a token has the host do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsealed {
    /// The record with the mark. It must be durable before anything is started.
    pub record: HostRecord,
    /// What is started then.
    pub epoch: muster_model::Epoch,
    /// Its manifest; all its bytes are measured before.
    pub release: Digest,
    /// Whether a halt ends with it.
    pub resume: Resume,
}

impl HostRecord {
    /// Whether something was started here without a coordinator, and operators have not settled that.
    #[must_use]
    pub fn is_glass_broken(&self) -> bool {
        self.glass.iter().any(|used| !used.settled)
    }

    /// Whether a token may be used here, at this moment, and what follows if it is.
    pub fn break_glass(&self, case: &GlassCase<'_>) -> Result<Unsealed, Refusal> {
        self.check_token(case)?;
        self.check_roster(case)?;
        let Serving { epoch, release } = self.check_standing(case)?;
        let token = case.token;
        if (epoch, release) != (token.epoch, Some(token.release)) {
            let served = release.map_or_else(|| "nothing".to_owned(), |it| format!("{it} in epoch {epoch}"));
            let detail = format!(
                "the token starts {} in epoch {}, and this host has served {served} last; it starts nothing else",
                token.release, token.epoch
            );
            return Err(refused(detail));
        }
        let is_halted = self.halted.is_some() || case.halted.is_some();
        if is_halted && !token.end_halt {
            let detail =
                "this host was halted, and the token does not end that: it was not issued with --end-halt";
            return Err(Refusal::of(Code::Halted, detail));
        }
        let mut record = self.clone();
        record.halted = None;
        record.glass.retain(|used| is_kept(used, case.now));
        record.glass.push(BrokenGlass {
            id: case.id,
            at_unix_ms: case.now,
            release: token.release,
            epoch,
            reason: token.reason.clone(),
            signers: case.signers.to_vec(),
            settled: false,
        });
        let resume = if is_halted { Resume::Yes(case.halted) } else { Resume::No };
        Ok(Unsealed { record, epoch, release: token.release, resume })
    }

    fn check_token(&self, case: &GlassCase<'_>) -> Result<(), Refusal> {
        let token = case.token;
        if token.fleet != self.fleet {
            return Err(refused(format!(
                "the token is for the fleet {}, not for {}",
                token.fleet, self.fleet
            )));
        }
        if !token.is_for(&self.host) {
            return Err(refused(format!("the token is not for this host, which is {}", self.host)));
        }
        if case.now < token.not_before_unix_ms {
            return Err(refused("the token does not hold yet, by this host's clock; is that right?"));
        }
        if case.now >= token.expires_unix_ms {
            return Err(refused(
                "the token has expired, by this host's clock; have operators issue another one",
            ));
        }
        if self.glass.iter().any(|used| used.id == case.id) {
            return Err(refused(
                "the token was used on this host before, and each is used once; take another one",
            ));
        }
        let kept = self.glass.iter().filter(|used| is_kept(used, case.now)).count();
        if kept >= BrokenGlass::KEPT_MAX {
            return Err(refused(format!(
                "{kept} tokens were used here, and not more are; have operators settle them"
            )));
        }
        Ok(())
    }

    fn check_roster(&self, case: &GlassCase<'_>) -> Result<(), Refusal> {
        let (roster, wanted) = (case.roster, case.token.roster);
        let newest = self.roster_revision.max(roster.revision());
        if roster.fleet() != &self.fleet || case.roster_digest != wanted.digest || newest != wanted.revision {
            let detail = format!(
                "the token is for revision {} of the roster, and this host has seen revision {newest}; have operators issue \
                 another one",
                wanted.revision
            );
            return Err(Refusal::of(Code::RosterChanged, detail));
        }
        let is_listed = roster.member(&self.host).is_some_and(|member| member.attestation_key == *case.key);
        if !is_listed || self.membership != Membership::Member {
            let detail = "the roster does not have this machine serve, with the key that it has";
            return Err(Refusal::of(Code::HostNotInRoster, detail));
        }
        Ok(())
    }

    /// Where this host has promised anything, it cannot know what the fleet has decided since.
    fn check_standing(&self, case: &GlassCase<'_>) -> Result<Serving, Refusal> {
        match self.history {
            History::Whole => {}
            History::Lost => {
                let detail = "the journal was damaged, and may have forgotten what this host has promised";
                return Err(Refusal::of(Code::HistoryLost, detail));
            }
        }
        let serving = match &self.mode {
            Mode::Serve(serving) => *serving,
            Mode::Armed { k, .. } => {
                let detail = format!(
                    "this host is armed for rollout {k}, which the fleet may have completed without it; no token starts it"
                );
                return Err(Refusal::of(Code::WrongState, detail));
            }
            Mode::Closed { k, .. } => {
                let detail = format!(
                    "this host has closed for rollout {k}, which the fleet may have completed without it; no token starts it"
                );
                return Err(Refusal::of(Code::WrongState, detail));
            }
        };
        match case.guard {
            GuardState::Dark => Ok(serving),
            GuardState::Open(epoch, _) => {
                let detail = format!("this host serves already, in epoch {epoch}: there is nothing to start");
                Err(Refusal::of(Code::AlreadyServing, detail))
            }
            GuardState::Unknown => {
                Err(Refusal::of(Code::GuardFailed, "its guard does not say what it serves"))
            }
        }
    }
}

impl Host {
    /// Why this host takes part in no rollout. An old or a hostile coordinator may ask it to.
    pub(super) fn broken_glass(&self) -> Option<Refusal> {
        let used = self.record.glass.iter().rev().find(|used| !used.settled)?;
        let detail = format!(
            "a break-glass token started epoch {} here without a coordinator, and operators have not settled that",
            used.epoch
        );
        Some(Refusal::of(Code::BrokenGlass, detail))
    }

    /// A coordinator that has moved on offers something else than what was started here: that ends at once. It is served by nobody
    /// else, and what follows is for the operators to settle.
    pub(super) fn is_barred_by_glass(&mut self, offered: Serving, out: &mut Out) -> bool {
        let Some(refusal) = self.broken_glass() else { return false };
        if offered == self.record.last_served() && self.record.membership.is_member() {
            return false;
        }
        if self.record.membership.is_member() && matches!(self.record.mode, Mode::Serve(_)) {
            self.record.membership = Membership::Returned;
            out.record_changed = true;
            self.opening = None;
            self.close_what_must_not_serve(out);
        }
        out.send(FromHost::dark(refusal));
        true
    }

    /// The operators have looked at what was done here. Whoever serves what the fleet serves goes on; whoever had to stop asks to be
    /// admitted to what it serves by now.
    pub(super) fn glass_settled(&mut self, settlement: &GlassSettlement, entropy: Entropy, out: &mut Out) {
        let record = &mut self.record;
        if settlement.fleet != record.fleet || settlement.host != record.host {
            let detail = format!("the settlement is for {} of {}", settlement.host, settlement.fleet);
            out.refuse(None, Refusal::of(Code::OrderInvalid, detail));
            return;
        }
        let open = record.glass.iter_mut().filter(|used| !used.settled);
        for used in open.filter(|used| settlement.tokens.binary_search(&used.id).is_ok()) {
            used.settled = true;
            out.record_changed = true;
        }
        if out.record_changed && record.membership == Membership::Returned && !self.is_stopping() {
            self.ask_to_return(entropy, out);
        }
    }
}

/// What is kept keeps tokens from being used twice, so that nothing of it goes before its token must have expired.
fn is_kept(used: &BrokenGlass, now: UnixTime) -> bool {
    !used.settled || now.0 < used.at_unix_ms.0.saturating_add(GlassToken::VALIDITY_MS_MAX)
}

fn refused(detail: impl Into<String>) -> Refusal {
    Refusal::of(Code::GlassTokenRefused, detail)
}

#[cfg(test)]
mod tests;
