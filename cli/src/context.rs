//! The context: which coordinator, as whom, and with which keys.

use std::path::{Path, PathBuf};

use muster_model::{FleetName, PublicKey};
use muster_mtls::{Address, CredentialPaths};
use muster_trust::{KeySource, Signer, TrustRoot};
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::files::{Existing, folder_of, write};

/// The name of the context file that `muster init` writes.
pub(crate) const CONTEXT_FILE: &str = "context.toml";

/// No context file comes near this, in bytes.
const CONTEXT_BYTES_MAX: u64 = 64 << 10;

/// The most earlier roots that are looked for.
const EARLIER_ROOTS_MAX: usize = 64;

/// No root document comes near this, in bytes.
const ROOT_BYTES_MAX: u64 = 1 << 20;

/// The context file as it is written. Paths are relative to the file's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextFile {
    /// `host:port`.
    pub(crate) coordinator: String,
    /// The authorities that are trusted.
    pub(crate) ca: PathBuf,
    /// Our certificate.
    pub(crate) certificate: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
    /// The pinned root document.
    pub(crate) root: PathBuf,
    /// The key that signs orders and rosters, a file or `ssh-agent:…`; whoever only asks has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operator_key: Option<KeySource>,
    /// The key that signs releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) release_key: Option<KeySource>,
    /// The public key of the coordinator's audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) audit_key: Option<PublicKey>,
    /// The fleet that is meant when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fleet: Option<FleetName>,
}

/// A context that was read. What its files hold is read when it is needed.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    path: PathBuf,
    coordinator: Address,
    file: ContextFile,
}

/// Where the context file is, given what the command line or `MUSTER_CONTEXT` names, and the values of
/// `XDG_CONFIG_HOME` and `HOME`.
pub(crate) fn locate(
    named: Option<&Path>,
    config_home: Option<&Path>,
    home: Option<&Path>,
) -> Option<PathBuf> {
    if let Some(named) = named {
        return Some(named.to_owned());
    }
    let config_home = config_home.filter(|path| path.is_absolute());
    let folder = config_home.map(Path::to_owned).or_else(|| home.map(|home| home.join(".config")))?;
    Some(folder.join("muster/config.toml"))
}

impl Context {
    /// The folder that it is in.
    pub(crate) fn folder(&self) -> &Path {
        folder_of(&self.path)
    }

    /// Finds and reads the context: what is named, else the user's.
    pub(crate) fn find(named: Option<&Path>) -> Result<Self, CliError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let (config_home, home) = (variable("XDG_CONFIG_HOME"), variable("HOME"));
        let fallback = PathBuf::from("~/.config/muster/config.toml");
        let path = locate(named, config_home.as_deref(), home.as_deref())
            .ok_or_else(|| CliError::NoContext { looked_for: fallback })?;
        if named.is_none() && !path.exists() {
            return Err(CliError::NoContext { looked_for: path });
        }
        Self::read(&path)
    }

    /// Reads a context file.
    pub(crate) fn read(path: &Path) -> Result<Self, CliError> {
        let bytes = crate::files::read_bounded(path, CONTEXT_BYTES_MAX).map_err(|error| {
            if let CliError::File { path, source, .. } = error {
                CliError::ContextFile { path, source }
            } else {
                error
            }
        })?;
        let wrong = |reason: String| CliError::Content { path: path.to_owned(), reason };
        let text = String::from_utf8(bytes).map_err(|_| wrong("it is not text".to_owned()))?;
        let file: ContextFile = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let coordinator =
            file.coordinator.parse().map_err(|error: muster_mtls::Error| wrong(error.to_string()))?;
        Ok(Self { path: path.to_owned(), coordinator, file })
    }

    /// Where the coordinator listens.
    pub(crate) const fn coordinator(&self) -> &Address {
        &self.coordinator
    }

    /// The fleet that is meant when none is named.
    pub(crate) const fn fleet(&self) -> Option<&FleetName> {
        self.file.fleet.as_ref()
    }

    /// Whom we connect as.
    pub(crate) fn credential_paths(&self) -> CredentialPaths {
        CredentialPaths {
            certificate: self.resolve(&self.file.certificate),
            key: self.resolve(&self.file.key),
            ca: self.resolve(&self.file.ca),
            crl: None,
        }
    }

    /// The pinned root document, verified in itself.
    pub(crate) fn trust_root(&self) -> Result<TrustRoot, CliError> {
        read_root(&self.root_path())
    }

    /// The file of the pinned root document.
    pub(crate) fn root_path(&self) -> PathBuf {
        self.resolve(&self.file.root)
    }

    /// The roots before `version` that `muster root apply` has kept beside the present one, the latest first.
    pub(crate) fn earlier_roots(&self, version: u64) -> Vec<TrustRoot> {
        let path = self.root_path();
        let versions = (1..version).rev().take(EARLIER_ROOTS_MAX);
        versions.filter_map(|version| read_root(&kept_beside(&path, version)).ok()).collect()
    }

    /// The key of the coordinator's audit log, if the context knows it.
    pub(crate) const fn audit_key(&self) -> Option<&PublicKey> {
        self.file.audit_key.as_ref()
    }

    /// The key that signs orders and rosters.
    pub(crate) fn operator_key(&self) -> Result<Box<dyn Signer>, CliError> {
        self.signing_key(self.file.operator_key.as_ref(), "operator_key", "orders and rosters")
    }

    /// The key that signs releases.
    pub(crate) fn release_key(&self) -> Result<Box<dyn Signer>, CliError> {
        self.signing_key(self.file.release_key.as_ref(), "release_key", "releases")
    }

    /// The folder that `muster init` made, which holds the folder of this context.
    pub(crate) fn fleet_folder(&self) -> Option<PathBuf> {
        let absolute = std::path::absolute(&self.path).ok()?;
        Some(absolute.parent()?.parent()?.to_owned())
    }

    fn signing_key(
        &self,
        source: Option<&KeySource>,
        field: &str,
        what: &str,
    ) -> Result<Box<dyn Signer>, CliError> {
        let source = source.ok_or_else(|| CliError::Usage {
            what: format!("the context {} names no key that signs {what}", self.path.display()),
            next: format!("add `{field}` to it, or use the context of someone who may sign"),
        })?;
        let source = self.path.parent().map_or_else(|| source.clone(), |folder| source.relative_to(folder));
        source.open().map_err(CliError::trust(format!("use the key that signs {what}")))
    }

    fn resolve(&self, path: &Path) -> PathBuf {
        self.path.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }
}

