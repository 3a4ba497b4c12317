use super::*;

/// Computes the digest of `bytes`, handed over in pieces.
fn digest(bytes: &[u8], piece: usize) -> String {
    let mut hasher = Hasher::default();
    bytes.chunks(piece).for_each(|part| hasher.update(part));
    hex::encode(hasher.finish())
}

/// Of the kernel's own tests: files of zeros without salt, from `tests/generic/575` of xfstests.
#[test]
fn files_of_zeros_have_the_digests_that_the_kernels_tests_expect() {
    for (size, expected) in [
        (0, "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
        (4096, "babc284ee4ffe7f449377fbf6692715b43aec7bc39c094a95878904d34bac97e"),
        (65536, "011e3f2b1dc89b75d78cddcc2a1b85cd8a64b2883e5f20f277ae4c0617e0404f"),
    ] {
        assert_eq!(digest(&vec![0; size], 1 << 20), expected, "{size} bytes");
    }
}

/// `vectors/make` writes them, by another implementation.
#[test]
fn digests_are_those_that_fsverity_utils_computes() {
    let vectors = include_str!("../../vectors/vectors.txt");
    let period: Vec<u8> = (0..251).collect();
    let mut sizes = Vec::new();
    for line in vectors.lines() {
        let (size, expected) = line.split_once(' ').expect("a size and a digest");
        let size: usize = size.parse().expect("a number");
        let mut bytes = period.repeat(size / period.len() + 1);
        bytes.truncate(size);
        for piece in [1 << 20, 4096, 4095].into_iter().chain((size < 1 << 20).then_some(7)) {
            assert_eq!(digest(&bytes, piece), expected, "{size} bytes, by {piece}");
        }
        sizes.push(size);
    }
    // One block, one level, two levels and three, and one byte more or less.
    for size in [0, 1, 4095, 4096, 4097, 128 * 4096, 128 * 4096 + 1, 128 * 128 * 4096, 128 * 128 * 4096 + 1] {
        assert!(sizes.contains(&size), "{size} bytes are not among the vectors");
    }
}

#[test]
fn every_byte_counts_and_so_does_the_size() {
    let bytes = vec![0_u8; 3 * 4096];
    let of = |bytes: &[u8]| digest(bytes, 1000);
    let whole = of(&bytes);
    for at in [0, 4095, 4096, 3 * 4096 - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert_ne!(of(&changed), whole, "byte {at}");
    }
    // The zeros that fill up a block are no bytes of the file.
    assert_ne!(of(&bytes[..3 * 4096 - 1]), whole);
}
