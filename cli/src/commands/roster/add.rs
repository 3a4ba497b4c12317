use std::str::FromStr;

use clap::Args;
use muster_model::{Addition, Code, FleetName, HostName, Joiners, Member, PublicKey, Refusal};
use muster_proto::v1;
use muster_trust::{KeySource, Signer, operators_roster, sign};
use serde::Serialize;

use super::propose::pending;
use crate::args::FleetArg;
use crate::clock::unix_time;
use crate::commands::Env;
use crate::confirm::{Question, confirm};
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone, counted};

/// Add hosts to the fleet's roster with a joiner's key, as autoscaling does: no operator is asked.
///
/// The root document says which keys may do this, for which fleets and up to how many hosts (`muster root edit --joiner`). Hosts that
/// are there already with the same key are passed over, so that it can be run again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster roster add host-4 --key joiner.key
  muster roster add host-4=ed25519:BwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAhIiMkJSY= --key joiner.key --yes")]
pub(crate) struct Add {
    #[command(flatten)]
    fleet: FleetArg,
    /// The hosts; each with its attestation key, or the key that it has enrolled with, as the coordinator says
    #[arg(value_name = "HOST[=KEY]", required = true)]
    hosts: Vec<Host>,
    /// A joiner's key: a file, or `ssh-agent:SHA256:…`. May be repeated where several must sign
    #[arg(long, value_name = "KEY", required = true)]
    key: Vec<KeySource>,
    /// Do not ask, also where orders wait for approvals: they are for the roster without these hosts, and end with it
    #[arg(long)]
    yes: bool,
}

/// A host as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    name: HostName,
    key: Option<PublicKey>,
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, key) = text.split_once('=').map_or((text, None), |(name, key)| (name, Some(key)));
        let name = HostName::new(name).map_err(|error| error.to_string())?;
        let key = key
            .map(str::parse)
            .transpose()
            .map_err(|error: muster_model::PublicKeyError| error.to_string())?;
        Ok(Self { name, key })
    }
}

impl Add {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet.clone()).await?;
        let doing = format!("add hosts to {fleet}");
        let trust = || CliError::trust(doing.as_str());
        let keys: Vec<Box<dyn Signer>> =
            self.key.iter().map(KeySource::open).collect::<Result<_, _>>().map_err(trust())?;
        check_keys(session.root().root().joiners.as_ref(), &keys)
            .map_err(|refusal| CliError::refused(doing.as_str(), refusal))?;
        let present = session.last_roster(&fleet).await?;
        let members = members(&session, &fleet, &self.hosts).await?;
        let (existing, added): (Vec<Member>, Vec<Member>) =
            members.into_iter().partition(|member| present.document().hosts().contains(member));
        let names = |members: &[Member]| members.iter().map(|member| member.name.clone()).collect();
        let report = |revision, hosts, room| Added {
            fleet: fleet.clone(),
            revision,
            hosts,
            added: names(&added),
            existing: names(&existing),
            room,
        };
        if added.is_empty() {
            let document = present.document();
            let room = session.root().root().joiners.as_ref().map_or(0, |joiners| joiners.room(document));
            let hosts = u32::try_from(document.hosts().len()).unwrap_or(u32::MAX);
            env.ui.report(&report(document.revision().0, hosts, room))?;
            return Ok(Exit::Proven);
        }
        let base = operators_roster(&present).map_err(trust())?;
        let addition = Addition::after(present.document(), present.payload_digest(), &base, added.clone())
            .map_err(|source| CliError::Document { doing: doing.clone(), source })?;
        let signers: Vec<&dyn Signer> = keys.iter().map(|key| &**key).collect();
        let envelope = sign(&addition, &signers).map_err(trust())?;
        // What the coordinator would refuse is better said here, with its reason.
        session.root().verify_roster(envelope.raw(), unix_time()).map_err(trust())?;
        if !self.yes {
            let status = session.status(&fleet).await?;
            confirm_end_of_orders(env, &status.waiting_orders)?;
        }
        let request = v1::AddHostsRequest { envelope: envelope.raw().to_vec() };
        let mut client = session.operations();
        let v1::AddHostsResponse { revision, hosts, room, .. } =
            Box::pin(answer(&doing, client.add_hosts(request))).await?;
        env.ui.report(&report(revision, hosts, room))?;
        Ok(Exit::Proven)
    }
}

