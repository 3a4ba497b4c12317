use clap::Args;
use muster_model::{Blocker, Digest, FleetName};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use serde::Serialize;

use crate::args::FleetArg;
use crate::clock::{date_text, span_text};
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Detail, Page, Report, Tone, counted, reason_lines};
use crate::view::{ReleaseView, phase_text};

/// How many hosts are listed where not all were asked for.
const HOSTS_LISTED_MAX: usize = 24;

/// How many releases on a host's disk are named; the newest are.
const DEPLOYED_NAMED_MAX: usize = 3;

/// How many reasons of the last rollout's end are shown.
const END_REASONS_MAX: usize = 4;

/// Show what the fleet serves, host by host, and why it could not flip now.
///
/// It ends with 0 when the question was answered, whatever the answer is; `--check` turns blockers into an exit code.
/// This is the coordinator's view; `muster check` asks the hosts for proof. Of a large fleet only the hosts are listed
/// that need a look; `--verbose` lists all, with all counters, the agents' versions and when certificates end.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster status
  muster status --fleet demo --check")]
pub(crate) struct Status {
    #[command(flatten)]
    fleet: FleetArg,
    /// End with the exit code of the blockers, if there are any
    #[arg(long)]
    check: bool,
}

impl Status {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let status = session.status(&fleet).await?;
        let doing = format!("see the status of {fleet}");
        let view = View::new(fleet, status, env.ui.detail()).map_err(CliError::answer(doing))?;
        env.ui.report(&view)?;
        Ok(if self.check { view.exit_code() } else { Exit::Proven })
    }
}

#[derive(Debug, Serialize)]
struct View {
    fleet: FleetName,
    epoch: u64,
    serving: Option<ReleaseView>,
    previous: Option<ReleaseView>,
    phase: &'static str,
    solo: bool,
    roster_revision: u64,
    roster_digest: Digest,
    hosts_total: usize,
    hosts_connected: usize,
    rollout: Option<RolloutView>,
    last_rollout: u64,
    last_end: Option<EndView>,
    incarnation: u64,
    term: u64,
    coordinator_version: String,
    hosts: Vec<HostView>,
    blockers: Vec<Blocker>,
    #[serde(skip)]
    detail: Detail,
}

#[derive(Debug, Serialize)]
struct RolloutView {
    k: u64,
    from: Option<ReleaseView>,
    to: Option<ReleaseView>,
    age_ms: u64,
    acknowledged: u32,
    outstanding: u32,
}

/// How the last rollout that is over has ended.
#[derive(Debug, Serialize)]
struct EndView {
    k: u64,
    outcome: &'static str,
    epoch: u64,
    release: Option<ReleaseView>,
    blockers: Vec<Blocker>,
}

#[derive(Debug, Serialize)]
struct HostView {
    host: String,
    connected: bool,
    age_ms: Option<u64>,
    mode: Option<String>,
    serving_epoch: Option<u64>,
    serving: Option<ReleaseView>,
    deployed: Vec<ReleaseView>,
    agent_version: Option<String>,
    certificate_expires: Option<String>,
    blockers: Vec<Blocker>,
}

impl View {
    fn new(fleet: FleetName, status: v1::FleetStatus, detail: Detail) -> Result<Self, ConvertError> {
        let phase = phase_text(status.phase());
        let served = Served { epoch: status.epoch, release: ReleaseView::optional(status.serving.as_ref())? };
        let hosts = status
            .hosts
            .into_iter()
            .map(|host| HostView::new(host, &served))
            .collect::<Result<Vec<_>, _>>()?;
        let mut blockers = convert::blockers(status.blockers)?;
        blockers.extend(hosts.iter().flat_map(|host| host.blockers.iter().cloned()));
        blockers.sort();
        blockers.dedup();
        Ok(Self {
            fleet,
            epoch: status.epoch,
            serving: served.release,
            previous: ReleaseView::optional(status.previous.as_ref())?,
            phase,
            solo: status.solo,
            roster_revision: status.roster_revision,
            roster_digest: convert::digest("roster_digest", &status.roster_digest)?,
            hosts_total: hosts.len(),
            hosts_connected: hosts.iter().filter(|host| host.connected).count(),
            rollout: status.rollout.as_ref().map(RolloutView::new).transpose()?,
            last_rollout: status.last_k,
            last_end: status.last_end.map(EndView::new).transpose()?,
            incarnation: status.incarnation,
            term: status.term,
            coordinator_version: status.coordinator_version,
            hosts,
            blockers,
            detail,
        })
    }

