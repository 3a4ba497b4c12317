use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use muster_model::{Attestation, DocumentError, FlagDeclaration, Order, Release, Roster};
use proptest::prelude::*;

use super::*;
use crate::fixture::{
    FlipParts, attestation, fleet_name, key, manifest, release, role_keys, signed, signed_attestation,
};
use crate::{EnvelopeError, KeyAlgorithm, SIGNATURES_MAX, SigningKey};

fn some_order() -> Order {
    FlipParts::new().order
}

/// The same payload under signatures of the test's choice.
fn with_signatures(envelope: &Envelope, signatures: Vec<Signature>) -> Envelope {
    Envelope::new(envelope.payload_type(), envelope.payload().to_vec(), signatures).unwrap()
}

fn keys_of(keys: &[&SigningKey]) -> RoleKeys {
    let keys: Vec<PublicKey> = keys.iter().map(|key| key.public().clone()).collect();
    RoleKeys { threshold: u32::try_from(keys.len()).unwrap(), keys }
}

#[test]
fn a_signed_document_is_believed_with_its_digests_and_signers() {
    let envelope = signed(&some_order(), &[1, 2]);
    let authentic: Authentic<Order> = verify(envelope.raw(), &role_keys(2, &[1, 2, 3])).unwrap();
    assert_eq!(**authentic.document(), some_order());
    assert_eq!(authentic.payload_digest(), Digest::of(&some_order().to_bytes()));
    assert_eq!(authentic.envelope_digest(), Digest::of(envelope.raw()));
    assert_eq!(authentic.raw(), envelope.raw());
    let mut signers = role_keys(2, &[1, 2]).keys;
    signers.sort();
    assert_eq!(authentic.signers(), signers);
}

#[test]
fn a_threshold_of_mixed_algorithms_is_reached() {
    let (a, b) = (key(1), SigningKey::generate(KeyAlgorithm::P256).unwrap());
    let envelope = sign(&some_order(), &[&a, &b]).unwrap();
    assert!(verify::<Order>(envelope.raw(), &keys_of(&[&a, &b])).is_ok());
}

/// RUSTSEC-2020-0024: signatures were counted instead of keys.
#[test]
fn one_key_counts_once_however_often_it_signed() {
    let once = signed(&some_order(), &[1]);
    let [signature] = once.signatures() else { panic!("signed once") };
    let renamed = Signature { keyid: Some(key(2).public().id().to_string()), sig: signature.sig.clone() };
    let anonymous = Signature { keyid: None, sig: signature.sig.clone() };
    // ECDSA is randomised, so that one key makes different signatures.
    let ecdsa = SigningKey::generate(KeyAlgorithm::P256).unwrap();
    let twice = sign(&some_order(), &[&ecdsa, &ecdsa]).unwrap();
    assert_ne!(twice.signatures()[0].sig, twice.signatures()[1].sig);

    let trusted =
        RoleKeys { threshold: 2, keys: [keys_of(&[&ecdsa]).keys, role_keys(2, &[1, 2]).keys].concat() };
    let same = with_signatures(&once, vec![signature.clone(); 2]);
    let disguised = with_signatures(&once, vec![signature.clone(), renamed, anonymous]);
    for envelope in [once, same, disguised, twice] {
        let error = verify::<Order>(envelope.raw(), &trusted).unwrap_err();
        assert!(matches!(error, TrustError::Threshold { signed: 1, threshold: 2, keys: 3, .. }), "{error}");
    }
}

#[test]
fn a_key_listed_twice_is_one_key() {
    let listed_twice = role_keys(2, &[1, 1]);
    let error = verify::<Order>(signed(&some_order(), &[1, 1]).raw(), &listed_twice).unwrap_err();
    assert!(matches!(error, TrustError::Keys { threshold: 2, keys: 1, .. }), "{error}");
}

#[test]
fn a_threshold_of_nothing_verifies_nothing() {
    for keys in [role_keys(0, &[1]), role_keys(0, &[]), role_keys(1, &[])] {
        let error = verify::<Order>(signed(&some_order(), &[1]).raw(), &keys).unwrap_err();
        assert!(matches!(error, TrustError::Keys { .. }), "{error}");
    }
}

#[test]
fn key_ids_decide_nothing() {
    let envelope = signed(&some_order(), &[1]);
    let sig = envelope.signatures()[0].sig.clone();
    for keyid in [None, Some("nonsense".to_owned()), Some(key(2).public().id().to_string())] {
        let relabelled = with_signatures(&envelope, vec![Signature { keyid, sig: sig.clone() }]);
        assert!(verify::<Order>(relabelled.raw(), &role_keys(1, &[1])).is_ok());
        assert!(verify::<Order>(relabelled.raw(), &role_keys(1, &[2])).is_err());
    }
}

