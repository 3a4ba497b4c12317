//! Everything that is signed: the same in every run, so that a trace is.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_artifact::{BlobStore, Durability, OutsideLinks, PackOptions, Progress, pack};
use muster_model::*;
use muster_mtls::{
    Authority, CredentialPaths, Credentials, Identity, IssuedIdentity, Role, TrustDomain, Usage, Validity,
};
use muster_trust::{SigningKey, sign};

use crate::machine::DAWN;

const HOUR: Duration = Duration::from_secs(3600);

/// The lease and the bound on a fence, in milliseconds.
const LEASE_MS: u64 = 2_000;
const FENCE_MS: u64 = 500;

/// Whose key is which.
const ROOT_KEY: u8 = 200;
const RELEASE_KEY: u8 = 201;
const OPERATOR_KEY: u8 = 202;

pub(crate) fn fleet() -> FleetName {
    FleetName::new("smars").unwrap()
}

/// The name of a host, by its number from 1 on.
pub(crate) fn host(number: usize) -> HostName {
    HostName::new(&format!("host-{number}")).unwrap()
}

pub(crate) fn timing() -> Timing {
    Timing::with_lease(LEASE_MS, FENCE_MS)
}

/// The Ed25519 key of which every byte of the seed is `byte`, by way of RFC 8410's PKCS#8.
fn key(byte: u8) -> SigningKey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend([byte; 32]);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    SigningKey::read(&path).unwrap()
}

/// The key with which a host attests, by the host's number.
pub(crate) fn attestation_key(number: usize) -> SigningKey {
    key(u8::try_from(number).unwrap())
}

/// The root document's envelope.
pub(crate) fn root() -> Vec<u8> {
    let roles = [
        (SigningRole::Root, ROOT_KEY),
        (SigningRole::Release, RELEASE_KEY),
        (SigningRole::Operator, OPERATOR_KEY),
    ];
    let role_keys = |byte| RoleKeys { threshold: 1, keys: vec![key(byte).public().clone()] };
    let roles = roles.map(|(role, byte)| (role, role_keys(byte)));
    let root = Root::new(1, DAWN.after(HOUR * 24), BTreeMap::from(roles)).unwrap();
    sign(&root, &[&key(ROOT_KEY)]).unwrap().raw().to_vec()
}

/// The first roster's envelope.
pub(crate) fn roster(hosts: usize) -> Vec<u8> {
    let member =
        |number| Member { name: host(number), attestation_key: attestation_key(number).public().clone() };
    let policy = Policy { boot_gate: BootGatePolicy::Optional, clock: ClockPolicy::Any, timing: timing() };
    let members = (1..=hosts).map(member).collect();
    let roster = Roster::new(fleet(), RosterRevision(1), policy, members).unwrap();
    sign(&roster, &[&key(OPERATOR_KEY)]).unwrap().raw().to_vec()
}

/// The order to flip, for the roster in force.
pub(crate) fn order(
    k: RolloutId,
    roster: RosterRef,
    (from, to): (Option<Digest>, Digest),
    now: UnixTime,
) -> Vec<u8> {
    let flip = Flip {
        from,
        to,
        mode: FlipMode::Strict,
        on_failure: OnFailure::Hold,
        max_lapsed: Order::MAX_LAPSED_DEFAULT,
    };
    let order = Order::new(fleet(), k, roster, flip, now..now.after(HOUR)).unwrap();
    sign(&order, &[&key(OPERATOR_KEY)]).unwrap().raw().to_vec()
}

/// A release: its manifest, its envelope and its files.
pub(crate) struct Release {
    pub(crate) manifest: Manifest,
    pub(crate) envelope: Vec<u8>,
    files: Vec<Vec<u8>>,
}

impl Release {
    /// A small release of a program and its data.
    pub(crate) fn new(version: &str) -> Self {
        let source = tempfile::tempdir().unwrap();
        let files =
            [("server", format!("program {version}")), ("data", format!("data {version}").repeat(500))];
        for (name, content) in &files {
            let path = source.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let jobs = NonZeroUsize::MIN;
        let options = PackOptions { rules: TreeRules::default(), outside_links: OutsideLinks::Warn, jobs };
        let manifest = pack(source.path(), &options, &Progress::default()).unwrap().manifest;
        let release = muster_model::Release {
            fleet: fleet(),
            version: Version::new(version).unwrap(),
            manifest: manifest.digest(),
            builder: None,
            source_revision: None,
            created_unix_ms: DAWN,
            expires_unix_ms: None,
            flags: BTreeMap::new(),
        };
        let envelope = sign(&release, &[&key(RELEASE_KEY)]).unwrap().raw().to_vec();
        Self { manifest, envelope, files: files.map(|(_, content)| content.into_bytes()).to_vec() }
    }

    /// Puts its blobs into a coordinator's store, as an upload would: uploads wait for whoever sends, which takes a thread.
    pub(crate) fn store(&self, blobs: &BlobStore) {
        for bytes in self.files.iter().chain([&self.manifest.to_bytes()]) {
            let mut writer = blobs.writer(Digest::of(bytes), bytes.len() as u64, Durability::Each).unwrap();
            writer.write(bytes).unwrap();
            writer.finish().unwrap();
        }
    }
}

/// The authority of all certificates. TLS goes by the real clock, so they are new in every process; nothing that is decided
/// depends on them.
fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY
        .get_or_init(|| Authority::create(TrustDomain::new("fleet.example").unwrap(), real_time()).unwrap())
}

fn real_time() -> UnixTime {
    UnixTime(0).after(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

fn issue(role: Role, name: &str) -> IssuedIdentity {
    let usage = match role {
        Role::Coordinator => Usage::Server { names: vec![name.to_owned()] },
        Role::Agent | Role::Operator | Role::Pipeline | Role::Viewer => Usage::Client,
    };
    let identity = Identity::new(authority().trust_domain().clone(), role, IdentityName::new(name).unwrap());
    authority().issue(&identity, Validity::starting(real_time(), HOUR * 24), &usage).unwrap()
}

/// Writes an identity's certificate and key into `folder`.
pub(crate) fn write_credentials(folder: &Path, role: Role, name: &str) {
    issue(role, name).save(&CredentialPaths::in_dir(folder), authority()).unwrap();
}

/// An identity's certificate and key.
pub(crate) fn credentials(role: Role, name: &str) -> Credentials {
    let folder = tempfile::tempdir().unwrap();
    write_credentials(folder.path(), role, name);
    Credentials::load(&CredentialPaths::in_dir(folder.path())).unwrap()
}
