//! Since when hosts are set aside, and whether that they are off is stated: what of it a next roster takes from the one before.

use muster_model::{HostName, Roster, RosterRevision, Withdrawn};

/// Completes the hosts that a next roster sets aside. Whoever is set aside already stays so since then, and stays stated to be off; all
/// others are since this `revision`. `fenced` are those of whose machines, as the roster before lists them, it is stated now.
pub(super) fn carry_on(
    list: &mut [Withdrawn],
    before: Option<&Roster>,
    revision: RosterRevision,
    fenced: &[HostName],
) {
    for entry in list {
        let of_before = |roster: &Roster| {
            let found = roster.parked_host(&entry.name).or_else(|| roster.retired_host(&entry.name));
            found.filter(|it| it.attestation_key == entry.attestation_key).cloned()
        };
        let known = before.and_then(of_before);
        let is_spoken_of = before
            .and_then(|before| before.key_of(&entry.name))
            .is_none_or(|key| *key == entry.attestation_key);
        let is_stated = fenced.contains(&entry.name) && is_spoken_of;
        entry.since = known.as_ref().map_or(Some(revision), |known| known.since);
        entry.fenced = is_stated || known.is_some_and(|known| known.fenced);
    }
}

/// What stands for it that a host which is set aside has closed, in a few words.
pub(super) fn proof(entry: &Withdrawn) -> String {
    match (entry.fenced, entry.since) {
        (true, _) => "stated to be off".to_owned(),
        (false, Some(since)) => format!("its own word, of revision {since} or later"),
        (false, None) => "none: from before hosts gave their word".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{FleetName, Member, Policy, PublicKey, UnixTime};

    use super::*;

    fn name(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn entry(host: &str, key: u8, since: Option<u64>, fenced: bool) -> Withdrawn {
        Withdrawn {
            name: name(host),
            attestation_key: PublicKey::Ed25519([key; 32]),
            reason: "a fan".to_owned(),
            since_unix_ms: UnixTime(1),
            since: since.map(RosterRevision),
            fenced,
        }
    }

    /// Revision 5: host-1 serves, host-2 is parked since 3, host-3 is off since 4, host-4 is parked from before.
    fn before() -> Roster {
        let member = Member { name: name("host-1"), attestation_key: PublicKey::Ed25519([1; 32]) };
        let parked = vec![
            entry("host-2", 2, Some(3), false),
            entry("host-3", 3, Some(4), true),
            entry("host-4", 4, None, false),
        ];
        Roster::new(FleetName::new("demo").unwrap(), RosterRevision(5), Policy::default(), vec![member])
            .and_then(|it| it.setting_aside(parked, vec![]))
            .unwrap()
    }

    fn carried(entry: Withdrawn, fenced: &[&str]) -> (Option<u64>, bool) {
        let fenced: Vec<HostName> = fenced.iter().map(|host| name(host)).collect();
        let mut list = [entry];
        carry_on(&mut list, Some(&before()), RosterRevision(6), &fenced);
        (list[0].since.map(|since| since.0), list[0].fenced)
    }

    #[test]
    fn who_is_set_aside_already_stays_so_since_then_whatever_the_file_says() {
        for stated in [None, Some(1), Some(6)] {
            assert_eq!(carried(entry("host-2", 2, stated, false), &[]), (Some(3), false));
            assert_eq!(carried(entry("host-3", 3, stated, false), &[]), (Some(4), true), "off stays off");
            assert_eq!(carried(entry("host-4", 4, stated, false), &[]), (None, false), "from before");
            assert_eq!(carried(entry("host-1", 1, stated, true), &[]), (Some(6), false), "it served");
        }
    }

    #[test]
    fn a_statement_is_about_the_machine_that_the_roster_before_lists() {
        assert_eq!(carried(entry("host-2", 2, None, false), &["host-2"]), (Some(3), true));
        assert_eq!(carried(entry("host-1", 1, None, false), &["host-1"]), (Some(6), true));
        assert_eq!(
            carried(entry("host-2", 9, None, false), &["host-2"]),
            (Some(6), false),
            "another machine"
        );
    }
}
