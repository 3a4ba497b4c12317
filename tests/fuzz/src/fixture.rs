//! One fleet of two hosts and its signed documents, made once in each process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use muster_audit::{Checkpoint, Edge, Entry, Kind, origin};
use muster_model::{
    Assurance, Attestation, BootGate, BootId, ClockState, Comparable, Digest, Document, Epoch, FleetName,
    FleetScope, Flip, FlipMode, HostFacts, HostName, Incarnation, Joiners, Member, MerkleTree, OnFailure,
    Order, Policy, Purpose, Release, RoleKeys, RolloutId, Root, Roster, RosterRef, RosterRevision, Scope,
    Secret, SigningRole, UnixTime, Version,
};
use muster_trust::{Authentic, SigningKey, TrustRoot, assemble_evidence, sign, verify_evidence};

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
pub(crate) static FLIP: LazyLock<SignedFlip> = LazyLock::new(SignedFlip::new);

pub(crate) const NOW: UnixTime = UnixTime(1_000_000);
const K: RolloutId = RolloutId(7);

pub(crate) struct SignedFlip {
    pub(crate) order: Authentic<Order>,
    pub(crate) roster: Authentic<Roster>,
    pub(crate) release: Authentic<Release>,
    pub(crate) attestations: Vec<Authentic<Attestation>>,
}

impl SignedFlip {
    fn new() -> Self {
        let roster = ROOT.verify_roster(&signed(&roster()), NOW).unwrap();
        let others = sign(&attestation(1), &[&*OTHER_KEY]).unwrap().raw().to_vec();
        let lines = [signed(&attestation(0)), others];
        Self {
            order: ROOT.verify_order(&signed(&order()), NOW).unwrap(),
            release: ROOT.verify_release(&signed(&release()), &fleet(), NOW).unwrap(),
            attestations: verify_evidence(&assemble_evidence(&lines), roster.document()).unwrap(),
            roster,
        }
    }
}

pub(crate) fn key_alone() -> RoleKeys {
    RoleKeys { threshold: 1, keys: vec![KEY_PUBLIC.clone()] }
}

/// The public half of [`KEY`].
pub(crate) static KEY_PUBLIC: LazyLock<muster_model::PublicKey> = LazyLock::new(|| KEY.public().clone());

pub(crate) fn signed<T: Document>(document: &T) -> Vec<u8> {
    sign(document, &[&*KEY]).unwrap().raw().to_vec()
}

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

pub(crate) fn roster() -> Roster {
    let keys = [KEY_PUBLIC.clone(), OTHER_KEY.public().clone()];
    let member = |(name, attestation_key)| Member { name, attestation_key };
    let members = [host(0), host(1)].into_iter().zip(keys).map(member).collect();
    Roster::new(fleet(), RosterRevision(4), Policy::default(), members).unwrap()
}

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
    let roster =
        RosterRef { digest: Digest::of(&roster().to_bytes()), revision: RosterRevision(4), hosts: 2 };
    let flip = Flip {
        from: None,
        to: Digest::of(b"manifest"),
        mode: FlipMode::Strict,
        on_failure: OnFailure::Hold,
        max_lapsed: 1,
    };
    Order::new(fleet(), K, roster, flip, UnixTime(0)..UnixTime(1000)).unwrap()
}

pub(crate) fn attestation(index: u8) -> Attestation {
    let manifest = Digest::of(b"manifest");
    Attestation::new(
        fleet(),
        host(index),
        Purpose::Rollout { k: K, commitment: secret(index).commitment() },
        Digest::of(b"all nonces"),
        Comparable { manifest, measured: manifest, files: 12, bytes: 3456, uniform: None },
        HostFacts {
            epoch: Epoch(6),
            serving: Some(manifest),
            boot_id: BootId::new("0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").unwrap(),
            scope: Scope::Process,
            boot_gate: BootGate::Volatile,
            clock: ClockState::Steady,
            clock_error_ms: Some(3),
            fence_ms: Some(40),
            drain_ms: 0,
            assurance: Assurance::Sha256,
            agent_version: "0.1.0".to_owned(),
            agent_config: Digest::of(b"configuration"),
            measured_unix_ms: NOW,
            elapsed_ms: 5,
        },
    )
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
