//! What a driver does with a fleet's service. The link is not its business.

use std::path::PathBuf;
use std::time::Duration;

use muster_model::BootTime;

use crate::error::GuardError;
use crate::lease::LeaseRefusal;
use crate::protocol::{DriverKind, Opened, ServiceState};

/// The processes of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    /// The guard has started it itself.
    pub(crate) by_guard: bool,
    pub(crate) mains: Vec<u32>,
    pub(crate) pids: Vec<i32>,
}

/// One fleet's service. At most one change is asked for at a time, but a [`Self::kill`] comes whenever it must.
pub(crate) trait Service: Send + Sync {
    /// Which driver this is.
    fn kind(&self) -> DriverKind;

    /// What the service does now. A process that is gone is not shown as running, whoever has noticed.
    fn state(&self) -> ServiceState;

    /// The processes that the service has now.
    fn members(&self) -> Result<Members, GuardError>;

    /// Starts the service with the release in `folder`, waits until it has lived through its grace, and tells when it
    /// was started.
    ///
    /// `may` is asked in such an order with [`Self::kill`] that a fence that has latched is seen here, or it sees what is
    /// started here.
    fn start(
        &self,
        opened: Opened,
        folder: PathBuf,
        may: &dyn Fn() -> Result<(), LeaseRefusal>,
    ) -> Result<BootTime, GuardError>;

    /// Stops the service and answers once nothing of it is left; it has `limit` to stop by itself. `ask` asks it
    /// instead of the usual way, and is told its main process. Stopping what is stopped only looks again.
    fn stop(&self, limit: Duration, ask: Option<&dyn Fn(i32)>) -> Result<(), GuardError>;

    /// Kills the service at once, and answers once no process of it is left. It is not started again. No request that
    /// is under way and no disk is waited for; and whoever must be asked whether something follows is asked after the killing.
    fn kill(&self, patience: Duration) -> Result<(), GuardError>;

    /// Gives whoever watches the service its time to notice that it is gone, so that the state shows it.
    fn settle(&self, patience: Duration);

    /// Brings what runs in line when the guard starts: what is not permitted does not run on, and what does not outlive its
    /// guard is not left over from an earlier one.
    fn recover(&self, permitted: Option<Opened>) -> Result<(), GuardError>;

    /// The guard ends in good order: what does not outlive its guard is stopped.
    fn go_down(&self, limit: Duration) -> Result<(), GuardError>;

    /// From now on the service must not outlive its guard, as a deadline runs.
    fn bind(&self) -> Result<(), GuardError>;

    /// No deadline runs any more, so that a guard that ends takes nothing with it. It need not be done on return.
    fn release(&self);

    /// Whether a guard that ends now takes the service with it.
    fn ends_with_guard(&self) -> bool;

    /// How long it takes at most until the service is stopped once its guard hangs or is gone while it is bound.
    fn unguarded(&self) -> Result<Duration, GuardError>;
}
