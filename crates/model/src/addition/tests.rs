use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{FleetScope, Policy, PublicKey, RoleKeys, Timing, UnixTime};

const HOUR_MS: u64 = 3600 * 1000;

fn fleet(name: &str) -> FleetName {
    FleetName::new(name).expect("a name")
}

/// A host with the key of this number.
fn member(host: u8, key: u8) -> Member {
    Member {
        name: HostName::new(&format!("host-{host}")).expect("a name"),
        attestation_key: PublicKey::Ed25519([key; 32]),
    }
}

fn members(hosts: &[u8]) -> Vec<Member> {
    hosts.iter().map(|host| member(*host, *host)).collect()
}

fn roster(revision: u64, hosts: &[u8]) -> Roster {
    let policy = Policy { timing: Timing::with_lease(2000, 500), ..Policy::default() };
    Roster::new(fleet("smars"), RosterRevision(revision), policy, members(hosts))
        .expect("valid")
        .issued(UnixTime(7))
}

fn digest(roster: &Roster) -> Digest {
    Digest::of(&roster.to_bytes())
}

fn limits(hosts_max: u32) -> Joiners {
    Joiners {
        role: RoleKeys { threshold: 1, keys: vec![PublicKey::Ed25519([200; 32])] },
        fleets: FleetScope::Named(BTreeSet::from([fleet("smars")])),
        hosts_max,
        base_age_ms_max: HOUR_MS,
    }
}

/// An addition to revision 4 with two hosts; the tests change one thing of it.
fn addition(revision: u64, added: Vec<Member>) -> Addition {
    let follows = digest(&roster(4, &[1, 2]));
    Addition::new(fleet("smars"), RosterRevision(revision), follows, "{}", added).expect("valid")
}

fn onto(addition: &Addition, hosts_max: u32) -> Result<Roster, AdditionError> {
    let base = roster(4, &[1, 2]);
    addition.onto(&base, digest(&base), &limits(hosts_max))
}

#[test]
fn hosts_are_added_and_nothing_else_changes() {
    let base = roster(4, &[1, 2]);
    let longer = onto(&addition(5, members(&[3])), 3).expect("within its limits");
    assert_eq!(longer.hosts(), members(&[1, 2, 3]));
    assert_eq!((longer.revision(), longer.policy()), (RosterRevision(5), base.policy()));
    let additions = longer.additions().expect("it was added to");
    assert_eq!((additions.base, &additions.hosts[..]), (digest(&base), &members(&[3])[..]));

    let next = Addition::after(&longer, Digest::of(b"5"), "{}", members(&[0])).expect("valid");
    assert_eq!(next.added(), members(&[0, 3]), "it says all that was added since");
    let longest = next.onto(&base, digest(&base), &limits(4)).expect("within its limits");
    assert_eq!(longest.hosts(), members(&[0, 1, 2, 3]));
    assert_eq!(longest.check_follows(longer.revision(), longer.additions()), Ok(()));
}

#[test]
fn what_is_not_allowed_is_refused_by_its_name() {
    let five = |hosts: &[u8]| addition(5, members(hosts));
    assert!(matches!(onto(&five(&[3, 4]), 3), Err(AdditionError::TooMany { hosts: 4, max: 3 })));
    assert!(matches!(onto(&five(&[2]), 9), Err(AdditionError::Listed { .. })));
    let another_key = addition(5, vec![member(2, 9)]);
    assert!(matches!(onto(&another_key, 9), Err(AdditionError::Listed { .. })));
    let shared_key = addition(5, vec![member(3, 2)]);
    assert!(matches!(onto(&shared_key, 9), Err(AdditionError::Roster(_))));
    for revision in [1, 3, 4, 7, u64::MAX] {
        let found = onto(&addition(revision, members(&[3, 5])), 9);
        assert!(matches!(found, Err(AdditionError::Revision { .. })), "revision {revision}: {found:?}");
    }
    let base = roster(4, &[1, 2]);
    let after_another =
        Addition::new(fleet("smars"), RosterRevision(5), Digest::of(b"another"), "{}", members(&[3]));
    let found = after_another.expect("valid").onto(&base, digest(&base), &limits(9));
    assert_eq!(found, Err(AdditionError::Follows));
    let foreign = Addition::new(fleet("other"), RosterRevision(5), digest(&base), "{}", members(&[3]));
    let found = foreign.expect("valid").onto(&base, digest(&base), &limits(9));
    assert!(matches!(found, Err(AdditionError::ForeignBase { .. })));
    let of_others = Joiners { fleets: FleetScope::Named(BTreeSet::from([fleet("other")])), ..limits(9) };
    let found = five(&[3]).onto(&base, digest(&base), &of_others);
    assert!(matches!(found, Err(AdditionError::Fleet { .. })));
    let all = Joiners { fleets: FleetScope::All, ..limits(9) };
    assert!(five(&[3]).onto(&base, digest(&base), &all).is_ok());
}

