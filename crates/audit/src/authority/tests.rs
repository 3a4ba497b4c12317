use std::collections::BTreeMap;

use muster_model::{RoleKeys, Root, UnixTime};
use muster_trust::{KeyAlgorithm, SigningKey};

use super::*;

fn key() -> SigningKey {
    SigningKey::generate(KeyAlgorithm::Ed25519).unwrap()
}

fn root(version: u64, own: &SigningKey, operator: &SigningKey) -> TrustRoot {
    let keys = |key: &SigningKey| RoleKeys { threshold: 1, keys: vec![key.public().clone()] };
    let roles = [
        (SigningRole::Root, keys(own)),
        (SigningRole::Release, keys(own)),
        (SigningRole::Operator, keys(operator)),
    ];
    let document = Root::new(version, UnixTime(u64::MAX), BTreeMap::from(roles)).unwrap();
    TrustRoot::pin(muster_trust::sign(&document, &[own]).unwrap().raw()).unwrap()
}

/// Two roots that follow each other, each with its own root key and operator.
struct Rotation {
    first: TrustRoot,
    second: TrustRoot,
    keys: [SigningKey; 2],
    operators: [SigningKey; 2],
}

impl Rotation {
    fn new() -> Self {
        let (keys, operators) = ([key(), key()], [key(), key()]);
        let first = root(1, &keys[0], &operators[0]);
        let second = root(2, &keys[1], &operators[1]);
        Self { first, second, keys, operators }
    }

    fn both(&self) -> [&TrustRoot; 2] {
        [&self.second, &self.first]
    }
}

fn in_force(root: &TrustRoot) -> Entry {
    Entry::new(Kind::Root, "ann", UnixTime(1)).of_root(root.root().version, root.authentic().payload_digest())
}

fn approval(what: &str, key: &SigningKey) -> Entry {
    Entry::new(Kind::Approval, key.public().to_string(), UnixTime(1)).with(what, Digest::of(b"document"))
}

fn ordered(key: &SigningKey) -> Entry {
    approval(ORDER_DOCUMENT, key)
}

fn judge<'a>(
    roots: impl IntoIterator<Item = &'a TrustRoot>,
    entries: Vec<Entry>,
) -> Result<Authority, AuthorityFault> {
    let mut history = RootHistory::new(roots);
    for (entry, place) in entries.into_iter().zip(0..) {
        history.take(&entry.at_place(place))?;
    }
    history.finish()
}

fn found(versions: (u64, u64), approvals_verified: u64, approvals_unverified: u64) -> Authority {
    Authority {
        root_versions: Some(versions),
        approvals_verified,
        approvals_unverified,
        ..Authority::default()
    }
}

/// A root that demands two of these operators.
fn root_of_two(version: u64, own: &SigningKey, operators: &[&SigningKey]) -> TrustRoot {
    let keys = |keys: &[&SigningKey], threshold| RoleKeys {
        threshold,
        keys: keys.iter().map(|key| key.public().clone()).collect(),
    };
    let roles = [
        (SigningRole::Root, keys(&[own], 1)),
        (SigningRole::Release, keys(&[own], 1)),
        (SigningRole::Operator, keys(operators, 2)),
    ];
    let document = Root::new(version, UnixTime(u64::MAX), BTreeMap::from(roles)).unwrap();
    TrustRoot::pin(muster_trust::sign(&document, &[own]).unwrap().raw()).unwrap()
}

fn of_rollout(kind: Kind, rollout: u64) -> Entry {
    let fleet = FleetName::new("demo").unwrap();
    Entry::new(kind, "ann", UnixTime(1)).of_fleet(&fleet).of_rollout(RolloutId(rollout))
}

fn given(rollout: u64, envelope: &[u8]) -> Entry {
    of_rollout(Kind::Order, rollout).with(ORDER_DOCUMENT, Digest::of(envelope))
}

fn approved(envelope: &[u8], key: &SigningKey) -> Entry {
    Entry::new(Kind::Approval, key.public().to_string(), UnixTime(1))
        .with(ORDER_DOCUMENT, Digest::of(envelope))
}

#[test]
fn approvals_go_with_the_root_of_their_time() {
    let it = Rotation::new();
    let [old, new] = &it.operators;
    let log = || {
        let [by_present, by_next] = [0, 1].map(|at| approval(ROOT_DOCUMENT, &it.keys[at]));
        vec![in_force(&it.first), ordered(old), in_force(&it.second), by_present, by_next, ordered(new)]
    };
    assert_eq!(judge(it.both(), log()), Ok(found((1, 2), 4, 0)));
    assert_eq!(judge([&it.second], log()), Ok(found((1, 2), 2, 2)), "what is not known is not called right");
    assert_eq!(judge([], log()), Ok(found((1, 2), 0, 4)));

    let late = judge(it.both(), [log(), vec![ordered(old)]].concat());
    let by = old.public().to_string();
    assert_eq!(late, Err(AuthorityFault::NotAuthorised { entry: 6, key: by, version: 2 }));
    let early = judge(it.both(), vec![in_force(&it.first), ordered(new)]);
    assert!(matches!(early, Err(AuthorityFault::NotAuthorised { entry: 1, version: 1, .. })));
    let stranger = judge(it.both(), vec![in_force(&it.second), approval(ROOT_DOCUMENT, &key())]);
    assert!(matches!(stranger, Err(AuthorityFault::NotAuthorised { entry: 1, version: 2, .. })));
    assert_eq!(judge(it.both(), vec![ordered(old)]), Err(AuthorityFault::NoRoot { entry: 0 }));
    let unnamed = Entry::new(Kind::Root, "ann", UnixTime(1));
    assert_eq!(judge(it.both(), vec![unnamed]), Err(AuthorityFault::Unnamed { entry: 0 }));
}

