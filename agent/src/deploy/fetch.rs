//! Fetching the blobs that a release needs and this host lacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt as _, stream};
use muster_artifact::{Plan, plan};
use muster_model::{Code, Digest, Manifest, Refusal};
use muster_proto::v1;
use tokio::sync::Semaphore;

use crate::blobs::pull_into;
use crate::measure::{Trees, on_thread};
use crate::refusal;
use crate::uplink::Uplink;

/// How many blobs of one host are fetched at the same time.
pub(super) const DOWNLOADS_MAX: usize = 8;

/// How far a deployment has come. What is there from before counts as done.
#[derive(Debug, Default)]
pub(super) struct Counts {
    files_total: AtomicU64,
    bytes_total: AtomicU64,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
    fetched: AtomicU64,
}

impl Counts {
    /// What was fetched, over all attempts.
    pub(super) fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    pub(super) fn to_wire(&self, request: u64) -> v1::DeployProgress {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (files_total, bytes_total) = (load(&self.files_total), load(&self.bytes_total));
        v1::DeployProgress {
            request,
            files_done: load(&self.files_done).min(files_total),
            files_total,
            bytes_done: load(&self.bytes_done).min(bytes_total),
            bytes_total,
        }
    }

    fn begin(&self, manifest: &Manifest, missing: &Plan) {
        let (files, bytes) = (manifest.files().count() as u64, manifest.total_bytes());
        self.files_total.store(files, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
        // Several files may share a blob, so that these are lower bounds until the end.
        self.files_done.store(files.saturating_sub(missing.missing.len() as u64), Ordering::Relaxed);
        self.bytes_done.store(bytes.saturating_sub(missing.bytes), Ordering::Relaxed);
    }

    fn add_bytes(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    fn add_file(&self) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Fetches what is missing, several blobs at a time, and makes it durable. Blobs that have arrived stay whatever
/// happens to the others.
pub(super) async fn fetch(
    trees: &Arc<Trees>,
    downloads: &Semaphore,
    uplink: &Uplink,
    manifest: &Arc<Manifest>,
    counts: &Counts,
) -> Result<(), Refusal> {
    let mut missing = missing(trees, manifest).await?;
    if trees.adopted.is_some() && !missing.missing.is_empty() {
        missing = take_from_adopted(trees, manifest, missing).await?;
    }
    counts.begin(manifest, &missing);
    let one = |blob: (Digest, u64)| async move {
        let _download = downloads.acquire().await.expect("slots are never closed");
        let arrived = |bytes| counts.add_bytes(bytes);
        let outcome =
            pull_into(&trees.blobs, uplink.channel(), &trees.machine, &trees.host, blob, arrived).await;
        outcome.inspect(|()| counts.add_file())
    };
    let mut outcomes = stream::iter(missing.missing).map(one).buffer_unordered(DOWNLOADS_MAX);
    let mut unavailable = Vec::new();
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(()) => {}
            // The others arrive nevertheless: the next deployment has that much less to fetch, and all that is wrong
            // is named.
            Err(refusal) if matches!(refusal.code(), Some(Code::BlobMissing | Code::BlobDamaged)) => {
                unavailable.extend(refusal.blockers);
            }
            Err(refusal) => return Err(refusal),
        }
    }
    drop(outcomes);
    if !unavailable.is_empty() {
        unavailable.sort();
        unavailable.truncate(refusal::BLOCKERS_MAX);
        return Err(Refusal { blockers: unavailable });
    }
    let trees = Arc::clone(trees);
    let (machine, host) = (trees.machine.clone(), trees.host.clone());
    // One sync for all blobs and the manifest, before anything relies on them.
    on_thread(&machine, &host, move || {
        trees.blobs.sync().map_err(|error| refusal::of_artifact(&trees.host, &error))
    })
    .await
}

/// What is still missing once all that runs here already was taken.
async fn take_from_adopted(
    trees: &Arc<Trees>,
    manifest: &Arc<Manifest>,
    found: Plan,
) -> Result<Plan, Refusal> {
    let (at, of) = (Arc::clone(trees), Arc::clone(manifest));
    on_thread(&trees.machine, &trees.host, move || {
        at.take_from_adopted(&of, &found.missing);
        Ok(())
    })
    .await?;
    missing(trees, manifest).await
}

async fn missing(trees: &Arc<Trees>, manifest: &Arc<Manifest>) -> Result<Plan, Refusal> {
    let (at, manifest) = (Arc::clone(trees), Arc::clone(manifest));
    on_thread(&trees.machine, &trees.host, move || {
        plan(&manifest, &at.blobs).map_err(|error| refusal::of_artifact(&at.host, &error))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_passes_its_total() {
        let counts = Counts::default();
        counts.files_total.store(2, Ordering::Relaxed);
        counts.bytes_total.store(10, Ordering::Relaxed);
        counts.add_file();
        counts.add_bytes(7);
        // A second attempt fetches a damaged blob again.
        counts.add_bytes(7);
        let wire = counts.to_wire(9);
        assert_eq!((wire.request, wire.files_done, wire.files_total), (9, 1, 2));
        assert_eq!((wire.bytes_done, wire.bytes_total), (10, 10));
        assert_eq!(counts.fetched_bytes(), 14);
    }
}
