//! One fleet on this host: its permit, its link, its service, its lease, and the order in which they change.
//!
//! Requests that change what is served go one after the other (`change`) and may take long: a drain, a hook, a health check.
//! A fence waits for none of them. It latches in the lease first, which is only ever locked for a moment; from then on
//! every step of a request under way that would serve something finds that it may not ([`Lease::may_serve`]).

mod fence;
mod flip;
mod hold;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use muster_model::{BootId, BootTime, Epoch, FleetName};

use crate::asker::{self, Asker};
use crate::config::DRAIN_MS_MAX;
use crate::error::GuardError;
use crate::health::await_health;
use crate::hooks::{Context, Hook, Hooks};
use crate::lease::{Found, Lease, LeaseRefusal};
use crate::ledger::{Ledger, Survives};
use crate::link::Link;
use crate::log::log;
use crate::process;
use crate::protocol::{DriverKind, Event, FleetState, LinkState, Opened, Running};
use crate::record::{Permit, RecordFile};
use crate::running::{self, Known};
use crate::service::Service;
use crate::timer::Timer;

/// What a closing under a deadline leaves for killing, so that it ends before the fence would begin.
const KILL_MARGIN: Duration = Duration::from_millis(250);

pub(crate) struct Fleet {
    pub(crate) name: FleetName,
    pub(crate) boot_id: BootId,
    pub(crate) link: Link,
    pub(crate) permit: RecordFile<Permit>,
    /// `None` for the driver `link`.
    pub(crate) service: Option<Box<dyn Service>>,
    /// How long the service may take to stop where nobody says.
    pub(crate) stop_timeout: Duration,
    pub(crate) generation: Arc<AtomicU64>,
    pub(crate) hooks: Hooks,
    pub(crate) ledger: Ledger,
    pub(crate) timer: Timer,
    pub(crate) events: crate::fleets::Events,
    /// Held through every change that was asked for; reading, deadlines and fences do not wait for it.
    pub(crate) change: Mutex<()>,
    /// Held while the service is tied to the guard for a deadline, and while it is seen that no deadline needs that any more.
    pub(crate) tying: Mutex<()>,
    /// Held for moments only, never while anything is waited for.
    pub(crate) lease: Mutex<Lease>,
    /// Held through one attempt at a fence, and through the hook that follows it.
    pub(crate) fencing: Mutex<()>,
    /// Held through a drill.
    pub(crate) drilling: Mutex<()>,
    /// Held through a look at what runs.
    pub(crate) known: Mutex<Known>,
    /// Held while a release is rehearsed; nothing else waits for it.
    pub(crate) rehearsing: Mutex<()>,
    /// What was opened, for the hooks; the permit is what counts.
    pub(crate) opened: Mutex<Option<Opened>>,
    /// When the last opening of this guard began.
    pub(crate) since: Mutex<Option<BootTime>>,
    /// The thread that waits for the deadline, once there was one.
    pub(crate) warden: Mutex<Option<JoinHandle<()>>>,
    pub(crate) leaving: AtomicBool,
}

impl Fleet {
    /// Brings the disk in line with what may be served now: a permit of an earlier boot is void, as is one whose lease has
    /// latched; what is not permitted is not linked, and no process of an earlier guard goes on. A deadline that still
    /// runs is taken up again.
    pub(crate) fn recover(self: &Arc<Self>) -> Result<(), GuardError> {
        let _change = self.lock();
        let found = match self.ledger.read() {
            Ok(None) => Found::Nothing,
            Ok(Some(record)) => Found::Record(Box::new(record)),
            Err(error @ GuardError::Corrupt { .. }) => {
                log!("fleet {}: {}; fenced", self.name, error.chain());
                Found::Unreadable
            }
            Err(error) => return Err(error),
        };
        let halted = self.ledger.halted()?;
        *self.lease() = Lease::recovered(found, &self.boot_id, halted, self.timer.now());
        let permitted = self.recover_permit()?;
        if let Some(service) = &self.service {
            service.recover(permitted)?;
        }
        self.change_lease(|lease, now| {
            if matches!(self.link.read(), Ok(LinkState::Absent)) {
                lease.fence_dark(now);
                if !self.hooks.has(Hook::OnFence) {
                    lease.fence_ended(now);
                }
            }
        });
        if self.lease().due().is_some() {
            self.ensure_warden()?;
        }
        self.bind_or_release();
        if let Err(error) = self.persist(Survives::PowerCut) {
            // The next start draws the same conclusions from the record that is there; a full disk stops no service.
            log!("fleet {}: {}", self.name, error.chain());
        }
        Ok(())
    }

