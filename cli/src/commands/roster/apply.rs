use std::path::{Path, PathBuf};

use clap::Args;
use muster_model::{
    Code, Fence, FleetName, HostName, HostPlace, Member, Refusal, Root, Roster, RosterRevision, Withdrawn,
};
use muster_proto::v1;
use muster_trust::{Authentic, Signer, sign};
use serde::Serialize;

use super::aside::carry_on;
use super::file::RosterFile;
use super::policy::PolicyChange;
use crate::clock::unix_time;
use crate::commands::Env;
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::read_bounded;
use crate::output::{Format, Page, Report, Tone, counted};

/// The largest file that is read, in bytes.
pub(super) const ROSTER_BYTES_MAX: u64 = muster_trust::ENVELOPE_BYTES_MAX as u64;

/// Sign a roster and make it the fleet's next one. The first roster makes the fleet.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster roster apply roster.toml
  muster roster apply roster.toml --fenced host-5 --reason unplugged")]
pub(crate) struct Apply {
    /// The roster: TOML to be signed with the context's operator key, or a signed roster (JSON)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    statement: Statement,
}

/// That hosts are off. It is signed with the roster.
#[derive(Debug, Args)]
pub(super) struct Statement {
    /// State that this host, which leaves or gets another key, serves nothing any more: its machine is off or wiped. May be
    /// repeated. Be sure: nothing else keeps it from serving what the fleet has left behind
    #[arg(long, value_name = "HOST", requires = "reason")]
    fenced: Vec<HostName>,
    /// How you know that it is off. It is signed, and stays in the audit log
    #[arg(long, value_name = "TEXT", requires = "fenced")]
    reason: Option<String>,
}

impl Statement {
    /// Adds it to a roster that is about to be signed, and when that is, where somebody goes by it.
    pub(super) fn made_in(
        &self,
        roster: Roster,
        before: Option<&Roster>,
        root: &Root,
    ) -> Result<Roster, CliError> {
        // Agents from before there were joiners read no roster that says more than they know.
        let roster = if root.joiners.is_some() { roster.issued(unix_time()) } else { roster };
        let doing = format!("sign the roster of {}", roster.fleet());
        let (reason, stated_unix_ms) = (self.reason.clone().unwrap_or_default(), unix_time());
        let fence = |host: &HostName| Fence { host: host.clone(), reason: reason.clone(), stated_unix_ms };
        let fenced = self.fenced.iter().map(fence).collect();
        let (mut parked, mut retired) = (roster.parked().to_vec(), roster.retired().to_vec());
        for list in [&mut parked, &mut retired] {
            carry_on(list, before, roster.revision(), &self.fenced);
        }
        let completed = roster.setting_aside(parked, retired).and_then(|roster| roster.stating(fenced));
        completed.map_err(|source| CliError::Document { doing, source })
    }

    /// A roster that others have signed says what it says.
    pub(super) fn refuse_late(&self) -> Result<(), CliError> {
        if self.fenced.is_empty() {
            return Ok(());
        }
        Err(CliError::Usage {
            what: "the roster is signed, and what it does not state cannot be added".to_owned(),
            next: "state it when the roster is signed first: `muster roster sign roster.toml --fenced HOST --reason TEXT`"
                .to_owned(),
        })
    }
}

impl Apply {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let bytes = read_bounded(&self.file, ROSTER_BYTES_MAX)?;
        let session = env.session().await?;
        let (current, next) = if bytes.trim_ascii_start().starts_with(b"{") {
            self.statement.refuse_late()?;
            let doing = format!("apply the signed roster {}", self.file.display());
            let next = session.root().verify_roster(&bytes, unix_time()).map_err(CliError::trust(doing))?;
            (present(&session, next.document().fleet()).await?, next)
        } else {
            sign_alone(&session, &self.file, &bytes, &self.statement).await?
        };
        let roster = next.document();
        let change = Change::of(current.as_ref().map(|roster| &**roster.document()), roster);
        if env.ui.format() == Format::Text {
            change.say(env);
        }
        let doing = format!("apply revision {} of the roster of {}", roster.revision(), roster.fleet());
        let mut client = session.operations();
        let request = v1::ApplyRosterRequest { envelope: next.raw().to_vec(), fenced: Vec::new() };
        let applied = Box::pin(answer(&doing, client.apply_roster(request))).await?;
        session.has_handed_in(next.raw())?;
        env.ui.report(&Applied {
            fleet: applied.fleet,
            revision: applied.revision,
            hosts: applied.hosts,
            coming: applied.coming,
            awaited: applied.awaited,
            added: change.added,
            removed: change.removed,
            parked: change.parked,
            retired: change.retired,
            solo: session.operators_needed() < 2,
        })?;
        Ok(Exit::Proven)
    }
}

