use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::super::Env;
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
    /// The folder that `muster dev up` made
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Down {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let fleet = LocalFleet::open(&self.dir)?;
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

#[derive(Debug, Serialize)]
struct StoppedView {
    program: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    pid: i32,
    how: How,
}

impl StoppedReport {
    /// A report on the fleet in `dir`.
    pub(super) fn new(dir: PathBuf, stopped: Vec<Stopped>) -> Self {
        let view = |Stopped { daemon, pid, how }: Stopped| StoppedView {
            program: daemon.program.file_name(),
            host: daemon.host.map(|host| host.to_string()),
            pid,
            how,
        };
        Self { dir, stopped: stopped.into_iter().map(view).collect() }
    }

    /// The report in one line.
    pub(super) fn summary(&self) -> String {
        let dir = self.dir.display();
        match self.stopped.len() {
            0 => format!("nothing of the fleet in {dir} was running"),
            count => format!("stopped {count} processes; {dir} is kept"),
        }
    }
}

impl Report for StoppedReport {
    const SCHEMA: &'static str = "muster.dev-down/1";

    fn print(&self, page: &mut Page) {
        let killed = self.stopped.iter().filter(|stopped| stopped.how == How::Killed);
        for StoppedView { program, host, pid, .. } in killed {
            let of = host.as_ref().map_or_else(String::new, |host| format!(" of {host}"));
            let text = format!("{program}{of} (process {pid}) did not end when asked to and was killed");
            page.labelled(Tone::Warning, "warning", text);
        }
        page.toned(Tone::Good, self.summary());
    }
}
