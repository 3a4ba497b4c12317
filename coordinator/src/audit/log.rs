//! The log on disk: a file of entries, one on each line, and the last checkpoint over them.
//!
//! ```text
//! STATE/audit/INCARNATION/entries       a line of JSON for each entry: the leaves of the tree
//! STATE/audit/INCARNATION/checkpoint    the last two checkpoints, of which the newer counts
//! ```
//!
//! Entries are durable before the checkpoint that covers them, and the checkpoint before anything speaks of them. What lies
//! behind the last checkpoint was never spoken of: whole entries are taken over, the torn rest of a write is dropped. What the
//! checkpoint covers is verified at every start, and a log that does not hold is refused, never repaired.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_audit::{
    Checkpoint, CheckpointError, ENTRY_BYTES_MAX, Edge, Entry, EntryError, Kind, Nodes, OpenOverrides,
    ROOT_DOCUMENT, SignedCheckpoint, consistency_proof,
};
use muster_daemon::{crash_point, fault_point};
use muster_model::{Digest, Incarnation, MerkleTree, UnixTime};
use muster_store::StoreError;
use muster_trust::SigningKey;
use tokio::sync::watch;

use super::slots::{Slots, last_text};
use crate::notify::Notifier;

/// Of every so many entries the offset is kept, and the root of the subtree over them: about two bytes of memory for each
/// entry, and a proof reads a few dozen of them again.
const BLOCK_LEVEL: u32 = 6;
const BLOCK: u64 = 1 << BLOCK_LEVEL;

/// What a checkpoint of a log before this one may look like in the state: made by `restore`.
pub(crate) const PREVIOUS_FILE: &str = "previous";
const ENTRIES_FILE: &str = "entries";
const CHECKPOINT_FILE: &str = "checkpoint";

/// Why there is no log to write to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("the audit log cannot be read or written")]
    Store(#[source] StoreError),
    #[error("entry {entry} of {} is covered by a checkpoint and cannot be read", path.display())]
    Entry {
        path: PathBuf,
        entry: u64,
        #[source]
        source: EntryError,
    },
    #[error("{} ends before entry {found}, and the last checkpoint covers {size}", path.display())]
    Ends { path: PathBuf, found: u64, size: u64 },
    #[error("the first {size} entries of {} are not those that the last checkpoint covers", path.display())]
    Root { path: PathBuf, size: u64 },
    #[error("{} holds no checkpoint that this coordinator's audit key has signed", path.display())]
    NoCheckpoint { path: PathBuf },
    #[error("the checkpoint of the audit log cannot be signed")]
    Signing(#[source] CheckpointError),
}

/// What is read of the log while it is written. A clone shares everything.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    /// The last checkpoint.
    pub(crate) checkpoint: Arc<SignedCheckpoint>,
    /// The overrides that nobody has looked at yet.
    pub(crate) overrides: Arc<OpenOverrides>,
}

/// The open log, with one writer.
#[derive(Debug)]
pub(crate) struct AuditLog {
    path: PathBuf,
    file: File,
    end: u64,
    slots: Slots,
    key: Arc<SigningKey>,
    origin: String,
    edge: Edge,
    blocks: Blocks,
    overrides: OpenOverrides,
    /// The root document that is in force, as far as the log says.
    root: Option<(u64, Digest)>,
    published: watch::Sender<Published>,
    state: Writable,
    /// Who is told of what is written.
    notifier: Option<Notifier>,
}

/// Whether what the disk holds is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writable {
    Yes,
    /// A write has failed.
    Poisoned,
}

/// Where the log stands in the life of a coordinator.
pub(crate) struct Beginning<'a> {
    /// The coordinator's state.
    pub(crate) state: &'a Path,
    /// The key that signs checkpoints.
    pub(crate) key: Arc<SigningKey>,
    /// The name's first part.
    pub(crate) trust_domain: &'a str,
    /// The life of the database.
    pub(crate) incarnation: Incarnation,
    /// Who begins it.
    pub(crate) who: &'a str,
    /// The time now.
    pub(crate) now: UnixTime,
}

