//! A small fleet with all its documents, signed by keys that are the same in every run.

#![expect(clippy::disallowed_methods, reason = "tests make verified documents of their own")]

use std::collections::BTreeMap;

use muster_model::{
    Assurance, Attestation, BootGate, BootId, ClockState, Comparable, Digest, Document, Epoch, FleetName,
    Flip, FlipMode, HostFacts, HostName, Member, OnFailure, Order, Policy, Purpose, Release, RoleKeys,
    RolloutId, Root, Roster, RosterRef, RosterRevision, Scope, Secret, SigningRole, UnixTime, Verified,
    Version, Withdrawal, Withdrawn,
};

use crate::{Authentic, Envelope, Signer, SigningKey, TrustRoot, assemble_evidence, sign, verify_evidence};

pub(crate) const NOW: UnixTime = UnixTime(1_000_000);
pub(crate) const ROOT_EXPIRES: UnixTime = UnixTime(2_000_000);
pub(crate) const ROLLOUT: RolloutId = RolloutId(7);
pub(crate) const HOSTS: u8 = 3;

const ROOT_KEY: u8 = 100;
const RELEASE_KEY: u8 = 101;
const OPERATOR_KEYS: [u8; 3] = [102, 103, 104];

/// The Ed25519 key of which every byte of the seed is `byte`, by way of RFC 8410's PKCS#8.
pub(crate) fn key(byte: u8) -> SigningKey {
    let mut der = hex_bytes("302e020100300506032b657004220420");
    der.extend([byte; 32]);
    SigningKey::from_pkcs8(&der).expect("any 32 bytes are an Ed25519 seed")
}

pub(crate) fn hex_bytes(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits");
    (0..text.len()).step_by(2).map(digits).collect()
}

pub(crate) fn role_keys(threshold: u32, keys: &[u8]) -> RoleKeys {
    RoleKeys { threshold, keys: keys.iter().map(|byte| key(*byte).public().clone()).collect() }
}

pub(crate) fn signed<T: Document>(document: &T, keys: &[u8]) -> Envelope {
    let keys: Vec<SigningKey> = keys.iter().map(|byte| key(*byte)).collect();
    let signers: Vec<&dyn Signer> = keys.iter().map(|key| key as &dyn Signer).collect();
    sign(document, &signers).expect("keys in memory sign")
}

/// A root with one root and one release key, of which two of three operators must sign.
pub(crate) fn root(version: u64, root_keys: RoleKeys) -> Root {
    let roles = BTreeMap::from([
        (SigningRole::Root, root_keys),
        (SigningRole::Release, role_keys(1, &[RELEASE_KEY])),
        (SigningRole::Operator, role_keys(2, &OPERATOR_KEYS)),
    ]);
    Root::new(version, ROOT_EXPIRES, roles).expect("a valid root")
}

pub(crate) fn trust_root() -> TrustRoot {
    TrustRoot::pin(signed(&root(1, role_keys(1, &[ROOT_KEY])), &[ROOT_KEY]).raw()).expect("a valid root")
}

pub(crate) fn fleet_name() -> FleetName {
    FleetName::new("smars").expect("a name")
}

pub(crate) fn host_name(index: u8) -> HostName {
    HostName::new(&format!("host-{index}")).expect("a name")
}

pub(crate) fn manifest() -> Digest {
    Digest::of(b"manifest")
}

pub(crate) fn challenge() -> Digest {
    Digest::of(b"all nonces")
}

pub(crate) fn secret(index: u8) -> Secret {
    Secret::from_bytes([index; 32])
}

/// The roster of `hosts` hosts: host-1, host-2 and so on, each with the key of its number.
pub(crate) fn roster(fleet: &FleetName, hosts: u8) -> Roster {
    let members = (1..=hosts)
        .map(|i| Member { name: host_name(i), attestation_key: key(i).public().clone() })
        .collect();
    Roster::new(fleet.clone(), RosterRevision(4), Policy::default(), members).expect("a valid roster")
}

pub(crate) fn release(fleet: &FleetName, manifest: Digest) -> Release {
    Release {
        fleet: fleet.clone(),
        version: Version::new("1.2.0").expect("a version"),
        manifest,
        builder: None,
        source_revision: None,
        created_unix_ms: UnixTime(1),
        expires_unix_ms: None,
        flags: BTreeMap::new(),
    }
}

pub(crate) fn order(fleet: &FleetName, roster: RosterRef) -> Order {
    let flip = Flip {
        from: None,
        to: manifest(),
        mode: FlipMode::Strict,
        on_failure: OnFailure::Hold,
        max_lapsed: 0,
    };
    Order::new(fleet.clone(), ROLLOUT, roster, flip, UnixTime(0)..UnixTime(1000)).expect("a valid order")
}

