//! Whether a release's tree on a host is what was released: what is asked before it is started.
//!
//! Who asks this is not who keeps the tree, so nothing is written here: neither a seal nor a blob.

use std::path::PathBuf;

use muster_model::{Digest, MAX_MANIFEST_BYTES, Manifest};

use crate::{ArtifactError, BlobStore, MeasureOptions, Progress, Seal, measure};

/// Where a host keeps what belongs to one release.
#[derive(Debug, Clone)]
pub struct Deployed {
    /// The digest of its manifest.
    pub release: Digest,
    /// Its tree.
    pub tree: PathBuf,
    /// Its seal, if it has one.
    pub seal: PathBuf,
    /// Where its manifest is.
    pub blobs: BlobStore,
}

impl Deployed {
    /// Looks at the metadata of the tree where its seal holds, and at every byte otherwise. A seal is as good as whoever
    /// wrote it; a manifest proves itself.
    pub fn check(&self, options: &MeasureOptions) -> Result<(), ArtifactError> {
        let seal = Seal::read(&self.seal).ok().filter(|seal| seal.manifest() == self.release);
        if seal.is_some_and(|seal| seal.check(&self.tree, options.jobs).is_ok()) {
            return Ok(());
        }
        let path = || self.tree.clone();
        let bytes = self.blobs.read_whole(self.release, MAX_MANIFEST_BYTES)?;
        let manifest =
            Manifest::parse(&bytes).map_err(|source| ArtifactError::Manifest { path: path(), source })?;
        let measured = measure(&self.tree, &manifest, options, &Progress::default())?;
        if measured.matches() && measured.digest == self.release {
            return Ok(());
        }
        Err(ArtifactError::NotAsReleased {
            path: path(),
            differences: measured.differences,
            count: measured.difference_count,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use muster_model::TreeRules;

    use super::*;
    use crate::testing::{MEASURING, Sandbox, chmod};
    use crate::{Durability, seal};

    /// A release that is installed, and sealed as it was found then.
    fn deployed(sandbox: &Sandbox) -> Deployed {
        let manifest = sandbox.pack(TreeRules::default());
        sandbox.install(&manifest);
        let release = manifest.digest();
        let bytes = manifest.to_bytes();
        let mut writer =
            sandbox.store.writer(release, bytes.len() as u64, Durability::Each).expect("a writer");
        writer.write(&bytes).and_then(|()| writer.finish()).expect("the manifest");
        let tree = sandbox.releases().join(release.hex());
        let (_, sealed) = seal(&tree, &manifest, &MEASURING, &Progress::default()).expect("measured");
        let file = sandbox.dir.path().join("seal");
        sealed.expect("sealed").write(&file).expect("written");
        let blobs = BlobStore::of_another(&sandbox.dir.path().join("blobs"));
        Deployed { release, tree, seal: file, blobs }
    }

    #[test]
    fn a_seal_that_holds_is_enough_and_bytes_decide_without_one() {
        let sandbox = Sandbox::with_tree();
        let deployed = deployed(&sandbox);
        let aside = sandbox.dir.path().join("aside");
        fs::rename(sandbox.dir.path().join("blobs"), &aside).expect("moved");
        deployed.check(&MEASURING).expect("its seal holds");
        // Touched: only the bytes can tell now, and without a manifest nothing can.
        chmod(&deployed.tree.join("bin/server"), 0o700);
        chmod(&deployed.tree.join("bin/server"), 0o755);
        assert!(matches!(deployed.check(&MEASURING), Err(ArtifactError::BlobMissing { .. })));
        fs::rename(aside, sandbox.dir.path().join("blobs")).expect("moved back");
        deployed.check(&MEASURING).expect("the bytes are right");
        for bad in ["nonsense", ""] {
            fs::write(&deployed.seal, bad).expect("written");
            deployed.check(&MEASURING).expect("the bytes are right");
        }
        fs::remove_file(&deployed.seal).expect("removed");
        deployed.check(&MEASURING).expect("the bytes are right");
    }

    #[test]
    fn a_changed_byte_is_found_with_its_size_and_times_as_they_were() {
        let sandbox = Sandbox::with_tree();
        let deployed = deployed(&sandbox);
        let file = deployed.tree.join("bin/server");
        let modified = fs::metadata(&file).and_then(|it| it.modified()).expect("a time");
        fs::write(&file, "the swerve").expect("written");
        fs::File::options()
            .write(true)
            .open(&file)
            .and_then(|it| it.set_modified(modified))
            .expect("set back");
        let Err(ArtifactError::NotAsReleased { differences, count: 1, .. }) = deployed.check(&MEASURING)
        else {
            panic!("a changed byte is what was released");
        };
        assert_eq!(differences[0].path.to_string(), "bin/server");
    }

    #[test]
    fn the_seal_of_another_release_says_nothing_of_this_one() {
        let sandbox = Sandbox::with_tree();
        let first = deployed(&sandbox);
        sandbox.file("bin/server", 0o755, b"the next one");
        let manifest = sandbox.pack(TreeRules::default());
        let bytes = manifest.to_bytes();
        let release = manifest.digest();
        let mut writer =
            sandbox.store.writer(release, bytes.len() as u64, Durability::Each).expect("a writer");
        writer.write(&bytes).and_then(|()| writer.finish()).expect("the manifest");
        // The old tree under the new name, with the seal that fits it.
        let lie = Deployed { release, ..first };
        assert!(matches!(lie.check(&MEASURING), Err(ArtifactError::NotAsReleased { count: 1, .. })));
        let gone = Deployed { tree: sandbox.dir.path().join("nothing"), ..lie };
        assert!(matches!(gone.check(&MEASURING), Err(ArtifactError::TreeMissing { .. })));
    }
}