    /// What was left of an earlier guard could not be brought in line: a fence has latched, and is tried until it succeeds.
    pub(crate) fn distrust(self: &Arc<Self>) -> Result<(), GuardError> {
        let halted = self.ledger.halted_or_unknown();
        self.change_lease(|lease, now| {
            *lease = Lease::recovered(Found::Unreadable, &self.boot_id, halted, now)
        });
        self.ensure_warden()
    }

    /// Takes what is only ever held for a moment, and nothing that a drain or a hook may hold for long.
    pub(crate) fn pulse(&self) {
        drop(self.lease());
    }

    pub(crate) fn state(&self) -> Result<FleetState, GuardError> {
        let (hold, halted, flipped) = {
            let lease = self.lease();
            (*lease.hold(), lease.halted().cloned(), lease.flipped().copied())
        };
        let permit = self.permitted()?;
        let (open, doubt) = (permit.as_ref().map(Permit::opened), permit.and_then(|permit| permit.doubt));
        Ok(FleetState {
            fleet: self.name.clone(),
            driver: self.service.as_ref().map_or(DriverKind::Link, |service| service.kind()),
            open,
            doubt,
            link: self.link.read()?,
            service: self.service.as_ref().map(|service| service.state()),
            ends_with_guard: self.service.as_ref().is_some_and(|service| service.ends_with_guard()),
            lease: hold,
            halted,
            flipped,
            generation: self.generation.load(Ordering::Relaxed),
        })
    }

    /// The processes of the service, as they are now.
    pub(crate) fn running(&self) -> Result<Option<Running>, GuardError> {
        let Some(service) = &self.service else { return Ok(None) };
        let members = service.members()?;
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        running::look(&members, self.link.releases(), since, &mut known).map(Some)
    }

    /// Shuts or opens the gate of what is served.
    pub(crate) fn doubt(&self, epoch: Epoch, doubt: Option<String>) -> Result<FleetState, GuardError> {
        let _change = self.lock_for_asker()?;
        let permit = self.permit.read()?.filter(|permit| permit.boot_id == self.boot_id);
        if let Some(permit) = permit.filter(|permit| permit.epoch == epoch && permit.doubt != doubt) {
            self.permit.write_for_this_boot(&Permit { doubt, ..permit })?;
        }
        self.state()
    }

    /// Step 10: drains under the running deadline, and lifts it only once nothing is left.
    ///
    /// Only the link's removal waits for the disk. A permit is void after a power cut in any case, and a deadline that comes
    /// back with the disk is one of an earlier boot, which has latched: both leave the fleet as dark as it is.
    pub(crate) fn close(&self, drain: Option<Duration>) -> Result<FleetState, GuardError> {
        if drain.is_some_and(|drain| drain > Duration::from_millis(DRAIN_MS_MAX)) {
            let detail = format!("drain_ms is at most {DRAIN_MS_MAX}");
            return Err(GuardError::OutOfBounds { detail });
        }
        let _change = self.lock();
        let deadline = self.change_lease(Lease::begin_close);
        let closed = self.close_locked(self.drain_limit(drain, deadline));
        self.change_lease(|lease, now| match &closed {
            Ok(()) => lease.end_close(now),
            Err(_) => lease.fail_close(),
        });
        closed?;
        self.link.unstage()?;
        self.persist(Survives::Process)?;
        self.state()
    }

    /// Waits for no disk: what a power cut takes back is what the next start would take away, as nothing may be served in
    /// another boot before it is opened there.
    pub(crate) fn open(&self, opened: Opened, going_down: &AtomicBool) -> Result<FleetState, GuardError> {
        let _change = self.lock_for_asker()?;
        // Read under the lock that stopping the services takes as well: either they are stopped after this start, or
        // this start sees that they will be.
        if going_down.load(Ordering::SeqCst) {
            return Err(GuardError::ShuttingDown);
        }
        // What follows a fence must not meet what is opened now.
        self.finish_fence();
        self.ask_lease(|lease, now| lease.may_open(now, opened))?;
        let before = self.state()?;
        self.check_free(&before, opened)?;
        self.ask_lease(|lease, now| lease.begin_open(now, opened))?;
        if before.serves(opened.epoch, opened.digest) {
            if before.doubt.is_none() {
                return Ok(before);
            }
            // Whoever opens has looked at what is there.
            self.allow(opened)?;
            return self.state();
        }
        self.persist(Survives::Process)?;
        self.open_locked(opened).or_else(|error| {
            let cut = self.may_serve();
            self.close_locked(self.stop_timeout)?;
            cut.map_err(GuardError::lease(&self.name))?;
            Err(error)
        })?;
        self.release();
        let context = self.context();
        self.run_lenient(Hook::AfterOpen, &context, self.hooks.bound(Hook::AfterOpen));
        self.state()
    }

