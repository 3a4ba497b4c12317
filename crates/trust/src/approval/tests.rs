use muster_model::RoleKeys;

use super::*;
use crate::fixture::{FlipParts, NOW, ROOT_EXPIRES, key, role_keys, signed, trust_root};
use crate::{Signature, TrustError, add_signature, verify};

/// The three operators of the fixture, of whom two must sign.
const OPERATORS: [u8; 3] = [102, 103, 104];

fn order() -> Order {
    FlipParts::new().order
}

fn review(envelope: &Envelope) -> Result<OrderProposal, TrustError> {
    trust_root().review_order(envelope.raw(), NOW)
}

/// The envelope with every signature so many times, each under another key id.
fn repeated(envelope: &Envelope, times: usize) -> Envelope {
    let again = |signature: &Signature, number| Signature {
        keyid: Some(format!("id-{number}")),
        sig: signature.sig.clone(),
    };
    let signatures =
        (0..times).flat_map(|number| envelope.signatures().iter().map(move |it| again(it, number)));
    Envelope::new(envelope.payload_type(), envelope.payload().to_vec(), signatures.collect()).unwrap()
}

#[test]
fn one_signature_of_two_is_seen_and_not_believed() {
    let one = signed(&order(), &OPERATORS[..1]);
    let seen = review(&one).unwrap();
    assert_eq!(seen.signers, [key(OPERATORS[0]).public().clone()]);
    assert_eq!((seen.missing(&trust_root()), &seen.document), (1, &order()));
    assert!(matches!(
        trust_root().verify_order(seen.envelope.raw(), NOW),
        Err(TrustError::Threshold { signed: 1, threshold: 2, .. })
    ));
    let both = add_signature::<Order>(&one, &key(OPERATORS[2])).unwrap();
    let complete = review(&both).unwrap();
    assert_eq!((complete.missing(&trust_root()), complete.signers.len()), (0, 2));
    assert_eq!(complete.payload_digest, seen.payload_digest, "the order keeps its name");
    trust_root().verify_order(complete.envelope.raw(), NOW).unwrap();
}

#[test]
fn a_break_glass_token_holds_once_enough_operators_have_signed_it() {
    use muster_model::{Epoch, FleetName, GlassLeave, GlassToken, HostName, RosterRef, RosterRevision};
    let leave = GlassLeave {
        fleet: FleetName::new("smars").unwrap(),
        hosts: vec![HostName::new("host-1").unwrap()],
        release: Digest::of(b"release"),
        epoch: Epoch(4),
        roster: RosterRef { digest: Digest::of(b"roster"), revision: RosterRevision(3), hosts: 3 },
        end_halt: false,
    };
    let token = GlassToken::new(leave, "night".to_owned(), NOW..UnixTime(NOW.0 + 1)).unwrap();
    let one = signed(&token, &OPERATORS[..1]);
    let root = trust_root();
    let seen = root.review_glass_token(one.raw(), NOW).unwrap();
    assert_eq!((seen.missing(&root), &seen.document), (1, &token));
    let refused = root.verify_glass_token(one.raw(), NOW);
    assert!(matches!(refused, Err(TrustError::Threshold { signed: 1, threshold: 2, .. })), "{refused:?}");
    let both = add_signature::<GlassToken>(&one, &key(OPERATORS[1])).unwrap();
    let whole = root.verify_glass_token(both.raw(), NOW).unwrap();
    assert_eq!((&**whole.document(), whole.payload_digest()), (&token, seen.payload_digest));
    assert!(root.verify_glass_token(both.raw(), ROOT_EXPIRES).is_err(), "no root, no leave");
    assert!(root.verify_order(both.raw(), NOW).is_err(), "it passes for nothing else");
}

#[test]
fn one_person_counts_once_under_however_many_key_ids() {
    let one = signed(&order(), &OPERATORS[..1]);
    let many = repeated(&one, 3);
    let seen = review(&many).unwrap();
    assert_eq!((seen.signers.len(), seen.missing(&trust_root())), (1, 1));
    assert_eq!(seen.envelope.signatures().len(), 1, "what is kept does not grow");
    assert!(trust_root().verify_order(many.raw(), NOW).is_err());
    let joined = trust_root().join_orders(one.raw(), many.raw(), NOW).unwrap();
    assert_eq!((joined.signers.len(), joined.envelope.signatures().len()), (1, 1));
    // The same key again, by its own signature: nothing is added.
    let again = add_signature::<Order>(&one, &key(OPERATORS[0])).unwrap();
    assert_eq!(review(&again).unwrap().signers.len(), 1);
    // A root that lists one key twice does not make two people of its owner.
    let twice = role_keys(2, &[OPERATORS[0], OPERATORS[0]]);
    assert!(verify::<Order>(many.raw(), &twice).is_err());
}

#[test]
fn signatures_that_came_apart_are_put_together() {
    let apart = OPERATORS.map(|operator| signed(&order(), &[operator]));
    let joined = trust_root().join_orders(apart[0].raw(), apart[1].raw(), NOW).unwrap();
    trust_root().verify_order(joined.envelope.raw(), NOW).unwrap();
    let all = trust_root().join_orders(joined.envelope.raw(), apart[2].raw(), NOW).unwrap();
    assert_eq!(all.signers.len(), 3);
    // Nothing that was there goes, and strangers stay out.
    let strange = signed(&order(), &[OPERATORS[0], 7]);
    let kept = trust_root().join_orders(all.envelope.raw(), strange.raw(), NOW).unwrap();
    assert_eq!((kept.signers.len(), kept.envelope.signatures().len()), (3, 3));
}

#[test]
fn signatures_of_another_order_are_not_taken() {
    let one = signed(&order(), &OPERATORS[..1]);
    let mut other = order();
    other.max_lapsed = 0;
    other.counter = other.counter.next();
    let other = signed(&other, &OPERATORS[1..2]);
    assert!(matches!(
        trust_root().join_orders(one.raw(), other.raw(), NOW),
        Err(TrustError::OtherPayload { .. })
    ));
}

#[test]
fn what_no_operator_has_signed_is_no_proposal() {
    for stranger in [&[7][..], &[100], &[101]] {
        let error = review(&signed(&order(), stranger)).unwrap_err();
        assert!(matches!(error, TrustError::Threshold { signed: 0, .. }), "{error}");
    }
    let one = signed(&order(), &OPERATORS[..1]);
    let stranger = signed(&order(), &[7]);
    assert!(trust_root().join_orders(one.raw(), stranger.raw(), NOW).is_err(), "nothing was approved");
    assert!(matches!(
        trust_root().review_order(one.raw(), ROOT_EXPIRES),
        Err(TrustError::RootExpired { .. })
    ));
    let none: RoleKeys = role_keys(1, &[]);
    assert!(join_signatures::<Order>(&[&one], &none).is_err());
    assert!(join_signatures::<Order>(&[], &none).is_err());
}
