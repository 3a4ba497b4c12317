//! A receipt as large as is wanted, with keys made for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use muster_model::{
    Assurance, Attestation, BootGate, BootId, ClockState, Comparable, Digest, Document as _, Epoch,
    FleetName, Flip, FlipMode, HostFacts, HostName, Member, OnFailure, Order, Policy, Purpose, Release,
    RoleKeys, RolloutId, Root, Roster, RosterRef, RosterRevision, Scope, Secret, SigningRole, UnixTime,
    Version,
};
use muster_trust::{KeyAlgorithm, Receipt, SigningKey, TrustRoot, assemble_evidence, sign, verify_evidence};

const NOW: UnixTime = UnixTime(1_000_000);
const K: RolloutId = RolloutId(1);

/// Writes `root.json` and `flip.receipt` of a flip of so many hosts into a folder, which may be there already.
pub(crate) fn make(folder: &Path, hosts: u32) -> anyhow::Result<()> {
    let key = SigningKey::generate(KeyAlgorithm::Ed25519)?;
    let role = || RoleKeys { threshold: 1, keys: vec![key.public().clone()] };
    let roles = [SigningRole::Root, SigningRole::Release, SigningRole::Operator];
    let roles = roles.into_iter().map(|it| (it, role())).collect();
    let root = sign(&Root::new(1, UnixTime(u64::MAX), roles)?, &[&key])?;
    let trust = TrustRoot::pin(root.raw())?;

    let (fleet, manifest) = (FleetName::new("bench")?, Digest::of(b"manifest"));
    let keys: Vec<SigningKey> =
        (0..hosts).map(|_| SigningKey::generate(KeyAlgorithm::Ed25519)).collect::<Result<_, _>>()?;
    let names: Vec<HostName> =
        (0..hosts).map(|index| HostName::new(&format!("host-{index:06}"))).collect::<Result<_, _>>()?;
    let member = |(name, key): (&HostName, &SigningKey)| Member {
        name: name.clone(),
        attestation_key: key.public().clone(),
    };
    let members = names.iter().zip(&keys).map(member).collect();
    let roster = Roster::new(fleet.clone(), RosterRevision(1), Policy::default(), members)?;
    let reference = RosterRef { digest: Digest::of(&roster.to_bytes()), revision: RosterRevision(1), hosts };
    let flip =
        Flip { from: None, to: manifest, mode: FlipMode::Strict, on_failure: OnFailure::Hold, max_lapsed: 0 };
    let order = Order::new(fleet.clone(), K, reference, flip, UnixTime(0)..UnixTime(2_000_000))?;
    let release = Release {
        fleet: fleet.clone(),
        version: Version::new("1.0.0")?,
        manifest,
        builder: None,
        source_revision: None,
        created_unix_ms: UnixTime(1),
        expires_unix_ms: None,
        flags: BTreeMap::new(),
    };

    let secrets: Vec<Secret> = names.iter().map(secret).collect();
    let attest = |(name, key): (&HostName, &SigningKey)| {
        Ok(sign(&attestation(&fleet, name, manifest)?, &[key])?.raw().to_vec())
    };
    let lines: Vec<Vec<u8>> = names.iter().zip(&keys).map(attest).collect::<anyhow::Result<_>>()?;
    let roster = trust.verify_roster(sign(&roster, &[&key])?.raw(), NOW)?;
    let receipt = Receipt {
        order: &trust.verify_order(sign(&order, &[&key])?.raw(), NOW)?,
        release: &trust.verify_release(sign(&release, &[&key])?.raw(), &fleet, NOW)?,
        attestations: &verify_evidence(&assemble_evidence(&lines), roster.document())?,
        secrets: &secrets.into_iter().map(Some).collect::<Vec<_>>(),
        roster: &roster,
    };
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    fs::write(folder.join("root.json"), root.raw()).context("write the root")?;
    fs::write(folder.join("flip.receipt"), receipt.to_bytes()).context("write the receipt")
}

/// Not secret at all: nothing depends on it here.
fn secret(host: &HostName) -> Secret {
    Secret::from_bytes(*Digest::of(host.as_str().as_bytes()).as_bytes())
}

fn attestation(fleet: &FleetName, host: &HostName, manifest: Digest) -> anyhow::Result<Attestation> {
    let boot_id = BootId::new("0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").map_err(anyhow::Error::msg)?;
    Ok(Attestation::new(
        fleet.clone(),
        host.clone(),
        Purpose::Rollout { k: K, commitment: secret(host).commitment() },
        Digest::of(b"all nonces"),
        Comparable { manifest, measured: manifest, files: 12_000, bytes: 345_678_901, uniform: None },
        HostFacts {
            epoch: Epoch(1),
            serving: Some(manifest),
            boot_id,
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
    ))
}
