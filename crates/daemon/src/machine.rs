//! What a daemon takes from the machine it runs on beside files and sockets: time, randomness, and threads.
//!
//! A daemon is handed its [`Machine`], and reads no clock and starts no thread past it. So the very code that runs in
//! production also runs many times over in one thread, under a clock and a chance of somebody else's making, and does the
//! same each time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{BootId, BootTime, ClockState, UnixTime};
use tokio::task::JoinError;

use crate::{Error, clock};

/// Both clocks were read at one moment if no more milliseconds passed meanwhile: that is their unit.
const ONE_MOMENT: Duration = Duration::from_millis(1);

/// How often both clocks are read for that.
const READINGS_MAX: usize = 8;

/// Where work runs that blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    /// On a thread of its own, beside everything else.
    OnThreads,
    /// Where it is asked for, and at once: nothing else goes on meanwhile, so that the order of all things is given.
    InPlace,
}

/// What a [`Machine`] is made of.
pub trait Surroundings: Send + Sync {
    /// See [`crate::boot_time`].
    fn boot_time(&self) -> BootTime;

    /// See [`crate::unix_time`].
    fn unix_time(&self) -> UnixTime;

    /// See [`crate::boot_id`].
    fn boot_id(&self) -> Result<BootId, Error>;

    /// See [`crate::clock_state`].
    fn clock_state(&self) -> ClockState;

    /// Fills `bytes` with what nobody can foresee.
    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), getrandom::Error>;

    /// Where work runs that blocks.
    fn blocking(&self) -> Blocking;
}

/// The machine that a daemon runs on. Clones are of the same one.
#[derive(Clone)]
pub struct Machine(Arc<dyn Surroundings>);

impl Machine {
    /// This machine: its clocks, its randomness, and tokio's threads.
    #[must_use]
    pub fn real() -> Self {
        Self(Arc::new(Real))
    }

    /// A machine made of something else.
    #[must_use]
    pub fn of(surroundings: Arc<dyn Surroundings>) -> Self {
        Self(surroundings)
    }

    /// Milliseconds of `CLOCK_BOOTTIME`.
    #[must_use]
    pub fn boot_time(&self) -> BootTime {
        self.0.boot_time()
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn unix_time(&self) -> UnixTime {
        self.0.unix_time()
    }

    /// Both clocks at one moment. An instant of the one becomes one of the other by them (protocol, step 14), so a thread that was
    /// held up between the two readings reads them again; of several such the closest counts.
    #[must_use]
    pub fn now(&self) -> (BootTime, UnixTime) {
        let mut closest = self.read_both();
        for _ in 1..READINGS_MAX {
            if closest.0 <= ONE_MOMENT {
                break;
            }
            closest = closest.min(self.read_both());
        }
        let (_, boot, unix) = closest;
        (boot, unix)
    }

    /// How long it took to read both clocks, and what they said.
    fn read_both(&self) -> (Duration, BootTime, UnixTime) {
        let (before, unix, after) = (self.boot_time(), self.unix_time(), self.boot_time());
        (after.since(before), before, unix)
    }

    /// The id of this boot.
    pub fn boot_id(&self) -> Result<BootId, Error> {
        self.0.boot_id()
    }

    /// Whether this machine's clock goes on whatever happens to the machine.
    #[must_use]
    pub fn clock_state(&self) -> ClockState {
        self.0.clock_state()
    }

    /// So many random bytes.
    pub fn random<const N: usize>(&self) -> Result<[u8; N], getrandom::Error> {
        let mut bytes = [0; N];
        self.0.fill_random(&mut bytes)?;
        Ok(bytes)
    }

    /// A number uniform over all 64-bit numbers.
    pub fn random_u64(&self) -> Result<u64, getrandom::Error> {
        self.random().map(u64::from_le_bytes)
    }

    /// Where work runs that blocks.
    #[must_use]
    pub fn blocking(&self) -> Blocking {
        self.0.blocking()
    }

    /// Runs work that blocks. The error is of a thread that ended without an outcome; where the work runs in place, its
    /// panic is the caller's.
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        match self.blocking() {
            Blocking::OnThreads => tokio::task::spawn_blocking(work).await,
            Blocking::InPlace => Ok(work()),
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("blocking", &self.blocking()).finish_non_exhaustive()
    }
}

struct Real;

impl Surroundings for Real {
    fn boot_time(&self) -> BootTime {
        clock::boot_time()
    }

