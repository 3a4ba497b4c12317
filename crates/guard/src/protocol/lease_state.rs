//! What is said of a fleet's right to serve: deadlines, fences, flips at a fixed time, and halts.

use muster_model::{BootTime, Epoch, HaltId, RolloutId, UnixTime};
use serde::{Deserialize, Serialize};

use super::Opened;

/// What holds the right of a fleet to serve on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    /// No deadline runs: what is open goes on being served, what is closed may be opened.
    Free,
    /// What is served is fenced at the deadline.
    Armed(Armed),
    /// What is served is replaced at a fixed time.
    Decided(Decided),
    /// A fence has latched: nothing is served, and only an `open` changes that.
    Fenced(Fence),
}

/// A deadline of one rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Armed {
    /// The rollout.
    pub k: RolloutId,
    /// The number of what the fleet serves until then.
    pub epoch: Epoch,
    /// When the fleet is fenced.
    pub deadline_boot_ms: BootTime,
    /// Fast mode: when the fleet flips, if it is decided in time.
    #[serde(default)]
    pub flip: Option<FlipTime>,
}

/// The instant of a flip in fast mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlipTime {
    /// `T`, on this machine's clock.
    pub at_boot_ms: BootTime,
    /// `ε`: from `T − ε` on nothing replaces the deadline, which is never later than that.
    pub epsilon_ms: u64,
}

/// A flip that will happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decided {
    /// What was armed; its deadline is replaced.
    pub armed: Armed,
    /// When the fleet flips.
    pub at_boot_ms: BootTime,
    /// What it serves from then on.
    pub to: Opened,
}

/// One fence. Its times are of the boot in which it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// The rollout that the fleet was armed for.
    pub k: Option<RolloutId>,
    /// Why.
    pub cause: FenceCause,
    /// When the right to serve ended: the deadline, where there was one.
    pub due_boot_ms: BootTime,
    /// When the fence latched.
    pub begun_boot_ms: BootTime,
    /// When nothing was left of the service and the link, as verified; `None`: not yet.
    pub dark_boot_ms: Option<BootTime>,
    /// When the hook `on_fence` had ended as well; `None`: not yet.
    pub ended_boot_ms: Option<BootTime>,
}

/// Why a fence latched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceCause {
    /// The deadline passed.
    DeadlinePassed,
    /// The time of a flip passed without the guard being there to flip.
    FlipMissed,
    /// A flip was begun and could not be carried out.
    FlipFailed,
    /// Somebody halted the fleet.
    Halted,
    /// The guard was stopped while a deadline ran.
    GuardStopped,
    /// The machine was started again while a deadline ran.
    Rebooted,
    /// The record of the deadline cannot be read.
    RecordLost,
    /// What was served had changed on the disk, and the agent's configuration has that stopped.
    Drifted,
}

/// A flip at a fixed time, as it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flipped {
    /// The rollout.
    pub k: RolloutId,
    /// What was served before.
    pub from: Option<Opened>,
    /// What is served now.
    pub to: Opened,
    /// When it was to happen.
    pub at_boot_ms: BootTime,
    /// When nothing of the old one was served any more.
    pub closed_boot_ms: BootTime,
    /// When the new one began to be served.
    pub opened_boot_ms: BootTime,
}

/// A halt: nothing is opened until it is lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halt {
    /// Its number, higher than of the halts before: whoever lifts one names it, and does not lift one that came since.
    pub id: HaltId,
    /// When the fleet was halted first.
    pub at_unix_ms: UnixTime,
    /// What the one who halted gave as the reason.
    pub reason: String,
}

impl std::fmt::Display for FenceCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DeadlinePassed => "the deadline passed",
            Self::FlipMissed => "the time of the flip passed unused",
            Self::FlipFailed => "the flip failed",
            Self::Halted => "the fleet was halted",
            Self::GuardStopped => "the guard was stopped while armed",
            Self::Rebooted => "the machine was started again while armed",
            Self::RecordLost => "the record of the deadline is lost",
            Self::Drifted => "what it served had changed",
        })
    }
}
