//! Work that runs beside the driver: at most one of each kind counts.

use std::collections::BTreeMap;

use muster_rollout::host::Event;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Input;

/// What kind of work. A newer one of the same kind takes the place of the one before: its answer would be about a
/// question that nobody asks any more, and could be taken for fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Attest,
    Admit,
    Settle,
    Verify,
    Seal,
    CheckToArm,
    CheckToOpen,
}

/// One piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    kind: Kind,
    number: u64,
}

/// All work of one driver.
#[derive(Debug, Default)]
pub(super) struct Works {
    latest: BTreeMap<Kind, (u64, AbortHandle)>,
    last_number: u64,
}

impl Works {
    /// Begins work whose outcome is posted as one event, and gives up any of the same kind that has not begun to block.
    pub(super) fn begin(
        &mut self,
        kind: Kind,
        post: mpsc::Sender<Input>,
        work: impl Future<Output = Event> + Send + 'static,
    ) {
        self.last_number += 1;
        let ticket = Ticket { kind, number: self.last_number };
        let task = tokio::spawn(async move {
            let event = work.await;
            // A driver that has ended has no use for it.
            let _ = post.send(Input::Done(ticket, event)).await;
        });
        if let Some((_, before)) = self.latest.insert(kind, (ticket.number, task.abort_handle())) {
            before.abort();
        }
    }

    /// Whether the outcome of this piece of work is still wanted.
    pub(super) fn is_current(&self, ticket: Ticket) -> bool {
        self.latest.get(&ticket.kind).is_some_and(|(number, _)| *number == ticket.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_latest_of_a_kind_counts() {
        let (post, mut inbox) = mpsc::channel(8);
        let mut works = Works::default();
        works.begin(Kind::Seal, post.clone(), std::future::pending());
        works.begin(Kind::Attest, post.clone(), std::future::ready(Event::Disconnected));
        let Some(Input::Done(first, _)) = inbox.recv().await else { panic!("no outcome") };
        assert!(works.is_current(first));
        works.begin(Kind::Attest, post, std::future::ready(Event::Disconnected));
        assert!(!works.is_current(first));
        let Some(Input::Done(second, _)) = inbox.recv().await else { panic!("no outcome") };
        assert!(works.is_current(second));
    }
}
