//! What one host tells.

use muster_model::{
    Closing, Digest, Epoch, FleetName, FlipMode, HostName, Leadership, Membership, RolloutId, RosterRevision,
    Secret,
};
use serde::{Deserialize, Serialize};

use crate::fleet::Papers;
use crate::host::{GuardState, History, Host, Mode, Next, Serving, SwitchStage};

/// The version of a testimony's format.
pub const TESTIMONY_FORMAT: u32 = 1;

/// A host's record without its secrets, and the documents that it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Testimony {
    /// [`TESTIMONY_FORMAT`].
    pub format: u32,
    /// The fleet.
    pub fleet: FleetName,
    /// The host.
    pub host: HostName,
    /// The newest leadership it has obeyed: only what is told under the new incarnation counts.
    pub leadership: Leadership,
    /// The last rollout it armed for.
    pub last_k: RolloutId,
    /// The newest roster it has verified.
    pub roster_revision: RosterRevision,
    /// Its mode.
    pub mode: Told,
    /// Whether its journal is whole.
    pub history: History,
    /// The last rollout when it was halted, if it is.
    pub halted: Option<RolloutId>,
    /// What its guard serves at this moment.
    pub serving: Option<Serving>,
    /// Its secret of the rollout that it has closed for, which it tells to whoever asks it to close again.
    pub revealed: Option<Revealed>,
    /// The envelope of the newest roster that it keeps.
    pub roster: Option<Digest>,
    /// The documents of the last rollouts that it has verified.
    pub kept: Vec<Kept>,
    /// The rollout that it is closing for at this moment. What comes of that is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing: Option<RolloutId>,
    /// Whether it serves with the others, by the rosters that it has verified.
    #[serde(default, skip_serializing_if = "Membership::is_member")]
    pub membership: Membership,
    /// Whether its guard has said that it serves nothing. That nothing is known of it is no proof.
    #[serde(default)]
    pub stopped: Stopped,
}

/// Whether a host is known to serve nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stopped {
    /// It may serve.
    #[default]
    Unproven,
    /// By the word of its guard.
    Proven,
}

/// A closing secret that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revealed {
    /// The rollout.
    pub k: RolloutId,
    /// The secret.
    pub secret: Secret,
}

/// A host's mode, without its closing secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Told {
    /// It may serve an epoch without a lease.
    Serve(Serving),
    /// It is armed.
    Armed {
        /// The rollout.
        k: RolloutId,
        /// What it serves meanwhile.
        serving: Serving,
        /// What follows.
        next: Promise,
        /// Whether its guard was told to flip at an instant: then that will be so, whoever leads.
        set: bool,
    },
    /// It is closed.
    Closed {
        /// The rollout it last armed for.
        k: RolloutId,
        /// What follows if that is completed.
        next: Promise,
        /// What follows if it is given up.
        fallback: Option<Promise>,
    },
}

/// What a host will serve once all hosts have closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// The rollout whose order leads there.
    pub k: RolloutId,
    /// The epoch.
    pub epoch: Epoch,
    /// The manifest.
    pub release: Digest,
    /// What all N hosts committed to.
    pub closing: Closing,
    /// Of how many hosts the order accepts a lapsed lease.
    pub max_lapsed: u32,
    /// Strict or fast.
    pub mode: FlipMode,
}

/// The documents of one rollout that a host keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The rollout.
    pub k: RolloutId,
    /// The manifest that it leads to.
    pub to: Digest,
    /// The envelopes that it rests on.
    pub papers: Papers,
    /// The N attestations.
    pub evidence: Digest,
    /// What the N hosts committed to.
    pub closing: Closing,
    /// Why each of the N hosts counted as closed, if this host was opened.
    pub secrets: Option<Digest>,
}

impl Testimony {
    /// The greatest rollout or epoch in it.
    pub(super) fn greatest_number(&self) -> u64 {
        let promised = self.mode.promises().flat_map(|promise| [promise.k.0, promise.epoch.0]);
        let serving = self.mode.serving().into_iter().chain(self.serving).map(|serving| serving.epoch.0);
        let others = [Some(self.last_k), self.halted, self.mode.rollout()].into_iter().flatten().map(|k| k.0);
        promised.chain(serving).chain(others).max().unwrap_or_default()
    }
}

