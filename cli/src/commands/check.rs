//! `muster check`: the question that pipelines ask before a release.

mod judge;

use std::time::Duration;

use clap::Args;
use muster_model::{Blocker, FleetName, HostName, Roster, Verified};
use muster_proto::v1;
use muster_proto::v1::check_event::Event;
use serde::Serialize;

pub(super) use self::judge::{HostVerdict, Verdict, Wanted};
use self::judge::{Judge, Question};
use crate::args::duration;
use crate::clock::{millis, span_text, unix_time};
use crate::commands::Env;
use crate::connect::{Events, Session};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Format, HostBars, Page, Report, Tone, bytes_text, junit};
use crate::resolve::ReleaseName;
use crate::view::ReleaseView;

/// Ask all hosts to measure a release now, and prove that all N of them have exactly it. Nothing is changed.
///
/// Every attestation is verified here, with the roster's keys: the coordinator can hold answers back, but not make one
/// up. That answers are young rests on the coordinator's challenge and on the hosts' clocks.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster check --fleet demo --release 1.4.0
  muster check --release sha256:… --output junit > muster.xml")]
pub(crate) struct Check {
    /// The fleet [default: the context's, or the only one there is]
    #[arg(long, short, value_name = "FLEET")]
    fleet: Option<FleetName>,
    /// The release: its digest, at least 8 hex digits of it, or its version
    #[arg(long, short, value_name = "RELEASE")]
    release: ReleaseName,
    /// Accept a measurement up to this age [default: every host measures now]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    max_age: Option<Duration>,
    /// How long to wait for the hosts
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5m")]
    timeout: Duration,
}

impl Check {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet).await?;
        let known = session.release(&fleet, &self.release).await?;
        let roster = session.roster(&fleet).await?;
        let release = ReleaseView::from(&known);
        let asked = Asked {
            fleet: &fleet,
            release: &release,
            wanted: Wanted::Measurement,
            max_age: self.max_age,
            timeout: self.timeout,
        };
        let verdict = Box::pin(asked.of_all_hosts(env, &session, roster.document())).await?;
        let revision = roster.document().revision().0;
        let mut report = Checked::new(fleet, release, revision, verdict, session.root().root().is_solo());
        report.parked = roster.document().parked().iter().map(|host| host.name.clone()).collect();
        report.write(env)?;
        Ok(report.exit_code)
    }
}

/// What all hosts of a fleet are asked to measure and attest.
pub(super) struct Asked<'a> {
    pub(super) fleet: &'a FleetName,
    pub(super) release: &'a ReleaseView,
    /// What for.
    pub(super) wanted: Wanted,
    /// Up to which age a measurement counts; none asks every host for a fresh one.
    pub(super) max_age: Option<Duration>,
    pub(super) timeout: Duration,
}

