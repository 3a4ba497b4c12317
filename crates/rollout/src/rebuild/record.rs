//! The record that a rebuilt coordinator takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_model::{
    Blocker, Closing, Closure, Code, Commitment, Digest, FlipMode, HostName, Leadership, Mandate, Member,
    Order, RolloutId, Roster, RosterRef, Secrets, UnixTime, Verified,
};

use super::judge::Verdict;
use super::testimony::{Promise, Testimony};
use crate::fleet::{
    Armament, Base, ComingRoster, FleetRecord, Inheritance, Offers, Opening, Papers, Phase, RECORD_FORMAT,
    Rollout, SessionRecord,
};

/// How far the numbers of rollouts leap. Those that were given up before any host had armed for them are not known any more, and
/// the orders for them, which nobody may use again, are still valid for a while.
pub(crate) const ROLLOUTS_LEAPT: u64 = 1_000;

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

    /// Takes the closing secrets of a rollout that was opened to others from those who are still closed for it, if nobody has kept
    /// them. Returns what is to be kept then.
    ///
    /// Of a host that says nothing what it had committed to stands for it, as far as the order allows: the wait for it was over when
    /// the rollout was opened.
    pub fn reveal(&mut self, told: &BTreeMap<HostName, Testimony>) -> Option<Secrets> {
        if self.is_proven() {
            return None;
        }
        let revealed = |host: &HostName| told.get(host)?.revealed.filter(|it| it.k == self.order.counter);
        let closures = self.roster.hosts().iter().zip(&self.commitments).map(|(member, commitment)| {
            let known = revealed(&member.name).filter(|it| it.secret.commitment() == *commitment);
            known.map_or(Closure::Lapsed(*commitment), |it| Closure::Revealed(it.secret))
        });
        let secrets: Secrets = closures.collect();
        self.secrets = Some((Digest::of(secrets.as_bytes()), secrets.clone()));
        if self.is_proven() { Some(secrets) } else { None }
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

/// The roster that the operators have mandated a coordinator with.
#[derive(Debug, Clone, Copy)]
pub struct Mandated<'a> {
    /// The roster.
    pub roster: &'a Arc<Verified<Roster>>,
    /// How documents refer to it.
    pub reference: RosterRef,
    /// Its envelope, a document.
    pub envelope: Digest,
    /// The mandate.
    pub mandate: &'a Mandate,
}

/// The rosters of a record: the one in force, and the one that follows it.
struct Rosters {
    in_force: Arc<Verified<Roster>>,
    reference: RosterRef,
    envelope: Digest,
    coming: Option<(ComingRoster, Arc<Verified<Roster>>)>,
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
        mandated: Mandated<'_>,
        sessions: Vec<SessionRecord>,
        opened: Option<&Dossier>,
        decided: Option<&Dossier>,
    ) -> Result<(FleetRecord, Inheritance), Blocker> {
        let (phase, commitments) = self.phase(opened, decided)?;
        let opening = opened.and_then(|dossier| dossier.opening(Digest::of(b"")));
        let secrets = opened.and_then(|dossier| dossier.secrets.clone()).map(|(_, secrets)| secrets);
        let is_settled = phase == Phase::Settled;
        let rosters = self.rosters(mandated, decided)?;
        let (coming, next) = rosters.coming.unzip();
        let record = FleetRecord {
            format: RECORD_FORMAT,
            fleet: rosters.in_force.fleet().clone(),
            leadership,
            revision: 0,
            roster: rosters.reference,
            roster_envelope: rosters.envelope,
            last_k: RolloutId(self.last_k.0 + ROLLOUTS_LEAPT),
            epoch: self.epoch,
            serving: self.serving,
            previous: opened
                .and_then(|dossier| dossier.order.from)
                .filter(|from| Some(*from) != self.serving),
            phase,
            offers: Offers::All,
            halted: self.halted,
            completed: opening.filter(|_| is_settled),
            coming,
            joining: BTreeSet::new(),
            missed: Vec::new(),
        };
        let secrets = secrets.filter(|_| record.phase.opening().is_some()).unwrap_or_default();
        let roster = rosters.in_force;
        // Hosts give their word again when they join.
        let withdrawals = Vec::new();
        Ok((record, Inheritance { roster, coming: next, sessions, withdrawals, commitments, secrets }))
    }

    /// A rollout that goes forward counts N by the roster that its order is bound to, and waits by that one's times: the
    /// mandated one comes after it, as any that was handed in meanwhile. Otherwise the mandated one holds.
    fn rosters(&self, mandated: Mandated<'_>, decided: Option<&Dossier>) -> Result<Rosters, Blocker> {
        let Mandated { roster, reference, envelope, mandate } = mandated;
        let holds = || Rosters { in_force: Arc::clone(roster), reference, envelope, coming: None };
        let (Some(promise), Some(decided)) = (&self.decided, decided) else { return Ok(holds()) };
        let bound = &decided.order;
        if bound.roster == reference.digest {
            return Ok(holds());
        }
        let before = &decided.roster;
        let is_policy_kept = before.policy() == roster.policy();
        let keeps_all = staying(before, roster).count() == before.hosts().len();
        let only_removes = staying(before, roster).count() == roster.hosts().len();
        if roster.revision() <= before.revision() || !is_policy_kept || !(keeps_all || only_removes) {
            let (k, revision) = (promise.k, before.revision());
            let detail = format!(
                "rollout {k} goes forward with the hosts and times of revision {revision} of the roster; until it is over hosts \
                 can join, or leave, and nothing else changes: have operators sign a later one like that, and mandate it"
            );
            return Err(Blocker::fleet(Code::RosterChanged, detail));
        }
        let stated = roster.fenced().iter().map(|fence| fence.host.clone());
        let fenced = mandate.fenced.iter().cloned().chain(stated).collect();
        let coming = ComingRoster { roster: reference, envelope, fenced };
        Ok(Rosters {
            in_force: Arc::new(before.clone()),
            reference: RosterRef {
                digest: bound.roster,
                revision: bound.roster_revision,
                hosts: bound.hosts,
            },
            envelope: decided.papers.roster,
            coming: Some((coming, Arc::clone(roster))),
        })
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
            // Hosts that were told know the instant by themselves; the others have fenced.
            let instant = match promise.mode {
                FlipMode::Fast => Some(UnixTime(0)),
                FlipMode::Strict => None,
            };
            let armament = Armament { rollout, evidence: dossier.evidence, instant };
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

/// The hosts of one roster that serve under the next one as well.
fn staying<'a>(before: &'a Roster, next: &'a Roster) -> impl Iterator<Item = &'a HostName> {
    let stays = |member: &&Member| next.member(&member.name) == Some(*member);
    before.hosts().iter().filter(stays).map(|member| &member.name)
}
