//! The trees of one fleet on this host: measured, sealed, checked against their seals, listed.
//!
//! Everything here reads the disk now. A value that was expected is never passed off as one that was measured.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use muster_artifact::{ArtifactError, Assured, BlobStore, MeasureOptions, Measurement, Progress, Seal};
use muster_daemon::Machine;
use muster_model::{
    Assurance, BootTime, Code, Comparable, Digest, HostName, MAX_MANIFEST_BYTES, Manifest, Refusal,
};
use muster_proto::v1;
use muster_rollout::host::Measured;
use tokio::sync::Semaphore;

use crate::adopted::Adopted;
use crate::assurance::{self, Assurances};
use crate::idle::idly;
use crate::{ClockError, refusal};

/// How many trees are measured at the same time in each lane of a host. Each uses as many threads as the configuration allows.
const MEASURING_MAX: usize = 2;

/// What all fleets of a host share.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Measurements that a flip waits for.
    pub(crate) flips: Arc<Semaphore>,
    /// Measurements that an operator asked for outside of any flip.
    pub(crate) checks: Arc<Semaphore>,
    /// Looks at what is served because something there has changed.
    pub(crate) hints: Arc<Semaphore>,
    /// Measurements of what is served that nobody waits for: they are slow on purpose, and hold nobody up but each other.
    pub(crate) scheduled: Arc<Semaphore>,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        let lane = || Arc::new(Semaphore::new(MEASURING_MAX));
        Self { flips: lane(), checks: lane(), hints: lane(), scheduled: lane() }
    }
}

/// The trees of one fleet. The calls block.
#[derive(Debug)]
pub(crate) struct Trees {
    /// This host.
    pub(crate) host: HostName,
    /// Its clocks and threads.
    pub(crate) machine: Machine,
    /// The host's blobs; manifests are among them.
    pub(crate) blobs: BlobStore,
    /// The folder whose `<digest>` folders are the trees.
    pub(crate) releases: PathBuf,
    /// The folder of the seals.
    pub(crate) seals: PathBuf,
    /// How many threads read a tree.
    pub(crate) jobs: NonZeroUsize,
    /// What measurements are worth here.
    pub(crate) assurances: Assurances,
    /// How far the time of day may be off.
    pub(crate) clock_error: ClockError,
    /// What runs here before any release does, if root says so.
    pub(crate) adopted: Option<Adopted>,
}

/// What follows where a tree has no seal, or one that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BrokenSeal {
    /// Before the decision the tree must be untouched since it was measured: the rollout is given up.
    Refuses,
    /// After it there is no way back, and the bytes decide: the tree is measured in full and sealed again.
    Measures,
}

impl Trees {
    /// The same, with what else is attested.
    pub(crate) fn measure_to_attest(&self, release: Digest) -> Result<Measured, Refusal> {
        let (measured, assured) = self.measure_and_judge(release)?;
        self.assurances.require(&self.host, release, &assured)?;
        Ok(Measured { clock_error_ms: self.clock_error.bound_ms(), ..measured })
    }

    /// Measures a release's tree in full.
    pub(crate) fn measure(&self, release: Digest) -> Result<Measured, Refusal> {
        self.measure_and_judge(release).map(|(measured, _)| measured)
    }

    fn measure_and_judge(&self, release: Digest) -> Result<(Measured, Assured), Refusal> {
        let manifest = self.manifest(release)?;
        let tree = self.tree(release);
        let begun = self.machine.boot_time();
        let measurement = muster_artifact::measure(&tree, &manifest, &self.options(), &Progress::default())
            .map_err(|error| self.refuse(&error))?;
        Ok((self.accept(release, &measurement, begun)?, measurement.assured))
    }

    /// Measures a release's tree in full, with one idle thread and no faster than this, beside what it serves.
    pub(crate) fn measure_slowly(
        &self,
        release: Digest,
        bytes_per_second_max: u64,
    ) -> Result<Measured, Refusal> {
        let manifest = self.manifest(release)?;
        let begun = self.machine.boot_time();
        let options = MeasureOptions {
            jobs: NonZeroUsize::MIN,
            bytes_per_second_max: std::num::NonZeroU64::new(bytes_per_second_max),
            verity: self.assurances.verity(),
        };
        let tree = self.tree(release);
        let measured = idly(|| muster_artifact::measure(&tree, &manifest, &options, &Progress::default()));
        let failed = |source| {
            self.refuse(&ArtifactError::Io { doing: "start a thread for", path: tree.clone(), source })
        };
        let measurement = measured.map_err(failed)?.map_err(|error| self.refuse(&error))?;
        self.accept(release, &measurement, begun)
    }

