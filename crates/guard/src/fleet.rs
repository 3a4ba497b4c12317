//! One fleet on this host: its permit, its link, its service, and the order in which they change.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_model::{BootId, FleetName};

use crate::error::GuardError;
use crate::link::Link;
use crate::log::log;
use crate::protocol::{DriverKind, FleetState, LinkState, Opened};
use crate::record::{Permit, RecordFile};
use crate::service::Service;

pub(crate) struct Fleet {
    pub(crate) name: FleetName,
    pub(crate) boot_id: BootId,
    pub(crate) link: Link,
    pub(crate) permit: RecordFile<Permit>,
    /// `None` for the driver `link`.
    pub(crate) service: Option<Service>,
    pub(crate) generation: Arc<AtomicU64>,
    /// Held through every change; reading does not wait for it.
    pub(crate) change: Mutex<()>,
}

impl Fleet {
    /// Brings the disk in line with what may be served now: a permit of an earlier boot is void, what is not permitted
    /// is not linked, and no process of an earlier guard goes on.
    pub(crate) fn recover(&self) -> Result<(), GuardError> {
        let _change = self.lock();
        let permit = match self.permit.read() {
            Err(error @ GuardError::Corrupt { .. }) => {
                log!("fleet {}: {}; revoked", self.name, error.chain());
                None
            }
            other => other?.filter(|permit| permit.boot_id == self.boot_id),
        };
        if permit.is_none() && self.permit.remove()? {
            log!("fleet {}: the permit is not of this boot; revoked", self.name);
        }
        if let Some(service) = &self.service {
            service.recover()?;
        }
        if permit.is_some() {
            return Ok(());
        }
        match self.link.remove() {
            Ok(false) => Ok(()),
            Ok(true) => {
                log!("fleet {}: removed a link without a permit", self.name);
                Ok(())
            }
            // One fleet's broken folder must not keep the others dark; `open` refuses this one by name.
            Err(error @ GuardError::LinkObstructed { .. }) => {
                log!("fleet {}: {}", self.name, error.chain());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn state(&self) -> Result<FleetState, GuardError> {
        Ok(FleetState {
            fleet: self.name.clone(),
            driver: if self.service.is_some() { DriverKind::Supervise } else { DriverKind::Link },
            open: self.permitted()?,
            link: self.link.read()?,
            service: self.service.as_ref().map(Service::state),
            generation: self.generation.load(Ordering::Relaxed),
        })
    }

    /// Closes in an order that a crash at any point leaves safe: with the permit gone, nothing starts again, and the next
    /// start of the guard finishes the rest. A step that fails does not keep the next one from being tried.
    pub(crate) fn close(&self) -> Result<FleetState, GuardError> {
        let _change = self.lock();
        self.close_locked()
    }

    pub(crate) fn open(&self, opened: Opened, going_down: &AtomicBool) -> Result<FleetState, GuardError> {
        let _change = self.lock();
        // Read under the lock that stopping the services takes as well: either they are stopped after this start, or
        // this start sees that they will be.
        if going_down.load(Ordering::SeqCst) {
            return Err(GuardError::ShuttingDown);
        }
        let before = self.state()?;
        self.check_free(&before, opened)?;
        if before.serves(opened.epoch, opened.digest) {
            return Ok(before);
        }
        self.open_locked(opened).or_else(|error| {
            self.close_locked()?;
            Err(error)
        })
    }

    /// Stops the service and leaves permit and link: what a guard that goes down does.
    pub(crate) fn stop_service(&self) -> Result<(), GuardError> {
        let _change = self.lock();
        self.service.as_ref().map_or(Ok(()), Service::stop)
    }

    /// Nothing else is open here. A refusal at this point changes nothing.
    fn check_free(&self, before: &FleetState, opened: Opened) -> Result<(), GuardError> {
        match &before.link {
            LinkState::Obstructed => return Err(self.link.obstructed()),
            LinkState::Foreign { target } => {
                return Err(self.not_closed(format!("the link leads to {target}")));
            }
            LinkState::Release(digest) if *digest != opened.digest => {
                return Err(self.not_closed(format!("the link leads to {digest}")));
            }
            LinkState::Release(_) | LinkState::Absent => {}
        }
        match before.open {
            Some(current) if current == opened => {}
            Some(Opened { epoch, digest }) => {
                return Err(self.not_closed(format!("{digest} is open in epoch {epoch}")));
            }
            None if before.is_closed() => {}
            None => return Err(self.not_closed("there is a link or a process without a permit".to_owned())),
        }
        self.link.release(opened.digest).map(|_| ())
    }

    fn open_locked(&self, opened: Opened) -> Result<FleetState, GuardError> {
        let folder = self.link.release(opened.digest)?;
        if let Some(service) = &self.service {
            service.stop()?;
        }
        let Opened { epoch, digest } = opened;
        self.permit.write(&Permit { boot_id: self.boot_id.clone(), epoch, digest })?;
        self.link.make(digest)?;
        self.generation.fetch_add(1, Ordering::Relaxed);
        if let Some(service) = &self.service {
            service.start(opened, folder)?;
        }
        self.state()
    }

    fn close_locked(&self) -> Result<FleetState, GuardError> {
        let revoked = self.permit.remove();
        let stopped = self.service.as_ref().map_or(Ok(()), Service::stop);
        let unlinked = self.link.remove();
        let changed = [revoked?, unlinked?].contains(&true);
        stopped?;
        if changed {
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        let state = self.state()?;
        if !state.is_closed() {
            let detail = format!("link {:?}, service {:?}", state.link, state.service);
            return Err(GuardError::NotStopped { fleet: self.name.clone(), detail });
        }
        Ok(state)
    }

    /// What the permit on disk allows in this boot.
    fn permitted(&self) -> Result<Option<Opened>, GuardError> {
        Ok(self.permit.read()?.filter(|permit| permit.boot_id == self.boot_id).map(|permit| permit.opened()))
    }

    fn not_closed(&self, found: String) -> GuardError {
        GuardError::NotClosed { fleet: self.name.clone(), found }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
