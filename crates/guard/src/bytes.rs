//! Whether what a unit is about to run lies on the disk as it was released.
//!
//! Only the verb `permit` looks, in a process of its own: a guard never measures a tree. That process may take as long as the unit has to
//! start (`TimeoutStartSec=`), after which systemd ends it and the start has failed.

use std::num::NonZeroUsize;
use std::path::Path;
use std::thread;

use muster_artifact::{ArtifactError, BlobStore, Deployed, MeasureOptions, VerityUse};
use muster_model::{Digest, FleetName};

use crate::error::GuardError;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bytes {
    Released,
    /// Something else, and what it is.
    Changed(String),
}

/// Looks at the tree of `release` below `releases`, beside which the agent keeps its seals: `fleets/F/releases`, `fleets/F/seals`, and
/// `blobs` for all fleets.
pub(crate) fn look(fleet: &FleetName, releases: &Path, release: Digest) -> Result<Bytes, GuardError> {
    let Some((of_fleet, state)) = releases.parent().zip(releases.ancestors().nth(3)) else {
        let detail = format!("fleet {fleet}: {} is not the folder of an agent", releases.display());
        return Err(GuardError::Config { detail });
    };
    let deployed = Deployed {
        release,
        tree: releases.join(release.hex()),
        seal: of_fleet.join("seals").join(release.hex()),
        blobs: BlobStore::of_another(&state.join("blobs")),
    };
    // The fleet waits for this start.
    let jobs = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match deployed.check(&MeasureOptions { jobs, bytes_per_second_max: None, verity: VerityUse::Off }) {
        Ok(()) => Ok(Bytes::Released),
        Err(error) if is_final(&error) => Ok(Bytes::Changed(error.to_string())),
        Err(source) => Err(GuardError::Unmeasured { fleet: fleet.clone(), source: Box::new(source) }),
    }
}

/// Whether it was found that something else lies there, or nothing; anything else may be otherwise at the next attempt.
const fn is_final(error: &ArtifactError) -> bool {
    matches!(
        error,
        ArtifactError::NotAsReleased { .. }
            | ArtifactError::TreeMissing { .. }
            | ArtifactError::NotATree { .. }
            | ArtifactError::TooManyEntries { .. }
            | ArtifactError::BlobMissing { .. }
            | ArtifactError::Damaged { .. }
            | ArtifactError::WrongSize { .. }
            | ArtifactError::Manifest { .. }
    )
}