#[test]
fn another_root_of_a_known_version_is_named_and_so_is_going_back() {
    let it = Rotation::new();
    let forged = root(2, &it.keys[1], &it.operators[0]);
    let other = |log: Vec<Entry>| matches!(judge(it.both(), log), Err(AuthorityFault::OtherRoot { .. }));
    let third = root(3, &it.keys[1], &it.operators[1]);
    assert!(other(vec![in_force(&it.first), in_force(&forged)]), "at the end");
    assert!(other(vec![in_force(&forged), ordered(&it.operators[0])]), "in use");
    assert!(other(vec![in_force(&forged), in_force(&third)]), "followed");

    let back = vec![in_force(&it.second), ordered(&it.operators[1]), in_force(&it.first)];
    assert_eq!(judge(it.both(), back), Err(AuthorityFault::WentBack { entry: 2, before: 2, found: 1 }));
}

#[test]
fn a_root_that_was_written_down_and_never_taken_counts_for_nothing() {
    let it = Rotation::new();
    let lost = root(2, &it.keys[1], &it.operators[0]);
    let log = vec![
        in_force(&it.first),
        in_force(&lost),
        approval(ROOT_DOCUMENT, &it.keys[1]),
        in_force(&it.first),
        ordered(&it.operators[0]),
        in_force(&it.second),
        ordered(&it.operators[1]),
    ];
    assert_eq!(judge(it.both(), log), Ok(found((1, 2), 2, 1)));
}

#[test]
fn an_order_needs_as_many_keys_as_the_root_of_its_time_demands() {
    let (own, [ann, bob, carol]) = (key(), [key(), key(), key()]);
    let root = root_of_two(1, &own, &[&ann, &bob]);
    let next = root_of_two(2, &own, &[&bob, &carol]);
    let judge = |entries: Vec<Entry>| judge([&root, &next], [vec![in_force(&root)], entries].concat());
    let orders = |entries| judge(entries).map(|found| (found.orders_verified, found.orders_unverified));
    let short =
        |entry, found, version| Err(AuthorityFault::NotEnough { entry, found, threshold: 2, version });
    let phase = || of_rollout(Kind::Phase, 1);
    let both = || vec![given(1, b"a"), approved(b"a", &ann), approved(b"a", &bob), phase()];
    assert_eq!(orders(both()), Ok((1, 0)));
    assert_eq!(orders(vec![given(1, b"a"), approved(b"a", &ann), phase()]), short(1, 1, 1));
    assert_eq!(orders(vec![given(1, b"a"), approved(b"a", &ann)]), short(1, 1, 1), "at the end");
    let twice = vec![given(1, b"a"), approved(b"a", &ann), approved(b"a", &ann), phase()];
    assert_eq!(orders(twice), short(1, 1, 1), "one key is one approval");
    let of_another = vec![given(1, b"a"), approved(b"a", &ann), approved(b"b", &bob), phase()];
    assert_eq!(orders(of_another), short(1, 1, 1));
    assert_eq!(orders(vec![given(1, b"a"), phase()]), short(1, 0, 1));
    let unnamed = vec![of_rollout(Kind::Order, 1)];
    assert_eq!(orders(unnamed), Err(AuthorityFault::UnnamedOrder { entry: 1 }));

    // An order to roll back lay ready; it is approved before it is given.
    let ready = vec![given(1, b"a"), approved(b"a", &ann), approved(b"a", &bob)];
    let ready = [ready, vec![approved(b"back", &ann), approved(b"back", &bob), phase()]].concat();
    assert_eq!(orders([ready.clone(), vec![given(2, b"back"), phase()]].concat()), Ok((2, 0)));
    // Ann may not approve any more by then.
    let late = [ready, vec![in_force(&next), given(2, b"back"), phase()]].concat();
    assert_eq!(orders(late), short(8, 1, 2));
}

#[test]
fn an_order_that_a_dying_coordinator_wrote_down_in_part_has_begun_nothing() {
    let (own, [ann, bob]) = (key(), [key(), key()]);
    let root = root_of_two(1, &own, &[&ann, &bob]);
    let judge = |entries: Vec<Entry>| judge([&root], [vec![in_force(&root)], entries].concat());
    let cut = || vec![given(4, b"a"), approved(b"a", &ann), of_rollout(Kind::Lead, 3)];
    assert_eq!(judge(cut()).unwrap().orders_verified, 0);
    let again = vec![given(4, b"a"), approved(b"a", &bob), of_rollout(Kind::Phase, 4)];
    assert_eq!(judge([cut(), again].concat()).unwrap().orders_verified, 1);
    for kind in [Kind::Phase, Kind::Ended, Kind::Lead] {
        let went_on = judge([cut(), vec![of_rollout(kind, 4)]].concat());
        assert!(matches!(went_on, Err(AuthorityFault::NotEnough { entry: 1, found: 1, .. })), "{kind}");
    }
}

#[test]
fn orders_of_a_time_whose_root_is_not_known_are_not_called_right() {
    let (own, [ann, bob]) = (key(), [key(), key()]);
    let root = root_of_two(1, &own, &[&ann, &bob]);
    let log = vec![in_force(&root), given(1, b"a"), approved(b"a", &ann), of_rollout(Kind::Phase, 1)];
    let judged = judge([], log).unwrap();
    assert_eq!((judged.orders_verified, judged.orders_unverified), (0, 1));
}
