//! The connections that are open, so that those can be ended which would not be let in again.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::acceptor::Peer;

/// All open connections of one server. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct OpenConnections(Arc<Mutex<Members>>);

#[derive(Default)]
struct Members {
    next: u64,
    open: BTreeMap<u64, (Peer, oneshot::Sender<()>)>,
}

/// One connection's place among the open ones, for as long as it lives.
pub struct Membership {
    number: u64,
    connections: OpenConnections,
    end: oneshot::Receiver<()>,
    has_ended: bool,
}

impl OpenConnections {
    /// A connection was opened.
    pub(crate) fn enter(&self, peer: Peer) -> Membership {
        let (sender, end) = oneshot::channel();
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = members.next;
        members.next += 1;
        members.open.insert(number, (peer, sender));
        Membership { number, connections: self.clone(), end, has_ended: false }
    }

    /// Who is connected.
    pub(crate) fn peers(&self) -> Vec<(u64, Peer)> {
        let members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.open.iter().map(|(number, (peer, _))| (*number, peer.clone())).collect()
    }

    /// Ends a connection, unless it has ended by itself.
    pub(crate) fn end(&self, number: u64) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, end)) = members.open.remove(&number) {
            // Nobody listens if it is being dropped.
            let _ = end.send(());
        }
    }
}

impl Membership {
    /// Whether the connection must end. Wakes whoever asks once it must.
    pub(crate) fn has_ended(&mut self, cx: &mut Context<'_>) -> bool {
        // A receiver must not be asked again after it has answered.
        if !self.has_ended && matches!(Pin::new(&mut self.end).poll(cx), Poll::Ready(_)) {
            self.has_ended = true;
        }
        self.has_ended
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.connections.end(self.number);
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("number", &self.number).finish_non_exhaustive()
    }
}
