use muster_model::{Document as _, FleetName};
use serde_json::Value;

use super::*;
use crate::fixture::{
    FlipParts, HOSTS, SignedFlip, attestation, host_name, release, role_keys, root, roster, secret, signed,
    trust_root,
};

impl SignedFlip {
    fn receipt(&self) -> Vec<u8> {
        let Self { roster, release, order, attestations, withdrawals, secrets } = self;
        Receipt { order, roster, release, attestations, withdrawals, secrets }.to_bytes()
    }
}

/// Applies `change` to the parts of a good flip, signs all of them and reads the receipt.
fn receipt_of(change: impl FnOnce(&mut FlipParts)) -> Result<VerifiedReceipt, TrustError> {
    let mut parts = FlipParts::new();
    change(&mut parts);
    verify_receipt(&parts.sign().receipt(), &trust_root())
}

/// Applies `change` to the JSON of a good receipt, without signing anything again.
fn receipt_with(change: impl FnOnce(&mut Value)) -> Result<VerifiedReceipt, TrustError> {
    let mut json: Value = serde_json::from_slice(&FlipParts::new().sign().receipt()).unwrap();
    change(&mut json);
    verify_receipt(json.to_string().as_bytes(), &trust_root())
}

/// Expects that the receipt is refused for this reason.
macro_rules! refused {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err(TrustError::Receipt(error)) => assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}"),
            other => panic!("expected {}, got {other:?}", stringify!($pattern)),
        }
    };
}

#[test]
fn a_good_receipt_proves_its_flip() {
    let flip = FlipParts::new().sign();
    let receipt = verify_receipt(&flip.receipt(), &trust_root()).unwrap();
    assert_eq!(receipt.order(), &flip.order);
    assert_eq!(receipt.roster(), &flip.roster);
    assert_eq!(receipt.release(), &flip.release);
    assert_eq!(receipt.attestations(), flip.attestations);
    assert!(receipt.lapsed().is_empty());
    assert!(receipt.is_solo(), "one person can sign releases here");
}

#[test]
fn a_receipt_survives_being_reformatted() {
    let json: Value = serde_json::from_slice(&FlipParts::new().sign().receipt()).unwrap();
    let pretty = serde_json::to_vec_pretty(&json).unwrap();
    assert!(verify_receipt(&pretty, &trust_root()).is_ok());
}

#[test]
fn a_receipt_is_read_strictly() {
    refused!(verify_receipt(b"{}", &trust_root()), ReceiptError::Syntax { .. });
    refused!(receipt_with(|json| json["extra"] = 1.into()), ReceiptError::Syntax { .. });
    refused!(
        receipt_with(|json| json["format"] = "muster.receipt/2".into()),
        ReceiptError::Format { found } if found == "muster.receipt/2"
    );
    let huge = vec![b' '; RECEIPT_BYTES_MAX + 1];
    refused!(verify_receipt(&huge, &trust_root()), ReceiptError::TooLarge { .. });
}

#[test]
fn every_part_must_be_signed_by_those_who_may() {
    let stranger = TrustRoot::pin(signed(&root(1, role_keys(1, &[9])), &[9]).raw()).unwrap();
    let receipt = FlipParts::new().sign().receipt();
    assert!(verify_receipt(&receipt, &stranger).is_ok(), "the same operators and release keys");
    for part in ["order", "roster", "release"] {
        let result = receipt_with(|json| json[part]["signatures"][0]["sig"] = "AAAA".into());
        assert!(matches!(result, Err(TrustError::Threshold { .. })), "{part}: {result:?}");
    }
    let result = receipt_with(|json| json["attestations"][1]["signatures"][0]["sig"] = "AAAA".into());
    assert!(matches!(result, Err(TrustError::NotTheHostsKey { host }) if host == host_name(2)));
    let result = receipt_with(|json| json["order"] = json["roster"].clone());
    assert!(matches!(result, Err(TrustError::PayloadType { .. })), "{result:?}");
}

#[test]
fn the_roster_is_the_one_that_was_ordered() {
    refused!(
        receipt_of(|parts| parts.order.roster = Digest::of(b"another roster")),
        ReceiptError::Roster { ordered, .. } if *ordered == Digest::of(b"another roster")
    );
    refused!(
        receipt_of(|parts| parts.order.roster_revision = RosterRevision(5)),
        ReceiptError::RosterRevision { ordered: RosterRevision(5), found: RosterRevision(4) }
    );
    refused!(receipt_of(|parts| parts.order.hosts = 4), ReceiptError::HostCount { ordered: 4, found: 3 });
    // A smaller roster, signed in full, with all of its attestations: N cannot shrink.
    let shrunk = receipt_of(|parts| {
        parts.roster = roster(&parts.order.fleet, HOSTS - 1);
        parts.attestations.truncate(2);
        parts.secrets.truncate(2);
    });
    refused!(shrunk, ReceiptError::Roster { .. });
}

