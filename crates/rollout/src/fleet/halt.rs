//! Halt: an operator's word that the fleet serves nothing any more, until an order says otherwise.

use muster_model::{Blocker, HostName, Refusal, RolloutId, ToHost};

use super::record::Phase;
use super::{Fleet, Out, Step};

impl Fleet {
    /// Has every host stop at once. A rollout that is not decided is given up; one that is goes on to OPENED, where
    /// hosts refuse to open. Only an order with a higher number resumes the fleet.
    pub fn halt(&mut self, reason: Blocker) -> Step {
        let mut out = Out::default();
        match &self.record.phase {
            Phase::Preparing(_) | Phase::Arming(_) => self.abort_with(vec![reason], &mut out),
            Phase::Settled | Phase::Decided(_) | Phase::Opened(_) => {}
        }
        let k = self.record.last_k;
        self.record.halted = Some(k);
        out.record_changed = true;
        self.broadcast(&ToHost::Halt { k }, &mut out);
        self.step(out)
    }

    /// Tells a host that joins of the halt that it missed. Says whether the fleet is halted.
    pub(super) fn tell_halt(&self, index: usize, out: &mut Out) -> bool {
        let Some(halted) = self.record.halted else { return false };
        let knows =
            self.hosts[index].known.as_ref().and_then(|known| known.halted).is_some_and(|at| at >= halted);
        if !knows {
            self.send(index, ToHost::Halt { k: halted }, out);
        }
        true
    }

    /// Whether some host serves nothing because it, or the fleet, was halted: then an order may lead to what was served.
    pub(super) fn can_resume(&self) -> bool {
        self.record.halted.is_some() || self.hosts.iter().any(|host| host.halted().is_some())
    }

    /// The hosts that are ahead of this coordinator: while there are any, it must not lead.
    pub(super) fn ahead(&self) -> impl Iterator<Item = (&HostName, &Blocker)> {
        let all = self.hosts.iter().chain(&self.parked);
        all.filter_map(|host| host.ahead.as_ref().map(|blocker| (&host.name, blocker)))
    }

    pub(super) fn check_not_ahead(&self) -> Result<(), Refusal> {
        match self.ahead().next() {
            Some((_, blocker)) => Err(Refusal::because(blocker.clone())),
            None => Ok(()),
        }
    }
}

impl super::Host {
    pub(super) fn halted(&self) -> Option<RolloutId> {
        self.known.as_ref().and_then(|known| known.halted)
    }

    /// Takes note that the host refuses to open because it was halted, perhaps by hand since it joined.
    pub(super) fn was_halted(&mut self, fleet: Option<RolloutId>) {
        if let Some(known) = &mut self.known {
            known.halted = Some(fleet.unwrap_or(known.last_k));
        }
    }

    /// Takes note that the host serves: no halt holds any more.
    pub(super) fn was_resumed(&mut self) {
        if let Some(known) = &mut self.known {
            known.halted = None;
        }
    }
}
