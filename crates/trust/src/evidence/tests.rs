#![expect(clippy::disallowed_methods, reason = "tests make verified documents of their own")]
use std::sync::Arc;

use muster_model::{FleetName, Verified};

use super::*;
use crate::dsse::{EnvelopeError, Signature};
use crate::fixture::{
    HOSTS, attestation, fleet_name, host_name, key, roster, signed, signed_attestation, verified_roster,
};
use crate::{Signer as _, pae};

fn lines() -> Vec<Arc<[u8]>> {
    (1..=HOSTS).map(|index| Arc::clone(signed_attestation(index).raw())).collect()
}

#[test]
fn an_attestation_is_believed_by_its_hosts_key_alone() {
    let roster = verified_roster();
    let good = verify_attestation(signed_attestation(2).raw(), &roster).unwrap();
    assert_eq!(**good.document(), attestation(2));
    assert_eq!(good.signers(), [key(2).public().clone()]);

    for wrong in [1, 3, 100, 102] {
        let error = verify_attestation(signed(&attestation(2), &[wrong]).raw(), &roster).unwrap_err();
        assert!(matches!(&error, TrustError::NotTheHostsKey { host } if *host == host_name(2)), "{error}");
        assert!(error.to_string().contains("host-2"));
    }
}

#[test]
fn a_host_signs_alone_and_once() {
    for keys in [&[2, 2][..], &[2, 1], &[1, 2]] {
        let error = verify_attestation(signed(&attestation(2), keys).raw(), &verified_roster()).unwrap_err();
        assert!(matches!(error, TrustError::AttestationSignatures { found: 2, .. }), "{error}");
    }
}

#[test]
fn a_host_that_is_not_listed_proves_nothing() {
    let error = verify_attestation(signed_attestation(HOSTS + 1).raw(), &verified_roster()).unwrap_err();
    assert!(matches!(error, TrustError::NotInRoster { .. }), "{error}");
}

#[test]
fn an_attestation_for_another_fleet_is_refused() {
    let other = Verified::assert(roster(&FleetName::new("other").expect("a name"), HOSTS));
    let error = verify_attestation(signed_attestation(1).raw(), &other).unwrap_err();
    assert!(matches!(error, TrustError::ForeignFleet { .. }), "{error}");
    assert_eq!(error.to_string(), "the attestation is for the fleet smars, not for other");
}

#[test]
fn an_attestation_is_small_and_one_line() {
    let raw = signed_attestation(1).raw().to_vec();
    let broken = [b"\n", &raw[..]].concat();
    let error = verify_attestation(&broken, &verified_roster()).unwrap_err();
    assert!(matches!(error, TrustError::AttestationLineBreak { .. }), "{error}");
    let padded = [&raw[..], &vec![b' '; ATTESTATION_BYTES_MAX]].concat();
    let error = verify_attestation(&padded, &verified_roster()).unwrap_err();
    assert!(matches!(error, TrustError::Envelope { source: EnvelopeError::TooLarge { .. }, .. }), "{error}");
}

#[test]
fn evidence_is_one_line_for_each_host_in_the_rosters_order() {
    let evidence = assemble_evidence(&lines());
    let verified = verify_evidence(&evidence, &verified_roster()).unwrap().attestations;
    let hosts: Vec<_> = verified.iter().map(|attestation| attestation.document().host.clone()).collect();
    assert_eq!(hosts, [host_name(1), host_name(2), host_name(3)]);
    assert!(verified.iter().zip(lines()).all(|(attestation, line)| *attestation.raw() == line));
}

#[test]
fn evidence_of_more_or_fewer_hosts_is_refused() {
    let roster = verified_roster();
    let all = lines();
    let extra = [&all[..], &all[2..]].concat();
    for (lines, count) in [(&all[..2], 2), (&all[1..], 2), (&extra[..], 4)] {
        let error = verify_evidence(&assemble_evidence(lines), &roster).unwrap_err();
        assert!(
            matches!(error, TrustError::AttestationCount { expected: 3, found } if found == count),
            "{error}"
        );
    }
    let blank = [&assemble_evidence(&all)[..], b"\n"].concat();
    assert!(matches!(verify_evidence(&blank, &roster), Err(TrustError::AttestationCount { found: 4, .. })));
    let single = Verified::assert(crate::fixture::roster(&fleet_name(), 1));
    assert!(verify_evidence(b"\n", &single).is_err(), "an empty line is no attestation");
}

#[test]
fn evidence_that_was_cut_short_is_refused() {
    let roster = verified_roster();
    let evidence = assemble_evidence(&lines());
    assert!(matches!(verify_evidence(b"", &roster), Err(TrustError::EvidenceCutShort)));
    let without_end = &evidence[..evidence.len() - 1];
    assert!(matches!(verify_evidence(without_end, &roster), Err(TrustError::EvidenceCutShort)));
    let too_large = vec![b'\n'; EVIDENCE_BYTES_MAX + 1];
    assert!(matches!(verify_evidence(&too_large, &roster), Err(TrustError::EvidenceTooLarge { .. })));
}

#[test]
fn no_host_stands_in_for_another() {
    let roster = verified_roster();
    let all = lines();
    let reordered = [all[1].clone(), all[0].clone(), all[2].clone()];
    let repeated = [all[0].clone(), all[0].clone(), all[2].clone()];
    for (lines, place) in [(reordered, 1), (repeated, 2)] {
        let error = verify_evidence(&assemble_evidence(&lines), &roster).unwrap_err();
        assert!(matches!(error, TrustError::AttestationOrder { line, .. } if line == place), "{error}");
    }
    let stranger = Arc::clone(signed_attestation(HOSTS + 1).raw());
    let error = verify_evidence(&assemble_evidence(&[&all[0], &all[1], &stranger]), &roster).unwrap_err();
    assert_eq!(
        error.to_string(),
        "attestation 3 should be that of host-3 and is that of host-4; they come in the roster's order"
    );
    let forged = Arc::clone(signed(&attestation(3), &[2]).raw());
    let error = verify_evidence(&assemble_evidence(&[&all[0], &all[1], &forged]), &roster).unwrap_err();
    assert!(matches!(&error, TrustError::NotTheHostsKey { host } if *host == host_name(3)), "{error}");
}

#[test]
fn a_line_that_cannot_be_read_names_its_host() {
    let all = lines();
    let evidence = assemble_evidence(&[&all[0][..], b"{}", &all[2][..]]);
    let error = verify_evidence(&evidence, &verified_roster()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the attestation of host-2 cannot be read; get it again from whoever signed it"
    );

    let payload_type = DocumentKind::Attestation.payload_type();
    let signature = Signature { keyid: None, sig: key(2).sign(&pae(payload_type, b"{}")).unwrap() };
    let empty = Envelope::new(payload_type, b"{}".to_vec(), vec![signature]).unwrap();
    let evidence = assemble_evidence(&[&all[0][..], &empty.raw()[..], &all[2][..]]);
    let error = verify_evidence(&evidence, &verified_roster()).unwrap_err();
    let TrustError::Document { document, .. } = &error else { panic!("{error}") };
    assert_eq!(document.host(), Some(&host_name(2)));
}