#[test]
fn all_documents_are_of_one_fleet() {
    let other = FleetName::new("other").unwrap();
    let result = receipt_of(|parts| parts.release = release(&other, parts.order.to));
    assert!(matches!(result, Err(TrustError::ForeignFleet { .. })), "{result:?}");
    let result = receipt_of(|parts| {
        parts.order.fleet = other.clone();
        parts.release.fleet = other;
    });
    assert!(matches!(result, Err(TrustError::ForeignFleet { .. })), "{result:?}");
}

#[test]
fn the_release_is_the_one_that_was_ordered() {
    let another = Digest::of(b"another manifest");
    refused!(
        receipt_of(|parts| parts.release.manifest = another),
        ReceiptError::Release { found, .. } if *found == another
    );
    refused!(receipt_of(|parts| parts.order.to = another), ReceiptError::Release { ordered, .. } if *ordered == another);
}

#[test]
fn every_host_attests_exactly_once() {
    let count = |result: Result<VerifiedReceipt, TrustError>| match result {
        Err(TrustError::AttestationCount { expected: 3, found }) => found,
        other => panic!("{other:?}"),
    };
    let attestations = |json: &mut Value| json["attestations"].as_array_mut().unwrap().clone();
    assert_eq!(count(receipt_with(|json| json["attestations"] = attestations(json)[..2].into())), 2);
    assert_eq!(
        count(receipt_with(
            |json| json["attestations"] = [&attestations(json)[..], &attestations(json)[..1]].concat().into()
        )),
        4
    );
    let swapped = receipt_with(|json| json["attestations"].as_array_mut().unwrap().swap(0, 2));
    assert!(matches!(swapped, Err(TrustError::AttestationOrder { line: 1, .. })), "{swapped:?}");
}

#[test]
fn every_attestation_is_of_this_rollout_and_alike() {
    let at = |index: u8| move |host: &HostName| *host == host_name(index);
    let another = Digest::of(b"another");
    refused!(
        receipt_of(|parts| parts.attestations[1].purpose = Purpose::Check),
        ReceiptError::Purpose { host, .. } if at(2)(host)
    );
    let replayed = Purpose::Rollout { k: RolloutId(6), commitment: secret(3).commitment() };
    refused!(
        receipt_of(|parts| parts.attestations[2].purpose = replayed),
        ReceiptError::Purpose { host, .. } if at(3)(host)
    );
    refused!(
        receipt_of(|parts| parts.attestations[1].compared.manifest = another),
        ReceiptError::Manifest { host, found, .. } if at(2)(host) && *found == another
    );
    refused!(
        receipt_of(|parts| parts.attestations[0].compared.measured = another),
        ReceiptError::Measured { host, measured, .. } if at(1)(host) && *measured == another
    );
    // All agree with each other, but not with the order.
    let alike = receipt_of(|parts| parts.attestations.iter_mut().for_each(|a| a.compared.measured = another));
    refused!(alike, ReceiptError::Measured { .. });
    refused!(
        receipt_of(|parts| parts.attestations[2].challenge = another),
        ReceiptError::Challenge { host, first } if at(3)(host) && at(1)(first)
    );
    refused!(
        receipt_of(|parts| parts.attestations[1].compared.files += 1),
        ReceiptError::Compared { host, .. } if at(2)(host)
    );
    refused!(
        receipt_of(|parts| parts.attestations[1].compared.uniform = Some(another)),
        ReceiptError::Compared { host, .. } if at(2)(host)
    );
    assert!(
        receipt_of(|parts| parts.attestations[1].facts.elapsed_ms += 1).is_ok(),
        "it belongs to the host"
    );
}

#[test]
fn every_host_proves_that_it_closed() {
    refused!(
        receipt_of(|parts| parts.secrets[1] = Some(secret(9))),
        ReceiptError::Secret { host } if *host == host_name(2)
    );
    refused!(receipt_of(|parts| parts.secrets.swap(0, 1)), ReceiptError::Secret { .. });
    refused!(
        receipt_of(|parts| parts.secrets.truncate(2)),
        ReceiptError::SecretCount { expected: 3, found: 2 }
    );
    refused!(
        receipt_of(|parts| parts.secrets[2] = None),
        ReceiptError::Lapsed { hosts, max_lapsed: 0 } if *hosts == [host_name(3)]
    );
}

