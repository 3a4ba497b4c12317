//! What the tests of several modules build on: real folders, real files.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use muster_model::{EntryPath, HostPath, Manifest, TreeRules};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{
    ArtifactError, BlobStore, Durability, InstallOptions, Installed, MeasureOptions, Measurement,
    OutsideLinks, PackOptions, Packed, Progress, VerityUse, install, measure, pack,
};

pub(crate) const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();
pub(crate) const MEASURING: MeasureOptions =
    MeasureOptions { jobs: TWO, bytes_per_second_max: None, verity: VerityUse::WherePossible };
pub(crate) const INSTALLING: InstallOptions =
    InstallOptions { jobs: TWO, owner: None, verity: VerityUse::WherePossible };

/// A folder with a source tree, a blob store and a folder of releases.
pub(crate) struct Sandbox {
    pub(crate) dir: TempDir,
    pub(crate) store: BlobStore,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(&dir.path().join("blobs")).expect("a store");
        fs::create_dir(dir.path().join("src")).expect("a folder");
        Self { dir, store }
    }

    /// With a tree that has some of everything.
    pub(crate) fn with_tree() -> Self {
        let sandbox = Self::new();
        sandbox.folder("bin", 0o755);
        sandbox.file("bin/server", 0o755, b"the server");
        sandbox.link("bin/run", "server");
        sandbox.folder("lib", 0o755);
        sandbox.folder("lib/deep", 0o750);
        sandbox.file("lib/deep/data", 0o640, &vec![7; 300_000]);
        sandbox.file("lib/empty", 0o644, b"");
        sandbox.link("lib/up", "../bin");
        sandbox
    }

    pub(crate) fn src(&self) -> PathBuf {
        self.dir.path().join("src")
    }

    pub(crate) fn releases(&self) -> PathBuf {
        self.dir.path().join("releases")
    }

    pub(crate) fn folder(&self, path: &str, mode: u32) {
        fs::create_dir(self.src().join(path)).expect("a folder");
        chmod(&self.src().join(path), mode);
    }

    pub(crate) fn file(&self, path: &str, mode: u32, content: &[u8]) {
        fs::write(self.src().join(path), content).expect("a file");
        chmod(&self.src().join(path), mode);
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        symlink(target, self.src().join(path)).expect("a symlink");
    }

    pub(crate) fn try_pack(&self, rules: TreeRules) -> Result<Packed, ArtifactError> {
        let options = PackOptions { rules, outside_links: OutsideLinks::Warn, jobs: TWO };
        pack(&self.src(), &options, &Progress::default())
    }

    pub(crate) fn pack(&self, rules: TreeRules) -> Manifest {
        self.try_pack(rules).expect("a packed tree").manifest
    }

    /// Puts the bytes of all files of the source tree into the store.
    pub(crate) fn fill(&self, manifest: &Manifest) {
        for (path, size, digest) in manifest.files() {
            let mut writer = self.store.writer(digest, size, Durability::Batch).expect("a writer");
            writer.write(&fs::read(at(&self.src(), path)).expect("a file")).expect("written");
            writer.finish().expect("the blob");
        }
    }

    pub(crate) fn try_install(&self, manifest: &Manifest) -> Result<Installed, ArtifactError> {
        install(&self.store, manifest, &self.releases(), &INSTALLING, &Progress::default())
    }

    pub(crate) fn install(&self, manifest: &Manifest) -> Installed {
        self.fill(manifest);
        self.try_install(manifest).expect("an installed tree")
    }

    /// What lies in the folder of releases besides releases.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.releases()).into_iter().flatten();
        let names = names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with('.')).collect()
    }
}

pub(crate) fn measured(tree: &Path, manifest: &Manifest) -> Measurement {
    measure(tree, manifest, &MEASURING, &Progress::default()).expect("a measurement")
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
}

pub(crate) fn at(tree: &Path, path: &EntryPath) -> PathBuf {
    tree.join(OsStr::from_bytes(path.as_bytes()))
}

pub(crate) fn path(text: &str) -> EntryPath {
    EntryPath::from_text(text).expect("a path")
}

pub(crate) fn host(path: &Path) -> HostPath {
    HostPath::from_bytes(path.as_os_str().as_bytes()).expect("a path")
}

pub(crate) fn mutable(paths: &[&str]) -> TreeRules {
    TreeRules { mutable: paths.iter().map(|text| path(text)).collect(), ..TreeRules::default() }
}

/// One thing to put into a random tree: where (an index into the folders so far), under which name, and what.
#[derive(Debug, Clone)]
pub(crate) enum Seed {
    Dir(u32),
    File(u32, Vec<u8>),
    Symlink(Vec<u8>),
}

pub(crate) fn seeds() -> impl Strategy<Value = Vec<(prop::sample::Index, Vec<u8>, Seed)>> {
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/' | b'.') { b'_' } else { byte });
    let name = proptest::collection::vec(byte, 1..8);
    let seed = prop_oneof![
        (0o700..=0o777_u32).prop_map(Seed::Dir),
        (0o400..=0o777_u32, proptest::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(mode, content)| Seed::File(mode | 0o400, content)),
        proptest::collection::vec(1..=255_u8, 1..12).prop_map(Seed::Symlink),
    ];
    proptest::collection::vec((any::<prop::sample::Index>(), name, seed), 1..20)
}

/// Makes a tree of seeds; what collides is left out.
pub(crate) fn grow(root: &Path, seeds: &[(prop::sample::Index, Vec<u8>, Seed)]) {
    let mut folders = vec![root.to_owned()];
    for (parent, name, seed) in seeds {
        let place = parent.get(&folders).join(OsStr::from_bytes(name));
        if fs::symlink_metadata(&place).is_ok() {
            continue;
        }
        match seed {
            Seed::Dir(mode) => {
                fs::create_dir(&place).expect("a folder");
                chmod(&place, *mode);
                folders.push(place);
            }
            Seed::File(mode, content) => {
                fs::write(&place, content).expect("a file");
                chmod(&place, *mode);
            }
            Seed::Symlink(target) => symlink(OsStr::from_bytes(target), &place).expect("a symlink"),
        }
    }
}
