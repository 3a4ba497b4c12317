//! Writing that survives a crash.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use crate::ArtifactError;

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), ArtifactError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| ArtifactError::io("sync the folder", folder, error))
}

/// Replaces a file as a whole: after a crash there is the old one or the new one.
pub(crate) fn replace_file(path: &Path, parts: &[&[u8]]) -> Result<(), ArtifactError> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |doing| move |error| ArtifactError::io(doing, path, error);
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(folder)
        .map_err(|error| ArtifactError::io("create a file in", folder, error))?;
    for part in parts {
        file.write_all(part).map_err(failed("write"))?;
    }
    file.as_file().sync_all().map_err(failed("sync"))?;
    file.persist(path).map_err(|error| ArtifactError::io("rename a new file to", path, error.error))?;
    sync_folder(folder)
}

/// Creates a folder and the missing ones above it, each durable in its parent.
pub(crate) fn create_folders(folder: &Path) -> Result<(), ArtifactError> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_folders(parent)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(ArtifactError::io("create the folder", folder, error))
        }
        Ok(()) | Err(_) => sync_folder(parent),
    }
}
