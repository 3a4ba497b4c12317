//! `muster rehearse`: a release's self-test on every host, before anything is flipped.

use std::time::Duration;

use clap::Args;
use muster_model::{Blocker, FleetName, HostName};
use serde::Serialize;

use crate::args::{FleetArg, duration};
use crate::clock::span_text;
use crate::commands::Env;
use crate::commands::check::{Asked, HostVerdict, Verdict, Wanted};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};
use crate::resolve::ReleaseName;
use crate::view::ReleaseView;

/// Have all hosts run a release's self-test where it is deployed, beside what is served, and prove that it passes on all of them.
///
/// What is run is named by each host's own guard.toml (`hooks.rehearse`), with a time-out: no command goes over the network. A
/// host measures the release before and after the test, and signs that it has passed; the signatures are verified here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster deploy 1.4.0 && muster rehearse 1.4.0 && muster flip 1.4.0
  muster rehearse 1.4.0 --timeout 30m --output json")]
pub(crate) struct Rehearse {
    /// The release: its digest, at least 8 hex digits of it, or its version
    #[arg(value_name = "RELEASE")]
    release: ReleaseName,
    #[command(flatten)]
    fleet: FleetArg,
    /// How long to wait for the hosts
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "15m")]
    timeout: Duration,
}

impl Rehearse {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let known = session.release(&fleet, &self.release).await?;
        let roster = session.roster(&fleet).await?;
        let release = ReleaseView::from(&known);
        let (wanted, timeout) = (Wanted::Rehearsal, self.timeout);
        let asked = Asked { fleet: &fleet, release: &release, wanted, max_age: None, timeout };
        let verdict = Box::pin(asked.of_all_hosts(env, &session, roster.document())).await?;
        let report = Rehearsed::new(fleet, release, verdict);
        env.ui.report(&report)?;
        Ok(report.exit_code)
    }
}

#[derive(Debug, Serialize)]
struct Rehearsed {
    fleet: FleetName,
    release: ReleaseView,
    hosts: usize,
    passed: usize,
    results: Vec<HostRow>,
    blockers: Vec<Blocker>,
    exit_code: Exit,
}

#[derive(Debug, Serialize)]
struct HostRow {
    host: HostName,
    /// Whether the host has signed that the self-test has passed, on exactly this release.
    passed: bool,
    /// How long the self-test took, if it has passed.
    took_ms: Option<u64>,
    blockers: Vec<Blocker>,
}

impl Rehearsed {
    fn new(fleet: FleetName, release: ReleaseView, verdict: Verdict) -> Self {
        let (exit_code, blockers) = (verdict.exit(), verdict.blockers());
        let row = |HostVerdict { host, identical, rehearsal_ms, blockers, .. }: HostVerdict| HostRow {
            host,
            passed: identical && rehearsal_ms.is_some(),
            took_ms: rehearsal_ms,
            blockers,
        };
        let results: Vec<HostRow> = verdict.hosts.into_iter().map(row).collect();
        let passed = results.iter().filter(|row| row.passed).count();
        Self { fleet, release, hosts: results.len(), passed, results, blockers, exit_code }
    }
}

impl Report for Rehearsed {
    const SCHEMA: &'static str = "muster.rehearse/1";

    fn print(&self, page: &mut Page) {
        let rows = self.results.iter().map(|row| {
            let result = match (row.passed, row.blockers.first()) {
                (true, _) => "passed",
                (false, Some(blocker)) => blocker.code.as_str(),
                (false, None) => "no proof",
            };
            let took = row.took_ms.map_or_else(|| "-".to_owned(), span_text);
            [row.host.to_string(), result.to_owned(), took]
        });
        page.table(["HOST", "RESULT", "TOOK"], rows.collect());
        page.gap();
        let Self { passed, hosts, release, .. } = self;
        let tone = if self.exit_code == Exit::Proven { Tone::Good } else { Tone::Bad };
        page.toned(tone, format_args!("the self-test of {release} passed on {passed} of {hosts} hosts"));
        page.blockers(&self.blockers);
    }
}
