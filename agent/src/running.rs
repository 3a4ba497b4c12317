//! What the processes of a service execute, compared with the release that they are to serve.
//!
//! A flip is settled on what runs, not on what lies on the disk: a process that outlived the flip, one whose executable was replaced under
//! it, or one that was started by somebody else serves other bytes than its host attests.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use muster_guard::{Guard, Running, RunningFile, RunningGroup};
use muster_model::{
    Blocker, BootTime, Code, Digest, EntryKind, ExternalCheck, FleetName, HostName, HostPath, Manifest,
    Refusal,
};

use crate::measure::Trees;
use crate::refusal;

/// How often it is looked again: a service may still be starting or ending a helper.
const LOOKS: u32 = 5;
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The kernel tells the start of a process to 10 ms.
const TICK: Duration = Duration::from_millis(10);

/// More than these are not told one by one.
const BLOCKERS_MAX: usize = 8;

/// What a file is to the process that executes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Executable,
    Library,
}

/// A release and where it lies, as a process sees it.
struct Expected<'a> {
    host: &'a HostName,
    manifest: &'a Manifest,
    /// The folder of all releases, without symbolic links.
    releases: &'a Path,
    /// The folder of this one.
    tree: &'a Path,
}

/// Looks at the service's processes, and refuses what is not of the release. The call blocks.
pub(crate) fn check(
    guard: &Arc<dyn Guard>,
    fleet: &FleetName,
    trees: &Trees,
    release: Digest,
) -> Result<(), Refusal> {
    let manifest = trees.manifest(release)?;
    let releases = trees.releases.canonicalize().unwrap_or_else(|_| trees.releases.clone());
    let tree = releases.join(release.hex());
    let expected = Expected { host: &trees.host, manifest: &manifest, releases: &releases, tree: &tree };
    let mut look = 1;
    loop {
        let running = guard.running(fleet).map_err(|error| refusal::of_guard(&trees.host, &error))?;
        let Some(running) = running else { return Ok(()) };
        let blockers = expected.compare(&running);
        if blockers.is_empty() {
            return Ok(());
        }
        if look == LOOKS {
            return Err(Refusal { blockers });
        }
        look += 1;
        thread::sleep(LOOK_INTERVAL);
    }
}

impl Expected<'_> {
    fn compare(&self, running: &Running) -> Vec<Blocker> {
        if running.groups.is_empty() {
            // Nothing runs wrongly: it has ended, or is about to be started again.
            return vec![Blocker::host(Code::StartFailed, self.host, "the service has no process")];
        }
        let mut problems = Vec::new();
        for main in &running.mains {
            let file = main.exe.map(|at| running.files.get(at));
            problems.extend(match file {
                None => Some(format!("the main process {} is not one of the service's", main.pid)),
                // What the guard starts is a command of root's local file, in the release's folder: a script, say.
                Some(_) if running.by_guard => None,
                Some(file) => file.filter(|file| !self.is_named(file)).map(|file| {
                    let (pid, path) = (main.pid, &file.path);
                    format!("the main process {pid} is {path}, which is neither of the release nor named by it (`external`)")
                }),
            });
        }
        for group in &running.groups {
            let who = format!("process {}", group.pid);
            problems.extend(too_old(group, running.opened_boot_ms).map(|why| format!("{who} {why}")));
            let file = |at: &usize| running.files.get(*at);
            let exe = file(&group.exe).and_then(|file| self.wrong(file, Part::Executable));
            let mapped =
                group.mapped.iter().filter_map(file).filter_map(|file| self.wrong(file, Part::Library));
            problems.extend(exe.into_iter().chain(mapped).map(|why| format!("{who} executes {why}")));
        }
        let unnamed = problems.len().saturating_sub(BLOCKERS_MAX);
        let mut blockers: Vec<_> = problems
            .into_iter()
            .take(BLOCKERS_MAX)
            .map(|detail| Blocker::host(Code::WrongProcess, self.host, detail))
            .collect();
        if let (Some(last), true) = (blockers.last_mut(), unnamed > 0) {
            last.detail.push_str(&format!("; {unnamed} more are not listed"));
        }
        blockers
    }

    /// P8: a main process is of the release, or a runtime that the release names.
    fn is_named(&self, file: &RunningFile) -> bool {
        let at = Path::new(&file.path);
        at.starts_with(self.tree)
            || self.manifest.rules().external.iter().any(|external| match external.check {
                ExternalCheck::Digest { digest } => Some(digest) == file.digest,
                ExternalCheck::Uniform | ExternalCheck::Present => is_at(&external.path, at),
            })
    }

    /// What is wrong with a file that a process executes. Programs and libraries outside of all releases are the system's,
    /// unless the release names them; that the system has upgraded a library under a service is its ordinary life.
    fn wrong(&self, file: &RunningFile, part: Part) -> Option<String> {
        let RunningFile { path, digest, deleted } = file;
        let at = Path::new(path);
        if *deleted && (part == Part::Executable || at.starts_with(self.releases)) {
            return Some(format!("{path}, which was removed or replaced since it was started"));
        }
        if let Ok(within) = at.strip_prefix(self.tree) {
            let listed = self.manifest.entries().iter().any(|entry| {
                OsStr::from_bytes(entry.path.as_bytes()) == within
                    && matches!(&entry.kind, EntryKind::File { digest: listed, .. } if Some(*listed) == *digest)
            });
            return (!listed).then(|| format!("{path}, which is not as the release has it"));
        }
        if let Ok(within) = at.strip_prefix(self.releases) {
            return Some(format!("{} of another release", within.display()));
        }
        self.manifest.rules().external.iter().find_map(|external| match external.check {
            ExternalCheck::Digest { digest: named } => (is_at(&external.path, at) && Some(named) != *digest)
                .then(|| format!("another {path} than the release names")),
            ExternalCheck::Uniform | ExternalCheck::Present => None,
        })
    }
}

