use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use muster_model::{BootGatePolicy, Code, FleetName, HostName, Policy, Roster, Withdrawn};

use super::file::{HostFile, PolicyFile, RosterFile};
use crate::commands::Env;
use crate::commands::host::fleet_folder;
use crate::connect::Session;
use crate::context::{CONTEXT_FILE, Context};
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};
use crate::output::{Format, counted, json};
use crate::provision::{HostBundle, hosts};

/// Write a roster of the hosts that were issued, to read over, edit and apply. Nothing is signed or changed.
///
/// The policy is the one of the fleet's present roster, as far as the coordinator can be asked for it, and hosts that are parked or
/// have retired stay so unless you name them.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster roster draft --out roster.toml && muster roster apply roster.toml")]
pub(crate) struct Draft {
    /// The fleet [default: the context's, or the only one that hosts were issued for]
    #[arg(long, short, value_name = "FLEET")]
    fleet: Option<FleetName>,
    /// The hosts [default: all that were issued for the fleet]
    #[arg(value_name = "HOST")]
    hosts: Vec<HostName>,
    /// The folder that `muster init` made [default: the one that holds the context]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Whether a host's link must vanish at a reboot [default: as in the present roster; required in the first]
    #[arg(long, value_enum)]
    boot_gate: Option<BootGate>,
    /// Write to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Whether a host's link must vanish at a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BootGate {
    /// Every host's link must vanish
    Required,
    /// A link that outlives a reboot is accepted, as for development
    Optional,
}

impl Draft {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let dir = fleet_folder(self.dir, env)?;
        let issued = hosts(&dir)?;
        let of_context = || Context::read(&dir.join("operator").join(CONTEXT_FILE)).ok()?.fleet().cloned();
        let fleet = self.fleet.or_else(of_context).map_or_else(|| only_fleet(&issued), Ok)?;
        let chosen = choose(issued, &fleet, &self.hosts)?;
        let roster = present_roster(env, &dir, &fleet).await;
        let present = roster.as_ref().map(Roster::policy).unwrap_or_default();
        let (chosen, parked, retired) = keep_aside(chosen, roster.as_ref(), &self.hosts);
        let boot_gate = match self.boot_gate {
            None => present.boot_gate,
            Some(BootGate::Required) => BootGatePolicy::Required,
            Some(BootGate::Optional) => BootGatePolicy::Optional,
        };
        let file = RosterFile {
            fleet,
            revision: None,
            policy: PolicyFile::from(Policy { boot_gate, ..present }),
            hosts: chosen
                .into_iter()
                .map(|host| HostFile { name: host.name, attestation_key: host.attestation_key })
                .collect(),
            parked,
            retired,
        };
        let text = toml::to_string(&file).expect("a roster has string keys and no failing serialisers");
        if let Some(path) = &self.out {
            write(path, text.as_bytes(), 0o644, Existing::Keep)?;
            env.ui.say(format_args!("wrote {} with {}", path.display(), counted(file.hosts.len(), "host")));
        }
        match env.ui.format() {
            Format::Json => env.ui.raw(json("muster.roster-draft/1", &file).as_bytes())?,
            Format::Text | Format::Junit if self.out.is_none() => env.ui.raw(text.as_bytes())?,
            Format::Text | Format::Junit => {}
        }
        Ok(Exit::Proven)
    }
}

/// Who is parked or has retired stays so, unless it is named: that is the word of whoever names it.
fn keep_aside(
    chosen: Vec<HostBundle>,
    present: Option<&Roster>,
    named: &[HostName],
) -> (Vec<HostBundle>, Vec<Withdrawn>, Vec<Withdrawn>) {
    let kept = |list: &[Withdrawn]| -> Vec<Withdrawn> {
        list.iter().filter(|it| !named.contains(&it.name)).cloned().collect()
    };
    let (parked, retired) = present.map(|it| (kept(it.parked()), kept(it.retired()))).unwrap_or_default();
    let is_aside = |host: &HostBundle| parked.iter().chain(&retired).any(|it| it.name == host.name);
    (chosen.into_iter().filter(|host| !is_aside(host)).collect(), parked, retired)
}

/// The fleet's roster; none of a fleet that has none yet, or where the coordinator cannot be asked.
async fn present_roster(env: &Env, dir: &Path, fleet: &FleetName) -> Option<Roster> {
    let context = dir.join("operator").join(CONTEXT_FILE);
    let present = async { Box::pin(Session::open(Some(&context)).await?.last_roster(fleet)).await };
    match Box::pin(present).await {
        Ok(roster) => Some(Roster::clone(roster.document())),
        Err(CliError::Refused { refusal, .. })
            if matches!(refusal.code(), Some(Code::FleetUnknown | Code::RosterEmpty)) =>
        {
            None
        }
        Err(error) => {
            env.ui.warn(format_args!(
                "{error}; the draft has the usual policy and no host set aside, whatever the present roster has"
            ));
            None
        }
    }
}

/// The fleet that all hosts were issued for.
fn only_fleet(issued: &[HostBundle]) -> Result<FleetName, CliError> {
    let mut fleets: Vec<FleetName> = issued.iter().flat_map(|host| host.fleets.iter().cloned()).collect();
    fleets.sort();
    fleets.dedup();
    match fleets.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(CliError::Usage {
            what: "no host was issued here yet, so there is no fleet".to_owned(),
            next: "issue one with `muster host issue NAME --fleet FLEET`".to_owned(),
        }),
        _ => Err(CliError::FleetUnclear { candidates: fleets }),
    }
}

/// The named hosts, or all of the fleet.
fn choose(
    issued: Vec<HostBundle>,
    fleet: &FleetName,
    named: &[HostName],
) -> Result<Vec<HostBundle>, CliError> {
    if let Some(missing) = named.iter().find(|name| !issued.iter().any(|host| host.name == **name)) {
        return Err(CliError::Usage {
            what: format!("the host {missing} was not issued here"),
            next: format!("look at `muster host list`, or issue it with `muster host issue {missing}`"),
        });
    }
    let is_chosen = |host: &HostBundle| {
        if named.is_empty() { host.fleets.contains(fleet) } else { named.contains(&host.name) }
    };
    let chosen: Vec<_> = issued.into_iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        return Err(CliError::Usage {
            what: format!("no host was issued for the fleet {fleet}, and an empty roster proves nothing"),
            next: format!("issue one with `muster host issue NAME --fleet {fleet}`"),
        });
    }
    Ok(chosen)
}