impl Host {
    /// What this host tells a coordinator that is being rebuilt. Which documents are kept is for the driver to add.
    #[must_use]
    pub fn testify(&self) -> Testimony {
        let record = self.record();
        Testimony {
            format: TESTIMONY_FORMAT,
            fleet: record.fleet.clone(),
            host: record.host.clone(),
            leadership: record.leadership,
            last_k: record.last_k,
            roster_revision: record.roster_revision,
            mode: Told::from(&record.mode),
            history: record.history,
            halted: record.halted.map(|halted| halted.after),
            serving: match self.guard() {
                GuardState::Open(epoch, digest) => Some(Serving { epoch, release: Some(digest) }),
                GuardState::Unknown | GuardState::Dark => None,
            },
            revealed: revealed(&record.mode),
            roster: None,
            kept: Vec::new(),
            closing: self.closing(),
            membership: record.membership,
            stopped: match self.guard() {
                // What it was asked before may still be done after that word.
                GuardState::Dark if !self.is_stopping() => Stopped::Proven,
                GuardState::Dark | GuardState::Unknown | GuardState::Open(..) => Stopped::Unproven,
            },
        }
    }
}

/// A host that is closed for a rollout says so, and one that has armed for a later one while it was dark was closed for the one
/// before. For what it has armed for itself it has closed only once it was told to.
const fn revealed(mode: &Mode) -> Option<Revealed> {
    match mode {
        Mode::Closed { fallback: Some(next), .. } | Mode::Closed { next, fallback: None, .. } => {
            Some(Revealed { k: next.k, secret: next.secret })
        }
        Mode::Serve(_) | Mode::Armed { .. } => None,
    }
}

impl From<&Mode> for Told {
    fn from(mode: &Mode) -> Self {
        match mode {
            Mode::Serve(serving) => Self::Serve(*serving),
            Mode::Armed { k, serving, next, switch } => Self::Armed {
                k: *k,
                serving: *serving,
                next: Promise::from(next),
                set: switch.is_some_and(|switch| switch.stage == SwitchStage::Set),
            },
            Mode::Closed { k, next, fallback, at_boot_ms: _ } => Self::Closed {
                k: *k,
                next: Promise::from(next),
                fallback: fallback.as_ref().map(Promise::from),
            },
        }
    }
}

impl From<&Next> for Promise {
    fn from(next: &Next) -> Self {
        let Next { k, epoch, release, closing, secret: _, max_lapsed, mode } = *next;
        Self { k, epoch, release, closing, max_lapsed, mode }
    }
}

impl Told {
    /// What the host may serve.
    pub(super) const fn serving(&self) -> Option<Serving> {
        match self {
            Self::Serve(serving) | Self::Armed { serving, .. } => Some(*serving),
            Self::Closed { .. } => None,
        }
    }

    /// The rollout that it has armed or closed for last, unless it is settled.
    const fn rollout(&self) -> Option<RolloutId> {
        match self {
            Self::Armed { k, .. } | Self::Closed { k, .. } => Some(*k),
            Self::Serve(_) => None,
        }
    }

    /// Every promise that the host holds.
    pub(super) fn promises(&self) -> impl Iterator<Item = Promise> {
        let (next, fallback) = match self {
            Self::Serve(_) => (None, None),
            Self::Armed { next, .. } => (Some(*next), None),
            Self::Closed { next, fallback, .. } => (Some(*next), *fallback),
        };
        next.into_iter().chain(fallback)
    }

    /// The promise that this host still waited for when a later rollout was armed, or is to fall back to: only one that is open
    /// to others leaves a fleet free for the next.
    pub(super) fn opened_to_others(&self) -> Option<Promise> {
        match self {
            Self::Closed { k, next, fallback } => fallback.or_else(|| (*k > next.k).then_some(*next)),
            Self::Serve(_) | Self::Armed { .. } => None,
        }
    }

    /// The promise that leads to `epoch`.
    pub(super) fn towards(&self, epoch: Epoch) -> Option<Promise> {
        self.promises().find(|promise| promise.epoch == epoch)
    }
}
