//! What is said on the guard's socket.
//!
//! A frame is a length (32 bits, big endian, at most [`MAX_FRAME_BYTES`]) and that many bytes of JSON. The client sends
//! [`RequestFrame`]s, the guard answers each with a [`ReplyFrame`] of the same id. After `watch` the guard sends
//! [`Reply::Event`]s under that id until either side hangs up. The protocol's number is in every request: a guard
//! refuses a number it does not speak, and an unknown verb or field is refused by name.

mod fleet_state;
mod lease_state;
mod running;

use muster_model::{BootId, BootTime, Digest, Epoch, FleetName, HaltId, RolloutId};
use serde::{Deserialize, Serialize};

use crate::error::RefusalCode;

pub use fleet_state::{DriverKind, ExitKind, FleetState, LinkState, Opened, ServiceState};
pub use lease_state::{Armed, Decided, Fence, FenceCause, FlipTime, Flipped, Halt, LeaseState};
pub use running::{Running, RunningFile, RunningGroup, RunningMain};

/// The number of the protocol that this crate speaks.
pub const PROTOCOL: u32 = 3;

/// The largest frame in either direction, without its length.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

/// How often one drill may measure.
pub const DRILL_RUNS_MAX: u32 = 10;

/// The longest reason of a halt.
pub const REASON_BYTES_MAX: usize = 512;

/// One request. `request` is parsed in a second step, so that a refusal of an unknown verb can carry the id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestFrame {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Chosen by the client, from 1 up; 0 in an answer means that the request's id could not be read.
    pub id: u64,
    /// A [`Request`].
    pub request: serde_json::Value,
}

/// What a client can ask. No verb carries a command, a path or an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who are you?
    Hello {},
    /// What does this fleet serve here?
    Status {
        /// The fleet.
        fleet: FleetName,
    },
    /// Which processes does the service have, and what do they execute?
    Running {
        /// The fleet.
        fleet: FleetName,
    },
    /// Start what this epoch serves no more for the time being: it has changed on the disk. What runs goes on.
    Doubt {
        /// The fleet.
        fleet: FleetName,
        /// What is served.
        epoch: Epoch,
        /// What has changed, for people.
        reason: String,
    },
    /// What this epoch serves is right again.
    Trust {
        /// The fleet.
        fleet: FleetName,
        /// What is served.
        epoch: Epoch,
    },
    /// Fence what this epoch serves, now: it is not what was released. A fleet that is armed is left alone.
    Fence {
        /// The fleet.
        fleet: FleetName,
        /// What is served.
        epoch: Epoch,
        /// What has changed, for people.
        reason: String,
    },
    /// Stop serving, and prove it. A deadline runs on until nothing is left, and is lifted then.
    Close {
        /// The fleet.
        fleet: FleetName,
        /// How long the service may take to stop by itself; never longer than the deadline allows. By default what
        /// the configuration says.
        #[serde(default)]
        drain_ms: Option<u64>,
    },
    /// Serve this release.
    Open {
        /// The fleet.
        fleet: FleetName,
        /// The number of what the fleet serves from now on.
        epoch: Epoch,
        /// The release's manifest digest, the name of its folder.
        digest: Digest,
    },
    /// Fence what is served at a deadline. For the same rollout once more it changes nothing.
    Arm {
        /// The fleet.
        fleet: FleetName,
        /// The deadline, and for what.
        arm: Armed,
    },
    /// Move the deadline back, never forward.
    Renew {
        /// The fleet.
        fleet: FleetName,
        /// The rollout it is armed for.
        k: RolloutId,
        /// The deadline from now on, unless it is later already.
        deadline_boot_ms: BootTime,
    },
    /// Lift the deadline. A fence that has latched stays.
    Disarm {
        /// The fleet.
        fleet: FleetName,
        /// The rollout it is armed for.
        k: RolloutId,
    },
    /// Fast mode: flip at `T` instead of fencing at the deadline.
    Decide {
        /// The fleet.
        fleet: FleetName,
        /// The rollout it is armed for.
        k: RolloutId,
        /// `T`, as it was armed.
        at_boot_ms: BootTime,
        /// What is served from then on.
        to: Opened,
    },
    /// Run the hook `quiesce`, if there is one.
    Quiesce {
        /// The fleet.
        fleet: FleetName,
    },
    /// Run the hook `unquiesce`, if there is one.
    Unquiesce {
        /// The fleet.
        fleet: FleetName,
    },
    /// Run the hook `rehearse` in the folder of a release that is on disk, whatever is open.
    Rehearse {
        /// The fleet.
        fleet: FleetName,
        /// The release's manifest digest, the name of its folder.
        digest: Digest,
    },
    /// Measure how long a fence takes here, on a scratch service or link.
    Drill {
        /// The fleet.
        fleet: FleetName,
        /// How often, from 1 to [`DRILL_RUNS_MAX`].
        runs: u32,
    },
    /// Fence now, and open nothing until `resume`.
    Halt {
        /// The fleet.
        fleet: FleetName,
        /// Why, for people.
        reason: String,
    },
    /// Lift the halt. Nothing is served by that.
    Resume {
        /// The fleet.
        fleet: FleetName,
        /// Which halt. One that came after it is not lifted.
        halt: HaltId,
    },
    /// Tell me what happens, from now on.
    Watch {},
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyFrame {
    /// The request's id, or 0.
    pub id: u64,
    /// The answer.
    pub reply: Reply,
}

