use std::path::PathBuf;

use clap::Args;
use muster_model::FleetName;
use serde::Serialize;

use super::super::Env;
use super::FleetFolder;
use super::stop;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// Show the processes of a local fleet: which are up, and where each of them logs.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster dev ps --dir ./fleet")]
pub(crate) struct Ps {
    #[command(flatten)]
    fleet: FleetFolder,
}

impl Ps {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let fleet = self.fleet.open(env)?;
        let running = stop::running(&fleet)?;
        let processes = fleet.daemons().into_iter().map(|daemon| {
            let process = running.iter().find(|(found, _)| *found == daemon).map(|(_, process)| process);
            let log = daemon.log();
            Row {
                program: daemon.program.file_name(),
                called: daemon.program.stem(),
                host: daemon.host.map(|host| host.to_string()),
                up: process.is_some(),
                pid: process.map(super::process::Process::pid),
                log: log.strip_prefix(&fleet.dir).map_or_else(|_| log.clone(), PathBuf::from),
            }
        });
        env.ui.report(&Processes { processes: processes.collect(), fleet: fleet.name, dir: fleet.dir })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Processes {
    dir: PathBuf,
    fleet: FleetName,
    processes: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    program: &'static str,
    #[serde(skip)]
    called: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    up: bool,
    pid: Option<i32>,
    /// Below the fleet's folder.
    log: PathBuf,
}

impl Report for Processes {
    const SCHEMA: &'static str = "muster.dev-ps/1";

    fn print(&self, page: &mut Page) {
        let rows = self.processes.iter().map(|row| {
            [
                row.called.to_owned(),
                row.host.clone().unwrap_or_else(|| "-".to_owned()),
                if row.up { "up" } else { "down" }.to_owned(),
                row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                row.log.display().to_string(),
            ]
        });
        page.table(["PROCESS", "HOST", "STATE", "PID", "LOG"], rows.collect());
        page.gap();
        let (up, all) = (self.processes.iter().filter(|row| row.up).count(), self.processes.len());
        let (fleet, dir) = (&self.fleet, self.dir.display());
        let tone = if up == all { Tone::Good } else { Tone::Warning };
        page.toned(tone, format_args!("{up} of {all} processes of {fleet} are up, in {dir}"));
        if up < all {
            page.line(format_args!("Next: muster dev up --dir {dir} --detach   (starts what is down)"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_down_is_seen_and_how_to_start_it() {
        let row = |called: &'static str, host: Option<&str>, pid| Row {
            program: "muster-agent",
            called,
            host: host.map(str::to_owned),
            up: pid != 0,
            pid: (pid != 0).then_some(pid),
            log: format!("{called}.log").into(),
        };
        let processes = vec![
            row("coordinator", None, 40),
            row("guard", Some("host-1"), 41),
            row("agent", Some("host-1"), 0),
        ];
        let fleet = FleetName::new("demo").unwrap();
        let mut page = Page::new(false);
        Processes { dir: "/tmp/fleet".into(), fleet, processes }.print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        PROCESS      HOST    STATE  PID  LOG
        coordinator  -       up     40   coordinator.log
        guard        host-1  up     41   guard.log
        agent        host-1  down   -    agent.log

        2 of 3 processes of demo are up, in /tmp/fleet
        Next: muster dev up --dir /tmp/fleet --detach   (starts what is down)
        ");
    }
}
