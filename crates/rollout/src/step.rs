//! What a state machine asks of its driver.

use muster_model::Durable;

/// The outcome of one event.
///
/// P7: no message leaves before the record it speaks of is durable. So effects that follow a write can only be had in
/// exchange for a [`Durable`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Step<R, E> {
    /// Nothing to write: do these, in order.
    Act(Vec<E>),
    /// Write first.
    Write(Write<R, E>),
}

/// Records to make durable, and the effects that they hold back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Write<R, E> {
    records: Vec<R>,
    effects: Vec<E>,
}

impl<R, E> Step<R, E> {
    /// A step of `records` and then `effects`.
    pub fn new(records: Vec<R>, effects: Vec<E>) -> Self {
        if records.is_empty() { Self::Act(effects) } else { Self::Write(Write { records, effects }) }
    }

    /// What must be durable before anything is done.
    pub fn records(&self) -> &[R] {
        match self {
            Self::Act(_) => &[],
            Self::Write(write) => &write.records,
        }
    }
}

impl<R, E> Write<R, E> {
    /// What to write, in order.
    pub fn records(&self) -> &[R] {
        &self.records
    }

    /// The effects, in exchange for the proof that the records survive a crash.
    pub fn into_effects(self, _proof: Durable) -> Vec<E> {
        self.effects
    }
}
