//! A coordinator in a test's hands: it has the real one's certificate and address, and says what the real one never would.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use muster_model::Digest;
use muster_mtls::{Acceptor, CredentialPaths, Credentials, Limits, Peer, ServerTls};
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

/// A coordinator that is none.
pub(crate) struct Impostor {
    _runtime: Runtime,
    heard: Receiver<(String, FromAgent)>,
    /// What was said by others while one host was listened to.
    unheard: RefCell<Vec<(String, FromAgent)>>,
    shared: Shared,
    /// The leadership that the real coordinator had.
    leadership: (u64, u64),
}

#[derive(Clone)]
struct Shared {
    /// Each agent's newest stream, by the name in its certificate.
    frames: Arc<Mutex<BTreeMap<String, Outbox>>>,
    hears: Arc<Mutex<Sender<(String, FromAgent)>>>,
    blobs: Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>,
    /// How blobs are sent that are not held at all.
    unheld: Arc<Mutex<Option<Endless>>>,
    /// It has the real one's audit log and key as well.
    log: Arc<Log>,
    leadership: (u64, u64),
}

/// A download that never comes to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Endless {
    /// Full chunks, as fast as they are taken.
    Flood,
    /// Chunks with nothing in them.
    Empty,
    /// A byte now and then.
    Drip,
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
            unheld: Arc::default(),
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
        let (unheard, leadership) = (RefCell::default(), (status.incarnation, status.term));
        Self { _runtime: runtime, heard, unheard, shared, leadership }
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

    /// From now on sends without end what it does not hold.
    pub(crate) fn never_end(&self, how: Endless) {
        *self.shared.unheld.lock().unwrap() = Some(how);
    }

    /// Says something to all agents, in the term of the real coordinator.
    pub(crate) fn say(&self, body: ToAgent) {
        self.say_in_term(self.leadership.1, body);
    }

    /// The same in another term.
    pub(crate) fn say_in_term(&self, term: u64, body: ToAgent) {
        let streams = self.shared.frames.lock().unwrap().clone();
        assert!(!streams.is_empty(), "no agent is connected");
        for frames in streams.into_values() {
            let frame = in_name_of((self.leadership.0, term), body.clone());
            frames.blocking_send(Ok(frame)).unwrap();
        }
    }

    /// Says something to one agent.
    pub(crate) fn say_to(&self, host: &str, body: ToAgent) {
        let frames = self.shared.frames.lock().unwrap().get(host).cloned();
        let frames = frames.unwrap_or_else(|| panic!("{host} is not connected"));
        frames.blocking_send(Ok(in_name_of(self.leadership, body))).unwrap();
    }

    /// The same in a later life of the database, with nothing to show for it.
    pub(crate) fn say_in_next_life(&self, body: ToAgent) {
        let streams = self.shared.frames.lock().unwrap().clone();
        assert!(!streams.is_empty(), "no agent is connected");
        for frames in streams.into_values() {
            let frame = in_name_of((self.leadership.0 + 1, 1), body.clone());
            frames.blocking_send(Ok(frame)).unwrap();
        }
    }

    /// Waits for something that any agent says, and passes over everything else.
    #[track_caller]
    pub(crate) fn hear<T>(&self, what: &str, mut take: impl FnMut(FromAgent) -> Option<T>) -> T {
        let mut others = Vec::new();
        loop {
            let heard = self.heard.recv_timeout(PATIENCE);
            let (_, body) = heard.unwrap_or_else(|_| panic!("no agent said {what}, but {others:?}"));
            if let Some(taken) = take(body.clone()) {
                return taken;
            }
            others.push(body);
        }
    }

    /// Waits for something that this agent says, and passes over everything else of it; what the others say is kept.
    #[track_caller]
    pub(crate) fn hear_from<T>(
        &self,
        host: &str,
        what: &str,
        mut take: impl FnMut(FromAgent) -> Option<T>,
    ) -> T {
        let (its, of_others) = self.unheard.take().into_iter().partition(|(who, _)| who == host);
        self.unheard.replace(of_others);
        let its: Vec<(String, FromAgent)> = its;
        let mut its = its.into_iter();
        let mut others = Vec::new();
        loop {
            let heard = its.next().or_else(|| self.heard.recv_timeout(PATIENCE).ok());
            let (who, body) = heard.unwrap_or_else(|| panic!("{host} did not say {what}, but {others:?}"));
            if who != host {
                self.unheard.borrow_mut().push((who, body));
                continue;
            }
            if let Some(taken) = take(body.clone()) {
                self.unheard.borrow_mut().extend(its);
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
        let peer = request.extensions().get::<Peer>().expect("a peer with a certificate");
        let who = peer.identity.name.as_str().to_owned();
        self.frames.lock().unwrap().insert(who.clone(), frames.clone());
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
                    let _ = hears.lock().unwrap().send((who.clone(), body));
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
        if let (None, Some(how)) = (&blob, *self.unheld.lock().unwrap()) {
            return Ok(Response::new(without_end(how)));
        }
        let blob = blob.ok_or_else(|| Status::not_found("no such blob"))?;
        let chunks: Vec<_> =
            blob.chunks(64 << 10).map(|chunk| Ok(v1::DownloadResponse { chunk: chunk.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}

fn without_end(how: Endless) -> Chunks {
    let chunk = |bytes: usize| Ok(v1::DownloadResponse { chunk: vec![b'x'; bytes] });
    match how {
        Endless::Flood => Box::pin(tokio_stream::iter(std::iter::repeat_with(move || chunk(64 << 10)))),
        Endless::Empty => Box::pin(tokio_stream::iter(std::iter::repeat_with(move || chunk(0)))),
        Endless::Drip => {
            let ticks = tokio::time::interval(std::time::Duration::from_millis(500));
            Box::pin(tokio_stream::wrappers::IntervalStream::new(ticks).map(move |_| chunk(1)))
        }
    }
}
