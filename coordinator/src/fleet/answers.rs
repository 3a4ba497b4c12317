//! What hosts say about a deployment or a check, kept until whoever asked takes it.
//!
//! Each host has one place for how far it is and one for how it ended, and what is newer takes the place of what is
//! older. So a fleet of any size waits for a slow operator in a bounded room, and no host crowds out another.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use muster_model::HostName;
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use tokio::sync::Notify;

/// What a host said about a deployment or a check.
#[derive(Debug)]
pub(crate) struct HostAnswer {
    pub(crate) host: HostName,
    pub(crate) said: Said,
}

/// An answer.
#[derive(Debug)]
pub(crate) enum Said {
    /// How far a deployment is.
    Progress(v1::DeployProgress),
    /// How a deployment ended.
    Deployed(v1::DeployEnded),
    /// How a check ended.
    Checked(v1::CheckEnded),
}

/// Everybody who waits for answers, by the number of the request.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<BTreeMap<u64, Weak<Mailbox>>>);

/// Answers to one request, until it is dropped.
#[derive(Debug)]
pub(crate) struct Answers {
    request: u64,
    mailbox: Arc<Mailbox>,
    waiting: Arc<Waiting>,
}

#[derive(Debug, Default)]
struct Mailbox {
    letters: Mutex<Letters>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Letters {
    /// Hosts of which something waits, the longest first.
    order: VecDeque<HostName>,
    places: BTreeMap<HostName, Places>,
}

#[derive(Debug, Default)]
struct Places {
    progress: Option<v1::DeployProgress>,
    ended: Option<Said>,
}

impl Said {
    /// The request that an agent's frame answers, and the answer; nothing if the frame is something else.
    pub(crate) fn of(body: Body) -> Option<(u64, Self)> {
        if let Body::DeployProgress(progress) = body {
            Some((progress.request, Self::Progress(progress)))
        } else if let Body::DeployEnded(ended) = body {
            Some((ended.request, Self::Deployed(ended)))
        } else if let Body::CheckEnded(ended) = body {
            Some((ended.request, Self::Checked(ended)))
        } else {
            None
        }
    }
}

impl Waiting {
    /// Begins to wait for the answers to `request`.
    pub(super) fn begin(self: &Arc<Self>, request: u64) -> Answers {
        let mailbox = Arc::default();
        lock(&self.0).insert(request, Arc::downgrade(&mailbox));
        Answers { request, mailbox, waiting: Arc::clone(self) }
    }

    /// Passes on what a host said about a request; nobody may be waiting any more.
    pub(super) fn answer(&self, request: u64, answer: HostAnswer) {
        let mailbox = lock(&self.0).get(&request).and_then(Weak::upgrade);
        if let Some(mailbox) = mailbox {
            lock(&mailbox.letters).put(answer);
            mailbox.arrived.notify_one();
        }
    }
}

impl Answers {
    /// The next answer. It may be dropped while it waits: nothing is lost.
    pub(crate) async fn next(&mut self) -> HostAnswer {
        loop {
            if let Some(answer) = lock(&self.mailbox.letters).take() {
                return answer;
            }
            // A letter that arrives before this line leaves a permit.
            self.mailbox.arrived.notified().await;
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        lock(&self.waiting.0).remove(&self.request);
    }
}

impl Letters {
    fn put(&mut self, answer: HostAnswer) {
        let HostAnswer { host, said } = answer;
        if !self.places.contains_key(&host) {
            self.order.push_back(host.clone());
        }
        let places = self.places.entry(host).or_default();
        match said {
            Said::Progress(progress) => places.progress = Some(progress),
            Said::Deployed(_) | Said::Checked(_) => {
                // How far it was tells nothing more.
                *places = Places { progress: None, ended: Some(said) };
            }
        }
    }

    fn take(&mut self) -> Option<HostAnswer> {
        let host = self.order.pop_front()?;
        let Places { progress, ended } = self.places.remove(&host)?;
        // Progress that came after an end belongs to a second attempt, whose next word says as much.
        let said = ended.or(progress.map(Said::Progress))?;
        Some(HostAnswer { host, said })
    }
}

/// Letters are left whole by a panic elsewhere: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn progress(name: &str, bytes: u64) -> HostAnswer {
        let progress = v1::DeployProgress { bytes_done: bytes, ..v1::DeployProgress::default() };
        HostAnswer { host: host(name), said: Said::Progress(progress) }
    }

    fn ended(name: &str) -> HostAnswer {
        HostAnswer { host: host(name), said: Said::Deployed(v1::DeployEnded::default()) }
    }

    #[tokio::test]
    async fn a_host_that_talks_without_end_takes_no_room_from_the_others() {
        let waiting: Arc<Waiting> = Arc::default();
        let mut answers = waiting.begin(7);
        for bytes in 0..100_000 {
            waiting.answer(7, progress("chatty", bytes));
        }
        waiting.answer(7, ended("quiet"));
        waiting.answer(8, ended("elsewhere"));
        let first = answers.next().await;
        assert!(matches!(&first.said, Said::Progress(it) if it.bytes_done == 99_999), "{first:?}");
        let second = answers.next().await;
        assert_eq!(second.host, host("quiet"));
        assert!(lock(&answers.mailbox.letters).take().is_none());
    }

    #[tokio::test]
    async fn an_end_is_never_lost_to_progress() {
        let waiting: Arc<Waiting> = Arc::default();
        let mut answers = waiting.begin(1);
        waiting.answer(1, progress("a", 1));
        waiting.answer(1, ended("a"));
        waiting.answer(1, progress("a", 2));
        assert!(matches!(answers.next().await.said, Said::Deployed(_)));
        drop(answers);
        assert!(lock(&waiting.0).is_empty());
        waiting.answer(1, ended("a"));
    }
}
