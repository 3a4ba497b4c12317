use std::time::Duration;

use clap::Args;
use muster_audit::{Entry, Kind};
use muster_model::{FleetName, UnixTime};
use serde::Serialize;

use super::LogView;
use super::fetch::Fetch;
use crate::args::duration;
use crate::clock::{date_text, millis, unix_time};
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, counted};

/// Show the audit log, oldest entry first. All of it is verified before any of it is shown.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster audit log
  muster audit log --since 24h --kind halt --kind fence --fleet demo")]
pub(crate) struct Log {
    /// Only entries that are not older than this
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// Only entries of this kind; may be repeated
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Vec<Kind>,
    /// Only entries of this fleet
    #[arg(long, short, value_name = "FLEET")]
    fleet: Option<FleetName>,
}

impl Log {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let known = session.context().audit_key().cloned();
        let fetch = Fetch::begin(&session, known.as_ref(), "read the audit log").await?;
        let from =
            self.since.map_or(UnixTime(0), |since| UnixTime(unix_time().0.saturating_sub(millis(since))));
        let mut results = Vec::new();
        let (log, known) = fetch
            .all(|_, entry| {
                if entry.at_unix_ms >= from && self.wants(&entry) {
                    results.push(entry);
                }
                Ok(())
            })
            .await?;
        env.ui.report(&Listed { log: LogView::new(log, known), results })?;
        Ok(Exit::Proven)
    }

    fn wants(&self, entry: &Entry) -> bool {
        (self.kind.is_empty() || self.kind.contains(&entry.kind))
            && (self.fleet.is_none() || entry.fleet == self.fleet)
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    let kinds = || Kind::ALL.iter();
    kinds().copied().find(|kind| kind.as_str() == text).ok_or_else(|| {
        let words: Vec<&str> = kinds().map(|kind| kind.as_str()).collect();
        format!("the kinds are {}", words.join(", "))
    })
}

#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    log: LogView,
    results: Vec<Entry>,
}

impl Report for Listed {
    const SCHEMA: &'static str = "muster.audit-log/1";

    fn print(&self, page: &mut Page) {
        for entry in &self.results {
            let fleet = entry.fleet.as_ref().map_or(String::new(), |fleet| format!(" {fleet}"));
            let rollout = entry.rollout.map_or(String::new(), |k| format!(" rollout {k}"));
            let at = date_text(entry.at_unix_ms);
            page.line(format_args!(
                "{:>6}  {at}  {:<9}{fleet}{rollout}  {}",
                entry.entry, entry.kind, entry.who
            ));
            let hosts: Vec<&str> = entry.hosts.iter().map(|host| host.as_str()).collect();
            let of_hosts = (!hosts.is_empty()).then(|| hosts.join(", "));
            let of_entry = entry.reconciles.map(|it| format!("reconciles entry {it}"));
            let detail = (!entry.detail.is_empty()).then(|| entry.detail.clone());
            for text in of_hosts.into_iter().chain(of_entry).chain(detail) {
                page.line(format_args!("        {text}"));
            }
        }
        let (shown, all) = (self.results.len(), counted(self.log.entries, "entry"));
        page.line(format_args!("{shown} of {all}, all verified"));
    }
}
