//! What the service manager hears of an agent: when it is ready, what it does, and that it lives.
//!
//! Ready means that the journals are restored and the guard has answered for every fleet; whether the coordinator can be reached is no
//! part of it, as a host serves without one. A sign of life has been through the driver of every fleet: a timer of its own would
//! go on while they hang.

use std::sync::Arc;
use std::time::Duration;

use muster_daemon::{Machine, ServiceManager, Shutdown};
use muster_guard::Guard;
use muster_model::FleetName;
use tokio::sync::{mpsc, oneshot};

use crate::driver::Input;
use crate::refusal::chain;

/// Between two questions to a guard that does not answer yet.
const GUARD_AGAIN: Duration = Duration::from_millis(500);

/// What a fleet's driver says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// It has no session with the coordinator.
    Alone,
    /// It has one, and no rollout is under way.
    AtRest,
    /// It is in the middle of a rollout.
    InRollout,
}

/// The drivers of an agent, and the guard that they ask.
pub(crate) struct Pulse {
    pub(crate) machine: Machine,
    pub(crate) guard: Arc<dyn Guard>,
    pub(crate) fleets: Vec<(FleetName, mpsc::Sender<Input>)>,
}

impl Pulse {
    /// Tells the service manager until the agent ends.
    pub(crate) async fn run(self, manager: ServiceManager, shutdown: Shutdown) {
        if !manager.is_there() {
            return;
        }
        tokio::select! {
            () = shutdown.requested() => return manager.stopping(),
            () = self.await_guard(&manager) => {}
        }
        manager.ready(&self.beat().await);
        manager.watch(&shutdown, || self.beat()).await;
    }

    /// Returns once the guard has answered for every fleet.
    async fn await_guard(&self, manager: &ServiceManager) {
        for (fleet, _) in &self.fleets {
            while let Err(reason) = self.ask_guard(fleet.clone()).await {
                manager.status(&format!("waits for the guard: {reason}"));
                tokio::time::sleep(GUARD_AGAIN).await;
            }
        }
    }

    async fn ask_guard(&self, fleet: FleetName) -> Result<(), String> {
        let guard = Arc::clone(&self.guard);
        let asked = self.machine.run_blocking(move || guard.status(&fleet)).await;
        match asked {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Goes through every driver, and tells what they say. It does not come back from one that hangs.
    async fn beat(&self) -> String {
        let mut told = Vec::with_capacity(self.fleets.len());
        for (fleet, inbox) in &self.fleets {
            let (reply, answer) = oneshot::channel();
            // A driver that has ended has ended the agent as well.
            let _ = inbox.send(Input::Beat(reply)).await;
            let Ok(beat) = answer.await else { return std::future::pending().await };
            told.push(match beat {
                Beat::Alone => format!("{fleet}: not connected"),
                Beat::AtRest => format!("{fleet}: connected"),
                Beat::InRollout => format!("{fleet}: in a rollout"),
            });
        }
        told.join("; ")
    }
}
