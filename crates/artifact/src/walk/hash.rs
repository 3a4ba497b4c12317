//! The digest of one file's content, and the one by fs-verity where that is asked for, from the same bytes.
//!
//! A small file is read and hashed in turn. Of a large one the next part is read while the last one is hashed:
//! taking bytes out of the page cache costs about a quarter of what hashing them costs, and a large file is
//! often what a whole measurement waits for at its end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use muster_fsverity::Hasher;
use muster_model::Digest;
use rustix::io::{Errno, read, retry_on_intr};
use sha2::{Digest as _, Sha256};

/// What is read at once of a small file: it stays in a core's own cache.
const READ_BYTES: usize = 128 << 10;
/// What is read at once ahead of the hashing: enough that waking the other thread does not show.
const PART_BYTES: usize = 1 << 20;
/// One part is hashed while the other is filled.
const PARTS: usize = 2;
/// From this size on a thread of its own pays.
const READ_AHEAD_BYTES_MIN: u64 = 8 << 20;

/// Whether the digest by fs-verity is computed as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digests {
    Sha256,
    Both,
}

/// What the bytes of a file hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hashed {
    pub(crate) sha256: Digest,
    /// There if it was asked for.
    pub(crate) verity: Option<Digest>,
}

/// Hashes a file of `size` bytes from its start; none if it has another size by now. `step` is told of each
/// read. The first bytes of a small file are in `buffer` afterwards.
pub(crate) fn hash_file(
    fd: &OwnedFd,
    size: u64,
    digests: Digests,
    buffer: &mut Vec<u8>,
    mut step: impl FnMut(usize),
) -> Result<Option<Hashed>, Errno> {
    buffer.resize(READ_BYTES, 0);
    if size >= READ_AHEAD_BYTES_MIN {
        // Without a thread to be had, nothing was read yet.
        if let Ok(hashed) = hash_ahead(fd, size, digests, &mut step) {
            return hashed;
        }
    }
    let mut hashers = Hashers::new(digests);
    let mut rest = size;
    while rest > 0 {
        let bytes = retry_on_intr(|| read(fd, buffer.as_mut_slice()))?;
        if bytes == 0 || bytes as u64 > rest {
            return Ok(None);
        }
        hashers.update(&buffer[..bytes]);
        rest -= bytes as u64;
        step(bytes);
    }
    Ok(Some(hashers.finish()))
}

struct Hashers {
    sha256: Sha256,
    verity: Option<Hasher>,
}

impl Hashers {
    fn new(digests: Digests) -> Self {
        Self { sha256: Sha256::new(), verity: (digests == Digests::Both).then(Hasher::default) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(verity) = &mut self.verity {
            verity.update(bytes);
        }
    }

    fn finish(self) -> Hashed {
        let verity = self.verity.map(|it| Digest::from_bytes(it.finish()));
        Hashed { sha256: Digest::from_bytes(self.sha256.finalize().into()), verity }
    }
}

/// A part of a file: the buffer that it is in, and how many bytes of that it fills.
type Part = (Vec<u8>, usize);

/// Hashes on this thread while another one reads ahead. The outer error says that there is no such thread.
fn hash_ahead(
    fd: &OwnedFd,
    size: u64,
    digests: Digests,
    step: &mut impl FnMut(usize),
) -> io::Result<Result<Option<Hashed>, Errno>> {
    thread::scope(|scope| {
        // Made here, so that they are gone before the scope waits for the reader: that is what ends it.
        let (to_fill, empty) = sync_channel(PARTS);
        let (filled, to_hash) = sync_channel(PARTS);
        let reader = thread::Builder::new().name("muster-read-ahead".to_owned());
        reader.spawn_scoped(scope, move || read_parts(fd, &empty, &filled))?;
        for _ in 0..PARTS {
            // If the reader is gone, so is what it would have sent.
            let _ = to_fill.send(vec![0; PART_BYTES]);
        }
        Ok(hash_parts(size, digests, (&to_hash, &to_fill), step))
    })
}

fn hash_parts(
    size: u64,
    digests: Digests,
    (to_hash, to_fill): (&Receiver<Result<Part, Errno>>, &SyncSender<Vec<u8>>),
    step: &mut impl FnMut(usize),
) -> Result<Option<Hashed>, Errno> {
    let mut hashers = Hashers::new(digests);
    let mut rest = size;
    while rest > 0 {
        // The reader sends whatever ends it; if it is gone without, it panicked, and the scope will say so.
        let Ok(part) = to_hash.recv() else { return Ok(None) };
        let (buffer, bytes) = part?;
        if bytes == 0 || bytes as u64 > rest {
            return Ok(None);
        }
        hashers.update(&buffer[..bytes]);
        rest -= bytes as u64;
        step(bytes);
        // The reader ends at the end of the file, which may be before this one.
        let _ = to_fill.send(buffer);
    }
    Ok(Some(hashers.finish()))
}

/// Fills buffers until the file ends, reading fails, or nobody hashes any more.
fn read_parts(fd: &OwnedFd, empty: &Receiver<Vec<u8>>, filled: &SyncSender<Result<Part, Errno>>) {
    for mut buffer in empty {
        let bytes = retry_on_intr(|| read(fd, buffer.as_mut_slice()));
        let more = matches!(bytes, Ok(1..));
        if filled.send(bytes.map(|bytes| (buffer, bytes))).is_err() || !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::*;

    const LARGE: usize = (READ_AHEAD_BYTES_MIN as usize) + PART_BYTES + 17;

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, OwnedFd) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(bytes).expect("bytes written");
        let fd = File::open(file.path()).expect("the file").into();
        (file, fd)
    }

