//! The folder of a fleet's trust: what `muster init`, `muster host issue` and `muster operator add` write, and what the daemons then read.
//!
//! ```text
//! DIR/root.json                  the root document, signed by keys/root.key
//! DIR/audit.pub                  the public key of the coordinator's audit log
//! DIR/keys/root.key
//! DIR/ca/{ca.pem,ca.key}
//! DIR/operator/{context.toml,ca.pem,root.json,operator.pem,operator.key,operator-signing.key,release-signing.key}
//! DIR/coordinator/{coordinator.toml,ca.pem,root.json,coordinator.pem,coordinator.key,audit.key,issuer/{ca.pem,ca.key}}
//! DIR/people/NAME/{context.toml,ca.pem,root.json,certificate.pem,certificate.key}
//! DIR/hosts/NAME/{agent.toml,guard.toml,ca.pem,root.json,agent.pem,agent.key,attestation.key,attestation.pub}
//! ```
//!
//! Folders have mode 0700, keys 0600. Everything is first written aside and then renamed, so that a command that was
//! killed leaves no half folder under these names.

mod host;
mod person;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_model::{FleetName, IdentityName, PublicKey, RoleKeys, Root, SigningRole, UnixTime};
use muster_mtls::{
    Address, Authority, CredentialPaths, Identity, Role, TrustDomain, Usage, Validity,
    create_private_directory,
};
use muster_trust::{KeyAlgorithm, SigningKey, sign};
use serde::Serialize;

use crate::context::{CONTEXT_FILE, ContextFile};
use crate::error::CliError;
use crate::files::{Existing, read_bounded, write};

pub(crate) use host::{Driver, HostBundle, HostOptions, hosts, issue_host};
pub(crate) use person::{PersonOptions, add_person};

/// Two years: long enough for a calendar, short enough that somebody still knows how it was made.
pub(crate) const ROOT_LIFETIME: Duration = Duration::from_secs(2 * 365 * 24 * 3600);

/// The certificates of operator and coordinator. Offline bundles are not renewed by themselves.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// The files of each folder, by the names that the daemons' configuration uses.
pub(crate) const ROOT_FILE: &str = "root.json";
const AUDIT_PUBLIC_FILE: &str = "audit.pub";
const AUDIT_KEY_FILE: &str = "audit.key";
const CA_FILE: &str = "ca.pem";
const CA_FOLDER: &str = "ca";
const ISSUER_FOLDER: &str = "issuer";
const KEYS_FOLDER: &str = "keys";
const HOSTS_FOLDER: &str = "hosts";
const PEOPLE_FOLDER: &str = "people";
const OPERATOR_FOLDER: &str = "operator";
const COORDINATOR_FOLDER: &str = "coordinator";

const MODE_PUBLIC: u32 = 0o644;

/// No public key in its text form comes near this, in bytes.
const PUBLIC_KEY_BYTES_MAX: u64 = 64 << 10;

