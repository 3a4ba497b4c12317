//! The withdrawal: a host's own word that it has closed because a roster sets it aside.
//!
//! The hosts that go on without it believe nobody else: a coordinator that was taken over could say of a host that serves that it has
//! closed, and have the others flip over it.

use serde::{Deserialize, Serialize};

use crate::document::{check_format, parse_json, to_json};
use crate::{
    BootId, Document, DocumentError, DocumentKind, FleetName, FollowError, HostName, PublicKey, RolloutId,
    Roster, RosterRevision, UnixTime, Withdrawn,
};

const FORMAT: &str = "muster.withdrawal/1";

/// What one host states once its guard has stopped and nothing is served: it serves nothing until a later roster has it serve.
///
/// It is signed by the key that the rosters list the host with, and by nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    format: String,
    /// The fleet.
    pub fleet: FleetName,
    /// The host that has closed.
    pub host: HostName,
    /// The roster that it was shown, which does not have it serve: it opens nothing before it has seen a later one.
    pub roster_revision: RosterRevision,
    /// The last rollout that it had armed for.
    pub last_k: RolloutId,
    /// The host's boot in which it closed.
    pub boot_id: BootId,
    /// Milliseconds since 1970 on the host's clock when it had closed; for people.
    pub closed_unix_ms: UnixTime,
}

/// Why a withdrawal does not stand for a host that a roster sets aside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WithdrawalError {
    /// Not one for each host that must give its word.
    #[error(
        "there are {found} withdrawals for {expected} hosts that are set aside and have to give their word"
    )]
    Count {
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Another host's in a host's place.
    #[error("the withdrawal of {expected} is missing, that of {found} is in its place")]
    Host {
        /// The host of that place.
        expected: HostName,
        /// The host that it names.
        found: HostName,
    },
    /// Of another fleet.
    #[error("the withdrawal of {host} is for the fleet {found}, not for {expected}")]
    Fleet {
        /// Whose it is.
        host: HostName,
        /// The roster's fleet.
        expected: FleetName,
        /// The fleet that it is for.
        found: FleetName,
    },
    /// Of a time before the host was set aside: it may have served since.
    #[error(
        "{host} withdrew at revision {found}, and is set aside since {since}: it may have served in between"
    )]
    TooEarly {
        /// Whose it is.
        host: HostName,
        /// The revision that it names.
        found: RosterRevision,
        /// The revision that set the host aside.
        since: RosterRevision,
    },
    /// Of a later roster than the one that it is shown for.
    #[error("{host} withdrew at revision {found}, which is later than {revision}")]
    TooLate {
        /// Whose it is.
        host: HostName,
        /// The revision that it names.
        found: RosterRevision,
        /// The roster's.
        revision: RosterRevision,
    },
}

impl Withdrawal {
    /// Puts a withdrawal together.
    #[must_use]
    pub fn new(
        fleet: FleetName,
        host: HostName,
        roster_revision: RosterRevision,
        last_k: RolloutId,
        boot_id: BootId,
        closed_unix_ms: UnixTime,
    ) -> Self {
        Self { format: FORMAT.to_owned(), fleet, host, roster_revision, last_k, boot_id, closed_unix_ms }
    }
}

impl Document for Withdrawal {
    const KIND: DocumentKind = DocumentKind::Withdrawal;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let withdrawal: Self = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &withdrawal.format, FORMAT)?;
        if withdrawal.roster_revision.0 == 0 {
            let reason = "revisions of rosters begin at 1".to_owned();
            return Err(DocumentError::Invalid { kind: Self::KIND.name(), reason });
        }
        Ok(withdrawal)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

impl Roster {
    /// The hosts that are set aside and whose own word a flip needs, with the revision since which they are: first those that are parked,
    /// then those that have retired, each sorted by name.
    ///
    /// Of those that are stated to be off no word can come. Entries that do not say since when they are set aside were signed before
    /// hosts gave their word, and need none.
    pub fn must_have_withdrawn(&self) -> impl Iterator<Item = (&Withdrawn, RosterRevision)> {
        let aside = self.parked().iter().chain(self.retired());
        aside.filter(|it| !it.fenced).filter_map(|it| it.since.map(|since| (it, since)))
    }

    /// Whether this withdrawal stands for this entry. That the entry's key has signed it is for the caller.
    ///
    /// # Errors
    /// Names the host, and what is wrong with its word.
    pub fn check_withdrawal(
        &self,
        (entry, since): (&Withdrawn, RosterRevision),
        withdrawal: &Withdrawal,
    ) -> Result<(), WithdrawalError> {
        let (host, found) = (withdrawal.host.clone(), withdrawal.roster_revision);
        if host != entry.name {
            return Err(WithdrawalError::Host { expected: entry.name.clone(), found: host });
        }
        if withdrawal.fleet != *self.fleet() {
            let (expected, found) = (self.fleet().clone(), withdrawal.fleet.clone());
            return Err(WithdrawalError::Fleet { host, expected, found });
        }
        if found < since {
            return Err(WithdrawalError::TooEarly { host, found, since });
        }
        if found > self.revision() {
            return Err(WithdrawalError::TooLate { host, found, revision: self.revision() });
        }
        Ok(())
    }

