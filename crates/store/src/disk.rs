//! The operations that durability hangs on, one method each, so that tests can make each of them fail.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::StoreError;

/// Does what it says and names the path when it cannot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    pub(crate) faults: Option<std::sync::Arc<crate::sled_store::faults::Faults>>,
}

impl Disk {
    /// A point at which a process may die or the system fail.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "only tests inject faults"))]
    pub(crate) fn step(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(faults) = &self.faults {
            return faults.step();
        }
        Ok(())
    }

    pub(crate) fn sync_file(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.step()
            .and_then(|()| file.sync_all())
            .map_err(|source| StoreError::io("make durable", path, source))
    }

    pub(crate) fn sync_data(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.step()
            .and_then(|()| file.sync_data())
            .map_err(|source| StoreError::io("make durable", path, source))
    }

    pub(crate) fn sync_folder(&self, path: &Path) -> Result<(), StoreError> {
        let folder = File::open(path).map_err(|source| StoreError::io("open", path, source))?;
        self.sync_file(&folder, path)
    }

    pub(crate) fn write_at(
        &self,
        file: &File,
        path: &Path,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), StoreError> {
        self.step()
            .and_then(|()| file.write_all_at(bytes, offset))
            .map_err(|source| StoreError::io("write", path, source))
    }

    /// Renames within one folder and makes the folder durable.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.step()
            .and_then(|()| fs::rename(from, to))
            .map_err(|source| StoreError::io("rename", from, source))?;
        self.sync_folder(parent(to))
    }

    /// Creates `dir` and every missing folder above it.
    pub(crate) fn create_folder(&self, dir: &Path) -> Result<(), StoreError> {
        let missing = dir
            .ancestors()
            .take_while(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
            .collect::<Vec<_>>();
        for folder in missing.into_iter().rev() {
            self.step()
                .and_then(|()| fs::create_dir(folder))
                .map_err(|source| StoreError::io("create", folder, source))?;
            self.sync_folder(parent(folder))?;
        }
        Ok(())
    }
}

/// The folder that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}
