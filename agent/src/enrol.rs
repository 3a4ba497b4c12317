//! `muster-agent enrol`: from a token to a configuration with which the agent runs.
//!
//! Keys are made first and kept, the configuration is written last. Whoever runs it again, after a lost answer or a power cut at
//! any point, goes on with the same keys, and is given the same certificate.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_daemon::crash_point;
use muster_model::{Digest, FleetName, Refusal};
use muster_mtls::{
    Address, Anchor, CertificateFiles, ConnectOptions, Credentials, Introduction, KeyRequest, PemBundle,
    Role, create_private_directory, introduce, read_private, write_private,
};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::enrolment_client::EnrolmentClient;
use muster_trust::{
    JoinToken, KeyAlgorithm, Signer as _, SigningKey, TrustRoot, enrolment_possession, token_digest,
};
use prost::Message as _;
use serde::Serialize;
use tonic::Status;

use crate::AgentError;

/// How long the coordinator may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

const AGENT_FILE: &str = "agent.toml";
const GUARD_FILE: &str = "guard.toml";
const CERTIFICATE_FILE: &str = "agent.pem";
const KEY_FILE: &str = "agent.key";
const CA_FILE: &str = "ca.pem";
const ROOT_FILE: &str = "root.json";
const ATTESTATION_KEY_FILE: &str = "attestation.key";
const ATTESTATION_PUBLIC_FILE: &str = "attestation.pub";
const SOCKET_FILE: &str = "guard.sock";

/// What is needed to enrol.
pub(crate) struct Enrolment {
    /// Where hosts without a certificate are expected.
    pub(crate) coordinator: Address,
    pub(crate) token: JoinToken,
    /// SHA-256 of the public key of the authority that the coordinator's certificate must lead to.
    pub(crate) ca_pin: Digest,
    /// The root document, which is never taken from the coordinator.
    pub(crate) root: PathBuf,
    pub(crate) layout: Layout,
    /// Where keys, certificate and configuration go.
    pub(crate) folder: PathBuf,
    /// Where agent and guard keep their state; the same folder if not said.
    pub(crate) state: Option<PathBuf>,
    /// The link that services use, for a host of one fleet; within the state if not said.
    pub(crate) link: Option<PathBuf>,
    pub(crate) keys: KeysWanted,
}

/// How agent and guard find what is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Both run as one user, and everything is below the state.
    OneUser,
    /// As the units of the packages have it: the agent is nobody but `muster`, is passed its keys as credentials, and asks a guard that
    /// keeps its own state; links are on a tmpfs.
    System {
        /// Whom the guard answers besides root.
        agent_uid: u32,
    },
}

/// The folders of [`Layout::System`].
pub(crate) const SYSTEM_CONFIG: &str = "/etc/muster";
pub(crate) const SYSTEM_STATE: &str = "/var/lib/muster";
const SYSTEM_GUARD_STATE: &str = "/var/lib/muster-guard";
const SYSTEM_SOCKET: &str = "/run/muster/guard.sock";
const SYSTEM_LINKS: &str = "/run/muster/fleets";
/// The user that the package makes for the agent.
const SYSTEM_USER: &str = "muster";

impl Layout {
    /// That of the units, on this machine.
    pub(crate) fn system() -> Result<Self, AgentError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| AgentError::Enrolment {
            doing: "find the user `muster`, which the package muster-agent makes",
            source,
        };
        let user = nix::unistd::User::from_name(SYSTEM_USER).map_err(|error| failed(error.into()))?;
        let user = user.ok_or_else(|| failed("there is no such user".into()))?;
        Ok(Self::System { agent_uid: user.uid.as_raw() })
    }

    fn guard_state(self, state: &Path) -> PathBuf {
        match self {
            Self::OneUser => state.to_owned(),
            Self::System { .. } => PathBuf::from(SYSTEM_GUARD_STATE),
        }
    }

    fn socket(self, state: &Path) -> PathBuf {
        match self {
            Self::OneUser => state.join(SOCKET_FILE),
            Self::System { .. } => PathBuf::from(SYSTEM_SOCKET),
        }
    }

    fn link(self, state: &Path, fleet: &FleetName) -> PathBuf {
        let links = match self {
            Self::OneUser => &state.join("fleets"),
            Self::System { .. } => Path::new(SYSTEM_LINKS),
        };
        links.join(fleet.as_str()).join("current")
    }

    fn key(self, file: &str) -> String {
        match self {
            Self::OneUser => file.to_owned(),
            Self::System { .. } => format!("credential:{file}"),
        }
    }

    fn allowed_uids(self) -> Vec<u32> {
        match self {
            Self::OneUser => Vec::new(),
            Self::System { agent_uid } => vec![agent_uid],
        }
    }
}