/// Whether a path leads there, as it is written or with its symbolic links followed.
fn is_at(path: &HostPath, at: &Path) -> bool {
    let bytes = path.to_bytes();
    let path = Path::new(OsStr::from_bytes(&bytes));
    path == at || path.canonicalize().is_ok_and(|path| path == at)
}

fn too_old(group: &RunningGroup, opened: Option<BootTime>) -> Option<String> {
    let opened = opened?;
    let started = group.first_started_boot_ms;
    (started.after(TICK) < opened)
        .then(|| format!("was started {} ms before the service was", opened.since(started).as_millis()))
}

#[cfg(test)]
mod tests {
    use muster_guard::RunningMain;
    use muster_model::{Entry, EntryPath, External, Mode, TreeRules};

    use super::*;

    const RELEASES: &str = "/var/lib/muster/fleets/web/releases";

    fn program() -> Digest {
        Digest::of(b"program")
    }

    fn manifest() -> Manifest {
        let kind = EntryKind::File { mode: Mode::new(0o755).unwrap(), size: 7, digest: program() };
        let entry = Entry { path: "bin/web".parse::<EntryPath>().unwrap(), kind };
        let folder = Entry {
            path: "bin".parse::<EntryPath>().unwrap(),
            kind: EntryKind::Dir { mode: Mode::new(0o755).unwrap() },
        };
        let runtime = External {
            path: "/proc/self/exe".parse::<HostPath>().unwrap(),
            check: ExternalCheck::Digest { digest: Digest::of(b"runtime") },
        };
        let rules = TreeRules { external: vec![runtime], ..TreeRules::default() };
        Manifest::new(vec![folder, entry], rules).unwrap()
    }

    fn running(path: &str, digest: Option<Digest>, deleted: bool) -> Running {
        Running {
            by_guard: false,
            mains: Vec::new(),
            opened_boot_ms: Some(BootTime(1_000)),
            groups: vec![RunningGroup {
                exe: 0,
                mapped: Vec::new(),
                processes: 1,
                pid: 7,
                first_started_boot_ms: BootTime(995),
            }],
            files: vec![RunningFile { path: path.to_owned(), digest, deleted }],
        }
    }

