//! The hooks of a fleet.

use std::net::SocketAddr;

use muster_config::Fault;
use serde::{Deserialize, Serialize};

/// The commands that the guard runs around what it does to a fleet; all are optional.
///
/// ```toml
/// [fleets.hooks]
/// quiesce = { command = ["./bin/quiesce"] }
/// unquiesce = { command = ["./bin/resume"] }
/// before_close = { command = ["/usr/local/bin/drain-lb", "out"], timeout_ms = 3000 }
/// stop = { command = ["./bin/stop", "--gently"] }
/// on_fence = { command = ["/usr/local/bin/cancel-orders"], timeout_ms = 1000 }
/// after_open = { command = ["/usr/local/bin/drain-lb", "in"] }
/// rehearse = { command = ["./bin/server", "--self-test"], timeout_ms = 60000 }
/// health = { check = { http = { address = "127.0.0.1:7001", path = "/healthz" } }, retries = 50 }
/// ```
///
/// A command is a program and its arguments, no shell. It runs in the release's folder with the environment of the service
/// (where there is one), `PATH` of the guard, `MUSTER_HOST`, `MUSTER_FLEET`, `MUSTER_HOOK` (the name above) and, as far as
/// they are known, `MUSTER_EPOCH`, `MUSTER_DIGEST`, `MUSTER_RELEASE` (the release's folder), `MUSTER_ROLLOUT` (the `k`
/// that the fleet is armed for) and `MUSTER_PID` (the service's main process). It is killed with all that it started at
/// its time-out, and with the guard. What it writes goes to `hooks.log` in the fleet's state folder, which is turned over
/// at 10 MiB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HooksConfig {
    /// Before arming, on the agent's request; its failure is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<HookConfig>,
    /// Undoes `quiesce`, on the agent's request; its failure is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unquiesce: Option<HookConfig>,
    /// Before the service is stopped for a closing; never longer than the deadline allows. Its failure stops nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_close: Option<HookConfig>,
    /// Asks the service to stop, instead of the stop signal. What is left afterwards is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<HookConfig>,
    /// After a fence or a halt, once nothing is left of the service: what it left in the world is undone here. An `open`
    /// waits for its end, so its time-out counts in `F`. Its failure stops nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_fence: Option<HookConfig>,
    /// After an opening that has succeeded. Its failure stops nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_open: Option<HookConfig>,
    /// The self-test of a release that is deployed, served or not: on request, in that release's folder. Nothing waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearse: Option<HookConfig>,
    /// What a service must pass before an opening has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthConfig>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookConfig {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// When it is killed.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// How a service shows that it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthConfig {
    /// What is tried.
    pub check: HealthCheck,
    /// How long one attempt may take.
    #[serde(default = "default_health_timeout_ms")]
    pub timeout_ms: u64,
    /// How long to wait after an attempt that failed.
    #[serde(default = "default_interval_ms")]
    pub interval_ms: u64,
    /// How often it is tried again.
    #[serde(default = "default_retries")]
    pub retries: u32,
}

/// What is tried. Addresses are numbers: a name would have to be looked up, which nothing bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthCheck {
    /// This command exits with 0.
    Command(Vec<String>),
    /// This address takes a connection.
    Tcp(SocketAddr),
    /// A GET is answered with a status from 200 to 299.
    Http(HttpCheck),
}

/// One GET.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    /// Where.
    pub address: SocketAddr,
    /// What, from the first `/` on.
    #[serde(default = "default_path")]
    pub path: String,
}

const TIMEOUT_MS_MAX: u64 = 10 * 60 * 1000;
/// It counts in `F`, which every silent host costs the fleet.
const ON_FENCE_TIMEOUT_MS_MAX: u64 = 30 * 1000;
const HEALTH_TIMEOUT_MS_MAX: u64 = 60 * 1000;
const RETRIES_MAX: u32 = 1000;
const PATH_BYTES_MAX: usize = 1024;

impl HooksConfig {
    /// Whether no hook is configured at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (name, hook, max) in [
            ("quiesce", &self.quiesce, TIMEOUT_MS_MAX),
            ("unquiesce", &self.unquiesce, TIMEOUT_MS_MAX),
            ("before_close", &self.before_close, TIMEOUT_MS_MAX),
            ("stop", &self.stop, TIMEOUT_MS_MAX),
            ("on_fence", &self.on_fence, ON_FENCE_TIMEOUT_MS_MAX),
            ("after_open", &self.after_open, TIMEOUT_MS_MAX),
            ("rehearse", &self.rehearse, TIMEOUT_MS_MAX),
        ] {
            let Some(hook) = hook else { continue };
            if let Err(reason) = super::check_command(&hook.command) {
                faults.push(Fault::new(format!("{name}.command"), format!("hook {name}: {reason}")));
            }
            if hook.timeout_ms == 0 || hook.timeout_ms > max {
                let reason = format!("hook {name}: timeout_ms is {}, from 1 to {max}", hook.timeout_ms);
                faults.push(Fault::new(format!("{name}.timeout_ms"), reason));
            }
        }
        faults.extend(self.health.iter().flat_map(HealthConfig::faults));
        faults
    }
}

impl HealthConfig {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut wrong = |key: &str, reason: String| {
            faults.push(Fault::new(format!("health.{key}"), format!("health: {reason}")));
        };
        match &self.check {
            HealthCheck::Command(command) => {
                if let Err(reason) = super::check_command(command) {
                    wrong("check.command", reason);
                }
            }
            HealthCheck::Tcp(_) => {}
            HealthCheck::Http(HttpCheck { path, .. }) => {
                let plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
                if !plain || path.len() > PATH_BYTES_MAX {
                    wrong("check.http.path", format!("`{}` is not the path of a URL", path.escape_debug()));
                }
            }
        }
        for (key, value) in [("timeout_ms", self.timeout_ms), ("interval_ms", self.interval_ms)] {
            if value == 0 || value > HEALTH_TIMEOUT_MS_MAX {
                wrong(key, format!("{key} is {value}, from 1 to {HEALTH_TIMEOUT_MS_MAX}"));
            }
        }
        if self.retries > RETRIES_MAX {
            wrong("retries", format!("retries is {}, at most {RETRIES_MAX}", self.retries));
        }
        faults
    }
}

const fn default_timeout_ms() -> u64 {
    5_000
}

const fn default_health_timeout_ms() -> u64 {
    1_000
}

const fn default_interval_ms() -> u64 {
    200
}

const fn default_retries() -> u32 {
    25
}

fn default_path() -> String {
    "/".to_owned()
}