/// What `muster init` is told.
#[derive(Debug, Clone)]
pub(crate) struct InitOptions {
    /// The trust domain of all identities.
    pub(crate) trust_domain: TrustDomain,
    /// Where hosts and operators reach the coordinator.
    pub(crate) coordinator: Address,
    /// Further names and addresses for the coordinator's certificate.
    pub(crate) coordinator_names: Vec<String>,
    /// The port for hosts that have no certificate yet.
    pub(crate) enrolment_port: u16,
    /// The first operator.
    pub(crate) operator: IdentityName,
    /// The fleet that the context names, if any.
    pub(crate) fleet: Option<FleetName>,
    /// The time now.
    pub(crate) now: UnixTime,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Initialised {
    /// The operator's context file.
    pub(crate) context: PathBuf,
    /// The coordinator's configuration file.
    pub(crate) coordinator: PathBuf,
    /// Until when the root document holds.
    pub(crate) root_expires: UnixTime,
}

/// The coordinator's configuration file. Paths are relative to its folder.
#[derive(Debug, Serialize)]
struct CoordinatorFile {
    listen: String,
    state: &'static str,
    certificate: &'static str,
    key: &'static str,
    ca: &'static str,
    issuer: &'static str,
    enrol_listen: String,
    root: &'static str,
    audit_key: &'static str,
}

/// Makes root document, authority, first operator and coordinator in `dir`, which must be empty or not exist.
///
/// Every threshold is 1: solo mode.
pub(crate) fn init(dir: &Path, options: &InitOptions) -> Result<Initialised, CliError> {
    create_private_directory(dir).map_err(CliError::tls(format!("make the folder {}", dir.display())))?;
    let is_empty = std::fs::read_dir(dir).map_err(CliError::file("read", dir))?.next().is_none();
    if !is_empty {
        return Err(CliError::Usage {
            what: format!("{} is not empty; nothing was changed", dir.display()),
            next: "name a folder that does not exist yet".to_owned(),
        });
    }
    let staging = private_staging(dir)?;
    let root_expires = write_all(staging.path(), options)?;
    // The operator's folder comes last: whoever finds a context finds all the rest.
    for name in [KEYS_FOLDER, CA_FOLDER, ROOT_FILE, AUDIT_PUBLIC_FILE, COORDINATOR_FOLDER, OPERATOR_FOLDER] {
        let path = dir.join(name);
        std::fs::rename(staging.path().join(name), &path).map_err(CliError::file("create", path))?;
    }
    sync_folder(dir)?;
    Ok(Initialised {
        context: dir.join(OPERATOR_FOLDER).join(CONTEXT_FILE),
        coordinator: dir.join(COORDINATOR_FOLDER).join("coordinator.toml"),
        root_expires,
    })
}

fn write_all(dir: &Path, options: &InitOptions) -> Result<UnixTime, CliError> {
    let (keys, operator) = (dir.join(KEYS_FOLDER), dir.join(OPERATOR_FOLDER));
    for folder in [&keys, &operator] {
        make_folder(folder)?;
    }
    let root_key = new_key(&keys.join("root.key"))?;
    let operator_key = new_key(&operator.join("operator-signing.key"))?;
    let release_key = new_key(&operator.join("release-signing.key"))?;
    let root_expires = options.now.after(ROOT_LIFETIME);
    let root = solo_root(&root_key, (&options.operator, &operator_key), &release_key, root_expires)?;
    write(&dir.join(ROOT_FILE), &root, MODE_PUBLIC, Existing::Keep)?;

    let authority = Authority::create(options.trust_domain.clone(), options.now)
        .map_err(CliError::tls("make the certificate authority"))?;
    authority.save(&dir.join(CA_FOLDER)).map_err(CliError::tls("write the certificate authority"))?;
    // Its key stays offline; what hosts and people are given is from the one below it.
    let issuing = authority
        .create_issuing(options.now)
        .map_err(CliError::tls("make the authority that issues certificates"))?;
    let audit_key = write_coordinator(&dir.join(COORDINATOR_FOLDER), &root, &issuing, options)?;
    write(&dir.join(AUDIT_PUBLIC_FILE), format!("{audit_key}\n").as_bytes(), MODE_PUBLIC, Existing::Keep)?;
    write_operator(&operator, (&root, audit_key), &issuing, options)?;
    Ok(root_expires)
}

/// One key for each role and a threshold of 1.
fn solo_root(
    root: &SigningKey,
    (name, operator): (&IdentityName, &SigningKey),
    release: &SigningKey,
    expires: UnixTime,
) -> Result<Vec<u8>, CliError> {
    let one = |key: &SigningKey| RoleKeys { threshold: 1, keys: vec![key.public().clone()] };
    let roles = BTreeMap::from([
        (SigningRole::Root, one(root)),
        (SigningRole::Operator, one(operator)),
        (SigningRole::Release, one(release)),
    ]);
    // Names of operators have no spaces, so that the others cannot be taken.
    let names =
        [(root, "root key".to_owned()), (release, "release key".to_owned()), (operator, name.to_string())];
    let names = names.into_iter().map(|(key, name)| (key.public().clone(), name)).collect();
    let document = Root::new(1, expires, roles)
        .and_then(|root| root.with_names(names))
        .map_err(|source| CliError::Document { doing: "make the root document".to_owned(), source })?;
    let envelope = sign(&document, &[root]).map_err(CliError::trust("sign the root document"))?;
    Ok(envelope.raw().to_vec())
}

fn write_operator(
    folder: &Path,
    (root, audit_key): (&[u8], PublicKey),
    authority: &Authority,
    options: &InitOptions,
) -> Result<(), CliError> {
    let (certificate, key) = ("operator.pem", "operator.key");
    let who = Who { role: Role::Operator, name: options.operator.clone(), usage: Usage::Client };
    issue(folder, certificate, key, authority, &who, options.now, CERTIFICATE_LIFETIME)?;
    write(&folder.join(ROOT_FILE), root, MODE_PUBLIC, Existing::Keep)?;
    let context = ContextFile {
        coordinator: options.coordinator.to_string(),
        ca: CA_FILE.into(),
        certificate: certificate.into(),
        key: key.into(),
        root: ROOT_FILE.into(),
        operator_key: Some("operator-signing.key".into()),
        release_key: Some("release-signing.key".into()),
        audit_key: Some(audit_key),
        fleet: options.fleet.clone(),
    };
    write_toml(
        &folder.join(CONTEXT_FILE),
        "The context of `muster`: use it with --context or MUSTER_CONTEXT.",
        &context,
    )
}

fn write_coordinator(
    folder: &Path,
    root: &[u8],
    authority: &Authority,
    options: &InitOptions,
) -> Result<PublicKey, CliError> {
    make_folder(folder)?;
    let (certificate, key) = ("coordinator.pem", "coordinator.key");
    let mut names = vec![options.coordinator.host()];
    names.extend(options.coordinator_names.iter().cloned());
    names.sort_unstable();
    names.dedup();
    let name = IdentityName::new("coordinator").expect("the word is a valid name");
    let who = Who { role: Role::Coordinator, name, usage: Usage::Server { names } };
    issue(folder, certificate, key, authority, &who, options.now, CERTIFICATE_LIFETIME)?;
    write(&folder.join(ROOT_FILE), root, MODE_PUBLIC, Existing::Keep)?;
    authority
        .save(&folder.join(ISSUER_FOLDER))
        .map_err(CliError::tls("write the authority that issues certificates"))?;
    let config = CoordinatorFile {
        listen: listen_address(&options.coordinator, options.coordinator.port()),
        state: "state",
        certificate,
        key,
        ca: CA_FILE,
        issuer: ISSUER_FOLDER,
        enrol_listen: listen_address(&options.coordinator, options.enrolment_port),
        root: ROOT_FILE,
        audit_key: AUDIT_KEY_FILE,
    };
    let audit_key = new_key(&folder.join(AUDIT_KEY_FILE))?;
    write_toml(&folder.join("coordinator.toml"), "For `muster-coordinator run --config`.", &config)?;
    Ok(audit_key.public().clone())
}

/// An IP address is listened on as it is; a name may stand for any of the machine's addresses.
fn listen_address(coordinator: &Address, port: u16) -> String {
    match coordinator.host().parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("0.0.0.0:{port}"),
    }
}

