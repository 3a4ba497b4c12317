//! The one place that writes to the ledger. Whoever reads takes what was published last and waits for nobody.

use muster_daemon::Blocking;
use muster_model::FleetName;
use tokio::sync::watch;

use super::{Histories, History, Ledger};
use crate::Error;
use crate::worker::Worker;

/// The way to the ledger, for everything that is not its thread.
#[derive(Clone)]
pub(crate) struct LedgerHandle {
    writer: Worker<Ledger>,
    histories: watch::Receiver<Histories>,
}

impl LedgerHandle {
    /// Hands the ledger to a thread of its own, where the machine has threads.
    pub(crate) fn serve(ledger: Ledger, blocking: Blocking) -> Result<Self, Error> {
        let histories = ledger.histories();
        Ok(Self { writer: Worker::serve("ledger", ledger, blocking)?, histories })
    }

    /// Runs `job` on the ledger's thread, in the order of the calls. It runs even if nobody waits for it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Ledger) -> T + Send + 'static,
    ) -> T {
        self.writer.run(job).await
    }

    /// What is known of a fleet beside its state.
    pub(crate) fn history(&self, fleet: &FleetName) -> History {
        self.histories.borrow().get(fleet).cloned().unwrap_or_default()
    }

    /// Ends the thread after the jobs that were handed in before, and waits until the database is closed.
    pub(crate) async fn close(&self) {
        self.writer.close().await;
    }
}
