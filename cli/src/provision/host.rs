//! Offline bundles: everything that one host needs to take part, in one folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_model::{BootGate, FleetName, HostName, PublicKey, UnixTime};
use muster_mtls::{Address, CredentialPaths, Credentials, Role, Usage};
use serde::{Deserialize, Serialize};

use super::{
    CA_FILE, COORDINATOR_FOLDER, HOSTS_FOLDER, MODE_PUBLIC, ROOT_FILE, Who, audit_key, issue,
    issuing_authority, make_folder, new_key, private_staging, sync_folder, write_toml,
};
use crate::context::read_root;
use crate::error::CliError;
use crate::files::{Existing, read_bounded, write};

const AGENT_FILE: &str = "agent.toml";
const CERTIFICATE_FILE: &str = "agent.pem";
const KEY_FILE: &str = "agent.key";
const ATTESTATION_KEY_FILE: &str = "attestation.key";
const ATTESTATION_PUBLIC_FILE: &str = "attestation.pub";
const SOCKET_FILE: &str = "guard.sock";

/// No file of a bundle that is read here comes near this, in bytes.
const BYTES_MAX: u64 = 64 << 10;

/// What `muster host issue` is told.
#[derive(Debug, Clone)]
pub(crate) struct HostOptions {
    /// Where the host reaches the coordinator.
    pub(crate) coordinator: Address,
    /// The fleets that it belongs to.
    pub(crate) fleets: Vec<FleetName>,
    /// How each of them is served.
    pub(crate) driver: Driver,
    /// Where agent and guard keep their state on the host; the bundle's own folder if not said.
    pub(crate) state: Option<PathBuf>,
    /// The link that services use, for a host of one fleet; within the state if not said.
    pub(crate) link: Option<PathBuf>,
    /// How far the host's time of day may be off, in milliseconds, where that is known; without it the host takes no part in
    /// fast flips.
    pub(crate) clock_error_ms: Option<u64>,
    /// For how long the certificate holds.
    pub(crate) valid_for: Duration,
    /// The time now.
    pub(crate) now: UnixTime,
}

/// How a fleet is served on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Driver {
    /// There is only the link.
    Link,
    /// The guard runs this command in the release's folder.
    Supervise {
        /// The program and its arguments.
        command: Vec<String>,
        /// How long the service may take to stop before it is killed; as long as the guard allows if not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop_timeout_ms: Option<u64>,
    },
}

/// An issued host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostBundle {
    /// The host.
    pub(crate) name: HostName,
    /// The folder of its bundle.
    pub(crate) folder: PathBuf,
    /// The key that signs its attestations: what the roster lists.
    pub(crate) attestation_key: PublicKey,
    /// When its certificate ends; not known once its key was taken away.
    pub(crate) certificate_expires: Option<UnixTime>,
    /// Its fleets.
    pub(crate) fleets: Vec<FleetName>,
}

/// The agent's configuration file. Relative paths are relative to its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentFile {
    /// `host:port`.
    pub(crate) coordinator: String,
    /// Where the agent keeps its state.
    pub(crate) state: PathBuf,
    /// Where it recovers from an expired certificate, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) enrolment: Option<String>,
    /// Its certificate.
    pub(crate) certificate: PathBuf,
    /// The certificate's key.
    pub(crate) key: PathBuf,
    /// The authorities that are trusted.
    pub(crate) ca: PathBuf,
    /// The pinned root document.
    pub(crate) root: PathBuf,
    /// The key that signs attestations.
    pub(crate) attestation_key: PathBuf,
    /// The public key of the coordinator's audit log; of folders from before there was one, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) audit_key: Option<PublicKey>,
    /// The guard's socket.
    pub(crate) guard_socket: PathBuf,
    /// How far the time of day may be off, in milliseconds, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clock_error_ms: Option<u64>,
    /// The fleets.
    #[serde(default, rename = "fleet")]
    pub(crate) fleets: Vec<AgentFleet>,
}

/// A fleet in the agent's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentFleet {
    /// Its name.
    pub(crate) name: FleetName,
    /// Whether its link vanishes at a reboot.
    pub(crate) boot_gate: BootGate,
}

