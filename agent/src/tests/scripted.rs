//! A coordinator that says what the test tells it to, over real TLS, and a host with a real guard and real keys.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::{Agent, AgentError, ClockError, Coordinator, FleetParts, OnDrift, Parts, Verity};
use futures_util::Stream;
use muster_artifact::{OutsideLinks, PackOptions, Progress, pack};
use muster_daemon::{Machine, Shutdown, ShutdownTrigger, unix_time};
use muster_guard::{Driver, FleetConfig, GuardConfig, HooksConfig, InProcess};
use muster_model::*;
use muster_mtls::{
    Acceptor, Authority, ClientTls, Credentials, Dialer, Identity, Limits, PemBundle, Role, ServerTls,
    TrustDomain, Usage, Validity,
};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body as FromAgent;
use muster_proto::v1::blobs_server::{Blobs, BlobsServer};
use muster_proto::v1::control_server::{Control, ControlServer};
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_trust::{KeyAlgorithm, SigningKey, TrustRoot, sign};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

const DEADLINE: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 64 << 10;
const HOUR: Duration = Duration::from_secs(3600);

/// Everything around one agent.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) keys: Keys,
    pub(crate) blobs: Arc<Mutex<HashMap<Digest, Vec<u8>>>>,
    pub(crate) downloads: Arc<Mutex<Vec<Digest>>>,
    sessions: mpsc::Receiver<Session>,
    address: String,
    authority: Authority,
    server: JoinHandle<()>,
}

/// Who signs what. One key each.
pub(crate) struct Keys {
    pub(crate) root: SigningKey,
    pub(crate) release: SigningKey,
    pub(crate) operator: SigningKey,
    pub(crate) host: PathBuf,
}

/// One stream of the agent.
pub(crate) struct Session {
    from_agent: mpsc::Receiver<v1::AgentFrame>,
    to_agent: mpsc::Sender<Result<v1::CoordinatorFrame, Status>>,
}

/// An agent that runs.
pub(crate) struct Running {
    pub(crate) trigger: ShutdownTrigger,
    pub(crate) task: JoinHandle<Result<(), AgentError>>,
}

pub(crate) fn fleet() -> FleetName {
    FleetName::new("smars").unwrap()
}