    fn unix_time(&self) -> UnixTime {
        clock::unix_time()
    }

    fn boot_id(&self) -> Result<BootId, Error> {
        clock::boot_id()
    }

    fn clock_state(&self) -> ClockState {
        clock::clock_state()
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), getrandom::Error> {
        getrandom::fill(bytes)
    }

    fn blocking(&self) -> Blocking {
        Blocking::OnThreads
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A machine whose time stands still and whose dice have one side.
    struct Still;

    impl Surroundings for Still {
        fn boot_time(&self) -> BootTime {
            BootTime(7)
        }

        fn unix_time(&self) -> UnixTime {
            UnixTime(8)
        }

        fn boot_id(&self) -> Result<BootId, Error> {
            clock::boot_id()
        }

        fn clock_state(&self) -> ClockState {
            ClockState::Pausable
        }

        fn fill_random(&self, bytes: &mut [u8]) -> Result<(), getrandom::Error> {
            bytes.fill(1);
            Ok(())
        }

        fn blocking(&self) -> Blocking {
            Blocking::InPlace
        }
    }

    /// A machine that is held up for so long before each reading of the time of day, one after the other, and then no more.
    struct HeldUp(Mutex<(Vec<u64>, u64)>);

    impl Surroundings for HeldUp {
        fn boot_time(&self) -> BootTime {
            BootTime(self.0.lock().unwrap().1)
        }

        fn unix_time(&self) -> UnixTime {
            let (delays, now) = &mut *self.0.lock().unwrap();
            *now += delays.pop().unwrap_or_default();
            UnixTime(1_000_000 + *now)
        }

        fn boot_id(&self) -> Result<BootId, Error> {
            Still.boot_id()
        }

        fn clock_state(&self) -> ClockState {
            Still.clock_state()
        }

        fn fill_random(&self, bytes: &mut [u8]) -> Result<(), getrandom::Error> {
            Still.fill_random(bytes)
        }

        fn blocking(&self) -> Blocking {
            Still.blocking()
        }
    }

    #[test]
    fn both_clocks_are_read_at_one_moment_though_the_thread_is_held_up() {
        let read = |delays: &[u64]| {
            let delays = delays.iter().rev().copied().collect();
            Machine::of(Arc::new(HeldUp(Mutex::new((delays, 0))))).now()
        };
        assert_eq!(read(&[]), (BootTime(0), UnixTime(1_000_000)));
        assert_eq!(read(&[5_000]), (BootTime(5_000), UnixTime(1_005_000)), "read again");
        let always: Vec<u64> = (0..32).map(|reading| if reading == 2 { 7 } else { 100 }).collect();
        assert_eq!(read(&always), (BootTime(200), UnixTime(1_000_207)), "the closest");
    }

    #[tokio::test]
    async fn a_real_machine_blocks_elsewhere_and_a_simulated_one_here() {
        let here = std::thread::current().id();
        let there = Machine::real().run_blocking(|| std::thread::current().id()).await.unwrap();
        assert_ne!(there, here);
        let still = Machine::of(Arc::new(Still));
        assert_eq!(still.run_blocking(|| std::thread::current().id()).await.unwrap(), here);
        assert_eq!((still.boot_time(), still.unix_time()), (BootTime(7), UnixTime(8)));
        assert_eq!(still.random_u64().unwrap(), 0x0101_0101_0101_0101);
        assert_ne!(Machine::real().random::<16>().unwrap(), Machine::real().random::<16>().unwrap());
    }
}