#[test]
fn signatures_of_strangers_are_passed_over() {
    let envelope = signed(&some_order(), &[9, 1]);
    let authentic: Authentic<Order> = verify(envelope.raw(), &role_keys(1, &[1, 2])).unwrap();
    assert_eq!(authentic.signers(), [key(1).public().clone()]);
}

#[test]
fn no_document_passes_for_another() {
    let order = signed(&some_order(), &[1]);
    let error = verify::<Roster>(order.raw(), &role_keys(1, &[1])).unwrap_err();
    assert!(matches!(error, TrustError::PayloadType { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "this is not a roster: its payload type is `application/vnd.muster.order+json` \
         instead of `application/vnd.muster.roster+json`"
    );
    // With the payload type swapped the signature no longer fits, for it covers the type.
    let relabelled = Envelope::new(
        DocumentKind::Roster.payload_type(),
        order.payload().to_vec(),
        order.signatures().to_vec(),
    )
    .unwrap();
    let error = verify::<Roster>(relabelled.raw(), &role_keys(1, &[1])).unwrap_err();
    assert!(matches!(error, TrustError::Threshold { signed: 0, .. }), "{error}");
    // A statement that was truly signed, but is no release.
    let payload = br#"{"_type":"https://in-toto.io/Statement/v1"}"#.to_vec();
    let sig = key(1).sign(&pae(DocumentKind::Release.payload_type(), &payload)).unwrap();
    let signatures = vec![Signature { keyid: None, sig }];
    let foreign = Envelope::new(DocumentKind::Release.payload_type(), payload, signatures).unwrap();
    let error = verify::<Release>(foreign.raw(), &role_keys(1, &[1])).unwrap_err();
    assert!(matches!(error, TrustError::Document { source: DocumentError::Syntax { .. }, .. }), "{error}");
}

#[test]
fn url_safe_base64_verifies_alike() {
    let envelope = signed(&some_order(), &[1]);
    let text = format!(
        r#"{{"payloadType":"{}","signatures":[{{"sig":"{}"}}],"payload":"{}"}}"#,
        envelope.payload_type(),
        URL_SAFE_NO_PAD.encode(&envelope.signatures()[0].sig),
        URL_SAFE_NO_PAD.encode(envelope.payload()),
    );
    let authentic: Authentic<Order> = verify(text.as_bytes(), &role_keys(1, &[1])).unwrap();
    assert_eq!(authentic.payload_digest(), Digest::of(envelope.payload()));
    assert_ne!(authentic.envelope_digest(), envelope.digest());
    assert_eq!(&authentic.raw()[..], text.as_bytes(), "the bytes are kept as they arrived");
}

#[test]
fn what_could_not_be_read_again_is_not_signed() {
    let flags = (0..2000)
        .map(|i| {
            (
                i.to_string(),
                FlagDeclaration { kind: None, default: None, semantics: None, expires: None, removed: true },
            )
        })
        .collect::<BTreeMap<_, _>>();
    let oversized = Release { flags, ..release(&fleet_name(), manifest()) };
    assert!(matches!(sign(&oversized, &[&key(1)]), Err(TrustError::Document { .. })));
    let unsigned = sign(&some_order(), &[]).unwrap_err();
    assert!(
        matches!(unsigned, TrustError::Envelope { source: EnvelopeError::Signatures { found: 0 }, .. }),
        "{unsigned}"
    );
}

#[test]
fn signatures_are_added_one_by_one_and_once() {
    let first = signed(&some_order(), &[1]);
    let both = add_signature::<Order>(&first, &key(2)).unwrap();
    assert_eq!(both, signed(&some_order(), &[1, 2]));
    assert_eq!(add_signature::<Order>(&both, &key(1)).unwrap(), both, "it has signed already");
    assert!(matches!(add_signature::<Roster>(&first, &key(2)), Err(TrustError::PayloadType { .. })));

    let full = signed(&some_order(), &[1; SIGNATURES_MAX]);
    let error = add_signature::<Order>(&full, &key(2)).unwrap_err();
    assert!(
        matches!(error, TrustError::Envelope { source: EnvelopeError::Signatures { .. }, .. }),
        "{error}"
    );
    // Nothing is signed that cannot be read as what it claims to be.
    let garbage =
        Envelope::new(DocumentKind::Order.payload_type(), b"{}".to_vec(), first.signatures().to_vec());
    assert!(matches!(add_signature::<Order>(&garbage.unwrap(), &key(2)), Err(TrustError::Document { .. })));
}

#[test]
fn work_is_bounded() {
    let many =
        RoleKeys { threshold: 1, keys: (0..=u8::MAX).map(|byte| key(byte).public().clone()).collect() };
    let envelope = signed(&some_order(), &[1; SIGNATURES_MAX]);
    let error = verify::<Order>(envelope.raw(), &many).unwrap_err();
    assert!(matches!(error, TrustError::TooMuchWork { checks: 25_600, .. }), "{error}");
    assert!(verify::<Order>(signed(&some_order(), &[1]).raw(), &many).is_ok());
}

/// Every single bit of an envelope counts, but for those of a key id: it decides nothing.
#[test]
fn a_flipped_bit_is_noticed_wherever_it_is() {
    let ecdsa = SigningKey::generate(KeyAlgorithm::P256).unwrap();
    for (envelope, keys) in [
        (signed(&some_order(), &[1, 2]), role_keys(2, &[1, 2])),
        (sign(&some_order(), &[&ecdsa]).unwrap(), keys_of(&[&ecdsa])),
    ] {
        let raw = envelope.raw();
        assert!(verify::<Order>(raw, &keys).is_ok());
        let key_ids: Vec<_> =
            envelope.signatures().iter().map(|sig| position(raw, sig.keyid.as_deref())).collect();
        for bit in 0..raw.len() * 8 {
            let flipped = flip(raw, bit);
            match verify::<Order>(&flipped, &keys) {
                Err(_) => {}
                Ok(authentic) => {
                    assert!(
                        key_ids.iter().any(|range| range.contains(&(bit / 8))),
                        "bit {bit} is not noticed"
                    );
                    assert_eq!(authentic.payload_digest(), Digest::of(envelope.payload()));
                    assert_ne!(authentic.envelope_digest(), envelope.digest());
                }
            }
        }
    }
}

#[test]
fn a_flipped_bit_of_an_attestation_is_noticed() {
    let envelope = signed_attestation(1);
    let keys = role_keys(1, &[1]);
    let key_id = position(envelope.raw(), envelope.signatures()[0].keyid.as_deref());
    for bit in (0..envelope.raw().len() * 8).filter(|bit| !key_id.contains(&(bit / 8))) {
        assert!(
            verify::<Attestation>(&flip(envelope.raw(), bit), &keys).is_err(),
            "bit {bit} is not noticed"
        );
    }
    assert_eq!(**verify::<Attestation>(envelope.raw(), &keys).unwrap().document(), attestation(1));
}

fn flip(raw: &[u8], bit: usize) -> Vec<u8> {
    let mut flipped = raw.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped
}

fn position(raw: &[u8], text: Option<&str>) -> std::ops::Range<usize> {
    let text = text.expect("we write key ids").as_bytes();
    let start = raw.windows(text.len()).position(|window| window == text).expect("it is in there");
    start..start + text.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done to an envelope, it is refused or still says the same.
    #[test]
    fn no_edit_changes_what_is_believed(
        at in any::<prop::sample::Index>(),
        removed in 0_usize..40,
        inserted in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'"'), Just(b' '), Just(b'=')], 0..6),
    ) {
        let envelope = signed(&some_order(), &[1]);
        let raw = envelope.raw();
        let at = at.index(raw.len());
        let edited = [&raw[..at], &inserted, &raw[(at + removed).min(raw.len())..]].concat();
        if let Ok(authentic) = verify::<Order>(&edited, &role_keys(1, &[1])) {
            prop_assert_eq!(authentic.payload_digest(), Digest::of(envelope.payload()));
            prop_assert_eq!(&**authentic.document(), &some_order());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), payload in STRATEGY) {
        prop_assert!(verify::<Order>(&bytes, &role_keys(1, &[1])).is_err());
        let text = format!(
            r#"{{"payload":"{}","payloadType":"{}","signatures":[{{"sig":"AAAA"}}]}}"#,
            STANDARD.encode(payload),
            DocumentKind::Order.payload_type(),
        );
        prop_assert!(verify::<Order>(text.as_bytes(), &role_keys(1, &[1])).is_err());
    }
}

const STRATEGY: &str = r#"[{}":,a-z0-9]{0,60}"#;
