//! A caller that speaks the wire itself, and so can say what `muster` and the agent never would.

use std::time::Duration;

use muster_model::{Digest, Document, Refusal};
use muster_mtls::{Address, ClientTls, ConnectOptions, Credentials, Role};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::blobs_client::BlobsClient;
use muster_proto::v1::control_client::ControlClient;
use muster_proto::v1::coordinator_frame::Body;
use muster_proto::v1::operations_client::OperationsClient;
use muster_proto::v1::upload_request::Part;
use muster_trust::{SigningKey, sign};
use prost::Message as _;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
pub(crate) use tonic_health::pb::health_check_response::ServingStatus as Health;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

use super::{FLEET, Fleet, PATIENCE};

/// How much one message of an upload carries.
const CHUNK_BYTES: usize = 64 << 10;

/// A connection to a fleet's coordinator.
pub(crate) struct Caller {
    runtime: Runtime,
    channel: Channel,
}

/// An agent's stream, in a test's hands.
pub(crate) struct Attached<'a> {
    caller: &'a Caller,
    frames: mpsc::Sender<v1::AgentFrame>,
    incoming: Streaming<v1::CoordinatorFrame>,
}

/// A document signed with these keys.
pub(crate) fn signed(document: &impl Document, key: &SigningKey) -> Vec<u8> {
    sign(document, &[key]).unwrap().raw().to_vec()
}

/// The refusal that a status carries.
#[track_caller]
pub(crate) fn refusal_of(status: &Status) -> Refusal {
    let wire = v1::Refusal::decode(status.details()).unwrap_or_else(|error| panic!("{status}: {error}"));
    convert::refusal(Some(wire)).unwrap_or_else(|error| panic!("{status}: {error}"))
}

impl Caller {
    /// Connects with these credentials.
    pub(crate) fn connect(fleet: &Fleet, credentials: &Credentials) -> Result<Self, muster_mtls::Error> {
        Self::connect_to(&fleet.address(), credentials)
    }

