//! A small disk of its own for some folder, which can be filled up and emptied.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A file system of a few MiB in memory, mounted over a folder for as long as this lives.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts one over a folder and copies into it what was there. Nobody may be using the folder.
    pub(crate) fn over(folder: &Path, size: &CStr) -> Self {
        let copy = |from: &Path, to: &Path| {
            let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
            assert!(copied.success(), "cannot copy {}", from.display());
        };
        let kept = tempfile::tempdir().unwrap();
        copy(folder, kept.path());
        mount("tmpfs", folder, "tmpfs", MountFlags::empty(), size).unwrap();
        let disk = Self { folder: folder.to_owned() };
        copy(kept.path(), folder);
        disk
    }

    /// Writes until nothing more can be written.
    pub(crate) fn fill(&self) {
        static PART: [u8; 64 << 10] = [0; 64 << 10];
        let mut file = File::create(self.filler()).unwrap();
        for part in [PART.as_slice(), &PART[..4096], &PART[..1]] {
            let error = loop {
                if let Err(error) = file.write_all(part) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{}", self.folder.display());
        }
    }

    /// Makes room again.
    pub(crate) fn empty(&self) {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", self.folder.display()),
            Ok(()) | Err(_) => {}
        }
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.folder, UnmountFlags::DETACH);
    }
}