#[test]
fn an_addition_adds_each_host_once_and_some_host() {
    let make = |added| Addition::new(fleet("smars"), RosterRevision(5), Digest::of(b"4"), "{}", added);
    assert!(make(vec![]).is_err());
    assert!(make(vec![member(3, 3), member(3, 4)]).is_err());
    let many = (0..=Addition::HOSTS_MAX).map(|index| Member {
        name: HostName::new(&format!("host-{index}")).expect("a name"),
        attestation_key: PublicKey::Ed25519([0; 32]),
    });
    assert!(make(many.collect()).is_err());
}

#[test]
fn the_roster_in_it_is_kept_byte_by_byte_and_parsing_is_strict() {
    let base = "{ \"payload\" :\n\"a\\u0062\", \"signatures\":[]}";
    let added = members(&[3, 4]);
    let addition =
        Addition::new(fleet("smars"), RosterRevision(5), Digest::of(b"4"), base, added).expect("valid");
    let read = Addition::parse(&addition.to_bytes()).expect("what was written");
    assert_eq!((read.base(), &read), (base, &addition));
    let text = String::from_utf8(addition.to_bytes()).expect("JSON");
    for (right, wrong) in
        [("addition/1", "addition/2"), ("{\"format", "{\"policy\":{},\"format"), ("host-3", "host-9")]
    {
        assert!(Addition::parse(text.replacen(right, wrong, 1).as_bytes()).is_err(), "{wrong}");
    }
    assert!(Addition::new(fleet("smars"), RosterRevision(5), Digest::of(b"4"), "{", members(&[3])).is_err());
    let roster = String::from_utf8(roster(4, &[1]).to_bytes()).expect("JSON");
    let forged = roster.replacen('{', "{\"additions\":null,", 1);
    assert!(Roster::parse(forged.as_bytes()).is_err(), "no document says of itself what was added");
}

#[test]
fn only_what_operators_signed_lately_is_added_to() {
    let limits = limits(9);
    let longer = onto(&addition(5, members(&[3])), 9).expect("valid");
    for roster in [&roster(4, &[1, 2]), &longer] {
        assert_eq!(limits.check_age(roster, UnixTime(0)), Ok(()), "their clock may be ahead of ours");
        assert_eq!(limits.check_age(roster, UnixTime(7 + HOUR_MS)), Ok(()));
        let found = limits.check_age(roster, UnixTime(8 + HOUR_MS));
        assert!(matches!(found, Err(AdditionError::TooOld { base: RosterRevision(4), .. })), "{found:?}");
    }
    let undated = Roster::new(fleet("smars"), RosterRevision(1), Policy::default(), members(&[1]));
    let found = limits.check_age(&undated.expect("valid"), UnixTime(0));
    assert!(matches!(found, Err(AdditionError::Undated { .. })), "{found:?}");
}

#[test]
fn what_was_added_stays_until_operators_who_know_of_it_say_otherwise() {
    let base = roster(4, &[1, 2]);
    let held = onto(&addition(5, members(&[3])), 9).expect("valid");
    let (revision, additions) = (held.revision(), held.additions());
    let follows = |next: &Roster| next.check_follows(revision, additions);

    let other = onto(&addition(5, members(&[4])), 9).expect("valid");
    assert!(matches!(follows(&other), Err(FollowError::Dropped { .. })), "another revision 5");
    let later = onto(&addition(6, members(&[4, 5])), 9).expect("valid");
    assert!(matches!(follows(&later), Err(FollowError::Dropped { .. })), "a later revision without it");
    let rekeyed = onto(&addition(6, vec![member(3, 9), member(4, 4)]), 9).expect("valid");
    assert!(matches!(follows(&rekeyed), Err(FollowError::Dropped { .. })), "with another key");
    assert_eq!(follows(&held), Ok(()), "the same again");

    assert!(matches!(follows(&roster(5, &[1, 2])), Err(FollowError::NotLater { .. })), "unaware of it");
    assert!(matches!(follows(&base), Err(FollowError::NotLater { .. })));
    assert_eq!(follows(&roster(6, &[1])), Ok(()), "the operators know of it");

    let onto_another = |base: &Roster, revision| {
        let added =
            Addition::new(fleet("smars"), RosterRevision(revision), digest(base), "{}", members(&[8]));
        added.expect("valid").onto(base, digest(base), &limits(9)).expect("valid")
    };
    let of_five = onto_another(&roster(5, &[1, 2]), 6);
    assert!(matches!(follows(&of_five), Err(FollowError::StaleBase { .. })), "unaware of it");
    assert_eq!(follows(&onto_another(&roster(6, &[1]), 7)), Ok(()));

    let stale = onto_another(&roster(3, &[1, 2, 9]), 4);
    assert!(matches!(stale.check_follows(RosterRevision(4), None), Err(FollowError::StaleBase { .. })));
    assert_eq!(stale.check_follows(RosterRevision(3), None), Ok(()));
}

