use std::path::PathBuf;

use clap::Args;
use muster_model::HostName;
use serde::Serialize;

use super::super::Env;
use super::fleet::{Daemon, LocalFleet, Program};
use super::start::{self, Programs, StartedView, started_lines};
use super::{HostPrograms, ready, stop};
use crate::connect::Session;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// Start hosts of a local fleet that are down, and wait until they are connected.
///
/// Starting what runs is no error. What was started stays up even if it does not get through to the coordinator in time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster dev start host-3 --dir ./fleet
  muster dev start host-3 --only guard")]
pub(crate) struct StartHost {
    #[command(flatten)]
    wanted: HostPrograms,
}

impl StartHost {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let programs = Programs::beside_this()?;
        let (hosts, fleet, mut missing) = self.wanted.open(env)?;
        let _lock = LocalFleet::lock(&fleet.dir)?;
        let running: Vec<Daemon> = stop::running(&fleet)?.into_iter().map(|(daemon, _)| daemon).collect();
        missing.retain(|daemon| !running.contains(daemon));

        let mut started = start::on_hosts(&fleet, &programs, &missing).await?;
        let is_agent = |daemon: &&Daemon| daemon.program == Program::Agent;
        let agents: Vec<HostName> =
            missing.iter().filter(is_agent).filter_map(|daemon| daemon.host.clone()).collect();
        if !running.contains(&fleet.coordinator_daemon()) {
            let dir = fleet.dir.display();
            env.ui.warn(format_args!(
                "the coordinator is down, so no host can connect; `muster dev up --dir {dir} --detach` starts it"
            ));
        } else if !agents.is_empty() {
            let session = Box::pin(Session::open(Some(&fleet.context()))).await?;
            Box::pin(ready::agents(&fleet, &agents, &session, &mut started)).await?;
        }
        let started: Vec<StartedView> = started.iter().map(StartedView::from).collect();
        let up = hosts.iter().filter(|host| !missing.iter().any(|m| m.host.as_ref() == Some(*host)));
        env.ui.report(&HostsStarted { up: up.cloned().collect(), started, dir: fleet.dir })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct HostsStarted {
    dir: PathBuf,
    started: Vec<StartedView>,
    /// Those that were up already.
    up: Vec<HostName>,
}

impl Report for HostsStarted {
    const SCHEMA: &'static str = "muster.dev-start/1";

    fn print(&self, page: &mut Page) {
        started_lines(&self.started).iter().for_each(|line| page.toned(Tone::Good, line));
        for host in &self.up {
            page.line(format_args!("{host}: was up already"));
        }
    }
}
