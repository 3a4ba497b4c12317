//! The processes of a local fleet, as `/proc` shows them.
//!
//! A process is one of ours if it is this user's and its command line is the one of a daemon: its program, `run`, and
//! the daemon's own configuration file. It is looked at through a descriptor of the process, which can never come to
//! mean another one.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

/// A signal takes effect at once, but on a machine that is busy.
const SUSPEND_PATIENCE: Duration = Duration::from_secs(2);

/// A process that was alive when it was looked at.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    descriptor: OwnedFd,
}

/// What a daemon's command line names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    /// The name of the program's file.
    pub(super) program: String,
    /// Its configuration file, absolute.
    pub(super) config: PathBuf,
}

/// All living processes of this user that are daemons of any local fleet.
pub(super) fn daemons() -> io::Result<Vec<(Identity, Process)>> {
    let own = geteuid().as_raw();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        // What cannot be opened has ended since, or is none of ours.
        let Some(pid) = pid else { continue };
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let is_own = entry.metadata().is_ok_and(|found| found.uid() == own);
        if let Some(identity) = is_own.then(|| identity(&entry.path())).flatten() {
            found.push((identity, Process { pid, descriptor }));
        }
    }
    Ok(found)
}

impl Process {
    /// Its number.
    pub(super) const fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal. It is not an error if the process has ended.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Suspends it, and returns once it is: from then on it does nothing until it goes on.
    pub(super) fn suspend(&self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        let deadline = Instant::now() + SUSPEND_PATIENCE;
        loop {
            match self.state()? {
                Some(b'T' | b't') => return Ok(()),
                Some(b'Z' | b'X') | None => return Err(io::ErrorKind::NotFound.into()),
                Some(_) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                Some(_) => std::thread::yield_now(),
            }
        }
    }

    /// The letter by which the kernel tells what it does; none once it is gone.
    fn state(&self) -> io::Result<Option<u8>> {
        let stat = match fs::read(format!("/proc/{}/stat", self.pid())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        // The name before it stands in parentheses, and may have any character in it.
        let after_name = stat.iter().rposition(|byte| *byte == b')').map(|end| end + 2);
        Ok(after_name.and_then(|start| stat.get(start).copied()))
    }

    /// Waits until it has ended, and says whether it has.
    pub(super) fn has_ended_by(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
            match poll(&mut polled, Some(&timeout)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What the process in this folder of `/proc` is, if it is a daemon. A zombie has no command line.
fn identity(folder: &Path) -> Option<Identity> {
    let command = fs::read(folder.join("cmdline")).ok()?;
    let cwd = fs::read_link(folder.join("cwd")).ok()?;
    parse(&command, &cwd)
}

fn parse(command: &[u8], cwd: &Path) -> Option<Identity> {
    let mut arguments = command.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let program = Path::new(arguments.next()?).file_name()?.to_str()?.to_owned();
    if !program.starts_with("muster-") || arguments.next()? != "run" {
        return None;
    }
    let mut config = None;
    while let Some(argument) = arguments.next() {
        let text = argument.as_bytes();
        if argument == "--config" {
            config = arguments.next();
        } else if let Some(value) = text.strip_prefix(b"--config=") {
            config = Some(OsStr::from_bytes(value));
        }
    }
    let config = cwd.join(config?);
    // A path that was typed by hand may lead through links.
    let config = fs::canonicalize(&config).unwrap_or(config);
    Some(Identity { program, config })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn only_the_command_line_of_a_daemon_is_one() {
        let parse = |text: &str| parse(text.replace(' ', "\0").as_bytes(), Path::new("/nowhere/at/all"));
        let agent =
            |config: &str| Some(Identity { program: "muster-agent".to_owned(), config: config.into() });
        assert_eq!(parse("/opt/muster-agent run --config /nowhere/a.toml "), agent("/nowhere/a.toml"));
        assert_eq!(parse("muster-agent run --log json --config=a.toml "), agent("/nowhere/at/all/a.toml"));
        for stranger in [
            "",
            "vi /nowhere/a.toml ",
            "muster-agent config check --config /nowhere/a.toml ",
            "muster-agent run ",
            "muster-agent run --config",
            "grep muster-agent run --config /nowhere/a.toml ",
        ] {
            assert_eq!(parse(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn an_end_is_noticed_and_a_stranger_is_not_found() {
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = Process { pid, descriptor: pidfd_open(pid, PidfdFlags::empty()).unwrap() };
        assert_eq!(u32::try_from(process.pid()).unwrap(), child.id());
        assert!(daemons().unwrap().iter().all(|(_, found)| found.pid() != process.pid()));
        assert!(!process.has_ended_by(Instant::now()).unwrap());
        process.suspend().unwrap();
        assert_eq!(process.state().unwrap(), Some(b'T'));
        process.signal(Signal::KILL).unwrap();
        assert!(process.has_ended_by(Instant::now() + Duration::from_secs(20)).unwrap());
        child.wait().unwrap();
        process.signal(Signal::KILL).unwrap();
    }
}