/// What the guard answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To `hello`.
    Hello(Hello),
    /// To every other request about a fleet: the fleet after the request was carried out.
    State(Box<FleetState>),
    /// To `drill`.
    Drilled(Drill),
    /// To `running`; nothing where the guard has no service to start (driver `link`).
    Running(Option<Box<Running>>),
    /// To `watch`: events follow.
    Watching,
    /// After `watch`.
    Event(Event),
    /// No.
    Refused {
        /// The reason, for programs.
        code: RefusalCode,
        /// The reason, for people.
        detail: String,
    },
}

/// What a drill measured: the fence as it would be, on a scratch service that ignores SIGTERM and has a child in a session
/// of its own (driver `supervise`), and on a scratch link beside the real one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    /// How the fleet is served.
    pub driver: DriverKind,
    /// How the processes were killed; `None` where there are none.
    pub kill: Option<KillScope>,
    /// How often it was measured.
    pub runs: u32,
    /// The longest time until nothing was left, rounded up.
    pub fence_ms: u64,
    /// How much longer the hook `on_fence` may take; zero without one.
    pub on_fence_ms_max: u64,
    /// How long a gentle stop may take, by the configuration.
    pub drain_ms_max: u64,
}

/// By what the processes of a service are found and killed; the surer one comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillScope {
    /// By the control group of their own: all at once, and nothing escapes.
    Cgroup,
    /// By their keeper, whose descendants they are, by session, process group and mark.
    Keeper,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol that the guard speaks.
    pub protocol: u32,
    /// The guard's process.
    pub pid: u32,
    /// The boot it runs in.
    pub boot_id: BootId,
    /// The guard's version.
    pub version: String,
}

/// What happens on a host without being asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A service ended by itself; nothing of it is left.
    ServiceExited {
        /// The fleet.
        fleet: FleetName,
        /// How its main process ended.
        status: ExitKind,
        /// Whether and when it will be started again.
        restart_boot_ms: Option<BootTime>,
    },
    /// A service that had ended by itself runs again.
    ServiceRestarted {
        /// The fleet.
        fleet: FleetName,
        /// Its new main process.
        pid: u32,
    },
    /// A fence is complete: nothing is left of the service and the link.
    Fenced {
        /// The fleet.
        fleet: FleetName,
        /// Why and when.
        fence: Fence,
    },
    /// An alarm: a fence is not complete yet. It is tried again until it is.
    FenceFailing {
        /// The fleet.
        fleet: FleetName,
        /// Why and when it began.
        fence: Fence,
        /// How often it was tried.
        attempts: u32,
        /// What is in the way.
        detail: String,
    },
    /// A flip at a fixed time was carried out.
    Flipped {
        /// The fleet.
        fleet: FleetName,
        /// What and when.
        flip: Flipped,
    },
    /// A flip at a fixed time was begun and could not be carried out; the fleet is fenced.
    FlipFailed {
        /// The fleet.
        fleet: FleetName,
        /// The rollout.
        k: RolloutId,
        /// Why.
        detail: String,
    },
    /// A hook failed whose failure stops nothing.
    HookFailed {
        /// The fleet.
        fleet: FleetName,
        /// The hook's name in the configuration.
        hook: String,
        /// How.
        detail: String,
    },
    /// Somebody halted the fleet.
    Halted {
        /// The fleet.
        fleet: FleetName,
        /// When and why.
        halt: Halt,
    },
    /// The halt was lifted.
    Resumed {
        /// The fleet.
        fleet: FleetName,
    },
}
