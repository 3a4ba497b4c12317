#![expect(clippy::disallowed_methods, reason = "tests make verified documents of their own")]
use std::sync::Arc;

use muster_model::{FleetName, WithdrawalError};

use super::*;
use crate::fixture::{
    aside, fleet_name, host_name, key, roster, roster_with_aside, signed, signed_attestation, withdrawal,
};
use crate::{assemble_evidence, verify_evidence};

fn verify(envelope: &Envelope) -> Result<Authentic<Withdrawal>, TrustError> {
    verify_withdrawal(envelope.raw(), &fleet_name(), &host_name(8), key(8).public())
}

/// Evidence of three hosts with these words.
fn evidence(words: &[Envelope]) -> Vec<u8> {
    let attested = (1..=3).map(|index| Arc::clone(signed_attestation(index).raw()));
    let lines: Vec<_> = attested.chain(words.iter().map(|word| Arc::clone(word.raw()))).collect();
    assemble_evidence(&lines)
}

#[test]
fn a_withdrawal_is_believed_by_its_hosts_key_alone() {
    let good = verify(&signed(&withdrawal(8, 3), &[8])).unwrap();
    assert_eq!(**good.document(), withdrawal(8, 3));
    for wrong in [1, 9, 102] {
        let error = verify(&signed(&withdrawal(8, 3), &[wrong])).unwrap_err();
        assert!(
            matches!(&error, TrustError::NotWithdrawnByItsKey { host } if *host == host_name(8)),
            "{error}"
        );
    }
    for keys in [&[8, 8][..], &[8, 1]] {
        let error = verify(&signed(&withdrawal(8, 3), keys)).unwrap_err();
        assert!(matches!(error, TrustError::WithdrawalSignatures { found: 2, .. }), "{error}");
    }
}

#[test]
fn a_withdrawal_names_its_host_and_its_fleet_and_is_one_small_line() {
    let error = verify(&signed(&withdrawal(9, 3), &[8])).unwrap_err();
    assert!(matches!(&error, TrustError::WithdrawalOf { found, .. } if *found == host_name(9)), "{error}");
    let other = FleetName::new("other").unwrap();
    let mut of_another = withdrawal(8, 3);
    of_another.fleet = other;
    let error = verify(&signed(&of_another, &[8])).unwrap_err();
    assert!(matches!(error, TrustError::ForeignFleet { .. }), "{error}");
    let raw = signed(&withdrawal(8, 3), &[8]).raw().to_vec();
    let read = |raw: &[u8]| verify_withdrawal(raw, &fleet_name(), &host_name(8), key(8).public());
    let broken = read(&[b"\n", &raw[..]].concat()).unwrap_err();
    assert!(matches!(broken, TrustError::WithdrawalLineBreak { .. }), "{broken}");
    assert!(read(&[&raw[..], &[b' '; WITHDRAWAL_BYTES_MAX]].concat()).is_err(), "too large");
    assert!(verify(&signed_attestation(8)).is_err(), "another document");
}

#[test]
fn evidence_ends_with_the_words_of_whom_the_roster_sets_aside() {
    let roster = Verified::assert(roster_with_aside());
    let words = [signed(&withdrawal(8, 3), &[8]), signed(&withdrawal(9, 4), &[9])];
    let verified = verify_evidence(&evidence(&words), &roster).unwrap();
    assert_eq!(verified.attestations.len(), 3);
    let hosts: Vec<_> = verified.withdrawals.iter().map(|it| it.document().host.clone()).collect();
    assert_eq!(hosts, [host_name(8), host_name(9)]);
    for (missing, found) in [(&words[..1], 1), (&words[..0], 0)] {
        let error = verify_evidence(&evidence(missing), &roster).unwrap_err();
        let TrustError::Withdrawal { source } = &error else { panic!("{error}") };
        assert_eq!(*source, WithdrawalError::Count { expected: 2, found });
    }
}

#[test]
fn no_word_stands_for_another_host_key_or_time() {
    let roster = Verified::assert(roster_with_aside());
    let good = || signed(&withdrawal(8, 3), &[8]);
    for (second, expected) in [
        (signed(&withdrawal(9, 4), &[8]), "the withdrawal of host-9 is not signed by the key"),
        (good(), "the withdrawal of host-9 is not signed by the key"),
        (signed(&withdrawal(8, 4), &[9]), "nothing proves"),
        (signed(&withdrawal(9, 2), &[9]), "nothing proves"),
        (signed(&withdrawal(9, 5), &[9]), "nothing proves"),
        (signed_attestation(9), "this is not a withdrawal"),
    ] {
        let error = verify_evidence(&evidence(&[good(), second]), &roster).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // The key of a name is that of its entry, not of whoever else has had the name.
    let other_key = roster_with_aside().parked()[0].clone();
    let other_key = Withdrawn { attestation_key: key(7).public().clone(), ..other_key };
    let other = crate::fixture::roster(&fleet_name(), 3).setting_aside(vec![other_key], vec![]).unwrap();
    let error = verify_evidence(&evidence(&[good()]), &Verified::assert(other)).unwrap_err();
    assert!(matches!(&error, TrustError::NotWithdrawnByItsKey { host } if *host == host_name(8)), "{error}");
}

#[test]
fn evidence_of_before_the_change_and_of_hosts_that_are_off_has_no_words() {
    let before = Withdrawn { since: None, ..aside(8, false) };
    let old = roster(&fleet_name(), 3).setting_aside(vec![before], vec![aside(9, true)]).unwrap();
    let old = Verified::assert(old);
    let verified = verify_evidence(&evidence(&[]), &old).unwrap();
    assert!(verified.withdrawals.is_empty());
    let error = verify_evidence(&evidence(&[signed(&withdrawal(8, 3), &[8])]), &old).unwrap_err();
    assert!(matches!(error, TrustError::AttestationCount { expected: 3, found: 4 }), "{error}");
}
