//! The walk over a tree on disk: every entry once, by descriptor, in parallel, in no order.
//!
//! The walk reports what it finds and judges nothing; its result is sorted, so that order and number of
//! threads never show. Each task holds the descriptor of one folder and works on names in it. Tasks are taken
//! newest first, which keeps the number of open folders near depth times threads however wide the tree is.

mod hash;
mod read;

use std::ffi::{CStr, CString};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_model::{Digest, EntryPath, MAX_ENTRIES, PathError};
use rustix::fs::{AtFlags, FileType, RawDir, Stat, fstat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{ArtifactError, Progress, VerityUse, handle, pool};

pub(crate) use hash::{Digests, Hashed, hash_file};
pub(crate) use read::Pace;

/// Names handed to one task: enough to outweigh the cost of a task, few enough to spread a flat folder over
/// threads.
const BATCH: usize = 64;
const DIRENTS_BYTES: usize = 32 << 10;
/// A folder that keeps changing must not be able to fill memory.
const FOUND_MAX: usize = 2 * MAX_ENTRIES;

/// How a tree is walked.
pub(crate) struct Walk<'a> {
    pub(crate) reading: Reading,
    /// Paths that are noted but not entered, sorted.
    pub(crate) mutable: &'a [EntryPath],
    pub(crate) jobs: NonZeroUsize,
    pub(crate) pace: Option<Pace>,
    /// Whether the kernel is asked for the digest of each file that it has sealed.
    pub(crate) verity: VerityUse,
    pub(crate) progress: &'a Progress,
}

/// What is read of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Nothing but their metadata.
    Metadata,
    /// Every byte.
    Content,
    /// Every byte, whether the file held still meanwhile, and what packing has to know.
    Packing,
}

/// What a walk found.
pub(crate) struct Walked {
    pub(crate) root: Stamp,
    /// Sorted by path, each path once.
    pub(crate) found: Vec<Found>,
    /// Folders that hold a path too long or too deep for an entry. The root cannot: its names are single
    /// components.
    pub(crate) beyond: Vec<(EntryPath, PathError)>,
}

/// One entry on disk.
pub(crate) struct Found {
    pub(crate) path: EntryPath,
    pub(crate) kind: FoundKind,
    pub(crate) stamp: Stamp,
}

pub(crate) enum FoundKind {
    Dir,
    /// The digest is there unless only metadata was read.
    File {
        digest: Option<Digest>,
        verity: FileVerity,
        note: Option<Note>,
    },
    Symlink {
        target: Vec<u8>,
    },
    /// What is at a mutable path; never entered.
    Mutable(FileType),
    /// A socket, FIFO or device.
    Special(&'static str),
    Unreadable(String),
}

/// What the kernel says of a file by fs-verity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileVerity {
    /// It was not asked: nobody wanted to know, or another file of the tree is not sealed.
    Unasked,
    /// The file system has none.
    Unsupported,
    /// It did not say.
    Failed(Errno),
    /// The file is not sealed.
    Unsealed,
    /// It is, in another way; or what it lets us read has another digest.
    Another,
    /// It is, and this is its digest: where the file was read, that of its bytes as well.
    Sealed(Digest),
}

/// What packing has to know about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    Capabilities,
    PrivateKey,
}

/// An entry's metadata: whoever writes to a file or replaces it changes some of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StampFields", into = "StampFields")]
pub(crate) struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Type and permissions.
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
}

type StampFields = (u64, u64, u32, u64, i64, i64);

impl Stamp {
    pub(crate) fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }
}

impl From<&Stat> for Stamp {
    fn from(stat: &Stat) -> Self {
        let nanoseconds =
            |seconds: i64, rest: u64| seconds.saturating_mul(1_000_000_000).saturating_add_unsigned(rest);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: stat.st_mode,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

impl From<StampFields> for Stamp {
    fn from((device, inode, mode, size, mtime_ns, ctime_ns): StampFields) -> Self {
        Self { device, inode, mode, size, mtime_ns, ctime_ns }
    }
}

impl From<Stamp> for StampFields {
    fn from(stamp: Stamp) -> Self {
        (stamp.device, stamp.inode, stamp.mode, stamp.size, stamp.mtime_ns, stamp.ctime_ns)
    }
}

impl Walk<'_> {
    /// Walks the tree that `root` is the descriptor of; `path` is for messages.
    pub(crate) fn run(&self, root: OwnedFd, path: &Path) -> Result<Walked, ArtifactError> {
        let stamp = stamp_of(&root).map_err(|error| ArtifactError::io("examine", path, error))?;
        let state = State::new(self);
        let start = Task::Root(root);
        if self.jobs.get() == 1 {
            let mut tasks = vec![start];
            while let Some(task) = tasks.pop() {
                state.handle(task, &mut |next| tasks.push(next));
            }
        } else {
            pool::start(self.jobs)?.scope(|scope| spawn(&state, scope, start));
        }
        state.finish(stamp, path)
    }
}

fn spawn<'scope>(state: &'scope State<'_>, scope: &rayon::Scope<'scope>, task: Task) {
    scope.spawn(move |scope| state.handle(task, &mut |next| spawn(state, scope, next)));
}