    /// Of no hosts nothing is known, so that is no success either.
    fn exit_code(&self) -> Exit {
        if self.blockers.is_empty() && self.hosts_total > 0 {
            Exit::Proven
        } else if self.blockers.is_empty() {
            Exit::RosterChanged
        } else {
            Exit::of_blockers(&self.blockers)
        }
    }
}

/// What the fleet serves.
struct Served {
    epoch: u64,
    release: Option<ReleaseView>,
}

impl RolloutView {
    fn new(wire: &v1::RolloutStatus) -> Result<Self, ConvertError> {
        Ok(Self {
            k: wire.k,
            from: ReleaseView::optional(wire.from.as_ref())?,
            to: ReleaseView::optional(wire.to.as_ref())?,
            age_ms: wire.age_ms,
            acknowledged: wire.acknowledged,
            outstanding: wire.outstanding,
        })
    }

    fn print(&self, page: &mut Page) {
        let to = self.to.as_ref().map_or_else(|| "an unknown release".to_owned(), ToString::to_string);
        let (k, age) = (self.k, span_text(self.age_ms));
        let (answered, silent) = (counted(self.acknowledged, "host"), self.outstanding);
        let text =
            format_args!("{k} to {to}, under way for {age}: {answered} answered, {silent} still to answer");
        page.labelled(Tone::Warning, "rollout", text);
    }
}

impl EndView {
    fn new(wire: v1::RolloutEnd) -> Result<Self, ConvertError> {
        use v1::rollout_end::Outcome;
        Ok(Self {
            k: wire.k,
            outcome: match wire.outcome() {
                Outcome::Unspecified => "unknown",
                Outcome::Flipped => "flipped",
                Outcome::Unchanged => "unchanged",
                Outcome::Pending => "pending",
                Outcome::Dark => "dark",
            },
            epoch: wire.epoch,
            release: ReleaseView::optional(wire.release.as_ref())?,
            blockers: convert::blockers(wire.blockers)?,
        })
    }

    fn print(&self, page: &mut Page) {
        let to = self.release.as_ref().map_or_else(|| "an unknown release".to_owned(), ToString::to_string);
        page.line(format_args!("last     rollout {} to {to}: {}", self.k, self.outcome));
        let reasons = reason_lines(&self.blockers);
        for reason in reasons.iter().take(END_REASONS_MAX) {
            page.line(format_args!("         {reason}"));
        }
        if reasons.len() > END_REASONS_MAX {
            let rest = reasons.len() - END_REASONS_MAX;
            page.line(format_args!("         … and {rest} more (all of them with --output json)"));
        }
    }
}

impl HostView {
    fn new(wire: v1::HostStatus, served: &Served) -> Result<Self, ConvertError> {
        use v1::host_mode::Kind;
        let mode = wire.mode.as_ref().map(|mode| match mode.kind() {
            Kind::Unspecified => "unknown".to_owned(),
            Kind::Serve => format!("serve {}", mode.epoch),
            Kind::Armed => format!("armed {} over {}", mode.k, mode.epoch),
            Kind::Closed => format!("closed {}", mode.k),
        });
        Ok(Self {
            host: convert::host(&wire.host)?.to_string(),
            connected: wire.connected,
            age_ms: wire.age_ms,
            mode,
            serving_epoch: wire.serving_epoch,
            // The epoch is the host's word, what it stands for the coordinator's.
            serving: served.release.clone().filter(|_| wire.serving_epoch == Some(served.epoch)),
            deployed: wire.deployed.iter().map(ReleaseView::try_from).collect::<Result<_, _>>()?,
            agent_version: wire.agent_version,
            certificate_expires: wire
                .certificate_expires_unix_ms
                .map(|unix_ms| date_text(muster_model::UnixTime(unix_ms))),
            blockers: convert::blockers(wire.blockers)?,
        })
    }

    /// Unknown is never shown as good, nor as dark.
    fn serving_text(&self, width: Width) -> String {
        match (self.connected, self.serving_epoch, &self.serving, width) {
            (false, _, _, _) => "unknown".to_owned(),
            (true, None, _, _) => "nothing".to_owned(),
            (true, Some(epoch), Some(release), Width::Wide) => format!("epoch {epoch}, {}", release.short()),
            (true, Some(epoch), Some(_), Width::Narrow) | (true, Some(epoch), None, _) => {
                format!("epoch {epoch}")
            }
        }
    }

    fn connection_text(&self) -> String {
        match (self.connected, self.age_ms) {
            (true, Some(age_ms)) => format!("for {}", span_text(age_ms)),
            (true, None) => "yes".to_owned(),
            (false, Some(age_ms)) => format!("lost {} ago", span_text(age_ms)),
            (false, None) => "never seen".to_owned(),
        }
    }

