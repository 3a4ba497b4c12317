//! What an agent keeps durably of one fleet.

use muster_model::{
    Additions, BootTime, BrokenGlass, Closing, Digest, Epoch, FleetName, FlipMode, HaltId, HostMode,
    HostName, Leadership, Membership, RolloutId, RosterRevision, Secret, Standing, Token,
};
use serde::{Deserialize, Serialize};

/// The version of this record's format.
pub const RECORD_FORMAT: u32 = 1;

/// A host's promises. P6: its counters never fall.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// The fleet.
    pub fleet: FleetName,
    /// This host.
    pub host: HostName,
    /// Its mode.
    pub mode: Mode,
    /// The last rollout it armed for; also the newest order it has accepted.
    pub last_k: RolloutId,
    /// The newest leadership it has obeyed.
    pub leadership: Leadership,
    /// The newest roster it has verified.
    pub roster_revision: RosterRevision,
    /// The hosts that it has in addition to what the operators signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub additions: Option<Additions>,
    /// What its attestation for a rollout committed to, until it arms or the rollout is over.
    pub committed: Option<Committed>,
    /// The token for its next session.
    pub token: Option<Token>,
    /// Whether the journal was damaged and this record taken from its anchor.
    pub history: History,
    /// Whether the host is halted. It stands beside the mode, so that nothing is forgotten by a halt.
    pub halted: Option<Halted>,
    /// Whether it serves with the others. It stands beside the mode as well: what is promised is not forgotten.
    #[serde(default, skip_serializing_if = "Membership::is_member")]
    pub membership: Membership,
    /// The break-glass tokens that were used here, oldest first. Each counts once; those that are not settled keep the host from taking
    /// part in rollouts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub glass: Vec<BrokenGlass>,
}

/// A halt of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halted {
    /// The last rollout then: nothing is served until a later one is opened.
    pub after: RolloutId,
    /// Which halt of the guard it is, once that has told.
    pub halt: Option<HaltId>,
}

/// A closing secret that an attestation has committed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Committed {
    /// The rollout.
    pub k: RolloutId,
    /// The secret.
    pub secret: Secret,
}

/// Whether the journal is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum History {
    /// It is.
    Whole,
    /// It was lost; the coordinator has not let the host join since.
    Lost,
}

/// What a host may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Mode {
    /// Serve an epoch without a lease.
    Serve(Serving),
    /// Serve it until told to close for rollout `k`.
    Armed {
        /// The rollout.
        k: RolloutId,
        /// What is served meanwhile.
        serving: Serving,
        /// What follows.
        next: Next,
        /// Step 14: in fast mode, when the guard flips.
        switch: Option<Switch>,
    },
    /// Serve nothing until told to open.
    Closed {
        /// The rollout it last armed for.
        k: RolloutId,
        /// What follows if rollout `k` is completed.
        next: Next,
        /// What follows if `k` is given up: the rollout before, which the host was closed for already.
        fallback: Option<Next>,
        /// When it stopped serving, on the host's clock, in milliseconds.
        at_boot_ms: u64,
    },
}

/// An epoch and its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serving {
    /// The epoch.
    pub epoch: Epoch,
    /// The manifest; nothing at epoch 0.
    pub release: Option<Digest>,
}

/// Step 14: the instant of a flip in fast mode, fixed when the host armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// On the host's clock, in the boot in which it armed.
    pub at_boot_ms: BootTime,
    /// Whether the rollout was decided, as far as the host knows.
    pub stage: SwitchStage,
}

/// How far a flip in fast mode has come on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwitchStage {
    /// The host fences at its deadline.
    Armed,
    /// The guard was told to flip at the instant.
    Set,
}

/// What a host will serve once all hosts have closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Next {
    /// The rollout whose order leads there.
    pub k: RolloutId,
    /// The epoch.
    pub epoch: Epoch,
    /// The manifest.
    pub release: Digest,
    /// What all N hosts committed to: only their secrets open this host.
    pub closing: Closing,
    /// This host's own secret.
    pub secret: Secret,
    /// Of how many hosts the order accepts a lapsed lease for the secret.
    pub max_lapsed: u32,
    /// Strict or fast: in fast mode hosts open without the secrets.
    pub mode: FlipMode,
}

impl HostRecord {
    /// The record of a host that has never served.
    #[must_use]
    pub const fn first(fleet: FleetName, host: HostName) -> Self {
        Self {
            format: RECORD_FORMAT,
            fleet,
            host,
            mode: Mode::Serve(Serving { epoch: Epoch(0), release: None }),
            last_k: RolloutId(0),
            leadership: Leadership { incarnation: muster_model::Incarnation(0), term: muster_model::Term(0) },
            roster_revision: RosterRevision(0),
            additions: None,
            committed: None,
            token: None,
            history: History::Whole,
            halted: None,
            membership: Membership::Member,
            glass: Vec::new(),
        }
    }

    /// What the coordinator is told of it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            mode: match &self.mode {
                Mode::Serve(serving) => HostMode::Serve(serving.epoch),
                Mode::Armed { k, serving, .. } => HostMode::Armed(*k, serving.epoch),
                Mode::Closed { k, .. } => HostMode::Closed(*k),
            },
            last_k: self.last_k,
            leadership: self.leadership,
            roster_revision: self.roster_revision,
            history_lost: matches!(self.history, History::Lost),
            halted: self.halted.map(|halted| halted.after),
            membership: self.membership,
            glass: self.glass.clone(),
        }
    }

    /// What the host may serve at this moment; nothing while it is closed, or while it is no member of the fleet.
    #[must_use]
    pub const fn may_serve(&self) -> Option<Serving> {
        match (&self.mode, self.membership) {
            (Mode::Serve(serving) | Mode::Armed { serving, .. }, Membership::Member) => Some(*serving),
            (_, Membership::Excluded(_) | Membership::Returned)
            | (Mode::Closed { .. }, Membership::Member) => None,
        }
    }

    /// What it serves, or has served last, as far as it knows.
    #[must_use]
    pub const fn last_served(&self) -> Serving {
        match &self.mode {
            Mode::Serve(serving) | Mode::Armed { serving, .. } => *serving,
            Mode::Closed { next, fallback, .. } => {
                let waits = match fallback {
                    Some(fallback) => fallback,
                    None => next,
                };
                Serving { epoch: Epoch(waits.epoch.0.saturating_sub(1)), release: None }
            }
        }
    }

    /// The releases that must stay on disk: what is served and what may be opened.
    #[must_use]
    pub fn needed_releases(&self) -> Vec<Digest> {
        match &self.mode {
            Mode::Serve(serving) => serving.release.into_iter().collect(),
            Mode::Armed { serving, next, .. } => serving.release.into_iter().chain([next.release]).collect(),
            Mode::Closed { next, fallback, .. } => {
                [next.release].into_iter().chain(fallback.iter().map(|next| next.release)).collect()
            }
        }
    }
}
