//! One fleet at run time: the task that drives its state machine, and the handle by which everything else reaches it.

mod answers;
mod connections;
mod contingency;
mod drift;
mod driver;
mod glass;
mod handle;
mod rosters;
mod takeover;

pub(crate) use answers::{Answers, HostAnswer, Said};
pub(crate) use connections::{Connected, OUTBOX_FRAMES, Outbox};
pub(crate) use driver::{Input, Place, blocking, spawn};
pub(crate) use handle::{Attested, FleetHandle, Held, RosterInForce, View, stamp};
pub(crate) use rosters::RosterNotes;
pub(crate) use takeover::{beginnings, first, inherit_all};
