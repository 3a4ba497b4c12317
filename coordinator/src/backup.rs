//! Backup and restore of the coordinator's state: the database, the documents it names and the root documents that
//! followed the pinned one, as a tar archive. Release blobs are not in it; whoever built them has them, and hosts that
//! serve them do.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use muster_audit::NOTE_BYTES_MAX;
use muster_daemon::{Machine, unix_time};
use muster_model::{Digest, Incarnation};
use muster_proto::v1;
use muster_store::{BackupSummary, Options, StoreError};
use muster_trust::{ROOT_BYTES_MAX, RootChain};
use tokio::sync::mpsc;
use tonic::Status;

use crate::Error;
use crate::audit::PREVIOUS_FILE;
use crate::config::default_records_between_snapshots;
use crate::coordinator::Shared;
use crate::fleet::blocking;
use crate::ledger::{DOCUMENT_BYTES_MAX, Documents, Entry, Ledger};
use crate::status::failed;

const LEDGER_NAME: &str = "ledger.backup";
/// The last checkpoint of the audit log: what a restored coordinator begins its new log with.
const CHECKPOINT_NAME: &str = "audit.checkpoint";
const DOCUMENTS_FOLDER: &str = "documents/";
const ROOTS_FOLDER: &str = "roots/";
const ROOT_SUFFIX: &str = ".json";
const CHUNK_BYTES: usize = 64 << 10;

/// Sends a backup, consistent as of one moment.
pub(crate) async fn send(shared: Arc<Shared>, events: mpsc::Sender<Result<v1::BackupResponse, Status>>) {
    if let Err(error) = written(&shared, events.clone()).await {
        // Nobody may be listening any more.
        let _ = events.send(Err(failed("the backup failed", &error))).await;
    }
}

/// Builds the state folder `state` of a coordinator from a backup, with a new incarnation.
///
/// Everything in the backup is verified, the root documents when a coordinator starts with them. `state` must hold no
/// database; blobs that are there already stay.
pub fn restore(backup: &Path, state: &Path) -> Result<BackupSummary, Error> {
    let file = |action, path: &Path, source| Error::File { action, path: path.to_owned(), source };
    let read = |source| file("read", backup, source);
    let damaged = |reason: &str| read(io::Error::new(io::ErrorKind::InvalidData, reason.to_owned()));
    fs::create_dir_all(state).map_err(|source| file("create", state, source))?;
    let documents = Documents::open(state)?;
    let mut archive = tar::Archive::new(File::open(backup).map_err(read)?);
    let mut ledger = tempfile::tempfile().map_err(read)?;
    let mut has_ledger = false;
    for entry in archive.entries().map_err(read)? {
        let mut entry = entry.map_err(read)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if name == LEDGER_NAME {
            io::copy(&mut entry, &mut ledger).map_err(read)?;
            has_ledger = true;
            continue;
        }
        if let Some(version) = root_version(&name) {
            let mut bytes = Vec::new();
            entry.by_ref().take(ROOT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(read)?;
            restore_root(state, version, &bytes)?;
            continue;
        }
        if name == CHECKPOINT_NAME {
            let mut note = Vec::new();
            entry.by_ref().take(NOTE_BYTES_MAX as u64 + 1).read_to_end(&mut note).map_err(read)?;
            keep_checkpoint(state, &note)?;
            continue;
        }
        let digest = name.strip_prefix(DOCUMENTS_FOLDER).and_then(|hex| Digest::from_hex(hex).ok());
        let digest =
            digest.ok_or_else(|| damaged(&format!("it holds a file that no backup holds: {name}")))?;
        let mut bytes = Vec::new();
        entry.by_ref().take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).map_err(read)?;
        documents.put(digest, &bytes)?;
    }
    if !has_ledger {
        return Err(damaged("it holds no database; is it complete?"));
    }
    ledger.rewind().map_err(read)?;
    let dir = state.join("ledger");
    let summary = muster_store::restore(&mut ledger, &dir, Options::coordinator())
        .map_err(|source| Error::Store { dir, source })?;
    let now = Incarnation(unix_time().0);
    let mut ledger = Ledger::open(state, documents.clone(), now, default_records_between_snapshots())?;
    // It rises whatever the clock says.
    let incarnation = now.max(ledger.state().incarnation.next());
    // What the database names must be there before a coordinator leads with it.
    for digest in ledger.named_documents() {
        documents.read(digest)?;
    }
    ledger.append(vec![Entry::Incarnation(incarnation)]).map_err(Error::StoreFailed)?;
    Ok(summary)
}

