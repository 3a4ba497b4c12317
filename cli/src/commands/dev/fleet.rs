//! The folder of a local fleet: what `muster init` and `muster host issue` make, in one place, and a mark.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_model::{FleetName, HostName, IdentityName, Timing};
use muster_mtls::{Address, create_private_directory};
use serde::{Deserialize, Serialize};

use super::DevError;
use super::port::free_port;
use super::process::Identity;
use crate::clock::{millis, unix_time};
use crate::context::{CONTEXT_FILE, Context};
use crate::error::CliError;
use crate::files::{Existing, read_bounded, write};
use crate::provision::{Driver, HostOptions, InitOptions, hosts, init, issue_host};

/// What marks a folder as ours, and says what is in it.
const MARK_FILE: &str = "dev.toml";
const MARK_BYTES_MAX: u64 = 4096;

/// The lease of a fleet for which none was asked: short enough to watch a host fence itself.
pub(super) const LEASE_DEFAULT: Duration = Duration::from_secs(2);

/// How long fencing may take on this machine: one part in so many of the lease, and at least so many milliseconds. All
/// hosts try it out at the same moment, when the fleet starts, and share the cores with whatever else is built here.
const FENCE_IS_ONE_IN: u64 = 4;
const FENCE_MS_MIN: u64 = 2_000;

/// How far the hosts' time of day may be apart, in milliseconds: they are processes of one machine and read one clock, so that
/// only its unit is left.
const CLOCK_ERROR_MS: u64 = 1;

const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a new fleet shall be.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Its name.
    pub(super) fleet: FleetName,
    /// How many hosts it has.
    pub(super) hosts: u16,
    /// How they serve.
    pub(super) driver: Driver,
    /// How long an armed host serves on without being heard.
    pub(super) lease: Duration,
}

/// The fleet in a folder.
#[derive(Debug, Clone)]
pub(super) struct LocalFleet {
    /// The folder, absolute and without links.
    pub(super) dir: PathBuf,
    /// The fleet's name.
    pub(super) name: FleetName,
    /// Its hosts, from 1 on.
    pub(super) hosts: Vec<HostName>,
    /// How they serve.
    pub(super) driver: Driver,
    /// How long an armed host serves on without being heard, by the fleet's first roster.
    pub(super) lease: Duration,
    /// Where its coordinator listens.
    pub(super) coordinator: Address,
}

/// A program that runs for as long as the fleet is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// The fleet's coordinator.
    Coordinator,
    /// A host's guard.
    Guard,
    /// A host's agent.
    Agent,
}

/// One program of one fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Daemon {
    /// Which program.
    pub(super) program: Program,
    /// On which host; the coordinator is on none.
    pub(super) host: Option<HostName>,
    folder: PathBuf,
}

/// No other `muster dev` starts or stops the fleet for as long as this lives.
#[derive(Debug)]
pub(super) struct Lock {
    _folder: File,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    fleet: FleetName,
    hosts: u16,
    #[serde(default = "lease_ms_default")]
    lease_ms: u64,
    driver: Driver,
}

impl LocalFleet {
    /// Makes the fleet in a folder that is empty or does not exist.
    pub(super) fn create(dir: &Path, wanted: &Wanted) -> Result<Self, CliError> {
        let port = free_port()?;
        // Held while the other one is chosen, so that it is another one.
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let enrolment_port = free_port()?;
        drop(held);
        let address = format!("{}:{port}", Ipv4Addr::LOCALHOST);
        let options = InitOptions {
            trust_domain: parsed("muster.local"),
            coordinator: parsed(&address),
            coordinator_names: Vec::new(),
            enrolment_port,
            operator: IdentityName::new("operator").expect("the word is a valid name"),
            fleet: Some(wanted.fleet.clone()),
            now: unix_time(),
        };
        init(dir, &options)?;
        let mark = Mark {
            fleet: wanted.fleet.clone(),
            hosts: wanted.hosts,
            lease_ms: millis(wanted.lease),
            driver: wanted.driver.clone(),
        };
        let text = toml::to_string(&mark).expect("a mark has string keys and no failing serialisers");
        let text = format!("# Made by `muster dev up`.\n{text}");
        write(&dir.join(MARK_FILE), text.as_bytes(), 0o644, Existing::Keep)?;
        let fleet = Self::open(dir)?;
        fleet.complete()?;
        Ok(fleet)
    }

