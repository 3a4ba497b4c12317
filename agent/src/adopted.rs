//! What runs on this host before any release of the fleet does: a folder that root's configuration names, and nobody else can.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use muster_artifact::{ArtifactError, Durability, OutsideLinks, PackOptions, Progress, pack};
use muster_model::{Code, Comparable, Digest, EntryPath, Manifest, Refusal, TreeRules};
use muster_rollout::host::Measured;

use crate::measure::Trees;
use crate::refusal;

/// Where what runs now is.
#[derive(Debug)]
pub struct Adopted {
    /// The folder.
    from: PathBuf,
    /// Paths in it that the service writes to: they are not measured.
    mutable: Vec<EntryPath>,
    /// The manifest that it was measured to be last, which the coordinator may read.
    newest: Mutex<Option<Digest>>,
}

impl Adopted {
    /// A folder that was not measured yet.
    #[must_use]
    pub const fn new(from: PathBuf, mutable: Vec<EntryPath>) -> Self {
        Self { from, mutable, newest: Mutex::new(None) }
    }

    /// Where the bytes of a release's file may be had without fetching them.
    fn file(&self, path: &EntryPath) -> PathBuf {
        self.from.join(OsStr::from_bytes(path.as_bytes()))
    }
}

impl Trees {
    /// Measures what runs here, and keeps its manifest.
    pub(crate) fn measure_adopted(&self) -> Result<Measured, Refusal> {
        let Some(adopted) = &self.adopted else {
            let detail = "nothing is to be adopted here: name the folder as `adopt_from` in agent.toml";
            return Err(refusal::at(&self.host, Code::NotDeployed, detail));
        };
        let begun = self.machine.boot_time();
        let rules = TreeRules { mutable: adopted.mutable.clone(), ..TreeRules::default() };
        let options = PackOptions { rules, outside_links: OutsideLinks::Warn, jobs: self.jobs };
        let refused = |error: ArtifactError| refusal::of_artifact(&self.host, &error);
        let manifest = pack(&adopted.from, &options, &Progress::default()).map_err(refused)?.manifest;
        let (digest, bytes) = (manifest.digest(), manifest.to_bytes());
        let mut writer = self.blobs.writer(digest, bytes.len() as u64, Durability::Batch).map_err(refused)?;
        writer.write(&bytes).and_then(|()| writer.finish()).map_err(refused)?;
        let before = adopted.newest.lock().unwrap_or_else(PoisonError::into_inner).replace(digest);
        if let Some(before) = before.filter(|before| *before != digest && !self.has_tree(*before)) {
            // No release's, and what it told of is not what is there.
            self.blobs.remove(before).map_err(refused)?;
        }
        let (files, bytes) =
            manifest.files().fold((0, 0), |(files, sum), (_, size, _)| (files + 1, sum + size));
        let compared = Comparable { manifest: digest, measured: digest, files, bytes, uniform: None };
        Ok(self.measured(compared, begun))
    }

    /// Whether this is the manifest of what runs here, as it was measured last.
    pub(crate) fn is_adopted(&self, manifest: Digest) -> bool {
        let newest = |adopted: &Adopted| *adopted.newest.lock().unwrap_or_else(PoisonError::into_inner);
        self.adopted.as_ref().and_then(newest) == Some(manifest)
    }

    /// Takes the blobs of a release that are missing from what runs here, as far as they are there, so that they need not be
    /// fetched. What has changed meanwhile is another blob, and harmless.
    pub(crate) fn take_from_adopted(&self, manifest: &Manifest, missing: &[(Digest, u64)]) {
        let Some(adopted) = &self.adopted else { return };
        let missing: HashSet<&(Digest, u64)> = missing.iter().collect();
        for (path, size, digest) in
            manifest.files().filter(|(_, size, digest)| missing.contains(&(*digest, *size)))
        {
            let file = adopted.file(path);
            let is_alike = file.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() == size);
            if is_alike && let Err(error) = self.blobs.import_file(&file) {
                let (file, error) = (file.display(), refusal::chain(&error));
                tracing::info!(%file, %digest, error, "cannot be taken from what runs here; it is fetched");
            }
        }
    }
}
