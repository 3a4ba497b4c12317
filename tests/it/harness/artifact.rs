//! Trees to release.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;

/// A tree in a folder of its own.
#[derive(Debug)]
pub(crate) struct Artifact {
    folder: TempDir,
}

/// A tree with these files. Those below `bin/` can be executed.
pub(crate) fn artifact(files: &[(&str, &str)]) -> Artifact {
    let artifact = Artifact { folder: tempfile::tempdir().unwrap() };
    for (path, text) in files {
        artifact.write(path, text);
    }
    artifact
}

/// A small tree of this version, like no other version's.
pub(crate) fn versioned(version: &str) -> Artifact {
    artifact(&[("bin/smars", version), ("VERSION", version)])
}

impl Artifact {
    /// The tree's folder.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The tree's folder as an argument.
    pub(crate) fn argument(&self) -> &str {
        self.path().to_str().unwrap()
    }

    /// Writes a file, and the folders it is in. Modes do not depend on who runs the test.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let file = self.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        for folder in file.ancestors().skip(1).take_while(|folder| *folder != self.path()) {
            fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(&file, text).unwrap();
        let mode = if path.starts_with("bin/") { 0o755 } else { 0o644 };
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    }
}
