//! What operators do in the simulated world.

use std::sync::Arc;

use muster_model::{
    Blocker, Code, Digest, Flip, HostName, OnFailure, Order, Refusal, RolloutId, UnixTime, Verified,
};

use super::machine::Machine;
use super::papers::{SignedRoster, fleet_name, host_name, signed_roster_after};
use super::world::{Heard, World};
use crate::fleet::{Event, NextRoster, Papers, Proposal};

/// By how much the time of day may differ between whoever signs and whoever verifies.
const CLOCKS_APART_MS_MAX: u64 = 60_000;

impl World {
    /// Proposes a flip to one of the releases.
    pub(super) fn propose(&mut self, to: usize) -> Result<RolloutId, Refusal> {
        let proposal = self.proposal(to, |_| {});
        self.propose_this(&proposal)
    }

    /// A proposal whose order was changed before it was signed.
    pub(super) fn proposal(&mut self, to: usize, change: impl FnOnce(&mut Order)) -> Proposal {
        let record = &self.coordinator.record;
        let to = self.releases[to].manifest;
        let now = self.unix_now();
        let flip = Flip {
            from: record.serving,
            to,
            mode: self.mode,
            on_failure: OnFailure::Hold,
            max_lapsed: self
                .max_lapsed
                .min(u32::try_from(self.roster_in_force().hosts().len() - 1).expect("few hosts")),
        };
        // Valid since a while ago, as orders are: not all clocks show the same.
        let from = now.0 - CLOCKS_APART_MS_MAX;
        let validity = UnixTime(from)..UnixTime(from + Order::VALIDITY_MS_MAX);
        let mut order = Order::new(fleet_name(), record.last_k.next(), record.roster, flip, validity)
            .expect("the parts fit together");
        change(&mut order);
        let order = Verified::assert(order);
        let paper = Digest::of_parts(&[b"order", &order.counter.0.to_le_bytes(), order.to.as_bytes()]);
        self.orders.insert(paper, order.clone());
        let at = self.position_of(to);
        let papers = Papers {
            order: paper,
            release: self.release_papers[at],
            roster: self.coordinator.record.roster_envelope,
        };
        Proposal { order, release: self.releases[at].clone(), papers, contingency: None, now }
    }

    /// A proposal that comes with the signed order to roll back.
    pub(super) fn proposal_with_contingency(&mut self, to: usize) -> Proposal {
        let mut proposal = self.proposal(to, |order| order.on_failure = OnFailure::Rollback);
        let order = Digest::of_parts(&[b"back from", proposal.papers.order.as_bytes()]);
        proposal.contingency = Some(Papers { order, ..proposal.papers });
        proposal
    }

    /// Proposes what may or may not be in order.
    pub(super) fn propose_this(&mut self, proposal: &Proposal) -> Result<RolloutId, Refusal> {
        let now = self.clock.at(self.now);
        let fleet = self.coordinator.fleet.as_mut().expect("the coordinator is up");
        let step = fleet.propose(proposal, now)?;
        self.check_propose();
        self.fleet_step(step);
        Ok(proposal.order.counter)
    }

    /// An operator halts the fleet.
    pub(super) fn halt(&mut self) {
        let Some(fleet) = &mut self.coordinator.fleet else { return };
        let step = fleet.halt(Blocker::fleet(Code::Halted, "by ops"));
        self.fleet_step(step);
    }

    /// An operator gives the rollout up.
    pub(super) fn abort(&mut self) -> Result<RolloutId, Refusal> {
        let fleet = self.coordinator.fleet.as_mut().expect("the coordinator is up");
        let (k, step) = fleet.abort(None, Blocker::fleet(Code::AbortedByOperator, "by ops"))?;
        self.fleet_step(step);
        Ok(k)
    }

    /// An operator settles that a host's identity is one machine.
    pub(super) fn readmit(&mut self, host: &HostName) {
        let Some(fleet) = &mut self.coordinator.fleet else { return };
        if let Ok(step) = fleet.readmit(host) {
            self.fleet_step(step);
        }
    }

    /// Applies the next roster, with machines 1 to `hosts`; those that are new start without anything deployed.
    pub(super) fn change_roster(&mut self, hosts: usize) -> Result<(), Refusal> {
        let fleet = self.coordinator.fleet.as_ref().expect("the coordinator is up");
        let last = fleet.coming().unwrap_or_else(|| fleet.roster());
        let revision = fleet.next_revision().0;
        let next = signed_roster_after(Some(last), revision, hosts, &self.parked, &self.fenced);
        self.apply_roster(next)?;
        self.forge_withdrawals();
        Ok(())
    }

    /// Applies this roster, of machines from 1 on.
    pub(super) fn apply_roster(&mut self, next: SignedRoster) -> Result<(), Refusal> {
        let hosts = next.roster.hosts().len() + next.roster.parked().len();
        let fleet = self.coordinator.fleet.as_mut().expect("the coordinator is up");
        let step = fleet.apply_roster(NextRoster {
            roster: Verified::clone(&next.roster),
            digest: next.digest,
            envelope: next.envelope,
            fenced: self.fenced.clone(),
        })?;
        let next_roster = Arc::clone(&next.roster);
        let stays = |host: &HostName| next_roster.member(host).is_some();
        self.stated.extend(self.fenced.iter().map(|host| (host.clone(), Heard::No)));
        self.stated.retain(|host, _| !stays(host));
        self.rosters.push(next);
        for number in self.machines.len() + 1..=hosts {
            self.machines.push(Machine::new(fleet_name(), host_name(number)));
            self.start_agent(number - 1);
        }
        self.fleet_step(step);
        if self.coordinator.fleet.is_none() {
            // It died before it could answer: whether it has kept what was stated, nobody knows.
            for host in &self.fenced {
                self.stated.entry(host.clone()).and_modify(|heard| *heard = Heard::Perhaps);
            }
        }
        Ok(())
    }

    /// Hands a roster in that parks one more host.
    pub(super) fn park(&mut self, number: usize) -> Result<(), Refusal> {
        self.parked.insert(number);
        let outcome = self.change_roster(self.hosts_listed());
        if outcome.is_err() {
            self.parked.remove(&number);
        }
        outcome
    }

    /// Hands a roster in that has a parked host serve again.
    pub(super) fn unpark(&mut self, number: usize) -> Result<(), Refusal> {
        self.parked.remove(&number);
        let outcome = self.change_roster(self.hosts_listed());
        if outcome.is_err() {
            self.parked.insert(number);
        }
        outcome
    }

    /// The operator deployed the serving release on every host again.
    pub(super) fn report_deployed(&mut self) {
        let Some(manifest) = self.coordinator.record.serving else { return };
        for index in 0..self.machines.len() {
            if let Some(session) = self.machines[index].session() {
                let host = self.machines[index].name.clone();
                self.coordinate(Event::Deployed { host, session, manifest });
            }
        }
    }
}