    #[test]
    fn both_ways_of_reading_give_the_digest_and_tell_of_every_byte() {
        let bytes: Vec<u8> = (0..LARGE).map(|at| (at % 251) as u8).collect();
        let small = READ_BYTES + 1;
        let edge = READ_AHEAD_BYTES_MIN as usize;
        for len in [0, 1, READ_BYTES, small, edge - 1, edge, edge + 1, LARGE] {
            let (_file, fd) = file(&bytes[..len]);
            let mut told = 0;
            let hashed = hash_file(&fd, len as u64, Digests::Sha256, &mut Vec::new(), |bytes| told += bytes);
            let sha256 = Digest::of(&bytes[..len]);
            assert_eq!(hashed, Ok(Some(Hashed { sha256, verity: None })), "{len} bytes");
            assert_eq!(told, len);
        }
    }

    #[test]
    fn both_digests_come_from_one_reading() {
        let bytes: Vec<u8> = (0..LARGE).map(|at| (at % 251) as u8).collect();
        for len in [0, 4096, READ_BYTES + 1, LARGE] {
            let (_file, fd) = file(&bytes[..len]);
            let mut told = 0;
            let hashed = hash_file(&fd, len as u64, Digests::Both, &mut Vec::new(), |bytes| told += bytes);
            let mut verity = Hasher::default();
            verity.update(&bytes[..len]);
            let verity = Some(Digest::from_bytes(verity.finish()));
            let sha256 = Digest::of(&bytes[..len]);
            assert_eq!(hashed, Ok(Some(Hashed { sha256, verity })), "{len} bytes");
            assert_eq!(told, len);
        }
    }

    #[test]
    fn another_size_than_stated_has_no_digest() {
        let bytes = vec![7; LARGE];
        for len in [100, LARGE] {
            for stated in [len - 1, len + 1] {
                let (_file, fd) = file(&bytes[..len]);
                let hashed = hash_file(&fd, stated as u64, Digests::Both, &mut Vec::new(), |_| {});
                assert_eq!(hashed, Ok(None), "{len} bytes, stated as {stated}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_either_way() {
        let folder = tempfile::tempdir().expect("a folder");
        for size in [1, READ_AHEAD_BYTES_MIN] {
            let fd: OwnedFd = File::open(folder.path()).expect("the folder").into();
            let hashed = hash_file(&fd, size, Digests::Sha256, &mut Vec::new(), |_| {});
            assert_eq!(hashed, Err(Errno::ISDIR));
        }
    }
}
