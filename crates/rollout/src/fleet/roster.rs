//! Membership: a signed roster takes the place of the one before.

use std::sync::Arc;

use muster_model::{Blocker, Code, Refusal};

use super::record::{Offers, Phase, roster_ref};
use super::{Fleet, Host, NextRoster, Out, Step};

impl Fleet {
    /// "The roster changes only in SETTLED."
    ///
    /// A host that was offered unleased service cannot leave here: that needs proof that it no longer serves.
    pub fn apply_roster(&mut self, next: NextRoster) -> Result<Step, Refusal> {
        let NextRoster { roster, digest, envelope } = next;
        if roster.fleet() != &self.record.fleet {
            let detail = format!("this roster is for the fleet {}", roster.fleet());
            return Err(Refusal::of(Code::FleetUnknown, detail));
        }
        if let Some(blocker) = &self.frozen {
            return Err(Refusal::because(blocker.clone()));
        }
        match &self.record.phase {
            Phase::Settled => {}
            Phase::Preparing(rollout) => {
                return Err(unsettled(&format!("rollout {} is under way", rollout.k)));
            }
            Phase::Arming(it) | Phase::Decided(it) => {
                return Err(unsettled(&format!("rollout {} is under way", it.rollout.k)));
            }
            Phase::Opened(it) => {
                return Err(unsettled(&format!("hosts are still to open for rollout {}", it.k)));
            }
        }
        let expected = self.record.roster.revision.next();
        if roster.revision() != expected {
            let detail =
                format!("this roster has revision {}; the next one is {expected}", roster.revision());
            return Err(Refusal::of(Code::RosterChanged, detail));
        }
        self.check_removals(&roster)?;
        let mut out = Out { record_changed: true, ..Out::default() };
        let mut previous = std::mem::take(&mut self.hosts);
        self.hosts = roster
            .hosts()
            .iter()
            .map(|member| match previous.iter().position(|host| host.name == member.name) {
                Some(index) => previous.swap_remove(index),
                None => Host::new(&member.name, None),
            })
            .collect();
        for gone in previous {
            if let Some(session) = gone.session {
                let detail = format!("revision {expected} of the roster does not list it");
                let refusal = Refusal::because(Blocker::host(Code::HostNotInRoster, &gone.name, detail));
                out.refuse_session(&gone.name, session.id, refusal);
            }
        }
        // `All` meant the hosts of the roster before; hosts that are new have not been offered anything.
        if self.record.offers == Offers::All {
            let before = self.roster.hosts().iter().map(|member| member.name.clone());
            self.record.offers = Offers::Only(before.collect());
        }
        self.record.roster = roster_ref(&roster, digest);
        self.record.roster_envelope = envelope;
        self.roster = Arc::new(roster);
        Ok(self.step(out))
    }

    fn check_removals(&self, next: &muster_model::Roster) -> Result<(), Refusal> {
        let removed = self.roster.hosts().iter().map(|member| &member.name);
        let blockers: Vec<Blocker> = removed
            .filter(|host| next.position(host).is_none() && self.record.offers.include(host))
            .map(|host| {
                let detail = "it may serve, and nothing proves that it does not";
                Blocker::host(Code::RemovalNeedsEvidence, host, detail)
            })
            .collect();
        if blockers.is_empty() { Ok(()) } else { Err(Refusal { blockers }) }
    }
}

fn unsettled(detail: &str) -> Refusal {
    Refusal::of(Code::Busy, format!("the roster changes only while the fleet is settled; {detail}"))
}
