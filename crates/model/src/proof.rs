//! Two proofs that the compiler carries: something was verified, something is durable.
//!
//! Both can be made by one function each, and `clippy.toml` bars every crate but the one named from calling it.

use std::ops::Deref;

/// A value whose signatures were verified against the keys that may make it.
///
/// Only `crates/trust` (and simulators) call [`Verified::assert`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// States that `value` was verified. For `crates/trust` and simulators only.
    #[must_use]
    pub const fn assert(value: T) -> Self {
        Self(value)
    }

    /// The value, without the proof.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Proof that everything appended so far, up to position `seq`, survives a crash.
///
/// Only `crates/store` (and simulators) call [`Durable::assert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Durable {
    seq: u64,
}

impl Durable {
    /// States that all records up to `seq` are durable. For `crates/store` and simulators only.
    #[must_use]
    pub const fn assert(seq: u64) -> Self {
        Self { seq }
    }

    /// The last durable position.
    #[must_use]
    pub const fn seq(self) -> u64 {
        self.seq
    }
}
