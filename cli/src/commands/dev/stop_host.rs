use std::path::PathBuf;

use clap::Args;
use muster_model::HostName;
use serde::Serialize;

use super::super::Env;
use super::down::StoppedView;
use super::fleet::LocalFleet;
use super::{HostPrograms, stop};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// Stop hosts of a local fleet in good order, as if their machines were shut down. The others run on.
///
/// Stopping what does not run is no error.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster dev stop host-3 --dir ./fleet
  muster dev stop host-3 --only agent")]
pub(crate) struct StopHost {
    #[command(flatten)]
    wanted: HostPrograms,
}

impl StopHost {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let (hosts, fleet, daemons) = self.wanted.open(env)?;
        let _lock = LocalFleet::lock(&fleet.dir)?;
        let stopped = stop::these(&daemons)?;
        let lines = hosts.iter().map(|host| {
            let of_host = stopped.iter().filter(|stopped| stopped.daemon.host.as_ref() == Some(host));
            line(host, &of_host.map(|stopped| stopped.daemon.program.stem()).collect::<Vec<_>>())
        });
        env.ui.report(&HostsStopped {
            lines: lines.collect(),
            hosts,
            dir: fleet.dir,
            stopped: stopped.into_iter().map(StoppedView::from).collect(),
        })?;
        Ok(Exit::Proven)
    }
}

fn line(host: &HostName, stopped: &[&str]) -> String {
    match stopped {
        [] => format!("{host}: was down already"),
        stopped => format!("{host}: {} stopped", stopped.join(" and ")),
    }
}

#[derive(Debug, Serialize)]
struct HostsStopped {
    dir: PathBuf,
    stopped: Vec<StoppedView>,
    #[serde(skip)]
    hosts: Vec<HostName>,
    #[serde(skip)]
    lines: Vec<String>,
}

impl Report for HostsStopped {
    const SCHEMA: &'static str = "muster.dev-stop/1";

    fn print(&self, page: &mut Page) {
        self.stopped.iter().for_each(|stopped| stopped.warn(page));
        self.lines.iter().for_each(|line| page.toned(Tone::Good, line));
        let hosts: Vec<&str> = self.hosts.iter().map(HostName::as_str).collect();
        page.line(format_args!("Next: muster dev start {} --dir {}", hosts.join(" "), self.dir.display()));
    }
}
