//! Bytes by their digest: what operators upload and agents pull.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_artifact::{ArtifactError, BlobStore, Durability};
use muster_model::{Code, Digest, Refusal};
use muster_proto::convert::digest;
use muster_proto::v1;
use muster_proto::v1::upload_request::Part;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::coordinator::Shared;
use crate::status::{chain, failed, malformed, refused};

/// Bytes of one chunk; every connection may hold a few of them.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait for a slow reader.
const CHUNKS_AHEAD: usize = 4;
/// Digests in one question.
const DIGESTS_MAX: usize = 10_000;

/// The blob service.
pub(crate) struct Blobs {
    shared: Arc<Shared>,
    damaged: Damaged,
}

/// Blobs that turned out not to be what their names say. They count as missing, so that whoever has the tree is asked for
/// them at the next push; until then every reader is told that they are damaged.
#[derive(Debug, Clone, Default)]
struct Damaged(Arc<Mutex<BTreeSet<Digest>>>);

impl Damaged {
    fn names(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blobs {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), damaged: Damaged::default() }
    }
}

#[tonic::async_trait]
impl v1::blobs_server::Blobs for Blobs {
    type DownloadStream = Pin<Box<dyn Stream<Item = Result<v1::DownloadResponse, Status>> + Send>>;

    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        let asked = request.into_inner().digests;
        if asked.len() > DIGESTS_MAX {
            return Err(Status::invalid_argument(format!(
                "at most {DIGESTS_MAX} digests are answered at once"
            )));
        }
        let (blobs, damaged) = (self.shared.documents.blobs().clone(), self.damaged.clone());
        let digests = tokio::task::spawn_blocking(move || {
            let mut missing = Vec::new();
            for bytes in asked {
                let name = digest("digests", &bytes).map_err(malformed)?;
                let is_there = blobs.contains(name, None);
                let is_there = is_there.map_err(|error| failed("cannot look for a blob", &error))?;
                if !is_there || damaged.names().contains(&name) {
                    missing.push(bytes);
                }
            }
            Ok::<_, Status>(missing)
        });
        let digests = digests.await.map_err(|error| failed("cannot look for blobs", &error))??;
        Ok(Response::new(v1::FindMissingResponse { digests }))
    }

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        let mut parts = request.into_inner();
        let first = parts.next().await.transpose()?.and_then(|part| part.part);
        let Some(Part::Header(header)) = first else {
            return Err(Status::invalid_argument("an upload begins with a header"));
        };
        let name = digest("digest", &header.digest).map_err(malformed)?;
        let blobs = self.shared.documents.blobs().clone();
        let (chunks, receiver) = mpsc::channel::<Vec<u8>>(CHUNKS_AHEAD);
        let writing = tokio::task::spawn_blocking(move || write_blob(&blobs, name, header.size, receiver));
        while let Some(part) = parts.next().await {
            let Some(Part::Chunk(chunk)) = part?.part else {
                return Err(Status::invalid_argument("a header comes first and once"));
            };
            if chunks.send(chunk).await.is_err() {
                // The writer has failed, and says why below.
                break;
            }
        }
        drop(chunks);
        let written = writing.await.map_err(|error| failed("cannot write a blob", &error))?;
        written.map_err(|error| blob_refused(&error))?;
        self.damaged.names().remove(&name);
        Ok(Response::new(v1::UploadResponse {}))
    }

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let name = digest("digest", &request.into_inner().digest).map_err(malformed)?;
        let (blobs, damaged) = (self.shared.documents.blobs().clone(), self.damaged.clone());
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = read_blob(&blobs, name, &sender) {
                tracing::error!(%name, error = %chain(&error), "a blob cannot be read");
                if matches!(error, ArtifactError::Damaged { .. }) {
                    damaged.names().insert(name);
                }
                // Whoever asked may be gone.
                let _ = sender.blocking_send(Err(blob_refused(&error)));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn write_blob(
    blobs: &BlobStore,
    name: Digest,
    size: u64,
    mut chunks: mpsc::Receiver<Vec<u8>>,
) -> Result<(), ArtifactError> {
    let mut writer = blobs.writer(name, size, Durability::Each)?;
    while let Some(chunk) = chunks.blocking_recv() {
        writer.write(&chunk)?;
    }
    writer.finish()
}

fn read_blob(
    blobs: &BlobStore,
    name: Digest,
    sender: &mpsc::Sender<Result<v1::DownloadResponse, Status>>,
) -> Result<(), ArtifactError> {
    let mut reader = blobs.reader(name)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = reader.read(&mut buffer)?;
        let gone = || sender.is_closed();
        if count == 0 || gone() {
            return Ok(());
        }
        // The receiver verifies on its own, so that a chunk may leave before the whole is known to be good.
        if sender.blocking_send(Ok(v1::DownloadResponse { chunk: buffer[..count].to_vec() })).is_err() {
            return Ok(());
        }
    }
}

/// What is wrong with a blob, as whoever asked needs to hear it.
fn blob_refused(error: &ArtifactError) -> Status {
    let Some(code) = blob_code(error) else {
        return failed("the coordinator's blob store failed", error);
    };
    refused(Refusal::of(code, format!("in the coordinator's store: {}", chain(error))))
}

/// The code of a failure that whoever asked can do something about.
pub(crate) fn blob_code(error: &ArtifactError) -> Option<Code> {
    if let ArtifactError::BlobMissing { .. } = error {
        return Some(Code::BlobMissing);
    }
    if let ArtifactError::Damaged { .. }
    | ArtifactError::WrongContent { .. }
    | ArtifactError::WrongSize { .. } = error
    {
        return Some(Code::BlobDamaged);
    }
    if let ArtifactError::NoSpace { .. } = error {
        return Some(Code::NoSpace);
    }
    if let ArtifactError::ReadOnly { .. } = error { Some(Code::ReadOnly) } else { None }
}