/// What is read of the agent's configuration: the rest is the host's own business, and may have been edited.
#[derive(Debug, Deserialize)]
struct FleetNames {
    #[serde(default, rename = "fleet")]
    fleets: Vec<NamedFleet>,
}

#[derive(Debug, Deserialize)]
struct NamedFleet {
    name: FleetName,
}

/// The guard's configuration file. All its paths are absolute: it never depends on where it was started.
#[derive(Debug, Serialize)]
struct GuardFile<'a> {
    host: &'a HostName,
    state_dir: PathBuf,
    socket: PathBuf,
    fleets: Vec<GuardFleet<'a>>,
}

#[derive(Debug, Serialize)]
struct GuardFleet<'a> {
    name: &'a FleetName,
    link: PathBuf,
    releases: PathBuf,
    driver: &'a Driver,
}

impl Driver {
    /// The same driver, for a fleet whose lease leaves a service no more time than this to stop.
    pub(crate) fn stopping_within(self, stop_timeout_ms: u64) -> Self {
        match self {
            Self::Link => Self::Link,
            Self::Supervise { command, .. } => {
                Self::Supervise { command, stop_timeout_ms: Some(stop_timeout_ms) }
            }
        }
    }
}

/// Issues the identity of a host and writes its bundle to `DIR/hosts/NAME`, which must not exist.
pub(crate) fn issue_host(dir: &Path, name: &HostName, options: &HostOptions) -> Result<HostBundle, CliError> {
    let authority = issuing_authority(dir)?;
    // Pinned before it is handed out, so that no host gets a root that nobody can use.
    let root = read_root(&dir.join(ROOT_FILE))?;
    let hosts = dir.join(HOSTS_FOLDER);
    make_folder(&hosts)?;
    let folder = absolute(&hosts.join(name.as_str()))?;
    if folder.symlink_metadata().is_ok() {
        return Err(CliError::Usage {
            what: format!("{name} was issued already: {} is there", folder.display()),
            next: "choose another name, or remove that folder if the host is to get a new identity"
                .to_owned(),
        });
    }
    let staging = private_staging(&hosts)?;
    let who = Who { role: Role::Agent, name: name.clone().into(), usage: Usage::Client };
    let (now, valid_for) = (options.now, options.valid_for);
    let validity = issue(staging.path(), CERTIFICATE_FILE, KEY_FILE, &authority, &who, now, valid_for)?;
    let attestation_key = new_key(&staging.path().join(ATTESTATION_KEY_FILE))?.public().clone();
    let public = format!("{attestation_key}\n");
    write(&staging.path().join(ATTESTATION_PUBLIC_FILE), public.as_bytes(), MODE_PUBLIC, Existing::Keep)?;
    write(&staging.path().join(ROOT_FILE), root.authentic().raw(), MODE_PUBLIC, Existing::Keep)?;
    let of_folder = (audit_key(dir)?, enrolment(dir, &options.coordinator));
    write_configuration(staging.path(), &folder, name, (options, of_folder))?;

    std::fs::rename(staging.path(), &folder).map_err(CliError::file("create", folder.as_path()))?;
    // The folder has its name now: there is nothing left to clean up.
    let _ = staging.keep();
    sync_folder(&hosts)?;
    Ok(HostBundle {
        name: name.clone(),
        folder,
        attestation_key,
        certificate_expires: Some(validity.not_after),
        fleets: options.fleets.clone(),
    })
}

/// All hosts that were issued in `dir`, by name.
pub(crate) fn hosts(dir: &Path) -> Result<Vec<HostBundle>, CliError> {
    let folder = dir.join(HOSTS_FOLDER);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CliError::file("read", folder)(error)),
    };
    let mut bundles = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CliError::file("read", folder.as_path()))?;
        let name = entry.file_name().to_str().and_then(|name| HostName::new(name).ok());
        // What has no host's name, such as a bundle that is being written, is none of ours.
        if let Some(name) = name {
            bundles.push(read_bundle(name, entry.path())?);
        }
    }
    bundles.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(bundles)
}

