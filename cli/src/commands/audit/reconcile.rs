use clap::Args;
use muster_proto::v1;
use serde::Serialize;

use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// Settle that you have looked at an override and found it to be in order. It leaves the status; both stay in the log.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster audit reconcile 17 --reason rack-4-was-switched-off")]
pub(crate) struct Reconcile {
    /// The override's place in the log, as in `muster status`
    #[arg(value_name = "ENTRY")]
    entry: u64,
    /// Why it is in order, for whoever looks
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl Reconcile {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let request = v1::ReconcileAuditRequest { entry: self.entry, reason: self.reason };
        let mut client = session.operations();
        let doing = format!("reconcile entry {}", self.entry);
        let written = answer(&doing, client.reconcile_audit(request)).await?;
        env.ui.report(&Reconciled { reconciles: self.entry, entry: written.entry })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Reconciled {
    reconciles: u64,
    entry: u64,
}

impl Report for Reconciled {
    const SCHEMA: &'static str = "muster.audit-reconciled/1";

    fn print(&self, page: &mut Page) {
        let Self { reconciles, entry } = self;
        page.toned(Tone::Good, format_args!("entry {reconciles} is reconciled; entry {entry} says so"));
    }
}
