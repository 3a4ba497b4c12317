//! Bytes by their digest: what operators upload and agents pull.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_artifact::{ArtifactError, BlobReader, BlobStore, Durability};
use muster_daemon::{Machine, Pace, PaceFault, fault_point};
use muster_model::Digest;
use muster_proto::convert::digest;
use muster_proto::v1;
use muster_proto::v1::upload_request::Part;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::coordinator::Shared;
use crate::fleet::blocking;
use crate::status::{blob_refusal, chain, failed, malformed, refused};

/// Bytes of one chunk; every connection may hold a few of them.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks of an upload that wait for the disk.
const CHUNKS_AHEAD: usize = 4;
/// Chunks of a download that wait for a slow reader. All hosts of a fleet ask at once, for documents that grow with
/// the fleet, so this counts as many times as there are hosts.
const CHUNKS_UNREAD: usize = 1;
/// Chunks that are read from disk at the same time. More would not be faster, and each takes a thread.
const READS_MAX: usize = 16;
/// Digests in one question.
const DIGESTS_MAX: usize = 10_000;

/// The blob service.
pub(crate) struct Blobs {
    shared: Arc<Shared>,
    damaged: Damaged,
    reads: Arc<Semaphore>,
    uploads: Semaphore,
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
        Self {
            shared: Arc::clone(shared),
            damaged: Damaged::default(),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            uploads: Semaphore::new(shared.uploads.at_once),
        }
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
        let digests = self.shared.machine.run_blocking(move || {
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
        let (mut parts, idle) = (request.into_inner(), self.shared.uploads.idle);
        let _permit = self.uploads.acquire().await.expect("the semaphore is never closed");
        let first = next_upload(&mut parts, idle).await?.and_then(|part| part.part);
        let Some(Part::Header(header)) = first else {
            return Err(Status::invalid_argument("an upload begins with a header"));
        };
        let name = digest("digest", &header.digest).map_err(malformed)?;
        let blobs = self.shared.documents.blobs().clone();
        let (chunks, receiver) = mpsc::channel::<Vec<u8>>(CHUNKS_AHEAD);
        // On a thread whatever the machine is: it waits for the sender.
        let writing = tokio::task::spawn_blocking(move || write_blob(&blobs, name, header.size, receiver));
        let taken = take_chunks(&mut parts, idle, chunks).await;
        // Whatever was wrong with them: nothing is left of an upload once it is answered.
        let written = writing.await.map_err(|error| failed("cannot write a blob", &error))?;
        taken?;
        written.map_err(|error| {
            tracing::error!(%name, error = %chain(&error), "a blob was not kept");
            blob_refused(&error)
        })?;
        self.damaged.names().remove(&name);
        Ok(Response::new(v1::UploadResponse {}))
    }

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let name = digest("digest", &request.into_inner().digest).map_err(malformed)?;
        let (sender, receiver) = mpsc::channel(CHUNKS_UNREAD);
        let download = Download {
            machine: self.shared.machine.clone(),
            blobs: self.shared.documents.blobs().clone(),
            name,
            reads: Arc::clone(&self.reads),
        };
        let damaged = self.damaged.clone();
        tokio::spawn(async move {
            if let Err(error) = download.send(&sender).await {
                tracing::error!(%name, error = %chain(&error), "a blob cannot be read");
                if matches!(error, ArtifactError::Damaged { .. }) {
                    damaged.names().insert(name);
                }
                // Whoever asked may be gone.
                let _ = sender.send(Err(blob_refused(&error))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Hands the chunks of an upload to whoever writes them.
async fn take_chunks(
    parts: &mut Streaming<v1::UploadRequest>,
    idle: Duration,
    chunks: mpsc::Sender<Vec<u8>>,
) -> Result<(), Status> {
    let mut pace = Pace::begin(Instant::now());
    while let Some(part) = next_upload(parts, idle).await? {
        let Some(Part::Chunk(chunk)) = part.part else {
            return Err(Status::invalid_argument("a header comes first and once"));
        };
        pace.keep(chunk.len() as u64, Instant::now()).map_err(|fault| match fault {
            PaceFault::Empty => Status::invalid_argument(fault.to_string()),
            PaceFault::Slow { .. } => Status::deadline_exceeded(fault.to_string()),
        })?;
        if chunks.send(chunk).await.is_err() {
            // The writer has failed, and says why.
            break;
        }
    }
    Ok(())
}

/// The next part of an upload, within bounds of time: whoever is silent gives its place to others.
async fn next_upload(
    parts: &mut Streaming<v1::UploadRequest>,
    idle: Duration,
) -> Result<Option<v1::UploadRequest>, Status> {
    match tokio::time::timeout(idle, parts.next()).await {
        Ok(part) => part.transpose(),
        Err(_) => Err(Status::deadline_exceeded(format!("the upload sent nothing for {idle:?}"))),
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
        fault_point("coordinator.blob.write").map_err(|source| {
            let (doing, path) = ("write", name.to_string().into());
            if source.kind() == std::io::ErrorKind::StorageFull {
                return ArtifactError::NoSpace { doing, path, source };
            }
            ArtifactError::Io { doing, path, source }
        })?;
        writer.write(&chunk)?;
    }
    writer.finish()
}

/// One blob on its way to whoever asked for it.
struct Download {
    machine: Machine,
    blobs: BlobStore,
    name: Digest,
    reads: Arc<Semaphore>,
}

impl Download {
    /// Sends chunk by chunk. No thread waits for the reader: one that is slow costs a chunk, not a thread.
    async fn send(
        &self,
        sender: &mpsc::Sender<Result<v1::DownloadResponse, Status>>,
    ) -> Result<(), ArtifactError> {
        let (blobs, name) = (self.blobs.clone(), self.name);
        let mut part = self.read(move || next_part(blobs.reader(name)?)).await?;
        loop {
            // The receiver verifies on its own, so that a chunk may leave before the whole is known to be good.
            let chunk = part.chunk;
            if !chunk.is_empty() && sender.send(Ok(v1::DownloadResponse { chunk })).await.is_err() {
                return Ok(());
            }
            let Some(rest) = part.rest else { return Ok(()) };
            part = self.read(move || next_part(rest)).await?;
        }
    }

    async fn read<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> T {
        let _permit = self.reads.acquire().await.expect("the semaphore is never closed");
        blocking(&self.machine, read).await
    }
}

/// The next bytes of a blob.
struct BlobPart {
    chunk: Vec<u8>,
    /// None if this is the last part, and with it the whole is verified.
    rest: Option<BlobReader>,
}

fn next_part(mut reader: BlobReader) -> Result<BlobPart, ArtifactError> {
    // Room for one byte more than a small blob has, so that its end is seen at once.
    let size = usize::try_from(reader.size()).unwrap_or(usize::MAX);
    let mut chunk = vec![0; size.saturating_add(1).min(CHUNK_BYTES)];
    let mut filled = 0;
    while filled < chunk.len() {
        let count = reader.read(&mut chunk[filled..])?;
        if count == 0 {
            chunk.truncate(filled);
            return Ok(BlobPart { chunk, rest: None });
        }
        filled += count;
    }
    Ok(BlobPart { chunk, rest: Some(reader) })
}

fn blob_refused(error: &ArtifactError) -> Status {
    refused(blob_refusal(error))
}