impl AuditLog {
    /// Opens the log of this life of the database, or begins it.
    pub(crate) fn open(beginning: &Beginning<'_>) -> Result<Self, LogError> {
        let folder = beginning.state.join("audit");
        let dir = folder.join(beginning.incarnation.to_string());
        create_folder(&folder).and_then(|()| create_folder(&dir)).map_err(LogError::Store)?;
        let mut log = Self::adopt(&dir, beginning)?;
        if log.edge.size() == 0 {
            log.append(log.first_entries(&folder, beginning)).map_err(LogError::Store)?;
        }
        Ok(log)
    }

    /// Has somebody told of what is written from now on.
    pub(crate) fn tells(&mut self, notifier: Option<Notifier>) {
        self.notifier = notifier;
    }

    /// What is published of it.
    pub(crate) fn published(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    /// Makes entries durable and covers them by a checkpoint. Their places follow each other; the first is returned.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> Result<u64, StoreError> {
        if self.state == Writable::Poisoned {
            return Err(StoreError::Poisoned);
        }
        let first = self.edge.size();
        if entries.is_empty() {
            return Ok(first);
        }
        let outcome = self.write(entries);
        if outcome.is_err() {
            self.state = Writable::Poisoned;
        }
        outcome.map(|()| first)
    }

    /// Whether this override is open, and if so what it is about.
    pub(crate) fn open_override(&self, entry: u64) -> Option<Entry> {
        self.overrides.get(entry).cloned()
    }

    /// Appends `entry`, which says which root document is in force, unless that is what the log says already: at the beginning
    /// of a log, and where a coordinator died before it had taken the root that it wrote down.
    pub(crate) fn settle_root(&mut self, entry: Entry) -> Result<(), StoreError> {
        let in_force = entry.root_version.zip(entry.documents.get(ROOT_DOCUMENT).copied());
        if self.root == in_force {
            return Ok(());
        }
        self.append(vec![entry]).map(|_| ())
    }

    /// That the last checkpoint continues a log of `old` entries; nothing if it had more than there are.
    pub(crate) fn proof_from(&self, old: u64) -> Result<Vec<Digest>, StoreError> {
        consistency_proof(self, old, self.edge.size())
    }

    /// Entries from `from` on, as many as come to about `bytes_max` and at least one, if there is one.
    pub(crate) fn read(&self, from: u64, bytes_max: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let block = from / BLOCK;
        let Some(begin) = self.blocks.offset(block).filter(|_| from < self.edge.size()) else {
            return Ok(Vec::new());
        };
        let skipped = usize::try_from(from % BLOCK).expect("a block is small");
        // The last one may be cut, and then follows in the next part; a whole block always fits.
        let length = (self.end - begin).min(bytes_max + BLOCK * (ENTRY_BYTES_MAX as u64 + 1));
        let bytes = self.bytes_at(begin, length)?;
        let mut taken = 0;
        let whole = bytes.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
        Ok(whole
            .skip(skipped)
            .take_while(|line| {
                let is_first = taken == 0;
                taken += line.len() as u64;
                is_first || taken <= bytes_max
            })
            .map(<[u8]>::to_vec)
            .collect())
    }