fn read_bundle(name: HostName, folder: PathBuf) -> Result<HostBundle, CliError> {
    let text = |file: &str| {
        let path = folder.join(file);
        let bytes = read_bounded(&path, BYTES_MAX)?;
        String::from_utf8(bytes).map_err(|_| CliError::Content { path, reason: "it is not text".to_owned() })
    };
    let wrong = |file: &str, reason: String| CliError::Content { path: folder.join(file), reason };
    let attestation_key = text(ATTESTATION_PUBLIC_FILE)?
        .trim_end()
        .parse()
        .map_err(|error: muster_model::PublicKeyError| wrong(ATTESTATION_PUBLIC_FILE, error.to_string()))?;
    let agent: FleetNames =
        toml::from_str(&text(AGENT_FILE)?).map_err(|error| wrong(AGENT_FILE, error.to_string()))?;
    let paths = CredentialPaths {
        certificate: folder.join(CERTIFICATE_FILE),
        key: folder.join(KEY_FILE),
        ca: folder.join(CA_FILE),
        crl: None,
    };
    let certificate_expires = Credentials::load(&paths).ok().map(|loaded| loaded.validity().not_after);
    let fleets = agent.fleets.into_iter().map(|fleet| fleet.name).collect();
    Ok(HostBundle { name, folder, attestation_key, certificate_expires, fleets })
}

/// Writes agent.toml and guard.toml to `staging`, for a bundle that will be used at `folder`.
fn write_configuration(
    staging: &Path,
    folder: &Path,
    name: &HostName,
    (options, (audit_key, enrolment)): (&HostOptions, (Option<PublicKey>, Option<String>)),
) -> Result<(), CliError> {
    let state = options.state.clone().unwrap_or_else(|| folder.to_owned());
    let boot_gate = boot_gate_of(options.link.as_deref());
    let agent = AgentFile {
        coordinator: options.coordinator.to_string(),
        state: options.state.clone().unwrap_or_else(|| PathBuf::from(".")),
        enrolment,
        certificate: CERTIFICATE_FILE.into(),
        key: KEY_FILE.into(),
        ca: CA_FILE.into(),
        root: ROOT_FILE.into(),
        attestation_key: ATTESTATION_KEY_FILE.into(),
        audit_key,
        guard_socket: options
            .state
            .as_ref()
            .map_or_else(|| SOCKET_FILE.into(), |state| state.join(SOCKET_FILE)),
        clock_error_ms: options.clock_error_ms,
        fleets: options.fleets.iter().map(|fleet| AgentFleet { name: fleet.clone(), boot_gate }).collect(),
    };
    write_toml(&staging.join(AGENT_FILE), "For `muster-agent run --config`.", &agent)?;
    let fleets = options.fleets.iter().map(|fleet| {
        let folder = state.join("fleets").join(fleet.as_str());
        GuardFleet {
            name: fleet,
            link: options.link.clone().unwrap_or_else(|| folder.join("current")),
            releases: folder.join("releases"),
            driver: &options.driver,
        }
    });
    let fleets = fleets.collect();
    let guard = GuardFile { host: name, state_dir: state.clone(), socket: state.join(SOCKET_FILE), fleets };
    write_toml(&staging.join("guard.toml"), "For `muster-guard run --config`.", &guard)
}

/// Where the coordinator of this folder expects hosts whose certificate has expired, if it does and the folder is still here.
fn enrolment(dir: &Path, coordinator: &Address) -> Option<String> {
    #[derive(Deserialize)]
    struct Listening {
        enrol_listen: SocketAddr,
    }
    let text = std::fs::read_to_string(dir.join(COORDINATOR_FOLDER).join("coordinator.toml")).ok()?;
    let listening: Listening = toml::from_str(&text).ok()?;
    let (host, port) = (coordinator.host(), listening.enrol_listen.port());
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

/// `/run` is emptied by every boot; of other folders nothing is known here, and what is not known is not claimed.
fn boot_gate_of(link: Option<&Path>) -> BootGate {
    if link.is_some_and(|link| link.starts_with("/run")) { BootGate::Volatile } else { BootGate::None }
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(CliError::file("find", path))
}
