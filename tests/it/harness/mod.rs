//! A real fleet for tests: the programs of this build, in processes, on a folder of their own.
//!
//! A test says what it waits for and by when; the only sleep is in [`wait_until`]. An [`Observer`] pauses between looks.

mod artifact;
pub(crate) mod audit;
mod caller;
mod clock;
mod daemon;
mod disk;
mod fleet;
pub(crate) mod forgery;
pub(crate) mod impostor;
mod network;
mod observer;
mod operators;
mod output;
mod pki;
mod rollout;
mod wait;

pub(crate) use artifact::{Artifact, artifact, versioned};
pub(crate) use caller::{Attached, Caller, Health, refusal_of, signed};
pub(crate) use clock::{ClockOff, Clocks, MachineClock};
pub(crate) use daemon::{Daemon, Place};
pub(crate) use disk::Disk;
pub(crate) use fleet::{FLEET, Fleet, Host};
pub(crate) use network::{Cut, Machine, Network};
pub(crate) use observer::{FastFlip, Observer, Seen, Service};
pub(crate) use operators::Operators;
pub(crate) use output::{Output, run, run_program};
pub(crate) use pki::{configure, issue, long_ago, now, today};
pub(crate) use wait::{PATIENCE, until, wait_until};

/// The program with this name, as this test run built it.
pub(crate) fn program(name: &str) -> &'static str {
    match name {
        "muster" => env!("CARGO_BIN_EXE_muster"),
        "muster-agent" => env!("CARGO_BIN_EXE_muster-agent"),
        "muster-coordinator" => env!("CARGO_BIN_EXE_muster-coordinator"),
        "muster-guard" => env!("CARGO_BIN_EXE_muster-guard"),
        other => panic!("there is no program {other}"),
    }
}
