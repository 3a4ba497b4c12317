//! What root's local file says.

mod hooks;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use muster_config::{Fault, Fragments};
use muster_model::{FleetName, HostName};
use muster_systemd::UnitName;
use serde::{Deserialize, Serialize};

use crate::error::GuardError;
use crate::protocol::DriverKind;

pub use hooks::{HealthCheck, HealthConfig, HookConfig, HooksConfig, HttpCheck};
pub use units::UnitsConfig;

/// The guard's configuration, as written in TOML:
///
/// ```toml
/// host = "host-1"
/// state_dir = "/var/lib/muster"
/// socket = "/run/muster/guard.sock"
///
/// [[fleets]]
/// name = "smars"
/// link = "/run/muster/fleets/smars/current"
/// releases = "/var/lib/muster/fleets/smars/releases"
/// driver.supervise = { command = ["./bin/smars"], env = { PORT = "7001" } }
///
/// [[fleets]]
/// name = "static"
/// link = "/run/muster/fleets/static/current"
/// releases = "/var/lib/muster/fleets/static/releases"
/// driver = "link"
///
/// [[fleets]]
/// name = "web"
/// link = "/run/muster/fleets/web/current"
/// releases = "/var/lib/muster/fleets/web/releases"
/// driver.systemd = { units = ["nginx.service"] }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardConfig {
    /// This host's name, for the services' environment.
    pub host: HostName,
    /// Where permits, the lock and the services' logs are kept.
    pub state_dir: PathBuf,
    /// The socket that the agent talks to.
    pub socket: PathBuf,
    /// The program that runs as `muster-guard keep-service`; by default the guard's own executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_shim: Option<PathBuf>,
    /// Users that may ask, besides the guard's own and root. The folder of the socket must let them in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_uids: Vec<u32>,
    /// The fleets of this host.
    #[serde(default)]
    pub fleets: Vec<FleetConfig>,
}

/// One fleet of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetConfig {
    /// The fleet.
    pub name: FleetName,
    /// The link that services use.
    pub link: PathBuf,
    /// The folder whose `<digest>` folders are the releases' trees.
    pub releases: PathBuf,
    /// How the fleet is served.
    pub driver: Driver,
    /// What is run around closing, opening and fencing.
    #[serde(default, skip_serializing_if = "HooksConfig::is_empty")]
    pub hooks: HooksConfig,
}

/// How a fleet is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// There is only the link.
    Link,
    /// The guard runs this command in the release's folder.
    Supervise(ServiceConfig),
    /// systemd runs these units, and the guard has it start and stop them.
    Systemd(UnitsConfig),
}

/// A supervised service. Its environment is `PATH` of the guard, `env`, `MUSTER_HOST`, `MUSTER_FLEET`, `MUSTER_EPOCH`,
/// `MUSTER_DIGEST` and `MUSTER_RUN_ID`, and nothing else. The command stays in the foreground: once it ends, what it
/// has left behind is killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The program and its arguments; a relative program with a `/` is looked for in the release's folder.
    pub command: Vec<String>,
    /// Further environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What asks the service to stop.
    #[serde(default)]
    pub stop_signal: StopSignal,
    /// How long the service may take to stop before it is killed, where a `close` does not say.
    #[serde(default = "default_stop_timeout_ms")]
    pub stop_timeout_ms: u64,
    /// A service that ends within this time after its start did not start.
    #[serde(default = "default_start_grace_ms")]
    pub start_grace_ms: u64,
    /// How long to wait before the first restart of a service that failed; doubled for each one that follows.
    #[serde(default = "default_restart_delay_ms")]
    pub restart_delay_ms: u64,
}

/// The signal that asks a service to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
#[value(rename_all = "UPPER")]
#[expect(missing_docs, reason = "the variants are the signals' names")]
pub enum StopSignal {
    #[default]
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
}

/// A configuration that has been checked: absolute paths, distinct fleets and links, bounded times, a command.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) host: HostName,
    pub(crate) state_dir: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) exec_shim: PathBuf,
    pub(crate) allowed_uids: Vec<u32>,
    pub(crate) fleets: Vec<FleetConfig>,
    /// Where this was read from, if it was: the start gate of a unit names it.
    pub(crate) file: Option<PathBuf>,
}

/// A guard is for one host; more than this is a mistake.
const FLEETS_MAX: usize = 64;
const ALLOWED_UIDS_MAX: usize = 16;
/// The longest drain, configured or asked for.
pub(crate) const DRAIN_MS_MAX: u64 = 10 * 60 * 1000;
const START_GRACE_MS_MAX: u64 = 60 * 1000;
const RESTART_DELAY_MS_MAX: u64 = 30 * 1000;

/// The kernel resolves this name to the running guard even after an upgrade has replaced or removed its file, so the
/// two halves of the guard are always of one version.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

impl GuardConfig {
    /// Reads and checks the file at `path` with its drop-ins.
    pub fn load(path: &Path) -> Result<Settings, GuardError> {
        let fragments = Self::fragments(path)?;
        let config: Self = fragments.merge().map_err(unusable)?;
        match config.faults().as_slice() {
            [] => {}
            faults => return Err(unusable(fragments.refuse(faults))),
        }
        let file = std::path::absolute(path).map_err(GuardError::io("find", path))?;
        Ok(Settings { file: Some(file), ..config.settings() })
    }

