//! `muster adopt`: what hosts run before any release does, and how they differ.

mod survey;

use std::time::Duration;

use clap::Args;
use muster_model::{Blocker, Change, ChangeKind, FleetName, HostName};
use muster_proto::v1;
use muster_proto::v1::adopt_event::Event;
use serde::Serialize;

use self::survey::{Group, Survey};
use crate::args::duration;
use crate::clock::{millis, unix_time};
use crate::commands::Env;
use crate::connect::Events;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{HostBars, Page, Report, Tone, bytes_text, counted};

/// How many differences of one tree people are shown.
const SHOWN_MAX: usize = 20;

/// Measure what the fleet's hosts run before any release does, and show how they differ. Nothing is changed.
///
/// Each host measures the folder that its own agent.toml names (`adopt_from`), and signs what it found; the signatures are
/// verified here. Where all have the same, that tree can become the first release: push a copy of it, and deploy it (hosts take
/// from the folder what they have). What runs goes on, unmanaged, until the first flip.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster adopt web
  muster adopt web --output json")]
pub(crate) struct Adopt {
    /// The fleet [default: the context's, or the only one there is]
    #[arg(value_name = "FLEET")]
    fleet: Option<FleetName>,
    /// How long to wait for the hosts
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    timeout: Duration,
}

impl Adopt {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet).await?;
        let roster = session.roster(&fleet).await?;
        let roster = roster.document();
        let doing = format!("ask what the hosts of {fleet} run");
        let names: Vec<_> = roster.hosts().iter().map(|host| host.name.clone()).collect();
        let mut bars = HostBars::new(&env.ui, &names, 1);
        let mut survey = Survey::new(roster, unix_time());
        let mut client = session.operations();
        let request = v1::AdoptRequest { fleet: fleet.to_string(), timeout_ms: millis(self.timeout) };
        let mut events = Box::pin(Events::open(&doing, self.timeout, client.adopt(request))).await?;
        let finished = loop {
            match events.next().await?.event {
                Some(Event::Host(answer)) => {
                    let host = survey.hear(answer).map_err(CliError::answer(doing.as_str()))?;
                    bars.end(&host, "has answered");
                }
                Some(Event::Manifest(part)) => {
                    survey.hear_manifest(part).map_err(CliError::answer(doing.as_str()))?;
                }
                Some(Event::Finished(finished)) => break finished,
                None => {}
            }
        };
        let (groups, blockers) = survey.close(finished).map_err(CliError::answer(doing.as_str()))?;
        let report = Adopted::new(fleet, names.len(), groups, blockers);
        env.ui.report(&report)?;
        Ok(report.exit_code)
    }
}

#[derive(Debug, Serialize)]
struct Adopted {
    fleet: FleetName,
    hosts: usize,
    /// Whether every host has attested the same tree.
    identical: bool,
    /// What hosts have, those that most have first; the others are compared with it.
    groups: Vec<Group>,
    blockers: Vec<Blocker>,
    exit_code: Exit,
}

impl Adopted {
    fn new(fleet: FleetName, hosts: usize, groups: Vec<Group>, blockers: Vec<Blocker>) -> Self {
        let identical =
            hosts > 0 && blockers.is_empty() && groups.len() == 1 && groups[0].hosts.len() == hosts;
        let exit_code = if identical { Exit::Proven } else { Exit::of_blockers(&blockers) };
        Self { fleet, hosts, identical, groups, blockers, exit_code }
    }
}

impl Report for Adopted {
    const SCHEMA: &'static str = "muster.adopt/1";

    fn print(&self, page: &mut Page) {
        let rows = self.groups.iter().map(|group| {
            [
                group.digest.short(),
                group.hosts.len().to_string(),
                group.files.to_string(),
                bytes_text(group.bytes),
                names(&group.hosts),
            ]
        });
        page.table(["TREE", "COUNT", "FILES", "BYTES", "HOSTS"], rows.collect());
        for group in self.groups.iter().skip(1) {
            page.gap();
            let (short, first) = (group.digest.short(), self.groups[0].digest.short());
            match &group.changes {
                Some(changes) => print_changes(page, group, changes, (&short, &first)),
                None => {
                    page.line(format_args!("{short} ({}): how it differs is not known", names(&group.hosts)))
                }
            }
        }
        page.gap();
        match self.groups.first() {
            Some(group) if self.identical => {
                page.toned(
                    Tone::Good,
                    format_args!("{} have the same tree: {}", counted(self.hosts, "host"), group.digest),
                );
                page.line(format_args!(
                    "next: `muster release push TREE --version 1` with a copy of it must say the same digest; `muster deploy 1` \
                     then puts it beside what runs, which goes on unmanaged until the first `muster flip 1`"
                ));
            }
            Some(_) | None => {
                let most = self.groups.first().map_or(0, |group| group.hosts.len());
                page.toned(Tone::Bad, format_args!("at most {most} of {} hosts have the same", self.hosts));
            }
        }
        page.blockers(&self.blockers);
    }
}

fn print_changes(page: &mut Page, group: &Group, changes: &[Change], (short, first): (&str, &str)) {
    page.line(format_args!("{short} ({}) against {first}:", names(&group.hosts)));
    for change in changes.iter().take(SHOWN_MAX) {
        let tone = match &change.kind {
            ChangeKind::Added { .. } | ChangeKind::RuleAdded { .. } => Tone::Good,
            ChangeKind::Removed { .. } | ChangeKind::RuleRemoved { .. } => Tone::Bad,
            ChangeKind::Modified { .. } => Tone::Warning,
        };
        page.toned(tone, format_args!("  {change}"));
    }
    let more = group.changes_total.saturating_sub(SHOWN_MAX);
    if more > 0 {
        page.line(format_args!("  and {more} more; --output json shows {}", changes.len()));
    }
}

fn names(hosts: &[HostName]) -> String {
    const NAMED_MAX: usize = 4;
    let named: Vec<&str> = hosts.iter().take(NAMED_MAX).map(HostName::as_str).collect();
    let more = hosts.len().saturating_sub(NAMED_MAX);
    if more == 0 { named.join(", ") } else { format!("{} and {more} more", named.join(", ")) }
}
