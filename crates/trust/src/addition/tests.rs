use std::collections::BTreeSet;
use std::sync::Arc;

use muster_model::{
    AdditionError, Digest, Document as _, FleetName, FleetScope, Joiners, Member, RosterRef, RosterRevision,
};

use super::*;
use crate::fixture::{self, NOW, fleet_name, host_name, key, role_keys, signed};
use crate::{Receipt, assemble_evidence, verify_evidence, verify_receipt};

const ROOT_KEY: u8 = 100;
const OPERATORS: [u8; 2] = [102, 103];
const JOINER: u8 = 110;
const DAY_MS: u64 = 24 * 3600 * 1000;

fn limits() -> Joiners {
    Joiners {
        role: role_keys(1, &[JOINER]),
        fleets: FleetScope::Named(BTreeSet::from([fleet_name()])),
        hosts_max: 5,
        base_age_ms_max: DAY_MS,
    }
}

fn root_with(joiners: Joiners) -> TrustRoot {
    let root = fixture::root(1, role_keys(1, &[ROOT_KEY])).with_joiners(joiners).expect("valid");
    TrustRoot::pin(signed(&root, &[ROOT_KEY]).raw()).expect("a valid root")
}

fn member(index: u8) -> Member {
    Member { name: host_name(index), attestation_key: key(index).public().clone() }
}

/// What the operators have signed: host-1 and host-2, revision 4.
fn base() -> Envelope {
    signed(&fixture::roster(&fleet_name(), 2).issued(NOW), &OPERATORS)
}

fn text(envelope: &Envelope) -> &str {
    std::str::from_utf8(envelope.raw()).expect("JSON")
}

/// The addition of host-3 to it.
fn addition() -> Addition {
    adding(&fleet_name(), text(&base()), &[3])
}

fn adding(fleet: &FleetName, base: &str, hosts: &[u8]) -> Addition {
    let follows = Digest::of(Envelope::parse(base.as_bytes()).expect("an envelope").payload());
    let added = hosts.iter().map(|host| member(*host)).collect();
    Addition::new(fleet.clone(), RosterRevision(5), follows, base, added).expect("valid")
}

#[test]
fn an_addition_is_verified_from_the_root_alone() {
    let root = root_with(limits());
    let envelope = signed(&addition(), &[JOINER]);
    let roster = root.verify_roster(envelope.raw(), NOW).expect("signed by those who may");
    assert_eq!(roster.document().hosts(), [member(1), member(2), member(3)]);
    assert_eq!(roster.payload_digest(), Digest::of(&addition().to_bytes()), "orders name the addition");
    assert_eq!(roster.signers(), [key(JOINER).public().clone()]);
    assert_eq!(operators_roster(&roster).expect("it is in it"), text(&base()));
    let of_operators = root.verify_roster(base().raw(), NOW).expect("operators need no joiners");
    assert_eq!(operators_roster(&of_operators).expect("it is itself"), text(&base()));

    let next = Addition::after(roster.document(), roster.payload_digest(), text(&base()), vec![member(4)]);
    let next = root.verify_roster(signed(&next.expect("valid"), &[JOINER]).raw(), NOW).expect("it goes on");
    assert_eq!((next.document().hosts().len(), next.document().revision()), (4, RosterRevision(6)));
}

#[test]
fn nobody_adds_but_joiners_and_joiners_do_nothing_but_add() {
    let root = root_with(limits());
    let refused = |envelope: &Envelope| root.verify_roster(envelope.raw(), NOW).unwrap_err();
    for stranger in [&OPERATORS[..], &[111]] {
        assert!(matches!(
            refused(&signed(&addition(), stranger)),
            TrustError::Threshold { role: "joiner", .. }
        ));
    }
    let roster = fixture::roster(&fleet_name(), 3);
    assert!(matches!(refused(&signed(&roster, &[JOINER])), TrustError::Threshold { role: "operator", .. }));
    let reference = RosterRef { digest: Digest::of(b"roster"), revision: RosterRevision(4), hosts: 3 };
    let order = signed(&fixture::order(&fleet_name(), reference), &[JOINER, JOINER]);
    assert!(matches!(root.verify_order(order.raw(), NOW), Err(TrustError::Threshold { .. })));

    let nobody = fixture::trust_root();
    let error = nobody.verify_roster(signed(&addition(), &[JOINER]).raw(), NOW).unwrap_err();
    assert!(matches!(error, TrustError::NoJoiners));
    let two = root_with(Joiners { role: role_keys(2, &[JOINER, 111]), ..limits() });
    assert!(two.verify_roster(signed(&addition(), &[JOINER, JOINER]).raw(), NOW).is_err(), "one key twice");
    assert!(two.verify_roster(signed(&addition(), &[JOINER, 111]).raw(), NOW).is_ok());
}

