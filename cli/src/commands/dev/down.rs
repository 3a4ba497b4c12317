use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::super::Env;
use super::FleetFolder;
use super::fleet::LocalFleet;
use super::stop::{self, How, Stopped};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// Stop a local fleet: its agents, then its guards and their services, then its coordinator. Its folder is kept.
///
/// Only processes are ended that run one of our programs with a configuration file of this fleet. Stopping what does
/// not run is no error.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster dev down --dir ./fleet")]
pub(crate) struct Down {
    #[command(flatten)]
    fleet: FleetFolder,
}

impl Down {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let fleet = self.fleet.open(env)?;
        let _lock = LocalFleet::lock(&fleet.dir)?;
        let report = StoppedReport::new(fleet.dir.clone(), stop::all(&fleet)?);
        env.ui.report(&report)?;
        Ok(Exit::Proven)
    }
}

/// What was stopped.
#[derive(Debug, Serialize)]
pub(super) struct StoppedReport {
    dir: PathBuf,
    stopped: Vec<StoppedView>,
}

/// A process that was stopped.
#[derive(Debug, Serialize)]
pub(super) struct StoppedView {
    program: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    pid: i32,
    how: How,
}

impl From<Stopped> for StoppedView {
    fn from(Stopped { daemon, pid, how }: Stopped) -> Self {
        let (program, host) = (daemon.program.file_name(), daemon.host.map(|host| host.to_string()));
        Self { program, host, pid, how }
    }
}

impl StoppedView {
    /// Warns of a process that did not end in good order.
    pub(super) fn warn(&self, page: &mut Page) {
        let Self { program, host, pid, how } = self;
        if *how == How::Killed {
            let of = host.as_ref().map_or_else(String::new, |host| format!(" of {host}"));
            let text = format!("{program}{of} (process {pid}) did not end when asked to and was killed");
            page.labelled(Tone::Warning, "warning", text);
        }
    }
}

impl StoppedReport {
    /// A report on the fleet in `dir`.
    pub(super) fn new(dir: PathBuf, stopped: Vec<Stopped>) -> Self {
        Self { dir, stopped: stopped.into_iter().map(StoppedView::from).collect() }
    }

    /// The report in one line.
    pub(super) fn summary(&self) -> String {
        let dir = self.dir.display();
        match self.stopped.len() {
            0 => format!("nothing of the fleet in {dir} was running"),
            1 => format!("stopped 1 process; {dir} is kept"),
            count => format!("stopped {count} processes; {dir} is kept"),
        }
    }
}

impl Report for StoppedReport {
    const SCHEMA: &'static str = "muster.dev-down/1";

    fn print(&self, page: &mut Page) {
        self.stopped.iter().for_each(|stopped| stopped.warn(page));
        page.toned(Tone::Good, self.summary());
    }
}
