//! The blob store: files named by the digest of their content.
//!
//! A blob is `<first two hex digits>/<64 hex digits>` in the store's folder, written once, read-only, and
//! only ever renamed to that name after its bytes were hashed. What the disk does to it later is noticed when
//! it is read: a reader hashes too.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use muster_model::Digest;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::ArtifactError;
use crate::durable::{create_folders, sync_folder};

const INCOMING: &str = "incoming";
const COPY_BYTES: usize = 256 << 10;

/// A folder of blobs.
#[derive(Debug, Clone)]
pub struct BlobStore {
    dir: PathBuf,
}

/// When a finished blob has to survive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before the writer finishes.
    Each,
    /// Once [`BlobStore::sync`] has returned. A crash before that may leave the blob's name with other bytes,
    /// which its next reader notices. For many small blobs, of which each costs two flushes of the disk
    /// otherwise.
    Batch,
}

/// A blob that is arriving. Dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    store: PathBuf,
    file: NamedTempFile,
    hasher: Sha256,
    digest: Digest,
    size: u64,
    written: u64,
    durability: Durability,
}

/// A blob that is read and verified on the way.
#[derive(Debug)]
pub struct BlobReader {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    digest: Digest,
    size: u64,
    read: u64,
}

impl BlobStore {
    /// Opens a store, makes its folder if need be, and removes what interrupted writers left.
    pub fn open(dir: &Path) -> Result<Self, ArtifactError> {
        let incoming = dir.join(INCOMING);
        create_folders(&incoming)?;
        remove_stale(&incoming)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// A store that somebody else keeps, to read from. Nothing is made and nothing removed.
    #[must_use]
    pub fn of_another(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Whether the blob is there, with this size if one is given. Its bytes are not looked at.
    pub fn contains(&self, digest: Digest, size: Option<u64>) -> Result<bool, ArtifactError> {
        let path = self.path(digest);
        match fs::symlink_metadata(&path) {
            Ok(found) => Ok(found.is_file() && size.is_none_or(|size| size == found.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ArtifactError::io("examine", &path, error)),
        }
    }

    /// Begins to write a blob of `size` bytes.
    pub fn writer(
        &self,
        digest: Digest,
        size: u64,
        durability: Durability,
    ) -> Result<BlobWriter, ArtifactError> {
        Ok(BlobWriter {
            store: self.dir.clone(),
            file: self.incoming_file()?,
            hasher: Sha256::new(),
            digest,
            size,
            written: 0,
            durability,
        })
    }

    /// Opens a blob. Its content is verified while it is read, so it counts only when the end was reached
    /// without an error.
    pub fn reader(&self, digest: Digest) -> Result<BlobReader, ArtifactError> {
        let path = self.path(digest);
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = opened.map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                return ArtifactError::BlobMissing { digest };
            }
            ArtifactError::io("open", &path, error)
        })?;
        Ok(BlobReader { path, file, hasher: Sha256::new(), digest, size, read: 0 })
    }

