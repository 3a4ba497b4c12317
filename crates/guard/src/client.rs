//! Asking a guard over its socket.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_model::{BootTime, Digest, Epoch, FleetName, HaltId, RolloutId};

use crate::Guard;
use crate::error::GuardError;
use crate::frame::{self, FrameError, Patience};
use crate::protocol::{
    Armed, Drill, Event, FleetState, Hello, Opened, PROTOCOL, REASON_BYTES_MAX, Reply, ReplyFrame, Request,
    RequestFrame, Running,
};
use crate::socket;

/// For questions that the guard answers from what it sees.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// For a service that takes its time to stop or start. The guard has its own, shorter bounds for each service; only one
/// that is configured to take longer needs [`GuardClient::with_change_patience`].
const CHANGE_PATIENCE: Duration = Duration::from_secs(90);

/// Longer than the longest self-test that a configuration may name.
const REHEARSAL_PATIENCE: Duration = Duration::from_secs(11 * 60);

const FRAME_PATIENCE: Duration = Duration::from_secs(5);

/// A client of one guard. Each call makes its own connection, so that a guard that was restarted is simply asked again,
/// and calls from several threads do not wait for each other. The calls block.
#[derive(Debug)]
pub struct GuardClient {
    socket: PathBuf,
    change_patience: Duration,
    next_id: AtomicU64,
}

/// What happens on the host, from the moment of asking: an iterator that blocks. It ends with an error when the guard
/// goes, or when it had more to say than this side took; ask for the status after watching anew.
#[derive(Debug)]
pub struct Watch {
    stream: UnixStream,
    socket: PathBuf,
    id: u64,
}

/// Ends a [`Watch`] from another thread.
#[derive(Debug)]
pub struct WatchCloser(UnixStream);

impl GuardClient {
    /// A client of the guard on `socket`, which need not be there yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), change_patience: CHANGE_PATIENCE, next_id: AtomicU64::new(1) }
    }

    /// A client of the guard on `socket`, once it has said who it is and that it speaks this protocol.
    pub fn connect(socket: &Path) -> Result<(Self, Hello), GuardError> {
        let client = Self::new(socket);
        let hello = client.hello()?;
        Ok((client, hello))
    }

    /// How long an answer may take that waits for a service or a hook: all but `status`, `arm`, `renew`, `disarm` and
    /// `decide`.
    #[must_use]
    pub fn with_change_patience(mut self, patience: Duration) -> Self {
        self.change_patience = patience;
        self
    }

    /// Who answers on the socket.
    pub fn hello(&self) -> Result<Hello, GuardError> {
        match self.ask(&Request::Hello {}, ANSWER_PATIENCE)? {
            Reply::Hello(hello) => Ok(hello),
            reply @ (Reply::State(_)
            | Reply::Drilled(_)
            | Reply::Running(_)
            | Reply::Watching
            | Reply::Event(_)
            | Reply::Refused { .. }) => Err(unexpected(&reply)),
        }
    }

    /// Tells from now on what happens without being asked for.
    pub fn watch(&self) -> Result<Watch, GuardError> {
        let (stream, reply, id) = self.begin(&Request::Watch {}, ANSWER_PATIENCE)?;
        if reply == Reply::Watching {
            Ok(Watch { stream, socket: self.socket.clone(), id })
        } else {
            Err(unexpected(&reply))
        }
    }

    fn state(&self, request: &Request, patience: Duration) -> Result<FleetState, GuardError> {
        match self.ask(request, patience)? {
            Reply::State(state) => Ok(*state),
            reply @ (Reply::Hello(_)
            | Reply::Drilled(_)
            | Reply::Running(_)
            | Reply::Watching
            | Reply::Event(_)
            | Reply::Refused { .. }) => Err(unexpected(&reply)),
        }
    }

    fn ask(&self, request: &Request, patience: Duration) -> Result<Reply, GuardError> {
        self.begin(request, patience).map(|(_, reply, _)| reply)
    }

    fn begin(&self, request: &Request, patience: Duration) -> Result<(UnixStream, Reply, u64), GuardError> {
        let stream = socket::connect(&self.socket, FRAME_PATIENCE).map_err(unreachable_at(&self.socket))?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = serde_json::to_value(request).expect("a request of plain fields is always JSON");
        let sent = frame::write(&stream, &RequestFrame { protocol: PROTOCOL, id, request });
        // A guard that refuses the connection answers without reading, and its answer says more than a broken pipe.
        let patience = Patience { idle: Some(patience), frame: FRAME_PATIENCE };
        let reply = match (receive(&stream, &self.socket, id, patience), sent) {
            (Err(GuardError::Unreachable { .. }), Err(error)) => Err(unreachable_at(&self.socket)(error)),
            (answer, _) => answer,
        }?;
        Ok((stream, reply, id))
    }
}

