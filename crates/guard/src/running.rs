//! What really runs: the processes of a service, and the bytes of what they execute.
//!
//! A file is read through the process that executes it (`/proc/PID/exe`), so that one which was replaced or removed on the disk
//! after it was started is not taken for what lies there now. What it means is not decided here: the agent knows the release.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use muster_model::{BootTime, Digest};
use sha2::{Digest as _, Sha256};

use crate::error::GuardError;
use crate::process;
use crate::protocol::{Running, RunningFile, RunningGroup};

/// More processes than this are not looked at one by one.
const PROCESSES_MAX: usize = 4096;

/// What fits into an answer, by and large: paths, with what is said beside each, and places of files in groups.
const ANSWER_BYTES_MAX: usize = 48 * 1024;
const BYTES_BESIDE_A_PATH: usize = 128;
const BYTES_OF_A_GROUP: usize = 128;
const BYTES_OF_A_PLACE: usize = 5;

const MAPS_BYTES_MAX: u64 = 16 * 1024 * 1024;
const READ_BYTES: usize = 256 * 1024;

/// What the kernel appends to the name of a file that has none any more.
const DELETED: &str = " (deleted)";

/// The files met so far, each hashed once.
#[derive(Default)]
struct Files {
    found: Vec<RunningFile>,
    by_inode: BTreeMap<(u64, u64), usize>,
    by_name: BTreeMap<String, usize>,
}

/// Looks at the processes `pids`. One that ends meanwhile is left out.
pub(crate) fn look(main: Option<u32>, pids: &[i32], since: Option<BootTime>) -> Result<Running, GuardError> {
    if pids.len() > PROCESSES_MAX {
        return Err(too_much(format!("{} processes, at most {PROCESSES_MAX}", pids.len())));
    }
    let mut files = Files::default();
    let mut groups: BTreeMap<(usize, Vec<usize>), RunningGroup> = BTreeMap::new();
    for pid in pids {
        let Some(found) = process::find(*pid).filter(process::Process::is_alive) else { continue };
        let key = match (files.executable(*pid), files.mapped(*pid)) {
            (Ok(exe), Ok(maps)) => (exe, maps),
            (Err(error), _) | (_, Err(error)) if is_gone(&error) => continue,
            (Err(error), _) | (_, Err(error)) => {
                return Err(GuardError::io("look at", Path::new(&format!("/proc/{pid}")))(error));
            }
        };
        let started = found.started();
        let group = groups.entry(key.clone()).or_insert_with(|| RunningGroup {
            exe: key.0,
            mapped: key.1,
            pid: pid.unsigned_abs(),
            processes: 0,
            first_started_boot_ms: started,
        });
        group.processes += 1;
        if started < group.first_started_boot_ms {
            (group.first_started_boot_ms, group.pid) = (started, pid.unsigned_abs());
        }
    }
    let of_files = files.found.iter().map(|file| file.path.len() + BYTES_BESIDE_A_PATH);
    let of_groups = groups.values().map(|group| group.mapped.len() * BYTES_OF_A_PLACE + BYTES_OF_A_GROUP);
    if of_files.chain(of_groups).sum::<usize>() > ANSWER_BYTES_MAX {
        let (files, groups) = (files.found.len(), groups.len());
        return Err(too_much(format!(
            "{groups} kinds of processes that execute {files} files are more than can be told"
        )));
    }
    let is_member = |main: u32| pids.contains(&main.cast_signed());
    Ok(Running {
        main,
        main_is_member: main.is_none_or(is_member),
        opened_boot_ms: since,
        groups: groups.into_values().collect(),
        files: files.found,
    })
}

impl Files {
    fn executable(&mut self, pid: i32) -> io::Result<usize> {
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        let name = fs::read_link(&link)?.to_string_lossy().into_owned();
        self.take(&name, &link)
    }

