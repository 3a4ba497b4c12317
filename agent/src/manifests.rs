//! Manifests: from the store, or from the coordinator.

use std::sync::Arc;

use muster_model::{Code, Digest, MAX_MANIFEST_BYTES, Manifest, Refusal};
use tonic::transport::Channel;

use crate::blobs;
use crate::measure::{Trees, on_thread};
use crate::refusal;

/// A release's manifest, at most `bytes_max` long. One that is stored and damaged is replaced.
pub(crate) async fn obtain(
    trees: &Arc<Trees>,
    channel: Channel,
    release: Digest,
    bytes_max: usize,
) -> Result<Arc<Manifest>, Refusal> {
    let at = Arc::clone(trees);
    if let Ok(manifest) = on_thread(&trees.machine, &trees.host, move || at.manifest(release)).await {
        return Ok(Arc::new(manifest));
    }
    let bytes = blobs::pull(channel, &trees.machine, &trees.host, "manifest", release, bytes_max).await?;
    let host = trees.host.clone();
    let (manifest, bytes) = on_thread(&trees.machine, &trees.host, move || {
        let manifest = Manifest::parse(&bytes).map_err(|error| {
            let detail = format!("the manifest {release}: {}", refusal::chain(&error));
            refusal::at(&host, Code::Unsupported, detail)
        })?;
        Ok((manifest, bytes))
    })
    .await?;
    blobs::put(&trees.blobs, &trees.machine, &trees.host, release, bytes).await?;
    Ok(Arc::new(manifest))
}

/// Obtains the manifest of a tree that came to this host on another way than a deployment: copied by hand, or part of
/// an image. With it, what is wrong with the tree can be named; without it, only that nothing was deployed.
pub(crate) async fn obtain_for_tree(trees: &Arc<Trees>, channel: Channel, release: Digest) {
    let at = Arc::clone(trees);
    let is_strange = on_thread(&trees.machine, &trees.host, move || {
        Ok(at.has_tree(release) && at.manifest(release).is_err())
    });
    if !is_strange.await.unwrap_or(false) {
        return;
    }
    if let Err(refusal) = obtain(trees, channel, release, MAX_MANIFEST_BYTES).await {
        tracing::warn!(%release, %refusal, "the manifest of a tree that was not deployed cannot be had");
    }
}