    /// The files that [`Self::load`] reads.
    pub(crate) fn fragments(path: &Path) -> Result<Fragments, GuardError> {
        let fragments = Fragments::from_file(path).map_err(unusable)?;
        fragments.refuse_foreign().map_err(unusable)?;
        Ok(fragments)
    }

    /// Checks everything that the types do not say.
    pub fn validate(self) -> Result<Settings, GuardError> {
        let reasons: Vec<_> = self.faults().into_iter().map(|fault| fault.reason).collect();
        if reasons.is_empty() { Ok(self.settings()) } else { Err(wrong(reasons.join("\n"))) }
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let paths = [
            ("state_dir", Some(&self.state_dir)),
            ("socket", Some(&self.socket)),
            ("exec_shim", self.exec_shim.as_ref()),
        ];
        for (key, path) in paths {
            faults.extend(path.and_then(|path| not_plain(key, path)));
        }
        if self.allowed_uids.len() > ALLOWED_UIDS_MAX {
            let reason = format!("{} allowed_uids, at most {ALLOWED_UIDS_MAX}", self.allowed_uids.len());
            faults.push(Fault::new("allowed_uids", reason));
        }
        if self.fleets.len() > FLEETS_MAX {
            faults.push(Fault::new("fleets", format!("{} fleets, at most {FLEETS_MAX}", self.fleets.len())));
        }
        let (mut names, mut links, mut units) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (index, fleet) in self.fleets.iter().enumerate() {
            let mut wrong = |Fault { key, reason }| {
                faults.push(Fault::new(format!("fleets[{index}].{key}"), reason));
            };
            fleet.faults().into_iter().for_each(&mut wrong);
            if !names.insert(&fleet.name) {
                wrong(Fault::new("name", format!("fleet {} is there twice", fleet.name)));
            }
            if !links.insert(&fleet.link) {
                wrong(Fault::new("link", format!("two fleets share the link {}", fleet.link.display())));
            }
            for unit in fleet.driver.units().iter().filter(|unit| !units.insert(*unit)) {
                wrong(Fault::new("driver.systemd.units", format!("{unit} is there twice")));
            }
        }
        faults
    }

    fn settings(self) -> Settings {
        Settings {
            host: self.host,
            state_dir: self.state_dir,
            socket: self.socket,
            exec_shim: self.exec_shim.unwrap_or_else(|| PathBuf::from(OWN_EXECUTABLE)),
            allowed_uids: self.allowed_uids,
            fleets: self.fleets,
            file: None,
        }
    }
}

impl Settings {
    /// The socket that the guard listens on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Driver {
    /// The driver without its settings.
    #[must_use]
    pub const fn kind(&self) -> DriverKind {
        match self {
            Self::Link => DriverKind::Link,
            Self::Supervise(_) => DriverKind::Supervise,
            Self::Systemd(_) => DriverKind::Systemd,
        }
    }

    /// The units that it starts and stops.
    pub(crate) fn units(&self) -> &[UnitName] {
        match self {
            Self::Link | Self::Supervise(_) => &[],
            Self::Systemd(config) => &config.units,
        }
    }
}

impl FleetConfig {
    fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = [("link", &self.link), ("releases", &self.releases)]
            .into_iter()
            .filter_map(|(key, path)| not_plain(key, path))
            .collect();
        if self.link.starts_with(&self.releases) || self.releases.starts_with(&self.link) {
            faults.push(Fault::new("link", "the link and the releases must not contain each other"));
        }
        let (driver, of_driver) = match &self.driver {
            Driver::Link => ("driver", Vec::new()),
            Driver::Supervise(service) => ("driver.supervise", service.faults()),
            Driver::Systemd(units) => ("driver.systemd", units.faults()),
        };
        for (table, below) in [(driver, of_driver), ("hooks", self.hooks.faults())] {
            faults.extend(
                below.into_iter().map(|fault| Fault { key: format!("{table}.{}", fault.key), ..fault }),
            );
        }
        for fault in &mut faults {
            fault.reason = format!("fleet {}: {}", self.name, fault.reason);
        }
        faults
    }
}

impl ServiceConfig {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Err(reason) = check_command(&self.command) {
            faults.push(Fault::new("command", reason));
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                faults.push(Fault::new(
                    "env",
                    format!("`{}` is not an environment variable", name.escape_debug()),
                ));
            }
            if name.starts_with("MUSTER_") {
                let reason = format!("`{name}`: names that begin with MUSTER_ are the guard's");
                faults.push(Fault::new(format!("env.{name}"), reason));
            }
        }
        for (key, value, max) in [
            ("stop_timeout_ms", self.stop_timeout_ms, DRAIN_MS_MAX),
            ("start_grace_ms", self.start_grace_ms, START_GRACE_MS_MAX),
            ("restart_delay_ms", self.restart_delay_ms, RESTART_DELAY_MS_MAX),
        ] {
            if value > max {
                faults.push(Fault::new(key, format!("{key} is {value}, at most {max}")));
            }
        }
        faults
    }
}

