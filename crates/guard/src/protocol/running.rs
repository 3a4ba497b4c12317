//! What is said of a service's processes.

use muster_model::{BootTime, Digest};
use serde::{Deserialize, Serialize};

/// The processes of a service at one moment. Those that execute the same are told together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The guard itself has started it, in the release's folder.
    #[serde(default)]
    pub by_guard: bool,
    /// The main processes: of a unit each.
    pub mains: Vec<RunningMain>,
    /// When the opening began that this service belongs to; `None` if an earlier guard made it.
    pub opened_boot_ms: Option<BootTime>,
    /// The processes.
    pub groups: Vec<RunningGroup>,
    /// What they execute.
    pub files: Vec<RunningFile>,
}

/// A main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningMain {
    /// The process.
    pub pid: u32,
    /// What it executes, as a place in [`Running::files`]; `None` if it is not one of the service's processes.
    pub exe: Option<usize>,
}

/// Processes that execute the same files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningGroup {
    /// The executable, as a place in [`Running::files`].
    pub exe: usize,
    /// Libraries of releases that they execute as well, as places in [`Running::files`].
    pub mapped: Vec<usize>,
    /// How many they are.
    pub processes: u32,
    /// The one that was started first.
    pub pid: u32,
    /// When that was, to 10 ms.
    pub first_started_boot_ms: BootTime,
}

/// A file that a process executes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningFile {
    /// Its path, as the process has it.
    pub path: String,
    /// SHA-256 of its content; `None` for a library that cannot be had by its name any more.
    pub digest: Option<Digest>,
    /// It was removed or replaced since it was started.
    pub deleted: bool,
}
