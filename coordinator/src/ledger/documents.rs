//! The documents that records name, and all other blobs.

use std::path::Path;
use std::sync::Arc;

use muster_artifact::{ArtifactError, BlobStore, Durability};
use muster_model::{Digest, MAX_MANIFEST_BYTES};

use crate::Error;

/// The largest document that is read back, in bytes: the state of many fleets of 20,000 hosts, in a snapshot.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 256 << 20;

/// The documents that records name, and all other blobs.
#[derive(Debug, Clone)]
pub(crate) struct Documents(Arc<BlobStore>);

impl Documents {
    /// Opens the blob store below `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self(Arc::new(BlobStore::open(&dir.join("blobs"))?)))
    }

    /// The blobs.
    pub(crate) fn blobs(&self) -> &BlobStore {
        &self.0
    }

    /// Keeps a document under its digest, durably.
    pub(crate) fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), ArtifactError> {
        if self.0.contains(digest, Some(bytes.len() as u64))? {
            return Ok(());
        }
        let mut writer = self.0.writer(digest, bytes.len() as u64, Durability::Each)?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// Reads a document and verifies it.
    pub(crate) fn read(&self, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
        self.read_up_to(digest, DOCUMENT_BYTES_MAX)
    }

    /// Reads a manifest and verifies its digest.
    pub(crate) fn read_manifest(&self, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
        self.read_up_to(digest, MAX_MANIFEST_BYTES as u64)
    }

    fn read_up_to(&self, digest: Digest, max: u64) -> Result<Vec<u8>, ArtifactError> {
        let mut reader = self.0.reader(digest)?;
        if reader.size() > max {
            return Err(ArtifactError::WrongSize { digest, stated: max, found: reader.size() });
        }
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
    }
}
