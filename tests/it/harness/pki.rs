//! The fleet's own keys and certificates in a test's hands, to make odd ones with them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_model::{IdentityName, UnixTime};
use muster_mtls::{
    Address, Authority, Credentials, Identity, IssuedIdentity, PemBundle, Role, Usage, Validity,
};
use muster_trust::{SigningKey, TrustRoot};

use super::{Fleet, Host};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The time of this machine's clock.
pub(crate) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixTime(u64::try_from(since.as_millis()).unwrap())
}

/// Valid now, and for a day.
pub(crate) fn today() -> Validity {
    Validity::starting(now(), DAY)
}

/// Valid until a day ago.
pub(crate) fn long_ago() -> Validity {
    let now = now().0;
    let day_ms = u64::try_from(DAY.as_millis()).unwrap();
    Validity { not_before: UnixTime(now - 2 * day_ms), not_after: UnixTime(now - day_ms) }
}

/// A certificate with a new key. A coordinator's is one for this machine.
pub(crate) fn issue(authority: &Authority, role: Role, name: &str, validity: Validity) -> IssuedIdentity {
    let usage = match role {
        Role::Coordinator => Usage::Server { names: vec!["127.0.0.1".to_owned()] },
        Role::Agent | Role::Operator | Role::Pipeline | Role::Viewer => Usage::Client,
    };
    issue_for(authority, role, name, validity, &usage)
}

fn issue_for(
    authority: &Authority,
    role: Role,
    name: &str,
    validity: Validity,
    usage: &Usage,
) -> IssuedIdentity {
    let domain = authority.trust_domain().clone();
    let identity = Identity::new(domain, role, IdentityName::new(name).unwrap());
    authority.issue(&identity, validity, usage).unwrap()
}

impl Fleet {
    /// The authority that all its identities are from.
    pub(crate) fn authority(&self) -> Authority {
        Authority::load(&self.dir().join("ca")).unwrap()
    }

    /// New credentials of this fleet.
    pub(crate) fn credentials(&self, role: Role, name: &str) -> Credentials {
        let authority = self.authority();
        let issued = issue(&authority, role, name, today());
        let (certificate, key) = (issued.certificate.cert_pem.as_str(), issued.key_pem.as_str());
        Credentials::from_pem(PemBundle { certificate, key, ca: authority.cert_pem(), crl: None }).unwrap()
    }

    /// The root document that everybody pins.
    pub(crate) fn trust_root(&self) -> TrustRoot {
        TrustRoot::pin(&fs::read(self.dir().join("root.json")).unwrap()).unwrap()
    }

    /// The key that signs orders and rosters.
    pub(crate) fn operator_key(&self) -> SigningKey {
        SigningKey::read(&self.dir().join("operator/operator-signing.key")).unwrap()
    }

    /// The key that signs releases.
    pub(crate) fn release_key(&self) -> SigningKey {
        SigningKey::read(&self.dir().join("operator/release-signing.key")).unwrap()
    }

    /// Where the coordinator listens.
    pub(crate) fn address(&self) -> Address {
        self.context_table()["coordinator"].as_str().unwrap().parse().unwrap()
    }

    /// Another context: the operator's, with some settings changed.
    pub(crate) fn context_with(&self, name: &str, changes: &[(&str, &str)]) -> PathBuf {
        let mut table = self.context_table();
        for key in ["ca", "certificate", "key", "root", "operator_key", "release_key"] {
            let file = self.dir().join("operator").join(table[key].as_str().unwrap());
            table[key] = file.to_str().unwrap().into();
        }
        for (key, value) in changes {
            table.insert((*key).to_owned(), (*value).into());
        }
        let path = self.scratch().join(name);
        fs::write(&path, toml::to_string(&table).unwrap()).unwrap();
        path
    }

    /// The same for somebody else's certificate, which is written beside it.
    pub(crate) fn context_of(&self, name: &str, issued: &IssuedIdentity) -> PathBuf {
        let (certificate, key) = (self.scratch().join("other.pem"), self.scratch().join("other.key"));
        write_identity(&certificate, &key, issued);
        let paths = [certificate.to_str().unwrap(), key.to_str().unwrap()];
        self.context_with(name, &[("certificate", paths[0]), ("key", paths[1])])
    }

    /// Gives the coordinator another address, or several, from its next start on: agents and operators are told.
    pub(crate) fn move_coordinator(&self, port: u16, agents: &str, operators: &str) {
        let names = vec![agents.to_owned(), operators.to_owned()];
        let usage = Usage::Server { names };
        let issued = issue_for(&self.authority(), Role::Coordinator, "coordinator", today(), &usage);
        let folder = self.dir().join("coordinator");
        write_identity(&folder.join("coordinator.pem"), &folder.join("coordinator.key"), &issued);
        configure(&folder.join("coordinator.toml"), "listen", format!("0.0.0.0:{port}"));
        configure(&self.context(), "coordinator", format!("{operators}:{port}"));
        for host in self.hosts() {
            configure(&host.folder().join("agent.toml"), "coordinator", format!("{agents}:{port}"));
        }
    }

    fn context_table(&self) -> toml::Table {
        fs::read_to_string(self.context()).unwrap().parse().unwrap()
    }
}

impl Host {
    /// Gives the host another certificate, from its next start on.
    pub(crate) fn become_another(&self, issued: &IssuedIdentity) {
        write_identity(&self.folder().join("agent.pem"), &self.folder().join("agent.key"), issued);
    }
}

/// Sets one value in a file of settings.
pub(crate) fn configure(file: &Path, key: &str, value: impl Into<toml::Value>) {
    let mut table: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
    table.insert(key.to_owned(), value.into());
    fs::write(file, toml::to_string(&table).unwrap()).unwrap();
}

fn write_identity(certificate: &Path, key: &Path, issued: &IssuedIdentity) {
    fs::write(certificate, &issued.certificate.cert_pem).unwrap();
    fs::write(key, issued.key_pem.as_bytes()).unwrap();
    fs::set_permissions(key, Permissions::from_mode(0o600)).unwrap();
}