/// The authority that issues what this folder's owner issues: the coordinator's folder may be on its own machine by now, and
/// the offline authority can issue as well.
fn issuing_authority(dir: &Path) -> Result<Authority, CliError> {
    let issuer = dir.join(COORDINATOR_FOLDER).join(ISSUER_FOLDER);
    Authority::load(&if issuer.is_dir() { issuer } else { dir.join(CA_FOLDER) })
        .map_err(CliError::tls(format!("read the certificate authority in {}", dir.display())))
}

/// Issues a certificate with its key into a new folder, and says until when it holds.
pub(crate) fn issue_certificate(
    dir: &Path,
    folder: &Path,
    (role, name, names): (Role, IdentityName, Vec<String>),
    now: UnixTime,
    lifetime: Duration,
) -> Result<UnixTime, CliError> {
    let authority = issuing_authority(dir)?;
    if folder.symlink_metadata().is_ok() {
        return Err(CliError::Usage {
            what: format!("{} is there already; nothing was changed", folder.display()),
            next: "name a folder that does not exist yet".to_owned(),
        });
    }
    make_folder(folder)?;
    let usage = if names.is_empty() { Usage::Client } else { Usage::Server { names } };
    let who = Who { role, name, usage };
    let validity = issue(folder, "certificate.pem", "key.pem", &authority, &who, now, lifetime)?;
    Ok(validity.not_after)
}

