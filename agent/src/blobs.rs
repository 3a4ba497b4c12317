//! Pulling bytes by their digest.

use std::time::Duration;

use muster_artifact::{ArtifactError, BlobStore, BlobWriter, Durability};
use muster_daemon::{Machine, crash_point, fault_point};
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

/// Bytes in each second that a download must bring on average, and for how long it may bring less at first. A link that
/// works is far faster; whoever lets a byte through now and then would hold a deployment up without end.
const RATE_BYTES_MIN: u64 = 1 << 10;
const RATE_GRACE: Duration = Duration::from_secs(10);

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
                let kept = self.pace.keep(chunk.len() as u64, Instant::now());
                kept.map_err(|(code, reason)| {
                    refusal::at(self.host, code, format!("{}: {reason}", self.what))
                })?;
                Ok(Some(chunk))
            }
            Ok(Err(status)) => Err(refusal::of_status(self.host, &self.what, &status)),
            Err(_) => Err(late(self.host, &self.what)),
        }
    }
}

/// How fast the bytes of one download come.
struct Pace {
    begun: Instant,
    bytes: u64,
}

impl Pace {
    const fn begin(now: Instant) -> Self {
        Self { begun: now, bytes: 0 }
    }

    /// Takes a chunk of this length into account. A download that would never end is told by what.
    fn keep(&mut self, len: u64, now: Instant) -> Result<(), (Code, String)> {
        if len == 0 {
            return Err((Code::BlobDamaged, "a chunk with nothing in it came".to_owned()));
        }
        let is_first = self.bytes == 0;
        self.bytes = self.bytes.saturating_add(len);
        let taken = now.saturating_duration_since(self.begun);
        let due = taken.saturating_sub(RATE_GRACE).as_secs().saturating_mul(RATE_BYTES_MIN);
        // The first chunk may be all there is, however long it was held up.
        if is_first || self.bytes >= due {
            return Ok(());
        }
        let reason = format!("only {} bytes came in {} s", self.bytes, taken.as_secs());
        Err((Code::TimedOut, reason))
    }
}

fn late(host: &HostName, what: &str) -> Refusal {
    let detail = format!("{what}: nothing came for {} s", CHUNK_TIMEOUT.as_secs());
    refusal::at(host, Code::TimedOut, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_that_only_drips_or_is_all_empty_is_given_up() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut dripping = Pace::begin(begun);
        assert!((1..=10).all(|second| dripping.keep(1, after(second)).is_ok()), "a slow start");
        let (code, reason) = dripping.keep(1, after(11)).unwrap_err();
        assert_eq!((code, reason.as_str()), (Code::TimedOut, "only 11 bytes came in 11 s"));

        let mut held_up = Pace::begin(begun);
        assert!(held_up.keep(1, after(29)).is_ok(), "the first may be all");
        assert!(held_up.keep((64 << 10) - 1, after(30)).is_ok(), "what counts is the average");
        assert!(held_up.keep(1, after(74)).is_ok());
        assert!(held_up.keep(1, after(75)).is_err());
        let (code, _) = Pace::begin(begun).keep(0, begun).unwrap_err();
        assert_eq!(code, Code::BlobDamaged);
    }
}
