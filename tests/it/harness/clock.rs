//! A clock for each machine: one that runs fast or slow, and whose time of day can be set.
//!
//! `fixtures/clock.c` says how. libfaketime is not what does it: it moves `CLOCK_BOOTTIME` and `CLOCK_MONOTONIC`
//! together and lets each process begin its own rate, so that an agent and its guard would not be on one machine; and
//! as the kernel does not know of its `CLOCK_MONOTONIC`, waits of the standard library with a time-out never end.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::time::{ClockId, clock_gettime};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/clock.c");

/// The library's file.
const LIBRARY: &str = "clock.so";

/// The library that stands in front of libc, and the folder for what it reads.
#[derive(Debug)]
pub(crate) struct Clocks {
    folder: PathBuf,
    base_ns: i64,
}

/// The clock of one machine.
#[derive(Debug)]
pub(crate) struct MachineClock {
    folder: PathBuf,
    name: String,
    base_ns: i64,
    rate_ppm: i64,
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
        let library = folder.join(LIBRARY);
        let mut command = Command::new("cc");
        command.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&library).arg(SOURCE);
        let compiled = command.output().unwrap_or_else(|error| panic!("cc is needed: {error}"));
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let now = clock_gettime(ClockId::Boottime);
        Self { folder: folder.to_owned(), base_ns: now.tv_sec * 1_000_000_000 + now.tv_nsec }
    }

    /// A clock that is so far off from the kernel's.
    pub(crate) fn clock(&self, name: &str, ClockOff { rate_ppm, time_ms }: ClockOff) -> MachineClock {
        let (folder, name) = (self.folder.clone(), format!("{name}.clock"));
        let steps = File::create(folder.join(&name)).unwrap();
        let clock = MachineClock { folder, name, base_ns: self.base_ns, rate_ppm, steps, time_ms };
        clock.step(0);
        clock
    }
}

impl MachineClock {
    /// What a program must find in its environment to read this clock.
    pub(super) fn environment(&self) -> [(&'static str, String); 2] {
        self.environment_in(self.folder.to_str().unwrap())
    }

    /// The same on a machine that sees the clocks' folder there.
    pub(crate) fn environment_in(&self, folder: &str) -> [(&'static str, String); 2] {
        let Self { name, base_ns, rate_ppm, .. } = self;
        [
            ("LD_PRELOAD", format!("{folder}/{LIBRARY}")),
            ("MUSTER_TEST_CLOCK", format!("{base_ns} {rate_ppm} {folder}/{name}")),
        ]
    }

    /// Sets the time of day to so many seconds after what this machine takes it to be.
    pub(crate) fn step(&self, seconds: i64) {
        let ms = seconds * 1000 + self.time_ms;
        self.steps.write_all_at(&(ms * 1_000_000).to_ne_bytes(), 0).unwrap();
    }
}
