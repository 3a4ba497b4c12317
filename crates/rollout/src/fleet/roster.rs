//! Membership: a signed roster takes the place of the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_model::{Blocker, Code, HostName, Member, Refusal};

use super::record::{Offers, Phase, roster_ref};
use super::{Fleet, Host, NextRoster, Out, Step};

impl Fleet {
    /// "The roster changes only in SETTLED, or as a removal in OPENED."
    ///
    /// A host that was offered unleased service cannot leave here: that needs proof that it no longer serves. One that
    /// has closed, or whose lease has lapsed, and that was offered nothing since, can.
    pub fn apply_roster(&mut self, next: NextRoster) -> Result<Step, Refusal> {
        let NextRoster { roster, digest, envelope, fenced } = next;
        if roster.fleet() != &self.record.fleet {
            let detail = format!("this roster is for the fleet {}", roster.fleet());
            return Err(Refusal::of(Code::FleetUnknown, detail));
        }
        // A host that claims to know more than this coordinator can be put out, or its word would bind the fleet for good.
        if let Some((_, blocker)) = self.ahead().find(|(host, _)| roster.position(host).is_some()) {
            return Err(Refusal::because(blocker.clone()));
        }
        match &self.record.phase {
            Phase::Settled => {}
            Phase::Opened(_) if self.only_removes(&roster) => {}
            Phase::Preparing(rollout) => {
                return Err(unsettled(&format!("rollout {} is under way", rollout.k)));
            }
            Phase::Arming(it) | Phase::Decided(it) => {
                return Err(unsettled(&format!("rollout {} is under way", it.rollout.k)));
            }
            Phase::Opened(it) => {
                let detail =
                    format!("hosts are still to open for rollout {}; until then hosts can only leave", it.k);
                return Err(unsettled(&detail));
            }
        }
        let expected = self.record.roster.revision.next();
        if roster.revision() != expected {
            let detail =
                format!("this roster has revision {}; the next one is {expected}", roster.revision());
            return Err(Refusal::of(Code::RosterChanged, detail));
        }
        self.check_additions(&roster)?;
        self.check_removals(&roster, &fenced)?;
        let mut out = Out { record_changed: true, ..Out::default() };
        let mut previous: BTreeMap<HostName, Host> =
            std::mem::take(&mut self.hosts).into_iter().map(|host| (host.name.clone(), host)).collect();
        self.hosts = roster
            .hosts()
            .iter()
            .map(|member| {
                let stays = self.roster.member(&member.name) == Some(member);
                let known = if stays { previous.remove(&member.name) } else { None };
                known.unwrap_or_else(|| Host::new(&member.name, None))
            })
            .collect();
        for gone in previous.into_values() {
            if let Some(session) = gone.session {
                let detail = format!("revision {expected} of the roster does not list this machine");
                let refusal = Refusal::because(Blocker::host(Code::HostNotInRoster, &gone.name, detail));
                out.refuse_session(&gone.name, session.id, refusal);
            }
        }
        // `All` meant the hosts of the roster before; hosts that are new have not been offered anything.
        if self.record.offers == Offers::All {
            let stay =
                self.roster.hosts().iter().filter(|member| roster.member(&member.name) == Some(*member));
            self.record.offers = Offers::Only(stay.map(|member| member.name.clone()).collect());
        } else if let Offers::Only(offered) = &mut self.record.offers {
            offered.retain(|host| roster.member(host).is_some_and(|it| self.roster.member(host) == Some(it)));
        }
        self.record.roster = roster_ref(&roster, digest);
        self.record.roster_envelope = envelope;
        self.roster = Arc::new(roster);
        self.settle_if_measured(&mut out);
        Ok(self.step(out))
    }

    /// An addition goes on from what is in force, and from nothing else.
    fn check_additions(&self, next: &muster_model::Roster) -> Result<(), Refusal> {
        let in_force = &self.record.roster;
        let refused = |error| Refusal::of(Code::RosterChanged, format!("the roster is refused: {error}"));
        next.check_follows(in_force.revision, self.roster.additions()).map_err(refused)?;
        match next.additions() {
            Some(additions) if additions.follows != in_force.digest => {
                let detail = "hosts were added to another roster than the one in force";
                Err(Refusal::of(Code::RosterChanged, detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn only_removes(&self, next: &muster_model::Roster) -> bool {
        let stays = |member: &&Member| self.roster.member(&member.name) == Some(*member);
        next.hosts().iter().filter(stays).count() == next.hosts().len()
            && next.policy() == self.roster.policy()
    }

    /// "Otherwise removal needs external fence evidence (power off)." A host whose key changes is another machine: the
    /// one before leaves.
    fn check_removals(
        &self,
        next: &muster_model::Roster,
        fenced: &BTreeSet<HostName>,
    ) -> Result<(), Refusal> {
        let leaves = |(member, _): &(&Member, &Host)| {
            next.member(&member.name) != Some(*member) && self.record.offers.include(&member.name)
        };
        let blockers: Vec<Blocker> = self
            .roster
            .hosts()
            .iter()
            .zip(&self.hosts)
            .filter(leaves)
            .filter_map(|(member, host)| {
                let detail = match (fenced.contains(&member.name), host.session.is_some()) {
                    (true, false) => return None,
                    (true, true) => "it is connected, so its machine is not off",
                    (false, _) => "it may serve, and nothing proves that it does not",
                };
                Some(Blocker::host(Code::RemovalNeedsEvidence, &member.name, detail))
            })
            .collect();
        if blockers.is_empty() { Ok(()) } else { Err(Refusal { blockers }) }
    }
}

fn unsettled(detail: &str) -> Refusal {
    Refusal::of(Code::Busy, format!("the roster changes only while the fleet is settled; {detail}"))
}