    /// Measures a release's tree in full, and keeps its seal.
    pub(crate) fn seal(&self, release: Digest) -> Result<(), Refusal> {
        let (_, seal) = self.measure_with_seal(release)?;
        seal.write(&self.seal_path(release)).map_err(|error| self.refuse(&error))
    }

    /// Measures a release's tree in full before it is started, and keeps its seal: without one the start gate reads every byte again,
    /// within the time that a unit has to start. A seal that cannot be kept costs that time, and no admission.
    pub(crate) fn measure_to_admit(&self, release: Digest) -> Result<Measured, Refusal> {
        let (measured, seal) = self.measure_with_seal(release)?;
        if let Err(error) = seal.write(&self.seal_path(release)) {
            tracing::warn!(%release, error = refusal::chain(&error), "what is admitted is not sealed: its start reads all of it");
        }
        Ok(measured)
    }

    fn measure_with_seal(&self, release: Digest) -> Result<(Measured, Seal), Refusal> {
        let manifest = self.manifest(release)?;
        let tree = self.tree(release);
        let begun = self.machine.boot_time();
        let (measurement, seal) =
            muster_artifact::seal(&tree, &manifest, &self.options(), &Progress::default())
                .map_err(|error| self.refuse(&error))?;
        let measured = self.accept(release, &measurement, begun)?;
        let seal = seal.ok_or_else(|| {
            refusal::at(&self.host, Code::Unmeasurable, "the tree was measured but could not be sealed")
        })?;
        Ok((measured, seal))
    }

    /// Compares a release's tree with its seal.
    pub(crate) fn check_seal(&self, release: Digest, broken: BrokenSeal) -> Result<(), Refusal> {
        let checked = Seal::read(&self.seal_path(release)).and_then(|seal| {
            if seal.manifest() != release {
                let reason = format!("it is that of {}", seal.manifest());
                return Err(ArtifactError::SealFile { path: self.seal_path(release), reason });
            }
            seal.check(&self.tree(release), self.jobs)
        });
        match (checked, broken) {
            (Ok(()), _) => Ok(()),
            (Err(error), BrokenSeal::Refuses) => {
                let mut refusal = self.refuse(&error);
                refusal.blockers.iter_mut().for_each(|blocker| blocker.code = Code::SealBroken);
                Err(refusal)
            }
            (Err(error), BrokenSeal::Measures) => {
                tracing::info!(%release, error = refusal::chain(&error), "no seal holds; measuring in full");
                self.seal(release)
            }
        }
    }

    /// The releases whose trees are on disk and whose manifests are known, sorted.
    pub(crate) fn inventory(&self) -> Vec<Digest> {
        match self.list() {
            Ok(found) => found,
            Err(error) => {
                let (releases, error) = (self.releases.display(), refusal::chain(&error));
                tracing::warn!(%releases, error, "cannot list the deployed releases");
                Vec::new()
            }
        }
    }

    /// The least that measurements of these releases are worth, as far as it is known.
    pub(crate) fn least_assurance(&self, releases: &[Digest]) -> Option<v1::Assurance> {
        self.assurances.least(releases, |release| self.seal_path(release))
    }

    /// Whether there is something where a release's tree would be.
    pub(crate) fn has_tree(&self, release: Digest) -> bool {
        self.tree(release).symlink_metadata().is_ok()
    }

    /// A release's manifest, verified by its digest.
    pub(crate) fn manifest(&self, release: Digest) -> Result<Manifest, Refusal> {
        let bytes = self.manifest_bytes(release).map_err(|error| {
            if !matches!(error, ArtifactError::BlobMissing { .. }) {
                return self.refuse(&error);
            }
            match self.tree(release).symlink_metadata() {
                Err(none) if none.kind() == io::ErrorKind::NotFound => {
                    let detail = format!("{release} was never deployed here");
                    refusal::at(&self.host, Code::NotDeployed, detail)
                }
                // Nothing is known of the tree, least of all that it is wrong.
                Ok(_) | Err(_) => {
                    let detail =
                        format!("the manifest of {release} is missing here; `muster deploy` brings it back");
                    refusal::at(&self.host, Code::Unmeasurable, detail)
                }
            }
        })?;
        Manifest::parse(&bytes).map_err(|error| {
            let detail = format!("the manifest {release}: {}", refusal::chain(&error));
            refusal::at(&self.host, Code::Unmeasurable, detail)
        })
    }

    /// The bytes of a manifest, verified by its digest.
    pub(crate) fn manifest_bytes(&self, release: Digest) -> Result<Vec<u8>, ArtifactError> {
        self.blobs.read_whole(release, MAX_MANIFEST_BYTES)
    }