struct Folder {
    fd: OwnedFd,
    /// None for the root.
    path: Option<EntryPath>,
}

enum Task {
    Root(OwnedFd),
    Folder { parent: Arc<Folder>, name: CString, path: EntryPath },
    Files { folder: Arc<Folder>, names: Names },
}

/// Names of one folder, each ended by its NUL, in one allocation.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    types: Vec<FileType>,
}

struct State<'a> {
    walk: &'a Walk<'a>,
    found: Mutex<Vec<Vec<Found>>>,
    beyond: Mutex<Vec<(EntryPath, PathError)>>,
    /// Why the root itself could not be listed.
    root_failure: Mutex<Option<Errno>>,
    count: AtomicUsize,
    /// Set once the kernel refuses `O_NOATIME`, so that it is not asked for every file.
    with_atime: AtomicBool,
    /// Set once a file is not sealed: then the tree is not, and nobody asks for the others.
    without_verity: AtomicBool,
    /// One for each thread.
    buffers: Vec<Mutex<Buffers>>,
}

#[derive(Default)]
struct Buffers {
    dirents: Vec<u8>,
    content: Vec<u8>,
}

impl<'a> State<'a> {
    fn new(walk: &'a Walk<'a>) -> Self {
        Self {
            walk,
            found: Mutex::default(),
            beyond: Mutex::default(),
            root_failure: Mutex::default(),
            count: AtomicUsize::new(0),
            with_atime: AtomicBool::new(false),
            without_verity: AtomicBool::new(walk.verity == VerityUse::Off),
            buffers: (0..walk.jobs.get()).map(|_| Mutex::default()).collect(),
        }
    }

