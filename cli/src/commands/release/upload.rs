//! Bringing a tree's bytes to the coordinator's store. What is there already is not sent again, and every file is hashed
//! again while it is sent: a file that changed since it was packed is an error, not a release.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use muster_model::{Digest, Manifest};
use muster_proto::{convert, v1};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::connect::{Session, answer, failed};
use crate::error::CliError;
use crate::output::Bars;

/// How many digests one question names; the protocol allows 10,000.
const QUESTION_LEN_MAX: usize = 10_000;

/// How many blobs are sent at a time.
const UPLOADS_MAX: usize = 4;

/// How much one message carries, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// How many chunks of one blob may be read ahead.
const CHUNKS_AHEAD: usize = 4;

/// One blob and where its bytes are.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    digest: Digest,
    size: u64,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    Memory(Vec<u8>),
}

/// The blobs of a tree that the store lacks, each once.
pub(super) async fn missing(
    session: &Session,
    dir: &Path,
    manifest: &Manifest,
) -> Result<Vec<Blob>, CliError> {
    let mut wanted: BTreeMap<Digest, Blob> = BTreeMap::new();
    for (path, size, digest) in manifest.files() {
        let source = Source::File(dir.join(OsStr::from_bytes(path.as_bytes())));
        wanted.entry(digest).or_insert(Blob { digest, size, source });
    }
    let bytes = manifest.to_bytes();
    let digest = manifest.digest();
    wanted.insert(digest, Blob { digest, size: bytes.len() as u64, source: Source::Memory(bytes) });

    const DOING: &str = "ask which blobs are missing";
    let digests: Vec<Digest> = wanted.keys().copied().collect();
    let mut missing = Vec::new();
    for part in digests.chunks(QUESTION_LEN_MAX) {
        let request = v1::FindMissingRequest {
            digests: part.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
        };
        let found = answer(DOING, session.blobs().find_missing(request)).await?;
        for bytes in found.digests.iter().take(part.len()) {
            let digest = convert::digest("digests", bytes).map_err(CliError::answer(DOING))?;
            missing.extend(wanted.remove(&digest));
        }
    }
    Ok(missing)
}

/// The bytes of all of them.
pub(super) fn total_bytes(blobs: &[Blob]) -> u64 {
    blobs.iter().map(|blob| blob.size).sum()
}

/// Sends them, several at a time. The manifest goes last, as a store that has it should have what it lists.
pub(super) async fn upload(session: &Session, blobs: Vec<Blob>, bar: &Bars) -> Result<(), CliError> {
    let (last, files): (Vec<_>, Vec<_>) =
        blobs.into_iter().partition(|blob| matches!(blob.source, Source::Memory(_)));
    stream::iter(files)
        .map(|blob| Box::pin(send(session, blob, bar)))
        .buffer_unordered(UPLOADS_MAX)
        .try_collect::<Vec<()>>()
        .await?;
    for blob in last {
        Box::pin(send(session, blob, bar)).await?;
    }
    Ok(())
}

async fn send(session: &Session, blob: Blob, bar: &Bars) -> Result<(), CliError> {
    let doing = match &blob.source {
        Source::File(path) => format!("upload {}", path.display()),
        Source::Memory(_) => "upload the manifest".to_owned(),
    };
    let header = v1::BlobHeader { digest: blob.digest.as_bytes().to_vec(), size: blob.size };
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || read(blob, &sender));
    let parts = ReceiverStream::new(receiver).inspect(|chunk: &Vec<u8>| bar.add(chunk.len() as u64));
    // Collected by reference to the bar, so the request is driven here and not in a task of its own.
    let (requests, request_stream) = mpsc::channel(1);
    let forward = async move {
        let first = v1::UploadRequest { part: Some(v1::upload_request::Part::Header(header)) };
        let mut rest = std::pin::pin!(parts);
        let mut next = Some(first);
        while let Some(request) = next {
            // A coordinator that has heard enough has dropped the other end; its answer says why.
            if requests.send(request).await.is_err() {
                break;
            }
            let part = rest.next().await.map(v1::upload_request::Part::Chunk);
            next = part.map(|part| v1::UploadRequest { part: Some(part) });
        }
    };
    let mut client = session.blobs();
    let (sent, ()) = tokio::join!(client.upload(ReceiverStream::new(request_stream)), forward);
    // A reader that failed ends the upload early. Its reason comes first: the coordinator only sees too few bytes.
    let read = reading
        .await
        .map_err(|error| CliError::System { doing: "read a file", source: io::Error::other(error) })?;
    read?;
    sent.map_err(|status| failed(&doing, status))?;
    Ok(())
}

