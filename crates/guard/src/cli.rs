//! The command line of `muster-guard`.
//!
//! `run` is the guard. `keep-service` and `exec-service` are steps between the guard and a supervised command or a hook,
//! `drill-service` is what a drill stops; they are hidden, as only the guard calls them. Together they see to it that a service does not outlive its guard: the keeper
//! reads the guard's end of a pipe, and kills every descendant of the service when that ends, however the guard ended;
//! the service itself is killed by the kernel if the keeper dies.
//!
//! A guard that may lock any amount of memory (`LimitMEMLOCK=infinity`) keeps its pages, so that a disk that hangs cannot
//! keep it from running its own code.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use muster_model::FleetName;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getrlimit};

use crate::config::{GuardConfig, StopSignal};
use crate::drill;
use crate::error::GuardError;
use crate::keeper::{self, Keep};
use crate::log::log;
use crate::permit;
use crate::server;
use crate::shutdown::Shutdown;
use crate::units::gate;

/// Where the packages put it.
const DEFAULT_CONFIG: &str = "/etc/muster/guard.toml";

/// What a shell answers for a command that cannot be run.
const CANNOT_EXECUTE: u8 = 127;

#[derive(Debug, Parser)]
#[command(
    name = "muster-guard",
    version,
    about = "Owns this host's link and service, and answers to its agent."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the guard until SIGTERM or SIGINT.
    Run {
        /// The guard's configuration, in TOML.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Tell by the exit status whether a unit of this fleet may be started: 0 yes, 1 no, 255 unknown.
    ///
    /// systemd asks before each start of a unit whose fleet has `driver.systemd`; the reason goes to the unit's journal.
    Permit {
        /// The fleet.
        fleet: FleetName,
        /// The guard's configuration, in TOML.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Look into the configuration.
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// See to the start gates of units.
    Gate {
        #[command(subcommand)]
        verb: GateVerb,
    },
    /// Keep one run of a service (called by the guard).
    #[command(hide = true)]
    KeepService {
        #[arg(long)]
        stop_signal: StopSignal,
        #[arg(long)]
        cgroup: Option<PathBuf>,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Be hard to stop (called by a drill).
    #[command(hide = true)]
    DrillService {
        #[arg(long)]
        children: u32,
    },
    /// Become a service (called by its keeper).
    #[command(hide = true)]
    ExecService {
        #[arg(long)]
        parent_pid: i32,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Read the configuration with its drop-ins, and say all that is wrong with it.
    #[command(after_help = "Example:
  muster-guard config check && systemctl restart muster-guard")]
    Check {
        /// The guard's configuration, as for `run`.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Print what all its files say together, and which line of which file says it.
    Show {
        /// The guard's configuration, as for `run`.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum GateVerb {
    /// Take all start gates of this host away, and have systemd read its units again. A guard that is started makes them
    /// anew, so end it first. What runs goes on running.
    Remove,
}

/// Parses this process's arguments and does what they say; the whole of `muster-guard`'s `main`.
pub fn main() -> Result<ExitCode, GuardError> {
    match Cli::parse().verb {
        Verb::Run { config } => {
            let settings = GuardConfig::load(&config)?;
            keep_in_memory();
            let shutdown = Shutdown::on_signals()?;
            server::run_managed(&settings, &shutdown)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Permit { fleet, config } => Ok(permit::answer(&fleet, &config)),
        Verb::Config { verb: ConfigVerb::Check { config } } => {
            let settings = GuardConfig::load(&config)?;
            let fleets: Vec<&str> = settings.fleets.iter().map(|fleet| fleet.name.as_str()).collect();
            print(&format!("{}: fleets {}\n", settings.host, fleets.join(", ")))
        }
        Verb::Config { verb: ConfigVerb::Show { config } } => {
            let text = GuardConfig::fragments(&config)?.show();
            print(&text.map_err(|source| GuardError::Configuration { source })?)
        }
        Verb::Gate { verb: GateVerb::Remove } => {
            for file in gate::remove_all()? {
                log!("removed {}", file.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::KeepService { stop_signal, cgroup, command } => {
            Ok(ended("cannot keep the service", keeper::keep(Keep { stop_signal, cgroup, command })))
        }
        Verb::DrillService { children } => Ok(ended("cannot serve for a drill", drill::serve(children))),
        Verb::ExecService { parent_pid, command } => {
            let error = keeper::exec(parent_pid, &command);
            log!("{error}");
            Ok(ExitCode::from(CANNOT_EXECUTE))
        }
    }
}

fn print(text: &str) -> Result<ExitCode, GuardError> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(GuardError::io("write", Path::new("standard output")))?;
    Ok(ExitCode::SUCCESS)
}

fn ended(what: &str, result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log!("{what}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Only without a limit: with one, a later thread could fail for want of memory that may be locked.
fn keep_in_memory() {
    if getrlimit(Resource::Memlock).current.is_some() {
        return;
    }
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(flags) {
        log!("cannot stay in memory: {error}");
    }
}
