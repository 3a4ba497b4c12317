//! Readable examples, one for each row of the protocol's tables.

mod additions;
mod evidence;
mod fences;
mod flips;
mod glass;
mod halts;
mod leaders;
mod leases;
mod membership;
mod parking;
mod recovery;
mod refusals;

use muster_model::{Blocker, Code, RolloutId, ToHost};

use super::link::{Link, Origin};
use super::machine::Pending;
use super::world::World;
use crate::fleet::{End, Phase};
use crate::host::Mode;

impl World {
    /// Three hosts that serve release 0 in epoch 1.
    pub(super) fn settled() -> Self {
        let mut world = Self::running(3, 1);
        world.flip(0);
        world.expect_all_serve(0, 1);
        world
    }

    /// Proposes a flip and lets it end, however it does.
    fn flip(&mut self, to: usize) -> RolloutId {
        let k = self.propose(to).expect("the proposal is in order");
        self.rest();
        k
    }

    /// Proposes a flip and stops as soon as `phase` holds.
    pub(super) fn flip_until(&mut self, to: usize, phase: fn(&Phase) -> bool) -> RolloutId {
        let k = self.propose(to).expect("the proposal is in order");
        self.expect_until(|world| phase(&world.coordinator.record.phase));
        k
    }

    fn expect_until(&mut self, done: impl FnMut(&Self) -> bool) {
        let reached = self.run_until(done);
        assert!(reached, "{:?} {:?}", self.coordinator.record.phase, self.violation);
    }

    #[track_caller]
    pub(super) fn expect_all_serve(&self, release: usize, epoch: u64) {
        assert_eq!(self.violation, None);
        assert_eq!(self.coordinator.record.phase, Phase::Settled);
        for machine in &self.machines {
            self.expect_serves(&machine.name, release, epoch);
        }
    }

    #[track_caller]
    fn expect_serves(&self, host: &muster_model::HostName, release: usize, epoch: u64) {
        let machine = self.machines.iter().find(|machine| machine.name == *host).expect("a machine");
        let serving = (muster_model::Epoch(epoch), self.releases[release].manifest);
        assert_eq!(machine.guard, Some(serving), "{host}");
    }

    #[track_caller]
    fn last_end(&self) -> &End {
        self.ends.last().expect("a rollout has ended")
    }

    /// Says something to a host over its current stream, and lets the host hear it at once.
    fn say(&mut self, index: usize, message: ToHost) {
        let leadership = self.coordinator.record.leadership;
        let link: &mut Link = self.machines[index].link.as_mut().expect("the host is connected");
        link.down.insert(0, (leadership, message, Origin::Forger));
        self.advance(index, Pending::Down);
    }

    /// The code of the host's newest refusal.
    fn refusal_of(&self, index: usize) -> Option<Code> {
        self.machines[index].refusals.last().and_then(muster_model::Refusal::code)
    }
}

fn codes(blockers: &[Blocker]) -> Vec<(Code, Option<&str>)> {
    blockers.iter().map(|it| (it.code, it.host.as_ref().map(muster_model::HostName::as_str))).collect()
}

const fn is_arming(phase: &Phase) -> bool {
    matches!(phase, Phase::Arming(_))
}

const fn is_decided(phase: &Phase) -> bool {
    matches!(phase, Phase::Decided(_))
}

pub(super) const fn is_opened(phase: &Phase) -> bool {
    matches!(phase, Phase::Opened(_))
}

const fn is_armed(mode: &Mode) -> bool {
    matches!(mode, Mode::Armed { .. })
}

const fn is_closed(mode: &Mode) -> bool {
    matches!(mode, Mode::Closed { .. })
}
