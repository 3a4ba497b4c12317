use std::time::Duration;

use clap::Args;
use muster_model::{Blocker, Code, FleetName, HostName};
use muster_proto::v1::deploy_event::Event;
use muster_proto::v1::deploy_host::State;
use muster_proto::{convert, v1};
use serde::Serialize;

use crate::args::{FleetArg, duration};
use crate::clock::{date_text, millis, unix_time};
use crate::commands::Env;
use crate::commands::check::{Asked, Wanted};
use crate::connect::{Events, Session};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{HostBars, Page, Report, Tone, bytes_text, counted};
use crate::resolve::ReleaseName;
use crate::view::ReleaseView;

/// Put a release's bytes on all hosts of the fleet, where each of them measures what it has. What is served does not change.
///
/// It ends with 0 only when all N hosts of the roster have the release. An interrupted deployment is carried on by
/// running it again; damaged trees are repaired.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster deploy 1.4.0
  muster deploy 1.4.0 --timeout 30m")]
pub(crate) struct Deploy {
    /// The release: its digest, at least 8 hex digits of it, or its version
    #[arg(value_name = "RELEASE")]
    release: ReleaseName,
    #[command(flatten)]
    fleet: FleetArg,
    /// How long to wait for hosts that are slow or not there
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    timeout: Duration,
}

impl Deploy {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let known = session.release(&fleet, &self.release).await?;
        let roster = session.roster(&fleet).await?;
        let expected = roster.document().hosts().len();
        let release = ReleaseView::from(&known);
        let request = v1::DeployRequest {
            fleet: fleet.to_string(),
            manifest: known.release.manifest.as_bytes().to_vec(),
            timeout_ms: millis(self.timeout),
        };
        let (hosts, finished) = Box::pin(follow(env, &session, &release, request, self.timeout)).await?;
        let doing = format!("deploy {release}");
        let mut blockers = convert::blockers(finished.blockers).map_err(CliError::answer(doing))?;
        let mut counts = Counts {
            deployed: finished.deployed as usize,
            hosts: finished.hosts as usize,
            expected,
            attested: 0,
        };
        // The coordinator's word is not enough for N of N: each host signs what it has measured.
        if counts.deployed == expected && blockers.is_empty() {
            let (wanted, timeout) = (Wanted::Measurement, self.timeout);
            let asked = Asked { fleet: &fleet, release: &release, wanted, max_age: None, timeout };
            let verdict = Box::pin(asked.of_all_hosts(env, &session, roster.document())).await?;
            counts.attested = verdict.identical();
            blockers.extend(
                verdict.hosts.into_iter().filter(|host| !host.identical).flat_map(|host| host.blockers),
            );
        }
        let report = Deployed::new(fleet, release, hosts, counts, blockers);
        env.ui.report(&report)?;
        Ok(report.exit_code)
    }
}

/// Shows what happens on each host until the coordinator says that it is over.
async fn follow(
    env: &Env,
    session: &Session,
    release: &ReleaseView,
    request: v1::DeployRequest,
    timeout: Duration,
) -> Result<(Vec<HostRow>, v1::DeployFinished), CliError> {
    let doing = format!("deploy {release}");
    let until = date_text(unix_time().after(timeout));
    let mut client = session.operations();
    let mut events = Events::open(&doing, timeout, client.deploy(request)).await?;
    let mut bars: Option<HostBars> = None;
    let mut rows = Vec::new();
    loop {
        match events.next().await?.event {
            Some(Event::Started(started)) => {
                let hosts =
                    started.hosts.iter().map(|host| convert::host(host)).collect::<Result<Vec<_>, _>>();
                let hosts = hosts.map_err(CliError::answer(doing.as_str()))?;
                let (count, size) = (counted(hosts.len(), "host"), bytes_text(started.bytes));
                let files = counted(started.files, "file");
                env.ui.say(format_args!("deploying {release} to {count}: {files}, {size}"));
                bars = Some(HostBars::new(&env.ui, &hosts, started.bytes));
            }
            Some(Event::Host(state)) => {
                let host = convert::host(&state.host).map_err(CliError::answer(doing.as_str()))?;
                rows.extend(
                    show(bars.as_mut(), host, state.state, &until)
                        .map_err(CliError::answer(doing.as_str()))?,
                );
            }
            Some(Event::Finished(finished)) => return Ok((rows, finished)),
            None => {}
        }
    }
}