#[test]
fn hosts_lapse_only_as_far_as_the_order_allows_and_are_named() {
    let lapse = |hosts: usize| {
        receipt_of(|parts| {
            parts.order.max_lapsed = 1;
            parts.secrets[..hosts].fill(None);
        })
    };
    assert_eq!(lapse(1).unwrap().lapsed(), [host_name(1)]);
    refused!(lapse(2), ReceiptError::Lapsed { hosts, max_lapsed: 1 } if hosts.len() == 2);
}

#[test]
fn only_a_flip_in_fast_mode_goes_without_secrets() {
    let without = |mode| {
        receipt_of(|parts| {
            parts.order.mode = mode;
            parts.secrets.clear();
        })
    };
    assert!(without(FlipMode::Fast).unwrap().lapsed().is_empty());
    refused!(without(FlipMode::Strict), ReceiptError::SecretCount { expected: 3, found: 0 });
}

#[test]
fn a_receipt_holds_the_envelopes_themselves() {
    let json: Value = serde_json::from_slice(&FlipParts::new().sign().receipt()).unwrap();
    assert_eq!(json["format"], FORMAT);
    let embedded = json["attestations"][0].to_string();
    let envelope = crate::Envelope::parse(embedded.as_bytes()).unwrap();
    assert_eq!(envelope.payload(), attestation(1).to_bytes());
}

#[test]
fn one_flipped_bit_anywhere_is_found_and_named() {
    let (receipt, root) = (FlipParts::with_aside().sign().receipt(), trust_root());
    verify_receipt(&receipt, &root).unwrap();
    let named = ["order", "roster", "release", "attestation", "withdrawal", "secret", "receipt"];
    // Each byte once, each bit somewhere; behind the signed parts also the one that turns a letter into its capital.
    let secrets = receipt.len() - receipt.rsplit(|byte| *byte == b'[').next().unwrap().len();
    let capitals = (secrets..receipt.len()).map(|position| (position, 5));
    for (position, bit) in (0..receipt.len()).map(|position| (position, position % 8)).chain(capitals) {
        let mut flipped = receipt.clone();
        flipped[position] ^= 1 << bit;
        let Err(error) = verify_receipt(&flipped, &root) else {
            let around = &receipt[position.saturating_sub(20)..(position + 20).min(receipt.len())];
            panic!("bit {bit} of byte {position} is not missed: {}", around.escape_ascii());
        };
        let said = error.to_string();
        assert!(named.iter().any(|name| said.contains(name)), "{said}");
    }
}

#[test]
fn a_receipt_holds_the_word_of_each_host_that_is_set_aside() {
    let flip = FlipParts::with_aside().sign();
    let receipt = verify_receipt(&flip.receipt(), &trust_root()).unwrap();
    assert_eq!(receipt.withdrawals(), flip.withdrawals);
    let with = |change: fn(&mut Value)| {
        let mut json: Value = serde_json::from_slice(&flip.receipt()).unwrap();
        change(&mut json);
        verify_receipt(json.to_string().as_bytes(), &trust_root()).unwrap_err()
    };
    let dropped = with(|json| drop(json["withdrawals"].as_array_mut().unwrap().pop()));
    assert!(matches!(dropped, TrustError::Withdrawal { .. }), "{dropped}");
    let none = with(|json| drop(json.as_object_mut().unwrap().remove("withdrawals")));
    assert!(matches!(none, TrustError::Withdrawal { .. }), "{none}");
    let twice = with(|json| json["withdrawals"][1] = json["withdrawals"][0].clone());
    assert!(matches!(&twice, TrustError::NotWithdrawnByItsKey { host } if *host == host_name(9)), "{twice}");
    let renamed = with(|json| json["withdrawals"][0]["signatures"][0]["keyid"] = "another".into());
    assert!(matches!(renamed, TrustError::Receipt(ReceiptError::Digest { .. })), "{renamed}");
    // One from before there were any is written as it was.
    assert!(!String::from_utf8(FlipParts::new().sign().receipt()).unwrap().contains("withdrawals"));
}

#[test]
fn what_no_signature_covers_is_covered_by_the_digest() {
    for part in ["order", "roster", "release"] {
        let renamed = receipt_with(|json| json[part]["signatures"][0]["keyid"] = "another".into());
        refused!(renamed, ReceiptError::Digest { stated, found } if stated != found);
    }
    // A third signature where two are enough.
    let more = receipt_with(|json| {
        let again = json["order"]["signatures"][0].clone();
        json["order"]["signatures"].as_array_mut().unwrap().push(again);
    });
    refused!(more, ReceiptError::Digest { .. });
    refused!(
        receipt_with(|json| json["digest"] = Digest::of(b"another").to_string().into()),
        ReceiptError::Digest { .. }
    );
    let without = receipt_with(|json| drop(json.as_object_mut().unwrap().remove("digest")));
    refused!(without, ReceiptError::Syntax { .. });
}