/// It is verified by the coordinator that starts with it.
fn restore_root(state: &Path, version: u64, bytes: &[u8]) -> Result<(), Error> {
    let folder = state.join(ROOTS_FOLDER);
    RootChain::restore(&folder, version, bytes)
        .map_err(|source| Error::Root { path: folder, source: Box::new(source) })
}

fn root_version(name: &str) -> Option<u64> {
    name.strip_prefix(ROOTS_FOLDER)?.strip_suffix(ROOT_SUFFIX)?.parse().ok()
}

/// Keeps the checkpoint of the log before the one that will begin.
fn keep_checkpoint(state: &Path, note: &[u8]) -> Result<(), Error> {
    let folder = state.join("audit");
    let path = folder.join(PREVIOUS_FILE);
    let failed = |source| Error::File { action: "write", path: path.clone(), source };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&folder).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(failed)?;
    file.write_all(note).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    File::open(&folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

async fn written(
    shared: &Shared,
    sender: mpsc::Sender<Result<v1::BackupResponse, Status>>,
) -> Result<(), Error> {
    let (ledger, documents) =
        shared.ledger.run(|ledger| database(ledger)).await.map_err(Error::StoreFailed)?;
    let (store, roots) = (shared.documents.clone(), shared.roots_after(0));
    let checkpoint = shared.audit.checkpoint().to_bytes();
    // On a thread whatever the machine is: it waits for the reader.
    blocking(&Machine::real(), move || {
        let contents =
            Contents { ledger: &ledger, checkpoint: &checkpoint, roots: &roots, documents: &documents };
        write(&contents, &store, Chunks { sender, buffer: Vec::new() })
    })
    .await
}

/// The database as it is between two appends, and the documents that it names.
pub(crate) fn database(ledger: &Ledger) -> Result<(Vec<u8>, Vec<Digest>), StoreError> {
    let mut bytes = Vec::new();
    ledger.backup(&mut bytes)?;
    Ok((bytes, ledger.named_documents()))
}

/// What a backup holds.
pub(crate) struct Contents<'a> {
    pub(crate) ledger: &'a [u8],
    /// The last checkpoint of the audit log.
    pub(crate) checkpoint: &'a [u8],
    pub(crate) roots: &'a [v1::RootSuccessor],
    pub(crate) documents: &'a [Digest],
}

/// Writes the archive.
pub(crate) fn write(contents: &Contents<'_>, store: &Documents, output: impl Write) -> Result<(), Error> {
    let failed = |source| Error::File { action: "write", path: "the backup".into(), source };
    let mut archive = tar::Builder::new(output);
    append(&mut archive, LEDGER_NAME, contents.ledger).map_err(failed)?;
    for root in contents.roots {
        let name = format!("{ROOTS_FOLDER}{}{ROOT_SUFFIX}", root.version);
        append(&mut archive, &name, &root.envelope).map_err(failed)?;
    }
    append(&mut archive, CHECKPOINT_NAME, contents.checkpoint).map_err(failed)?;
    for digest in contents.documents {
        let bytes = store.read(*digest)?;
        append(&mut archive, &format!("{DOCUMENTS_FOLDER}{}", digest.hex()), &bytes).map_err(failed)?;
    }
    archive.into_inner().and_then(|mut output| output.flush()).map_err(failed)
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(0);
    archive.append_data(&mut header, name, bytes)
}

/// Writes to a stream of chunks.
struct Chunks {
    sender: mpsc::Sender<Result<v1::BackupResponse, Status>>,
    buffer: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = std::mem::take(&mut self.buffer);
        if chunk.is_empty() {
            return Ok(());
        }
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the backup any more");
        self.sender.blocking_send(Ok(v1::BackupResponse { chunk })).map_err(gone)
    }
}