/// Which keys a host enrols with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeysWanted {
    /// Those that are there, so that an attempt that was interrupted goes on.
    Present,
    /// Others.
    New,
}

/// What was made.
#[derive(Debug)]
pub(crate) struct Enrolled {
    pub(crate) identity: String,
    pub(crate) fleets: Vec<FleetName>,
    pub(crate) attestation_key: String,
    pub(crate) config: PathBuf,
}

/// The agent's configuration, as it is written.
#[derive(Debug, Serialize)]
struct AgentFile {
    coordinator: String,
    enrolment: String,
    state: PathBuf,
    certificate: &'static str,
    key: String,
    ca: &'static str,
    root: &'static str,
    attestation_key: String,
    audit_key: String,
    guard_socket: PathBuf,
    fleet: Vec<AgentFleet>,
}

#[derive(Debug, Serialize)]
struct AgentFleet {
    name: FleetName,
    boot_gate: &'static str,
}

/// The guard's configuration, as it is written: a link for each fleet.
#[derive(Debug, Serialize)]
struct GuardFile {
    host: String,
    state_dir: PathBuf,
    socket: PathBuf,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_uids: Vec<u32>,
    fleets: Vec<GuardFleet>,
}

#[derive(Debug, Serialize)]
struct GuardFleet {
    name: FleetName,
    link: PathBuf,
    releases: PathBuf,
    driver: &'static str,
}

/// The keys of a host that enrols.
struct Keys {
    tls: KeyRequest,
    attestation: SigningKey,
}

/// The refusal that a status carries, if it carries one.
pub(crate) fn refusal_of(status: &Status) -> Option<Refusal> {
    if status.details().is_empty() {
        return None;
    }
    let wire = v1::Refusal::decode(status.details()).ok()?;
    convert::refusal(Some(wire)).ok()
}

/// Enrols this host. Whatever exists of an earlier attempt is used again.
pub(crate) async fn enrol(enrolment: &Enrolment) -> Result<Enrolled, AgentError> {
    let folder = &enrolment.folder;
    create_private_directory(folder).map_err(|source| AgentError::Credentials { source })?;
    let folder = &std::path::absolute(folder).map_err(failed("find the folder"))?;
    let root = read_root(&enrolment.root)?;
    if enrolment.keys == KeysWanted::New {
        put_aside(folder, enrolment.state.as_deref().unwrap_or(folder))
            .map_err(failed("put the old keys aside"))?;
    }
    let keys = keys(folder)?;
    let answer = ask(enrolment, &keys).await?;
    let (introduction, answer) = answer;
    crash_point("agent.enrol.answered");
    let fleets = answer.fleets.iter().map(|fleet| convert::fleet(fleet)).collect::<Result<Vec<_>, _>>();
    let fleets = fleets.map_err(|error| senseless(&error))?;
    let credentials = check(enrolment, &keys, (&introduction, &answer))?;

    if enrolment.link.is_some() && fleets.len() > 1 {
        return Err(senseless(&io::Error::other("several fleets cannot share one link")));
    }
    replace(&folder.join(ROOT_FILE), &root)?;
    replace(&folder.join(CA_FILE), introduction.anchor_pem.as_bytes())?;
    replace(&folder.join(CERTIFICATE_FILE), answer.certificate.as_bytes())?;
    crash_point("agent.enrol.certificate");
    let config = folder.join(AGENT_FILE);
    let state = enrolment.state.clone().unwrap_or_else(|| folder.clone());
    // Services of other users follow the link into it.
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&state);
    made.map_err(|source| AgentError::Folder { path: state.clone(), source })?;
    write_configuration(enrolment, folder, &state, &fleets, &answer)?;
    Ok(Enrolled {
        identity: credentials.identity().to_string(),
        fleets,
        attestation_key: keys.attestation.public().to_string(),
        config,
    })
}