    /// The fleet that was made here.
    pub(super) fn open(dir: &Path) -> Result<Self, CliError> {
        if !is_fleet(dir) {
            return Err(DevError::NotAFleet { dir: dir.to_owned() }.into());
        }
        let dir = fs::canonicalize(dir).map_err(CliError::file("find", dir))?;
        let mark = read_mark(&dir)?;
        let coordinator = Context::read(&context_file(&dir))?.coordinator().clone();
        let hosts = (1..=mark.hosts).map(host_name).collect();
        let lease = Duration::from_millis(mark.lease_ms);
        Ok(Self { dir, name: mark.fleet, hosts, driver: mark.driver, lease, coordinator })
    }

    /// Issues the hosts that there are not yet: all of a new fleet, or those that an interrupted command left out.
    pub(super) fn complete(&self) -> Result<(), CliError> {
        let issued = hosts(&self.dir)?;
        let options = HostOptions {
            coordinator: self.coordinator.clone(),
            fleets: vec![self.name.clone()],
            // A service that may take longer to stop than its lease allows could not take part.
            driver: self.driver.clone().stopping_within(self.timing().drain_ms_max()),
            state: None,
            link: None,
            clock_error_ms: Some(CLOCK_ERROR_MS),
            valid_for: CERTIFICATE_LIFETIME,
            now: unix_time(),
        };
        for host in self.hosts.iter().filter(|host| !issued.iter().any(|bundle| bundle.name == **host)) {
            issue_host(&self.dir, host, &options)?;
        }
        Ok(())
    }

    /// Keeps other commands of this kind away. The folder itself is locked, so that nothing is left behind.
    pub(super) fn lock(dir: &Path) -> Result<Lock, CliError> {
        let doing = || format!("make the folder {}", dir.display());
        create_private_directory(dir)
            .map_err(|source| CliError::Tls { doing: doing(), source: Box::new(source) })?;
        let folder = File::open(dir).map_err(CliError::file("open", dir))?;
        match folder.try_lock() {
            Ok(()) => Ok(Lock { _folder: folder }),
            Err(TryLockError::WouldBlock) => Err(DevError::InUse { dir: dir.to_owned() }.into()),
            Err(TryLockError::Error(source)) => Err(CliError::file("lock", dir)(source)),
        }
    }

    /// The times of its first roster.
    pub(super) fn timing(&self) -> Timing {
        Timing::with_lease(millis(self.lease), FENCE_MS_MIN.max(millis(self.lease) / FENCE_IS_ONE_IN))
    }

    /// The operator's context file.
    pub(super) fn context(&self) -> PathBuf {
        context_file(&self.dir)
    }

    /// The folder of a host: its bundle, and what its agent and guard keep.
    pub(super) fn host_folder(&self, host: &HostName) -> PathBuf {
        self.dir.join("hosts").join(host.as_str())
    }

    /// The coordinator.
    pub(super) fn coordinator_daemon(&self) -> Daemon {
        Daemon { program: Program::Coordinator, host: None, folder: self.dir.join("coordinator") }
    }

    /// Every program of the fleet: the coordinator, then each host's guard and agent.
    pub(super) fn daemons(&self) -> Vec<Daemon> {
        let of_host = |host| [self.on(Program::Guard, host), self.on(Program::Agent, host)];
        std::iter::once(self.coordinator_daemon()).chain(self.hosts.iter().flat_map(of_host)).collect()
    }

    /// Makes sure that these are hosts of the fleet.
    pub(super) fn require(&self, hosts: &[HostName]) -> Result<(), CliError> {
        match hosts.iter().find(|host| !self.hosts.contains(host)) {
            Some(host) => {
                let there_are = match self.hosts.as_slice() {
                    [only] => only.to_string(),
                    [first, .., last] => format!("{first} to {last}"),
                    [] => "none".to_owned(),
                };
                Err(DevError::NoSuchHost { dir: self.dir.clone(), host: host.clone(), there_are }.into())
            }
            None => Ok(()),
        }
    }

    /// The guards, in the order of hosts.
    pub(super) fn guards(&self) -> Vec<Daemon> {
        self.hosts.iter().map(|host| self.on(Program::Guard, host)).collect()
    }

    /// The agents, in the order of hosts.
    pub(super) fn agents(&self) -> Vec<Daemon> {
        self.hosts.iter().map(|host| self.on(Program::Agent, host)).collect()
    }

    /// One program of a host.
    pub(super) fn on(&self, program: Program, host: &HostName) -> Daemon {
        Daemon { program, host: Some(host.clone()), folder: self.host_folder(host) }
    }
}

