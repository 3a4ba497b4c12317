use std::path::PathBuf;

use clap::Args;
use muster_model::{
    BootGatePolicy, ClockPolicy, Digest, Fence, FleetName, HostName, Policy, PublicKey, Roster,
    RosterRevision, Timing, Withdrawn,
};
use muster_trust::Authentic;
use serde::Serialize;

use super::aside::proof;
use crate::args::FleetArg;
use crate::clock::{date_text, span_text};
use crate::commands::Env;
use crate::connect::Session;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};
use crate::output::{Page, Report, Tone, counted};
use crate::view::{KeyView, listed};

/// Show the fleet's roster, after verifying it with the pinned root.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster roster show --fleet demo")]
pub(crate) struct Show {
    #[command(flatten)]
    fleet: FleetArg,
    /// Write the signed roster to this file as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Show {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let roster = session.roster(&fleet).await?;
        if let Some(path) = &self.out {
            write(path, roster.raw(), 0o644, Existing::Keep)?;
        }
        let document = roster.document();
        env.ui.report(&Shown {
            fleet,
            revision: document.revision().0,
            digest: roster.payload_digest(),
            policy: document.policy(),
            signers: roster.signers().to_vec(),
            solo: session.root().root().is_solo(),
            hosts: document
                .hosts()
                .iter()
                .map(|host| Row { host: host.name.clone(), attestation_key: host.attestation_key.clone() })
                .collect(),
            fenced: document.fenced().to_vec(),
            additions: Added::of(&session, &roster),
            parked: document.parked().to_vec(),
            retired: document.retired().to_vec(),
        })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    fleet: FleetName,
    revision: u64,
    digest: Digest,
    #[serde(flatten)]
    policy: Policy,
    signers: Vec<PublicKey>,
    solo: bool,
    hosts: Vec<Row>,
    /// Hosts that left with this revision because they are stated to be off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fenced: Vec<Fence>,
    /// What joiners have added since operators signed; nothing where they may not and have not.
    #[serde(skip_serializing_if = "Option::is_none")]
    additions: Option<Added>,
    /// Hosts that serve nothing, and may be asked back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parked: Vec<Withdrawn>,
    /// Hosts that have left for good.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Withdrawn>,
}

/// Hosts that joiners have added.
#[derive(Debug, Serialize)]
struct Added {
    base_revision: RosterRevision,
    hosts: Vec<HostName>,
    by: Vec<KeyView>,
    /// How many more they may add.
    room: u32,
}

impl Added {
    fn of(session: &Session, roster: &Authentic<Roster>) -> Option<Self> {
        let (root, document) = (session.root().root(), roster.document());
        let room = root.joiners.as_ref().map_or(0, |joiners| joiners.room(document));
        let Some(additions) = document.additions() else {
            let (base_revision, none) = (document.revision(), Vec::new());
            return (room > 0).then_some(Self { base_revision, hosts: none, by: Vec::new(), room });
        };
        Some(Self {
            base_revision: additions.base_revision,
            hosts: additions.hosts.iter().map(|member| member.name.clone()).collect(),
            by: roster.signers().iter().map(|key| KeyView::of(root, key)).collect(),
            room,
        })
    }

    fn print(&self, page: &mut Page) {
        if !self.hosts.is_empty() {
            let (hosts, by, base) = (listed(&self.hosts), listed(&self.by), self.base_revision);
            page.line(format_args!("added     {hosts} by {by}, to revision {base} of the operators"));
        }
        page.line(format_args!("          joiners may add {} more", counted(self.room, "host")));
    }
}

#[derive(Debug, Serialize)]
struct Row {
    host: HostName,
    attestation_key: PublicKey,
}

impl Report for Shown {
    const SCHEMA: &'static str = "muster.roster/1";

    fn print(&self, page: &mut Page) {
        page.line(format_args!("fleet     {}", self.fleet));
        page.line(format_args!("revision  {} with {}", self.revision, counted(self.hosts.len(), "host")));
        page.line(format_args!("digest    {}", self.digest));
        print_policy(page, self.policy);
        for signer in &self.signers {
            page.line(format_args!("signed by {signer}"));
        }
        if let Some(additions) = &self.additions {
            additions.print(page);
        }
        if self.solo {
            page.labelled(Tone::Warning, "solo mode", "one operator alone may change it");
        }
        for Fence { host, reason, .. } in &self.fenced {
            page.labelled(Tone::Warning, "stated to be off", format_args!("{host}: {reason}"));
        }
        page.gap();
        let rows = self.hosts.iter().map(|row| [row.host.to_string(), row.attestation_key.to_string()]);
        page.table(["HOST", "ATTESTATION KEY"], rows.collect());
        for (what, list) in [("PARKED", &self.parked), ("RETIRED", &self.retired)] {
            if !list.is_empty() {
                page.gap();
                let rows = list.iter().map(|it| {
                    [it.name.to_string(), date_text(it.since_unix_ms), proof(it), it.reason.clone()]
                });
                page.table([what, "SINCE", "PROOF", "WHY"], rows.collect());
            }
        }
    }
}

fn print_policy(page: &mut Page, Policy { boot_gate, clock, timing }: Policy) {
    let boot_gate = match boot_gate {
        BootGatePolicy::Required => "a host's link must vanish at a reboot",
        BootGatePolicy::Optional => "a link that outlives a reboot is accepted",
    };
    let clock = match clock {
        ClockPolicy::Steady => "its clock must not stand still",
        ClockPolicy::Any => "a clock that may pause is accepted",
    };
    page.line(format_args!("policy    {boot_gate}; {clock}"));
    let Timing { lease_ms, fence_ms, rate_error_ppm, wait_ms, clock_error_ms } = timing;
    page.line(format_args!(
        "timing    lease {}, fence {}, clock rates within {rate_error_ppm} ppm: wait {}",
        exact(lease_ms),
        exact(fence_ms),
        exact(wait_ms)
    ));
    page.line(format_args!("          time of day within {} in fast mode", exact(clock_error_ms)));
}

/// Nothing of a time that others are derived from is rounded away.
fn exact(ms: u64) -> String {
    if ms.is_multiple_of(1000) { span_text(ms) } else { format!("{ms}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_shown_with_all_its_times() {
        let mut page = Page::new(false);
        let timing = Timing { wait_ms: 3_100, ..Timing::with_lease(2000, 500) };
        let policy = Policy { clock: ClockPolicy::Any, timing, ..Policy::default() };
        print_policy(&mut page, policy);
        insta::assert_snapshot!(page.into_text(), @"
        policy    a host's link must vanish at a reboot; a clock that may pause is accepted
        timing    lease 2s, fence 500ms, clock rates within 100000 ppm: wait 3100ms
                  time of day within 10ms in fast mode
        ");
    }
}
