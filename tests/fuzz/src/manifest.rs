//! The manifest: one encoding for each tree.

use muster_model::{Digest, Manifest};

use crate::Verdict;

pub(crate) fn run(bytes: &[u8]) -> Verdict {
    let Ok(manifest) = Manifest::parse(bytes) else { return Verdict::Refused };
    assert!(manifest.to_bytes() == bytes, "what was read is what would be written");
    assert_eq!(manifest.digest(), Digest::of(bytes));
    assert!(manifest.entries().len() <= bytes.len(), "no more entries than bytes");
    let files: u64 = manifest.files().map(|(_, size, _)| size).sum();
    assert_eq!(files, manifest.total_bytes());
    let again = Manifest::new(manifest.entries().iter().rev().cloned().collect(), manifest.rules().clone());
    assert!(again.is_ok_and(|again| again == manifest), "the order of the parts makes no difference");
    for entry in manifest.links_out() {
        assert!(manifest.entry(&entry.path).is_some());
    }
    Verdict::Taken
}
