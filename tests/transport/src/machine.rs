//! A machine whose clocks go by simulated time, and whose chance comes from a seed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_daemon::{Blocking, Error, Machine, Surroundings};
use muster_model::{BootId, BootTime, ClockState, UnixTime};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// The time of day at which every simulation begins.
pub(crate) const DAWN: UnixTime = UnixTime(1_800_000_000_000);

/// How far the rate of a clock is off at most, in parts per million: within the ρ of the rosters here.
const RATE_ERROR_PPM: i64 = 50_000;

const MILLION: u128 = 1_000_000;

/// The clocks and the chance of one host.
pub(crate) struct Simulated {
    boot_id: BootId,
    booted: Duration,
    rate_ppm: u128,
    chance: Mutex<SmallRng>,
}

impl Simulated {
    /// A machine that was switched on some time before the simulation began.
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let mut chance = SmallRng::seed_from_u64(seed);
        let booted = Duration::from_millis(chance.random_range(10_000..10_000_000));
        let rate = 1_000_000 + chance.random_range(-RATE_ERROR_PPM..=RATE_ERROR_PPM);
        let rate_ppm = u128::try_from(rate).expect("a clock goes forward");
        let boot_id = BootId::new(&format!("00000000-0000-0000-0000-{:012x}", chance.random::<u32>()));
        let boot_id = boot_id.expect("it has the form of a UUID");
        Arc::new(Self { boot_id, booted, rate_ppm, chance: Mutex::new(chance) })
    }

    pub(crate) fn machine(self: &Arc<Self>) -> Machine {
        Machine::of(Arc::clone(self) as Arc<dyn Surroundings>)
    }
}

impl Surroundings for Simulated {
    fn boot_time(&self) -> BootTime {
        let elapsed = elapsed().as_micros() * self.rate_ppm / MILLION;
        let elapsed = Duration::from_micros(u64::try_from(elapsed).expect("a simulation is short"));
        BootTime(0).after(self.booted + elapsed)
    }

    fn unix_time(&self) -> UnixTime {
        DAWN.after(elapsed())
    }

    fn boot_id(&self) -> Result<BootId, Error> {
        Ok(self.boot_id.clone())
    }

    fn clock_state(&self) -> ClockState {
        ClockState::Steady
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), getrandom::Error> {
        self.chance.lock().unwrap().fill_bytes(bytes);
        Ok(())
    }

    fn blocking(&self) -> Blocking {
        Blocking::InPlace
    }
}

/// Since the simulation began; nothing before it has.
pub(crate) fn elapsed() -> Duration {
    if turmoil::in_simulation() { turmoil::sim_elapsed().unwrap_or_default() } else { Duration::ZERO }
}
