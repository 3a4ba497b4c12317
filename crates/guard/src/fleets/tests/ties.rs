//! A service that must not outlive its guard while a deadline runs, and the tie that sees to it.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::lease::LeaseRefusal;
use crate::protocol::ServiceState;
use crate::service::{Members, Service};
use crate::timer::boot_time;

/// How long it is looked whether something happens that must not.
const MOMENT: Duration = Duration::from_millis(300);

/// A service that always runs, and whose tie takes as long as the test wants.
struct Slow {
    is_tied: Arc<Mutex<bool>>,
    begun: Sender<()>,
    may_end: Mutex<Receiver<()>>,
}

impl Service for Slow {
    fn kind(&self) -> DriverKind {
        DriverKind::Systemd
    }

    fn state(&self) -> ServiceState {
        ServiceState::Running { pid: 1, started_boot_ms: BootTime(1) }
    }

    fn members(&self) -> Result<Members, GuardError> {
        Ok(Members::default())
    }

    fn start(
        &self,
        _: Opened,
        _: PathBuf,
        _: &dyn Fn() -> Result<(), LeaseRefusal>,
    ) -> Result<BootTime, GuardError> {
        Ok(boot_time())
    }

    fn stop(&self, _: Duration, _: Option<&dyn Fn(i32)>) -> Result<(), GuardError> {
        Ok(())
    }

    fn kill(&self, _: Duration) -> Result<(), GuardError> {
        Ok(())
    }

    fn settle(&self, _: Duration) {}

    fn recover(&self, _: Option<Opened>) -> Result<(), GuardError> {
        Ok(())
    }

    fn go_down(&self, _: Duration) -> Result<(), GuardError> {
        Ok(())
    }

    fn bind(&self) -> Result<(), GuardError> {
        *self.is_tied.lock().unwrap() = true;
        self.begun.send(()).unwrap();
        self.may_end.lock().unwrap().recv().unwrap();
        Ok(())
    }

    fn release(&self) {
        *self.is_tied.lock().unwrap() = false;
    }

    fn ends_with_guard(&self) -> bool {
        *self.is_tied.lock().unwrap()
    }

    fn unguarded(&self) -> Result<Duration, GuardError> {
        Ok(Duration::ZERO)
    }
}

#[test]
fn a_deadline_that_is_lifted_late_does_not_untie_what_the_next_one_has_tied() {
    let bench = Bench::new();
    // Serves already, so that it may be armed.
    bench.guard().open(&bench.fleet, EPOCH, one()).unwrap();
    let state = StateFolder::open(&bench.settings.state_dir).unwrap();
    let (boot_id, events) = (process::boot_id().unwrap(), Arc::new(|_| {}) as Events);
    let (clock, watchdog) = (Clock::Boot, Arc::new(Watchdog::of_this_process()));
    let host = Host {
        settings: &bench.settings,
        state: &state,
        boot_id: &boot_id,
        clock: &clock,
        events: &events,
        watchdog,
    };
    let is_tied = Arc::new(Mutex::new(false));
    let ((begun, has_begun), (end, may_end)) = (channel(), channel());
    let slow = Slow { is_tied: Arc::clone(&is_tied), begun, may_end: Mutex::new(may_end) };
    let fleet = Fleet { service: Some(Box::new(slow)), ..host.fleet(&bench.settings.fleets[0]).unwrap() };
    let fleet = Arc::new(fleet);
    fleet.recover().unwrap();
    let armed = |k| Armed {
        k: RolloutId(k),
        epoch: EPOCH,
        deadline_boot_ms: boot_time().after(PATIENCE * 3),
        flip: None,
    };
    end.send(()).unwrap();
    fleet.arm(armed(1)).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    fleet.disarm(RolloutId(1)).unwrap();
    assert!(!*is_tied.lock().unwrap());

    thread::scope(|scope| {
        let arming = scope.spawn(|| fleet.arm(armed(2)));
        has_begun.recv_timeout(PATIENCE).unwrap();
        // What the one who has lifted the deadline does last. The next deadline is not in force yet.
        let (done, is_done) = channel();
        let fleet = &fleet;
        let late = scope.spawn(move || {
            let lifted = fleet.disarm(RolloutId(1));
            done.send(()).unwrap();
            lifted
        });
        let _ = is_done.recv_timeout(MOMENT);
        end.send(()).unwrap();
        arming.join().unwrap().unwrap();
        let _ = late.join().unwrap();
    });
    assert!(*is_tied.lock().unwrap(), "a deadline runs, and its service would outlive the guard");
    fleet.disarm(RolloutId(2)).unwrap();
    assert!(!*is_tied.lock().unwrap());
    fleet.leave();
}
