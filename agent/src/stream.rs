//! The one stream to the coordinator: connected, lost, connected again; and frames handed to their fleet.

use std::sync::Arc;
use std::time::Duration;

use muster_daemon::{Machine, Shutdown};
use muster_model::{Code, FleetName, HostName, Incarnation, Leadership, Term};
use muster_mtls::{ConnectOptions, Serial, Start, connect_through};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body as Reply;
use muster_proto::v1::control_client::ControlClient;
use muster_proto::v1::coordinator_frame::Body;
use muster_trust::{RootChain, Succession};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::agent::Coordinator;
use crate::backoff::Backoff;
use crate::check::Checker;
use crate::deploy::Deployer;
use crate::driver::Input;
use crate::teller::Teller;
use crate::uplink::{FRAMES_MAX, Uplink};
use crate::{AgentError, Enforce, refusal, witness};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How long the coordinator may take to answer the call that begins the stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether the stream's certificate is still the present one.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(1);

/// The most root documents that are read of one message.
const ROOTS_MAX: usize = 64;

/// Where the frames of one fleet go.
pub(crate) struct Route {
    pub(crate) fleet: FleetName,
    pub(crate) enforce: Enforce,
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) deployer: Deployer,
    pub(crate) checker: Checker,
    pub(crate) teller: Teller,
}

/// Keeps the stream.
pub(crate) struct Line {
    pub(crate) coordinator: Coordinator,
    pub(crate) host: HostName,
    pub(crate) machine: Machine,
    pub(crate) routes: Vec<Route>,
    pub(crate) roots: Arc<RootChain>,
}

/// How a stream ended.
#[derive(Debug)]
enum Ended {
    /// It never began.
    NotConnected(muster_mtls::Error),
    /// The coordinator or the network ended it.
    Lost(Box<Status>),
    /// The coordinator closed it in good order.
    Closed,
    /// The coordinator did not answer the call.
    Unanswered,
    /// A fleet of this host ended it.
    ByUs,
    /// The coordinator said something that is not of the protocol.
    Senseless(convert::ConvertError),
    /// The agent is ending.
    Shutdown,
}

/// Whether some fleet has joined over a stream: then the next attempt is soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Strange,
    Joined,
}

