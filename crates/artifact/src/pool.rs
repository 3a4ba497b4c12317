//! Threads that live as long as one call.

use std::num::NonZeroUsize;

use crate::ArtifactError;

/// Starts a pool of `jobs` threads of our own: the global pool belongs to nobody, and nobody could size it.
pub(crate) fn start(jobs: NonZeroUsize) -> Result<rayon::ThreadPool, ArtifactError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(jobs.get())
        .thread_name(|index| format!("muster-tree-{index}"))
        .build()
        .map_err(|source| ArtifactError::Threads { jobs: jobs.get(), source })
}