    /// Stops the service and leaves permit and link: what a guard that goes down does. Where a deadline runs, nobody will be
    /// there when it passes, so that is fenced now.
    pub(crate) fn go_down(&self) -> Result<(), GuardError> {
        self.change_lease(Lease::abandon);
        let fenced = self.darken();
        self.finish_fence();
        let _change = self.lock();
        let stopped = self.service.as_ref().map_or(Ok(()), |service| service.go_down(self.stop_timeout));
        fenced.and(stopped)
    }

    fn recover_permit(&self) -> Result<Option<Opened>, GuardError> {
        let permit = match self.permit.read() {
            Err(error @ GuardError::Corrupt { .. }) => {
                log!("fleet {}: {}; revoked", self.name, error.chain());
                None
            }
            other => other?.filter(|permit| permit.boot_id == self.boot_id),
        };
        let permit = permit.filter(|_| self.may_serve().is_ok());
        let permitted = permit.as_ref().map(Permit::opened);
        self.remember(permitted);
        if permitted.is_some() {
            return Ok(permitted);
        }
        if self.permit.remove()? {
            log!("fleet {}: the permit is void; revoked", self.name);
        }
        match self.link.remove() {
            Ok(false) => Ok(None),
            Ok(true) => {
                log!("fleet {}: removed a link without a permit", self.name);
                Ok(None)
            }
            // One fleet's broken folder must not keep the others dark; `open` refuses this one by name.
            Err(error @ GuardError::LinkObstructed { .. }) => {
                log!("fleet {}: {}", self.name, error.chain());
                Ok(None)
            }
            Err(error) => Err(error),
        }
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

    fn open_locked(&self, opened: Opened) -> Result<(), GuardError> {
        let folder = self.link.release(opened.digest)?;
        if let Some(service) = &self.service {
            service.stop(self.stop_timeout, None)?;
        }
        self.allow(opened)?;
        let digest = opened.digest;
        let may = || self.may_serve();
        self.link.make(digest, &may)?.map_err(GuardError::lease(&self.name))?;
        self.generation.fetch_add(1, Ordering::Relaxed);
        if let Some(service) = &self.service {
            self.begins();
            service.start(opened, folder, &may)?;
        }
        self.check_health()
    }

    /// A permit counts in this boot only, so no disk is waited for.
    fn allow(&self, opened: Opened) -> Result<(), GuardError> {
        let Opened { epoch, digest } = opened;
        let permit = Permit { boot_id: self.boot_id.clone(), epoch, digest, doubt: None };
        self.permit.write_for_this_boot(&permit)?;
        self.remember(Some(opened));
        Ok(())
    }

    /// From now on a process of the service that is older is one that should not be there.
    fn begins(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(process::time_of_starts());
    }

    /// The last step of an opening: what does not work, or does not run any more, is not open.
    fn check_health(&self) -> Result<(), GuardError> {
        let alive = || self.service.as_ref().is_none_or(|service| service.state().may_be_alive());
        let wanted = || self.may_serve().is_ok() && alive();
        if let Some(health) = &self.hooks.config.health {
            let healthy = await_health(health, &self.hooks, &self.context(), &wanted);
            if !alive() {
                let detail = "it ended before it was healthy".to_owned();
                return Err(GuardError::ServiceExited { fleet: self.name.clone(), detail });
            }
            healthy.map_err(|detail| GuardError::Unhealthy { fleet: self.name.clone(), detail })?;
        }
        self.may_serve().map_err(GuardError::lease(&self.name))
    }

    /// Closes in an order that a crash at any point leaves safe: with the permit gone, nothing starts again, and the next
    /// start of the guard finishes the rest. A step that fails does not keep the next one from being tried.
    fn close_locked(&self, limit: Duration) -> Result<(), GuardError> {
        let end = Instant::now() + limit;
        let left = || end.saturating_duration_since(Instant::now());
        let context = self.context();
        if context.opened.is_some() {
            self.run_lenient(Hook::BeforeClose, &context, left());
        }
        let revoked = self.permit.remove_for_this_boot();
        let ask = |pid| {
            self.run_lenient(Hook::Stop, &Context { pid: Some(pid), ..context.clone() }, left());
        };
        let ask: Option<&dyn Fn(i32)> = if self.hooks.has(Hook::Stop) { Some(&ask) } else { None };
        let stopped = self.service.as_ref().map_or(Ok(()), |service| service.stop(left(), ask));
        let unlinked = self.link.remove();
        let changed = [revoked?, unlinked?].contains(&true);
        stopped?;
        self.remember(None);
        if changed {
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        let state = self.state()?;
        if !state.is_closed() {
            let detail = format!("link {:?}, service {:?}", state.link, state.service);
            return Err(GuardError::NotStopped { fleet: self.name.clone(), detail });
        }
        Ok(())
    }

    /// How long a closing may drain, by the configuration.
    pub(crate) fn drain_max(&self) -> Duration {
        self.stop_timeout.max(self.hooks.bound(Hook::BeforeClose))
    }

    fn drain_limit(&self, drain: Option<Duration>, deadline: Option<BootTime>) -> Duration {
        let asked = drain.unwrap_or_else(|| self.drain_max());
        within(asked, deadline, self.timer.now())
    }

    /// Runs a hook whose failure stops nothing.
    fn run_lenient(&self, hook: Hook, context: &Context, limit: Duration) {
        let wanted = || self.may_serve().is_ok();
        if let Err(error) = self.hooks.run(hook, context, limit, &wanted) {
            self.tell_failed(hook, &error);
        }
    }

    fn tell_failed(&self, hook: Hook, error: &GuardError) {
        log!("{}", error.chain());
        let detail = error.to_string();
        self.emit(Event::HookFailed { fleet: self.name.clone(), hook: hook.to_string(), detail });
    }

    fn context(&self) -> Context {
        let opened = *self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = opened.and_then(|opened| self.link.release(opened.digest).ok());
        Context { opened, folder, k: self.lease().rollout(), ..Context::default() }
    }

    fn remember(&self, opened: Option<Opened>) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = opened;
    }

    /// What the permit on disk allows in this boot, as far as the lease does.
    fn permitted(&self) -> Result<Option<Permit>, GuardError> {
        let permit = self.permit.read()?.filter(|permit| permit.boot_id == self.boot_id);
        Ok(permit.filter(|_| self.may_serve().is_ok()))
    }

    fn may_serve(&self) -> Result<(), LeaseRefusal> {
        self.lease().may_serve()
    }

    fn not_closed(&self, found: String) -> GuardError {
        GuardError::NotClosed { fleet: self.name.clone(), found }
    }

    fn emit(&self, event: Event) {
        (self.events)(event);
    }

    /// Waits for its turn, on behalf of somebody who must still be there then. P1: an opening that an agent asked for
    /// before it died must not follow what the next agent was told: that nothing is served, and so needs no deadline.
    fn lock_for_asker(&self) -> Result<MutexGuard<'_, ()>, GuardError> {
        let change = self.lock();
        match asker::look() {
            Asker::Waits => Ok(change),
            Asker::Gone => Err(GuardError::AskerGone { fleet: self.name.clone() }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a closing may drain: what was asked for, and never so long that the deadline would pass.
fn within(asked: Duration, deadline: Option<BootTime>, now: BootTime) -> Duration {
    deadline.map_or(asked, |deadline| asked.min(deadline.since(now).saturating_sub(KILL_MARGIN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_leaves_time_to_kill_before_the_deadline() {
        let (second, now) = (Duration::from_secs(1), BootTime(5_000));
        assert_eq!(within(second, None, now), second);
        assert_eq!(within(second, Some(BootTime(60_000)), now), second);
        assert_eq!(within(second, Some(BootTime(5_600)), now), Duration::from_millis(350));
        for passed in [5_250, 5_100, 5_000, 1_000] {
            assert_eq!(within(second, Some(BootTime(passed)), now), Duration::ZERO);
        }
    }
}