/// Reads a blob chunk by chunk, and makes sure that it is what was packed before the last chunk is handed over.
fn read(blob: Blob, sender: &mpsc::Sender<Vec<u8>>) -> Result<(), CliError> {
    let Blob { digest, size, source } = blob;
    match source {
        Source::Memory(bytes) => {
            for chunk in bytes.chunks(CHUNK_BYTES) {
                if sender.blocking_send(chunk.to_vec()).is_err() {
                    break;
                }
            }
            Ok(())
        }
        Source::File(path) => {
            let file = open(&path).map_err(CliError::file("read", path.as_path()))?;
            read_file(&path, file, digest, size, sender)
        }
    }
}

fn read_file(
    path: &Path,
    file: File,
    digest: Digest,
    size: u64,
    sender: &mpsc::Sender<Vec<u8>>,
) -> Result<(), CliError> {
    let changed = || CliError::Content {
        path: path.to_owned(),
        reason: "it changed after it was packed; pack and push again when nothing writes to the tree"
            .to_owned(),
    };
    let mut hasher = Sha256::new();
    // One byte more than expected, so that a file that grew is noticed.
    let mut rest = file.take(size + 1);
    let mut held: Option<Vec<u8>> = None;
    let mut total = 0;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        rest.by_ref()
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .map_err(CliError::file("read", path))?;
        if chunk.is_empty() {
            break;
        }
        total += chunk.len() as u64;
        hasher.update(&chunk);
        if let Some(earlier) = held.replace(chunk)
            && sender.blocking_send(earlier).is_err()
        {
            return Ok(());
        }
    }
    if total != size || Digest::from_bytes(hasher.finalize().into()) != digest {
        return Err(changed());
    }
    if let Some(last) = held {
        // If nobody listens any more, the answer of the coordinator says why.
        let _ = sender.blocking_send(last);
    }
    Ok(())
}

/// Opens a regular file and nothing else: what was packed may have been exchanged for a symlink or a FIFO since.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).expect("the flags fit");
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no longer a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(path: &Path, expected: &[u8]) -> (Result<(), CliError>, Vec<u8>) {
        let blob = Blob {
            digest: Digest::of(expected),
            size: expected.len() as u64,
            source: Source::File(path.to_owned()),
        };
        let (sender, mut receiver) = mpsc::channel(1);
        let reader = std::thread::spawn(move || read(blob, &sender));
        let mut bytes = Vec::new();
        while let Some(chunk) = receiver.blocking_recv() {
            bytes.extend(chunk);
        }
        (reader.join().unwrap(), bytes)
    }

    #[test]
    fn a_file_that_is_as_it_was_packed_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for content in [vec![], vec![7; 10], vec![1; CHUNK_BYTES], vec![2; 2 * CHUNK_BYTES + 1]] {
            std::fs::write(&path, &content).unwrap();
            let (outcome, bytes) = read_all(&path, &content);
            outcome.unwrap();
            assert_eq!(bytes, content);
        }
    }

    #[test]
    fn a_file_that_changed_since_is_an_error_and_never_sent_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let packed = vec![1; CHUNK_BYTES + 10];
        let mut flipped = packed.clone();
        flipped[3] = 2;
        let grown = [packed.as_slice(), b"x"].concat();
        for changed in [flipped, grown, packed[..packed.len() - 1].to_vec(), vec![]] {
            std::fs::write(&path, &changed).unwrap();
            let (outcome, bytes) = read_all(&path, &packed);
            assert!(matches!(outcome, Err(CliError::Content { .. })));
            assert!(bytes.len() < packed.len());
        }
    }

    #[test]
    fn a_symlink_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, b"same bytes").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let (outcome, bytes) = read_all(&link, b"same bytes");
        assert!(matches!(outcome, Err(CliError::File { .. })));
        assert!(bytes.is_empty());
    }
}