    /// Reads what is there, verifies what the last checkpoint covers, and takes over what lies behind it.
    fn adopt(dir: &Path, beginning: &Beginning<'_>) -> Result<Self, LogError> {
        let (path, slots_path) = (dir.join(ENTRIES_FILE), dir.join(CHECKPOINT_FILE));
        let origin = muster_audit::origin(beginning.trust_domain, beginning.incarnation);
        let empty = Checkpoint { origin: origin.clone(), size: 0, root: Edge::new().root() };
        let (slots, checkpoint) = if slots_path.exists() || path.exists() {
            let (slots, found) = Slots::open(&slots_path, beginning.key.public()).map_err(LogError::Store)?;
            let found = found.filter(|it| it.checkpoint().origin == origin);
            (slots, found.ok_or(LogError::NoCheckpoint { path: slots_path })?)
        } else {
            // It comes first: entries without any checkpoint are a log whose checkpoint was lost.
            let first = SignedCheckpoint::sign(empty, &*beginning.key).map_err(LogError::Signing)?;
            (Slots::create(&slots_path, &first).map_err(LogError::Store)?, first)
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(|source| store("open", &path, source))?;
        sync_folder(dir).map_err(LogError::Store)?;
        let published = Published { checkpoint: Arc::new(checkpoint.clone()), overrides: Arc::default() };
        let mut log = Self {
            path,
            file,
            end: 0,
            slots,
            key: Arc::clone(&beginning.key),
            origin,
            edge: Edge::new(),
            blocks: Blocks::default(),
            overrides: OpenOverrides::default(),
            root: None,
            published: watch::Sender::new(published),
            state: Writable::Yes,
            notifier: None,
        };
        log.replay(checkpoint.checkpoint())?;
        Ok(log)
    }

    fn replay(&mut self, covered: &Checkpoint) -> Result<(), LogError> {
        let file = self.file.try_clone().map_err(|source| store("read", &self.path, source))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        loop {
            if self.edge.size() == covered.size && self.edge.root() != covered.root {
                return Err(LogError::Root { path: self.path.clone(), size: covered.size });
            }
            line.clear();
            let limit = ENTRY_BYTES_MAX as u64 + 1;
            let count = reader.by_ref().take(limit).read_until(b'\n', &mut line);
            count.map_err(|source| store("read", &self.path, source))?;
            let place = self.edge.size();
            let is_covered = place < covered.size;
            let Some(bytes) = line.strip_suffix(b"\n") else {
                if is_covered {
                    return Err(LogError::Ends { path: self.path.clone(), found: place, size: covered.size });
                }
                return self.end_replay(covered);
            };
            match Entry::parse(bytes, place) {
                Ok(entry) => self.count(&entry, bytes),
                Err(source) if is_covered => {
                    return Err(LogError::Entry { path: self.path.clone(), entry: place, source });
                }
                Err(_) => return self.end_replay(covered),
            }
        }
    }

    /// Everything before `self.end` is whole.
    fn end_replay(&mut self, covered: &Checkpoint) -> Result<(), LogError> {
        let length = self.file.metadata().map_err(|source| store("inspect", &self.path, source))?.len();
        if length > self.end {
            tracing::warn!(
                bytes = length - self.end,
                "dropped the torn end of the audit log; no checkpoint covers it"
            );
            let cut = self.file.set_len(self.end).and_then(|()| self.file.sync_all());
            cut.map_err(|source| store("cut", &self.path, source))?;
        }
        if self.edge.size() > covered.size {
            let entries = self.edge.size() - covered.size;
            tracing::info!(entries, "took over audit entries that were written but never spoken of");
            self.file.sync_data().map_err(|source| store("make durable", &self.path, source))?;
            return self.cover().map_err(LogError::Store);
        }
        self.published.send_modify(|published| published.overrides = Arc::new(self.overrides.clone()));
        Ok(())
    }

    /// The log before this one is closed by naming its last checkpoint.
    fn first_entries(&self, folder: &Path, beginning: &Beginning<'_>) -> Vec<Entry> {
        let entry = |kind| Entry::new(kind, beginning.who, beginning.now);
        let previous = previous(folder, beginning.incarnation);
        let mut began = entry(Kind::Began).saying(format!("the log {}", self.origin));
        began.previous.clone_from(&previous);
        let mut entries = vec![began];
        if previous.is_some() {
            let detail = "the coordinator's state was restored: what came after the backup is not in this log, and may not be \
                          in its state";
            entries.push(entry(Kind::Restore).saying(detail));
        }
        entries
    }

    fn write(&mut self, entries: Vec<Entry>) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        let mut placed = Vec::with_capacity(entries.len());
        for (entry, place) in entries.into_iter().zip(self.edge.size()..) {
            let entry = entry.at_place(place);
            let line = entry.to_bytes();
            bytes.extend_from_slice(&line);
            bytes.push(b'\n');
            placed.push((entry, line));
        }
        let failed = |action| {
            let path = self.path.clone();
            move |source| StoreError::io(action, &path, source)
        };
        fault_point("coordinator.audit").map_err(failed("append to"))?;
        crash_point("coordinator.audit.before-append");
        self.file.write_all_at(&bytes, self.end).map_err(failed("append to"))?;
        crash_point("coordinator.audit.written");
        self.file.sync_data().map_err(failed("make durable"))?;
        crash_point("coordinator.audit.uncovered");
        for (entry, line) in &placed {
            self.count(entry, line);
        }
        self.cover()?;
        crash_point("coordinator.audit.covered");
        if let Some(notifier) = &self.notifier {
            placed.iter().for_each(|(entry, line)| notifier.tell(entry, line));
        }
        Ok(())
    }

