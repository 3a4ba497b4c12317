//! The ways to a fleet's hosts. The driver alone changes them; deployments and checks read what was published last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use muster_model::{Digest, FleetName, HostName, SessionId};
use muster_proto::v1;
use tokio::sync::{Notify, mpsc, watch};

/// Frames that wait for a host's stream. A host that takes none for so long is cut off.
pub(crate) const OUTBOX_FRAMES: usize = 256;

/// The way to one host over one session.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    pub(crate) session: SessionId,
    pub(crate) frames: mpsc::Sender<v1::CoordinatorFrame>,
    /// The envelope of the roster that the host was shown before it asked.
    pub(crate) roster_shown: Option<Digest>,
    /// How many entries of the audit log the host was shown last.
    pub(crate) audit_shown: Arc<AtomicU64>,
    /// Ends the host's stream.
    pub(crate) hang_up: Arc<Notify>,
}

/// The hosts that have a session.
pub(crate) type Connected = BTreeMap<HostName, Outbox>;

/// The hosts that have a session, those that ask for one, and what is about to be said to them.
///
/// Changes are published once for a batch of steps, so that ten thousand hosts that come back at once do not wake those
/// who watch ten thousand times.
pub(super) struct Connections {
    fleet: FleetName,
    current: Connected,
    /// Sessions that were asked for in this batch and have no JOINED yet.
    joining: BTreeMap<SessionId, (HostName, Outbox)>,
    changed: BTreeSet<HostName>,
    published: watch::Sender<Connected>,
    outgoing: Vec<(HostName, Outbox, v1::CoordinatorFrame)>,
}

impl Connections {
    pub(super) fn new(fleet: FleetName) -> Self {
        Self {
            fleet,
            current: Connected::new(),
            joining: BTreeMap::new(),
            changed: BTreeSet::new(),
            published: watch::Sender::default(),
            outgoing: Vec::new(),
        }
    }

    /// What is published, and every change of it.
    pub(super) fn watch(&self) -> watch::Receiver<Connected> {
        self.published.subscribe()
    }

    /// Keeps the way to a host that asks for a session until it has one.
    pub(super) fn ask(&mut self, host: HostName, outbox: Outbox) {
        self.joining.insert(outbox.session, (host, outbox));
    }

    /// Forgets those whose session was not begun.
    pub(super) fn forget_asking(&mut self) {
        self.joining.clear();
    }

    /// A session that was asked for begins. Returns which roster the host was shown, if it was asked for.
    pub(super) fn begin(&mut self, session: SessionId) -> Option<Digest> {
        let (host, outbox) = self.joining.remove(&session)?;
        let roster_shown = outbox.roster_shown;
        self.changed.insert(host.clone());
        self.current.insert(host, outbox);
        roster_shown
    }

    /// All hosts that have a session.
    pub(super) const fn current(&self) -> &Connected {
        &self.current
    }

    /// Drops the way to a host, if it is over this session.
    pub(super) fn cut_off(&mut self, host: &HostName, session: SessionId) {
        if self.current.get(host).is_some_and(|outbox| outbox.session == session) {
            self.current.remove(host);
            self.changed.insert(host.clone());
        }
    }

    /// Puts a frame for a session, begun or asked for, behind the others; one for any other session is dropped.
    pub(super) fn send(&mut self, host: &HostName, session: SessionId, frame: v1::CoordinatorFrame) {
        let asked = self.joining.get(&session).map(|(_, outbox)| outbox);
        let current = self.current.get(host).filter(|outbox| outbox.session == session);
        if let Some(outbox) = asked.or(current) {
            self.outgoing.push((host.clone(), outbox.clone(), frame));
        }
    }

    /// Publishes what has changed, then lets the frames go. A host hears nothing that others could not answer to it.
    pub(super) fn flush(&mut self) {
        self.publish();
        for (host, outbox, frame) in self.outgoing.drain(..) {
            if outbox.frames.try_send(frame).is_err() {
                // Its reader tells the fleet that the host has left.
                outbox.hang_up.notify_one();
                tracing::warn!(fleet = %self.fleet, %host, "the host takes no more messages; its stream ends");
            }
        }
    }

    fn publish(&mut self) {
        if self.changed.is_empty() {
            return;
        }
        let changed = std::mem::take(&mut self.changed);
        self.published.send_modify(|published| {
            for host in changed {
                match self.current.get(&host) {
                    Some(outbox) => published.insert(host, outbox.clone()),
                    None => published.remove(&host),
                };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(session: u64) -> (Outbox, mpsc::Receiver<v1::CoordinatorFrame>) {
        let (frames, receiver) = mpsc::channel(1);
        let hang_up = Arc::default();
        let (session, audit_shown) = (SessionId(session), Arc::default());
        (Outbox { session, frames, roster_shown: None, audit_shown, hang_up }, receiver)
    }

    fn host(number: u64) -> HostName {
        HostName::new(&format!("host-{number}")).unwrap()
    }

    fn connections() -> Connections {
        Connections::new(FleetName::new("smars").unwrap())
    }

    #[test]
    fn many_hosts_that_join_in_one_batch_are_published_once() {
        let mut connections = connections();
        let mut watch = connections.watch();
        watch.mark_unchanged();
        let outboxes: Vec<_> = (0..100).map(|number| (number, outbox(number))).collect();
        for (number, (outbox, _)) in &outboxes {
            connections.ask(host(*number), outbox.clone());
            connections.begin(outbox.session);
            assert!(!watch.has_changed().unwrap());
        }
        connections.flush();
        assert_eq!(watch.borrow_and_update().len(), 100);
        connections.flush();
        assert!(!watch.has_changed().unwrap());
    }

    #[test]
    fn a_session_that_was_refused_is_told_so_and_never_published() {
        let mut connections = connections();
        let (asked, mut frames) = outbox(1);
        connections.ask(host(1), asked);
        connections.send(&host(1), SessionId(1), v1::CoordinatorFrame::default());
        connections.forget_asking();
        connections.begin(SessionId(1));
        connections.flush();
        assert!(frames.try_recv().is_ok());
        assert!(connections.watch().borrow().is_empty());
    }

    #[test]
    fn only_the_current_session_is_spoken_to_and_cut_off() {
        let mut connections = connections();
        let (old, mut old_frames) = outbox(1);
        let (new, mut new_frames) = outbox(2);
        for outbox in [old, new] {
            let session = outbox.session;
            connections.ask(host(1), outbox);
            connections.begin(session);
        }
        connections.send(&host(1), SessionId(1), v1::CoordinatorFrame::default());
        connections.cut_off(&host(1), SessionId(1));
        connections.send(&host(1), SessionId(2), v1::CoordinatorFrame::default());
        connections.flush();
        assert!(old_frames.try_recv().is_err());
        assert!(new_frames.try_recv().is_ok());
        assert_eq!(connections.watch().borrow()[&host(1)].session, SessionId(2));
        connections.cut_off(&host(1), SessionId(2));
        connections.flush();
        assert!(connections.watch().borrow().is_empty());
    }

    #[tokio::test]
    async fn a_host_that_takes_nothing_is_hung_up_on() {
        let mut connections = connections();
        let (slow, _frames) = outbox(1);
        let hang_up = Arc::clone(&slow.hang_up);
        connections.ask(host(1), slow);
        connections.begin(SessionId(1));
        for _ in 0..2 {
            connections.send(&host(1), SessionId(1), v1::CoordinatorFrame::default());
        }
        connections.flush();
        hang_up.notified().await;
    }
}
