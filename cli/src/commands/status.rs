mod additions;
mod certificate;
mod glass;
mod host;
mod membership;
mod overrides;
mod waiting;

use clap::Args;
use muster_model::{Blocker, Code, Digest, FleetName};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use serde::Serialize;

use self::additions::Additions;
use self::certificate::CoordinatorCertificate;
use self::host::{HostView, Served, Width};
use self::membership::{Coming, Parked, Retired};
use self::overrides::OpenOverride;
use self::waiting::WaitingOrder;
use crate::args::FleetArg;
use crate::clock::span_text;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Detail, Page, Report, Tone, counted, reason_lines};
use crate::view::{ReleaseView, phase_text};

/// How many hosts are listed where not all were asked for.
const HOSTS_LISTED_MAX: usize = 24;

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
    halted_since_rollout: Option<u64>,
    solo: bool,
    roster_revision: u64,
    roster_digest: Digest,
    root_version: Option<u64>,
    hosts_total: usize,
    hosts_connected: usize,
    rollout: Option<RolloutView>,
    last_rollout: u64,
    last_end: Option<EndView>,
    incarnation: u64,
    term: u64,
    coordinator_version: String,
    hosts: Vec<HostView>,
    /// Hosts that serve nothing and do not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parked: Vec<Parked>,
    /// Hosts that have left for good.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Retired>,
    /// The roster that does not hold yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    coming_roster: Option<Coming>,
    /// What operators did where evidence would have decided, and nobody has looked at since.
    open_overrides: Vec<OpenOverride>,
    waiting_orders: Vec<WaitingOrder>,
    blockers: Vec<Blocker>,
    /// What will be a reason for trouble unless somebody looks at it.
    warnings: Vec<Blocker>,
    coordinator_certificate: Option<CoordinatorCertificate>,
    /// Where joiners may add hosts, or have added some.
    #[serde(skip_serializing_if = "Option::is_none")]
    additions: Option<Additions>,
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

impl View {
    fn new(fleet: FleetName, status: v1::FleetStatus, detail: Detail) -> Result<Self, ConvertError> {
        let phase = phase_text(status.phase());
        // A coordinator from before roots were followed says none.
        let root_version = Some(status.root_version).filter(|version| *version != 0);
        let served = Served {
            epoch: status.epoch,
            release: ReleaseView::optional(status.serving.as_ref())?,
            root_version,
        };
        let hosts = status
            .hosts
            .into_iter()
            .map(|host| HostView::new(host, &served))
            .collect::<Result<Vec<_>, _>>()?;
        let parked = status.parked.into_iter().map(|host| Parked::new(host, &served));
        let parked = parked.collect::<Result<Vec<_>, _>>()?;
        let mut blockers = convert::blockers(status.blockers)?;
        if let Some(k) = status.halted_k
            && !blockers.iter().any(|blocker| blocker.code == Code::Halted)
        {
            let detail = format!("the fleet was halted after rollout {k}; only an order resumes it");
            blockers.push(Blocker::fleet(Code::Halted, detail));
        }
        blockers.extend(hosts.iter().flat_map(|host| host.blockers.iter().cloned()));
        blockers.sort();
        blockers.dedup();
        Ok(Self {
            fleet,
            epoch: status.epoch,
            serving: served.release,
            previous: ReleaseView::optional(status.previous.as_ref())?,
            phase,
            halted_since_rollout: status.halted_k,
            solo: status.solo,
            roster_revision: status.roster_revision,
            roster_digest: convert::digest("roster_digest", &status.roster_digest)?,
            root_version,
            hosts_total: hosts.len(),
            hosts_connected: hosts.iter().filter(|host| host.connected).count(),
            rollout: status.rollout.as_ref().map(RolloutView::new).transpose()?,
            last_rollout: status.last_k,
            last_end: status.last_end.map(EndView::new).transpose()?,
            incarnation: status.incarnation,
            term: status.term,
            coordinator_version: status.coordinator_version,
            hosts,
            parked,
            retired: status.retired.into_iter().map(Retired::new).collect(),
            coming_roster: status.coming.map(Coming::new),
            open_overrides: status.open_overrides.into_iter().map(OpenOverride::new).collect(),
            waiting_orders: status.waiting_orders.iter().map(WaitingOrder::new).collect::<Result<_, _>>()?,
            blockers,
            warnings: convert::blockers(status.warnings)?,
            coordinator_certificate: status.coordinator_certificate.map(CoordinatorCertificate::new),
            additions: status.additions.map(Additions::new),
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

impl Report for View {
    const SCHEMA: &'static str = "muster.status/1";

    fn print(&self, page: &mut Page) {
        self.print_fleet(page);
        page.gap();
        self.print_hosts(page);
        page.gap();
        waiting::print(&self.waiting_orders, page);
        glass::print(&self.hosts, page);
        overrides::print(&self.open_overrides, page);
        certificate::print_warnings(&self.warnings, page);
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
        if let Some(k) = self.halted_since_rollout {
            let text = format_args!(
                "since rollout {k}; nothing is served until `muster resume` or a flip elsewhere"
            );
            page.labelled(Tone::Bad, "HALTED", text);
        }
        let serving_now = if self.halted_since_rollout.is_some() { "served  " } else { "serving " };
        page.line(format_args!("{serving_now} {serving}"));
        if let Some(previous) = &self.previous {
            page.line(format_args!("before   {previous}"));
        }
        let (connected, total) = (self.hosts_connected, self.hosts_total);
        page.line(format_args!(
            "hosts    {connected} of {total} connected, roster revision {}",
            self.roster_revision
        ));
        if let Some(additions) = &self.additions {
            additions.print(page);
        }
        if let Some(coming) = &self.coming_roster {
            coming.print(page);
        }
        self.parked.iter().for_each(|host| host.print(page));
        if self.detail == Detail::Full {
            self.retired.iter().for_each(|host| host.print(page));
        }
        self.print_roots(page);
        if let Some(rollout) = &self.rollout {
            rollout.print(page);
        }
        self.print_leases(page);
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
            if let Some(certificate) = &self.coordinator_certificate {
                certificate.print(page);
            }
        }
        if self.solo {
            page.labelled(
                Tone::Warning,
                "solo mode",
                "one person alone can sign orders, rosters or releases",
            );
        }
    }

    /// A host that goes by another root refuses what the keys of this one sign, or takes what they do not.
    fn print_roots(&self, page: &mut Page) {
        let others = self.hosts.iter().filter(|host| host.other_root.is_some()).count();
        if let (1.., Some(version)) = (others, self.root_version) {
            let others = counted(others, "host");
            page.labelled(Tone::Warning, "root", format_args!("version {version}; another one at {others}"));
        }
    }

    /// How many hosts would stop by themselves, and how soon the first of them: of a large fleet not all are listed.
    fn print_leases(&self, page: &mut Page) {
        let leases = self.hosts.iter().filter_map(HostView::lease_ms);
        if let Some(first_ms) = leases.clone().min() {
            let armed = counted(leases.count(), "host");
            let text =
                format_args!("{armed}; unless heard, the first fences itself in {}", span_text(first_ms));
            page.labelled(Tone::Warning, "ARMED", text);
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
                let (agent, until) = (or_unknown(&host.agent_version), or_unknown(&host.certificate_expires));
                [host.host.clone(), agent, until, host.certificate_text(), host.assurance_text()]
            });
            let header = ["HOST", "AGENT", "CERTIFICATE UNTIL", "RENEWED", "ASSURANCE"];
            page.table(header, rows.collect());
        }
    }
}

#[cfg(test)]
mod tests;