    fn accept(
        &self,
        release: Digest,
        measurement: &Measurement,
        begun: BootTime,
    ) -> Result<Measured, Refusal> {
        if let Some(refusal) = refusal::of_measurement(&self.host, measurement) {
            return Err(refusal);
        }
        let compared = Comparable {
            manifest: release,
            measured: measurement.digest,
            files: measurement.files,
            bytes: measurement.bytes,
            uniform: measurement.uniform,
        };
        self.assurances.note(release, &measurement.assured);
        let assurance = assurance::level(&measurement.assured);
        Ok(Measured { assurance, ..self.measured(compared, begun) })
    }

    /// What was measured from `begun` until now, by reading and hashing it.
    pub(crate) fn measured(&self, compared: Comparable, begun: BootTime) -> Measured {
        let elapsed = self.machine.boot_time().since(begun);
        Measured {
            compared,
            clock_error_ms: None,
            assurance: Assurance::Sha256,
            at: self.machine.unix_time(),
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn list(&self) -> Result<Vec<Digest>, ArtifactError> {
        let failed = |source| ArtifactError::Io { doing: "list", path: self.releases.clone(), source };
        let entries = match fs::read_dir(&self.releases) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some(release) = name.to_str().and_then(|hex| Digest::from_hex(hex).ok()) else { continue };
            if self.blobs.contains(release, None)? {
                found.push(release);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn refuse(&self, error: &ArtifactError) -> Refusal {
        refusal::of_artifact(&self.host, error)
    }

    fn options(&self) -> MeasureOptions {
        MeasureOptions { jobs: self.jobs, bytes_per_second_max: None, verity: self.assurances.verity() }
    }

    /// Where a release's tree is.
    pub(crate) fn tree(&self, release: Digest) -> PathBuf {
        self.releases.join(release.hex())
    }

    fn seal_path(&self, release: Digest) -> PathBuf {
        self.seals.join(release.hex())
    }
}

/// Runs `work` on a thread that may block, when `lane` has room. A panic in it is a refusal: whatever it was to say
/// is not known.
pub(crate) async fn in_lane<T: Send + 'static>(
    lane: &Arc<Semaphore>,
    machine: &Machine,
    host: &HostName,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let permit = Arc::clone(lane).acquire_owned().await.expect("lanes are never closed");
    on_thread(machine, host, move || {
        let outcome = work();
        drop(permit);
        outcome
    })
    .await
}

/// Runs `work` on a thread that may block.
pub(crate) async fn on_thread<T: Send + 'static>(
    machine: &Machine,
    host: &HostName,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match machine.run_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(refusal::at(host, Code::Unmeasurable, format!("the work failed: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use muster_artifact::{Durability, InstallOptions, OutsideLinks, PackOptions, install, pack};
    use muster_model::TreeRules;

    use super::*;
    use crate::Verity;

    fn deployed(folder: &Path) -> (Trees, Digest) {
        deployed_with(folder, Verity::Auto)
    }

    fn deployed_with(folder: &Path, verity: Verity) -> (Trees, Digest) {
        let source = folder.join("source");
        fs::create_dir_all(source.join("bin")).unwrap();
        fs::write(source.join("bin/server"), "content").unwrap();
        for (path, mode) in [("bin", 0o755), ("bin/server", 0o755)] {
            fs::set_permissions(source.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        let one = NonZeroUsize::MIN;
        let outside_links = OutsideLinks::Warn;
        let options = PackOptions { rules: TreeRules::default(), outside_links, jobs: one };
        let packed = pack(&source, &options, &Progress::default()).unwrap();
        let trees = Trees {
            host: HostName::new("host-1").unwrap(),
            machine: Machine::real(),
            blobs: BlobStore::open(&folder.join("blobs")).unwrap(),
            releases: folder.join("releases"),
            seals: folder.join("seals"),
            assurances: Assurances::of_folder(folder, verity),
            clock_error: ClockError::Unknown,
            adopted: None,
            jobs: one,
        };
        fs::create_dir(&trees.seals).unwrap();
        trees.blobs.import_file(&source.join("bin/server")).unwrap();
        let bytes = packed.manifest.to_bytes();
        let release = packed.manifest.digest();
        let mut writer = trees.blobs.writer(release, bytes.len() as u64, Durability::Each).unwrap();
        writer.write(&bytes).unwrap();
        writer.finish().unwrap();
        let options = InstallOptions { jobs: one, owner: None, verity: verity.to_use() };
        install(&trees.blobs, &packed.manifest, &trees.releases, &options, &Progress::default()).unwrap();
        (trees, release)
    }

    #[test]
    fn what_is_attested_says_what_it_is_worth_and_is_refused_where_that_is_too_little() {
        let folder = tempfile::tempdir().unwrap();
        let (trees, release) = deployed_with(folder.path(), Verity::Off);
        assert_eq!(trees.measure_to_attest(release).unwrap().assurance, Assurance::Sha256);
        assert_eq!(trees.least_assurance(&[release]).unwrap().reason, "fs-verity is switched off here");
        // What was installed without is not sealed, whatever the file system has.
        let assurances = Assurances::of_folder(folder.path(), Verity::Require);
        let trees = Trees { assurances, ..trees };
        assert_eq!(trees.measure_to_attest(release).unwrap_err().code(), Some(Code::NotAssured));
        trees.measure(release).expect("what is served already goes on");
        trees.measure_to_admit(release).expect("and is admitted");
    }

    #[test]
    fn what_is_deployed_is_measured_sealed_and_listed() {
        let folder = tempfile::tempdir().unwrap();
        let (trees, release) = deployed(folder.path());
        let measured = trees.measure(release).unwrap();
        assert_eq!((measured.compared.manifest, measured.compared.measured), (release, release));
        assert_eq!((measured.compared.files, measured.compared.bytes), (1, 7));
        trees.seal(release).unwrap();
        trees.check_seal(release, BrokenSeal::Measures).unwrap();
        assert_eq!(trees.inventory(), [release]);
    }

    #[test]
    fn what_is_admitted_is_sealed_so_that_its_start_reads_no_byte_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (trees, release) = deployed(folder.path());
        assert_eq!(trees.measure_to_admit(release).unwrap().compared.measured, release);
        trees.check_seal(release, BrokenSeal::Refuses).unwrap();
        // A full disk, say.
        fs::remove_dir_all(&trees.seals).unwrap();
        trees.measure_to_admit(release).unwrap();
        fs::write(trees.tree(release).join("bin/server"), "tampered").unwrap();
        assert_eq!(trees.measure_to_admit(release).unwrap_err().code(), Some(Code::Mismatch));
    }

    #[test]
    fn of_what_runs_here_only_the_newest_manifest_is_kept_beside_those_of_releases() {
        let folder = tempfile::tempdir().unwrap();
        let (trees, release) = deployed(folder.path());
        let source = folder.path().join("source");
        let trees = Trees { adopted: Some(Adopted::new(source.clone(), Vec::new())), ..trees };
        let measured = |content: &str| {
            fs::write(source.join("bin/server"), content).unwrap();
            trees.measure_adopted().unwrap().compared.manifest
        };
        assert_eq!(measured("content"), release);
        let (older, newest) = (measured("patched"), measured("patched again"));
        assert_eq!(measured("patched again"), newest);
        for (manifest, is_kept) in [(release, true), (older, false), (newest, true)] {
            assert_eq!(trees.blobs.contains(manifest, None).unwrap(), is_kept);
        }
    }

    #[test]
    fn only_bytes_decide_where_the_seal_does_not_hold() {
        let folder = tempfile::tempdir().unwrap();
        let (trees, release) = deployed(folder.path());
        // No seal at all, a damaged one, and one that a harmless change has broken.
        trees.check_seal(release, BrokenSeal::Measures).unwrap();
        fs::write(trees.seal_path(release), "nonsense").unwrap();
        trees.check_seal(release, BrokenSeal::Measures).unwrap();
        let file = trees.tree(release).join("bin/server");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        trees.check_seal(release, BrokenSeal::Measures).unwrap();

        fs::write(&file, "tampered").unwrap();
        let refusal = trees.check_seal(release, BrokenSeal::Measures).unwrap_err();
        assert_eq!(refusal.code(), Some(Code::Mismatch));
        assert_eq!(refusal.blockers[0].path.as_deref(), Some("bin/server"));
        let refusal = trees.check_seal(release, BrokenSeal::Refuses).unwrap_err();
        assert_eq!(refusal.code(), Some(Code::SealBroken));
        assert_eq!(trees.measure(release).unwrap_err().code(), Some(Code::Mismatch));
    }

    #[test]
    fn a_release_without_manifest_or_tree_is_not_deployed() {
        let folder = tempfile::tempdir().unwrap();
        let (trees, release) = deployed(folder.path());
        let unknown = Digest::of(b"never heard of");
        assert_eq!(trees.measure(unknown).unwrap_err().code(), Some(Code::NotDeployed));
        fs::create_dir(trees.tree(unknown)).unwrap();
        assert_eq!(
            trees.measure(unknown).unwrap_err().code(),
            Some(Code::Unmeasurable),
            "nothing is known of it"
        );
        assert_eq!(trees.inventory(), [release]);
        fs::remove_dir_all(trees.tree(release)).unwrap();
        assert_eq!(trees.measure(release).unwrap_err().code(), Some(Code::NotDeployed));
        assert!(trees.inventory().is_empty());
    }
}
