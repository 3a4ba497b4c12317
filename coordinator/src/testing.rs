//! A coordinator's folder with real credentials and a real root, for the tests of this crate.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use muster_daemon::{Machine, Shutdown, unix_time};
use muster_model::{
    Digest, FleetName, HostName, IdentityName, Member, Policy, RoleKeys, Root, Roster, RosterRevision,
    SigningRole, Verified,
};
use muster_mtls::{Authority, CredentialPaths, Identity, Role, TrustDomain, Usage, Validity};
use muster_trust::{KeyAlgorithm, SigningKey, sign};
use tempfile::TempDir;

use crate::CoordinatorConfig;
use crate::coordinator::{Drivers, Shared};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The folder, and the key that signs for everybody.
pub(crate) struct Place {
    folder: TempDir,
    key: SigningKey,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
        let authority = Authority::create(TrustDomain::new("test").unwrap(), unix_time()).unwrap();
        let name = IdentityName::new("coordinator").unwrap();
        let identity = Identity::new(authority.trust_domain().clone(), Role::Coordinator, name);
        let usage = Usage::Server { names: vec!["127.0.0.1".to_owned()] };
        let issued = authority.issue(&identity, Validity::starting(unix_time(), DAY), &usage).unwrap();
        issued.save(&CredentialPaths::in_dir(folder.path()), &authority).unwrap();
        let keys = || RoleKeys { threshold: 1, keys: vec![key.public().clone()] };
        let roles = [SigningRole::Root, SigningRole::Operator, SigningRole::Release].map(|it| (it, keys()));
        let root = Root::new(1, unix_time().after(DAY), BTreeMap::from(roles)).unwrap();
        fs::write(folder.path().join("root.json"), sign(&root, &[&key]).unwrap().raw()).unwrap();
        Self { folder, key }
    }

    pub(crate) fn config(&self) -> CoordinatorConfig {
        let text = "listen = '127.0.0.1:0'\nstate = 'state'\ncertificate = 'certificate.pem'\n\
                    key = 'key.pem'\nca = 'ca.pem'\nroot = 'root.json'\n";
        let file = self.folder.path().join("coordinator.toml");
        fs::write(&file, text).unwrap();
        CoordinatorConfig::load(Some(&file)).unwrap()
    }

    /// Opens the coordinator. What its drivers would do is done once somebody runs them.
    pub(crate) fn open(&self) -> (std::sync::Arc<Shared>, Drivers) {
        Shared::open(&self.config(), Machine::real(), Shutdown::new().1).unwrap()
    }

    /// A first roster of so many hosts, with the digests of its payload and of its envelope, which is kept.
    pub(crate) fn first_roster(&self, shared: &Shared, hosts: usize) -> (Verified<Roster>, Digest, Digest) {
        let members = (1..=hosts).map(|number| Member {
            name: HostName::new(&format!("host-{number}")).unwrap(),
            attestation_key: SigningKey::generate(KeyAlgorithm::Ed25519).unwrap().public().clone(),
        });
        let fleet = FleetName::new("smars").unwrap();
        let roster = Roster::new(fleet, RosterRevision(1), Policy::default(), members.collect()).unwrap();
        let envelope = sign(&roster, &[&self.key]).unwrap();
        shared.documents.put(envelope.digest(), envelope.raw()).unwrap();
        let verified = shared.root().verify_roster(envelope.raw(), unix_time()).unwrap();
        let digest = verified.payload_digest();
        (verified.into_document(), digest, envelope.digest())
    }
}
