//! What is configured of a fleet's units.

use muster_config::Fault;
use muster_systemd::UnitName;
use serde::{Deserialize, Serialize};

use super::{DRAIN_MS_MAX, START_GRACE_MS_MAX, default_start_grace_ms};

/// A fleet whose service systemd runs. The units' commands use the link, `ExecStart=/run/muster/fleets/web/current/bin/web`;
/// each is in the foreground or tells systemd its main process, and none is enabled at boot: the guard starts them.
///
/// Each unit gets a start gate, a drop-in that has systemd ask `muster-guard permit` before every start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitsConfig {
    /// The units, in the order in which they are started; they are stopped the other way round.
    pub units: Vec<UnitName>,
    /// How long one unit may take to be ready. What it is given in its own file counts where that is shorter.
    #[serde(default = "default_start_timeout_ms")]
    pub start_timeout_ms: u64,
    /// A unit whose main process ends within this time after its start did not start.
    #[serde(default = "default_start_grace_ms")]
    pub start_grace_ms: u64,
    /// How long the units may take to stop before they are killed; the start gate sets it as `TimeoutStopSec=`. By default what
    /// their own files say. It counts into how long a fence may take: a fleet whose policy bounds that needs it short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout_ms: Option<u64>,
}

/// More units than this are not one fleet.
const UNITS_MAX: usize = 16;
/// The start gate may have to read the whole of a large release within it.
const START_TIMEOUT_MS_MAX: u64 = 10 * 60 * 1000;

impl UnitsConfig {
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.units.is_empty() {
            faults.push(Fault::new("units", "there are no units"));
        }
        if self.units.len() > UNITS_MAX {
            faults.push(Fault::new("units", format!("{} units, at most {UNITS_MAX}", self.units.len())));
        }
        for (key, value, max) in [
            ("start_timeout_ms", self.start_timeout_ms, START_TIMEOUT_MS_MAX),
            ("start_grace_ms", self.start_grace_ms, START_GRACE_MS_MAX),
            ("stop_timeout_ms", self.stop_timeout_ms.unwrap_or(0), DRAIN_MS_MAX),
        ] {
            if value > max {
                faults.push(Fault::new(key, format!("{key} is {value}, at most {max}")));
            }
        }
        faults
    }
}

const fn default_start_timeout_ms() -> u64 {
    30_000
}
