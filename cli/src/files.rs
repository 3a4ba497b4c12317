//! Reading and writing the small files that operators handle.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::error::CliError;

/// Whether an existing file may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It is left as it is, and writing fails.
    Keep,
    /// It is replaced in one step.
    Replace,
}

/// Reads a file of at most `bytes_max` bytes.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes))
        .map_err(CliError::file("read", path))?;
    if bytes.len() as u64 > bytes_max {
        let reason = format!("it has more than {bytes_max} bytes");
        return Err(CliError::Content { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// Writes a file with these permissions, so that after a crash it is either whole or not there.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32, existing: Existing) -> Result<(), CliError> {
    let mut file = Unfinished::create(path, mode, existing)?;
    file.append(bytes)?;
    file.finish()
}

/// A file that is being written under a temporary name. Dropped before [`Unfinished::finish`], it leaves nothing behind.
pub(crate) struct Unfinished<'a> {
    path: &'a Path,
    file: tempfile::NamedTempFile,
    existing: Existing,
}

impl<'a> Unfinished<'a> {
    /// Begins.
    pub(crate) fn create(path: &'a Path, mode: u32, existing: Existing) -> Result<Self, CliError> {
        let failed = CliError::file("create", path);
        if existing == Existing::Keep && path.symlink_metadata().is_ok() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let create = |temporary: &Path| {
            OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(temporary)
        };
        let folder = folder_of(path);
        let file = tempfile::Builder::new().prefix(".muster-").make_in(folder, create).map_err(failed)?;
        Ok(Self { path, file, existing })
    }

    /// Writes more.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.file.write_all(bytes).map_err(CliError::file("write", self.path))
    }

    /// Makes what was written durable and gives it its name.
    pub(crate) fn finish(self) -> Result<(), CliError> {
        let Self { path, file, existing } = self;
        file.as_file().sync_all().map_err(CliError::file("write", path))?;
        let named = match existing {
            Existing::Keep => file.persist_noclobber(path),
            Existing::Replace => file.persist(path),
        };
        named.map_err(|error| CliError::file("create", path)(error.error))?;
        let folder = folder_of(path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(CliError::file("write", folder))
    }
}

/// The folder that a path is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        Some(_) | None => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_written_whole_with_its_mode_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"one", 0o600, Existing::Keep).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = write(&path, b"two", 0o600, Existing::Keep).unwrap_err();
        assert!(matches!(error, CliError::File { action: "create", .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write(&path, b"two", 0o600, Existing::Replace).unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap(), b"two");
        assert!(matches!(read_bounded(&path, 2), Err(CliError::Content { .. })));

        let mut unfinished = Unfinished::create(&path, 0o600, Existing::Replace).unwrap();
        unfinished.append(b"three").unwrap();
        drop(unfinished);
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
