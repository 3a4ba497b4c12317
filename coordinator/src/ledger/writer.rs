//! The one place that writes, a thread of its own. Whoever wants something written hands in a job and waits for it without a thread of
//! its own; whoever reads takes what was published last and waits for nobody.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use muster_daemon::Blocking;
use muster_model::FleetName;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Histories, History, Ledger};
use crate::Error;

/// Jobs that wait for the disk; senders wait when there are more.
const JOBS: usize = 256;

/// The way to the ledger, for everything that is not its thread.
#[derive(Clone)]
pub(crate) struct LedgerHandle {
    writer: Writer,
    histories: watch::Receiver<Histories>,
}

/// Who runs the jobs.
#[derive(Clone)]
enum Writer {
    Thread(mpsc::Sender<Job>),
    /// Whoever asks; nothing is there once it was closed.
    InPlace(Arc<Mutex<Option<Ledger>>>),
}

enum Job {
    Run(Box<dyn FnOnce(&mut Ledger) + Send>),
    Close(oneshot::Sender<()>),
}

impl LedgerHandle {
    /// Hands the ledger to a thread of its own, where the machine has threads.
    pub(crate) fn serve(ledger: Ledger, blocking: Blocking) -> Result<Self, Error> {
        let histories = ledger.histories();
        let (sender, jobs) = match blocking {
            Blocking::OnThreads => mpsc::channel(JOBS),
            Blocking::InPlace => {
                let writer = Writer::InPlace(Arc::new(Mutex::new(Some(ledger))));
                return Ok(Self { writer, histories });
            }
        };
        let failed = |source| Error::File { action: "start", path: "the ledger's thread".into(), source };
        thread::Builder::new().name("ledger".to_owned()).spawn(move || work(ledger, jobs)).map_err(failed)?;
        Ok(Self { writer: Writer::Thread(sender), histories })
    }

    /// Runs `job` on the ledger's thread, in the order of the calls, and carries its panic on if it has one. It runs
    /// even if nobody waits for it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Ledger) -> T + Send + 'static,
    ) -> T {
        let jobs = match &self.writer {
            Writer::Thread(jobs) => jobs,
            Writer::InPlace(ledger) => {
                if let Some(ledger) = &mut *ledger.lock().unwrap_or_else(PoisonError::into_inner) {
                    return job(ledger);
                }
                return std::future::pending().await;
            }
        };
        let (reply, answer) = oneshot::channel();
        let job = move |ledger: &mut Ledger| {
            // A store that panicked while it wrote takes no more calls. Whoever asked may be gone.
            let _ = reply.send(catch_unwind(AssertUnwindSafe(|| job(ledger))));
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

    /// What is known of a fleet beside its state.
    pub(crate) fn history(&self, fleet: &FleetName) -> History {
        self.histories.borrow().get(fleet).cloned().unwrap_or_default()
    }

    /// Ends the thread after the jobs that were handed in before, and waits until the database is closed.
    pub(crate) async fn close(&self) {
        let jobs = match &self.writer {
            Writer::Thread(jobs) => jobs,
            Writer::InPlace(ledger) => {
                drop(ledger.lock().unwrap_or_else(PoisonError::into_inner).take());
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

fn work(mut ledger: Ledger, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        match job {
            Job::Run(run) => run(&mut ledger),
            Job::Close(closed) => {
                drop(ledger);
                // Whoever asked may be gone.
                let _ = closed.send(());
                return;
            }
        }
    }
}
