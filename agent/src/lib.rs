//! The agent: deploys, measures, attests, and moves its host through a flip.
//!
//! It is the edge around `muster_rollout::host` and makes no decisions of its own. Frames of the control stream,
//! results of measurements and answers of the guard become events; the records of each step are made durable before
//! any of its effects happens; the effects are carried out as they come. Deployments and checks, which have no state
//! in the core, are answered beside it.
//!
//! | module | what it does |
//! |---|---|
//! | `agent` | puts the parts together and runs them |
//! | `stream` | keeps the one stream to the coordinator, and hands frames to their fleet |
//! | `driver` | one for each fleet: events in, records and effects out |
//! | `journal` | the fleet's record, durable |
//! | `guard_queue`, `guard_watch` | asks the guard in order, and hears what it tells unasked |
//! | `measure` | trees on disk: measured, sealed, checked |
//! | `witness` | what was seen of the coordinator's audit log, durable |
//! | `documents`, `blobs` | pulls documents and verifies them, pulls bytes |
//! | `deploy`, `check` | the two requests that stand outside of any rollout |
//! | `enrol`, `identity`, `renewal` | how the host comes by its certificate, keeps it, and gets the next one |
//! | `pulse` | what the service manager hears |
//! | `refusal` | how errors become refusals |
//!
//! The agent never moves the link that services use nor starts a service: `crates/guard` does. It never decides
//! whether a fleet may flip: the coordinator does, and every host checks it in `crates/rollout`. The library has no
//! globals, handles no signals and starts no runtime, so that a thousand agents run in one process; [`cli`] is the
//! program around one.

mod adopted;
mod agent;
mod assurance;
mod backoff;
mod blobs;
mod break_glass;
mod check;
pub mod cli;
mod clock_error;
mod config;
mod deploy;
mod documents;
mod drift;
mod driver;
mod enforce;
mod enrol;
mod error;
mod guard_queue;
mod guard_watch;
mod idle;
mod journal;
mod local;
mod manifests;
mod measure;
mod papers;
mod pulse;
mod refusal;
mod renewal;
mod running;
mod stream;
mod teller;
#[cfg(test)]
mod tests;
mod uplink;
mod witness;

pub use adopted::Adopted;
pub use agent::{Agent, Coordinator, FleetParts, Parts};
pub use assurance::Verity;
pub use clock_error::ClockError;
pub use config::{AgentConfig, FleetSettings};
pub use drift::{DriftSettings, OnDrift};
pub use enforce::Enforce;
pub use error::{AgentError, JournalError};
pub use muster_model::BootGate;
