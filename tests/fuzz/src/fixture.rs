//! One fleet of two hosts and its signed documents, made once in each process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use muster_audit::{Checkpoint, Edge, Entry, Kind, origin};
use muster_model::{
    Digest, Epoch, FleetName, FleetScope, HostName, Incarnation, Joiners, MerkleTree, Order, Release,
    RoleKeys, RolloutId, Root, RosterRevision, Secret, SigningRole, UnixTime, Version,
};
pub(crate) use muster_signed::NOW;
use muster_signed::{Host, Plan, SignedFlip};
use muster_trust::{SigningKey, TrustRoot, sign};

/// The key that signs everything: one that `ssh-keygen` made, and that everybody has.
pub(crate) static KEY: LazyLock<SigningKey> = LazyLock::new(|| {
    SigningKey::parse(include_bytes!("../../../crates/trust/vectors/openssh/ed25519")).unwrap()
});

/// The key that signs the attestations of host-2, and adds hosts.
pub(crate) static OTHER_KEY: LazyLock<SigningKey> = LazyLock::new(|| {
    SigningKey::parse(include_bytes!("../../../crates/trust/vectors/openssh/ecdsa")).unwrap()
});

/// The root of [`FLIP`].
pub(crate) static ROOT: LazyLock<TrustRoot> =
    LazyLock::new(|| TrustRoot::pin(sign(&root(), &[&*KEY]).unwrap().raw()).unwrap());

/// The signed documents of one flip.
pub(crate) static FLIP: LazyLock<SignedFlip> =
    LazyLock::new(|| PLAN.sign(&ROOT, &KEY, &[&*KEY, &*OTHER_KEY]));

/// What it is made of.
pub(crate) static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let keys = [KEY_PUBLIC.clone(), OTHER_KEY.public().clone()];
    let host = |(index, key)| Host { name: host(index), key, secret: secret(index) };
    Plan {
        release: release(),
        k: K,
        revision: RosterRevision(4),
        epoch: Epoch(6),
        size: (12, 3456),
        max_lapsed: 1,
        order_ends: UnixTime(1000),
        hosts: (0..).zip(keys).map(host).collect(),
    }
});

const K: RolloutId = RolloutId(7);

pub(crate) fn key_alone() -> RoleKeys {
    RoleKeys { threshold: 1, keys: vec![KEY_PUBLIC.clone()] }
}

/// The public half of [`KEY`].
pub(crate) static KEY_PUBLIC: LazyLock<muster_model::PublicKey> = LazyLock::new(|| KEY.public().clone());

pub(crate) fn fleet() -> FleetName {
    FleetName::new("demo").unwrap()
}

pub(crate) fn host(index: u8) -> HostName {
    HostName::new(&format!("host-{}", index + 1)).unwrap()
}

pub(crate) fn secret(index: u8) -> Secret {
    Secret::from_bytes([index; 32])
}

pub(crate) fn root() -> Root {
    let roles = [SigningRole::Root, SigningRole::Release, SigningRole::Operator];
    let roles = roles.into_iter().map(|role| (role, key_alone())).collect();
    let names = BTreeMap::from([(KEY_PUBLIC.clone(), "alice".to_owned())]);
    let joiners = Joiners {
        role: RoleKeys { threshold: 1, keys: vec![OTHER_KEY.public().clone()] },
        fleets: FleetScope::Named(BTreeSet::from([fleet()])),
        hosts_max: HOSTS_MAX,
        base_age_ms_max: 1_000,
    };
    Root::new(1, UnixTime(2_000_000), roles)
        .unwrap()
        .with_joiners(joiners)
        .unwrap()
        .with_names(names)
        .unwrap()
}

/// How far joiners may go.
pub(crate) const HOSTS_MAX: u32 = 4;

pub(crate) fn release() -> Release {
    Release {
        fleet: fleet(),
        version: Version::new("1.2.0").unwrap(),
        manifest: Digest::of(b"manifest"),
        builder: Some("ci".to_owned()),
        source_revision: None,
        created_unix_ms: UnixTime(1),
        expires_unix_ms: Some(UnixTime(5)),
        flags: BTreeMap::new(),
    }
}

pub(crate) fn order() -> Order {
    PLAN.order()
}

/// The entries of a small audit log.
pub(crate) fn entries() -> Vec<Entry> {
    let who = "spiffe://muster.local/operator/ann";
    let entry = |kind, place| Entry::new(kind, who, NOW).of_fleet(&fleet()).at_place(place);
    vec![
        entry(Kind::Began, 0).saying("a line\nand another"),
        entry(Kind::Halt, 1).of_rollout(K).of_hosts(&[host(0)]),
        entry(Kind::Order, 2).with("order", Digest::of(b"order")),
    ]
}

/// The checkpoint over [`entries`].
pub(crate) fn checkpoint() -> Checkpoint {
    let mut edge = Edge::new();
    for entry in entries() {
        edge.append(MerkleTree::leaf_hash(&entry.to_bytes()), |_, _, _| {});
    }
    let origin = origin("muster.local", Incarnation(1));
    Checkpoint { origin, size: edge.size(), root: edge.root() }
}