    /// Whether these are the withdrawals that a flip under this roster needs, all and in order. That each entry's key has signed its own
    /// is for the caller.
    ///
    /// # Errors
    /// Names the first host whose word is missing or no good.
    pub fn check_withdrawals<'a>(
        &self,
        withdrawals: impl ExactSizeIterator<Item = &'a Withdrawal>,
    ) -> Result<(), WithdrawalError> {
        let (expected, found) = (self.must_have_withdrawn().count(), withdrawals.len());
        if expected != found {
            return Err(WithdrawalError::Count { expected, found });
        }
        self.must_have_withdrawn()
            .zip(withdrawals)
            .try_for_each(|(entry, it)| self.check_withdrawal(entry, it))
    }

    /// Whether whoever keeps the roster `kept` may go on to this one, by whom it sets aside and since when. One that is older than `kept`
    /// takes nobody's place, and is for the caller.
    ///
    /// Operators who were shown an older roster than the one in force sign that a machine is set aside since a time before it was taken
    /// back; its word of that time says nothing of what it serves by now.
    ///
    /// # Errors
    /// Names the host.
    pub fn check_set_aside(&self, kept: &Self) -> Result<(), FollowError> {
        for entry in self.parked().iter().chain(self.retired()) {
            let host = || entry.name.clone();
            let is_same = |key: &PublicKey| *key == entry.attestation_key;
            let has_served = kept.member(&entry.name).is_some_and(|member| is_same(&member.attestation_key));
            if has_served && entry.since.is_none_or(|since| since <= kept.revision()) {
                return Err(FollowError::ServedSince { host: host(), kept: kept.revision() });
            }
            let before = kept.parked_host(&entry.name).or_else(|| kept.retired_host(&entry.name));
            if let Some(before) = before.filter(|it| is_same(&it.attestation_key) && entry.since < it.since) {
                let since = before.since.unwrap_or_default();
                return Err(FollowError::SetAsideLater { host: host(), since, kept: kept.revision() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Addition, Digest, FleetScope, Joiners, Member, Policy, RoleKeys};

    fn name(name: &str) -> HostName {
        HostName::new(name).expect("a name")
    }

    fn fleet() -> FleetName {
        FleetName::new("smars").expect("a name")
    }

    fn withdrawal(host: &str, revision: u64) -> Withdrawal {
        let boot = BootId::new("0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").expect("a boot id");
        Withdrawal::new(fleet(), name(host), RosterRevision(revision), RolloutId(3), boot, UnixTime(7))
    }

    fn aside(host: &str, key: u8, since: Option<u64>, fenced: bool) -> Withdrawn {
        Withdrawn {
            name: name(host),
            attestation_key: PublicKey::Ed25519([key; 32]),
            reason: "a fan".to_owned(),
            since_unix_ms: UnixTime(7),
            since: since.map(RosterRevision),
            fenced,
        }
    }

    /// Revision 9: host-2 is parked since 5, host-3 since before the change, host-4 is off; host-5 has retired at 8.
    fn roster() -> Roster {
        let member = Member { name: name("host-1"), attestation_key: PublicKey::Ed25519([1; 32]) };
        let parked = vec![
            aside("host-2", 2, Some(5), false),
            aside("host-3", 3, None, false),
            aside("host-4", 4, Some(6), true),
        ];
        Roster::new(fleet(), RosterRevision(9), Policy::default(), vec![member])
            .and_then(|it| it.setting_aside(parked, vec![aside("host-5", 5, Some(8), false)]))
            .expect("valid")
    }

    #[test]
    fn a_withdrawal_is_read_strictly() {
        let good = withdrawal("host-2", 5);
        let text = String::from_utf8(good.to_bytes()).expect("JSON");
        assert_eq!(Withdrawal::parse(text.as_bytes()), Ok(good));
        for (from, to) in [
            ("withdrawal/1", "withdrawal/2"),
            ("{", "{\"x\":1,"),
            ("\"roster_revision\":5", "\"roster_revision\":0"),
        ] {
            assert!(Withdrawal::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{from}");
        }
    }

    #[test]
    fn a_roster_needs_the_word_of_whom_it_sets_aside_unless_it_is_off_or_from_before() {
        let roster = roster();
        let needed: Vec<_> =
            roster.must_have_withdrawn().map(|(it, since)| (it.name.as_str(), since.0)).collect();
        assert_eq!(needed, [("host-2", 5), ("host-5", 8)]);
        let check = |all: &[Withdrawal]| roster.check_withdrawals(all.iter());
        assert_eq!(check(&[withdrawal("host-2", 5), withdrawal("host-5", 9)]), Ok(()));
        assert_eq!(check(&[withdrawal("host-2", 9)]), Err(WithdrawalError::Count { expected: 2, found: 1 }));
        assert_eq!(check(&[]), Err(WithdrawalError::Count { expected: 2, found: 0 }));
    }

    #[test]
    fn a_word_of_another_host_fleet_or_time_does_not_count() {
        let roster = roster();
        let refused = |first: Withdrawal| {
            roster.check_withdrawals([first, withdrawal("host-5", 8)].iter()).expect_err("it is no good")
        };
        assert!(matches!(refused(withdrawal("host-5", 8)), WithdrawalError::Host { .. }));
        let other = FleetName::new("other").expect("a name");
        assert!(matches!(
            refused(Withdrawal { fleet: other, ..withdrawal("host-2", 5) }),
            WithdrawalError::Fleet { .. }
        ));
        let (host, since) = (name("host-2"), RosterRevision(5));
        let found = RosterRevision(4);
        assert_eq!(refused(withdrawal("host-2", 4)), WithdrawalError::TooEarly { host, found, since });
        assert!(matches!(refused(withdrawal("host-2", 10)), WithdrawalError::TooLate { .. }));
    }

    /// Revision `revision` of a fleet of host-1, with host-2 serving or parked.
    fn with_host_2(revision: u64, aside: Option<Withdrawn>) -> Roster {
        let member =
            |host: &str, key| Member { name: name(host), attestation_key: PublicKey::Ed25519([key; 32]) };
        let mut hosts = vec![member("host-1", 1)];
        hosts.extend(aside.is_none().then(|| member("host-2", 2)));
        Roster::new(fleet(), RosterRevision(revision), Policy::default(), hosts)
            .and_then(|it| it.setting_aside(aside.into_iter().collect(), Vec::new()))
            .expect("valid")
    }

    #[test]
    fn a_machine_that_served_in_the_roster_before_is_set_aside_since_a_later_one() {
        let served = with_host_2(6, None);
        let next = |since| with_host_2(8, Some(aside("host-2", 2, since, false)));
        assert_eq!(next(Some(7)).check_set_aside(&served), Ok(()));
        assert_eq!(next(Some(8)).check_set_aside(&served), Ok(()));
        for since in [Some(6), Some(3), None] {
            let error = next(since).check_set_aside(&served).expect_err("it served since");
            assert_eq!(error, FollowError::ServedSince { host: name("host-2"), kept: RosterRevision(6) });
        }
        // Another machine with the name.
        let other = with_host_2(8, Some(aside("host-2", 9, Some(3), false)));
        assert_eq!(other.check_set_aside(&served), Ok(()));
    }

    #[test]
    fn a_machine_that_is_set_aside_never_is_so_since_an_earlier_revision() {
        let of = |revision, since| with_host_2(revision, Some(aside("host-2", 2, since, false)));
        for (before, after, is_good) in [
            (Some(5), Some(5), true),
            (Some(5), Some(7), true),
            (Some(5), Some(4), false),
            (Some(5), None, false),
            (None, None, true),
            (None, Some(7), true),
        ] {
            let outcome = of(8, after).check_set_aside(&of(6, before));
            assert_eq!(outcome.is_ok(), is_good, "{before:?} to {after:?}");
        }
    }

    #[test]
    fn entries_say_since_when_up_to_their_revision_and_older_ones_keep_their_bytes() {
        let wrong = [0, 10].map(|since| {
            let none = Roster::parse(&roster().to_bytes()).expect("a roster");
            none.setting_aside(vec![aside("host-2", 2, Some(since), false)], Vec::new())
        });
        for error in wrong {
            assert!(error.expect_err("no such revision").to_string().contains("host-2 is parked since"));
        }
        assert_eq!(Roster::parse(&roster().to_bytes()), Ok(roster()));
        let old = with_host_2(8, Some(aside("host-2", 2, None, false)));
        let text = String::from_utf8(old.to_bytes()).expect("JSON");
        assert!(!text.contains("\"since\"") && !text.contains("fenced"), "{text}");
    }

    #[test]
    fn hosts_that_are_added_leave_it_as_it_was_whose_word_is_needed() {
        let limits = Joiners {
            role: RoleKeys { threshold: 1, keys: vec![PublicKey::Ed25519([255; 32])] },
            fleets: FleetScope::All,
            hosts_max: 100,
            base_age_ms_max: 1,
        };
        let added = Member { name: name("host-7"), attestation_key: PublicKey::Ed25519([7; 32]) };
        let digest = Digest::of(b"base");
        let addition = Addition::new(fleet(), RosterRevision(10), digest, "{}", vec![added]).expect("valid");
        let longer = addition.onto(&roster(), digest, &limits).expect("within its limits");
        assert!(longer.must_have_withdrawn().eq(roster().must_have_withdrawn()));
        assert_eq!(longer.must_have_withdrawn().count(), 2, "not of those from before");
    }
}
