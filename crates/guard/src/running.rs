//! What really runs: the processes of a service, and the bytes of what they execute.
//!
//! A file is read through the process that executes it (`/proc/PID/exe`), so that one which was replaced or removed on the disk
//! after it was started is not taken for what lies there now. What it means is not decided here: the agent knows the release.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use muster_model::{BootTime, Digest};
use sha2::{Digest as _, Sha256};

use crate::error::GuardError;
use crate::process;
use crate::protocol::{Running, RunningFile, RunningGroup, RunningMain};
use crate::service::Members;

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

/// A file as it was when it was hashed: a change gives it another time of change, which no system call sets back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
}

/// File times advance with the kernel's tick, 10 ms at the slowest; two changes within one tick look alike.
const TICK: Duration = Duration::from_millis(20);

/// What the last look has hashed: a service runs for longer than from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct Known(BTreeMap<Stamp, Digest>);

/// The files met so far, each hashed once.
#[derive(Default)]
struct Files {
    /// From the look before.
    known: BTreeMap<Stamp, Digest>,
    /// For the next one.
    hashed: BTreeMap<Stamp, Digest>,
    found: Vec<RunningFile>,
    by_inode: BTreeMap<(u64, u64), usize>,
    by_name: BTreeMap<String, usize>,
}

