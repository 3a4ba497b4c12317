//! What the verbs share that move a host in its roster.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use muster_model::{FleetName, HostName};
use muster_proto::v1;
use serde::Serialize;

use crate::args::{FleetArg, duration};
use crate::commands::order::Approvals;
use crate::error::CliError;
use crate::output::{Page, Report, Tone, counted};

/// How long a host is waited for.
pub(super) const TIMEOUT: &str = "1m";

/// A host that is to leave, for a while or for good.
#[derive(Debug, Args)]
pub(super) struct Leaving {
    /// The host
    #[arg(value_name = "NAME")]
    pub(super) name: HostName,
    #[command(flatten)]
    pub(super) fleet: FleetArg,
    /// Why, for whoever looks. It is signed
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
    /// State that its machine is off or wiped: it need not answer. Be sure: nothing else keeps it from serving
    #[arg(long)]
    pub(super) fenced: bool,
    /// How long to wait until it has closed
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = TIMEOUT)]
    pub(super) timeout: Duration,
    /// Where several operators must sign: write the roster to this file [default: park-NAME.json, retire-NAME.json]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Leaving {
    /// The file of a step where several must sign.
    pub(super) fn file(&self, step: &str) -> PathBuf {
        self.out.clone().unwrap_or_else(|| format!("{step}-{}.json", self.name).into())
    }
}

/// What a host is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// Others must sign before anything happens.
    Drafted,
    Parked,
    Serving,
    Retired,
}

/// How it went.
#[derive(Debug, Serialize)]
pub(super) struct Moved {
    fleet: FleetName,
    host: HostName,
    #[serde(skip)]
    verb: &'static str,
    outcome: Outcome,
    /// The revision in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// How many hosts serve with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificates_revoked: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approvals: Option<Approvals>,
}

impl Moved {
    pub(super) fn of(
        fleet: FleetName,
        host: HostName,
        verb: &'static str,
        outcome: Outcome,
        status: &v1::FleetStatus,
    ) -> Self {
        let (revision, hosts) = (Some(status.roster_revision), Some(status.hosts.len()));
        let (certificates_revoked, file, approvals) = (None, None, None);
        Self { fleet, host, verb, outcome, revision, hosts, certificates_revoked, file, approvals }
    }

    pub(super) fn drafted(
        fleet: FleetName,
        host: HostName,
        verb: &'static str,
        file: PathBuf,
        approvals: Approvals,
    ) -> Self {
        let (file, approvals, outcome) = (Some(file), Some(approvals), Outcome::Drafted);
        let (revision, hosts, certificates_revoked) = (None, None, None);
        Self { fleet, host, verb, outcome, revision, hosts, certificates_revoked, file, approvals }
    }
}

impl Report for Moved {
    const SCHEMA: &'static str = "muster.host-move/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, host, .. } = self;
        let others = counted(self.hosts.unwrap_or_default(), "host");
        match self.outcome {
            Outcome::Parked => page.toned(
                Tone::Good,
                format_args!("{host} is parked: it has closed, and {fleet} serves and flips with {others}"),
            ),
            Outcome::Serving => {
                page.toned(Tone::Good, format_args!("{host} is back: {fleet} serves with {others}"));
            }
            Outcome::Retired => {
                page.toned(Tone::Good, format_args!("{host} has retired: {fleet} has {others}"));
            }
            Outcome::Drafted => {}
        }
        if let Some(count) = self.certificates_revoked {
            page.line(format_args!(
                "it was evicted: {} that the coordinator knows, and any other",
                counted(count, "certificate")
            ));
        }
        if let (Some(file), Some(approvals)) = (&self.file, &self.approvals) {
            let file = file.display();
            page.line(format_args!("wrote {file}: nothing has changed before others have signed it"));
            approvals.print(page);
            page.line(format_args!(
                "Next: `muster roster sign {file}` by who must still sign, then `muster roster apply {file}`,"
            ));
            page.line(format_args!("and `muster host {} {host}` again to wait for it", self.verb));
        }
    }
}

/// A host that cannot be moved because the roster does not have it.
pub(super) fn in_no_roster(host: &HostName, fleet: &FleetName) -> CliError {
    CliError::Absent {
        what: format!("{host} neither serves in {fleet} nor is it parked there"),
        next: format!(
            "see `muster roster show --fleet {fleet}`; `muster roster draft {host} …` or `roster propose` adds it"
        ),
    }
}
