//! A clock for each machine: one that runs fast or slow, and whose time of day can be set.
//!
//! `fixtures/clock.c` says how. libfaketime is not what does it: it moves `CLOCK_BOOTTIME` and `CLOCK_MONOTONIC`
//! together and lets each process begin its own rate, so that an agent and its guard would not be on one machine; and
//! as the kernel does not know of its `CLOCK_MONOTONIC`, waits of the standard library with a time-out never end.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::time::{ClockId, clock_gettime};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/clock.c");

/// The library that stands in front of libc, and the folder for what it reads.
#[derive(Debug)]
pub(crate) struct Clocks {
    folder: PathBuf,
    library: PathBuf,
    base_ns: i64,
}

/// The clock of one machine.
#[derive(Debug)]
pub(crate) struct MachineClock {
    library: PathBuf,
    setting: OsString,
    steps: File,
    time_ms: i64,
}

/// How far the clocks of a machine are off as long as nobody sets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ClockOff {
    /// By how many millionths `CLOCK_BOOTTIME` runs fast.
    pub(crate) rate_ppm: i64,
    /// By how many milliseconds the time of day is ahead.
    pub(crate) time_ms: i64,
}

impl Clocks {
    /// Compiles the library into a folder that exists.
    pub(crate) fn build(folder: &Path) -> Self {
        let library = folder.join("clock.so");
        let mut command = Command::new("cc");
        command.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&library).arg(SOURCE);
        let compiled = command.output().unwrap_or_else(|error| panic!("cc is needed: {error}"));
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let now = clock_gettime(ClockId::Boottime);
        Self { folder: folder.to_owned(), library, base_ns: now.tv_sec * 1_000_000_000 + now.tv_nsec }
    }

    /// A clock that is so far off from the kernel's.
    pub(crate) fn clock(&self, name: &str, ClockOff { rate_ppm, time_ms }: ClockOff) -> MachineClock {
        let path = self.folder.join(format!("{name}.clock"));
        let steps = File::create(&path).unwrap();
        let mut setting = OsString::from(format!("{} {rate_ppm} ", self.base_ns));
        setting.push(&path);
        let clock = MachineClock { library: self.library.clone(), setting, steps, time_ms };
        clock.step(0);
        clock
    }
}

impl MachineClock {
    /// What a program must find in its environment to read this clock.
    pub(super) fn environment(&self) -> [(&'static str, OsString); 2] {
        [("LD_PRELOAD", self.library.clone().into()), ("MUSTER_TEST_CLOCK", self.setting.clone())]
    }

    /// Sets the time of day to so many seconds after what this machine takes it to be.
    pub(crate) fn step(&self, seconds: i64) {
        let ms = seconds * 1000 + self.time_ms;
        self.steps.write_all_at(&(ms * 1_000_000).to_ne_bytes(), 0).unwrap();
    }
}
