//! The digest of a file by fs-verity.
//!
//! The file is cut into blocks of 4,096 bytes, the last one filled up with zeros; the SHA-256 of each block is an entry of the level
//! above, which is cut into blocks in turn, until a level has one block: its SHA-256 is the root. A file of at most one block has no
//! level above, and an empty one has a root of zeros. The digest is the SHA-256 of a descriptor that has the root, the size and the
//! parameters (`struct fsverity_descriptor` of the kernel's documentation, `filesystems/fsverity.rst`).

use sha2::{Digest as _, Sha256};

/// The bytes of a digest.
pub const DIGEST_BYTES: usize = 32;

const BLOCK_BYTES: usize = 4096;
const LOG_BLOCK_BYTES: u8 = 12;
const VERSION: u8 = 1;
const SHA256: u8 = 1;
const DESCRIPTOR_BYTES: usize = 256;

/// Computes a file's digest from its bytes as they come. Memory: a block for each level, six at most for any file.
#[derive(Debug, Clone)]
pub struct Hasher {
    size: u64,
    /// The hash of the block of data that is being filled.
    block: Sha256,
    filled: usize,
    /// For each level above the data, from the lowest one: the entries of the block that is being filled.
    levels: Vec<Vec<u8>>,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { size: 0, block: Sha256::new(), filled: 0, levels: Vec::new() }
    }
}

impl Hasher {
    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            // A full block is closed only once more follows: that of a file with one block has no level above.
            if self.filled == BLOCK_BYTES {
                self.close_block();
            }
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.filled));
            self.block.update(now);
            self.filled += now.len();
            bytes = rest;
        }
    }

    /// The digest of the file whose bytes were taken.
    #[must_use]
    pub fn finish(mut self) -> [u8; DIGEST_BYTES] {
        let mut root = if self.size == 0 { [0; DIGEST_BYTES] } else { self.block_digest() };
        // What is left of each level goes one level up, until a level has no more than that.
        let mut level = 0;
        while level < self.levels.len() {
            // May make one more level, if this block was full.
            self.add(level, root);
            root = Self::filled_up(&self.levels[level]);
            level += 1;
        }
        let mut descriptor = [0; DESCRIPTOR_BYTES];
        descriptor[..3].copy_from_slice(&[VERSION, SHA256, LOG_BLOCK_BYTES]);
        descriptor[8..16].copy_from_slice(&self.size.to_le_bytes());
        descriptor[16..16 + DIGEST_BYTES].copy_from_slice(&root);
        Sha256::digest(descriptor).into()
    }

    fn close_block(&mut self) {
        let digest = self.block_digest();
        self.add(0, digest);
    }

    /// The digest of the block of data so far, filled up with zeros; the next block begins.
    fn block_digest(&mut self) -> [u8; DIGEST_BYTES] {
        self.block.update(&[0; BLOCK_BYTES][self.filled..]);
        self.filled = 0;
        self.block.finalize_reset().into()
    }

    /// Adds an entry to a level. Its block goes up once it is full and more follows.
    fn add(&mut self, level: usize, entry: [u8; DIGEST_BYTES]) {
        if level == self.levels.len() {
            self.levels.push(Vec::with_capacity(BLOCK_BYTES));
        }
        if self.levels[level].len() == BLOCK_BYTES {
            let full = Self::filled_up(&self.levels[level]);
            self.levels[level].clear();
            self.add(level + 1, full);
        }
        self.levels[level].extend_from_slice(&entry);
    }

    fn filled_up(block: &[u8]) -> [u8; DIGEST_BYTES] {
        let mut hash = Sha256::new();
        hash.update(block);
        hash.update(&[0; BLOCK_BYTES][block.len()..]);
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests;
