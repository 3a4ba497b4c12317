//! How the replay stops the clock: a hook that waits, and processes that are suspended.
//!
//! A flip passes from arm to decide in a few milliseconds. To cut a host off just there, with the programs as they are
//! shipped, others have to be late, and that they may be at any time: one host in its hook `quiesce`, one at its guard.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use muster_guard::{GuardConfig, HookConfig};
use muster_model::HostName;
use rustix::process::Signal;

use super::super::fleet::{LocalFleet, Program};
use super::super::process::Process;
use crate::error::CliError;
use crate::files::{Existing, read_bounded, write};

/// What the hook runs: it says that it has begun, and waits as long as it is told to by the presence of a file.
const SCRIPT: &str = "while [ -e \"$1\" ]; do : > \"$2\"; sleep 0.02; done";

/// No flip of the replay is held longer.
const TIMEOUT_MS: u64 = 20_000;

/// No guard's configuration comes near this, in bytes.
const CONFIG_BYTES_MAX: u64 = 64 << 10;

/// Holds every rollout up while it is prepared, for as long as that is asked for.
#[derive(Debug)]
pub(super) struct Hold {
    wanted: PathBuf,
    reached: PathBuf,
}

/// A process that does nothing. It goes on when this is dropped.
#[derive(Debug)]
pub(super) struct Suspended {
    process: Process,
}

impl Hold {
    /// Gives a host the hook. Its guard must not have been started yet.
    pub(super) fn install(fleet: &LocalFleet, host: &HostName) -> Result<Self, CliError> {
        let hold = Self { wanted: fleet.dir.join("hold"), reached: fleet.dir.join("held") };
        let path = fleet.on(Program::Guard, host).config();
        let wrong = |reason: String| CliError::Content { path: path.clone(), reason };
        let bytes = read_bounded(&path, CONFIG_BYTES_MAX)?;
        let text = String::from_utf8(bytes).map_err(|error| wrong(error.to_string()))?;
        let mut config: GuardConfig = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        for of_fleet in &mut config.fleets {
            of_fleet.hooks.quiesce = Some(hold.hook());
        }
        let text = toml::to_string(&config).map_err(|error| wrong(error.to_string()))?;
        write(&path, text.as_bytes(), 0o644, Existing::Replace)?;
        Ok(hold)
    }

    /// The next rollout waits.
    pub(super) fn begin(&self) -> Result<(), CliError> {
        remove(&self.reached)?;
        fs::write(&self.wanted, "").map_err(CliError::file("write", self.wanted.as_path()))
    }

    /// Whether a rollout waits here.
    pub(super) fn is_reached(&self) -> bool {
        self.reached.exists()
    }

    /// What waits goes on. Doing it twice is doing it once.
    pub(super) fn release(&self) -> Result<(), CliError> {
        remove(&self.wanted)
    }

    fn hook(&self) -> HookConfig {
        let words = ["/bin/sh", "-c", SCRIPT, "quiesce"].map(str::to_owned);
        let paths = [&self.wanted, &self.reached].map(|path| path.to_string_lossy().into_owned());
        HookConfig { command: words.into_iter().chain(paths).collect(), timeout_ms: TIMEOUT_MS }
    }
}

impl Suspended {
    /// Suspends a process.
    pub(super) fn new(process: Process) -> io::Result<Self> {
        let suspended = Self { process };
        suspended.process.suspend()?;
        Ok(suspended)
    }

    /// Its number.
    pub(super) const fn pid(&self) -> i32 {
        self.process.pid()
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        // It may have ended meanwhile, and then there is nothing that has to go on.
        drop(self.process.signal(Signal::CONT));
    }
}

fn remove(path: &Path) -> Result<(), CliError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CliError::file("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use muster_model::FleetName;

    use super::super::super::fleet::{LEASE_DEFAULT, Wanted};
    use super::*;
    use crate::provision::Driver;

    #[test]
    fn the_hook_waits_only_while_it_is_asked_to() {
        let dir = tempfile::tempdir().unwrap();
        let name = FleetName::new("demo").unwrap();
        let wanted = Wanted { fleet: name, hosts: 1, driver: Driver::Link, lease: LEASE_DEFAULT };
        let fleet = LocalFleet::create(&dir.path().join("d"), &wanted).unwrap();
        let hold = Hold::install(&fleet, &fleet.hosts[0]).unwrap();
        let config = fs::read_to_string(fleet.guards()[0].config()).unwrap();
        let config: GuardConfig = toml::from_str(&config).unwrap();
        let hook = config.fleets[0].hooks.quiesce.clone().unwrap();
        assert!(config.validate().is_ok());
        let start = || {
            let mut command = Command::new(&hook.command[0]);
            command.args(&hook.command[1..]).stdin(Stdio::null()).spawn().unwrap()
        };
        assert!(start().wait().unwrap().success() && !hold.is_reached(), "it ends at once");

        hold.begin().unwrap();
        let mut held = start();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !hold.is_reached() {
            assert!(Instant::now() < deadline, "the hook did not begin");
            std::thread::yield_now();
        }
        assert!(held.try_wait().unwrap().is_none());
        hold.release().unwrap();
        hold.release().unwrap();
        assert!(held.wait().unwrap().success());
    }
}
