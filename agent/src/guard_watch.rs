//! Hearing what the guard tells unasked: that a service ended, that the guard itself is gone or back.

use std::sync::Arc;
use std::time::Duration;

use muster_daemon::Shutdown;
use muster_guard::{Event, GuardClient, GuardError, Watch, WatchCloser};
use muster_model::{Code, FleetName, HostName, Refusal};
use tokio::sync::mpsc;

use crate::driver::Input;
use crate::refusal;

/// How often a guard that is gone is looked for.
const RETRY: Duration = Duration::from_millis(500);

/// What the guard did without being asked to.
#[derive(Debug, Clone)]
pub(crate) enum GuardChange {
    /// Nothing is served any more: the service ended, or the guard fenced it.
    WentDark(Refusal),
    /// What is served has changed, or what may be.
    Changed,
    /// The guard does not answer any more.
    Lost(Refusal),
    /// It answers.
    Found,
}

/// Tells the fleets of one host what its guard does.
pub(crate) struct GuardWatch {
    pub(crate) client: Arc<GuardClient>,
    pub(crate) host: HostName,
    pub(crate) fleets: Vec<(FleetName, mpsc::Sender<Input>)>,
}

impl GuardWatch {
    /// Runs until the agent ends.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut known_lost = false;
        // Ends with the agent; every turn waits for the guard or for the next attempt.
        while !shutdown.is_requested() {
            match self.begin().await {
                Ok(watch) => {
                    self.tell_all(&GuardChange::Found).await;
                    self.listen(watch, &shutdown).await;
                    known_lost = true;
                }
                Err(error) if known_lost => {
                    tracing::debug!(error = error.chain(), "the guard still does not answer");
                }
                Err(error) => {
                    known_lost = true;
                    tracing::warn!(error = error.chain(), "the guard does not answer");
                    self.tell_all(&GuardChange::Lost(refusal::of_guard(&self.host, &error))).await;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.requested() => {}
            }
        }
    }

    async fn begin(&self) -> Result<Watch, GuardError> {
        let client = Arc::clone(&self.client);
        tokio::task::spawn_blocking(move || client.watch()).await.unwrap_or_else(failed)
    }

    /// Passes events on until the guard is gone or the agent ends.
    async fn listen(&self, mut watch: Watch, shutdown: &Shutdown) {
        // However this ends, the thread that waits for the guard has to end as well.
        let _closer = match watch.closer() {
            Ok(closer) => CloseOnDrop(closer),
            Err(error) => {
                return self.tell_all(&GuardChange::Lost(refusal::of_guard(&self.host, &error))).await;
            }
        };
        loop {
            let mut next = tokio::task::spawn_blocking(move || (watch.next(), watch));
            let heard = tokio::select! {
                heard = &mut next => heard,
                () = shutdown.requested() => return,
            };
            match heard {
                Ok((Some(Ok(event)), again)) => {
                    watch = again;
                    self.tell(event).await;
                }
                Ok((Some(Err(error)), _)) => {
                    tracing::warn!(error = error.chain(), "the guard is gone");
                    return self.tell_all(&GuardChange::Lost(refusal::of_guard(&self.host, &error))).await;
                }
                Ok((None, _)) | Err(_) => {
                    let lost = refusal::at(&self.host, Code::GuardFailed, "the guard tells nothing any more");
                    return self.tell_all(&GuardChange::Lost(lost)).await;
                }
            }
        }
    }

    async fn tell(&self, event: Event) {
        let (fleet, change) = match event {
            Event::ServiceExited { fleet, status, restart_boot_ms } => {
                let then = if restart_boot_ms.is_some() { "; it is started again" } else { "" };
                let detail = format!("the service ended by itself: {status}{then}");
                (fleet, GuardChange::WentDark(refusal::at(&self.host, Code::StartFailed, detail)))
            }
            Event::ServiceRestarted { fleet, .. } | Event::Flipped { fleet, .. } => {
                (fleet, GuardChange::Changed)
            }
            Event::Fenced { fleet, fence } => {
                (fleet, GuardChange::WentDark(refusal::of_fence(&self.host, fence.cause)))
            }
            // A fence that has latched is told when it is complete; these say why it takes long, or what else went wrong.
            Event::FenceFailing { fleet, attempts, detail, .. } => {
                return tracing::error!(%fleet, attempts, detail, "the fence is not complete");
            }
            Event::FlipFailed { fleet, k, detail } => {
                return tracing::error!(%fleet, %k, detail, "the flip failed");
            }
            Event::HookFailed { fleet, hook, detail } => {
                return tracing::warn!(%fleet, hook, detail, "a hook failed");
            }
            Event::Halted { fleet, halt } => {
                tracing::warn!(%fleet, reason = halt.reason, "the fleet was halted");
                (fleet, GuardChange::Changed)
            }
            Event::Resumed { fleet } => return tracing::info!(%fleet, "the halt was lifted"),
        };
        if let Some((_, inbox)) = self.fleets.iter().find(|(name, _)| *name == fleet) {
            // A driver that has ended has ended the agent as well.
            let _ = inbox.send(Input::GuardChanged(change)).await;
        }
    }

    async fn tell_all(&self, change: &GuardChange) {
        for (_, inbox) in &self.fleets {
            // As above.
            let _ = inbox.send(Input::GuardChanged(change.clone())).await;
        }
    }
}

struct CloseOnDrop(WatchCloser);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn failed<T>(error: tokio::task::JoinError) -> Result<T, GuardError> {
    Err(GuardError::Protocol { detail: format!("the guard's client failed: {error}") })
}