/// Shows the state of one host; `until` is when nobody is waited for any longer. Returns its row once it is through.
fn show(
    bars: Option<&mut HostBars>,
    host: HostName,
    state: Option<State>,
    until: &str,
) -> Result<Option<HostRow>, convert::ConvertError> {
    match state {
        None => Ok(None),
        Some(State::Waiting(v1::Waiting {})) => {
            if let Some(bars) = bars {
                bars.state(&host, format!("not connected, waiting for it until {until} (see --timeout)"));
            }
            Ok(None)
        }
        Some(State::Progress(progress)) => {
            if let Some(bars) = bars {
                bars.advance(&host, progress.bytes_done, progress.bytes_total);
            }
            Ok(None)
        }
        Some(State::Ended(ended)) => {
            let refusal = ended.refusal.map(|refusal| convert::refusal(Some(refusal))).transpose()?;
            let fetched = bytes_text(ended.fetched_bytes);
            let text = match &refusal {
                None => format!("deployed: {} measured, {fetched} fetched", counted(ended.files, "file")),
                Some(refusal) => format!("not deployed: {refusal}"),
            };
            if let Some(bars) = bars {
                bars.end(&host, text);
            }
            let blockers = refusal.map(|refusal| refusal.blockers).unwrap_or_default();
            Ok(Some(HostRow {
                host,
                deployed: blockers.is_empty(),
                fetched_bytes: ended.fetched_bytes,
                blockers,
            }))
        }
    }
}

/// How many hosts there are, in different eyes.
struct Counts {
    /// That have it, as the coordinator says.
    deployed: usize,
    /// That the coordinator deployed to.
    hosts: usize,
    /// N of the verified roster.
    expected: usize,
    /// Hosts whose signed measurement is the release.
    attested: usize,
}

#[derive(Debug, Serialize)]
struct Deployed {
    fleet: FleetName,
    release: ReleaseView,
    deployed: usize,
    attested: usize,
    hosts: usize,
    results: Vec<HostRow>,
    blockers: Vec<Blocker>,
    exit_code: Exit,
}

#[derive(Debug, Serialize)]
struct HostRow {
    host: HostName,
    deployed: bool,
    fetched_bytes: u64,
    blockers: Vec<Blocker>,
}

impl Deployed {
    fn new(
        fleet: FleetName,
        release: ReleaseView,
        results: Vec<HostRow>,
        counts: Counts,
        mut blockers: Vec<Blocker>,
    ) -> Self {
        if counts.hosts != counts.expected {
            let detail =
                format!("deployed to {} hosts, but the roster has {}", counts.hosts, counts.expected);
            blockers.push(Blocker::fleet(Code::RosterChanged, detail));
        }
        for row in &results {
            blockers.extend(row.blockers.iter().cloned());
        }
        blockers.sort();
        blockers.dedup();
        let is_complete =
            counts.deployed == counts.expected && counts.attested == counts.expected && counts.expected > 0;
        let exit_code =
            if blockers.is_empty() && is_complete { Exit::Proven } else { Exit::of_blockers(&blockers) };
        Self {
            fleet,
            release,
            deployed: counts.deployed,
            attested: counts.attested,
            hosts: counts.expected,
            results,
            blockers,
            exit_code,
        }
    }
}

impl Report for Deployed {
    const SCHEMA: &'static str = "muster.deploy/1";

    fn print(&self, page: &mut Page) {
        let Self { deployed, attested, hosts, release, .. } = self;
        let tone = if self.exit_code == Exit::Proven { Tone::Good } else { Tone::Bad };
        page.toned(tone, format_args!("deployed {deployed} of {hosts}, not released: {release}"));
        if self.exit_code == Exit::Proven {
            page.line(format_args!("attested by {attested} of {hosts} hosts, each from its own disk"));
            page.line(format_args!("Next: muster flip {} --fleet {}", release.digest.short(), self.fleet));
        }
        page.blockers(&self.blockers);
    }
}

#[cfg(test)]
mod tests {
    use muster_model::Digest;

    use super::*;

    fn deployed(deployed: usize, hosts: usize, expected: usize, blockers: Vec<Blocker>) -> Deployed {
        let release = ReleaseView { version: "1.4.0".to_owned(), digest: Digest::from_bytes([7; 32]) };
        let counts = Counts { deployed, hosts, expected, attested: deployed };
        Deployed::new(FleetName::new("demo").unwrap(), release, vec![], counts, blockers)
    }

    #[test]
    fn only_n_of_n_is_a_success() {
        assert_eq!(deployed(8, 8, 8, vec![]).exit_code, Exit::Proven);
        assert_eq!(deployed(7, 8, 8, vec![]).exit_code, Exit::Internal, "the coordinator owes a reason");
        assert_eq!(deployed(7, 7, 8, vec![]).exit_code, Exit::RosterChanged);
        assert_eq!(deployed(0, 0, 0, vec![]).exit_code, Exit::Internal);
        let missing = Blocker::host(Code::HostMissing, &HostName::new("host-3").unwrap(), "not connected");
        let report = deployed(7, 8, 8, vec![missing]);
        assert_eq!(report.exit_code, Exit::Missing);
        let mut page = Page::new(false);
        report.print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        deployed 7 of 8, not released: 1.4.0 (sha256:0707070707070707070707070707070707070707070707070707070707070707)
          host-missing at host-3: not connected
          next (host-missing): start muster-agent and muster-guard on the host, look into the agent's log, and check the network between the two
        ");
    }
}
