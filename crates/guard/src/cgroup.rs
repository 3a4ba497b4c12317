//! A control group of its own for each run of a service, where this guard may make one (cgroup v2).
//!
//! The kernel kills such a group as a whole, forks included, and says when it is empty. It is made below the guard's own
//! group, so a unit needs `Delegate=yes` for it; where it cannot be made, the run is found by its keeper instead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::log::log;

/// One control group.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a group for one run; `None` where there are no such groups for this guard.
    pub(crate) fn make(run_id: &str) -> Option<Self> {
        let path = own_group()?.join(format!("muster-{run_id}"));
        fs::create_dir(&path).ok()?;
        let group = Self { path };
        // Kernels before 5.14 cannot kill a group; a group without that is of no use here.
        if group.path.join("cgroup.kill").exists() {
            return Some(group);
        }
        group.remove();
        None
    }

    /// A group that was made before.
    pub(crate) const fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves this process into the group.
    pub(crate) fn join(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), "0")
    }

    /// Moves this process, the last in the group, back to where it came from, and removes the group.
    pub(crate) fn leave(&self) {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        // A group that cannot be left stays, empty, until the guard or the machine is started again.
        if fs::write(parent.join("cgroup.procs"), "0").is_ok() {
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// Kills every process in the group. One that is gone has none.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if !is_gone(&error) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether a process is left in the group. What cannot be told is taken for yes.
    pub(crate) fn is_populated(&self) -> bool {
        match fs::read_to_string(self.path.join("cgroup.events")) {
            Ok(events) => !events.lines().any(|line| line == "populated 0"),
            Err(error) => !is_gone(&error),
        }
    }

    pub(crate) fn remove(&self) {
        match fs::remove_dir(&self.path) {
            Err(error) if !is_gone(&error) => log!("cannot remove {}: {error}", self.path.display()),
            Ok(()) | Err(_) => {}
        }
    }
}

/// A group that is removed while a file of it is open answers `ENODEV`.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// Where the unified hierarchy is mounted, seen from its root.
pub(crate) fn unified_root() -> Option<PathBuf> {
    folder_of("0::/", &fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The folder of this process's own group in the unified hierarchy.
fn own_group() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    folder_of(&own, &mounts)
}

/// `0::/path` names the group; the mount is the one of type `cgroup2` that shows the hierarchy from its root.
fn folder_of(own: &str, mounts: &str) -> Option<PathBuf> {
    let group = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        (root == "/" && kind.starts_with("cgroup2 ")).then_some(mount)
    })?;
    Some(Path::new(mount).join(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "24 30 0:22 / /proc rw - proc proc rw\n\
        35 24 0:30 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw\n\
        36 35 0:31 /sub /sys/fs/other rw shared:4 - cgroup2 cgroup2 rw\n\
        37 35 0:31 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_own_group_is_found_in_either_layout() {
        let hybrid = "9:name=systemd:/x\n0::/system.slice/guard.service\n";
        let folder = Path::new("/sys/fs/cgroup/unified");
        assert_eq!(folder_of(hybrid, MOUNTS), Some(folder.join("system.slice/guard.service")));
        assert_eq!(folder_of("0::/\n", MOUNTS), Some(folder.to_owned()));
        assert_eq!(folder_of("4:memory:/x\n", MOUNTS), None);
        assert_eq!(folder_of(hybrid, "24 30 0:22 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn a_group_that_is_gone_is_empty_and_killed() {
        let folder = tempfile::tempdir().unwrap();
        let gone = Cgroup::at(folder.path().join("gone"));
        gone.kill().unwrap();
        assert!(!gone.is_populated());
        gone.remove();
        fs::write(folder.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        assert!(Cgroup::at(folder.path().to_owned()).is_populated());
        fs::write(folder.path().join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
        assert!(!Cgroup::at(folder.path().to_owned()).is_populated());
    }
}
