//! The two calls. This is the only unsafe code of the workspace: an `ioctl` takes a pointer, and only whoever knows the call can say
//! that it is to what the kernel expects.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

use crate::DIGEST_BYTES;

const SHA256: u16 = 1;
const BLOCK_BYTES: u32 = 4096;
/// The longest digest of any algorithm that the kernel has.
const DIGEST_BYTES_MAX: usize = 64;

/// `struct fsverity_enable_arg` of `linux/fsverity.h`.
#[repr(C)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved_1: u32,
    sig_ptr: u64,
    reserved_2: [u64; 11],
}

/// What `struct fsverity_digest` begins with; its size is part of the call's number.
#[repr(C)]
struct DigestHeader {
    algorithm: u16,
    size: u16,
}

/// `struct fsverity_digest` with room for any digest.
#[repr(C)]
struct DigestArgument {
    header: DigestHeader,
    digest: [u8; DIGEST_BYTES_MAX],
}

const ENABLE: Opcode = opcode::write::<EnableArgument>(b'f', 133);
const MEASURE: Opcode = opcode::read_write::<DigestHeader>(b'f', 134);

/// What the kernel says of a sealed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// Its SHA-256 digest by fs-verity, which is that of [`Hasher`](crate::Hasher) if block size and salt are ours as well.
    Sha256([u8; DIGEST_BYTES]),
    /// It was sealed with another algorithm.
    Other,
}

/// Seals a file: from now on nobody writes to it, and the kernel refuses to read what does not fit its digest. The file must be open for
/// reading alone, nobody may have it open for writing, and its mode must let us write to it.
///
/// The kernel reads all of it and writes its Merkle tree to the disk before it answers.
///
/// # Errors
/// `ENOTTY`, `EOPNOTSUPP`: this file system has no fs-verity, or it is not switched on. `EEXIST`: it is sealed. `EACCES`, `EPERM`,
/// `EROFS`: we may not. `ETXTBSY`: it is open for writing. `EINVAL`: not with blocks of 4,096 bytes.
#[expect(unsafe_code, reason = "a system call without a safe wrapper")]
pub fn enable(file: impl AsFd) -> Result<(), Errno> {
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: SHA256.into(),
        block_size: BLOCK_BYTES,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved_1: 0,
        sig_ptr: 0,
        reserved_2: [0; 11],
    };
    // SAFETY: FS_IOC_ENABLE_VERITY reads one `struct fsverity_enable_arg`, which this is; it names no salt and no signature, so that
    // the kernel follows no pointer in it.
    unsafe { ioctl(file, Setter::<ENABLE, EnableArgument>::new(argument)) }
}

/// The digest of a sealed file, in constant time.
///
/// # Errors
/// `ENODATA`: it is not sealed. `ENOTTY`, `EOPNOTSUPP`: this file system has no fs-verity.
#[expect(unsafe_code, reason = "a system call without a safe wrapper")]
pub fn measure(file: impl AsFd) -> Result<Measured, Errno> {
    let room = DigestHeader { algorithm: 0, size: DIGEST_BYTES_MAX as u16 };
    let mut argument = DigestArgument { header: room, digest: [0; DIGEST_BYTES_MAX] };
    // SAFETY: FS_IOC_MEASURE_VERITY reads `size` of a `struct fsverity_digest`, and writes the header and at most `size` bytes of digest,
    // for which there is room.
    unsafe { ioctl(file, Updater::<MEASURE, DigestArgument>::new(&mut argument)) }?;
    let DigestArgument { header: DigestHeader { algorithm, size }, digest } = argument;
    let mut sha256 = [0; DIGEST_BYTES];
    if algorithm != SHA256 || usize::from(size) != DIGEST_BYTES {
        return Ok(Measured::Other);
    }
    sha256.copy_from_slice(&digest[..DIGEST_BYTES]);
    Ok(Measured::Sha256(sha256))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::mem::{align_of, size_of};

    use super::*;

    #[test]
    fn the_calls_have_the_numbers_and_sizes_of_the_kernels_header() {
        assert_eq!((size_of::<EnableArgument>(), align_of::<EnableArgument>()), (128, 8));
        assert_eq!((size_of::<DigestHeader>(), size_of::<DigestArgument>()), (4, 68));
        // As every architecture has them but a few that number their calls in another way.
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        assert_eq!((ENABLE, MEASURE), (0x4080_6685, 0xc004_6686));
    }

    #[test]
    fn a_file_system_without_it_says_so() {
        // A pipe has neither, whatever the kernel.
        let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
        assert_eq!(measure(&reader), Err(Errno::NOTTY));
        assert_eq!(enable(&reader), Err(Errno::NOTTY));
    }

    #[test]
    #[ignore = "needs a file system with fs-verity: tests/verity/run makes one"]
    fn verity_a_sealed_file_has_the_digest_that_was_computed_and_cannot_be_written() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        for size in [0, 1, 4095, 4096, 4097, 128 * 4096, 128 * 4096 + 1, 128 * 128 * 4096 + 1] {
            let bytes: Vec<u8> = (0..size).map(|at: usize| (at % 251) as u8).collect();
            std::fs::write(&path, &bytes).expect("written");
            let file = File::open(&path).expect("opened");
            assert_eq!(measure(&file), Err(Errno::NODATA), "{size}");
            enable(&file).expect("sealed");
            let mut hasher = crate::Hasher::default();
            hasher.update(&bytes);
            assert_eq!(measure(&file), Ok(Measured::Sha256(hasher.finish())), "{size}");
            assert_eq!(enable(&file), Err(Errno::EXIST));
            let refused = File::options().write(true).open(&path).expect_err("it is sealed");
            assert_eq!(refused.raw_os_error(), Some(Errno::PERM.raw_os_error()));
            std::fs::remove_file(&path).expect("a sealed file can be removed");
        }
    }

    #[test]
    #[ignore = "needs a file system with fs-verity: tests/verity/run makes one"]
    fn verity_a_file_that_is_open_for_writing_is_not_sealed() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        let writer = File::create(&path).expect("created");
        let reader = File::open(&path).expect("opened");
        assert_eq!(enable(&reader), Err(Errno::TXTBSY));
        drop(writer);
        enable(&reader).expect("sealed");
    }
}
