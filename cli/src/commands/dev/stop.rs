//! Stopping: agents first, then guards with the services they run, then the coordinator.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;

use super::DevError;
use super::fleet::{Daemon, LocalFleet, Program};
use super::process::{Process, daemons};
use crate::error::CliError;

/// How long agents and the coordinator may take to end in good order.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long guards may: each gives its service 10 seconds.
const GUARD_PATIENCE: Duration = Duration::from_secs(20);

/// How long the end takes that nobody can refuse.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A daemon that was stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stopped {
    /// Which one.
    pub(super) daemon: Daemon,
    /// Its process number.
    pub(super) pid: i32,
    /// How it ended.
    pub(super) how: How,
}

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum How {
    /// When it was asked to.
    Ended,
    /// By force.
    Killed,
}

/// The daemons of the fleet that run.
pub(super) fn running(fleet: &LocalFleet) -> Result<Vec<(Daemon, Process)>, CliError> {
    find(&fleet.daemons())
}

/// Stops everything of the fleet that runs.
pub(super) fn all(fleet: &LocalFleet) -> Result<Vec<Stopped>, CliError> {
    these(&fleet.daemons())
}

/// Stops those of these daemons that run: the agents, then the guards, then the coordinator.
pub(super) fn these(daemons: &[Daemon]) -> Result<Vec<Stopped>, CliError> {
    let mut stopped = Vec::new();
    for (program, patience) in
        [(Program::Agent, PATIENCE), (Program::Guard, GUARD_PATIENCE), (Program::Coordinator, PATIENCE)]
    {
        let of_program: Vec<Daemon> =
            daemons.iter().filter(|daemon| daemon.program == program).cloned().collect();
        stopped.extend(wave(&of_program, patience)?);
    }
    Ok(stopped)
}

/// Stops one daemon.
pub(super) fn one(daemon: &Daemon) -> Result<Option<Stopped>, CliError> {
    Ok(these(std::slice::from_ref(daemon))?.pop())
}

fn wave(daemons: &[Daemon], patience: Duration) -> Result<Vec<Stopped>, CliError> {
    let mut left = find(daemons)?;
    let mut stopped = Vec::new();
    // A process that was halted acts on a signal only once it goes on.
    for (signals, patience, how) in [
        (&[Signal::TERM, Signal::CONT][..], patience, How::Ended),
        (&[Signal::KILL][..], KILL_PATIENCE, How::Killed),
    ] {
        for (_, process) in &left {
            for signal in signals {
                process.signal(*signal).map_err(failed)?;
            }
        }
        let deadline = Instant::now() + patience;
        let mut stubborn = Vec::new();
        for (daemon, process) in left {
            if process.has_ended_by(deadline).map_err(failed)? {
                stopped.push(Stopped { daemon, pid: process.pid(), how });
            } else {
                stubborn.push((daemon, process));
            }
        }
        left = stubborn;
    }
    if !left.is_empty() {
        return Err(DevError::StillRunning { left: left.iter().map(describe).collect() }.into());
    }
    for daemon in daemons {
        forget(daemon)?;
    }
    Ok(stopped)
}

/// A process for people: `the agent of host-1 (process 42)`.
fn describe((daemon, process): &(Daemon, Process)) -> String {
    format!("{daemon} (process {})", process.pid())
}

fn find(wanted: &[Daemon]) -> Result<Vec<(Daemon, Process)>, CliError> {
    let wanted: BTreeMap<_, _> = wanted.iter().map(|daemon| (daemon.identity(), daemon)).collect();
    let found = daemons().map_err(failed)?;
    Ok(found
        .into_iter()
        .filter_map(|(identity, process)| Some(((*wanted.get(&identity)?).clone(), process)))
        .collect())
}

/// Removes the file with the process number, which means nothing any more.
fn forget(daemon: &Daemon) -> Result<(), CliError> {
    match fs::remove_file(daemon.pid_file()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CliError::file("remove", daemon.pid_file())(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(source: io::Error) -> CliError {
    CliError::System { doing: "look after the fleet's processes", source }
}