impl Guard for GuardClient {
    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.state(&Request::Status { fleet: fleet.clone() }, ANSWER_PATIENCE)
    }

    fn close(&self, fleet: &FleetName, drain: Option<Duration>) -> Result<FleetState, GuardError> {
        let drain_ms = drain.map(|drain| u64::try_from(drain.as_millis()).unwrap_or(u64::MAX));
        let request = Request::Close { fleet: fleet.clone(), drain_ms };
        self.state(&request, self.change_patience + drain.unwrap_or_default())
    }

    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError> {
        self.state(&Request::Open { fleet: fleet.clone(), epoch, digest }, self.change_patience)
    }

    fn arm(&self, fleet: &FleetName, arm: Armed) -> Result<FleetState, GuardError> {
        self.state(&Request::Arm { fleet: fleet.clone(), arm }, ANSWER_PATIENCE)
    }

    fn renew(&self, fleet: &FleetName, k: RolloutId, deadline: BootTime) -> Result<FleetState, GuardError> {
        let request = Request::Renew { fleet: fleet.clone(), k, deadline_boot_ms: deadline };
        self.state(&request, ANSWER_PATIENCE)
    }

    fn disarm(&self, fleet: &FleetName, k: RolloutId) -> Result<FleetState, GuardError> {
        self.state(&Request::Disarm { fleet: fleet.clone(), k }, ANSWER_PATIENCE)
    }

    fn decide(
        &self,
        fleet: &FleetName,
        k: RolloutId,
        at: BootTime,
        to: Opened,
    ) -> Result<FleetState, GuardError> {
        self.state(&Request::Decide { fleet: fleet.clone(), k, at_boot_ms: at, to }, ANSWER_PATIENCE)
    }

    fn quiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.state(&Request::Quiesce { fleet: fleet.clone() }, self.change_patience)
    }

    fn unquiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.state(&Request::Unquiesce { fleet: fleet.clone() }, self.change_patience)
    }

    fn rehearse(&self, fleet: &FleetName, digest: Digest) -> Result<FleetState, GuardError> {
        self.state(&Request::Rehearse { fleet: fleet.clone(), digest }, REHEARSAL_PATIENCE)
    }

    fn doubt(&self, fleet: &FleetName, epoch: Epoch, reason: &str) -> Result<FleetState, GuardError> {
        let reason = bounded(reason);
        self.state(&Request::Doubt { fleet: fleet.clone(), epoch, reason }, self.change_patience)
    }

    fn trust(&self, fleet: &FleetName, epoch: Epoch) -> Result<FleetState, GuardError> {
        self.state(&Request::Trust { fleet: fleet.clone(), epoch }, self.change_patience)
    }

    fn fence(&self, fleet: &FleetName, epoch: Epoch, reason: &str) -> Result<FleetState, GuardError> {
        let reason = bounded(reason);
        self.state(&Request::Fence { fleet: fleet.clone(), epoch, reason }, self.change_patience)
    }

    fn running(&self, fleet: &FleetName) -> Result<Option<Running>, GuardError> {
        // All that the service executes is read.
        match self.ask(&Request::Running { fleet: fleet.clone() }, self.change_patience)? {
            Reply::Running(running) => Ok(running.map(|running| *running)),
            reply @ (Reply::Hello(_)
            | Reply::State(_)
            | Reply::Drilled(_)
            | Reply::Watching
            | Reply::Event(_)
            | Reply::Refused { .. }) => Err(unexpected(&reply)),
        }
    }

    fn drill(&self, fleet: &FleetName, runs: u32) -> Result<Drill, GuardError> {
        match self.ask(&Request::Drill { fleet: fleet.clone(), runs }, self.change_patience)? {
            Reply::Drilled(drill) => Ok(drill),
            reply @ (Reply::Hello(_)
            | Reply::State(_)
            | Reply::Running(_)
            | Reply::Watching
            | Reply::Event(_)
            | Reply::Refused { .. }) => Err(unexpected(&reply)),
        }
    }

    fn halt(&self, fleet: &FleetName, reason: &str) -> Result<FleetState, GuardError> {
        let request = Request::Halt { fleet: fleet.clone(), reason: reason.to_owned() };
        self.state(&request, self.change_patience)
    }

    fn resume(&self, fleet: &FleetName, halt: HaltId) -> Result<FleetState, GuardError> {
        self.state(&Request::Resume { fleet: fleet.clone(), halt }, self.change_patience)
    }
}