    /// Signs a checkpoint over all entries and makes it durable.
    fn cover(&mut self) -> Result<(), StoreError> {
        let checkpoint =
            Checkpoint { origin: self.origin.clone(), size: self.edge.size(), root: self.edge.root() };
        let signed = SignedCheckpoint::sign(checkpoint, &*self.key)
            .map_err(|error| StoreError::io("sign", &self.path, io::Error::other(error)))?;
        self.slots.write(&signed)?;
        let published =
            Published { checkpoint: Arc::new(signed), overrides: Arc::new(self.overrides.clone()) };
        self.published.send_replace(published);
        Ok(())
    }

    fn count(&mut self, entry: &Entry, line: &[u8]) {
        let Self { edge, blocks, end, .. } = self;
        if edge.size().is_multiple_of(BLOCK) {
            blocks.offsets.push(*end);
        }
        edge.append(MerkleTree::leaf_hash(line), |level, _, hash| blocks.complete(level, hash));
        *end += line.len() as u64 + 1;
        self.overrides.take(entry);
        if let (Kind::Root, Some(version)) = (entry.kind, entry.root_version) {
            self.root = entry.documents.get(ROOT_DOCUMENT).map(|digest| (version, *digest));
        }
    }

    fn bytes_at(&self, offset: u64, length: u64) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; usize::try_from(length).expect("parts that are read are small")];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|source| StoreError::io("read", &self.path, source))?;
        Ok(bytes)
    }
}

/// What is kept in memory of the tree.
#[derive(Debug, Default)]
struct Blocks {
    /// Where each block begins in the file.
    offsets: Vec<u64>,
    /// The roots of complete subtrees, from those over one block upwards.
    levels: Vec<Vec<Digest>>,
}

impl Blocks {
    fn complete(&mut self, level: u32, hash: Digest) {
        let Some(above) = level.checked_sub(BLOCK_LEVEL) else { return };
        let above = above as usize;
        if self.levels.len() == above {
            self.levels.push(Vec::new());
        }
        self.levels[above].push(hash);
    }

    fn offset(&self, block: u64) -> Option<u64> {
        self.offsets.get(usize::try_from(block).ok()?).copied()
    }
}

impl Nodes for AuditLog {
    type Error = StoreError;

    fn node(&self, level: u32, index: u64) -> Result<Digest, StoreError> {
        let gone = || StoreError::io("read", &self.path, io::ErrorKind::UnexpectedEof.into());
        if let Some(above) = level.checked_sub(BLOCK_LEVEL) {
            let nodes = self.blocks.levels.get(above as usize);
            let index = usize::try_from(index).map_err(|_| gone())?;
            return nodes.and_then(|nodes| nodes.get(index)).copied().ok_or_else(gone);
        }
        let (first, count) = (index << level, 1_usize << level);
        let block = first / BLOCK;
        let begin = self.blocks.offset(block).ok_or_else(gone)?;
        let end = self.blocks.offset(block + 1).unwrap_or(self.end);
        let bytes = self.bytes_at(begin, end - begin)?;
        let skipped = usize::try_from(first % BLOCK).expect("a block is small");
        let mut edge = Edge::new();
        let lines = bytes.split_inclusive(|byte| *byte == b'\n').skip(skipped).take(count);
        for line in lines {
            let line = line.strip_suffix(b"\n").ok_or_else(gone)?;
            edge.append(MerkleTree::leaf_hash(line), |_, _, _| {});
        }
        if edge.size() == count as u64 { Ok(edge.root()) } else { Err(gone()) }
    }
}

/// The last checkpoint that is known of the logs before this one.
fn previous(folder: &Path, incarnation: Incarnation) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let earlier = entries.flatten().filter_map(|entry| {
        let life: u64 = entry.file_name().to_str()?.parse().ok()?;
        (life < incarnation.0).then(|| (life, entry.path()))
    });
    let newest = earlier.max().and_then(|(_, dir)| last_text(&dir.join(CHECKPOINT_FILE)));
    newest.or_else(|| last_text(&folder.join(PREVIOUS_FILE)))
}

fn store(action: &'static str, path: &Path, source: io::Error) -> LogError {
    LogError::Store(StoreError::io(action, path, source))
}

fn create_folder(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(StoreError::io("create", path, source)),
    }
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|source| StoreError::io("make durable", path, source))
}

#[cfg(test)]
mod tests;
