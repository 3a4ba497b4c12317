//! Pulling bytes by their digest.

use std::time::Duration;

use muster_artifact::{ArtifactError, BlobStore, BlobWriter, Durability};
use muster_daemon::{Machine, Pace, PaceFault, crash_point, fault_point};
use muster_model::{Code, Digest, HostName, Refusal};
use muster_proto::v1;
use muster_proto::v1::blobs_client::BlobsClient;
use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::measure::on_thread;
use crate::refusal;

/// How long the coordinator may take for the next chunk.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// How much is collected before a thread is asked to write it: small blobs cost one visit to the disk.
const WRITE_BYTES: usize = 1 << 20;

/// Pulls a blob into memory, at most `bytes_max` long, and checks that it is what its digest says.
pub(crate) async fn pull(
    channel: Channel,
    machine: &Machine,
    host: &HostName,
    what: &str,
    digest: Digest,
    bytes_max: usize,
) -> Result<Vec<u8>, Refusal> {
    let mut chunks = Chunks::begin(channel, host, what, digest).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await? {
        if bytes.len() + chunk.len() > bytes_max {
            let detail = format!("{what} {digest} is longer than {bytes_max} bytes");
            return Err(refusal::at(host, Code::BlobDamaged, detail));
        }
        bytes.extend_from_slice(&chunk);
    }
    // Megabytes take milliseconds to hash, in which the runtime would do nothing else.
    on_thread(machine, host, {
        let (host, what) = (host.clone(), what.to_owned());
        move || {
            let measured = Digest::of(&bytes);
            if measured == digest {
                return Ok(bytes);
            }
            let detail = format!("what came for {what} {digest} is {measured}");
            Err(refusal::at(&host, Code::BlobDamaged, detail))
        }
    })
    .await
}

/// Pulls a blob of exactly `size` bytes into the store, which verifies it. It survives a crash once the store was
/// synced. `arrived` is told of each chunk's length.
pub(crate) async fn pull_into(
    store: &BlobStore,
    channel: Channel,
    machine: &Machine,
    host: &HostName,
    (digest, size): (Digest, u64),
    arrived: impl Fn(u64),
) -> Result<(), Refusal> {
    let mut chunks = Chunks::begin(channel, host, "blob", digest).await?;
    let mut sink = Sink::Unopened { store: store.clone(), digest, size };
    let mut collected: Vec<u8> = Vec::new();
    let mut total: u64 = 0;
    while let Some(chunk) = chunks.next().await? {
        total = total.saturating_add(chunk.len() as u64);
        if total > size {
            let error = ArtifactError::WrongSize { digest, stated: size, found: total };
            return Err(refusal::of_artifact(host, &error));
        }
        arrived(chunk.len() as u64);
        collected.extend_from_slice(&chunk);
        if collected.len() >= WRITE_BYTES {
            let bytes = std::mem::take(&mut collected);
            sink = write(machine, host, move || sink.write(&bytes)).await?;
        }
    }
    write(machine, host, move || sink.write(&collected)?.finish()).await?;
    crash_point("agent.deploy.blob");
    Ok(())
}

/// Puts bytes that are in memory into the store.
pub(crate) async fn put(
    store: &BlobStore,
    machine: &Machine,
    host: &HostName,
    digest: Digest,
    bytes: Vec<u8>,
) -> Result<Vec<u8>, Refusal> {
    let sink = Sink::Unopened { store: store.clone(), digest, size: bytes.len() as u64 };
    write(machine, host, move || {
        sink.write(&bytes)?.finish()?;
        Ok(bytes)
    })
    .await
}

async fn write<T: Send + 'static>(
    machine: &Machine,
    host: &HostName,
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, Refusal> {
    let at = host.clone();
    on_thread(machine, host, move || {
        fault_point("agent.blob.write").map_err(|error| refusal::of_io(&at, "write a blob", &error))?;
        work().map_err(|error| refusal::of_artifact(&at, &error))
    })
    .await
}

/// A blob on its way to the disk. Dropped unfinished, it leaves nothing.
enum Sink {
    Unopened { store: BlobStore, digest: Digest, size: u64 },
    Open(BlobWriter),
}

impl Sink {
    fn write(self, bytes: &[u8]) -> Result<Self, ArtifactError> {
        let mut writer = match self {
            Self::Unopened { store, digest, size } => store.writer(digest, size, Durability::Batch)?,
            Self::Open(writer) => writer,
        };
        writer.write(bytes)?;
        Ok(Self::Open(writer))
    }

    fn finish(self) -> Result<(), ArtifactError> {
        match self {
            Self::Unopened { .. } => Ok(()),
            Self::Open(writer) => writer.finish(),
        }
    }
}

/// The chunks of one blob as they come.
struct Chunks<'a> {
    stream: Streaming<v1::DownloadResponse>,
    host: &'a HostName,
    what: String,
    pace: Pace,
}

impl<'a> Chunks<'a> {
    async fn begin(
        channel: Channel,
        host: &'a HostName,
        what: &str,
        digest: Digest,
    ) -> Result<Self, Refusal> {
        let what = format!("{what} {digest}");
        let mut client = BlobsClient::new(channel);
        let call = client.download(v1::DownloadRequest { digest: digest.as_bytes().to_vec() });
        match tokio::time::timeout(CHUNK_TIMEOUT, call).await {
            Ok(Ok(response)) => {
                Ok(Self { stream: response.into_inner(), host, what, pace: Pace::begin(Instant::now()) })
            }
            Ok(Err(status)) => Err(refusal::of_status(host, &what, &status)),
            Err(_) => Err(late(host, &what)),
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, Refusal> {
        match tokio::time::timeout(CHUNK_TIMEOUT, self.stream.message()).await {
            Ok(Ok(None)) => Ok(None),
            Ok(Ok(Some(v1::DownloadResponse { chunk }))) => {
                self.pace.keep(chunk.len() as u64, Instant::now()).map_err(|fault| {
                    let code = match fault {
                        PaceFault::Empty => Code::BlobDamaged,
                        PaceFault::Slow { .. } => Code::TimedOut,
                    };
                    refusal::at(self.host, code, format!("{}: {fault}", self.what))
                })?;
                Ok(Some(chunk))
            }
            Ok(Err(status)) => Err(refusal::of_status(self.host, &self.what, &status)),
            Err(_) => Err(late(self.host, &self.what)),
        }
    }
}

fn late(host: &HostName, what: &str) -> Refusal {
    let detail = format!("{what}: nothing came for {} s", CHUNK_TIMEOUT.as_secs());
    refusal::at(host, Code::TimedOut, detail)
}
