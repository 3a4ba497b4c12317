//! A coordinator and its agents over a simulated network, many times over, each time from a seed.
//!
//! What is real: the coordinator and the agents as libraries, with their drivers, journals and ledger on disk; their
//! gRPC services and clients; HTTP/2 with its keepalive; TLS handshakes with certificates of a real authority; trees that are
//! deployed, measured and sealed; the guard's leases, permits and links. What is not: the TCP connection is
//! turmoil's, which loses, holds up and delays what is sent; the clocks go by its time, each at a rate of its own; chance
//! comes from the seed; work that blocks runs in place. Then a seed decides everything, and two runs of it write the same
//! records and send the same messages at the same times.
//!
//! It has no code of its own outside of tests. `crates/rollout` puts the same state machines through far more histories
//! without a network, and `tests/it` real processes through a few on a real one.
//!
//! `MUSTER_TRANSPORT_SEEDS=n` runs n seeds of each scenario, `MUSTER_SEED=n` that one alone.

#[cfg(test)]
mod guard;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod network;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod papers;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod trace;
#[cfg(test)]
mod world;