    /// Nothing about it needs a look.
    fn is_ordinary(&self, epoch: u64) -> bool {
        let serves_as_all = epoch == 0 || self.serving_epoch == Some(epoch);
        self.connected && self.blockers.is_empty() && serves_as_all
    }

    fn row(&self, width: Width) -> [String; 5] {
        let named = match width {
            Width::Wide => DEPLOYED_NAMED_MAX,
            Width::Narrow => 1,
        };
        [
            self.host.clone(),
            self.connection_text(),
            self.mode.clone().unwrap_or_else(|| "unknown".to_owned()),
            self.serving_text(width),
            self.deployed_text(named),
        ]
    }

    /// The releases on its disk; of many the last ones.
    fn deployed_text(&self, named: usize) -> String {
        let versions: Vec<&str> = self.deployed.iter().map(|release| release.version.as_str()).collect();
        match versions.len().checked_sub(named) {
            Some(more @ 1..) => format!("{more} more, {}", versions[more..].join(", ")),
            Some(0) | None => versions.join(", "),
        }
    }
}

/// How much room the terminal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    /// Enough.
    Wide,
    /// Little, so that what stands above the table is not repeated in it.
    Narrow,
}

impl Report for View {
    const SCHEMA: &'static str = "muster.status/1";

    fn print(&self, page: &mut Page) {
        self.print_fleet(page);
        page.gap();
        self.print_hosts(page);
        page.gap();
        if self.blockers.is_empty() {
            page.toned(Tone::Good, "no blockers");
        } else {
            page.toned(Tone::Bad, "blockers:");
            page.blockers(&self.blockers);
        }
    }
}

impl View {
    fn print_fleet(&self, page: &mut Page) {
        let serving = self.serving.as_ref().map_or_else(|| "nothing yet".to_owned(), ToString::to_string);
        page.line(format_args!("fleet    {}, epoch {}, {}", self.fleet, self.epoch, self.phase));
        page.line(format_args!("serving  {serving}"));
        if let Some(previous) = &self.previous {
            page.line(format_args!("before   {previous}"));
        }
        let (connected, total) = (self.hosts_connected, self.hosts_total);
        page.line(format_args!(
            "hosts    {connected} of {total} connected, roster revision {}",
            self.roster_revision
        ));
        if let Some(rollout) = &self.rollout {
            rollout.print(page);
        }
        if let Some(end) = &self.last_end {
            end.print(page);
        }
        if self.detail == Detail::Full {
            page.line(format_args!("roster   {}", self.roster_digest));
            let Self { incarnation, term, coordinator_version, last_rollout, .. } = self;
            page.line(format_args!(
                "numbers  last rollout {last_rollout}, term {term}, incarnation {incarnation}"
            ));
            page.line(format_args!("version  coordinator {coordinator_version}"));
        }
        if self.solo {
            page.labelled(
                Tone::Warning,
                "solo mode",
                "one person alone can sign orders, rosters or releases",
            );
        }
    }

    fn print_hosts(&self, page: &mut Page) {
        let is_long = self.detail == Detail::Brief && self.hosts.len() > HOSTS_LISTED_MAX;
        let listed: Vec<&HostView> = if is_long {
            let worth_a_look = self.hosts.iter().filter(|host| !host.is_ordinary(self.epoch));
            worth_a_look.take(HOSTS_LISTED_MAX).collect()
        } else {
            self.hosts.iter().collect()
        };
        let rows = |width| listed.iter().map(|host| host.row(width)).collect::<Vec<_>>();
        let header = ["HOST", "CONNECTED", "MODE", "SERVES", "ON DISK"];
        page.fitting_table(header, rows(Width::Wide), || rows(Width::Narrow));
        if is_long {
            let ordinary = self.hosts.iter().filter(|host| host.is_ordinary(self.epoch)).count();
            let strange = self.hosts.len() - ordinary - listed.len();
            if strange > 0 {
                page.line(format_args!("… and {} like these", counted(strange, "host")));
            }
            let serving = if self.epoch == 0 { "nothing yet" } else { "what the fleet serves" };
            page.line(format_args!(
                "{ordinary} of {} hosts: connected, no blockers, serving {serving} (-v lists all)",
                self.hosts.len()
            ));
        }
        if self.detail == Detail::Full {
            page.gap();
            let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
            let rows = self.hosts.iter().map(|host| {
                [host.host.clone(), or_unknown(&host.agent_version), or_unknown(&host.certificate_expires)]
            });
            page.table(["HOST", "AGENT", "CERTIFICATE UNTIL"], rows.collect());
        }
    }
}

#[cfg(test)]
mod tests;
