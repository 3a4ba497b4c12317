//! Reading one entry.

use std::ffi::CStr;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, fgetxattr, openat, readlinkat};
use rustix::io::Errno;

use super::{
    Digests, FileVerity, Folder, FoundKind, Hashed, NO_STAMP, Note, Reading, Stamp, State, hash_file,
    stamp_at, stamp_of,
};
use crate::{VerityUse, verity};

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
        if listed == FileType::RegularFile {
            match (self.walk.reading, self.walk.verity) {
                (Reading::Content | Reading::Packing, _) => return self.read_file(folder, name, buffer),
                (Reading::Metadata, VerityUse::WherePossible) => return self.ask_of_file(folder, name),
                (Reading::Metadata, VerityUse::Off) => {}
            }
        }
        let stamp = match stamp_at(folder, name) {
            Ok(stamp) => stamp,
            Err(error) => return (FoundKind::Unreadable(error.to_string()), NO_STAMP),
        };
        let kind = match stamp.file_type() {
            FileType::RegularFile if self.walk.reading == Reading::Metadata => {
                FoundKind::File { digest: None, verity: FileVerity::Unasked, note: None }
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
        let (stamp, fd) = match self.open_regular(folder, name) {
            Ok(opened) => opened,
            Err(unreadable) => return unreadable,
        };
        let sealed = self.ask_of_read(&fd);
        let kind = match self.hash(&fd, &stamp, sealed, buffer) {
            Ok(Some(hashed)) => self.note(&fd, name, &stamp, buffer).map_or_else(
                |error| FoundKind::Unreadable(error.to_string()),
                |note| FoundKind::File { digest: Some(hashed.sha256), verity: judged(sealed, hashed), note },
            ),
            Ok(None) => FoundKind::Unreadable(CHANGED.to_owned()),
            Err(error) => FoundKind::Unreadable(error.to_string()),
        };
        self.walk.progress.add_file();
        (kind, stamp)
    }

    /// Asks the kernel what it has sealed, and reads nothing.
    fn ask_of_file(&self, folder: &Folder, name: &CStr) -> (FoundKind, Stamp) {
        match self.open_regular(folder, name) {
            Ok((stamp, fd)) => {
                (FoundKind::File { digest: None, verity: verity::ask(&fd), note: None }, stamp)
            }
            Err(unreadable) => unreadable,
        }
    }

    /// Opens what must be a regular file, or says what it is instead.
    fn open_regular(&self, folder: &Folder, name: &CStr) -> Result<(Stamp, OwnedFd), (FoundKind, Stamp)> {
        let opened = self.open_file(folder, name).and_then(|fd| Ok((stamp_of(&fd)?, fd)));
        let (stamp, fd) = opened.map_err(|error| {
            let why = if error == Errno::LOOP { CHANGED.to_owned() } else { error.to_string() };
            (FoundKind::Unreadable(why), stamp_at(folder, name).unwrap_or(NO_STAMP))
        })?;
        if stamp.file_type() != FileType::RegularFile {
            return Err((FoundKind::Unreadable(CHANGED.to_owned()), stamp));
        }
        Ok((stamp, fd))
    }

    /// The first file that is not sealed says it for all: the others are not asked, and are hashed once.
    fn ask_of_read(&self, fd: &OwnedFd) -> FileVerity {
        if self.walk.reading == Reading::Packing || self.without_verity.load(Ordering::Relaxed) {
            return FileVerity::Unasked;
        }
        let said = verity::ask(fd);
        match said {
            FileVerity::Unasked | FileVerity::Another | FileVerity::Sealed(_) => {}
            FileVerity::Unsupported | FileVerity::Failed(_) | FileVerity::Unsealed => {
                self.without_verity.store(true, Ordering::Relaxed);
            }
        }
        said
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

    fn hash(
        &self,
        fd: &OwnedFd,
        stamp: &Stamp,
        sealed: FileVerity,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Hashed>, Errno> {
        let digests = if matches!(sealed, FileVerity::Sealed(_)) { Digests::Both } else { Digests::Sha256 };
        let hashed = hash_file(fd, stamp.size, digests, buffer, |bytes| {
            self.walk.progress.add_bytes(bytes);
            if let Some(pace) = &self.walk.pace {
                pace.take(bytes);
            }
        })?;
        if self.walk.reading != Reading::Packing {
            return Ok(hashed);
        }
        // A manifest must not describe a file that never existed: half before a change and half after it.
        Ok(hashed.filter(|_| stamp_of(fd).is_ok_and(|after| after == *stamp)))
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

/// The kernel's word counts where the bytes that it lets us read bear it out.
fn judged(sealed: FileVerity, hashed: Hashed) -> FileVerity {
    match sealed {
        FileVerity::Sealed(digest) if hashed.verity != Some(digest) => FileVerity::Another,
        FileVerity::Sealed(_)
        | FileVerity::Unasked
        | FileVerity::Unsupported
        | FileVerity::Failed(_)
        | FileVerity::Unsealed
        | FileVerity::Another => sealed,
    }
}

#[cfg(test)]
mod tests {
    use muster_model::Digest;

    use super::*;

    #[test]
    fn the_kernels_word_counts_where_the_bytes_bear_it_out() {
        let (ours, theirs) = (Digest::of(b"ours"), Digest::of(b"theirs"));
        let read = |verity| Hashed { sha256: Digest::of(b"bytes"), verity };
        let sealed = FileVerity::Sealed(ours);
        assert_eq!(judged(sealed, read(Some(ours))), sealed);
        assert_eq!(judged(sealed, read(Some(theirs))), FileVerity::Another);
        assert_eq!(judged(sealed, read(None)), FileVerity::Another, "nobody has computed it");
        for other in [FileVerity::Unasked, FileVerity::Unsupported, FileVerity::Unsealed, FileVerity::Another]
        {
            assert_eq!(judged(other, read(Some(ours))), other);
        }
    }
}
