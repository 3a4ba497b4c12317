//! A coordinator in a test's hands: it has the real one's certificate and address, and says what the real one never would.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use muster_model::Digest;
use muster_mtls::{Acceptor, CredentialPaths, Credentials, Limits, ServerTls};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body as FromAgent;
use muster_proto::v1::blobs_server::BlobsServer;
use muster_proto::v1::control_server::ControlServer;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::audit::Log;
use super::{Caller, FLEET, Fleet, PATIENCE};

type Frames = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorFrame, Status>> + Send>>;
type Outbox = mpsc::Sender<Result<v1::CoordinatorFrame, Status>>;
type Chunks = Pin<Box<dyn Stream<Item = Result<v1::DownloadResponse, Status>> + Send>>;

/// A coordinator that is none, for a fleet of one host.
pub(crate) struct Impostor {
    _runtime: Runtime,
    heard: Receiver<FromAgent>,
    shared: Shared,
    /// The leadership that the real coordinator had.
    leadership: (u64, u64),
}

#[derive(Clone)]
struct Shared {
    /// The agent's newest stream.
    frames: Arc<Mutex<Option<Outbox>>>,
    hears: Arc<Mutex<Sender<FromAgent>>>,
    blobs: Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>,
    /// It has the real one's audit log and key as well.
    log: Arc<Log>,
    leadership: (u64, u64),
}

impl Impostor {
    /// Ends the fleet's coordinator and takes its place.
    pub(crate) fn replace(fleet: &Fleet) -> Self {
        let status = Caller::operator(fleet).status();
        fleet.coordinator().kill();
        let folder = fleet.dir().join("coordinator");
        let credentials = Credentials::load(&CredentialPaths {
            certificate: folder.join("coordinator.pem"),
            key: folder.join("coordinator.key"),
            ca: folder.join("ca.pem"),
            crl: None,
        });
        let tls = ServerTls::new(&credentials.unwrap()).unwrap();
        let (hears, heard) = channel();
        let hears = Arc::new(Mutex::new(hears));
        let shared = Shared {
            frames: Arc::default(),
            hears,
            blobs: Arc::default(),
            log: Arc::new(Log::of(fleet)),
            leadership: (status.incarnation, status.term),
        };
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let address = fleet.address().to_string();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let acceptor = {
            let _context = runtime.enter();
            Acceptor::new(listener, tls, Limits::default())
        };
        let server = Server::builder()
            .add_service(ControlServer::new(shared.clone()))
            .add_service(BlobsServer::new(shared.clone()))
            .serve_with_incoming(acceptor);
        runtime.spawn(server);
        Self { _runtime: runtime, heard, shared, leadership: (status.incarnation, status.term) }
    }

    /// Holds bytes under a name, which need not be theirs.
    pub(crate) fn hold_as(&self, name: Digest, bytes: &[u8]) {
        self.shared.blobs.lock().unwrap().insert(name.as_bytes().to_vec(), bytes.to_vec());
    }

    /// Holds bytes under their own name.
    pub(crate) fn hold(&self, bytes: &[u8]) -> Digest {
        let name = Digest::of(bytes);
        self.hold_as(name, bytes);
        name
    }

    /// Says something to the agent, in the term of the real coordinator.
    pub(crate) fn say(&self, body: ToAgent) {
        self.say_in_term(self.leadership.1, body);
    }

    /// The same in another term.
    pub(crate) fn say_in_term(&self, term: u64, body: ToAgent) {
        let frame = in_name_of((self.leadership.0, term), body);
        let frames = self.shared.frames.lock().unwrap().clone().expect("an agent is connected");
        frames.blocking_send(Ok(frame)).unwrap();
    }

    /// Waits for something that the agent says, and passes over everything else.
    #[track_caller]
    pub(crate) fn hear<T>(&self, what: &str, mut take: impl FnMut(FromAgent) -> Option<T>) -> T {
        let mut others = Vec::new();
        loop {
            let body = self.heard.recv_timeout(PATIENCE);
            let body = body.unwrap_or_else(|_| panic!("the agent did not say {what}, but {others:?}"));
            if let Some(taken) = take(body.clone()) {
                return taken;
            }
            others.push(body);
        }
    }
}

fn in_name_of((incarnation, term): (u64, u64), body: ToAgent) -> v1::CoordinatorFrame {
    v1::CoordinatorFrame { fleet: FLEET.to_owned(), incarnation, term, body: Some(body) }
}

#[tonic::async_trait]
impl v1::control_server::Control for Shared {
    type AttachStream = Frames;

    async fn attach(&self, request: Request<Streaming<v1::AgentFrame>>) -> Result<Response<Frames>, Status> {
        let (frames, outgoing) = mpsc::channel(16);
        *self.frames.lock().unwrap() = Some(frames.clone());
        let (mut incoming, hears) = (request.into_inner(), Arc::clone(&self.hears));
        let (log, leadership) = (Arc::clone(&self.log), self.leadership);
        tokio::spawn(async move {
            while let Some(Ok(frame)) = incoming.next().await {
                if let Some(body) = frame.body {
                    if let FromAgent::Join(join) = &body {
                        let shown = ToAgent::AuditShown(log.shown(join.audit.as_ref()));
                        let _ = frames.send(Ok(in_name_of(leadership, shown))).await;
                    }
                    // The test may be over.
                    let _ = hears.lock().unwrap().send(body);
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

#[tonic::async_trait]
impl v1::blobs_server::Blobs for Shared {
    type DownloadStream = Chunks;

    async fn find_missing(
        &self,
        _: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        Err(Status::unimplemented("agents do not ask this"))
    }

    async fn upload(
        &self,
        _: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        Err(Status::unimplemented("agents do not upload"))
    }

    async fn download(&self, request: Request<v1::DownloadRequest>) -> Result<Response<Chunks>, Status> {
        let blob = self.blobs.lock().unwrap().get(&request.into_inner().digest).cloned();
        let blob = blob.ok_or_else(|| Status::not_found("no such blob"))?;
        let chunks: Vec<_> =
            blob.chunks(64 << 10).map(|chunk| Ok(v1::DownloadResponse { chunk: chunk.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}