    fn compare(running: &Running) -> String {
        let (manifest, releases) = (manifest(), Path::new(RELEASES));
        let tree = releases.join("new");
        let host = HostName::new("host-1").unwrap();
        let expected = Expected { host: &host, manifest: &manifest, releases, tree: &tree };
        let blockers = expected.compare(running);
        // What does not run at all runs nothing wrong.
        let code = if running.groups.is_empty() { Code::StartFailed } else { Code::WrongProcess };
        assert!(blockers.iter().all(|blocker| blocker.code == code));
        blockers.into_iter().map(|blocker| blocker.detail).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn p8_only_what_the_release_lists_may_run_from_a_release() {
        let new = format!("{RELEASES}/new/bin/web");
        assert_eq!(compare(&running(&new, Some(program()), false)), "");
        assert_eq!(compare(&running("/usr/bin/python3.11", Some(Digest::of(b"python")), false)), "");
        for (path, digest, deleted, why) in [
            (new.clone(), Some(Digest::of(b"other")), false, "not as the release has it"),
            (format!("{RELEASES}/new/bin/extra"), Some(program()), false, "not as the release has it"),
            (format!("{RELEASES}/old/bin/web"), Some(program()), false, "old/bin/web of another release"),
            (new, Some(program()), true, "removed or replaced"),
            ("/usr/bin/python3.11".to_owned(), None, true, "removed or replaced"),
        ] {
            let told = compare(&running(&path, digest, deleted));
            assert!(told.contains(why), "{path}: {told}");
        }
    }

    #[test]
    fn p8_a_main_process_is_of_the_release_or_named_by_it() {
        let with_main = |path: &str, digest: &[u8]| {
            let mut found = running(path, Some(Digest::of(digest)), false);
            found.mains = vec![RunningMain { pid: 7, exe: Some(0) }];
            compare(&found)
        };
        assert_eq!(with_main(&format!("{RELEASES}/new/bin/web"), b"program"), "");
        assert_eq!(with_main("/usr/bin/named-runtime", b"runtime"), "");
        for old in ["/opt/shop-old/bin/shop", "/tmp/web", "/usr/bin/python3.11"] {
            assert!(with_main(old, b"old").contains("neither of the release nor named by it"), "{old}");
        }
        assert!(
            with_main("/tmp/web", b"program").contains("neither"),
            "a copy elsewhere is none of the release"
        );
        let mut script = running("/usr/bin/dash", Some(Digest::of(b"dash")), false);
        script.by_guard = true;
        script.mains = vec![RunningMain { pid: 7, exe: Some(0) }];
        assert_eq!(compare(&script), "", "the guard has started a script of the release");
    }

    #[test]
    fn a_library_that_the_system_upgrades_under_a_service_is_no_alarm() {
        let mut found = running(&format!("{RELEASES}/new/bin/web"), Some(program()), false);
        let mut map = |path: &str| {
            found.groups[0].mapped = vec![1];
            found.files.truncate(1);
            found.files.push(RunningFile { path: path.to_owned(), digest: None, deleted: true });
            compare(&found)
        };
        assert_eq!(map("/usr/lib/x86_64-linux-gnu/libc.so.6"), "");
        assert!(map(&format!("{RELEASES}/new/lib/own.so")).contains("removed or replaced"));
    }

    #[test]
    fn a_runtime_that_the_release_names_is_that_one() {
        let own = std::env::current_exe().unwrap().canonicalize().unwrap();
        let own = own.to_str().unwrap();
        assert_eq!(compare(&running(own, Some(Digest::of(b"runtime")), false)), "");
        let told = compare(&running(own, Some(Digest::of(b"another")), false));
        assert!(told.contains("than the release names"), "{told}");
    }

    #[test]
    fn a_process_that_outlived_the_flip_is_told() {
        let path = format!("{RELEASES}/new/bin/web");
        let mut found = running(&path, Some(program()), false);
        found.groups[0].first_started_boot_ms = BootTime(900);
        assert_eq!(compare(&found), "process 7 was started 100 ms before the service was");
        found.opened_boot_ms = None;
        assert_eq!(compare(&found), "", "an earlier guard opened it");
        found.mains = vec![RunningMain { pid: 9, exe: None }];
        assert!(compare(&found).contains("the main process 9 is not one of the service's"));
        found.groups.clear();
        assert_eq!(compare(&found), "the service has no process");
    }
}
