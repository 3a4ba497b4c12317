//! A receipt as large as is wanted, with keys made for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use muster_model::{
    Digest, Epoch, FleetName, HostName, Release, RoleKeys, RolloutId, Root, RosterRevision, Secret,
    SigningRole, UnixTime, Version,
};
use muster_signed::{Host, Plan, SignedFlip};
use muster_trust::{KeyAlgorithm, Receipt, SigningKey, TrustRoot, sign};

/// Writes `root.json` and `flip.receipt` of a flip of so many hosts into a folder, which may be there already.
pub(crate) fn make(folder: &Path, hosts: u32) -> anyhow::Result<()> {
    let key = SigningKey::generate(KeyAlgorithm::Ed25519)?;
    let role = || RoleKeys { threshold: 1, keys: vec![key.public().clone()] };
    let roles = [SigningRole::Root, SigningRole::Release, SigningRole::Operator];
    let roles = roles.into_iter().map(|it| (it, role())).collect();
    let root = sign(&Root::new(1, UnixTime(u64::MAX), roles)?, &[&key])?;
    let trust = TrustRoot::pin(root.raw())?;

    let keys: Vec<SigningKey> =
        (0..hosts).map(|_| SigningKey::generate(KeyAlgorithm::Ed25519)).collect::<Result<_, _>>()?;
    let host = |(index, key): (usize, &SigningKey)| {
        let name = HostName::new(&format!("host-{index:06}"))?;
        // Not secret at all: nothing depends on it here.
        let secret = Secret::from_bytes(*Digest::of(name.as_str().as_bytes()).as_bytes());
        Ok(Host { name, key: key.public().clone(), secret })
    };
    let plan = Plan {
        release: release()?,
        k: RolloutId(1),
        revision: RosterRevision(1),
        epoch: Epoch(1),
        size: (12_000, 345_678_901),
        max_lapsed: 0,
        order_ends: UnixTime(2_000_000),
        hosts: keys.iter().enumerate().map(host).collect::<anyhow::Result<_>>()?,
    };
    let SignedFlip { order, roster, release, attestations } =
        plan.sign(&trust, &key, &keys.iter().collect::<Vec<_>>());
    let secrets: Vec<Option<Secret>> = plan.hosts.iter().map(|host| Some(host.secret)).collect();
    let receipt = Receipt {
        order: &order,
        release: &release,
        attestations: &attestations,
        withdrawals: &[],
        secrets: &secrets,
        roster: &roster,
    };
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    fs::write(folder.join("root.json"), root.raw()).context("write the root")?;
    fs::write(folder.join("flip.receipt"), receipt.to_bytes()).context("write the receipt")
}

fn release() -> anyhow::Result<Release> {
    Ok(Release {
        fleet: FleetName::new("bench")?,
        version: Version::new("1.0.0")?,
        manifest: Digest::of(b"manifest"),
        builder: None,
        source_revision: None,
        created_unix_ms: UnixTime(1),
        expires_unix_ms: None,
        flags: BTreeMap::new(),
    })
}