/// The root document as it is, once it is known to be one.
fn read_root(path: &Path) -> Result<Vec<u8>, AgentError> {
    let bytes = fs::read(path).map_err(|source| AgentError::ReadRoot { path: path.to_owned(), source })?;
    TrustRoot::pin(&bytes).map_err(|source| AgentError::Trust { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// What was kept under these names before is lost; of the keys themselves nothing is.
fn put_aside(folder: &Path, state: &Path) -> io::Result<()> {
    let identity = state.join(CertificateFiles::FOLDER);
    for path in [folder.join(ATTESTATION_KEY_FILE), folder.join(KEY_FILE), identity] {
        let aside = path.with_added_extension("replaced");
        let is_there = path.try_exists()?;
        if is_there && aside.is_dir() {
            fs::remove_dir_all(&aside)?;
        }
        if is_there {
            fs::rename(&path, &aside)?;
        }
    }
    sync(folder)
}

/// The keys of this host: made here, once, and never sent anywhere.
fn keys(folder: &Path) -> Result<Keys, AgentError> {
    let unusable = |source| AgentError::Credentials { source };
    let (tls_path, attestation_path) = (folder.join(KEY_FILE), folder.join(ATTESTATION_KEY_FILE));
    let trust = |source| AgentError::Trust { path: attestation_path.clone(), source };
    if !attestation_path.exists() {
        let key = SigningKey::generate(KeyAlgorithm::Ed25519).map_err(trust)?;
        key.write_new(&attestation_path).map_err(trust)?;
    }
    let attestation = SigningKey::read(&attestation_path).map_err(trust)?;
    replace(&folder.join(ATTESTATION_PUBLIC_FILE), format!("{}\n", attestation.public()).as_bytes())?;
    crash_point("agent.enrol.attestation-key");
    if !tls_path.exists() {
        let request = KeyRequest::generate().map_err(unusable)?;
        // Under another name first: a key that is there is whole.
        let unfinished = folder.join(".agent.key");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove an unfinished key")(error));
            }
            Ok(()) | Err(_) => {}
        }
        write_private(&unfinished, request.key_pem().as_bytes()).map_err(unusable)?;
        fs::rename(&unfinished, &tls_path).and_then(|()| sync(folder)).map_err(failed("keep the new key"))?;
    }
    let pem = read_private(&tls_path).map_err(unusable)?;
    let pem = std::str::from_utf8(&pem).map_err(|error| senseless(&error))?;
    let tls = KeyRequest::from_key_pem(pem).map_err(unusable)?;
    crash_point("agent.enrol.key");
    Ok(Keys { tls, attestation })
}

async fn ask(enrolment: &Enrolment, keys: &Keys) -> Result<(Introduction, v1::EnrolResponse), AgentError> {
    let unusable = |source| AgentError::Credentials { source };
    let anchor = Anchor::Pinned(enrolment.ca_pin);
    let introduction =
        introduce(&enrolment.coordinator, anchor, ConnectOptions::default()).await.map_err(|source| {
            AgentError::Enrolment {
                doing: "reach a coordinator of the pinned authority",
                source: source.into(),
            }
        })?;
    let (request, token) = (keys.tls.to_der().map_err(unusable)?, &enrolment.token);
    let message = enrolment_possession(&token_digest(token.secret()), token.host(), &request);
    let possession = keys.attestation.sign(&message).map_err(|source| AgentError::Enrolment {
        doing: "sign with the attestation key",
        source: source.into(),
    })?;
    let request = v1::EnrolRequest {
        secret: token.secret().to_vec(),
        host: token.host().as_str().to_owned(),
        request,
        attestation_key: keys.attestation.public().to_string(),
        possession,
    };
    let mut client = EnrolmentClient::new(introduction.channel.clone());
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.enrol(request))
        .await
        .map_err(|source| AgentError::Enrolment { doing: "get an answer in time", source: source.into() })?;
    match answer {
        Ok(answer) => Ok((introduction, answer.into_inner())),
        Err(status) => Err(match refusal_of(&status) {
            Some(refusal) => AgentError::EnrolmentRefused { refusal },
            None => AgentError::Enrolment { doing: "enrol", source: status.into() },
        }),
    }
}

