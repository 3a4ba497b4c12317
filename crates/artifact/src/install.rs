//! Installing: from blobs to a tree under its digest's name.
//!
//! A tree is built under a temporary name beside its final one, every byte verified while it is written, made
//! durable, and renamed into place; then it is measured by reading it again. A tree that is there already and
//! differs is replaced as a whole by a fresh one, in one step, so that its path never stops resolving. What
//! the service wrote at mutable paths moves over to the new tree.
//!
//! Names in the folder of releases: `<hex>` is a release, `.tmp-…` is unfinished and may be removed,
//! `.swap-<hex>-…` took or takes part in a replacement and may hold the service's data, so only an install of
//! that release or its removal ends it.

mod build;
mod swap;

use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use muster_model::{Digest, Manifest, Place};
use rustix::io::Errno;

use crate::durable::{create_folders, sync_folder};
use crate::verity::{Sealer, seal_in_place};
use crate::{
    ArtifactError, Assured, BlobStore, MeasureOptions, Measurement, Progress, Shortfall, VerityUse, measure,
};

pub(crate) const UNFINISHED: &str = ".tmp-";

/// How to install.
#[derive(Debug, Clone, Copy)]
pub struct InstallOptions {
    /// How many threads write and read.
    pub jobs: NonZeroUsize,
    /// Who owns the tree; the installing user if none is named.
    pub owner: Option<Owner>,
    /// Whether the kernel is to seal the files.
    pub verity: VerityUse,
}

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// What an install did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Where the tree is.
    pub tree: PathBuf,
    /// How it came there.
    pub how: How,
    /// What was read from it afterwards. Its differences, if any, are outside the tree.
    pub measurement: Measurement,
}

/// How an installed tree came to be where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It was written.
    Fresh,
    /// It was there, every byte of it.
    Kept,
    /// It was there and differed, so it was replaced.
    Repaired,
}

/// Installs a release into `releases`. All its blobs must be in the store; one that is found damaged is an
/// error that names it, and has to be removed and fetched again.
pub fn install(
    blobs: &BlobStore,
    manifest: &Manifest,
    releases: &Path,
    options: &InstallOptions,
    progress: &Progress,
) -> Result<Installed, ArtifactError> {
    create_folders(releases)?;
    let place = swap::Place { releases, digest: manifest.digest() };
    let tree = place.tree();
    let measuring = MeasureOptions { jobs: options.jobs, bytes_per_second_max: None, verity: options.verity };
    let how = match measure(&tree, manifest, &measuring, progress) {
        Ok(measurement) if in_tree(&measurement).is_none() => {
            let swapped = swap::finish(&place, manifest)?;
            let sealed = seal_kept(&tree, manifest, &measurement, &place)?;
            if !swapped && !sealed {
                return Ok(Installed { tree, how: How::Kept, measurement });
            }
            How::Kept
        }
        Err(ArtifactError::TreeMissing { .. }) => How::Fresh,
        // What cannot be measured is replaced like what differs.
        Ok(_)
        | Err(
            ArtifactError::NotATree { .. } | ArtifactError::TooManyEntries { .. } | ArtifactError::Io { .. },
        ) => How::Repaired,
        Err(error) => return Err(error),
    };
    if how != How::Kept {
        build_and_place(blobs, manifest, &place, options, progress, how)?;
    }
    settled(manifest, &place, &measuring, progress, how)
}

/// Removes what interrupted installs left. To be called while none runs, at start.
pub fn clean_leftovers(releases: &Path) -> Result<(), ArtifactError> {
    let entries = match fs::read_dir(releases) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ArtifactError::io("list", releases, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| ArtifactError::io("list", releases, error))?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            tracing::debug!(path = %entry.path().display(), "removing an unfinished tree");
            swap::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a release's tree with everything in it, what the service wrote there included.
pub fn remove_release(releases: &Path, digest: Digest) -> Result<(), ArtifactError> {
    let place = swap::Place { releases, digest };
    let doomed = place.unused_name(UNFINISHED)?;
    match fs::rename(place.tree(), &doomed) {
        Ok(()) => sync_folder(releases)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(ArtifactError::io("rename", &place.tree(), error)),
    }
    swap::remove_tree(&doomed)?;
    for swap in place.swaps()? {
        swap::remove_tree(&swap)?;
    }
    sync_folder(releases)
}

/// A tree that is there, as it should be, may be from before its file system or its agent could seal it. Says whether that was tried.
fn seal_kept(
    tree: &Path,
    manifest: &Manifest,
    measurement: &Measurement,
    place: &swap::Place<'_>,
) -> Result<bool, ArtifactError> {
    match &measurement.assured {
        Assured::Sha256(Shortfall::Unsealed(_)) => {}
        Assured::Sha256(
            Shortfall::Off
            | Shortfall::Unsupported
            | Shortfall::Failed(..)
            | Shortfall::Another(_)
            | Shortfall::NoFile,
        )
        | Assured::Verity => return Ok(false),
    }
    let sealer = Sealer::probe(place.releases, UNFINISHED);
    if !sealer.goes_on() {
        return Ok(false);
    }
    seal_in_place(tree, manifest, &sealer)?;
    Ok(true)
}

fn build_and_place(
    blobs: &BlobStore,
    manifest: &Manifest,
    place: &swap::Place<'_>,
    options: &InstallOptions,
    progress: &Progress,
    how: How,
) -> Result<(), ArtifactError> {
    let built = build::build(blobs, manifest, place, options, progress)?;
    let tree = place.tree();
    if how == How::Fresh {
        // Without replacing: an empty folder in the way would go unnoticed otherwise.
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            &built,
            rustix::fs::CWD,
            &tree,
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Ok(()) => {}
            // Somebody else was faster, or the file system does not know the flag: the exchange deals with
            // both.
            Err(Errno::EXIST) => swap::exchange(place, &built)?,
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::rename(&built, &tree)
                    .map_err(|error| ArtifactError::io("rename a tree to", &tree, error))?;
            }
            Err(error) => return Err(ArtifactError::io("rename a tree to", &tree, error)),
        }
    } else {
        swap::exchange(place, &built)?;
    }
    sync_folder(place.releases)?;
    swap::finish(place, manifest)?;
    Ok(())
}

/// Measures by reading again what was put in place; what was written proves nothing.
fn settled(
    manifest: &Manifest,
    place: &swap::Place<'_>,
    measuring: &MeasureOptions,
    progress: &Progress,
    how: How,
) -> Result<Installed, ArtifactError> {
    let tree = place.tree();
    let measurement = measure(&tree, manifest, measuring, progress)?;
    if let Some(difference) = in_tree(&measurement) {
        return Err(ArtifactError::NotAsWritten { path: tree, difference: Box::new(difference.clone()) });
    }
    Ok(Installed { tree, how, measurement })
}

/// The first difference in the tree itself; they come before those on the host.
fn in_tree(measurement: &Measurement) -> Option<&muster_model::Difference> {
    measurement.differences.first().filter(|difference| matches!(difference.path, Place::Tree(_)))
}

#[cfg(test)]
mod tests;
