//! The signed documents of a modelled fleet, made once: they are named by what they say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{
    Digest, Document, Flip, FlipMode, Member, OnFailure, Order, Policy, PublicKey, Release, RolloutId,
    Roster, RosterRevision, Timing, UnixTime, Verified,
};

use super::super::papers::{SignedRoster, fleet_name, host_name, release};
use crate::fleet::{Papers, Proposal, roster_ref};

/// One tick of the abstract clock. A lease is two of them, a fence takes less than one, and the wait is exactly three.
pub(super) const TICK_MS: u64 = 150;
pub(super) const LEASE_TICKS: u64 = 2;
pub(super) const FENCE_TICKS: u64 = 1;
pub(super) const WAIT_TICKS: u64 = LEASE_TICKS + FENCE_TICKS;

pub(super) const RELEASES: usize = 2;
/// The first flip, two more with something that is given up in between, and one for luck.
const ROLLOUTS_MAX: u64 = 5;

/// Everything that operators and builders sign.
#[derive(Debug)]
pub(super) struct Archive {
    /// All hosts first; then, by number, all but one.
    rosters: Vec<SignedRoster>,
    releases: [Verified<Release>; RELEASES],
    orders: BTreeMap<Digest, Verified<Order>>,
}

impl Archive {
    pub(super) fn new(hosts: usize) -> Self {
        let all: Vec<usize> = (1..=hosts).collect();
        let without = |gone: usize| all.iter().copied().filter(|number| *number != gone).collect::<Vec<_>>();
        let mut rosters = vec![signed_roster(1, &all)];
        rosters.extend((1..=hosts).map(|gone| signed_roster(2, &without(gone))));
        let releases = [release(0), release(1)];
        let mut orders = BTreeMap::new();
        for roster in &rosters {
            for k in (1..=ROLLOUTS_MAX).map(RolloutId) {
                for from in [None, Some(0), Some(1)] {
                    for to in 0..RELEASES {
                        let from = from.map(|from: usize| releases[from].manifest);
                        let order = order(roster, k, from, releases[to].manifest);
                        orders.insert(order_paper(&order), order);
                    }
                }
            }
        }
        Self { rosters, releases, orders }
    }

    pub(super) fn first_roster(&self) -> &SignedRoster {
        &self.rosters[0]
    }

    /// The roster that follows the first, without one host.
    pub(super) fn roster_without(&self, index: usize) -> &SignedRoster {
        &self.rosters[index + 1]
    }

    pub(super) fn roster(&self, digest: Digest) -> &SignedRoster {
        self.rosters.iter().find(|it| it.digest == digest).expect("every roster of a model is in its archive")
    }

    pub(super) fn roster_in(&self, envelope: Digest) -> Option<&SignedRoster> {
        self.rosters.iter().find(|it| it.envelope == envelope)
    }

    pub(super) fn release_in(&self, paper: Digest) -> Option<&Verified<Release>> {
        self.releases.iter().find(|it| release_paper(it) == paper)
    }

    pub(super) fn order_in(&self, paper: Digest) -> Option<&Verified<Order>> {
        self.orders.get(&paper)
    }

    /// The order for the next rollout: to the release that is not served.
    pub(super) fn proposal(&self, roster: Digest, k: RolloutId, serving: Option<Digest>) -> Option<Proposal> {
        let roster = self.roster(roster);
        let to = usize::from(serving == Some(self.releases[0].manifest));
        let release = self.releases[to].clone();
        let wanted = order_paper(&order(roster, k, serving, release.manifest));
        let order = self.orders.get(&wanted)?.clone();
        let papers = Papers { order: wanted, release: release_paper(&release), roster: roster.envelope };
        Some(Proposal { order, release, papers, contingency: None, now: unix_now() })
    }
}

/// The time of day matters to strict mode only where documents expire.
pub(super) const fn unix_now() -> UnixTime {
    UnixTime(1_000_000)
}

pub(super) fn timing() -> Timing {
    Timing {
        lease_ms: LEASE_TICKS * TICK_MS,
        fence_ms: FENCE_TICKS * TICK_MS,
        rate_error_ppm: 0,
        wait_ms: WAIT_TICKS * TICK_MS,
        ..Timing::default()
    }
}

pub(super) fn lease() -> Duration {
    timing().lease()
}

fn signed_roster(revision: u64, numbers: &[usize]) -> SignedRoster {
    let member = |number: &usize| Member {
        name: host_name(*number),
        attestation_key: PublicKey::Ed25519([u8::try_from(*number).expect("few hosts"); 32]),
    };
    let policy = Policy { timing: timing(), ..Policy::default() };
    let members = numbers.iter().map(member).collect();
    let roster =
        Roster::new(fleet_name(), RosterRevision(revision), policy, members).expect("unique names and keys");
    let digest = Digest::of(&roster.to_bytes());
    let envelope = Digest::of_parts(&[b"envelope", digest.as_bytes()]);
    SignedRoster { roster: Arc::new(Verified::assert(roster)), digest, envelope }
}

fn order(roster: &SignedRoster, k: RolloutId, from: Option<Digest>, to: Digest) -> Verified<Order> {
    let hosts = roster.roster.hosts().len();
    let max_lapsed = u32::try_from(hosts - 1).expect("few hosts").min(1);
    let flip = Flip { from, to, mode: FlipMode::Strict, on_failure: OnFailure::Hold, max_lapsed };
    let validity = unix_now()..UnixTime(unix_now().0 + Order::VALIDITY_MS_MAX);
    let roster = roster_ref(&roster.roster, roster.digest);
    Verified::assert(Order::new(fleet_name(), k, roster, flip, validity).expect("the parts fit together"))
}

fn order_paper(order: &Order) -> Digest {
    let from = order.from.unwrap_or_else(|| Digest::of(b"nothing"));
    let k = order.counter.0.to_le_bytes();
    Digest::of_parts(&[b"order", &k, from.as_bytes(), order.to.as_bytes(), order.roster.as_bytes()])
}

fn release_paper(release: &Release) -> Digest {
    Digest::of_parts(&[b"release", release.manifest.as_bytes()])
}
