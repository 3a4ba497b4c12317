//! Measuring: every byte of a tree is read now, and compared with a manifest afterwards.
//!
//! The digest that comes out is that of a manifest rebuilt from what was read. Of the expected manifest it
//! takes over only which paths the release makes rules about, and each of those only as far as the host was
//! found to keep it.

mod compare;
mod host;
mod rebuild;

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use muster_model::{Difference, Digest, Manifest, UnixTime};

use crate::walk::{FoundKind, Pace, Reading, Walk, Walked};
use crate::{ArtifactError, Assured, Progress, VerityUse, handle, pool, verity};

pub(crate) use host::{Links, stamp as host_stamp};

/// How many differences a measurement names; all are counted.
pub const DIFFERENCES_MAX: usize = 64;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct MeasureOptions {
    /// How many threads hash. One thread is the caller's own. Large files are read ahead by one more for each.
    pub jobs: NonZeroUsize,
    /// The most bytes to read in a second, over all threads.
    pub bytes_per_second_max: Option<NonZeroU64>,
    /// Whether it is looked at which files the kernel has sealed. Those are hashed twice.
    pub verity: VerityUse,
}

/// What was found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// The digest of the manifest rebuilt from what was read: equal to the expected one if and only if tree
    /// and host are as it says.
    pub digest: Digest,
    /// One digest over all `uniform` externals, to be compared between hosts; none if the release names none.
    /// It depends on the manifest, so that it tells nothing about a secret's content across releases.
    pub uniform: Option<Digest>,
    /// The first [`DIFFERENCES_MAX`] differences, in the order of their paths, those outside the tree last.
    pub differences: Vec<Difference>,
    /// How many differences there are. What is in a missing or an extra folder is not counted again.
    pub difference_count: u64,
    /// Entries found.
    pub entries: u64,
    /// Regular files found.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// When the measurement began.
    pub started: UnixTime,
    /// How long it took.
    pub elapsed: Duration,
    /// What it is worth.
    pub assured: Assured,
}

impl Measurement {
    /// Whether tree and host are exactly as the manifest says.
    #[must_use]
    pub const fn matches(&self) -> bool {
        self.difference_count == 0
    }

    /// Keeps the first differences and counts all.
    pub(crate) fn add(&mut self, mut differences: Vec<Difference>) {
        self.difference_count += differences.len() as u64;
        self.differences.append(&mut differences);
        self.differences.sort_unstable();
        self.differences.truncate(DIFFERENCES_MAX);
    }
}

/// Measures the tree at `tree` against `expected`. Differences are a result; an error means that nothing can
/// be said.
pub fn measure(
    tree: &Path,
    expected: &Manifest,
    options: &MeasureOptions,
    progress: &Progress,
) -> Result<Measurement, ArtifactError> {
    measure_walk(tree, expected, options, progress).map(|(measurement, _)| measurement)
}

/// Measures, and keeps the walk for whoever wants to seal what was measured.
pub(crate) fn measure_walk(
    tree: &Path,
    expected: &Manifest,
    options: &MeasureOptions,
    progress: &Progress,
) -> Result<(Measurement, Walked), ArtifactError> {
    let (started, clock) = (unix_now(), Instant::now());
    let walk = Walk {
        reading: Reading::Content,
        mutable: &expected.rules().mutable,
        jobs: pool::worthwhile(options.jobs, expected.entries().len(), expected.total_bytes()),
        pace: options.bytes_per_second_max.map(Pace::new),
        verity: options.verity,
        progress,
    };
    let walked = walk.run(handle::open_tree(tree)?, tree)?;
    let on_host = host::measure(expected);
    let digest = rebuild::digest(expected, &walked, on_host.kept);
    let files = walked.found.iter().filter(|found| matches!(found.kind, FoundKind::File { .. }));
    let (files, bytes) = files.fold((0, 0), |(files, bytes), found| (files + 1, bytes + found.stamp.size));
    let mut measurement = Measurement {
        digest,
        uniform: on_host.uniform,
        differences: Vec::new(),
        difference_count: 0,
        entries: walked.found.len() as u64,
        files,
        bytes,
        started,
        elapsed: clock.elapsed(),
        assured: verity::assured(&walked, options.verity),
    };
    measurement.add(compare::compare(expected, &walked));
    measurement.add(on_host.differences);
    Ok((measurement, walked))
}

fn unix_now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