/// Signs a roster that is written as TOML, where one operator is enough.
async fn sign_alone(
    session: &Session,
    path: &Path,
    bytes: &[u8],
    statement: &Statement,
) -> Result<(Option<Authentic<Roster>>, Authentic<Roster>), CliError> {
    let (current, roster) = draft(session, path, bytes).await?;
    let before = current.as_ref().map(|roster| &**roster.document());
    let roster = statement.made_in(roster, before, session.root().root())?;
    if session.operators_needed() > 1 {
        let path = path.display();
        return Err(CliError::Usage {
            what: format!("{path} needs the signatures of {} operators", session.operators_needed()),
            next: format!(
                "sign it with `muster roster sign {path}`, have others sign what that makes, and apply it then"
            ),
        });
    }
    let doing = format!("sign the roster of {}", roster.fleet());
    let key = session.context().operator_key()?;
    let signers: [&dyn Signer; 1] = [&*key];
    let envelope = sign(&roster, &signers).map_err(CliError::trust(doing.as_str()))?;
    let next = session.root().verify_roster(envelope.raw(), unix_time()).map_err(CliError::trust(doing))?;
    Ok((current, next))
}

/// The roster in force, and the next one as it is written in TOML.
pub(super) async fn draft(
    session: &Session,
    path: &Path,
    bytes: &[u8],
) -> Result<(Option<Authentic<Roster>>, Roster), CliError> {
    let file = parse(path, bytes)?;
    let current = present(session, &file.fleet).await?;
    let expected = current.as_ref().map_or(RosterRevision(1), |roster| roster.document().revision().next());
    if let Some(stated) = file.revision
        && stated != expected.0
    {
        return Err(CliError::Usage {
            what: format!("{} is revision {stated}, but the next one is {expected}", path.display()),
            next: "look at `muster roster show`, then correct or remove `revision`".to_owned(),
        });
    }
    let doing = format!("sign the roster of {}", file.fleet);
    if file.hosts.is_empty() {
        let refusal = Refusal::of(Code::RosterEmpty, format!("{} lists no hosts", path.display()));
        return Err(CliError::refused(doing, refusal));
    }
    let roster = file.to_roster(expected).map_err(|source| CliError::Document { doing, source })?;
    Ok((current, roster))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<RosterFile, CliError> {
    let wrong = |reason: String| CliError::Content { path: path.to_owned(), reason };
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is not text".to_owned()))?;
    toml::from_str(text).map_err(|error| wrong(error.to_string()))
}

/// The fleet's roster; none if the fleet is still to be made.
pub(super) async fn present(
    session: &Session,
    fleet: &FleetName,
) -> Result<Option<Authentic<Roster>>, CliError> {
    match Box::pin(session.last_roster(fleet)).await {
        Ok(roster) => Ok(Some(roster)),
        Err(CliError::Refused { refusal, .. })
            if matches!(refusal.code(), Some(Code::FleetUnknown | Code::RosterEmpty)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Who comes and who goes.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) added: Vec<HostName>,
    pub(super) removed: Vec<HostName>,
    /// Those that get another key to attest with.
    pub(super) rekeyed: Vec<HostName>,
    /// Those that are stated to be off.
    pub(super) fenced: Vec<Fence>,
    /// What the fleet accepts of its hosts from then on.
    pub(super) policy_changes: Vec<PolicyChange>,
    /// Those that serve nothing from then on, and may be asked back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) parked: Vec<Withdrawn>,
    /// Those that leave for good.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) retired: Vec<Withdrawn>,
    /// Those that were parked or had retired, and are in no list any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) forgotten: Vec<HostName>,
}

impl Change {
    pub(super) fn of(current: Option<&Roster>, next: &Roster) -> Self {
        let hosts = |roster: &Roster| roster.hosts().iter().map(|host| host.name.clone()).collect::<Vec<_>>();
        let is_rekeyed = |host: &&Member| {
            let before = current.and_then(|current| current.member(&host.name));
            before.is_some_and(|before| before.attestation_key != host.attestation_key)
        };
        let (old, new) = (current.map(hosts).unwrap_or_default(), hosts(next));
        let place_before = |host: &HostName| current.and_then(|current| current.place(host));
        let comes_to = |list: &[Withdrawn], place: HostPlace| -> Vec<Withdrawn> {
            list.iter().filter(|it| place_before(&it.name) != Some(place)).cloned().collect()
        };
        let aside = current.into_iter().flat_map(|it| it.parked().iter().chain(it.retired()));
        Self {
            parked: comes_to(next.parked(), HostPlace::Parked),
            retired: comes_to(next.retired(), HostPlace::Retired),
            forgotten: aside.filter(|it| next.place(&it.name).is_none()).map(|it| it.name.clone()).collect(),
            added: new.iter().filter(|host| !old.contains(host)).cloned().collect(),
            removed: old.iter().filter(|host| next.place(host).is_none()).cloned().collect(),
            rekeyed: next
                .hosts()
                .iter()
                .filter(|host| is_rekeyed(host))
                .map(|host| host.name.clone())
                .collect(),
            fenced: next.fenced().to_vec(),
            policy_changes: current
                .map(|current| PolicyChange::between(current.policy(), next.policy()))
                .unwrap_or_default(),
        }
    }

    pub(super) fn say(&self, env: &Env) {
        for host in &self.added {
            env.ui.say(format_args!("+ {host}"));
        }
        for host in &self.removed {
            env.ui.say(format_args!("- {host}"));
        }
        for host in &self.rekeyed {
            env.ui.say(format_args!("~ {host} (another key)"));
        }
        for (what, list) in [("parked", &self.parked), ("retired", &self.retired)] {
            for Withdrawn { name, reason, .. } in list {
                env.ui.say(format_args!("/ {name} is {what}: {reason}"));
            }
        }
        for host in &self.forgotten {
            env.ui.say(format_args!("- {host}, which was set aside"));
        }
        for Fence { host, reason, .. } in &self.fenced {
            env.ui.warn(format_args!("it states that {host} is off or wiped: {reason}"));
        }
        for change in &self.policy_changes {
            env.ui.warn(format_args!("{change}"));
        }
    }
}

#[derive(Debug, Serialize)]
struct Applied {
    fleet: String,
    revision: u64,
    hosts: u32,
    added: Vec<HostName>,
    removed: Vec<HostName>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parked: Vec<Withdrawn>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Withdrawn>,
    /// It is kept, and does not hold yet.
    coming: bool,
    /// The hosts that it waits for.
    awaited: Vec<String>,
    solo: bool,
}

impl Report for Applied {
    const SCHEMA: &'static str = "muster.roster-applied/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, revision, .. } = self;
        let hosts = counted(self.hosts, "host");
        match (self.coming, self.awaited.as_slice()) {
            (false, _) => page.toned(
                Tone::Good,
                format_args!("the roster of {fleet} is now revision {revision} with {hosts}"),
            ),
            (true, []) => page.toned(
                Tone::Good,
                format_args!(
                    "revision {revision} with {hosts} is kept, and holds once the rollout under way is over"
                ),
            ),
            (true, awaited) => page.toned(
                Tone::Warning,
                format_args!(
                    "revision {revision} with {hosts} is kept, and holds once {} closed; see `muster status`",
                    match awaited {
                        [one] => format!("{one} has"),
                        all => format!("{} have", all.join(" and ")),
                    }
                ),
            ),
        }
        if self.solo {
            page.labelled(Tone::Warning, "solo mode", "it was signed by one operator alone");
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{Policy, PublicKey, Timing};

    use super::*;

    #[test]
    fn the_change_names_who_comes_and_who_goes() {
        let roster = |names: &[&str]| {
            let member = |(index, name): (usize, &&str)| Member {
                name: HostName::new(name).unwrap(),
                attestation_key: PublicKey::Ed25519([u8::try_from(index).unwrap(); 32]),
            };
            let members = names.iter().enumerate().map(member).collect();
            Roster::new(FleetName::new("demo").unwrap(), RosterRevision(1), Policy::default(), members)
                .unwrap()
        };
        let change = Change::of(Some(&roster(&["a", "b"])), &roster(&["b", "c"]));
        assert_eq!(change.added, [HostName::new("c").unwrap()]);
        assert_eq!(change.removed, [HostName::new("a").unwrap()]);
        assert_eq!(Change::of(None, &roster(&["a"])).added.len(), 1);
        assert_eq!(change.policy_changes, []);
        let timing = Timing { clock_error_ms: 25, ..Timing::default() };
        let members = roster(&["a"]).hosts().to_vec();
        let policy = Policy { timing, ..Policy::default() };
        let stricter =
            Roster::new(FleetName::new("demo").unwrap(), RosterRevision(2), policy, members).unwrap();
        let change = Change::of(Some(&roster(&["a"])), &stricter);
        assert_eq!(change.policy_changes[0].to_string(), "policy.timing.clock_error_ms: 10 → 25");
    }
}
