//! The pure decisions of a rollout: the coordinator's half ([`fleet`]) and the host's half ([`host`]).
//!
//! Both halves are state machines. An event goes in together with the time; a [`Step`] comes out, with what must be made
//! durable and what may be done afterwards. The crate never reads a clock, draws randomness, touches a file or knows the
//! wire: the drivers in `coordinator` and `agent` do, and make no decisions. Because both halves live here, N hosts and a
//! coordinator run in one property test and in the model checker, on the code that runs in production.
//!
//! The protocol and its invariants P1 to P13 are described in `docs/protocol.md`.

pub mod fleet;
pub mod gate;
pub mod host;
pub mod rebuild;
mod step;
#[cfg(test)]
mod tests;

pub use step::{Step, Write};
