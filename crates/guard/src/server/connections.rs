//! The open connections: not too many, and all known.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// All peers together.
const CONNECTIONS_MAX: usize = 32;

/// One process. An agent needs a few; one that hangs with all of its own does not keep a `halt` out.
pub(super) const CONNECTIONS_OF_ONE_MAX: usize = 16;

#[derive(Default)]
pub(super) struct Connections(Arc<Inner>);

/// A place among the connections, given back when it is dropped.
pub(super) struct Connection {
    number: u64,
    connections: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    open: Mutex<Open>,
    fewer: Condvar,
}

#[derive(Default)]
struct Open {
    last: u64,
    streams: BTreeMap<u64, (i32, UnixStream)>,
}

impl Connections {
    /// A place for this stream of the process `peer`, or `None` if all are taken.
    pub(super) fn admit(&self, stream: Option<UnixStream>, peer: i32) -> Option<Connection> {
        let stream = stream?;
        let mut open = self.0.lock();
        let of_peer = open.streams.values().filter(|(pid, _)| *pid == peer).count();
        if open.streams.len() >= CONNECTIONS_MAX || of_peer >= CONNECTIONS_OF_ONE_MAX {
            return None;
        }
        open.last += 1;
        let number = open.last;
        open.streams.insert(number, (peer, stream));
        Some(Connection { number, connections: Arc::clone(&self.0) })
    }

    /// Lets every connection finish what it is doing, and waits for that, but not for ever.
    pub(super) fn finish(&self, patience: Duration) {
        let open = self.0.lock();
        for (_, stream) in open.streams.values() {
            // Ends waiting for a next request; an answer on its way still gets out.
            let _ = stream.shutdown(Shutdown::Read);
        }
        let any = |open: &mut Open| !open.streams.is_empty();
        drop(self.0.fewer.wait_timeout_while(open, patience, any).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.lock().streams.remove(&self.number);
        self.connections.fewer.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