#[test]
fn what_is_in_it_is_what_operators_signed_and_nothing_else() {
    let root = root_with(limits());
    let refused =
        |addition: &Addition| root.verify_roster(signed(addition, &[JOINER]).raw(), NOW).unwrap_err();
    let by_one = signed(&fixture::roster(&fleet_name(), 2).issued(NOW), &OPERATORS[..1]);
    let by_joiner = signed(&fixture::roster(&fleet_name(), 2).issued(NOW), &[JOINER]);
    for base in [&by_one, &by_joiner] {
        let error = refused(&adding(&fleet_name(), text(base), &[3]));
        assert!(matches!(error, TrustError::Threshold { role: "operator", .. }), "{error}");
    }
    let chained = signed(&addition(), &[JOINER]);
    let error = refused(&adding(&fleet_name(), text(&chained), &[4]));
    assert!(matches!(error, TrustError::PayloadType { .. }), "no addition in an addition: {error}");
    let no_envelope = Addition::new(fleet_name(), RosterRevision(5), Digest::of(b""), "[]", vec![member(3)]);
    assert!(matches!(refused(&no_envelope.expect("valid")), TrustError::Envelope { .. }));
    let other = FleetName::new("other").expect("a name");
    let foreign = signed(&fixture::roster(&other, 2).issued(NOW), &OPERATORS);
    for (fleet, base) in [(&other, &base()), (&fleet_name(), &foreign)] {
        let error = refused(&adding(fleet, text(base), &[3]));
        let is_foreign = matches!(error, TrustError::Addition { source: AdditionError::ForeignBase { .. } });
        assert!(is_foreign, "{error}");
    }
    let error = refused(&adding(&other, text(&foreign), &[3]));
    assert!(matches!(error, TrustError::Addition { source: AdditionError::Fleet { .. } }), "{error}");
    let error = refused(&adding(&fleet_name(), text(&base()), &[3, 4, 5, 6]));
    assert!(matches!(error, TrustError::Addition { source: AdditionError::TooMany { .. } }), "{error}");
}

#[test]
fn an_old_roster_is_added_to_no_more_and_what_was_added_stays() {
    let root = root_with(limits());
    let envelope = signed(&addition(), &[JOINER]);
    let later = UnixTime(NOW.0 + DAY_MS + 1);
    assert!(matches!(root.verify_roster(envelope.raw(), later), Err(TrustError::RootExpired { .. })));
    let short = root_with(Joiners { base_age_ms_max: 10, ..limits() });
    let late = UnixTime(NOW.0 + 11);
    let error = short.verify_roster(envelope.raw(), late).unwrap_err();
    assert!(matches!(error, TrustError::Addition { source: AdditionError::TooOld { .. } }), "{error}");
    assert!(short.verify_held_roster(envelope.raw(), late).is_ok(), "it was taken on in time");
    assert!(short.verify_roster(base().raw(), late).is_ok(), "what operators sign does not grow old");
    assert!(matches!(root.verify_held_roster(envelope.raw(), later), Err(TrustError::RootExpired { .. })));
    assert!(root.verify_past_roster(envelope.raw()).is_ok());
    let undated = signed(&fixture::roster(&fleet_name(), 2), &OPERATORS);
    let error = signed(&adding(&fleet_name(), text(&undated), &[3]), &[JOINER]);
    let error = root.verify_roster(error.raw(), NOW).unwrap_err();
    assert!(matches!(error, TrustError::Addition { source: AdditionError::Undated { .. } }), "{error}");
}

#[test]
fn a_receipt_with_added_hosts_is_verified_offline() {
    let root = root_with(limits());
    let roster = root.verify_roster(signed(&addition(), &[JOINER]).raw(), NOW).expect("valid");
    let reference =
        RosterRef { digest: roster.payload_digest(), revision: roster.document().revision(), hosts: 3 };
    let order = signed(&fixture::order(&fleet_name(), reference), &OPERATORS);
    let release = signed(&fixture::release(&fleet_name(), fixture::manifest()), &[101]);
    let lines: Vec<_> = (1..=3).map(|host| Arc::clone(fixture::signed_attestation(host).raw())).collect();
    let evidence = verify_evidence(&assemble_evidence(&lines), roster.document()).expect("evidence");
    let receipt = Receipt {
        order: &root.verify_order(order.raw(), NOW).expect("signed"),
        roster: &roster,
        release: &root.verify_release(release.raw(), &fleet_name(), NOW).expect("signed"),
        attestations: &evidence.attestations,
        withdrawals: &evidence.withdrawals,
        secrets: &[1, 2, 3].map(|host| Some(fixture::secret(host))),
    };
    let bytes = receipt.to_bytes();
    let verified = verify_receipt(&bytes, &root).expect("it proves its flip");
    assert_eq!(verified.roster().document().additions().map(|added| added.hosts.len()), Some(1));
    assert!(verify_receipt(&bytes, &fixture::trust_root()).is_err(), "of a root without joiners it is none");
    let narrower = root_with(Joiners { hosts_max: 2, ..limits() });
    assert!(verify_receipt(&bytes, &narrower).is_err());
}
