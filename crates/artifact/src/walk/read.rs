//! Reading one entry.

use std::ffi::CStr;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use muster_model::Digest;
use rustix::fs::{FileType, Mode, OFlags, fgetxattr, openat, readlinkat};
use rustix::io::Errno;

use super::{Folder, FoundKind, NO_STAMP, Note, Reading, Stamp, State, hash_file, stamp_at, stamp_of};

const CHANGED: &str = "it changed while it was read";
const CAPABILITIES: &CStr = c"security.capability";
/// Key files are small, and their header is at the start.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
const KEY_HEADER_BYTES: usize = 4 << 10;
const KEY_MARKS: [&[u8]; 2] = [b"PRIVATE KEY-----", b"PuTTY-User-Key-File-"];
const KEY_NAMES: [&[u8]; 4] = [b"id_rsa", b"id_dsa", b"id_ecdsa", b"id_ed25519"];

/// Bounds how fast files are read, over all threads of a walk.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: NonZeroU64,
    started: Instant,
    bytes: AtomicU64,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, started: Instant::now(), bytes: AtomicU64::new(0) }
    }

    /// Waits until `bytes` more fit.
    fn take(&self, bytes: usize) {
        let bytes = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        #[expect(clippy::cast_precision_loss, reason = "a pause needs no more than 53 bits")]
        let due = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        std::thread::sleep(due.saturating_sub(self.started.elapsed()));
    }
}

impl State<'_> {
    /// Says what is at `name` now, which may be of another type than when the folder was listed.
    pub(super) fn examine(
        &self,
        folder: &Folder,
        name: &CStr,
        listed: FileType,
        buffer: &mut Vec<u8>,
    ) -> (FoundKind, Stamp) {
        if listed == FileType::RegularFile && self.walk.reading != Reading::Metadata {
            return self.read_file(folder, name, buffer);
        }
        let stamp = match stamp_at(folder, name) {
            Ok(stamp) => stamp,
            Err(error) => return (FoundKind::Unreadable(error.to_string()), NO_STAMP),
        };
        let kind = match stamp.file_type() {
            FileType::RegularFile if self.walk.reading == Reading::Metadata => {
                FoundKind::File { digest: None, note: None }
            }
            FileType::Symlink => match readlinkat(&folder.fd, name, Vec::new()) {
                Ok(target) => FoundKind::Symlink { target: target.into_bytes() },
                Err(error) => FoundKind::Unreadable(error.to_string()),
            },
            FileType::RegularFile | FileType::Directory => FoundKind::Unreadable(CHANGED.to_owned()),
            FileType::Fifo => FoundKind::Special("FIFO"),
            FileType::Socket => FoundKind::Special("socket"),
            FileType::CharacterDevice => FoundKind::Special("character device"),
            FileType::BlockDevice => FoundKind::Special("block device"),
            FileType::Unknown => FoundKind::Special("file of unknown type"),
        };
        (kind, stamp)
    }

    fn read_file(&self, folder: &Folder, name: &CStr, buffer: &mut Vec<u8>) -> (FoundKind, Stamp) {
        let opened = self.open_file(folder, name).and_then(|fd| Ok((stamp_of(&fd)?, fd)));
        let (stamp, fd) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let why = if error == Errno::LOOP { CHANGED.to_owned() } else { error.to_string() };
                return (FoundKind::Unreadable(why), stamp_at(folder, name).unwrap_or(NO_STAMP));
            }
        };
        if stamp.file_type() != FileType::RegularFile {
            return (FoundKind::Unreadable(CHANGED.to_owned()), stamp);
        }
        let kind = match self.hash(&fd, &stamp, buffer) {
            Ok(Some(digest)) => self.note(&fd, name, &stamp, buffer).map_or_else(
                |error| FoundKind::Unreadable(error.to_string()),
                |note| FoundKind::File { digest: Some(digest), note },
            ),
            Ok(None) => FoundKind::Unreadable(CHANGED.to_owned()),
            Err(error) => FoundKind::Unreadable(error.to_string()),
        };
        self.walk.progress.add_file();
        (kind, stamp)
    }

    /// Opens without following a symlink, without waiting for a FIFO's writer and, where we may, without
    /// touching the access time.
    fn open_file(&self, folder: &Folder, name: &CStr) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        if !self.with_atime.load(Ordering::Relaxed) {
            match openat(&folder.fd, name, flags | OFlags::NOATIME, Mode::empty()) {
                Err(Errno::PERM) => self.with_atime.store(true, Ordering::Relaxed),
                opened => return opened,
            }
        }
        openat(&folder.fd, name, flags, Mode::empty())
    }

    fn hash(&self, fd: &OwnedFd, stamp: &Stamp, buffer: &mut Vec<u8>) -> Result<Option<Digest>, Errno> {
        let digest = hash_file(fd, stamp.size, buffer, |bytes| {
            self.walk.progress.add_bytes(bytes);
            if let Some(pace) = &self.walk.pace {
                pace.take(bytes);
            }
        })?;
        if self.walk.reading != Reading::Packing {
            return Ok(digest);
        }
        // A manifest must not describe a file that never existed: half before a change and half after it.
        Ok(digest.filter(|_| stamp_of(fd).is_ok_and(|after| after == *stamp)))
    }

    /// `buffer` still has the start of the file if the file is small.
    fn note(&self, fd: &OwnedFd, name: &CStr, stamp: &Stamp, buffer: &[u8]) -> Result<Option<Note>, Errno> {
        if self.walk.reading != Reading::Packing {
            return Ok(None);
        }
        match fgetxattr(fd, CAPABILITIES, &mut [0_u8; 0]) {
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Ok(_) | Err(Errno::RANGE) => return Ok(Some(Note::Capabilities)),
            Err(error) => return Err(error),
        }
        if KEY_NAMES.contains(&name.to_bytes()) {
            return Ok(Some(Note::PrivateKey));
        }
        if stamp.size > KEY_FILE_BYTES_MAX {
            return Ok(None);
        }
        let len = usize::try_from(stamp.size).unwrap_or(usize::MAX).min(KEY_HEADER_BYTES).min(buffer.len());
        let start = &buffer[..len];
        let marked = KEY_MARKS.iter().any(|mark| start.windows(mark.len()).any(|window| window == *mark));
        Ok(marked.then_some(Note::PrivateKey))
    }
}