impl Line {
    /// Runs until the agent ends.
    pub(crate) async fn run(self, shutdown: Shutdown) -> Result<(), AgentError> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        // At the start as well: after a power cut a thousand agents come at once.
        loop {
            let random = self.machine.random_u64().map_err(|source| AgentError::Random { source })?;
            tokio::select! {
                () = tokio::time::sleep(backoff.next(random)) => {}
                () = shutdown.requested() => return Ok(()),
            }
            let (ended, standing) = self.session(&shutdown).await;
            if standing == Standing::Joined {
                backoff.reset();
            }
            if matches!(ended, Ended::Shutdown) {
                return Ok(());
            }
            self.log(&ended);
        }
    }

    /// One stream, from connecting to its end. All fleets are told of both.
    async fn session(&self, shutdown: &Shutdown) -> (Ended, Standing) {
        let options = ConnectOptions { start: Start::Eager, ..ConnectOptions::default() };
        let Coordinator { address, tls, dialer } = &self.coordinator;
        let serial = tls.credentials().serial().clone();
        let connecting = connect_through(dialer, address, tls, options);
        let channel = tokio::select! {
            connected = connecting => match connected {
                Ok(channel) => channel,
                Err(error) => return (Ended::NotConnected(error), Standing::Strange),
            },
            () = shutdown.requested() => return (Ended::Shutdown, Standing::Strange),
        };
        let (frames, outgoing) = mpsc::channel(FRAMES_MAX);
        let uplink = Uplink::new(frames, channel.clone());
        // Before the call is answered: a coordinator may wait for the first frame.
        self.tell_all(|| Input::Attached(uplink.clone())).await;
        let mut standing = Standing::Strange;
        let ended = tokio::select! {
            biased;
            ended = self.converse(&uplink, channel, outgoing, &mut standing) => ended,
            () = uplink.ended() => Ended::ByUs,
            () = self.outlived(&serial) => {
                tracing::info!("the stream begins anew with the new certificate");
                Ended::ByUs
            }
            () = shutdown.requested() => Ended::Shutdown,
        };
        self.tell_all(|| Input::Detached).await;
        (ended, standing)
    }

    /// Resolves once there is another certificate than the stream began with, and all fleets are at rest: a host that lost
    /// its session while it is armed might have to stop serving.
    async fn outlived(&self, began_with: &Serial) {
        loop {
            tokio::time::sleep(CERTIFICATE_LOOK).await;
            if self.coordinator.tls.credentials().serial() != began_with && self.are_all_at_rest().await {
                return;
            }
        }
    }

    async fn are_all_at_rest(&self) -> bool {
        for route in &self.routes {
            let (reply, answer) = oneshot::channel();
            // A driver that has ended has ended the agent as well.
            let _ = route.inbox.send(Input::AskAtRest(reply)).await;
            if answer.await != Ok(true) {
                return false;
            }
        }
        true
    }

    async fn converse(
        &self,
        uplink: &Uplink,
        channel: Channel,
        outgoing: mpsc::Receiver<v1::AgentFrame>,
        standing: &mut Standing,
    ) -> Ended {
        let mut client = ControlClient::new(channel);
        let calling = client.attach(ReceiverStream::new(outgoing));
        let mut incoming: Streaming<v1::CoordinatorFrame> =
            match tokio::time::timeout(ANSWER_TIMEOUT, calling).await {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => return Ended::Lost(Box::new(status)),
                Err(_) => return Ended::Unanswered,
            };
        loop {
            let frame = match incoming.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ended::Closed,
                Err(status) => return Ended::Lost(Box::new(status)),
            };
            if matches!(frame.body, Some(Body::Joined(_))) {
                *standing = Standing::Joined;
            }
            if let Err(error) = self.hand_over(frame, uplink).await {
                return Ended::Senseless(error);
            }
        }
    }

    async fn hand_over(
        &self,
        frame: v1::CoordinatorFrame,
        uplink: &Uplink,
    ) -> Result<(), convert::ConvertError> {
        let fleet = convert::fleet(&frame.fleet)?;
        let Some(route) = self.routes.iter().find(|route| route.fleet == fleet) else {
            self.refuse(&fleet, Code::FleetUnknown, "this host is not configured for the fleet", uplink);
            return Ok(());
        };
        let leadership = Leadership { incarnation: Incarnation(frame.incarnation), term: Term(frame.term) };
        match frame.body {
            Some(Body::Deploy(deploy)) => route.deployer.begin(deploy, uplink.clone()),
            Some(Body::Roots(roots)) => {
                let before = self.roots.in_force();
                self.follow(roots).await;
                if self.roots.in_force().root().version != before.root().version {
                    self.tell_all(|| Input::RootFollowed).await;
                }
            }
            Some(Body::AuditShown(shown)) => {
                let offer = witness::offer(shown)?;
                // A driver that has ended has ended the agent as well.
                let _ = route.inbox.send(Input::AuditShown(Box::new(offer))).await;
            }
            Some(Body::Mandate(mandate)) => {
                route.teller.mandate(&mandate.envelope, &self.roots, &self.machine).await
            }
            Some(Body::GlassSettled(settled)) => {
                route.teller.glass_settled(&settled.envelope, &self.roots, &self.machine).await
            }
            Some(Body::Recall(v1::Recall {})) => {
                // A driver that has ended has ended the agent as well.
                let _ = route.inbox.send(Input::Recall).await;
            }
            Some(Body::ReadDocument(read)) => route.teller.read(&read, uplink.clone())?,
            Some(Body::RosterShown(shown)) => route.teller.roster(&shown, uplink)?,
            Some(Body::Check(check)) => route.checker.begin(check, uplink.clone()),
            Some(body) => {
                if let Some(message) = convert::from_coordinator(body)? {
                    if let Some((k, refusal)) = route.enforce.refuses(&self.host, &message) {
                        tracing::info!(%fleet, %k, %refusal, "takes no part");
                        let refused = v1::Refused { k: Some(k.0), refusal: Some(refusal.into()) };
                        uplink.send(&fleet, Reply::Refused(refused));
                        return Ok(());
                    }
                    // A driver that has ended has ended the agent as well.
                    let _ = route.inbox.send(Input::Said(leadership, message)).await;
                }
            }
            None => self.refuse(&fleet, Code::Unsupported, "this agent does not know the message", uplink),
        }
        Ok(())
    }

    /// Takes the roots that follow the one in force, before anything else is read of the stream: what comes next may be
    /// signed by their keys. One that does not verify is left, and with it those after it.
    async fn follow(&self, roots: v1::Roots) {
        for successor in roots.successors.into_iter().take(ROOTS_MAX) {
            // Whoever lies about the version has only kept a root back.
            if successor.version <= self.roots.in_force().root().version {
                continue;
            }
            let chain = Arc::clone(&self.roots);
            match self.machine.run_blocking(move || chain.succeed(&successor.envelope)).await {
                Ok(Ok(Succession::Taken(root))) => {
                    tracing::info!(version = root.root().version, "a new root document is in force");
                }
                Ok(Ok(Succession::Known)) => {}
                Ok(Err(error)) => {
                    let error = refusal::chain(&error);
                    tracing::warn!(version = successor.version, error, "refused a root document");
                    return;
                }
                Err(error) => return tracing::error!(%error, "following a root document failed"),
            }
        }
    }

    fn refuse(&self, fleet: &FleetName, code: Code, detail: &str, uplink: &Uplink) {
        let refusal = refusal::at(&self.host, code, detail);
        tracing::warn!(%fleet, %refusal, "refused a frame");
        uplink.send(fleet, Reply::Refused(v1::Refused { k: None, refusal: Some(refusal.into()) }));
    }

    async fn tell_all(&self, input: impl Fn() -> Input) {
        for route in &self.routes {
            // A driver that has ended has ended the agent as well.
            let _ = route.inbox.send(input()).await;
        }
    }

    fn log(&self, ended: &Ended) {
        let coordinator = &self.coordinator.address;
        match ended {
            Ended::NotConnected(muster_mtls::Error::Connect(failure)) if failure.is_of_revoked() => {
                tracing::error!(
                    %coordinator,
                    "this host was evicted, or its certificate was revoked: the coordinator lets it in no more; what it \
                     serves it goes on serving. An operator can let it enrol anew: muster host token {}",
                    self.host
                );
            }
            Ended::NotConnected(error) => {
                tracing::warn!(%coordinator, error = refusal::chain(error), "cannot connect");
            }
            Ended::Lost(status) => {
                tracing::warn!(%coordinator, error = refusal::chain(status), "the stream was lost");
            }
            Ended::Senseless(error) => {
                tracing::warn!(%coordinator, %error, "the coordinator does not keep to the protocol");
            }
            Ended::Closed => tracing::info!(%coordinator, "the coordinator closed the stream"),
            Ended::Unanswered => tracing::warn!(%coordinator, "the coordinator does not answer"),
            Ended::ByUs => tracing::info!(%coordinator, "the stream was ended, to begin anew"),
            Ended::Shutdown => {}
        }
    }
}
