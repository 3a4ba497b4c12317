//! Processes, as `/proc` shows them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use muster_model::{BootId, BootTime};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup::Cgroup;
use crate::error::GuardError;
use crate::record::{ProcessKey, RunRecord};

/// The variable that marks every process of one run of a service.
pub(crate) const RUN_ID_VARIABLE: &str = "MUSTER_RUN_ID";

/// How often a condition is looked at that nothing announces: the end of processes that are not our children.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) key: ProcessKey,
    pub(crate) state: u8,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
}

/// The boot that this machine is in.
pub(crate) fn boot_id() -> Result<BootId, GuardError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(GuardError::io("read", path))?;
    BootId::new(text.trim()).map_err(|e| GuardError::io("parse", path)(io::Error::other(e)))
}

/// Now, on the kernel's own clock: the one by which `/proc` tells when a process was started, whatever stands in front of libc.
pub(crate) fn time_of_starts() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    BootTime(now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000)
}

/// The process with this number, unless it is gone or a zombie: a zombie runs nothing.
pub(crate) fn alive(key: ProcessKey) -> Option<Process> {
    find(key.pid).filter(|process| process.key == key && process.is_alive())
}

/// The process with this number, alive or a zombie.
pub(crate) fn find(pid: i32) -> Option<Process> {
    parse_stat(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// All processes. Those that end while the list is made may be missing from it.
pub(crate) fn all() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(pid.and_then(find));
    }
    Ok(found)
}

/// The living descendants of `ancestor`, without itself.
pub(crate) fn descendants(ancestor: i32, all: &[Process]) -> Vec<Process> {
    let mut family = BTreeSet::from([ancestor]);
    let mut found = Vec::new();
    // Each round finds at least one generation, so the rounds are bounded by the number of processes.
    loop {
        let before = found.len();
        for process in all {
            if family.contains(&process.parent) && family.insert(process.key.pid) {
                found.push(*process);
            }
        }
        if found.len() == before {
            found.retain(Process::is_alive);
            return found;
        }
    }
}

/// Signals exactly this process: a process that has taken over its number is left alone. It is not an error if it is
/// gone.
pub(crate) fn signal(key: ProcessKey, signal: Signal) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(key.pid) else { return Ok(()) };
    // The descriptor holds on to one process; only what is seen after it was opened says which one.
    let gone = |error: Errno| if error == Errno::SRCH { Ok(()) } else { Err(error.into()) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(_) if alive(key).is_none() => Ok(()),
        Ok(descriptor) => pidfd_send_signal(descriptor, signal).or_else(gone),
        Err(error) => gone(error),
    }
}

