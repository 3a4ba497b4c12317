//! Rosters that are kept before they hold, for the audit log: whoever handed one in saw it kept, and nobody is asked when it holds.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_audit::{Entry, Kind};
use muster_model::{HostName, HostPlace, Roster, Verified};
use muster_rollout::fleet::{Fleet, FleetRecord, Inheritance};

use crate::audit::AuditHandle;

/// The most hosts that an entry names in words.
const NAMED_MAX: usize = 32;

/// The roster that is kept, as of the last look.
#[derive(Debug, Default)]
pub(crate) struct KeptRoster(Option<Kept>);

#[derive(Debug)]
struct Kept {
    in_force: Arc<Verified<Roster>>,
    coming: Arc<Verified<Roster>>,
    /// The hosts that are stated to be off.
    fenced: BTreeSet<HostName>,
}

impl KeptRoster {
    /// What a leader takes over.
    pub(crate) fn inherited(record: &FleetRecord, inheritance: &Inheritance) -> Self {
        Self(inheritance.coming.as_ref().map(|coming| Kept {
            in_force: Arc::clone(&inheritance.roster),
            coming: Arc::clone(coming),
            fenced: record.coming.as_ref().map(|it| it.fenced.clone()).unwrap_or_default(),
        }))
    }

    /// Looks whether the roster that was kept holds by now, and says so.
    pub(super) fn look(&mut self, fleet: &Fleet, audit: &AuditHandle) -> Option<Entry> {
        let before = self.0.take();
        self.0 = fleet.coming().map(|coming| Kept {
            in_force: Arc::clone(fleet.roster()),
            coming: Arc::clone(coming),
            fenced: fleet.record().coming.as_ref().map(|it| it.fenced.clone()).unwrap_or_default(),
        });
        let kept = before.filter(|kept| Arc::ptr_eq(&kept.coming, fleet.roster()))?;
        let record = fleet.record();
        let entry =
            audit.own_entry(Kind::Roster).of_fleet(&record.fleet).with("roster", record.roster_envelope);
        let hosts = changed(&kept.in_force, &kept.coming);
        let said = format!(
            "revision {} was kept and holds now, {} hosts: {}",
            kept.coming.revision(),
            kept.coming.hosts().len(),
            said(&kept, &hosts)
        );
        Some(entry.of_hosts(hosts).saying(said))
    }
}

/// The hosts for which something changes.
fn changed<'a>(before: &'a Roster, next: &'a Roster) -> Vec<&'a HostName> {
    let names = |roster: &'a Roster| {
        let aside = roster.parked().iter().chain(roster.retired()).map(|it| &it.name);
        roster.hosts().iter().map(|it| &it.name).chain(aside)
    };
    let all: BTreeSet<&HostName> = names(before).chain(names(next)).collect();
    let is_same =
        |host: &HostName| before.place(host) == next.place(host) && before.key_of(host) == next.key_of(host);
    all.into_iter().filter(|host| !is_same(host)).collect()
}

fn said(kept: &Kept, hosts: &[&HostName]) -> String {
    let one = |host: &&HostName| {
        let what = match (kept.in_force.place(host), kept.coming.place(host)) {
            (Some(HostPlace::Parked), Some(HostPlace::Serving)) => "comes back",
            (Some(HostPlace::Serving), Some(HostPlace::Serving)) => "has another key",
            (_, Some(HostPlace::Serving)) => "joins",
            (_, Some(HostPlace::Parked)) => "is parked",
            (_, Some(HostPlace::Retired)) => "has retired",
            (_, None) => "has left",
        };
        let why = if kept.fenced.contains(*host) { ", as it is stated to be off" } else { "" };
        format!("{host} {what}{why}")
    };
    let mut words: Vec<String> = hosts.iter().take(NAMED_MAX).map(one).collect();
    if hosts.len() > NAMED_MAX {
        words.push(format!("and {} more", hosts.len() - NAMED_MAX));
    }
    if words.is_empty() { "the same hosts".to_owned() } else { words.join("; ") }
}
