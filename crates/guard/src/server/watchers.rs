//! Those who want to know what happens.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::Event;

/// A watcher that is this far behind is dropped: it must look at the status anyway.
const BACKLOG_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Watchers(Mutex<Subscriptions>);

#[derive(Default)]
struct Subscriptions {
    last: u64,
    senders: Vec<(u64, SyncSender<Event>)>,
}

impl Watchers {
    /// Never waits: the one who publishes is looking after a service.
    pub(super) fn publish(&self, event: &Event) {
        self.lock().senders.retain(|(_, sender)| sender.try_send(event.clone()).is_ok());
    }

    pub(super) fn subscribe(&self) -> (u64, Receiver<Event>) {
        let (sender, receiver) = sync_channel(BACKLOG_MAX);
        let mut subscriptions = self.lock();
        subscriptions.last += 1;
        let number = subscriptions.last;
        subscriptions.senders.push((number, sender));
        (number, receiver)
    }

    pub(super) fn unsubscribe(&self, number: u64) {
        self.lock().senders.retain(|(other, _)| *other != number);
    }

    pub(super) fn dismiss(&self) {
        self.lock().senders.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Subscriptions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
