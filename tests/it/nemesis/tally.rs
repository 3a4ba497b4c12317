//! What happened, in numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::plan::Fault;
use crate::harness::Seen;

/// How a rollout of the plan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ended {
    /// The fleet serves what was ordered, and every host has proven that it closed.
    Settled,
    /// The same, but that the coordinator's clock had to vouch for some host.
    OverLapsed,
    /// It was given up.
    Aborted,
    /// It was never begun: the gate was shut, or nobody was there to take the order.
    Refused,
}

/// Figures of one fleet's plan.
pub(super) struct Tally {
    begun: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    ended: BTreeMap<Ended, usize>,
    faults: BTreeMap<&'static str, usize>,
    /// Faults whose state was not reached.
    missed: usize,
    /// What it took beside patience until the fleet was as it should be.
    remedies: BTreeMap<&'static str, usize>,
    fences: usize,
    longest_settling: Duration,
    observed: String,
}

impl Tally {
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now(), counts: Mutex::default() }
    }

    pub(super) fn fault(&self, fault: &Fault) {
        *self.counts.lock().unwrap().faults.entry(fault.kind()).or_default() += 1;
    }

    pub(super) fn missed(&self) {
        self.counts.lock().unwrap().missed += 1;
    }

    pub(super) fn remedy(&self, name: &'static str) {
        *self.counts.lock().unwrap().remedies.entry(name).or_default() += 1;
    }

    pub(super) fn ended(&self, ended: Ended, settling: Duration) {
        let mut counts = self.counts.lock().unwrap();
        *counts.ended.entry(ended).or_default() += 1;
        counts.longest_settling = counts.longest_settling.max(settling);
    }

    pub(super) fn observed(&self, seen: &Seen, fences: usize) {
        let Seen { looks, unknown, blind, usually_blind, .. } = seen;
        let mut counts = self.counts.lock().unwrap();
        counts.fences = fences;
        counts.observed = format!(
            "at least {looks} looks at each host, {unknown} without an answer, blind for {blind:.1?} at worst and \
             {usually_blind:.1?} usually"
        );
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { ended, faults, missed, remedies, fences, longest_settling, observed } =
            &*self.counts.lock().unwrap();
        let total: usize = ended.values().sum();
        writeln!(f, "nemesis: {total} rollouts in {:.0?}: {ended:?}", self.begun.elapsed())?;
        writeln!(
            f,
            "faults: {} in all, {missed} found no occasion: {faults:?}",
            faults.values().sum::<usize>()
        )?;
        writeln!(
            f,
            "{fences} fences; remedies: {remedies:?}; settled again within {longest_settling:.1?} at most"
        )?;
        write!(f, "observer: {observed}")
    }
}