/// Whether `muster dev up` made this folder.
pub(super) fn is_fleet(dir: &Path) -> bool {
    dir.join(MARK_FILE).is_file()
}

impl Program {
    /// The name of its file.
    pub(super) const fn file_name(self) -> &'static str {
        match self {
            Self::Coordinator => "muster-coordinator",
            Self::Guard => "muster-guard",
            Self::Agent => "muster-agent",
        }
    }

    /// What people call it.
    pub(super) const fn stem(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Guard => "guard",
            Self::Agent => "agent",
        }
    }
}

impl Daemon {
    /// Its configuration file.
    pub(super) fn config(&self) -> PathBuf {
        self.file("toml")
    }

    /// The file with its process number, for scripts.
    pub(super) fn pid_file(&self) -> PathBuf {
        self.file("pid")
    }

    /// Where its standard output and error go.
    pub(super) fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// How its process is known.
    pub(super) fn identity(&self) -> Identity {
        Identity { program: self.program.file_name().to_owned(), config: self.config() }
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.program.stem()))
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            None => write!(f, "the {}", self.program.stem()),
            Some(host) => write!(f, "the {} of {host}", self.program.stem()),
        }
    }
}

fn context_file(dir: &Path) -> PathBuf {
    dir.join("operator").join(CONTEXT_FILE)
}

fn read_mark(dir: &Path) -> Result<Mark, CliError> {
    let path = dir.join(MARK_FILE);
    let bytes = read_bounded(&path, MARK_BYTES_MAX)?;
    let wrong = |reason: String| CliError::Content { path: path.clone(), reason };
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("it is not text".to_owned()))?;
    toml::from_str(text).map_err(|error| wrong(error.to_string()))
}

fn lease_ms_default() -> u64 {
    millis(LEASE_DEFAULT)
}

fn host_name(number: u16) -> HostName {
    HostName::new(&format!("host-{number}")).expect("the word and a number are a valid name")
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().expect("what this program writes itself is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let command = vec!["./bin/server".to_owned(), "--quiet".to_owned()];
        let driver = Driver::Supervise { command, stop_timeout_ms: None };
        let fleet = FleetName::new("demo").unwrap();
        Wanted { fleet, hosts: 2, driver, lease: Duration::from_millis(1500) }
    }

    #[test]
    fn a_fleet_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        assert!(LocalFleet::open(&path).is_err());
        let made = LocalFleet::create(&path, &wanted()).unwrap();
        // A host that an interrupted attempt did not get to.
        fs::remove_dir_all(made.host_folder(&made.hosts[1])).unwrap();
        made.complete().unwrap();
        let found = LocalFleet::open(&path).unwrap();
        assert_eq!((&found.hosts, &found.coordinator), (&made.hosts, &made.coordinator));
        assert!(found.require(&found.hosts).is_ok());
        let stranger = found.require(&[HostName::new("host-9").unwrap()]).unwrap_err();
        assert!(stranger.next().is_some_and(|next| next.contains("host-1 to host-2")), "{stranger}");
        assert_eq!(found.hosts.iter().map(HostName::as_str).collect::<Vec<_>>(), ["host-1", "host-2"]);
        for daemon in found.guards().iter().chain(&found.agents()).chain([&found.coordinator_daemon()]) {
            assert!(daemon.config().is_file(), "{daemon}");
        }
        let guard = fs::read_to_string(found.guards()[0].config()).unwrap();
        let guard: muster_guard::GuardConfig = toml::from_str(&guard).unwrap();
        let muster_guard::Driver::Supervise(service) = &guard.fleets[0].driver else { panic!("supervised") };
        assert_eq!(service.stop_timeout_ms, 750, "half of the lease");
        assert!(guard.validate().is_ok());
        assert_eq!((found.lease, found.timing().wait_ms), (Duration::from_millis(1500), 4300));
        let fence_ms = |lease| LocalFleet { lease, ..found.clone() }.timing().fence_ms;
        assert_eq!([1, 2, 15].map(|s| fence_ms(Duration::from_secs(s))), [2_000, 2_000, 3_750]);
    }

    #[test]
    fn the_folder_belongs_to_one_command_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = LocalFleet::lock(dir.path()).unwrap();
        let error = LocalFleet::lock(dir.path()).unwrap_err();
        assert!(matches!(error, CliError::Dev(DevError::InUse { .. })), "{error}");
        drop(lock);
        LocalFleet::lock(dir.path()).unwrap();
    }
}