#[test]
fn a_joiner_key_has_no_other_role_and_limits_that_can_be_kept() {
    use crate::{Root, SigningRole};
    let key = |byte| PublicKey::Ed25519([byte; 32]);
    let role = |byte| RoleKeys { threshold: 1, keys: vec![key(byte)] };
    let roles = [SigningRole::Root, SigningRole::Release, SigningRole::Operator];
    let root =
        || Root::new(1, UnixTime(1), roles.into_iter().zip([1, 2, 3].map(role)).collect()).expect("valid");
    let joined = root().with_joiners(limits(40)).expect("valid");
    assert_eq!(Root::parse(&joined.to_bytes()), Ok(joined));
    assert!(
        !String::from_utf8(root().to_bytes()).expect("JSON").contains("joiners"),
        "older readers know none"
    );
    let no_fleet = FleetScope::Named(BTreeSet::new());
    for wrong in [
        Joiners { role: role(3), ..limits(40) },
        Joiners { role: RoleKeys { threshold: 2, ..role(4) }, ..limits(40) },
        Joiners { role: RoleKeys { threshold: 0, ..role(4) }, ..limits(40) },
        Joiners { fleets: no_fleet, ..limits(40) },
        Joiners { base_age_ms_max: 0, ..limits(40) },
        Joiners { base_age_ms_max: u64::MAX, ..limits(40) },
        limits(0),
        limits(u32::MAX),
    ] {
        assert!(root().with_joiners(wrong.clone()).is_err(), "{wrong:?}");
    }
}

/// A document that somebody shows: of operators, or of a thief of the joiner's key who may write anything.
#[derive(Debug, Clone)]
enum Shown {
    Operators { revision: u64, hosts: BTreeSet<u8> },
    Added { base: usize, revision: u64, added: Vec<(u8, u8)> },
}

fn shown() -> impl Strategy<Value = Shown> {
    let hosts = proptest::collection::btree_set(1..8_u8, 1..5);
    let operators = (1..12_u64, hosts).prop_map(|(revision, hosts)| Shown::Operators { revision, hosts });
    let added = proptest::collection::vec((1..10_u8, 1..10_u8), 1..4);
    let added = (0..4_usize, 1..14_u64, added).prop_map(|(base, revision, added)| Shown::Added {
        base,
        revision,
        added,
    });
    prop_oneof![1 => operators, 4 => added]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever is shown in whatever order: by joiners no host leaves, no key and no policy changes, and nobody goes beyond the limit.
    #[test]
    fn joiners_only_ever_add(history in proptest::collection::vec(shown(), 1..24)) {
        let limits = limits(7);
        let mut bases = vec![roster(1, &[1, 2])];
        let mut held = bases[0].clone();
        for shown in history {
            let next = match shown {
                Shown::Operators { revision, hosts } => {
                    let next = roster(revision, &hosts.into_iter().collect::<Vec<_>>());
                    bases.push(next.clone());
                    Some(next)
                }
                Shown::Added { base, revision, added } => {
                    let base = &bases[base % bases.len()];
                    let added = added.into_iter().map(|(host, key)| member(host, key)).collect();
                    let made = Addition::new(
                        fleet("smars"), RosterRevision(revision), digest(base), "{}", added,
                    );
                    made.ok().and_then(|made| made.onto(base, digest(base), &limits).ok())
                }
            };
            let Some(next) = next.filter(|next| next.revision() >= held.revision()) else { continue };
            if next.check_follows(held.revision(), held.additions()).is_err() {
                continue;
            }
            if let Some(additions) = next.additions() {
                let base = bases.iter().find(|base| digest(base) == additions.base).expect("it is known");
                prop_assert!(base.hosts().iter().all(|host| next.member(&host.name) == Some(host)));
                prop_assert_eq!(base.policy(), next.policy());
                prop_assert!(next.hosts().len() <= 7 && next.hosts().len() > base.hosts().len());
                let of_the_same = held.additions().is_some_and(|before| before.base == additions.base);
                if of_the_same {
                    prop_assert!(held.hosts().iter().all(|host| next.hosts().contains(host)));
                } else {
                    prop_assert!(additions.base_revision >= held.revision());
                }
            } else if held.additions().is_some() {
                prop_assert!(next.revision() > held.revision());
            }
            held = next;
        }
    }
}