/// An order names its roster and N: under a longer one it cannot be begun, and whoever proposed it begins anew.
fn confirm_end_of_orders(env: &Env, waiting: &[v1::WaitingOrder]) -> Result<(), CliError> {
    let alive: Vec<String> = waiting
        .iter()
        .filter(|order| order.outdated_roster_revision.is_none())
        .map(|order| format!("rollout {} ({} of {} approvals)", order.k, order.approvals, order.threshold))
        .collect();
    if alive.is_empty() {
        return Ok(());
    }
    env.ui.warn(format_args!(
        "orders wait that are for the roster without these hosts, and end with it: {}",
        alive.join(", ")
    ));
    let question = Question {
        text: "Type yes to add the hosts all the same:".to_owned(),
        expected: "yes",
        otherwise: "no host was added, since orders wait that would end with it",
        next: "see `muster status`; add --yes to add hosts whether or not orders wait",
    };
    confirm(env, &question)
}

fn check_keys(joiners: Option<&Joiners>, keys: &[Box<dyn Signer>]) -> Result<(), Refusal> {
    let Some(joiners) = joiners else {
        let detail = "the root lets nobody add hosts; see `muster root edit --joiner`";
        return Err(Refusal::of(Code::NotAllowed, detail));
    };
    match keys.iter().find(|key| !joiners.role.keys.contains(key.public())) {
        None => Ok(()),
        Some(key) => {
            let detail = format!("the root does not let {} add hosts", key.public());
            Err(Refusal::of(Code::NotAllowed, detail))
        }
    }
}

/// The hosts with their keys. A key that was named is the one that counts, and the coordinator must not say otherwise.
async fn members(session: &Session, fleet: &FleetName, hosts: &[Host]) -> Result<Vec<Member>, CliError> {
    let enrolled = pending(session, fleet).await?;
    let member = |host: &Host| {
        let known = enrolled.iter().find(|known| known.name == host.name).map(|known| &known.attestation_key);
        let attestation_key = match (&host.key, known) {
            (Some(named), Some(known)) if named != known => {
                let detail = format!("{} has enrolled with {known}, and not with {named}", host.name);
                let refusal = Refusal::of(Code::HostNotInRoster, detail);
                return Err(CliError::refused(format!("add {}", host.name), refusal));
            }
            (Some(named), _) => named.clone(),
            (None, Some(known)) => known.clone(),
            (None, None) => {
                return Err(CliError::Absent {
                    what: format!("{} has not enrolled for {fleet}, or is in its roster", host.name),
                    next: "see `muster host list --pending`, or name its key: `HOST=ed25519:…`".to_owned(),
                });
            }
        };
        Ok(Member { name: host.name.clone(), attestation_key })
    };
    hosts.iter().map(member).collect()
}

#[derive(Debug, Serialize)]
struct Added {
    fleet: FleetName,
    revision: u64,
    hosts: u32,
    added: Vec<HostName>,
    /// Those that were there already.
    existing: Vec<HostName>,
    /// How many more may be added.
    room: u32,
}

impl Report for Added {
    const SCHEMA: &'static str = "muster.roster-add/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, revision, hosts, room, .. } = self;
        for host in &self.existing {
            page.line(format_args!("{host} is in the roster already"));
        }
        if self.added.is_empty() {
            page.line(format_args!("the roster of {fleet} stays at revision {revision}"));
        } else {
            page.toned(
                Tone::Good,
                format_args!(
                    "the roster of {fleet} is now revision {revision} with {}",
                    counted(*hosts, "host")
                ),
            );
        }
        page.line(format_args!("{} more may be added without operators", counted(*room, "host")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_named_with_its_key_or_without() {
        let key = PublicKey::Ed25519([1; 32]);
        let name = HostName::new("host-4").unwrap();
        assert_eq!("host-4".parse(), Ok(Host { name: name.clone(), key: None }));
        assert_eq!(format!("host-4={key}").parse(), Ok(Host { name, key: Some(key) }));
        for wrong in ["", "=ed25519:AA==", "host-4=", "host-4=rsa:AAAA", "Host 4"] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong}");
        }
    }
}