fn check_command(command: &[String]) -> Result<(), String> {
    if command.first().is_none_or(String::is_empty) {
        return Err("the command is empty".to_owned());
    }
    if command.iter().any(|arg| arg.contains('\0')) {
        return Err("the command has a NUL byte".to_owned());
    }
    Ok(())
}

fn not_plain(key: &str, path: &Path) -> Option<Fault> {
    if !path.is_absolute() {
        return Some(Fault::new(key, format!("{key} is not an absolute path: {}", path.display())));
    }
    let is_plain =
        path.file_name().is_some() && path.components().all(|c| c != std::path::Component::ParentDir);
    (!is_plain).then(|| Fault::new(key, format!("{key} is not a plain path: {}", path.display())))
}

fn unusable(source: muster_config::Error) -> GuardError {
    GuardError::Configuration { source }
}

fn wrong(detail: String) -> GuardError {
    GuardError::Config { detail }
}

const fn default_stop_timeout_ms() -> u64 {
    5_000
}

const fn default_start_grace_ms() -> u64 {
    500
}

const fn default_restart_delay_ms() -> u64 {
    1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        host = "host-1"
        state_dir = "/var/lib/muster"
        socket = "/run/muster/guard.sock"
        [[fleets]]
        name = "smars"
        link = "/run/muster/fleets/smars/current"
        releases = "/var/lib/muster/fleets/smars/releases"
        driver.supervise = { command = ["./bin/smars"], env = { PORT = "7001" }, stop_signal = "INT" }
        [[fleets]]
        name = "static"
        link = "/run/muster/fleets/static/current"
        releases = "/var/lib/muster/fleets/static/releases"
        driver = "link"
        [fleets.hooks]
        on_fence = { command = ["/bin/cancel"], timeout_ms = 900 }
        health = { check = { http = { address = "127.0.0.1:7001", path = "/ok" } }, retries = 3 }
        [[fleets]]
        name = "web"
        link = "/run/muster/fleets/web/current"
        releases = "/var/lib/muster/fleets/web/releases"
        driver.systemd = { units = ["nginx.service"], start_timeout_ms = 9000 }
    "#;

    fn parse(text: &str) -> Result<Settings, String> {
        toml::from_str::<GuardConfig>(text).map_err(|e| e.to_string())?.validate().map_err(|e| e.to_string())
    }

    #[test]
    fn the_documented_form_is_accepted_and_survives_writing() {
        let config: GuardConfig = toml::from_str(GOOD).unwrap();
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<GuardConfig>(&written).unwrap(), config);
        let settings = config.validate().unwrap();
        assert_eq!(settings.exec_shim, Path::new(OWN_EXECUTABLE));
        let Driver::Supervise(service) = &settings.fleets[0].driver else {
            panic!("the first is supervised")
        };
        assert_eq!((service.stop_signal, service.stop_timeout_ms), (StopSignal::Int, 5_000));
    }

    #[test]
    fn each_mistake_is_named() {
        for (from, to, word) in [
            ("\"/var/lib/muster\"", "\"var/lib\"", "state_dir is not an absolute path"),
            ("\"/run/muster/guard.sock\"", "\"/run/../guard.sock\"", "socket is not a plain path"),
            ("name = \"static\"", "name = \"smars\"", "twice"),
            ("fleets/static/current", "fleets/smars/current", "share the link"),
            ("\"./bin/smars\"", "", "the command is empty"),
            ("PORT", "MUSTER_EPOCH", "are the guard's"),
            ("stop_signal = \"INT\"", "start_grace_ms = 60001", "start_grace_ms is 60001"),
            ("stop_signal = \"INT\"", "stop_signal = \"KILL\"", "unknown variant"),
            ("host = \"host-1\"", "host = \"host-1\"\nshell = \"sh\"", "unknown field"),
            ("name = \"smars\"", "name = \"../smars\"", "is not a fleet name"),
            ("/fleets/static/releases", "/fleets/static/releases/../x", "releases is not a plain path"),
            ("timeout_ms = 900", "timeout_ms = 30001", "hook on_fence: timeout_ms is 30001"),
            ("[\"/bin/cancel\"]", "[]", "hook on_fence: the command is empty"),
            ("\"/ok\"", "\"/o k\"", "health: `/o k` is not the path of a URL"),
            ("127.0.0.1:7001\"", "localhost:7001\"", "socket address"),
            ("retries = 3", "retries = 1001", "retries is 1001"),
            ("[\"nginx.service\"]", "[]", "no units"),
            ("nginx.service\"", "nginx.socket\"", "`nginx.socket` is not the name of a service unit"),
            ("nginx.service\"", "nginx.service\", \"nginx.service\"", "nginx.service is there twice"),
            ("start_timeout_ms = 9000", "start_timeout_ms = 600001", "start_timeout_ms is 600001"),
            ("on_fence =", "before_fence =", "unknown field"),
        ] {
            let error = parse(&GOOD.replace(from, to)).expect_err(word);
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(parse(GOOD).is_ok());
    }
}