pub(crate) fn attestation(index: u8) -> Attestation {
    let manifest = manifest();
    Attestation::new(
        fleet_name(),
        host_name(index),
        Purpose::Rollout { k: ROLLOUT, commitment: secret(index).commitment() },
        challenge(),
        Comparable { manifest, measured: manifest, files: 12, bytes: 3456, uniform: None },
        HostFacts {
            epoch: Epoch(6),
            serving: None,
            boot_id: BootId::new("0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").expect("a boot id"),
            scope: Scope::Process,
            boot_gate: BootGate::Volatile,
            clock: ClockState::Steady,
            clock_error_ms: None,
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

pub(crate) fn signed_attestation(index: u8) -> Envelope {
    signed(&attestation(index), &[index])
}

/// The word of a host, of revision `revision`.
pub(crate) fn withdrawal(index: u8, revision: u64) -> Withdrawal {
    let boot_id = BootId::new("0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").expect("a boot id");
    Withdrawal::new(fleet_name(), host_name(index), RosterRevision(revision), RolloutId(5), boot_id, NOW)
}

/// The entry of a host that is set aside since revision 3.
pub(crate) fn aside(index: u8, fenced: bool) -> Withdrawn {
    Withdrawn {
        name: host_name(index),
        attestation_key: key(index).public().clone(),
        reason: "a fan".to_owned(),
        since_unix_ms: NOW,
        since: Some(RosterRevision(3)),
        fenced,
    }
}

/// The fixture's roster with host-8 parked and host-9 retired, both on their word.
pub(crate) fn roster_with_aside() -> Roster {
    let roster = roster(&fleet_name(), HOSTS);
    roster.setting_aside(vec![aside(8, false)], vec![aside(9, false)]).expect("valid")
}

pub(crate) fn verified_roster() -> Verified<Roster> {
    Verified::assert(roster(&fleet_name(), HOSTS))
}

/// The parts of one flip; a test changes one of them and signs it again.
pub(crate) struct FlipParts {
    pub(crate) roster: Roster,
    pub(crate) release: Release,
    pub(crate) order: Order,
    pub(crate) attestations: Vec<Attestation>,
    pub(crate) withdrawals: Vec<Withdrawal>,
    pub(crate) secrets: Vec<Option<Secret>>,
}

/// The signed documents of one flip.
pub(crate) struct SignedFlip {
    pub(crate) roster: Authentic<Roster>,
    pub(crate) release: Authentic<Release>,
    pub(crate) order: Authentic<Order>,
    pub(crate) attestations: Vec<Authentic<Attestation>>,
    pub(crate) withdrawals: Vec<Authentic<Withdrawal>>,
    pub(crate) secrets: Vec<Option<Secret>>,
}

impl FlipParts {
    pub(crate) fn new() -> Self {
        Self::under(roster(&fleet_name(), HOSTS), Vec::new())
    }

    /// The same with a host that is parked and one that has retired.
    pub(crate) fn with_aside() -> Self {
        Self::under(roster_with_aside(), vec![withdrawal(8, 3), withdrawal(9, 4)])
    }

    fn under(roster: Roster, withdrawals: Vec<Withdrawal>) -> Self {
        let reference = RosterRef {
            digest: Digest::of(&roster.to_bytes()),
            revision: RosterRevision(4),
            hosts: HOSTS.into(),
        };
        Self {
            release: release(&fleet_name(), manifest()),
            order: order(&fleet_name(), reference),
            attestations: (1..=HOSTS).map(attestation).collect(),
            secrets: (1..=HOSTS).map(|i| Some(secret(i))).collect(),
            withdrawals,
            roster,
        }
    }

    /// Signs everything with the keys that may, whatever it says.
    pub(crate) fn sign(&self) -> SignedFlip {
        let root = trust_root();
        let operators = &OPERATOR_KEYS[..2];
        let order = signed(&self.order, operators);
        let roster = root.verify_roster(signed(&self.roster, operators).raw(), NOW).expect("a signed roster");
        let release = signed(&self.release, &[RELEASE_KEY]);
        let attested =
            self.attestations.iter().zip(1..).map(|(attestation, key)| signed(attestation, &[key]));
        let withdrawn = self.withdrawals.iter().zip(8..).map(|(withdrawal, key)| signed(withdrawal, &[key]));
        let lines: Vec<_> =
            attested.chain(withdrawn).map(|envelope| std::sync::Arc::clone(envelope.raw())).collect();
        let evidence = verify_evidence(&assemble_evidence(&lines), roster.document()).expect("evidence");
        SignedFlip {
            release: root.verify_release(release.raw(), &self.release.fleet, NOW).expect("a signed release"),
            order: root.verify_order(order.raw(), NOW).expect("a signed order"),
            attestations: evidence.attestations,
            withdrawals: evidence.withdrawals,
            secrets: self.secrets.clone(),
            roster,
        }
    }
}
