//! One fleet at run time: the task that drives its state machine, and the handle by which everything else reaches it.

mod driver;
mod handle;
mod takeover;

pub(crate) use driver::{Input, blocking, spawn};
pub(crate) use handle::{
    Answers, Attested, Connected, FleetHandle, HostAnswer, OUTBOX_FRAMES, Outbox, RosterInForce, View, stamp,
};
pub(crate) use takeover::{first, inherit};
