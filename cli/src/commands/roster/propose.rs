use std::path::PathBuf;

use clap::Args;
use muster_model::{Code, FleetName, HostName, Member, Policy, Withdrawn};
use muster_proto::convert;
use muster_proto::v1;
use serde::Serialize;

use super::file::{HostFile, PolicyFile, RosterFile};
use crate::args::FleetArg;
use crate::commands::Env;
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};
use crate::output::{Page, Report, Tone, counted};

/// Write the present roster together with the hosts that have enrolled and wait. Nothing is signed or changed.
///
/// Compare each key with what `muster-agent enrol` has shown on its host before you apply the file: whoever stole a token may
/// have enrolled in the host's place.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster roster propose --from-pending --out roster.toml && muster roster apply roster.toml")]
pub(crate) struct Propose {
    #[command(flatten)]
    fleet: FleetArg,
    /// Take the hosts that have enrolled for the fleet and are not in its roster
    #[arg(long, required = true)]
    from_pending: bool,
    /// Write to this file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Propose {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        debug_assert!(self.from_pending, "clap demands it");
        let session = env.session().await?;
        let fleet = match self.fleet.fleet.or_else(|| session.context().fleet().cloned()) {
            Some(fleet) => fleet,
            None => session.fleet(None).await?,
        };
        let pending = pending(&session, &fleet).await?;
        if pending.is_empty() {
            return Err(CliError::Absent {
                what: format!("no host waits for a roster of {fleet}"),
                next: "see `muster host list --pending`; `muster host token NAME` lets one enrol".to_owned(),
            });
        }
        let Present { members, policy, mut parked, mut retired } = present(&session, &fleet).await?;
        let is_pending = |name: &HostName| pending.iter().any(|host| host.name == *name);
        // One that has enrolled anew comes back with its new key.
        let returned: Vec<HostName> =
            parked.iter().chain(&retired).map(|it| it.name.clone()).filter(is_pending).collect();
        parked.retain(|it| !is_pending(&it.name));
        retired.retain(|it| !is_pending(&it.name));
        let replaced: Vec<String> = members
            .iter()
            .filter(|member| is_pending(&member.name))
            .map(|member| member.name.to_string())
            .collect();
        let kept = members.into_iter().filter(|member| !is_pending(&member.name));
        let kept = kept.map(|member| HostFile { name: member.name, attestation_key: member.attestation_key });
        let mut hosts: Vec<HostFile> = kept.collect();
        let of_roster = hosts.len();
        hosts.extend(pending.iter().cloned());
        let policy = PolicyFile::from(policy);
        let file = RosterFile { fleet: fleet.clone(), revision: None, policy, hosts, parked, retired };
        let text = toml::to_string(&file).expect("a roster has string keys and no failing serialisers");
        write(&self.out, text.as_bytes(), 0o644, Existing::Keep)?;
        env.ui.report(&Proposed { fleet, file: self.out, of_roster, pending, replaced, returned })?;
        Ok(Exit::Proven)
    }
}

/// The hosts that have enrolled for the fleet and are not in its roster with their keys.
pub(super) async fn pending(session: &Session, fleet: &FleetName) -> Result<Vec<HostFile>, CliError> {
    const DOING: &str = "list the hosts that have enrolled";
    let mut client = session.operations();
    let listed = answer(DOING, client.list_enrolled(v1::ListEnrolledRequest {})).await?;
    let waits = |host: &&v1::EnrolledHost| host.pending.iter().any(|name| name == fleet.as_str());
    let hosts = listed.hosts.iter().filter(waits).map(|host| {
        let attestation_key = host.attestation_key.parse().map_err(|_| CliError::Contradiction {
            doing: DOING.to_owned(),
            what: format!("the key of {} is none", host.host),
        })?;
        let name = convert::host(&host.host).map_err(CliError::answer(DOING))?;
        Ok(HostFile { name, attestation_key })
    });
    hosts.collect()
}

/// What the next roster keeps.
#[derive(Default)]
struct Present {
    members: Vec<Member>,
    policy: Policy,
    parked: Vec<Withdrawn>,
    retired: Vec<Withdrawn>,
}

/// What is in the last roster; of a fleet that has none, no hosts and the usual policy.
async fn present(session: &Session, fleet: &FleetName) -> Result<Present, CliError> {
    match Box::pin(session.last_roster(fleet)).await {
        Ok(roster) => {
            let roster = roster.document();
            let (members, policy) = (roster.hosts().to_vec(), roster.policy());
            Ok(Present {
                members,
                policy,
                parked: roster.parked().to_vec(),
                retired: roster.retired().to_vec(),
            })
        }
        Err(CliError::Refused { refusal, .. })
            if matches!(refusal.code(), Some(Code::FleetUnknown | Code::RosterEmpty)) =>
        {
            Ok(Present::default())
        }
        Err(error) => Err(error),
    }
}

#[derive(Debug, Serialize)]
struct Proposed {
    fleet: FleetName,
    file: PathBuf,
    of_roster: usize,
    pending: Vec<HostFile>,
    /// Hosts of the roster that have enrolled with another key.
    replaced: Vec<String>,
    /// Hosts that were parked, or had retired, and come back with another key.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    returned: Vec<HostName>,
}

impl Report for Proposed {
    const SCHEMA: &'static str = "muster.roster-propose/1";

    fn print(&self, page: &mut Page) {
        let (pending, file) = (counted(self.pending.len(), "host"), self.file.display());
        page.toned(
            Tone::Good,
            format_args!("wrote {file}: {pending} that waited, {} of the roster", self.of_roster),
        );
        let rows = self.pending.iter().map(|host| [host.name.to_string(), host.attestation_key.to_string()]);
        page.table(["HOST", "ATTESTATION KEY"], rows.collect());
        for host in &self.replaced {
            page.labelled(
                Tone::Warning,
                "another key",
                format_args!("{host} is in the roster with another key"),
            );
        }
        for host in &self.returned {
            page.labelled(
                Tone::Warning,
                "comes back",
                format_args!("{host} was set aside, and has enrolled with another key"),
            );
        }
        page.gap();
        page.line("Compare each key with what the host itself shows, then:");
        page.line(format_args!("  muster roster apply {file}"));
    }
}
