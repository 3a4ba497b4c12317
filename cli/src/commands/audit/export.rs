use std::path::PathBuf;

use clap::Args;
use muster_audit::{export_header, export_line};
use serde::Serialize;

use super::LogView;
use super::fetch::Fetch;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, Unfinished};
use crate::output::{Page, Report, Tone, counted};

/// Save the whole audit log to a file that verifies offline.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster audit export 2026-11.audit")]
pub(crate) struct Export {
    /// The file to write; it must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Export {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let known = session.context().audit_key().cloned();
        let fetch = Fetch::begin(&session, known.as_ref(), "export the audit log").await?;
        let mut file = Unfinished::create(&self.file, 0o644, Existing::Keep)?;
        file.append(export_header(fetch.key(), fetch.checkpoint()).as_bytes())?;
        let (log, known) = fetch.all(|bytes, _| file.append(&export_line(bytes))).await?;
        file.finish()?;
        env.ui.report(&Exported { file: self.file, log: LogView::new(log, known) })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Exported {
    file: PathBuf,
    #[serde(flatten)]
    log: LogView,
}

impl Report for Exported {
    const SCHEMA: &'static str = "muster.audit-exported/1";

    fn print(&self, page: &mut Page) {
        let (entries, file) = (counted(self.log.entries, "entry"), self.file.display());
        page.toned(Tone::Good, format_args!("saved {entries} of {} to {file}", self.log.origin));
        page.line(format_args!("Next: muster audit verify {file} --key {}", self.log.key));
    }
}
