//! The units' control groups: what a fence kills without asking anybody.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::cgroup::{Cgroup, unified_root};
use crate::error::GuardError;

/// How often a group is looked at while it empties.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Groups within groups, as services with delegation have them.
const DEPTH_MAX: u32 = 16;

/// The place of a group that systemd tells, in the file system.
pub(super) fn folder(group: &str) -> Option<PathBuf> {
    // It comes from systemd, but it is a path that is written to.
    let relative = group.strip_prefix('/')?;
    let plain = !relative.is_empty() && relative.split('/').all(|name| !matches!(name, "" | "." | ".."));
    plain.then(|| unified_root().map(|root| root.join(relative)))?
}

/// Whether a process is left in any of them. What cannot be told is taken for yes.
pub(super) fn populated(groups: &[PathBuf]) -> bool {
    groups.iter().any(|group| Cgroup::at(group.clone()).is_populated())
}

/// The processes in the groups, and in those below them.
pub(super) fn members(groups: &[PathBuf]) -> Result<Vec<i32>, GuardError> {
    let mut found = Vec::new();
    let mut left: Vec<(PathBuf, u32)> = groups.iter().map(|group| (group.clone(), 0)).collect();
    while let Some((group, depth)) = left.pop() {
        let file = group.join("cgroup.procs");
        match fs::read_to_string(&file) {
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            // A threaded group lists its processes above, and one that is gone has none.
            Err(error) if is_empty(&error) => continue,
            Err(error) => return Err(GuardError::io("read", &file)(error)),
        }
        if depth == DEPTH_MAX {
            return Err(GuardError::OutOfBounds { detail: format!("{} nests too deep", group.display()) });
        }
        let below = fs::read_dir(&group).map_err(GuardError::io("list", &group))?;
        let folders = below.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        left.extend(folders.map(|entry| (entry.path(), depth + 1)));
    }
    found.sort_unstable();
    Ok(found)
}

fn is_empty(error: &io::Error) -> bool {
    let codes = [rustix::io::Errno::NODEV, rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::NOENT];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// Kills what is in the groups, and goes on until they are empty and `busy` says that nothing more may come.
pub(super) fn kill(groups: &[PathBuf], patience: Duration, busy: &dyn Fn() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    loop {
        let mut problem = String::new();
        // Asked before the groups are looked at: what comes to be afterwards is in them.
        let busy = busy();
        for group in groups {
            if let Err(error) = Cgroup::at(group.clone()).kill() {
                problem = format!(" (cannot kill {}: {error})", group.display());
            }
        }
        if !populated(groups) && !busy {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let what = if busy { "systemd is still starting it" } else { "processes of it are alive" };
            return Err(format!("{what}{problem}"));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Why a host cannot have the driver `systemd`.
pub(super) fn unsupported() -> Option<GuardError> {
    let detail = match unified_root() {
        None => "this host has no unified control groups (cgroup v2), which a fence needs",
        Some(root) if !root.join("init.scope/cgroup.kill").exists() => {
            "this kernel cannot kill a control group (5.14 can), which a fence needs"
        }
        Some(_) => return None,
    };
    Some(GuardError::Config { detail: detail.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_below_the_root_are_groups() {
        for bad in ["", "/", "relative", "/a/../b", "/a//b", "/./a"] {
            assert_eq!(folder(bad), None, "{bad}");
        }
        if let Some(root) = unified_root() {
            assert_eq!(folder("/system.slice/a.service"), Some(root.join("system.slice/a.service")));
        }
    }

    #[test]
    fn what_may_still_come_is_waited_for() {
        let patience = Duration::from_millis(20);
        assert!(kill(&[], patience, &|| false).is_ok());
        assert!(kill(&[], patience, &|| true).unwrap_err().contains("still starting"));
    }
}
