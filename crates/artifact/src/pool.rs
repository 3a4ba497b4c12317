//! Threads that live as long as one call.

use std::num::NonZeroUsize;

use crate::ArtifactError;

/// How many entries are examined, and bytes read, in about the time that it takes to start a thread and wait for its end.
const ENTRIES_FOR_A_THREAD: usize = 64;
const BYTES_FOR_A_THREAD: u64 = 1 << 20;

/// As many of `jobs` threads as pay for a tree that should have so many entries, of which so many bytes are read.
pub(crate) fn worthwhile(jobs: NonZeroUsize, entries: usize, bytes: u64) -> NonZeroUsize {
    let of_bytes = usize::try_from(bytes / BYTES_FOR_A_THREAD).unwrap_or(usize::MAX);
    let more = (entries / ENTRIES_FOR_A_THREAD).saturating_add(of_bytes);
    jobs.min(NonZeroUsize::MIN.saturating_add(more))
}

/// Starts a pool of `jobs` threads of our own: the global pool belongs to nobody, and nobody could size it.
pub(crate) fn start(jobs: NonZeroUsize) -> Result<rayon::ThreadPool, ArtifactError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(jobs.get())
        .thread_name(|index| format!("muster-tree-{index}"))
        .build()
        .map_err(|source| ArtifactError::Threads { jobs: jobs.get(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_tree_is_walked_by_the_caller_alone_and_a_large_one_by_all() {
        let all = NonZeroUsize::new(8).unwrap();
        let threads = |entries, bytes| worthwhile(all, entries, bytes).get();
        assert_eq!((threads(22, 80_000), threads(0, u64::MAX)), (1, 8));
        assert_eq!((threads(1, 3 << 20), threads(100_000, 0)), (4, 8));
        assert_eq!(worthwhile(NonZeroUsize::MIN, 100_000, 0), NonZeroUsize::MIN);
    }
}
