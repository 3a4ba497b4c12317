//! Which roster is the last one that held, of those that hosts keep.

#![expect(clippy::disallowed_methods, reason = "tests make verified documents of their own")]

use muster_model::{FleetName, Incarnation, Leadership, Member, Policy, PublicKey, RolloutId, Term};
use muster_rollout::host::{History, Serving};
use muster_rollout::rebuild::{Stopped, TESTIMONY_FORMAT, Told};

use super::*;

fn name(text: &str) -> HostName {
    HostName::new(text).expect("a name")
}

fn roster(revision: u64, hosts: &[&str]) -> Arc<Verified<Roster>> {
    let member = |(number, host): (u8, &&str)| Member {
        name: name(host),
        attestation_key: PublicKey::Ed25519([number; 32]),
    };
    let members = (1..).zip(hosts).map(member).collect();
    let fleet = FleetName::new("demo").expect("a name");
    let roster = Roster::new(fleet, RosterRevision(revision), Policy::default(), members);
    Arc::new(Verified::assert(roster.expect("a roster")))
}

/// What a host tells that has seen this revision, and keeps a roster.
fn keeping(host: &str, membership: Membership, revision: u64) -> (HostName, Testimony) {
    let serving = Serving { epoch: muster_model::Epoch(1), release: None };
    let testimony = Testimony {
        format: TESTIMONY_FORMAT,
        fleet: FleetName::new("demo").expect("a name"),
        host: name(host),
        leadership: Leadership { incarnation: Incarnation(2), term: Term(1) },
        last_k: RolloutId(1),
        roster_revision: RosterRevision(revision),
        mode: Told::Serve(serving),
        history: History::Whole,
        halted: None,
        serving: None,
        revealed: None,
        roster: Some(Digest::of(&revision.to_be_bytes())),
        kept: Vec::new(),
        closing: None,
        membership,
        stopped: Stopped::Unproven,
    };
    (name(host), testimony)
}

fn claimed(told: impl IntoIterator<Item = (HostName, Testimony)>) -> [Vec<(u64, String)>; 2] {
    let claims = claims(&told.into_iter().collect());
    [claims.by_members, claims.by_others]
        .map(|kept| kept.into_iter().map(|(revision, _, host)| (revision.0, host.to_string())).collect())
}

#[test]
fn what_hosts_keep_who_were_left_out_is_told_apart_unless_nobody_else_keeps_any() {
    let left_out = || keeping("a", Membership::Excluded(RosterRevision(5)), 5);
    let returned = || keeping("b", Membership::Returned, 6);
    let member = || keeping("c", Membership::Member, 4);
    let others = [(6, "b".to_owned()), (5, "a".to_owned())];
    assert_eq!(claimed([left_out(), returned(), member()]), [vec![(4, "c".to_owned())], others.to_vec()]);
    let forgetful = {
        let (host, it) = member();
        (host, Testimony { roster: None, ..it })
    };
    assert_eq!(claimed([left_out(), returned(), forgetful]), [others.to_vec(), Vec::new()]);
}

#[test]
fn a_roster_that_does_not_verify_is_waited_for_unless_a_later_one_does() {
    let search = |found: Vec<(u64, Result<Found, Blocker>)>| {
        let mut search = Search::default();
        for (revision, found) in found {
            search.found(RosterRevision(revision), found);
        }
        search.ends().map(|found| found.map(|it| it.revision().0))
    };
    let bad = |revision: u64| (revision, Err(unverified(&name("a"), RosterRevision(revision))));
    let good = |revision: u64| (revision, Ok(roster(revision, &["a", "b"])));
    let owed = search(vec![bad(4), good(3)]).expect_err("it may have others serve");
    assert_eq!((owed.code, owed.host.clone()), (Code::SignatureInvalid, Some(name("a"))));
    assert!(owed.detail.contains("revision 4") && owed.detail.contains("muster root apply"), "{owed}");
    search(vec![bad(4)]).expect_err("nor is the mandated roster the one before");
    search(vec![bad(4), (3, Err(gate::missing(&name("b"))))]).expect_err("the newest is named");
    assert_eq!(search(vec![bad(4), good(5)]), Ok(Some(5)));
    assert_eq!(search(vec![bad(4), good(4)]), Ok(Some(4)), "of another host");
    assert_eq!(search(Vec::new()), Ok(None));
}