    fn finish(self, root: Stamp, path: &Path) -> Result<Walked, ArtifactError> {
        if let Some(error) = self.root_failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(ArtifactError::io("list", path, error));
        }
        if self.count.into_inner() > FOUND_MAX {
            return Err(ArtifactError::TooManyEntries { path: path.to_owned(), max: FOUND_MAX });
        }
        let parts = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Found> = Vec::with_capacity(parts.iter().map(Vec::len).sum());
        found.extend(parts.into_iter().flatten());
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let mut beyond = self.beyond.into_inner().unwrap_or_else(PoisonError::into_inner);
        beyond.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(Walked { root, found, beyond })
    }

    fn handle(&self, task: Task, spawn: &mut dyn FnMut(Task)) {
        if self.count.load(Ordering::Relaxed) > FOUND_MAX {
            return;
        }
        match task {
            Task::Root(fd) => {
                if let Err(error) = self.list(Folder { fd, path: None }, spawn) {
                    *lock(&self.root_failure) = Some(error);
                }
            }
            Task::Folder { parent, name, path } => {
                let found = self.enter(&parent, &name, path, spawn);
                self.add(vec![found]);
            }
            Task::Files { folder, names } => {
                let mut buffers = self.buffers();
                let found = names.iter().filter_map(|(name, file_type)| {
                    let path = self.child(&folder, name)?;
                    let (kind, stamp) = self.examine(&folder, name, file_type, &mut buffers.content);
                    Some(Found { path, kind, stamp })
                });
                let found = found.collect();
                drop(buffers);
                self.add(found);
            }
        }
    }

    /// Opens and lists one folder. A folder that turned into something else since its parent was listed is
    /// reported as such.
    fn enter(&self, parent: &Folder, name: &CStr, path: EntryPath, spawn: &mut dyn FnMut(Task)) -> Found {
        let opened = handle::open_folder(&parent.fd, name).and_then(|fd| Ok((stamp_of(&fd)?, fd)));
        let (kind, stamp) = match opened {
            Ok((stamp, fd)) => match self.list(Folder { fd, path: Some(path.clone()) }, spawn) {
                Ok(()) => (FoundKind::Dir, stamp),
                Err(error) => (FoundKind::Unreadable(error.to_string()), stamp),
            },
            Err(error) => {
                (FoundKind::Unreadable(error.to_string()), stamp_at(parent, name).unwrap_or(NO_STAMP))
            }
        };
        Found { path, kind, stamp }
    }

    fn list(&self, folder: Folder, spawn: &mut dyn FnMut(Task)) -> Result<(), Errno> {
        let folder = Arc::new(folder);
        let mut folders = Vec::new();
        let mut mutable = Vec::new();
        let mut names = Names::default();
        let mut batches = Vec::new();
        let mut buffers = self.buffers();
        buffers.dirents.reserve(DIRENTS_BYTES);
        let mut dirents = RawDir::new(&folder.fd, buffers.dirents.spare_capacity_mut());
        while let Some(dirent) = dirents.next() {
            let dirent = dirent?;
            let name = dirent.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let mut file_type = dirent.file_type();
            // Some file systems do not tell types in listings.
            if file_type == FileType::Unknown {
                file_type = stamp_at(&folder, name).map_or(FileType::Unknown, |stamp| stamp.file_type());
            }
            if self.is_mutable(&folder, name) {
                mutable.push(name.to_owned());
            } else if file_type == FileType::Directory {
                folders.push(name.to_owned());
            } else {
                names.push(name, file_type);
                if names.types.len() == BATCH {
                    batches.push(std::mem::take(&mut names));
                }
            }
        }
        drop(buffers);
        batches.push(names);
        self.count.fetch_add(
            folders.len() + batches.iter().map(|batch| batch.types.len()).sum::<usize>(),
            Ordering::Relaxed,
        );
        self.add(mutable.iter().filter_map(|name| self.note_mutable(&folder, name)).collect());
        for names in batches.into_iter().filter(|names| !names.types.is_empty()) {
            spawn(Task::Files { folder: Arc::clone(&folder), names });
        }
        for name in folders {
            if let Some(path) = self.child(&folder, &name) {
                spawn(Task::Folder { parent: Arc::clone(&folder), name, path });
            }
        }
        Ok(())
    }

    fn is_mutable(&self, folder: &Folder, name: &CStr) -> bool {
        !self.walk.mutable.is_empty()
            && EntryPath::child(folder.path.as_ref(), name.to_bytes())
                .is_ok_and(|path| self.walk.mutable.binary_search(&path).is_ok())
    }

    /// What comes and goes at a mutable path may do so between the listing and now.
    fn note_mutable(&self, folder: &Folder, name: &CStr) -> Option<Found> {
        let stamp = stamp_at(folder, name).ok()?;
        Some(Found { path: self.child(folder, name)?, kind: FoundKind::Mutable(stamp.file_type()), stamp })
    }

    fn child(&self, folder: &Folder, name: &CStr) -> Option<EntryPath> {
        EntryPath::child(folder.path.as_ref(), name.to_bytes())
            .map_err(|error| lock(&self.beyond).extend(folder.path.clone().map(|folder| (folder, error))))
            .ok()
    }

    fn add(&self, found: Vec<Found>) {
        if !found.is_empty() {
            lock(&self.found).push(found);
        }
    }

    /// This thread's buffers. Nothing that holds them waits for another task, so the lock is always free.
    fn buffers(&self) -> MutexGuard<'_, Buffers> {
        lock(&self.buffers[rayon::current_thread_index().unwrap_or(0) % self.buffers.len()])
    }
}

impl Names {
    fn push(&mut self, name: &CStr, file_type: FileType) {
        self.bytes.extend_from_slice(name.to_bytes_with_nul());
        self.types.push(file_type);
    }

    fn iter(&self) -> impl Iterator<Item = (&CStr, FileType)> {
        let names = self.bytes.split_inclusive(|&byte| byte == 0);
        let names =
            names.map(|name| CStr::from_bytes_with_nul(name).expect("each name was pushed with its NUL"));
        names.zip(self.types.iter().copied())
    }
}

/// Stands for the metadata of what vanished before it could be examined.
const NO_STAMP: Stamp = Stamp { device: 0, inode: 0, mode: 0, size: 0, mtime_ns: 0, ctime_ns: 0 };

fn stamp_of(fd: &OwnedFd) -> Result<Stamp, Errno> {
    fstat(fd).map(|stat| Stamp::from(&stat))
}

fn stamp_at(folder: &Folder, name: &CStr) -> Result<Stamp, Errno> {
    statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| Stamp::from(&stat))
}

/// A poisoned lock means that another thread panics; its panic is reported when the scope ends, so what the
/// lock holds does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
