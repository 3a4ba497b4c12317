//! One thread that owns what must have one writer. Whoever wants something done hands in a job and waits for it without a thread
//! of its own.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use muster_daemon::Blocking;
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// Jobs that wait for the disk; senders wait when there are more.
const JOBS: usize = 256;

/// The way to the one owner of a `T`.
#[derive(Debug)]
pub(crate) enum Worker<T> {
    /// A thread of its own.
    Thread(mpsc::Sender<Job<T>>),
    /// Whoever asks; nothing is there once it was closed.
    InPlace(Arc<Mutex<Option<T>>>),
}

pub(crate) enum Job<T> {
    Run(Box<dyn FnOnce(&mut T) + Send>),
    Close(oneshot::Sender<()>),
}

impl<T> Clone for Worker<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Thread(jobs) => Self::Thread(jobs.clone()),
            Self::InPlace(owned) => Self::InPlace(Arc::clone(owned)),
        }
    }
}

impl<T: Send + 'static> Worker<T> {
    /// Hands `owned` to a thread of this name, where the machine has threads.
    pub(crate) fn serve(name: &str, owned: T, blocking: Blocking) -> Result<Self, Error> {
        let (sender, jobs) = match blocking {
            Blocking::OnThreads => mpsc::channel(JOBS),
            Blocking::InPlace => return Ok(Self::InPlace(Arc::new(Mutex::new(Some(owned))))),
        };
        let failed =
            |source| Error::File { action: "start", path: format!("the thread `{name}`").into(), source };
        thread::Builder::new().name(name.to_owned()).spawn(move || work(owned, jobs)).map_err(failed)?;
        Ok(Self::Thread(sender))
    }

    /// Runs `job` in the order of the calls, and carries its panic on if it has one. It runs even if nobody waits for it any
    /// more.
    pub(crate) async fn run<R: Send + 'static>(&self, job: impl FnOnce(&mut T) -> R + Send + 'static) -> R {
        let jobs = match self {
            Self::Thread(jobs) => jobs,
            Self::InPlace(owned) => {
                if let Some(owned) = &mut *owned.lock().unwrap_or_else(PoisonError::into_inner) {
                    return job(owned);
                }
                return std::future::pending().await;
            }
        };
        let (reply, answer) = oneshot::channel();
        let job = move |owned: &mut T| {
            // What panicked while it wrote takes no more calls. Whoever asked may be gone.
            let _ = reply.send(catch_unwind(AssertUnwindSafe(|| job(owned))));
        };
        // A coordinator that ends takes no more jobs, and says nothing after that.
        if jobs.send(Job::Run(Box::new(job))).await.is_err() {
            return std::future::pending().await;
        }
        match answer.await {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => std::future::pending().await,
        }
    }

    /// Hands in `job` behind those before it, and does not wait for it.
    pub(crate) async fn hand_in(&self, job: impl FnOnce(&mut T) + Send + 'static) {
        match self {
            // A coordinator that ends takes no more jobs.
            Self::Thread(jobs) => drop(jobs.send(Job::Run(Box::new(job))).await),
            Self::InPlace(_) => self.run(job).await,
        }
    }

    /// Ends the thread after the jobs that were handed in before, and waits until what it owned is dropped.
    pub(crate) async fn close(&self) {
        let jobs = match self {
            Self::Thread(jobs) => jobs,
            Self::InPlace(owned) => {
                drop(owned.lock().unwrap_or_else(PoisonError::into_inner).take());
                return;
            }
        };
        let (closed, done) = oneshot::channel();
        if jobs.send(Job::Close(closed)).await.is_ok() {
            // Nobody answers if it has been closed already.
            let _ = done.await;
        }
    }
}

fn work<T>(mut owned: T, mut jobs: mpsc::Receiver<Job<T>>) {
    while let Some(job) = jobs.blocking_recv() {
        match job {
            Job::Run(run) => run(&mut owned),
            Job::Close(closed) => {
                drop(owned);
                // Whoever asked may be gone.
                let _ = closed.send(());
                return;
            }
        }
    }
}