    /// The same for whoever has no fleet at hand.
    pub(crate) fn connect_to(
        address: &Address,
        credentials: &Credentials,
    ) -> Result<Self, muster_mtls::Error> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tls = ClientTls::new(credentials)?;
        let connecting = async { muster_mtls::connect(address, &tls, ConnectOptions::default()).await };
        let channel = runtime.block_on(connecting)?;
        Ok(Self { runtime, channel })
    }

    /// Connects as an operator.
    pub(crate) fn operator(fleet: &Fleet) -> Self {
        Self::connect(fleet, &fleet.credentials(Role::Operator, "mallory")).unwrap()
    }

    /// Waits for an answer, with a deadline.
    #[track_caller]
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await });
        answer.expect("no answer came in time")
    }

    /// Calls whatever is at this path with an empty message, and reports whether the call was let in.
    pub(crate) fn call(&self, path: &str) -> Result<(), Status> {
        self.wait(async {
            let mut client = Grpc::new(self.channel.clone());
            client.ready().await.map_err(|error| Status::from_error(error.into()))?;
            let request = Request::new(tokio_stream::once(()));
            let codec = ProstCodec::<(), ()>::default();
            client.streaming(request, path.parse::<PathAndQuery>().unwrap(), codec).await.map(drop)
        })
    }

    /// The operators' calls.
    pub(crate) fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel.clone())
    }

    /// Uploads `bytes` under a name and a size that may be lies.
    pub(crate) fn upload(&self, name: Digest, size: u64, bytes: &[u8]) -> Result<(), Status> {
        let header = v1::BlobHeader { digest: name.as_bytes().to_vec(), size };
        let chunks = bytes.chunks(CHUNK_BYTES).map(|chunk| Part::Chunk(chunk.to_vec()));
        self.upload_parts(std::iter::once(Part::Header(header)).chain(chunks).collect())
    }

    /// Uploads any sequence of messages.
    pub(crate) fn upload_parts(&self, parts: Vec<Part>) -> Result<(), Status> {
        let requests = parts.into_iter().map(|part| v1::UploadRequest { part: Some(part) });
        let requests = tokio_stream::iter(requests.collect::<Vec<_>>());
        let mut client = BlobsClient::new(self.channel.clone());
        self.wait(client.upload(requests)).map(drop)
    }

    /// Uploads `bytes` under their own name.
    pub(crate) fn keep(&self, bytes: &[u8]) -> Digest {
        let name = Digest::of(bytes);
        self.upload(name, bytes.len() as u64, bytes).unwrap();
        name
    }

    /// Whether the coordinator holds a blob of this name.
    pub(crate) fn holds(&self, name: Digest) -> bool {
        let request = v1::FindMissingRequest { digests: vec![name.as_bytes().to_vec()] };
        let mut client = BlobsClient::new(self.channel.clone());
        self.wait(client.find_missing(request)).unwrap().into_inner().digests.is_empty()
    }

    /// Submits a release; gives the refusal if it is not taken.
    pub(crate) fn submit(&self, envelope: Vec<u8>) -> Result<(), Status> {
        let mut client = self.operations();
        self.wait(client.submit_release(v1::SubmitReleaseRequest { envelope })).map(drop)
    }

    /// The fleet's status, as it is on the wire.
    pub(crate) fn status(&self) -> v1::FleetStatus {
        let mut client = self.operations();
        self.wait(client.status(v1::StatusRequest { fleet: FLEET.to_owned() })).unwrap().into_inner()
    }

    /// The same, or nothing if there is no answer by then.
    pub(crate) fn status_within(&self, patience: Duration) -> Option<v1::FleetStatus> {
        let mut client = self.operations();
        let answer = self.runtime.block_on(async {
            let request = v1::StatusRequest { fleet: FLEET.to_owned() };
            tokio::time::timeout(patience, client.status(request)).await
        });
        Some(answer.ok()?.ok()?.into_inner())
    }

    /// The envelope of the roster in force.
    pub(crate) fn roster(&self) -> Vec<u8> {
        let mut client = self.operations();
        let request = v1::ShowRosterRequest { fleet: FLEET.to_owned() };
        self.wait(client.show_roster(request)).unwrap().into_inner().envelope
    }

    /// Applies a roster.
    pub(crate) fn apply_roster(&self, envelope: Vec<u8>) -> Result<(), Status> {
        let mut client = self.operations();
        self.wait(client.apply_roster(v1::ApplyRosterRequest { envelope, fenced: Vec::new() })).map(drop)
    }

    /// Hands a roster in to which hosts were added.
    pub(crate) fn add_hosts(&self, envelope: Vec<u8>) -> Result<(), Status> {
        let mut client = self.operations();
        self.wait(client.add_hosts(v1::AddHostsRequest { envelope })).map(drop)
    }

    /// Applies a roster, with a statement beside it that hosts are off.
    pub(crate) fn apply_roster_stating(&self, envelope: Vec<u8>, fenced: &[&str]) -> Result<(), Status> {
        let mut client = self.operations();
        let fenced = fenced.iter().map(|host| (*host).to_owned()).collect();
        self.wait(client.apply_roster(v1::ApplyRosterRequest { envelope, fenced })).map(drop)
    }

    /// Proposes a flip, and does not stay to see how it goes.
    pub(crate) fn flip(&self, order_envelope: Vec<u8>) -> Result<(), Status> {
        let mut client = self.operations();
        let request = v1::FlipRequest { order_envelope, timeout_ms: 10_000, contingency_envelope: None };
        self.wait(client.flip(request)).map(drop)
    }

    /// What the coordinator's health says of a service; of the empty name, of itself.
    pub(crate) fn health(&self, service: &str) -> Health {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = self.wait(HealthClient::new(self.channel.clone()).check(request));
        answer.unwrap().into_inner().status()
    }

    /// Begins an agent's stream.
    pub(crate) fn attach(&self) -> Attached<'_> {
        let (frames, outgoing) = mpsc::channel(16);
        let mut client = ControlClient::new(self.channel.clone()).max_encoding_message_size(16 << 20);
        let incoming = self.wait(client.attach(ReceiverStream::new(outgoing))).unwrap().into_inner();
        Attached { caller: self, frames, incoming }
    }
}

impl Attached<'_> {
    /// Says something in the name of the fleet. Nobody may be listening any more.
    pub(crate) fn say(&self, body: v1::agent_frame::Body) {
        self.say_of(FLEET, body);
    }

    /// The same of another fleet.
    pub(crate) fn say_of(&self, fleet: &str, body: v1::agent_frame::Body) {
        let frame = v1::AgentFrame { fleet: fleet.to_owned(), body: Some(body) };
        let _ = self.caller.wait(self.frames.send(frame));
    }

    /// What the coordinator says next beside showing its audit log and roster; nothing once it has ended the stream in good order.
    pub(crate) fn hear(&mut self) -> Result<Option<Body>, Status> {
        loop {
            let frame = self.caller.wait(self.incoming.message())?;
            let body = frame.map(|frame| frame.body.expect("a frame has a body"));
            if !matches!(body, Some(Body::AuditShown(_) | Body::RosterShown(_))) {
                return Ok(body);
            }
        }
    }
}
