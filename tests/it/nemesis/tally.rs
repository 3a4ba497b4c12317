//! What happened, in numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::plan::Fault;
use crate::harness::Seen;

/// Of all fleets whose plan was carried out in this process.
static DONE: Mutex<Vec<Counts>> = Mutex::new(Vec::new());

/// How a rollout of the plan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ended {
    /// The fleet serves what was ordered, and every host has proven that it closed.
    Settled,
    /// The same in fast mode, where nobody waits for another host to close.
    SettledFast,
    /// As the first, but that the coordinator's clock had to vouch for some host.
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

#[derive(Debug, Default, Clone)]
struct Counts {
    ended: BTreeMap<Ended, usize>,
    faults: BTreeMap<&'static str, usize>,
    /// Faults whose state was not reached.
    missed: usize,
    /// What it took beside patience until the fleet was as it should be.
    remedies: BTreeMap<&'static str, usize>,
    fences: usize,
    longest_settling: Duration,
    /// For how long two releases were seen in fast mode.
    skew: Duration,
    blind: Duration,
    usually_blind: Duration,
    out_of_sight: f64,
    looks: u64,
    unknown: u64,
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
        let Seen { looks, unknown, blind, usually_blind, out_of_sight, skew, .. } = *seen;
        let mut counts = self.counts.lock().unwrap();
        *counts =
            Counts { fences, skew, blind, usually_blind, out_of_sight, looks, unknown, ..counts.clone() };
    }

    /// What all fleets did together, once so many have come to the end of their plans.
    pub(super) fn of_all(&self, fleets: usize) -> Option<Self> {
        let mut done = DONE.lock().unwrap();
        done.push(self.counts.lock().unwrap().clone());
        let all = done.iter().cloned().reduce(Counts::and).unwrap_or_default();
        (done.len() == fleets).then(|| Self { begun: self.begun, counts: Mutex::new(all) })
    }

    /// Panics unless everything was done that can be, and every good end was come to.
    #[track_caller]
    pub(super) fn expect_everything(&self) {
        let Counts { ended, faults, .. } = &*self.counts.lock().unwrap();
        for kind in Fault::KINDS {
            assert!(faults.contains_key(kind), "nowhere: {kind}");
        }
        for end in [Ended::Settled, Ended::SettledFast, Ended::OverLapsed, Ended::Aborted] {
            assert!(ended.contains_key(&end), "no rollout ended like this: {end:?}");
        }
    }
}

impl Counts {
    fn and(mut self, other: Self) -> Self {
        add(&mut self.ended, other.ended);
        add(&mut self.faults, other.faults);
        add(&mut self.remedies, other.remedies);
        Self {
            missed: self.missed + other.missed,
            fences: self.fences + other.fences,
            longest_settling: self.longest_settling.max(other.longest_settling),
            skew: self.skew.max(other.skew),
            blind: self.blind.max(other.blind),
            usually_blind: self.usually_blind.max(other.usually_blind),
            out_of_sight: self.out_of_sight.max(other.out_of_sight),
            looks: self.looks.min(other.looks),
            unknown: self.unknown + other.unknown,
            ..self
        }
    }
}

fn add<K: Ord>(counts: &mut BTreeMap<K, usize>, others: BTreeMap<K, usize>) {
    for (key, count) in others {
        *counts.entry(key).or_default() += count;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts.lock().unwrap();
        let Counts { ended, faults, missed, remedies, fences, longest_settling, .. } = &*counts;
        let Counts { skew, blind, usually_blind, out_of_sight, looks, unknown, .. } = &*counts;
        let (rollouts, done): (usize, usize) = (ended.values().sum(), faults.values().sum());
        writeln!(f, "nemesis: {rollouts} rollouts in {:.0?}: {ended:?}", self.begun.elapsed())?;
        writeln!(f, "faults: {done} in all, {missed} found no occasion: {faults:?}")?;
        writeln!(
            f,
            "{fences} fences; remedies: {remedies:?}; settled again within {longest_settling:.1?} at most"
        )?;
        write!(
            f,
            "observer: at least {looks} looks at each host, {unknown} without an answer, blind for {blind:.1?} at worst and \
             {usually_blind:.1?} usually, with a host out of sight for {:.2} % of the time; in fast mode it saw two releases \
             for {skew:.1?} at most",
            out_of_sight * 100.0
        )
    }
}