impl Asked<'_> {
    /// Asks, and judges every attestation by the roster: the coordinator's opinion can only make it worse.
    pub(super) async fn of_all_hosts(
        &self,
        env: &Env,
        session: &Session,
        roster: &Verified<Roster>,
    ) -> Result<Verdict, CliError> {
        let max_age_ms = self.max_age.map_or(0, millis);
        let manifest = self.release.digest;
        let mut judge =
            Judge::new(Question { roster, manifest, asked: unix_time(), max_age_ms, wanted: self.wanted });
        let (fleet, manifest) = (self.fleet.to_string(), manifest.as_bytes().to_vec());
        let timeout_ms = millis(self.timeout);
        let names: Vec<_> = roster.hosts().iter().map(|host| host.name.clone()).collect();
        let mut bars = HostBars::new(&env.ui, &names, 1);
        let mut client = session.operations();
        let (doing, mut events) = match self.wanted {
            Wanted::Measurement => {
                let doing = format!("check {}", self.release);
                let request = v1::CheckRequest { fleet, manifest, timeout_ms, max_age_ms };
                let events = Box::pin(Events::open(&doing, self.timeout, client.check(request))).await?;
                (doing, events)
            }
            Wanted::Rehearsal => {
                let doing = format!("rehearse {}", self.release);
                let request = v1::RehearseRequest { fleet, manifest, timeout_ms };
                let events = Box::pin(Events::open(&doing, self.timeout, client.rehearse(request))).await?;
                (doing, events)
            }
        };
        loop {
            match events.next().await?.event {
                Some(Event::Host(answer)) => {
                    let is_well = answer.blockers.is_empty();
                    let host = judge.hear(answer).map_err(CliError::answer(doing.as_str()))?;
                    bars.end(&host, if is_well { "has attested" } else { "is not as it should be" });
                }
                Some(Event::Finished(finished)) => {
                    return judge.close(finished).map_err(CliError::answer(doing.as_str()));
                }
                None => {}
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Checked {
    fleet: FleetName,
    release: ReleaseView,
    gate: &'static str,
    hosts: usize,
    identical: usize,
    roster_revision: u64,
    solo: bool,
    results: Vec<HostVerdict>,
    /// Hosts that serve nothing, and are not asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parked: Vec<HostName>,
    blockers: Vec<Blocker>,
    exit_code: Exit,
    #[serde(skip)]
    of_fleet: Vec<Blocker>,
}

impl Checked {
    fn new(
        fleet: FleetName,
        release: ReleaseView,
        roster_revision: u64,
        verdict: Verdict,
        solo: bool,
    ) -> Self {
        let exit_code = verdict.exit();
        Self {
            fleet,
            release,
            gate: if exit_code == Exit::Proven { "open" } else { "shut" },
            hosts: verdict.hosts.len(),
            identical: verdict.identical(),
            roster_revision,
            solo,
            blockers: verdict.blockers(),
            exit_code,
            results: verdict.hosts,
            parked: Vec::new(),
            of_fleet: verdict.fleet,
        }
    }

    fn write(&self, env: &Env) -> Result<(), CliError> {
        match env.ui.format() {
            Format::Text | Format::Json => env.ui.report(self),
            Format::Junit => env.ui.raw(self.junit()?.as_bytes()),
        }
    }

    fn junit(&self) -> Result<String, CliError> {
        let suite = format!("{} {}", self.fleet, self.release);
        let hosts = self.results.iter().map(|row| (row.host.as_str(), row.blockers.as_slice()));
        junit(&suite, self.fleet.as_str(), hosts, &self.of_fleet)
    }
}

impl Report for Checked {
    const SCHEMA: &'static str = "muster.check/1";

    fn print(&self, page: &mut Page) {
        let rows = self.results.iter().map(|row| {
            let state = match (row.identical, row.measured) {
                (true, _) => "identical".to_owned(),
                (false, Some(measured)) => format!("measured {}", measured.short()),
                (false, None) => "no proof".to_owned(),
            };
            let figures = row.measured.map_or_else(
                || ["-"; 3].map(str::to_owned),
                |_| [row.files.to_string(), bytes_text(row.bytes), span_text(row.age_ms)],
            );
            let [files, read, age] = figures;
            [row.host.to_string(), state, files, read, age]
        });
        page.table(["HOST", "STATE", "FILES", "READ", "AGE"], rows.collect());
        for host in &self.parked {
            page.line(format_args!("{host} is parked, and was not asked"));
        }
        page.gap();
        let Self { identical, hosts, release, gate, .. } = self;
        let tone = if self.exit_code == Exit::Proven { Tone::Good } else { Tone::Bad };
        page.toned(tone, format_args!("{identical} of {hosts} hosts have {release}: the gate is {gate}"));
        if self.solo {
            page.labelled(
                Tone::Warning,
                "solo mode",
                "one person alone can sign orders, rosters or releases",
            );
        }
        page.blockers(&self.blockers);
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{Code, Digest, HostName};

    use super::*;
    use crate::output::json;

    fn checked() -> Checked {
        let host = |name: &str| HostName::new(name).unwrap();
        let digest = Digest::from_bytes([7; 32]);
        let row = |name: &str, blockers: Vec<Blocker>| HostVerdict {
            host: host(name),
            identical: blockers.is_empty(),
            measured: blockers.is_empty().then_some(digest),
            files: if blockers.is_empty() { 12 } else { 0 },
            bytes: if blockers.is_empty() { 4096 } else { 0 },
            age_ms: if blockers.is_empty() { 20 } else { 0 },
            rehearsal_ms: None,
            blockers,
        };
        let silent = Blocker::host(Code::HostMissing, &host("host-2"), "it is not connected");
        let verdict = Verdict {
            hosts: vec![row("host-1", vec![]), row("host-2", vec![silent])],
            fleet: vec![Blocker::fleet(Code::Busy, "rollout 4")],
        };
        let release = ReleaseView { version: "1.4.0".to_owned(), digest };
        Checked::new(FleetName::new("demo").unwrap(), release, 2, verdict, true)
    }

    #[test]
    fn people_see_each_host_the_gate_and_the_reasons() {
        let mut page = Page::new(false);
        checked().print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        HOST    STATE      FILES  READ      AGE
        host-1  identical  12     4.00 KiB  20ms
        host-2  no proof   -      -         -

        1 of 2 hosts have 1.4.0 (sha256:0707070707070707070707070707070707070707070707070707070707070707): the gate is shut
        solo mode: one person alone can sign orders, rosters or releases
          host-missing at host-2: it is not connected
          busy: rollout 4
          next (host-missing): start muster-agent and muster-guard on the host, look into the agent's log, and check the network between the two
          next (busy): watch it with `muster status`, and try again when it has ended, or give it up with `muster abort`
        ");
    }

    #[test]
    fn scripts_see_the_same() {
        insta::assert_snapshot!(json(Checked::SCHEMA, &checked()), @r#"
        {
          "schema": "muster.check/1",
          "fleet": "demo",
          "release": {
            "version": "1.4.0",
            "digest": "sha256:0707070707070707070707070707070707070707070707070707070707070707"
          },
          "gate": "shut",
          "hosts": 2,
          "identical": 1,
          "roster_revision": 2,
          "solo": true,
          "results": [
            {
              "host": "host-1",
              "identical": true,
              "measured": "sha256:0707070707070707070707070707070707070707070707070707070707070707",
              "files": 12,
              "bytes": 4096,
              "age_ms": 20,
              "blockers": []
            },
            {
              "host": "host-2",
              "identical": false,
              "measured": null,
              "files": 0,
              "bytes": 0,
              "age_ms": 0,
              "blockers": [
                {
                  "code": "host-missing",
                  "host": "host-2",
                  "detail": "it is not connected"
                }
              ]
            }
          ],
          "blockers": [
            {
              "code": "host-missing",
              "host": "host-2",
              "detail": "it is not connected"
            },
            {
              "code": "busy",
              "detail": "rollout 4"
            }
          ],
          "exit_code": 11
        }
        "#);
    }

    #[test]
    fn build_servers_see_one_case_for_each_host_and_one_for_the_fleet() {
        let xml = checked().junit().unwrap();
        assert!(xml.contains(r#"tests="3" skipped="0" failures="2""#), "{xml}");
        assert!(xml.contains(r#"<testcase name="host-1" classname="demo""#), "{xml}");
    }
}