impl Watch {
    /// What ends this watch from another thread.
    pub fn closer(&self) -> Result<WatchCloser, GuardError> {
        self.stream.try_clone().map(WatchCloser).map_err(unreachable_at(&self.socket))
    }
}

impl Iterator for Watch {
    type Item = Result<Event, GuardError>;

    fn next(&mut self) -> Option<Self::Item> {
        let patience = Patience { idle: None, frame: FRAME_PATIENCE };
        Some(match receive(&self.stream, &self.socket, self.id, patience) {
            Ok(Reply::Event(event)) => Ok(event),
            Ok(
                reply @ (Reply::Hello(_)
                | Reply::State(_)
                | Reply::Drilled(_)
                | Reply::Running(_)
                | Reply::Watching
                | Reply::Refused { .. }),
            ) => Err(unexpected(&reply)),
            Err(error) => Err(error),
        })
    }
}

impl WatchCloser {
    /// Ends the watch: its next item is an error.
    pub fn close(&self) {
        // A watch that has ended already needs no ending.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Receives the answer to `id`. An answer to 0 is about the connection, and as such about every request on it.
fn receive(stream: &UnixStream, socket: &Path, id: u64, patience: Patience) -> Result<Reply, GuardError> {
    let frame = frame::read::<ReplyFrame>(stream, patience).map_err(|error| match error {
        FrameError::Io(source) => unreachable_at(socket)(source),
        error @ (FrameError::Length(_) | FrameError::Json(_)) => {
            GuardError::Protocol { detail: error.to_string() }
        }
    })?;
    let gone = || unreachable_at(socket)(io::ErrorKind::UnexpectedEof.into());
    let ReplyFrame { id: answered, reply } = frame.ok_or_else(gone)?;
    if answered == id || (answered == 0 && matches!(reply, Reply::Refused { .. })) {
        return match reply {
            Reply::Refused { code, detail } => Err(GuardError::Refused { code, detail }),
            Reply::Hello(_)
            | Reply::State(_)
            | Reply::Drilled(_)
            | Reply::Running(_)
            | Reply::Watching
            | Reply::Event(_) => Ok(reply),
        };
    }
    Err(GuardError::Protocol { detail: format!("an answer to request {answered} instead of {id}") })
}

/// A reason as the guard takes it.
fn bounded(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned()
}

fn unexpected(reply: &Reply) -> GuardError {
    GuardError::Protocol { detail: format!("an answer that was not asked for: {reply:?}") }
}

fn unreachable_at(socket: &Path) -> impl FnOnce(io::Error) -> GuardError {
    let socket = socket.to_owned();
    move |source| GuardError::Unreachable { socket, source }
}
