use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;
use crate::keys::is_signed_by;

// DSSE 1.0, protocol.md, "Test Vectors". The public key is the vector's (X, Y) as a compressed point.
const VECTOR_TYPE: &str = "http://example.com/HelloWorld";
const VECTOR_PAE: &[u8] = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
const VECTOR_KEY: &str = "p256:AmfNOQ93qjWcsIwiNfZSJwSTqe2DKwq8wB9wlUwDkNI4";
const VECTOR_ENVELOPE: &str = r#"{"payload": "aGVsbG8gd29ybGQ=",
 "payloadType": "http://example.com/HelloWorld",
 "signatures": [{"sig": "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="}]}"#;

#[test]
fn the_published_vector_is_read_and_verifies() {
    assert_eq!(pae(VECTOR_TYPE, b"hello world"), VECTOR_PAE);
    let envelope = Envelope::parse(VECTOR_ENVELOPE.as_bytes()).expect("the vector");
    assert_eq!(envelope.payload(), b"hello world");
    assert_eq!(envelope.payload_type(), VECTOR_TYPE);
    assert_eq!(envelope.message(), VECTOR_PAE);
    assert_eq!(&envelope.raw()[..], VECTOR_ENVELOPE.as_bytes());
    let [signature] = envelope.signatures() else { panic!("the vector has one signature") };
    let key = VECTOR_KEY.parse().expect("a public key");
    assert!(is_signed_by(&key, VECTOR_PAE, &signature.sig));
    assert!(!is_signed_by(&key, b"DSSEv1 29 http://example.com/HelloWorld 11 hello worle", &signature.sig));
}

#[test]
fn lengths_in_the_encoding_count_bytes() {
    assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
    assert_eq!(pae("ä", b"\n"), "DSSEv1 2 ä 1 \n".as_bytes());
}

#[test]
fn what_is_written_is_read_again() {
    let signatures = vec![
        Signature { keyid: Some("a \"quoted\" id".to_owned()), sig: vec![0xfb, 0xff] },
        Signature { keyid: None, sig: vec![] },
    ];
    let envelope = Envelope::new("type", b"\xff\xfe".to_vec(), signatures).expect("an envelope");
    assert_eq!(Envelope::parse(envelope.raw()).expect("our own envelope"), envelope);
    let text = std::str::from_utf8(envelope.raw()).expect("JSON");
    assert!(text.starts_with(r#"{"payload":"//4=","payloadType":"type","signatures":[{"keyid":"#), "{text}");
    assert!(text.ends_with(r#"{"sig":""}]}"#), "an absent key id is left out: {text}");
}

#[test]
fn an_empty_key_id_is_none() {
    let text = r#"{"payload":"","payloadType":"","signatures":[{"sig":"","keyid":""}]}"#;
    assert_eq!(Envelope::parse(text.as_bytes()).expect("valid").signatures()[0].keyid, None);
}

#[test]
fn both_alphabets_are_read_with_and_without_padding() {
    let bytes = [0xfb, 0xef, 0xff, 0xfe];
    for text in [
        STANDARD.encode(bytes),
        STANDARD_NO_PAD.encode(bytes),
        URL_SAFE.encode(bytes),
        URL_SAFE_NO_PAD.encode(bytes),
    ] {
        assert_eq!(decode("payload", &text).expect("base64"), bytes, "{text}");
    }
    for bad in ["++--", "//__", "AA=A", "AAB=", "A", "AA AA", "AA\n"] {
        assert!(matches!(decode("sig", bad), Err(EnvelopeError::Base64 { field: "sig", .. })), "{bad:?}");
    }
}

#[test]
fn reading_is_strict() {
    let good = r#"{"payload":"","payloadType":"","signatures":[{"sig":""}]}"#;
    assert!(Envelope::parse(good.as_bytes()).is_ok());
    for bad in [
        "",
        "[]",
        r#"{"payload":"","payloadType":""}"#,
        r#"{"payload":"","signatures":[{"sig":""}]}"#,
        r#"{"payloadType":"","signatures":[{"sig":""}]}"#,
        r#"{"payload":"","payloadType":"","signatures":[{"keyid":""}]}"#,
        r#"{"payload":"","payloadType":"","signatures":[{"sig":""}],"extra":1}"#,
        r#"{"payload":"","payloadType":"","signatures":[{"sig":"","cert":""}]}"#,
        r#"{"payload":"","payload":"","payloadType":"","signatures":[{"sig":""}]}"#,
        r#"{"payload":"","payloadType":"","signatures":[{"sig":""}]}{}"#,
        r#"{"payload":7,"payloadType":"","signatures":[{"sig":""}]}"#,
    ] {
        assert!(matches!(Envelope::parse(bad.as_bytes()), Err(EnvelopeError::Syntax { .. })), "{bad}");
    }
}

#[test]
fn size_and_signatures_are_bounded() {
    let with = |count: usize| {
        let signatures = vec![r#"{"sig":""}"#; count].join(",");
        Envelope::parse(
            format!(r#"{{"payload":"","payloadType":"","signatures":[{signatures}]}}"#).as_bytes(),
        )
    };
    assert!(matches!(with(0), Err(EnvelopeError::Signatures { found: 0 })));
    assert!(with(SIGNATURES_MAX).is_ok());
    assert!(matches!(with(SIGNATURES_MAX + 1), Err(EnvelopeError::Signatures { .. })));
    assert!(matches!(Envelope::new("", vec![], vec![]), Err(EnvelopeError::Signatures { found: 0 })));

    let one = vec![Signature { keyid: None, sig: vec![] }];
    assert!(Envelope::new("", vec![0; MAX_DOCUMENT_BYTES], one.clone()).is_ok());
    let huge = Envelope::new("", vec![0; ENVELOPE_BYTES_MAX], one);
    assert!(matches!(huge, Err(EnvelopeError::TooLarge { max: ENVELOPE_BYTES_MAX, .. })));
    let spaces = vec![b' '; ENVELOPE_BYTES_MAX + 1];
    assert!(matches!(Envelope::parse(&spaces), Err(EnvelopeError::TooLarge { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_two_statements_have_one_encoding(
        a in ("[ 0-9a]{0,6}", "[ 0-9a]{0,6}"),
        b in ("[ 0-9a]{0,6}", "[ 0-9a]{0,6}"),
    ) {
        prop_assert_eq!(pae(&a.0, a.1.as_bytes()) == pae(&b.0, b.1.as_bytes()), a == b);
    }

    #[test]
    fn any_envelope_survives_the_wire(
        payload_type in ".{0,20}",
        payload in prop::collection::vec(any::<u8>(), 0..40),
        sigs in prop::collection::vec((prop::option::of(".{1,10}"), prop::collection::vec(any::<u8>(), 0..70)), 1..4),
    ) {
        let signatures = sigs.into_iter().map(|(keyid, sig)| Signature { keyid, sig }).collect();
        let envelope = Envelope::new(&payload_type, payload, signatures).expect("small");
        prop_assert!(!envelope.raw().contains(&b'\n'));
        prop_assert_eq!(Envelope::parse(envelope.raw()).expect("our own"), envelope);
    }
}