/// The public key of the audit log, if the folder knows it.
fn audit_key(dir: &Path) -> Result<Option<PublicKey>, CliError> {
    let path = dir.join(AUDIT_PUBLIC_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_bounded(&path, PUBLIC_KEY_BYTES_MAX)?;
    let text = String::from_utf8_lossy(&bytes);
    let wrong = |error: muster_model::PublicKeyError| CliError::Content { path, reason: error.to_string() };
    text.trim_end().parse().map(Some).map_err(wrong)
}

/// For whom a certificate is.
struct Who {
    role: Role,
    name: IdentityName,
    usage: Usage,
}

/// Issues a certificate and writes it, its key and the authority's certificate into `folder`.
fn issue(
    folder: &Path,
    certificate: &str,
    key: &str,
    authority: &Authority,
    who: &Who,
    now: UnixTime,
    lifetime: Duration,
) -> Result<Validity, CliError> {
    let identity = Identity::new(authority.trust_domain().clone(), who.role, who.name.clone());
    let doing = format!("issue the certificate of {identity}");
    let issued = authority
        .issue(&identity, Validity::starting(now, lifetime), &who.usage)
        .map_err(CliError::tls(doing.clone()))?;
    let paths = CredentialPaths {
        certificate: folder.join(certificate),
        key: folder.join(key),
        ca: folder.join(CA_FILE),
        crl: None,
    };
    issued.save(&paths, authority).map_err(CliError::tls(doing))?;
    Ok(issued.certificate.validity)
}

fn new_key(path: &Path) -> Result<SigningKey, CliError> {
    let doing = format!("make the key {}", path.display());
    let key = SigningKey::generate(KeyAlgorithm::Ed25519).map_err(CliError::trust(doing.as_str()))?;
    key.write_new(path).map_err(CliError::trust(doing))?;
    Ok(key)
}

fn write_toml(path: &Path, comment: &str, value: &impl Serialize) -> Result<(), CliError> {
    let body = toml::to_string(value).map_err(|error| CliError::Content {
        path: path.to_owned(),
        reason: format!("it cannot be written as TOML: {error}"),
    })?;
    write(path, format!("# {comment}\n{body}").as_bytes(), MODE_PUBLIC, Existing::Keep)
}

fn make_folder(path: &Path) -> Result<(), CliError> {
    create_private_directory(path).map_err(CliError::tls(format!("make the folder {}", path.display())))
}

fn sync_folder(path: &Path) -> Result<(), CliError> {
    std::fs::File::open(path).and_then(|folder| folder.sync_all()).map_err(CliError::file("write", path))
}

/// A folder of mode 0700 in which things are written before they get their names.
fn private_staging(dir: &Path) -> Result<tempfile::TempDir, CliError> {
    tempfile::Builder::new()
        .prefix(".writing-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(dir)
        .map_err(CliError::file("write", dir))
}