    /// Files whose bytes the process may execute, but for its executable, sorted.
    fn mapped(&mut self, pid: i32) -> io::Result<Vec<usize>> {
        let mut maps = String::new();
        File::open(format!("/proc/{pid}/maps"))?.take(MAPS_BYTES_MAX).read_to_string(&mut maps)?;
        let mut found = Vec::new();
        for name in maps.lines().filter_map(executable_mapping) {
            let at = match name.strip_suffix(DELETED) {
                // The bytes cannot be had by name any more, and that is all that has to be known.
                Some(_) => self.deleted(name),
                None => self.take(name, &PathBuf::from(format!("/proc/{pid}/root{name}")))?,
            };
            found.push(at);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn take(&mut self, name: &str, path: &Path) -> io::Result<usize> {
        let mut file = File::open(path)?;
        let met = file.metadata()?;
        let inode = (met.dev(), met.ino());
        if let Some(at) = self.by_inode.get(&inode) {
            return Ok(*at);
        }
        let digest = hash(&mut file)?;
        let at = self.add(name, Some(digest));
        self.by_inode.insert(inode, at);
        Ok(at)
    }

    fn deleted(&mut self, name: &str) -> usize {
        match self.by_name.get(name) {
            Some(at) => *at,
            None => self.add(name, None),
        }
    }

    fn add(&mut self, name: &str, digest: Option<Digest>) -> usize {
        let (path, deleted) = name.strip_suffix(DELETED).map_or((name, false), |path| (path, true));
        self.found.push(RunningFile { path: path.to_owned(), digest, deleted });
        let at = self.found.len() - 1;
        self.by_name.insert(name.to_owned(), at);
        at
    }
}

/// The file behind a line of `/proc/PID/maps`, if its bytes may be executed: `range perms offset device inode name`.
fn executable_mapping(line: &str) -> Option<&str> {
    let mut rest = line;
    let mut fields = [""; 5];
    for field in &mut fields {
        let end = rest.find(' ')?;
        (*field, rest) = (&rest[..end], rest[end..].trim_start_matches(' '));
    }
    let executable = fields[1].contains('x') && fields[4] != "0" && rest.starts_with('/');
    executable.then_some(rest)
}

fn hash(file: &mut File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hasher.finalize().into())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// A process that ends while it is looked at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn too_much(detail: String) -> GuardError {
    GuardError::OutOfBounds { detail }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn start(program: &Path) -> Child {
        Command::new(program).arg("600").stdin(Stdio::null()).spawn().unwrap()
    }

    /// Until the child has become its program it still is this test.
    #[track_caller]
    fn look_at(child: &Child, name: &str) -> Running {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let running = look(Some(child.id()), &[child.id().cast_signed()], None).unwrap();
            let is_there = running.groups.iter().any(|group| running.files[group.exe].path.ends_with(name));
            if is_there {
                return running;
            }
            assert!(Instant::now() < deadline, "{running:?}");
        }
    }

    #[test]
    fn an_executable_is_read_through_the_process_even_when_its_name_leads_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("old-program");
        let sleep =
            ["/bin/sleep", "/usr/bin/sleep"].iter().map(Path::new).find(|path| path.exists()).unwrap();
        fs::copy(sleep, &program).unwrap();
        let digest = Digest::of(&fs::read(&program).unwrap());
        let mut child = start(&program);
        let running = look_at(&child, "old-program");
        let exe = &running.files[running.groups[0].exe];
        assert_eq!((exe.digest, exe.deleted), (Some(digest), false));
        assert!(running.main_is_member);
        assert!(!running.groups[0].mapped.is_empty(), "it maps its C library at least");

        let next = folder.path().join("next");
        fs::write(&next, "the new release").unwrap();
        fs::rename(&next, &program).unwrap();
        let running = look_at(&child, "old-program");
        let exe = &running.files[running.groups[0].exe];
        assert_eq!((exe.digest, exe.deleted), (Some(digest), true), "what runs, not what lies there");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(look(None, &[child.id().cast_signed()], None).unwrap().groups.is_empty());
    }

    #[test]
    fn a_main_process_that_is_not_among_the_service_shows() {
        let own = std::process::id();
        let running = look(Some(1), &[own.cast_signed()], None).unwrap();
        assert!(!running.main_is_member);
        assert_eq!(running.groups[0].pid, own);
    }

    #[test]
    fn only_files_whose_bytes_may_be_executed_count() {
        let line = "7f00-7f01 r-xp 00001000 08:01 42                  /usr/lib/a b.so";
        assert_eq!(executable_mapping(line), Some("/usr/lib/a b.so"));
        for other in [
            "7f00-7f01 r--p 00001000 08:01 42 /usr/lib/a.so",
            "7f00-7f01 r-xp 00000000 00:00 0 [vdso]",
            "7f00-7f01 rwxp 00000000 00:00 0 ",
            "",
        ] {
            assert_eq!(executable_mapping(other), None, "{other}");
        }
    }
}
