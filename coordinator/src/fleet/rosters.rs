//! When rosters come to hold, for the audit log: whoever hands one in may see it kept, and nobody is asked when it holds.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_audit::{Entry, Kind};
use muster_model::{HostName, HostPlace, Roster, Verified};
use muster_rollout::fleet::{ComingRoster, Fleet, FleetRecord, Inheritance};

use crate::audit::AuditHandle;

/// The most hosts that an entry names in words.
const NAMED_MAX: usize = 32;

/// The roster in force as of the last look.
#[derive(Debug)]
pub(crate) struct RosterNotes {
    in_force: Arc<Verified<Roster>>,
    /// The hosts that were stated to be off in the roster that was kept.
    fenced: BTreeSet<HostName>,
}

impl RosterNotes {
    /// What a leader takes over.
    pub(crate) fn inherited(record: &FleetRecord, inheritance: &Inheritance) -> Self {
        Self { in_force: Arc::clone(&inheritance.roster), fenced: fenced(record.coming.as_ref()) }
    }

    /// Looks whether another roster holds by now, and says what has changed with it.
    pub(super) fn look(&mut self, fleet: &Fleet, audit: &AuditHandle) -> Option<Entry> {
        let (record, present) = (fleet.record(), fleet.roster());
        let mut off = std::mem::replace(&mut self.fenced, fenced(record.coming.as_ref()));
        let before = std::mem::replace(&mut self.in_force, Arc::clone(present));
        if Arc::ptr_eq(&before, present) {
            return None;
        }
        off.extend(present.fenced().iter().map(|fence| fence.host.clone()));
        let hosts = changed(&before, present);
        let (revision, count) = (present.revision(), present.hosts().len());
        let said =
            format!("revision {revision} holds, {count} hosts: {}", said(&before, present, &hosts, &off));
        let entry =
            audit.own_entry(Kind::Roster).of_fleet(&record.fleet).with("roster", record.roster_envelope);
        Some(entry.of_hosts(hosts).saying(said))
    }
}

fn fenced(coming: Option<&ComingRoster>) -> BTreeSet<HostName> {
    coming.map(|coming| coming.fenced.clone()).unwrap_or_default()
}

/// The hosts for which something changes.
fn changed<'a>(before: &'a Roster, next: &'a Roster) -> Vec<&'a HostName> {
    let all: BTreeSet<&HostName> = names(before).chain(names(next)).collect();
    let is_same =
        |host: &HostName| before.place(host) == next.place(host) && before.key_of(host) == next.key_of(host);
    all.into_iter().filter(|host| !is_same(host)).collect()
}

fn names(roster: &Roster) -> impl Iterator<Item = &HostName> {
    let aside = roster.parked().iter().chain(roster.retired()).map(|it| &it.name);
    roster.hosts().iter().map(|it| &it.name).chain(aside)
}

fn said(before: &Roster, next: &Roster, hosts: &[&HostName], off: &BTreeSet<HostName>) -> String {
    let one = |host: &&HostName| {
        let (was, is) = (before.place(host), next.place(host));
        let what = match (was, is) {
            (Some(HostPlace::Parked | HostPlace::Retired), Some(HostPlace::Serving)) => "comes back",
            (Some(HostPlace::Serving), Some(HostPlace::Serving)) => "has another key",
            (None, Some(HostPlace::Serving)) => "joins",
            (_, Some(HostPlace::Parked)) => "is parked",
            (_, Some(HostPlace::Retired)) => "has retired",
            (_, None) => "has left",
        };
        let is_off = was == Some(HostPlace::Serving) && off.contains(*host);
        format!("{host} {what}{}", if is_off { ", as it is stated to be off" } else { "" })
    };
    let mut words: Vec<String> = hosts.iter().take(NAMED_MAX).map(one).collect();
    if hosts.len() > NAMED_MAX {
        words.push(format!("and {} more", hosts.len() - NAMED_MAX));
    }
    if words.is_empty() { "the same hosts".to_owned() } else { words.join("; ") }
}

#[cfg(test)]
mod tests {
    use muster_model::{FleetName, Member, Policy, PublicKey, RosterRevision, UnixTime, Withdrawn};

    use super::*;

    fn roster(serving: &[(&str, u8)], parked: &[(&str, u8)]) -> Roster {
        let member = |(name, key): &(&str, u8)| Member {
            name: HostName::new(name).unwrap(),
            attestation_key: PublicKey::Ed25519([*key; 32]),
        };
        let aside = |it: &(&str, u8)| {
            let Member { name, attestation_key } = member(it);
            Withdrawn {
                name,
                attestation_key,
                reason: "rattles".to_owned(),
                since_unix_ms: UnixTime(1),
                since: None,
                fenced: false,
            }
        };
        let fleet = FleetName::new("demo").unwrap();
        let members = serving.iter().map(member).collect();
        let roster = Roster::new(fleet, RosterRevision(1), Policy::default(), members).unwrap();
        roster.setting_aside(parked.iter().map(aside).collect(), Vec::new()).unwrap()
    }

    #[test]
    fn what_changes_is_said_of_each_host_and_of_those_that_are_off_why() {
        let before = roster(&[("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)], &[("f", 6)]);
        let next = roster(&[("a", 1), ("c", 13), ("f", 6), ("g", 7)], &[("b", 2), ("d", 4)]);
        let hosts = changed(&before, &next);
        let off = ["b", "e"].map(|host| HostName::new(host).unwrap()).into();
        assert_eq!(
            said(&before, &next, &hosts, &off),
            "b is parked, as it is stated to be off; c has another key; d is parked; e has left, as it is stated to be off; \
             f comes back; g joins"
        );
        assert_eq!(said(&before, &before, &changed(&before, &before), &off), "the same hosts");
    }
}
