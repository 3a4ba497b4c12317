//! What every parser of foreign bytes must hold to, whatever the bytes.
//!
//! Each target is one function from bytes to a [`Verdict`] that panics where a property does not hold. The fuzzers in
//! `fuzz/` look for bytes that make it panic; the test here runs what they kept, with any compiler and on any machine.

#![allow(clippy::unwrap_used, reason = "whatever fails here is what is looked for")]

mod audit;
mod documents;
mod envelope;
mod fixture;
mod frames;
mod keys;
mod manifest;
mod receipt;
mod request;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;

/// Whether a target's bytes were taken for what they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They were, and all properties of such bytes hold.
    Taken,
    /// They were refused.
    Refused,
}

/// One kind of bytes that come from others.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: that of the fuzzer and of the folder of its corpus.
    pub name: &'static str,
    /// Reads the bytes and asserts what must hold.
    pub run: fn(&[u8]) -> Verdict,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "addition", run: documents::addition },
    Target { name: "agent_frame", run: frames::agent },
    Target { name: "attestation", run: documents::attestation },
    Target { name: "audit", run: audit::run },
    Target { name: "break_glass", run: documents::break_glass },
    Target { name: "coordinator_frame", run: frames::coordinator },
    Target { name: "csr", run: request::run },
    Target { name: "envelope", run: envelope::run },
    Target { name: "key_file", run: keys::run },
    Target { name: "manifest", run: manifest::run },
    Target { name: "order", run: documents::order },
    Target { name: "receipt", run: receipt::run },
    Target { name: "release", run: documents::release },
    Target { name: "request", run: frames::request },
    Target { name: "root", run: documents::root },
    Target { name: "roster", run: documents::roster },
    Target { name: "withdrawal", run: documents::withdrawal },
];

/// Runs the target of this name.
///
/// # Panics
/// Where a property does not hold, and if there is no such target.
pub fn run(name: &str, bytes: &[u8]) -> Verdict {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(bytes)
}

impl From<bool> for Verdict {
    fn from(is_taken: bool) -> Self {
        if is_taken { Self::Taken } else { Self::Refused }
    }
}