/// Kills what is left of a run until nothing is, and says what could not be killed within `patience`. No file on a disk
/// is read or written for it.
///
/// The keeper goes last where its family is not in a control group: as long as it lives no descendant gets away from it,
/// and it kills on its own as well.
pub(crate) fn kill_run(run: &RunRecord, patience: Duration) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    let cgroup = run.cgroup.clone().map(Cgroup::at);
    loop {
        let mut problem = String::new();
        if let Some(Err(error)) = cgroup.as_ref().map(Cgroup::kill) {
            problem = format!(
                " (cannot kill {}: {error})",
                run.cgroup.as_deref().unwrap_or(Path::new("")).display()
            );
        }
        let left = members(run).map_err(|e| format!("cannot list the processes: {e}"))?;
        let populated = cgroup.as_ref().is_some_and(Cgroup::is_populated);
        if left.is_empty() && !populated {
            return Ok(());
        }
        let family = left.iter().any(|process| process.key != run.keeper);
        for process in left.iter().filter(|process| !family || process.key != run.keeper) {
            if let Err(error) = signal(process.key, Signal::KILL) {
                problem = format!(" (cannot kill {}: {error})", process.key.pid);
            }
        }
        if Instant::now() >= deadline {
            let pids: Vec<_> = left.iter().take(16).map(|p| p.key.pid.to_string()).collect();
            return Err(format!("{} of its processes are alive: {}{problem}", left.len(), pids.join(", ")));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The living processes of a run: its keeper and what descends from it, its session and its process group, and
/// whatever carries its mark. The last finds processes that left the session and lost their ancestors.
pub(crate) fn members(run: &RunRecord) -> io::Result<Vec<Process>> {
    let all = all()?;
    let mut found = descendants_of_living(run.keeper, &all);
    found.extend(run.main.map(|main| session_members(main, &all)).unwrap_or_default());
    let mark = format!("{RUN_ID_VARIABLE}={}", run.run_id);
    found.extend(all.iter().filter(|process| process.is_alive() && carries(process, &mark)));
    found.sort_by_key(|process| process.key.pid);
    found.dedup();
    Ok(found)
}

fn descendants_of_living(keeper: ProcessKey, all: &[Process]) -> Vec<Process> {
    match all.iter().find(|process| process.key == keeper) {
        Some(process) if process.is_alive() => {
            let mut found = descendants(keeper.pid, all);
            found.push(*process);
            found
        }
        Some(_) | None => Vec::new(),
    }
}

/// The kernel gives a number to nobody while a session or a group bears it. So if the number belongs to a process
/// that started at another time, the old session is gone and this one is a stranger's.
fn session_members(main: ProcessKey, all: &[Process]) -> Vec<Process> {
    if all.iter().any(|process| process.key.pid == main.pid && process.key != main) {
        return Vec::new();
    }
    let belongs = |process: &&Process| process.session == main.pid || process.group == main.pid;
    all.iter().filter(belongs).filter(|process| process.is_alive()).copied().collect()
}

/// Environments of other users' processes cannot be read, and those are not ours.
fn carries(process: &Process, mark: &str) -> bool {
    fs::read(format!("/proc/{}/environ", process.key.pid))
        .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
}

impl Process {
    /// When it was started, to the tick (10 ms).
    pub(crate) fn started(&self) -> BootTime {
        BootTime(self.key.start_ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1))
    }

    /// Neither a zombie nor dead.
    pub(crate) const fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// `pid (name) state ppid pgrp session …`, the start time being field 22. The name may hold anything, `)` included,
/// so the fields are counted from the last one.
fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let text = std::str::from_utf8(&stat[after_name..]).ok()?;
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<i32>().ok();
    Some(Process {
        key: ProcessKey { pid, start_ticks: fields.get(19)?.parse().ok()? },
        state: *fields.first()?.as_bytes().first()?,
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn process(pid: i32, parent: i32, session: i32) -> Process {
        let key = ProcessKey { pid, start_ticks: u64::from(pid.unsigned_abs()) };
        Process { key, state: b'S', parent, group: session, session }
    }

    #[test]
    fn descendants_are_found_over_generations_and_in_any_order() {
        let all = [process(9, 8, 9), process(8, 7, 7), process(7, 2, 7), process(3, 2, 3), process(2, 1, 2)];
        let mut found: Vec<_> = descendants(7, &all).iter().map(|p| p.key.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [8, 9]);
    }

    #[test]
    fn a_stranger_that_took_over_the_number_is_not_a_member() {
        let main = ProcessKey { pid: 7, start_ticks: 7 };
        assert_eq!(session_members(main, &[process(8, 1, 7)]).len(), 1);
        let mut stranger = process(7, 1, 7);
        stranger.key.start_ticks = 70;
        assert!(session_members(main, &[process(8, 7, 7), stranger]).is_empty());
    }

    #[test]
    fn kills_marked_processes_that_left_session_and_family() {
        let run = RunRecord {
            boot_id: boot_id().unwrap(),
            run_id: format!("test-{}-marked", std::process::id()),
            keeper: ProcessKey { pid: i32::MAX, start_ticks: 0 },
            main: None,
            cgroup: None,
        };
        let mut child = Command::new("setsid")
            .args(["sleep", "600"])
            .env(RUN_ID_VARIABLE, &run.run_id)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while members(&run).unwrap().is_empty() {
            assert!(Instant::now() < deadline, "the marked process does not show");
        }
        kill_run(&run, Duration::from_secs(10)).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(members(&run).unwrap().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn stat_is_parsed_whatever_the_name(name in "[ -~]{0,15}", parent in 0..9999_i32, session in 0..9999_i32) {
            let zeros = "0 ".repeat(14);
            let stat = format!("42 ({name}) S {parent} 5 {session} 0 {zeros}77 0 0\n");
            let process = parse_stat(42, stat.as_bytes()).unwrap();
            prop_assert_eq!(process.key, ProcessKey { pid: 42, start_ticks: 77 });
            prop_assert_eq!((process.state, process.parent, process.group, process.session), (b'S', parent, 5, session));
        }
    }

    #[test]
    fn reads_itself() {
        let own = find(std::process::id().try_into().unwrap()).unwrap();
        assert_eq!(alive(own.key), Some(own));
        assert!(all().unwrap().iter().any(|process| process.key == own.key));
    }
}
