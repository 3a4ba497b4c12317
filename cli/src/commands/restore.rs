use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use serde::Serialize;

use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// The binary that knows the coordinator's database; it lies beside ours.
const COORDINATOR: &str = "muster-coordinator";

/// Make a coordinator's state from a backup, with the coordinator stopped. The restored coordinator begins a new incarnation.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster restore coordinator.backup --state /var/lib/muster-coordinator")]
pub(crate) struct Restore {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The state folder to make; it must be empty or not exist
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

impl Restore {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let own = std::env::current_exe()
            .map_err(|source| CliError::System { doing: "find this program", source })?;
        let program = own.with_file_name(COORDINATOR);
        let output = Command::new(&program)
            .arg("restore")
            .arg("--from")
            .arg(&self.file)
            .arg("--state")
            .arg(&self.state)
            .output()
            .map_err(CliError::file("run", program.as_path()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !said.trim().is_empty() {
            env.ui.say(said.trim_end());
        }
        if !output.status.success() {
            let how = match (output.status.code(), output.status.signal()) {
                (Some(code), _) => format!("it ended with {code}"),
                (None, Some(signal)) => format!("signal {signal} ended it"),
                (None, None) => "it ended".to_owned(),
            };
            let reason = format!("{COORDINATOR} could not restore it: {how}");
            return Err(CliError::Content { path: self.file, reason });
        }
        env.ui.report(&Restored { backup: self.file, state: self.state })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Restored {
    backup: PathBuf,
    state: PathBuf,
}

impl Report for Restored {
    const SCHEMA: &'static str = "muster.restore/1";

    fn print(&self, page: &mut Page) {
        page.toned(
            Tone::Good,
            format_args!("restored {} to {}", self.backup.display(), self.state.display()),
        );
        page.line("Next: start the coordinator, and have the operators sign that it leads: `muster coordinator rebuild`");
    }
}