    /// The whole of a blob that has at most `bytes_max` bytes, verified.
    pub fn read_whole(&self, digest: Digest, bytes_max: usize) -> Result<Vec<u8>, ArtifactError> {
        let mut reader = self.reader(digest)?;
        let stated = bytes_max as u64;
        if reader.size() > stated {
            return Err(ArtifactError::WrongSize { digest, stated, found: reader.size() });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(reader.size()).unwrap_or_default());
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(bytes),
                // The file may grow while it is read; its digest would be wrong, so that more is never kept than this.
                read if bytes.len() + read > bytes_max => {
                    return Err(ArtifactError::WrongSize {
                        digest,
                        stated,
                        found: (bytes.len() + read) as u64,
                    });
                }
                read => bytes.extend_from_slice(&buffer[..read]),
            }
        }
    }

    /// Copies a regular file into the store and says what it is.
    pub fn import_file(&self, source: &Path) -> Result<(Digest, u64), ArtifactError> {
        let mut from = open_regular(source).map_err(|error| ArtifactError::io("open", source, error))?;
        let mut file = self.incoming_file()?;
        let mut hasher = Sha256::new();
        let mut size: u64 = 0;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let bytes = read_some(&mut from, &mut buffer)
                .map_err(|error| ArtifactError::io("read", source, error))?;
            if bytes == 0 {
                break;
            }
            hasher.update(&buffer[..bytes]);
            size += bytes as u64;
            file.as_file_mut()
                .write_all(&buffer[..bytes])
                .map_err(|error| ArtifactError::io("write", file.path(), error))?;
        }
        let digest = Digest::from_bytes(hasher.finalize().into());
        settle(&self.dir, file, digest, Durability::Each)?;
        Ok((digest, size))
    }

    /// Removes a blob, if it is there: because nothing needs it, or because it is damaged and has to be
    /// fetched again.
    pub fn remove(&self, digest: Digest) -> Result<(), ArtifactError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(ArtifactError::io("remove", &path, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes everything that was finished before this call durable.
    pub fn sync(&self) -> Result<(), ArtifactError> {
        let failed = |error: io::Error| ArtifactError::io("sync the file system of", &self.dir, error);
        let folder = File::open(&self.dir).map_err(failed)?;
        rustix::fs::syncfs(&folder).map_err(|error| failed(error.into()))
    }

    fn path(&self, digest: Digest) -> PathBuf {
        path_in(&self.dir, digest)
    }

    /// The lock tells a file that is being written from one whose writer died.
    fn incoming_file(&self) -> Result<NamedTempFile, ArtifactError> {
        let incoming = self.dir.join(INCOMING);
        tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(&incoming)
            .and_then(|file| file.as_file().try_lock().map_err(io::Error::from).map(|()| file))
            .map_err(|error| ArtifactError::io("create a file in", &incoming, error))
    }
}

impl BlobWriter {
    /// Adds the next bytes. More than the blob has are refused at once, before they reach the disk.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), ArtifactError> {
        let written = self.written.saturating_add(chunk.len() as u64);
        if written > self.size {
            return Err(ArtifactError::WrongSize { digest: self.digest, stated: self.size, found: written });
        }
        // Through the file itself: the wrapper would put the path into the error once more.
        let written_chunk = self.file.as_file_mut().write_all(chunk);
        written_chunk.map_err(|error| ArtifactError::io("write", self.file.path(), error))?;
        self.hasher.update(chunk);
        self.written = written;
        Ok(())
    }

    /// Verifies size and digest and gives the blob its name.
    pub fn finish(self) -> Result<(), ArtifactError> {
        if self.written != self.size {
            return Err(ArtifactError::WrongSize {
                digest: self.digest,
                stated: self.size,
                found: self.written,
            });
        }
        let measured = Digest::from_bytes(self.hasher.finalize().into());
        if measured != self.digest {
            return Err(ArtifactError::WrongContent { digest: self.digest, measured });
        }
        settle(&self.store, self.file, self.digest, self.durability)
    }
}

impl BlobReader {
    /// The blob's size in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Reads up to `buffer.len()` bytes; 0 means that the end was reached and everything read before it is
    /// the blob.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArtifactError> {
        let bytes = read_some(&mut self.file, buffer)
            .map_err(|error| ArtifactError::io("read", &self.path, error))?;
        self.hasher.update(&buffer[..bytes]);
        self.read += bytes as u64;
        if bytes > 0 || buffer.is_empty() {
            return Ok(bytes);
        }
        let measured = Digest::from_bytes(self.hasher.clone().finalize().into());
        if measured == self.digest {
            return Ok(0);
        }
        Err(ArtifactError::Damaged { digest: self.digest, measured, size: self.read })
    }
}

/// Opens a file that somebody else may be changing: neither a link nor a pipe, which would lead elsewhere or wait for a writer.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"))
}

fn path_in(store: &Path, digest: Digest) -> PathBuf {
    let hex = digest.hex();
    store.join(&hex[..2]).join(&hex)
}

fn settle(
    store: &Path,
    file: NamedTempFile,
    digest: Digest,
    durability: Durability,
) -> Result<(), ArtifactError> {
    let path = path_in(store, digest);
    let folder = path.parent().expect("a blob's path has a folder");
    let failed = |doing| {
        let path = &path;
        move |error| ArtifactError::io(doing, path, error)
    };
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(ArtifactError::io("create the folder", folder, error)),
        Ok(()) if durability == Durability::Each => sync_folder(store)?,
        Ok(()) => {}
    }
    file.as_file().set_permissions(Permissions::from_mode(0o400)).map_err(failed("set the mode of"))?;
    if durability == Durability::Each {
        file.as_file().sync_all().map_err(failed("sync"))?;
    }
    file.persist(&path).map_err(|error| ArtifactError::io("rename a new file to", &path, error.error))?;
    if durability == Durability::Each { sync_folder(folder) } else { Ok(()) }
}

fn remove_stale(incoming: &Path) -> Result<(), ArtifactError> {
    let failed = |error| ArtifactError::io("clean", incoming, error);
    for entry in fs::read_dir(incoming).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // A file that cannot be opened or locked is being written by somebody else, or was just finished.
        let abandoned = File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if abandoned {
            tracing::debug!(path = %path.display(), "removing a blob that never arrived whole");
            fs::remove_file(&path).map_err(|error| ArtifactError::io("remove", &path, error))?;
        }
    }
    Ok(())
}

fn read_some(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests;