/// Looks at a service's processes: what they execute, and which libraries of the releases below `releases`. One that ends
/// meanwhile is left out.
pub(crate) fn look(
    members: &Members,
    releases: &Path,
    since: Option<BootTime>,
    known: &mut Known,
) -> Result<Running, GuardError> {
    let pids = &members.pids;
    let releases = releases.canonicalize().unwrap_or_else(|_| releases.to_owned());
    let mut exes = BTreeMap::new();
    if pids.len() > PROCESSES_MAX {
        return Err(too_much(format!("{} processes, at most {PROCESSES_MAX}", pids.len())));
    }
    let mut files = Files { known: std::mem::take(&mut known.0), ..Files::default() };
    let mut groups: BTreeMap<(usize, Vec<usize>), RunningGroup> = BTreeMap::new();
    for pid in pids {
        let Some(found) = process::find(*pid).filter(process::Process::is_alive) else { continue };
        let key = match (files.executable(*pid), files.mapped(*pid, &releases)) {
            (Ok(exe), Ok(maps)) => (exe, maps),
            (Err(_), _) | (_, Err(_)) if process::alive(found.key).is_none() => continue,
            (Err(error), _) | (_, Err(error)) => {
                return Err(GuardError::io("look at", Path::new(&format!("/proc/{pid}")))(error));
            }
        };
        exes.insert(pid.unsigned_abs(), key.0);
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
    known.0 = std::mem::take(&mut files.hashed);
    let of_files = files.found.iter().map(|file| file.path.len() + BYTES_BESIDE_A_PATH);
    let of_groups = groups.values().map(|group| group.mapped.len() * BYTES_OF_A_PLACE + BYTES_OF_A_GROUP);
    if of_files.chain(of_groups).sum::<usize>() > ANSWER_BYTES_MAX {
        let (files, groups) = (files.found.len(), groups.len());
        return Err(too_much(format!(
            "{groups} kinds of processes that execute {files} files are more than can be told"
        )));
    }
    let mains = members.mains.iter().map(|pid| RunningMain { pid: *pid, exe: exes.get(pid).copied() });
    Ok(Running {
        by_guard: members.by_guard,
        mains: mains.collect(),
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

    /// Files of releases whose bytes the process may execute, sorted. What the system has is the system's.
    fn mapped(&mut self, pid: i32, releases: &Path) -> io::Result<Vec<usize>> {
        let mut maps = String::new();
        File::open(format!("/proc/{pid}/maps"))?.take(MAPS_BYTES_MAX).read_to_string(&mut maps)?;
        let mut found = Vec::new();
        let of_releases = |name: &&str| Path::new(name).starts_with(releases);
        for name in maps.lines().filter_map(executable_mapping).filter(of_releases) {
            let by_name = PathBuf::from(format!("/proc/{pid}/root{name}"));
            let at =
                match name.strip_suffix(DELETED).map_or_else(|| self.take(name, &by_name), |_| Err(gone())) {
                    Ok(at) => at,
                    // The bytes cannot be had by name any more, and that is all that has to be known.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => self.deleted(name),
                    Err(error) => return Err(error),
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
        let digest = self.digest(&mut file, &met)?;
        let at = self.add(name, Some(digest));
        self.by_inode.insert(inode, at);
        Ok(at)
    }

    /// Read, unless the last look has read it and it was not touched since.
    fn digest(&mut self, file: &mut File, met: &Metadata) -> io::Result<Digest> {
        let stamp = Stamp::of(met);
        let digest = match self.known.get(&stamp) {
            Some(digest) => *digest,
            None => hash(file)?,
        };
        let is_calm = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .is_ok_and(|now| now.as_nanos().cast_signed() - stamp.ctime_ns > TICK.as_nanos().cast_signed());
        if is_calm && Stamp::of(&file.metadata()?) == stamp {
            self.hashed.insert(stamp, digest);
        }
        Ok(digest)
    }

    fn deleted(&mut self, name: &str) -> usize {
        match self.by_name.get(name) {
            Some(at) => *at,
            None => self.add(name, None),
        }
    }

    fn add(&mut self, name: &str, digest: Option<Digest>) -> usize {
        let (path, deleted) =
            name.strip_suffix(DELETED).map_or((name, digest.is_none()), |path| (path, true));
        self.found.push(RunningFile { path: path.to_owned(), digest, deleted });
        let at = self.found.len() - 1;
        self.by_name.insert(name.to_owned(), at);
        at
    }
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            mtime_ns: ns(found.mtime(), found.mtime_nsec()),
            ctime_ns: ns(found.ctime(), found.ctime_nsec()),
        }
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

fn gone() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn too_much(detail: String) -> GuardError {
    GuardError::OutOfBounds { detail }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    fn start(program: &Path) -> Child {
        Command::new(program).arg("600").stdin(Stdio::null()).spawn().unwrap()
    }

    fn look_at_one(main: u32, pid: u32) -> Running {
        let members = Members { by_guard: false, mains: vec![main], pids: vec![pid.cast_signed()] };
        look(&members, Path::new("/"), None, &mut Known::default()).unwrap()
    }

    /// Until the child has become its program it still is this test.
    #[track_caller]
    fn look_at(child: &Child, name: &str) -> Running {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let running = look_at_one(child.id(), child.id());
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
        assert_eq!(running.mains, [RunningMain { pid: child.id(), exe: Some(running.groups[0].exe) }]);
        assert!(!running.groups[0].mapped.is_empty(), "it maps its C library at least");
        let members = Members { by_guard: false, mains: Vec::new(), pids: vec![child.id().cast_signed()] };
        let of_releases = look(&members, folder.path(), None, &mut Known::default()).unwrap();
        let names: Vec<_> = of_releases.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, [program.to_str().unwrap()], "what the system has is the system's");

        let next = folder.path().join("next");
        fs::write(&next, "the new release").unwrap();
        fs::rename(&next, &program).unwrap();
        let running = look_at(&child, "old-program");
        let exe = &running.files[running.groups[0].exe];
        assert_eq!((exe.digest, exe.deleted), (Some(digest), true), "what runs, not what lies there");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(look_at_one(child.id(), child.id()).groups.is_empty());
    }

    #[test]
    fn a_file_is_hashed_again_only_after_it_was_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::write(&path, "one").unwrap();
        let mut known = Known::default();
        let mut look = |path: &Path| {
            let mut files = Files { known: std::mem::take(&mut known.0), ..Files::default() };
            let at = files.take("program", path).unwrap();
            known.0 = std::mem::take(&mut files.hashed);
            (files.found[at].digest.unwrap(), known.0.len())
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while look(&path) != (Digest::of(b"one"), 1) {
            assert!(Instant::now() < deadline, "what was changed just now is not kept, and what is calm is");
        }
        // The same size and time of modification: the time of change tells.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "two").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert_eq!(look(&path).0, Digest::of(b"two"));
        // What is known is not read.
        let lie = Digest::of(b"a lie");
        known.0 = BTreeMap::from([(Stamp::of(&fs::metadata(&path).unwrap()), lie)]);
        let mut files = Files { known: known.0, ..Files::default() };
        let at = files.take("program", &path).unwrap();
        assert_eq!(files.found[at].digest, Some(lie));
    }

    #[test]
    fn a_main_process_that_is_not_among_the_service_shows() {
        let own = std::process::id();
        let running = look_at_one(1, own);
        assert_eq!(running.mains, [RunningMain { pid: 1, exe: None }]);
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
