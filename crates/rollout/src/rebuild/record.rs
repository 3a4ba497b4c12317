//! The record that a rebuilt coordinator takes over.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_model::{
    Blocker, Closing, Code, Commitment, Digest, FlipMode, HostName, Leadership, Order, Roster, RosterRef,
    Secrets, Verified,
};

use super::judge::Verdict;
use super::testimony::Promise;
use crate::fleet::{
    Armament, Base, FleetRecord, Inheritance, Offers, Opening, Papers, Phase, RECORD_FORMAT, Rollout,
    SessionRecord,
};

/// The documents of one rollout, each verified with the keys that may sign it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dossier {
    /// The order.
    pub order: Verified<Order>,
    /// The roster that it is bound to.
    pub roster: Verified<Roster>,
    /// The envelopes' digests.
    pub papers: Papers,
    /// The digest of the evidence.
    pub evidence: Digest,
    /// What the N attestations commit to, in the order of the roster.
    pub commitments: Vec<Commitment>,
    /// Why each host counted as closed, with the digest, if some host has kept it.
    pub secrets: Option<(Digest, Secrets)>,
}

impl Dossier {
    /// Whether these are the documents of what hosts have promised.
    #[must_use]
    pub fn is_of(&self, promise: &Promise) -> bool {
        self.order.counter == promise.k
            && self.order.to == promise.release
            && self.order.mode == promise.mode
            && Closing::of_commitments(&self.commitments) == promise.closing
    }

    /// Whether they prove that all hosts were closed.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        let closing = Closing::of_commitments(&self.commitments);
        self.secrets.as_ref().is_some_and(|(_, secrets)| closing.is_proven_by(secrets, self.order.max_lapsed))
    }

    fn opening(&self, empty: Digest) -> Option<Opening> {
        let (secrets, lapsed) = match (self.order.mode, &self.secrets) {
            (FlipMode::Fast, _) => (empty, BTreeSet::new()),
            (FlipMode::Strict, Some((digest, secrets))) if self.is_proven() => {
                let hosts = secrets.iter().zip(self.roster.hosts());
                let lapsed = hosts.filter(|(closure, _)| closure.secret().is_none());
                (*digest, lapsed.map(|(_, member)| member.name.clone()).collect::<BTreeSet<HostName>>())
            }
            (FlipMode::Strict, Some(_) | None) => return None,
        };
        Some(Opening {
            k: self.order.counter,
            papers: self.papers,
            evidence: self.evidence,
            secrets,
            mode: self.order.mode,
            lapsed,
            contingency: None,
        })
    }
}

impl Verdict {
    /// The fleet's record in `leadership`, and what its leader inherits.
    ///
    /// `opened` are the documents of the rollout that began the present epoch, if they are to be had, and `decided` those of the
    /// one that goes forward. Offers are taken to have been made to all: which were is not known, so no host leaves without
    /// evidence.
    pub fn record(
        &self,
        leadership: Leadership,
        (roster, reference, envelope): (&Arc<Verified<Roster>>, RosterRef, Digest),
        sessions: Vec<SessionRecord>,
        opened: Option<&Dossier>,
        decided: Option<&Dossier>,
    ) -> Result<(FleetRecord, Inheritance), Blocker> {
        let (phase, commitments) = self.phase(opened, decided)?;
        let opening = opened.and_then(|dossier| dossier.opening(Digest::of(b"")));
        let secrets = opened.and_then(|dossier| dossier.secrets.clone()).map(|(_, secrets)| secrets);
        let is_settled = phase == Phase::Settled;
        let record = FleetRecord {
            format: RECORD_FORMAT,
            fleet: roster.fleet().clone(),
            leadership,
            revision: 0,
            roster: reference,
            roster_envelope: envelope,
            last_k: self.last_k,
            epoch: self.epoch,
            serving: self.serving,
            previous: opened
                .and_then(|dossier| dossier.order.from)
                .filter(|from| Some(*from) != self.serving),
            phase,
            offers: Offers::All,
            halted: self.halted,
            completed: opening.filter(|_| is_settled),
        };
        let secrets = secrets.filter(|_| record.phase.opening().is_some()).unwrap_or_default();
        let roster = Arc::clone(roster);
        Ok((record, Inheritance { roster, sessions, commitments, secrets }))
    }

    fn phase(
        &self,
        opened: Option<&Dossier>,
        decided: Option<&Dossier>,
    ) -> Result<(Phase, Vec<Commitment>), Blocker> {
        let lost = |code, promise: &Promise, what: &str| {
            Blocker::fleet(code, format!("no host has kept {what} of rollout {}", promise.k))
        };
        if let Some(promise) = &self.decided {
            let dossier = decided.filter(|dossier| dossier.is_of(promise));
            let dossier = dossier.ok_or_else(|| lost(Code::BadAttestation, promise, "the documents"))?;
            let rollout = Rollout {
                k: promise.k,
                to: promise.release,
                papers: dossier.papers,
                mode: promise.mode,
                max_lapsed: promise.max_lapsed,
                contingency: None,
                base: Base::Settled,
            };
            let armament = Armament { rollout, evidence: dossier.evidence, instant: None };
            return Ok((Phase::Decided(armament), dossier.commitments.clone()));
        }
        let Some(promise) = &self.opened else { return Ok((Phase::Settled, Vec::new())) };
        let dossier = opened.filter(|dossier| dossier.is_of(promise));
        let dossier = dossier.ok_or_else(|| lost(Code::BadAttestation, promise, "the documents"))?;
        let opening = dossier.opening(Digest::of(b""));
        let opening = opening.ok_or_else(|| lost(Code::ClosingUnproven, promise, "the closing secrets"))?;
        Ok((Phase::Opened(opening), Vec::new()))
    }
}
