//! `muster dev`: a whole fleet on this machine, with the real programs, for development and for seeing how it works.
//!
//! All processes have their own process group and outlive the command that started them; they are found again by their
//! command line, so that nothing else is ever ended in their place, whatever a file with a process number says.

mod demo;
mod down;
mod error;
mod fleet;
mod port;
mod process;
mod ps;
mod ready;
mod roster;
mod start;
mod start_host;
mod stop;
mod stop_host;
mod up;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use muster_model::HostName;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) use error::DevError;

use self::fleet::{Daemon, LocalFleet, Program};
use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Run a fleet on this machine: real processes, real mutual TLS.
#[derive(Debug, Subcommand)]
pub(crate) enum Dev {
    Up(up::Up),
    Down(down::Down),
    Ps(ps::Ps),
    Stop(stop_host::StopHost),
    Start(start_host::StartHost),
    Demo(demo::Demo),
}

impl Dev {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Up(up) => Box::pin(up.run(env)).await,
            Self::Down(down) => down.run(env),
            Self::Ps(ps) => ps.run(env),
            Self::Stop(stop) => stop.run(env),
            Self::Start(start) => Box::pin(start.run(env)).await,
            Self::Demo(demo) => Box::pin(demo.run(env)).await,
        }
    }
}

/// Which local fleet is meant.
#[derive(Debug, Args)]
struct FleetFolder {
    /// The folder that `muster dev up` made [default: the one that holds the context]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl FleetFolder {
    fn open(self, env: &Env) -> Result<LocalFleet, CliError> {
        LocalFleet::open(&super::host::fleet_folder(self.dir, env)?)
    }
}

/// Programs of hosts, as they are named on the command line.
#[derive(Debug, Args)]
struct HostPrograms {
    /// The hosts
    #[arg(value_name = "HOST", required = true)]
    hosts: Vec<HostName>,
    /// Only this of their programs
    #[arg(long, value_enum, value_name = "PROGRAM")]
    only: Option<Part>,
    #[command(flatten)]
    fleet: FleetFolder,
}

impl HostPrograms {
    /// The hosts, all of which are in the fleet, the fleet, and their programs that are meant.
    fn open(self, env: &Env) -> Result<(Vec<HostName>, LocalFleet, Vec<Daemon>), CliError> {
        let fleet = self.fleet.open(env)?;
        fleet.require(&self.hosts)?;
        let parts = Part::programs(self.only);
        let on_host = |host| parts.iter().map(|program| fleet.on(*program, host)).collect::<Vec<_>>();
        let daemons = self.hosts.iter().flat_map(on_host).collect();
        Ok((self.hosts, fleet, daemons))
    }
}

/// One of a host's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Without it the coordinator knows nothing of the host, and nothing reaches the guard
    Agent,
    /// Without it the host can neither open nor close; its service ends with it
    Guard,
}

impl Part {
    /// What is meant, in the order in which it is started: all of a host if nothing was named.
    fn programs(only: Option<Self>) -> &'static [Program] {
        match only {
            None => &[Program::Guard, Program::Agent],
            Some(Self::Agent) => &[Program::Agent],
            Some(Self::Guard) => &[Program::Guard],
        }
    }
}

/// What asks a command of this process to end. From here on no such signal ends it by itself.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    fn listen() -> Result<Self, CliError> {
        let listen =
            |kind| signal(kind).map_err(|source| CliError::System { doing: "listen for signals", source });
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