pub(crate) fn host() -> HostName {
    HostName::new("host-1").unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        // The guard accepts no state folder that others could write to.
        let folder =
            tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap();
        let generate = || SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
        let keys = Keys {
            root: generate(),
            release: generate(),
            operator: generate(),
            host: folder.path().join("attestation.key"),
        };
        generate().write_new(&keys.host).unwrap();
        let authority = Authority::create(TrustDomain::new("fleet.example").unwrap(), unix_time()).unwrap();
        let (sessions_in, sessions) = mpsc::channel(8);
        let (blobs, downloads) = (Arc::default(), Arc::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let names = vec!["127.0.0.1".to_owned()];
        let tls = credentials(&authority, Role::Coordinator, "c1", &Usage::Server { names });
        let acceptor = Acceptor::new(listener, ServerTls::new(&tls).unwrap(), Limits::default());
        let address = acceptor.local_addr().unwrap().to_string();
        let control = ControlServer::new(Scripted { sessions: sessions_in });
        let bytes = BlobsServer::new(Bytes { blobs: Arc::clone(&blobs), downloads: Arc::clone(&downloads) });
        let serving = Server::builder().add_service(control).add_service(bytes).serve_with_incoming(acceptor);
        let server = tokio::spawn(async move { serving.await.unwrap() });
        Self { folder, keys, blobs, downloads, sessions, address, authority, server }
    }

    /// Starts the agent on the world's state folder.
    pub(crate) fn start(&self) -> Running {
        Self::start_with(self.parts())
    }

    /// Starts an agent of these parts.
    pub(crate) fn start_with(parts: Parts) -> Running {
        let agent = Agent::new(parts).unwrap();
        let (trigger, shutdown) = Shutdown::new();
        Running { trigger, task: tokio::spawn(agent.run(shutdown)) }
    }

    /// What the agent is made of.
    pub(crate) fn parts(&self) -> Parts {
        let settings = GuardConfig {
            host: host(),
            state_dir: self.folder.path().to_owned(),
            socket: self.folder.path().join("guard.sock"),
            exec_shim: None,
            allowed_uids: Vec::new(),
            fleets: vec![FleetConfig {
                name: fleet(),
                link: self.fleet_folder().join("current"),
                releases: self.fleet_folder().join("releases"),
                driver: Driver::Link,
                hooks: HooksConfig::default(),
            }],
        };
        let tls = credentials(&self.authority, Role::Agent, host().as_str(), &Usage::Client);
        let roles = [
            (SigningRole::Root, &self.keys.root),
            (SigningRole::Release, &self.keys.release),
            (SigningRole::Operator, &self.keys.operator),
        ];
        let roles = roles
            .map(|(role, key)| (role, RoleKeys { threshold: 1, keys: vec![key.public().clone()] }))
            .into_iter()
            .collect();
        let root = Root::new(1, unix_time().after(HOUR), roles).unwrap();
        let root = sign(&root, &[&self.keys.root]).unwrap();
        Parts {
            coordinator: Coordinator {
                address: self.address.parse().unwrap(),
                tls: ClientTls::new(&tls).unwrap(),
                dialer: Dialer::default(),
            },
            certificate_files: None,
            enrolment: None,
            state: self.folder.path().to_owned(),
            root: TrustRoot::pin(root.raw()).unwrap(),
            attestation_key: SigningKey::read(&self.keys.host).unwrap(),
            guard: Arc::new(InProcess::new(&settings.validate().unwrap()).unwrap()),
            guard_events: None,
            jobs: NonZeroUsize::MIN,
            verity: Verity::Auto,
            clock_error: ClockError::Unknown,
            audit_key: None,
            drill_again: HOUR,
            drift: None,
            config: Digest::of(b"configuration"),
            machine: Machine::real(),
            fleets: vec![FleetParts {
                name: fleet(),
                boot_gate: BootGate::None,
                on_drift: OnDrift::Alarm,
                enforce: crate::Enforce::Full,
                adopted: None,
                store: None,
            }],
        }
    }

    pub(crate) fn fleet_folder(&self) -> PathBuf {
        self.folder.path().join("fleets/smars")
    }

    pub(crate) fn tree(&self, release: Digest) -> PathBuf {
        self.fleet_folder().join("releases").join(release.hex())
    }

    /// What `current` leads to.
    pub(crate) fn current(&self) -> Option<PathBuf> {
        fs::canonicalize(self.fleet_folder().join("current")).ok()
    }

    /// The next stream of the agent.
    pub(crate) async fn session(&mut self) -> Session {
        tokio::time::timeout(DEADLINE, self.sessions.recv()).await.expect("a session in time").unwrap()
    }

    /// A stream over which the fleet has joined, and the report of the join.
    pub(crate) async fn joined(&mut self, next: u8) -> (Session, v1::Join) {
        let mut session = self.session().await;
        let join = session.join(next).await;
        (session, join)
    }

    /// Makes a release of these files, and puts its blobs where the agent can fetch them.
    pub(crate) fn release(&self, files: &[(&str, &[u8])]) -> Manifest {
        let source = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = source.path().join(name);
            let parent = path.parent().unwrap();
            fs::create_dir_all(parent).unwrap();
            if parent != source.path() {
                fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
            }
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            self.put(content.to_vec());
        }
        let options = PackOptions {
            rules: TreeRules::default(),
            outside_links: OutsideLinks::Warn,
            jobs: NonZeroUsize::MIN,
        };
        let manifest = pack(source.path(), &options, &Progress::default()).unwrap().manifest;
        self.put(manifest.to_bytes());
        manifest
    }

    pub(crate) fn put(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.blobs.lock().unwrap().insert(digest, bytes);
        digest
    }

    /// The request to deploy a release, signed by `key`.
    pub(crate) fn deploy(&self, request: u64, manifest: &Manifest, key: &SigningKey) -> v1::Deploy {
        v1::Deploy {
            request,
            release_envelope: self.signed_release(manifest, key),
            manifest_size: manifest.to_bytes().len() as u64,
        }
    }

    pub(crate) fn signed_release(&self, manifest: &Manifest, key: &SigningKey) -> Vec<u8> {
        let release = Release {
            fleet: fleet(),
            version: Version::new("1.0.0").unwrap(),
            manifest: manifest.digest(),
            builder: None,
            source_revision: None,
            created_unix_ms: UnixTime(1),
            expires_unix_ms: None,
            flags: BTreeMap::new(),
        };
        sign(&release, &[key]).unwrap().raw().to_vec()
    }

    /// The roster of this one host, verified, with its envelope.
    pub(crate) fn roster(&self) -> (Verified<Roster>, Vec<u8>, Digest) {
        let member = Member {
            name: host(),
            attestation_key: SigningKey::read(&self.keys.host).unwrap().public().clone(),
        };
        let policy = Policy {
            boot_gate: BootGatePolicy::Optional,
            clock: ClockPolicy::Any,
            timing: Timing::default(),
        };
        let roster = Roster::new(fleet(), RosterRevision(1), policy, vec![member]).unwrap();
        let envelope = sign(&roster, &[&self.keys.operator]).unwrap().raw().to_vec();
        let keys = RoleKeys { threshold: 1, keys: vec![self.keys.operator.public().clone()] };
        let roster = muster_trust::verify::<Roster>(&envelope, &keys).unwrap();
        let digest = roster.payload_digest();
        (roster.into_document(), envelope, digest)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Running {
    pub(crate) async fn stop(self) {
        self.trigger.request();
        tokio::time::timeout(DEADLINE, self.task).await.expect("an end in time").unwrap().unwrap();
    }
}

impl Session {
    pub(crate) async fn say(&self, body: ToAgent) {
        self.say_to(fleet().as_str(), body).await;
    }

    pub(crate) async fn say_to(&self, fleet: &str, body: ToAgent) {
        let frame =
            v1::CoordinatorFrame { fleet: fleet.to_owned(), incarnation: 1, term: 1, body: Some(body) };
        self.to_agent.send(Ok(frame)).await.unwrap();
    }

    /// The next thing that the agent says; progress is passed over.
    pub(crate) async fn hear(&mut self) -> FromAgent {
        loop {
            let next = tokio::time::timeout(DEADLINE, self.from_agent.recv()).await;
            let body = next.expect("a frame in time").expect("the stream stands").body.unwrap();
            if !matches!(body, FromAgent::DeployProgress(_)) {
                return body;
            }
        }
    }

    pub(crate) async fn join(&mut self, next: u8) -> v1::Join {
        let FromAgent::Join(join) = self.hear().await else { panic!("no join") };
        self.say(ToAgent::Joined(v1::Joined { next_token: vec![next; 32] })).await;
        assert_eq!(self.hear().await, FromAgent::Confirmed(v1::Confirmed {}));
        let FromAgent::Inventory(_) = self.hear().await else { panic!("no inventory") };
        join
    }

    /// Asks for a deployment and waits for its end.
    pub(crate) async fn deploy(&mut self, deploy: v1::Deploy) -> v1::DeployEnded {
        self.say(ToAgent::Deploy(deploy)).await;
        loop {
            let heard = self.hear().await;
            if let FromAgent::DeployEnded(ended) = heard {
                return ended;
            }
            assert!(matches!(heard, FromAgent::Inventory(_)), "{heard:?}");
        }
    }

    pub(crate) async fn check(&mut self, release: Digest, challenge: Digest) -> v1::CheckEnded {
        let (manifest, challenge) = (release.as_bytes().to_vec(), challenge.as_bytes().to_vec());
        self.say(ToAgent::Check(v1::Check {
            request: 1,
            manifest,
            challenge,
            rehearse: false,
            adopt: false,
        }))
        .await;
        let FromAgent::CheckEnded(ended) = self.hear().await else { panic!("no end") };
        ended
    }

    /// Whether the agent has ended the stream.
    pub(crate) async fn has_ended(&mut self) -> bool {
        tokio::time::timeout(DEADLINE, self.from_agent.recv()).await.is_ok_and(|frame| frame.is_none())
    }
}

fn credentials(authority: &Authority, role: Role, name: &str, usage: &Usage) -> Credentials {
    let domain = TrustDomain::new("fleet.example").unwrap();
    let identity = Identity::new(domain, role, IdentityName::new(name).unwrap());
    let issued = authority.issue(&identity, Validity::starting(unix_time(), HOUR), usage).unwrap();
    let (certificate, key) = (&issued.certificate.cert_pem, &issued.key_pem);
    Credentials::from_pem(PemBundle { certificate, key, ca: authority.cert_pem(), crl: None }).unwrap()
}

struct Scripted {
    sessions: mpsc::Sender<Session>,
}

#[tonic::async_trait]
impl Control for Scripted {
    type AttachStream = ReceiverStream<Result<v1::CoordinatorFrame, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AgentFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let (frames, from_agent) = mpsc::channel(64);
        let (to_agent, outgoing) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = incoming.message().await {
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
        });
        self.sessions.send(Session { from_agent, to_agent }).await.unwrap();
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

struct Bytes {
    blobs: Arc<Mutex<HashMap<Digest, Vec<u8>>>>,
    downloads: Arc<Mutex<Vec<Digest>>>,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<v1::DownloadResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Blobs for Bytes {
    type DownloadStream = Chunks;

    async fn find_missing(
        &self,
        _: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        Err(Status::unimplemented("agents do not ask"))
    }

    async fn upload(
        &self,
        _: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        Err(Status::unimplemented("agents do not upload"))
    }

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let digest = Digest::from_bytes(request.into_inner().digest.try_into().unwrap());
        self.downloads.lock().unwrap().push(digest);
        let found = self.blobs.lock().unwrap().get(&digest).cloned();
        let bytes = found.ok_or_else(|| Status::not_found("no such blob"))?;
        let chunks: Vec<_> = bytes
            .chunks(CHUNK_BYTES)
            .map(|chunk| Ok(v1::DownloadResponse { chunk: chunk.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}

/// The code of the first blocker.
pub(crate) fn code(refusal: &Option<v1::Refusal>) -> &str {
    refusal.as_ref().map_or("", |refusal| &refusal.blockers[0].code)
}

pub(crate) fn write(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
}
