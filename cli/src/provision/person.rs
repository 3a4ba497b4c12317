//! Contexts of further people, and of pipelines: everything that one of them needs to reach the coordinator, in one folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_model::{FleetName, IdentityName, UnixTime};
use muster_mtls::{Address, Role, Usage};
use muster_trust::{KeySource, TrustRoot};

use super::{
    CA_FILE, MODE_PUBLIC, OPERATOR_FOLDER, PEOPLE_FOLDER, ROOT_FILE, Who, audit_key, issue,
    issuing_authority, make_folder, private_staging, sync_folder, write_toml,
};
use crate::context::{CONTEXT_FILE, Context, ContextFile, kept_beside};
use crate::error::CliError;
use crate::files::{Existing, write};

const CERTIFICATE_FILE: &str = "certificate.pem";
const KEY_FILE: &str = "certificate.key";

/// What `muster operator add` is told.
#[derive(Debug, Clone)]
pub(crate) struct PersonOptions {
    /// What the certificate lets its holder call.
    pub(crate) role: Role,
    /// Where the person keeps the key that signs orders and rosters.
    pub(crate) operator_key: Option<KeySource>,
    /// The same for releases.
    pub(crate) release_key: Option<KeySource>,
    /// Where the coordinator is reached, if that is not where the first operator reaches it.
    pub(crate) coordinator: Option<Address>,
    /// The fleet that is meant when none is named, if that is not the first operator's.
    pub(crate) fleet: Option<FleetName>,
    /// For how long the certificate holds.
    pub(crate) valid_for: Duration,
    /// The time now.
    pub(crate) now: UnixTime,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    /// The folder, to be taken to the person.
    pub(crate) folder: PathBuf,
    /// When the certificate ends.
    pub(crate) certificate_expires: UnixTime,
}

/// Issues a certificate for somebody, and writes a context to `DIR/people/NAME`, which must not exist.
///
/// Keys that sign documents are none of it: whoever signs makes their own, and nobody else ever has it.
pub(crate) fn add_person(
    dir: &Path,
    name: &IdentityName,
    options: &PersonOptions,
) -> Result<Person, CliError> {
    let authority = issuing_authority(dir)?;
    let first = Context::read(&dir.join(OPERATOR_FOLDER).join(CONTEXT_FILE))?;
    let root = first.trust_root()?;
    let people = dir.join(PEOPLE_FOLDER);
    make_folder(&people)?;
    let folder = people.join(name.as_str());
    if folder.symlink_metadata().is_ok() {
        return Err(CliError::Usage {
            what: format!("{name} has a context already: {} is there", folder.display()),
            next: "choose another name, or remove that folder if they are to get a new one".to_owned(),
        });
    }
    let staging = private_staging(&people)?;
    let who = Who { role: options.role, name: name.clone(), usage: Usage::Client };
    let (now, valid_for) = (options.now, options.valid_for);
    let validity = issue(staging.path(), CERTIFICATE_FILE, KEY_FILE, &authority, &who, now, valid_for)?;
    write_roots(&staging.path().join(ROOT_FILE), &first, &root)?;
    let context = ContextFile {
        coordinator: options.coordinator.as_ref().unwrap_or_else(|| first.coordinator()).to_string(),
        ca: CA_FILE.into(),
        certificate: CERTIFICATE_FILE.into(),
        key: KEY_FILE.into(),
        root: ROOT_FILE.into(),
        operator_key: options.operator_key.clone(),
        release_key: options.release_key.clone(),
        audit_key: audit_key(dir)?,
        fleet: options.fleet.clone().or_else(|| first.fleet().cloned()),
    };
    let comment = "A context of `muster`: use it with --context or MUSTER_CONTEXT.";
    write_toml(&staging.path().join(CONTEXT_FILE), comment, &context)?;
    std::fs::rename(staging.path(), &folder).map_err(CliError::file("create", folder.as_path()))?;
    // The folder has its name now: there is nothing left to clean up.
    let _ = staging.keep();
    sync_folder(&people)?;
    Ok(Person { folder, certificate_expires: validity.not_after })
}

/// The root in force, and beside it those before: what was signed in their time is verified by them.
fn write_roots(path: &Path, first: &Context, root: &TrustRoot) -> Result<(), CliError> {
    let save =
        |path: &Path, root: &TrustRoot| write(path, root.authentic().raw(), MODE_PUBLIC, Existing::Keep);
    save(path, root)?;
    for earlier in first.earlier_roots(root.root().version) {
        save(&kept_beside(path, earlier.root().version), &earlier)?;
    }
    Ok(())
}
