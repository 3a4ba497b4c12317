//! The way to the coordinator, as those see it who have something to say.

use std::sync::Arc;

use muster_model::FleetName;
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, error::TrySendError};
use tonic::transport::Channel;

/// How many frames may wait for the network. Whoever does not read that many is as good as gone.
pub(crate) const FRAMES_MAX: usize = 1024;

/// One stream to the coordinator. Clones share it. After the stream has ended, nothing that is said here goes anywhere:
/// messages of an ended stream must not appear on the next one.
#[derive(Debug, Clone)]
pub(crate) struct Uplink {
    frames: mpsc::Sender<v1::AgentFrame>,
    channel: Channel,
    ending: Arc<Notify>,
}

impl Uplink {
    /// The stream whose frames `frames` takes, over `channel`.
    pub(crate) fn new(frames: mpsc::Sender<v1::AgentFrame>, channel: Channel) -> Self {
        Self { frames, channel, ending: Arc::new(Notify::new()) }
    }

    /// Says something. If the queue is full, the stream ends: a message that must not be lost takes its stream with it.
    pub(crate) fn send(&self, fleet: &FleetName, body: Body) {
        match self.frames.try_send(frame(fleet, body)) {
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!(%fleet, "the coordinator does not read what this host says");
                self.end();
            }
        }
    }

    /// Says something that nobody misses if there is no room for it.
    pub(crate) fn offer(&self, fleet: &FleetName, body: Body) {
        if self.frames.capacity() > FRAMES_MAX / 2 {
            // It may have ended meanwhile, and then nobody waits for it.
            let _ = self.frames.try_send(frame(fleet, body));
        }
    }

    /// Ends the stream, of all fleets.
    pub(crate) fn end(&self) {
        self.ending.notify_one();
    }

    /// Resolves once somebody has ended the stream.
    pub(crate) async fn ended(&self) {
        self.ending.notified().await;
    }

    /// The connection, for calls beside the stream.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Whether both are the same stream.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.ending, &other.ending)
    }
}

fn frame(fleet: &FleetName, body: Body) -> v1::AgentFrame {
    v1::AgentFrame { fleet: fleet.as_str().to_owned(), body: Some(body) }
}
