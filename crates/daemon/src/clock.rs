//! The clocks of this machine, for the edges: the core takes what they say as arguments.
//!
//! They are read through libc, so that a test can put another clock in front of it; rustix would ask the
//! kernel's vDSO directly. Never `Instant`: it stands still while the machine is suspended.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use muster_model::{BootId, BootTime, ClockState, UnixTime};
use nix::time::{ClockId, clock_gettime};

use crate::Error;

const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";
const CPUINFO_PATH: &str = "/proc/cpuinfo";
/// Where Linux says which hypervisor it runs on, if it was told.
const HYPERVISOR_PATH: &str = "/sys/hypervisor/type";

/// Milliseconds of `CLOCK_BOOTTIME`.
///
/// # Panics
/// On a kernel without that clock: older than 2.6.39.
#[must_use]
pub fn boot_time() -> BootTime {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    let seconds = u64::try_from(time.tv_sec()).expect("the time since boot is not negative");
    let nanoseconds = u64::try_from(time.tv_nsec()).expect("a part of a second is not negative");
    BootTime(seconds * 1000 + nanoseconds / 1_000_000)
}

/// Milliseconds since 1970; zero on a machine whose clock is before that.
#[must_use]
pub fn unix_time() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::default().after(since)
}

/// The id of this boot.
pub fn boot_id() -> Result<BootId, Error> {
    let path = Path::new(BOOT_ID_PATH);
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    BootId::new(text.trim_ascii_end()).map_err(|reason| Error::BootId { path: path.to_owned(), reason })
}

/// Whether this machine's clock goes on whatever happens to the machine, as far as can be told from within: that of a
/// virtual machine stands still while it is paused.
#[must_use]
pub fn clock_state() -> ClockState {
    let is_virtual = |cpuinfo: &str| {
        let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
        flags.next().is_some_and(|line| line.split_ascii_whitespace().any(|flag| flag == "hypervisor"))
    };
    match (fs::read_to_string(CPUINFO_PATH), Path::new(HYPERVISOR_PATH).exists()) {
        (Ok(cpuinfo), false) if !is_virtual(&cpuinfo) => ClockState::Steady,
        (Ok(_) | Err(_), _) => ClockState::Pausable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_agree_with_the_kernel() {
        let before = boot_time();
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let after = boot_time();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // /proc/uptime counts in hundredths.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an uptime is small and positive"
        )]
        let uptime_ms = (seconds * 1000.0) as u64;
        assert!(before.0 <= uptime_ms + 10 && uptime_ms <= after.0, "{before:?} {uptime_ms} {after:?}");
        assert!(unix_time() > UnixTime(1_700_000_000_000));
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
