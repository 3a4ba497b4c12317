use muster_model::{Digest, PublicKey, RosterRef};

use super::*;
use crate::fixture::{
    FlipParts, HOSTS, NOW, ROOT_EXPIRES, fleet_name, key, manifest, order, release, role_keys, root, roster,
    signed, trust_root,
};

fn other_fleet() -> FleetName {
    FleetName::new("other").expect("a name")
}

#[test]
fn a_root_is_pinned_only_if_it_is_signed_by_its_own_keys() {
    let two = root(1, role_keys(2, &[1, 2]));
    let pinned = TrustRoot::pin(signed(&two, &[1, 2]).raw()).unwrap();
    assert_eq!(**pinned.root(), two);
    assert_eq!(pinned.authentic().signers().len(), 2);
    for keys in [&[1][..], &[1, 1], &[1, 3]] {
        let error = TrustRoot::pin(signed(&two, keys).raw()).unwrap_err();
        assert!(matches!(error, TrustError::Threshold { signed: 1, threshold: 2, .. }), "{error}");
    }
    let roster = signed(&roster(&fleet_name(), HOSTS), &[1, 2]);
    assert!(matches!(TrustRoot::pin(roster.raw()), Err(TrustError::PayloadType { .. })));
}

#[test]
fn a_successor_is_signed_by_the_old_and_the_new_threshold() {
    let first = TrustRoot::pin(signed(&root(1, role_keys(1, &[1, 2])), &[1]).raw()).unwrap();
    let next = root(2, role_keys(2, &[3, 4]));
    let second = first.succeed(signed(&next, &[2, 3, 4]).raw()).unwrap();
    assert_eq!(second.root().version, 2);
    let mut all: Vec<PublicKey> = [2, 3, 4].map(|byte| key(byte).public().clone()).into();
    all.sort();
    assert_eq!(second.authentic().signers(), all);

    let refused = |keys: &[u8]| first.succeed(signed(&next, keys).raw()).unwrap_err();
    assert!(matches!(refused(&[3, 4]), TrustError::Threshold { role: "present root", signed: 0, .. }));
    assert!(matches!(
        refused(&[1, 3]),
        TrustError::Threshold { role: "next root", signed: 1, threshold: 2, .. }
    ));
    assert!(matches!(refused(&[1, 2]), TrustError::Threshold { role: "next root", signed: 0, .. }));
}

#[test]
fn versions_go_up_one_by_one() {
    let keys = || role_keys(1, &[1]);
    let second = TrustRoot::pin(signed(&root(2, keys()), &[1]).raw()).unwrap();
    assert!(second.succeed(signed(&root(3, keys()), &[1]).raw()).is_ok());
    for version in [1, 2, 4, u64::MAX] {
        let error = second.succeed(signed(&root(version, keys()), &[1]).raw()).unwrap_err();
        assert!(
            matches!(error, TrustError::RootVersion { present: 2, found } if found == version),
            "{error}"
        );
    }
    let last = TrustRoot::pin(signed(&root(u64::MAX, keys()), &[1]).raw()).unwrap();
    assert!(last.succeed(signed(&root(1, keys()), &[1]).raw()).is_err());
}

#[test]
fn nothing_verifies_once_the_root_has_expired() {
    let trust = trust_root();
    let flip = FlipParts::new().sign();
    let before = UnixTime(ROOT_EXPIRES.0 - 1);
    let three_days_later = UnixTime(ROOT_EXPIRES.0 + 3 * 24 * 3600 * 1000);
    let fleet = fleet_name();
    let verify_all = |now| {
        [
            trust.verify_roster(flip.roster.raw(), now).map(|_| ()),
            trust.verify_order(flip.order.raw(), now).map(|_| ()),
            trust.verify_release(flip.release.raw(), &fleet, now).map(|_| ()),
        ]
    };
    assert!(verify_all(before).iter().all(Result::is_ok));
    for now in [ROOT_EXPIRES, three_days_later] {
        for result in verify_all(now) {
            assert!(matches!(result, Err(TrustError::RootExpired { version: 1, .. })), "{result:?}");
        }
    }
    let error = trust.verify_order(flip.order.raw(), three_days_later).unwrap_err();
    assert!(error.to_string().contains("expired 3 days ago"), "{error}");
}

#[test]
fn an_expired_root_still_leads_to_its_successor() {
    let expired = trust_root();
    assert!(expired.succeed(signed(&root(2, role_keys(1, &[100])), &[100]).raw()).is_ok());
}

/// Each document is signed in full by the keys of every role that must not sign it.
#[test]
fn no_role_signs_for_another() {
    let trust = trust_root();
    let fleet = fleet_name();
    let reference =
        RosterRef { digest: Digest::of(b""), revision: muster_model::RosterRevision(1), hosts: 3 };
    let (root_key, release_key, operators, hosts) = (&[100][..], &[101][..], &[102, 103][..], &[1, 2, 3][..]);

    for wrong in [root_key, release_key, &operators[..1], hosts] {
        let roster = signed(&roster(&fleet, HOSTS), wrong);
        let error = trust.verify_roster(roster.raw(), NOW).unwrap_err();
        assert!(matches!(error, TrustError::Threshold { role: "operator", threshold: 2, .. }), "{error}");
        let order = signed(&order(&fleet, reference), wrong);
        let error = trust.verify_order(order.raw(), NOW).unwrap_err();
        assert!(matches!(error, TrustError::Threshold { role: "operator", threshold: 2, .. }), "{error}");
        assert!(error.to_string().starts_with("the order is signed by"), "{error}");
    }
    for wrong in [root_key, operators, hosts] {
        let release = signed(&release(&fleet, manifest()), wrong);
        let error = trust.verify_release(release.raw(), &fleet, NOW).unwrap_err();
        assert!(matches!(error, TrustError::Threshold { role: "release", signed: 0, .. }), "{error}");
    }
}

#[test]
fn a_release_of_another_fleet_is_refused() {
    let foreign = signed(&release(&other_fleet(), manifest()), &[101]);
    let error = trust_root().verify_release(foreign.raw(), &fleet_name(), NOW).unwrap_err();
    assert!(matches!(error, TrustError::ForeignFleet { .. }), "{error}");
    assert_eq!(error.to_string(), "the release is for the fleet other, not for smars");
}
