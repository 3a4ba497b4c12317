//! The timer of one deadline, and the clock it goes by.
//!
//! Deadlines are points of `CLOCK_BOOTTIME`, which counts the time that the machine was suspended. The clock is read through
//! libc, as the agent's is, so that a test can put another clock in front of both; the waiting is a timer descriptor
//! of the same clock, set anew by whoever changes the deadline. A wait is never longer than [`TICK`]: then the clock is
//! read again, so that a timer and a clock that disagree cost no more than that.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use muster_model::BootTime;
use nix::time::{ClockId, clock_gettime};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// The longest that a wait trusts the timer alone.
const TICK: Duration = Duration::from_millis(100);

/// The shortest time that a timer can be set to: zero would stop it.
const AT_ONCE: Duration = Duration::from_nanos(1);

const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Milliseconds of `CLOCK_BOOTTIME`.
///
/// # Panics
/// On a kernel without that clock: older than 2.6.39.
#[must_use]
pub fn boot_time() -> BootTime {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    let seconds = u64::try_from(time.tv_sec()).expect("the time since boot is not negative");
    let nanoseconds = u64::try_from(time.tv_nsec()).expect("a part of a second is not negative");
    BootTime(seconds * 1_000 + nanoseconds / 1_000_000)
}

/// A time of `CLOCK_MONOTONIC`, as systemd tells it, on the clock of deadlines.
pub(crate) fn since_monotonic(at: Duration) -> BootTime {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or(at);
    let ago = u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX);
    BootTime(boot_time().0.saturating_sub(ago))
}

/// By what deadlines are held, and who sees that one has passed.
#[derive(Clone)]
pub(crate) enum Clock {
    /// `CLOCK_BOOTTIME`, and a thread of the guard's.
    Boot,
    /// What this says, and whoever moves it.
    Given(Arc<dyn Fn() -> BootTime + Send + Sync>),
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boot => "Boot",
            Self::Given(_) => "Given",
        })
    }
}

/// A timer that any thread may set while one waits for it.
#[derive(Debug)]
pub(crate) struct Timer {
    clock: Clock,
    descriptor: OwnedFd,
}

impl Timer {
    pub(crate) fn new(clock: Clock) -> std::io::Result<Self> {
        Ok(Self { clock, descriptor: timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)? })
    }

    pub(crate) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The time that deadlines are points of.
    pub(crate) fn now(&self) -> BootTime {
        match &self.clock {
            Clock::Boot => boot_time(),
            Clock::Given(now) => now(),
        }
    }

    /// Sets the timer to `due`, or to the next tick before it; `None` stops it.
    pub(crate) fn set(&self, due: Option<BootTime>) {
        let value = due.map_or(NEVER, |due| timespec(due.since(self.now()).clamp(AT_ONCE, TICK)));
        let spec = Itimerspec { it_interval: NEVER, it_value: value };
        timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &spec)
            .expect("a timer that exists takes any value below a second");
    }

    /// Waits until the timer fires, or something is amiss: whoever waits looks at the clock in any case.
    pub(crate) fn wait(&self) {
        let mut count = [0; 8];
        match rustix::io::read(&self.descriptor, &mut count) {
            Ok(_) | Err(Errno::INTR) => {}
            // A timer that cannot be read must not become a busy loop.
            Err(_) => std::thread::park_timeout(Duration::from_millis(1)),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    let seconds = i64::try_from(duration.as_secs()).expect("a tick is shorter than a second");
    Timespec { tv_sec: seconds, tv_nsec: duration.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_at_its_time_and_can_be_moved_while_someone_waits() {
        let timer = Arc::new(Timer::new(Clock::Boot).unwrap());
        let due = boot_time().after(Duration::from_millis(30));
        timer.set(Some(due));
        while boot_time() < due {
            timer.wait();
            timer.set(Some(due));
        }
        timer.set(Some(boot_time().after(Duration::from_secs(3600))));
        let waiting = {
            let timer = Arc::clone(&timer);
            std::thread::spawn(move || timer.wait())
        };
        timer.set(Some(BootTime(0)));
        waiting.join().unwrap();
        assert!(boot_time() > BootTime(0));
    }
}
