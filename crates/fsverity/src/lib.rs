//! fs-verity, by which a kernel keeps the Merkle tree of a file that nobody can write to any more, and checks against it what it reads.
//!
//! [`Hasher`] computes the digest of a file that the kernel would, from its bytes; [`enable`] has the kernel seal a file, and [`measure`]
//! asks for the digest of one that is sealed, which reads nothing of it. One set of parameters is used: SHA-256, blocks of 4,096 bytes,
//! no salt, no signature.
//!
//! It judges nothing: what a tree is worth whose files are sealed is decided in `crates/artifact`.

mod calls;
mod hasher;

pub use calls::{Measured, enable, measure};
pub use hasher::{DIGEST_BYTES, Hasher};