/// What was given must be a certificate of this host, for its key, by the authority that was pinned.
fn check(
    enrolment: &Enrolment,
    keys: &Keys,
    (introduction, answer): (&Introduction, &v1::EnrolResponse),
) -> Result<Credentials, AgentError> {
    let key = keys.tls.key_pem();
    let pem =
        PemBundle { certificate: &answer.certificate, key: &key, ca: &introduction.anchor_pem, crl: None };
    let credentials = Credentials::from_pem(pem).map_err(|source| AgentError::Credentials { source })?;
    let identity = credentials.identity();
    let is_ours = identity.role == Role::Agent && identity.name.to_host() == *enrolment.token.host();
    if is_ours && identity.trust_domain == introduction.coordinator.trust_domain {
        return Ok(credentials);
    }
    Err(AgentError::NotAnAgent { identity: identity.to_string() })
}

fn write_configuration(
    enrolment: &Enrolment,
    folder: &Path,
    state: &Path,
    fleets: &[FleetName],
    answer: &v1::EnrolResponse,
) -> Result<(), AgentError> {
    let layout = enrolment.layout;
    let socket = layout.socket(state);
    let link = |fleet: &FleetName| enrolment.link.clone().unwrap_or_else(|| layout.link(state, fleet));
    // `/run` is emptied by every boot; of other folders nothing is known here, and what is not known is not claimed.
    let boot_gate = |fleet: &FleetName| if link(fleet).starts_with("/run") { "volatile" } else { "none" };
    let guard = GuardFile {
        host: enrolment.token.host().as_str().to_owned(),
        state_dir: layout.guard_state(state),
        socket: socket.clone(),
        allowed_uids: layout.allowed_uids(),
        fleets: fleets
            .iter()
            .map(|fleet| {
                let releases = state.join("fleets").join(fleet.as_str()).join("releases");
                GuardFleet { name: fleet.clone(), link: link(fleet), releases, driver: "link" }
            })
            .collect(),
    };
    let main = format!("{}:{}", host_text(&enrolment.coordinator), answer.port);
    let agent = AgentFile {
        coordinator: main,
        enrolment: enrolment.coordinator.to_string(),
        state: state.to_owned(),
        certificate: CERTIFICATE_FILE,
        key: layout.key(KEY_FILE),
        ca: CA_FILE,
        root: ROOT_FILE,
        attestation_key: layout.key(ATTESTATION_KEY_FILE),
        audit_key: answer.audit_key.clone(),
        guard_socket: socket,
        fleet: fleets
            .iter()
            .map(|fleet| AgentFleet { name: fleet.clone(), boot_gate: boot_gate(fleet) })
            .collect(),
    };
    // What somebody has written there is theirs.
    let guard_path = folder.join(GUARD_FILE);
    if !guard_path.exists() {
        replace(&guard_path, &as_toml("For `muster-guard run --config`.", &guard)?)?;
    }
    let agent_path = folder.join(AGENT_FILE);
    if !agent_path.exists() {
        replace(&agent_path, &as_toml("For `muster-agent run --config`.", &agent)?)?;
    }
    Ok(())
}

/// An IPv6 address stands in brackets.
fn host_text(address: &Address) -> String {
    let host = address.host();
    if host.contains(':') { format!("[{host}]") } else { host }
}

fn as_toml(comment: &str, value: &impl Serialize) -> Result<Vec<u8>, AgentError> {
    let text = toml::to_string(value).map_err(|error| senseless(&error))?;
    Ok(format!("# {comment}\n{text}").into_bytes())
}

/// After a crash there is the old file or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    let unfinished = path.with_extension("unfinished");
    let write = || -> io::Result<()> {
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        sync(path.parent().unwrap_or(Path::new(".")))
    };
    write().map_err(failed("write the files of this host"))
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Enrolment { doing, source: source.into() }
}

fn senseless(error: &dyn std::error::Error) -> AgentError {
    AgentError::Enrolment { doing: "make sense of what is there", source: error.to_string().into() }
}