/// Puts a new certificate and its key in the place of the old ones. Both are durable under other names before either is
/// renamed; whoever finds them so finishes it.
pub(crate) fn exchange_pair(paths: &CredentialPaths, certificate: &[u8], key: &[u8]) -> Result<(), CliError> {
    write(&next_to(&paths.key), key, 0o600, Existing::Replace)?;
    // From here on it is done, whatever happens.
    write(&next_to(&paths.certificate), certificate, 0o644, Existing::Replace)?;
    finish_exchange(paths)
}

/// Finishes an exchange that was interrupted, or takes it back if it had only begun.
pub(crate) fn finish_exchange(paths: &CredentialPaths) -> Result<(), CliError> {
    let (key, certificate) = (next_to(&paths.key), next_to(&paths.certificate));
    let rename = |from: &Path, to: &Path| {
        std::fs::rename(from, to).map_err(CliError::file("exchange", to))?;
        let folder = folder_of(to);
        std::fs::File::open(folder).and_then(|it| it.sync_all()).map_err(CliError::file("write", folder))
    };
    if certificate.exists() {
        if key.exists() {
            rename(&key, &paths.key)?;
        }
        rename(&certificate, &paths.certificate)?;
    } else if key.exists() {
        std::fs::remove_file(&key).map_err(CliError::file("remove", key.as_path()))?;
    }
    Ok(())
}

fn next_to(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

/// The file beside a root document that keeps the one of this version.
pub(crate) fn kept_beside(path: &Path, version: u64) -> PathBuf {
    path.with_extension(format!("{version}.json"))
}

/// Reads and pins a root document.
pub(crate) fn read_root(path: &Path) -> Result<TrustRoot, CliError> {
    let raw = crate::files::read_bounded(path, ROOT_BYTES_MAX)?;
    TrustRoot::pin(&raw).map_err(CliError::trust(format!("trust the root document {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_comes_first_then_the_users_own() {
        let path = |text| Some(Path::new(text));
        let found =
            |named, config_home, home| locate(named, config_home, home).map(|p| p.display().to_string());
        assert_eq!(found(path("c.toml"), path("/x"), path("/home/a")).as_deref(), Some("c.toml"));
        assert_eq!(found(None, path("/x"), path("/home/a")).as_deref(), Some("/x/muster/config.toml"));
        let of_home = Some("/home/a/.config/muster/config.toml");
        assert_eq!(found(None, None, path("/home/a")).as_deref(), of_home);
        assert_eq!(found(None, path("relative"), path("/home/a")).as_deref(), of_home);
        assert_eq!(found(None, None, None), None);
    }

    #[test]
    fn an_exchange_that_was_interrupted_is_finished_or_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let paths = CredentialPaths::in_dir(dir.path());
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let both = || read(&paths.certificate) + &read(&paths.key);
        exchange_pair(&paths, b"c1", b"k1").unwrap();
        assert_eq!(both(), "c1k1");
        std::fs::write(next_to(&paths.key), "k2").unwrap();
        finish_exchange(&paths).unwrap();
        assert_eq!((both().as_str(), next_to(&paths.key).exists()), ("c1k1", false), "it had only begun");
        std::fs::write(next_to(&paths.certificate), "c3").unwrap();
        std::fs::write(&paths.key, "k3").unwrap();
        finish_exchange(&paths).unwrap();
        assert_eq!(both(), "c3k3", "the key had been renamed");
        exchange_pair(&paths, b"c4", b"k4").unwrap();
        assert_eq!(both(), "c4k4");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn paths_are_relative_to_the_file_and_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator/context.toml");
        std::fs::create_dir(dir.path().join("operator")).unwrap();
        let text = "coordinator = \"127.0.0.1:7400\"\nca = \"ca.pem\"\ncertificate = \"a.pem\"\nkey = \"/abs/a.key\"\nroot = \"root.json\"\n";
        std::fs::write(&path, text).unwrap();
        let context = Context::read(&path).unwrap();
        assert_eq!(context.credential_paths().ca, dir.path().join("operator/ca.pem"));
        assert_eq!(context.credential_paths().key, Path::new("/abs/a.key"));
        assert_eq!(context.fleet_folder().as_deref(), Some(dir.path()));
        assert_eq!(context.operator_key().unwrap_err().exit(), crate::exit::Exit::Usage);

        for (wrong, word) in [
            (text.replace("coordinator", "koordinator"), "unknown field"),
            (text.replace(":7400", ""), "is not an address"),
            (format!("{text}fleet = \"A B\"\n"), "is not a fleet name"),
        ] {
            std::fs::write(&path, wrong).unwrap();
            let error = Context::read(&path).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("context.toml"), "{error}");
        }
    }
}
