//! What systemd says of a unit.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::error::SystemdError;

/// The name of a service unit: `smars.service`, `worker@2.service`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

/// The longest name that systemd takes, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Whether the unit's file was found and understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadState {
    /// It was.
    Loaded,
    /// There is no such file.
    NotFound,
    /// The administrator has masked it: it cannot be started.
    Masked,
    /// The file cannot be used; this is what systemd says of it.
    Broken(String),
}

/// What the unit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActiveState {
    /// Started, and ready where it tells that.
    Active,
    /// Active, and reading its configuration again.
    Reloading,
    /// Stopped.
    Inactive,
    /// Ended with an error.
    Failed,
    /// About to be active; also between two automatic restarts.
    Activating,
    /// Being stopped.
    Deactivating,
    /// Anything else, such as `maintenance`.
    Other,
}

/// One unit at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Whether it was found.
    pub load: LoadState,
    /// What it does.
    pub active: ActiveState,
    /// What it does, in the finer words of its type: `running`, `exited`, `auto-restart`.
    pub sub: String,
    /// Why it ended last: `success`, `exit-code`, `signal`, `timeout`, `exec-condition`, `start-limit-hit`.
    pub result: String,
    /// How its main process ended last; `None` if it has not ended.
    pub main_end: Option<MainEnd>,
    /// Its main process; `None` if there is none.
    pub main_pid: Option<u32>,
    /// Its control group below the root of systemd's hierarchy, `/system.slice/smars.service`; `None` while it has none.
    pub cgroup: Option<String>,
    /// The slice it belongs to, `system.slice`.
    pub slice: String,
    /// A number that differs for each time the unit was started, in hex; empty if it never was.
    pub invocation: String,
    /// When the main process was started, on `CLOCK_MONOTONIC`; zero if it never was.
    pub main_started: Duration,
    /// How long a stop waits before it kills; `None` without a bound.
    pub stop_timeout: Option<Duration>,
    /// What a stop kills: `control-group`, `mixed`, `process`, `none`.
    pub kill_mode: String,
    /// What does not end by itself is killed.
    pub sends_sigkill: bool,
    /// It has commands of its own for a stop, each of which may take as long as a stop may.
    pub has_stop_commands: bool,
    /// The commands of `ExecCondition=`, each with its arguments.
    pub conditions: Vec<Vec<String>>,
    /// The conditions of its `[Unit]` section held when they were last looked at.
    pub condition_held: bool,
    /// The units without which it is stopped.
    pub binds_to: Vec<String>,
    /// Its files have changed since they were read.
    pub needs_reload: bool,
    /// A job for it is queued or under way.
    pub has_job: bool,
}

/// How a main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MainEnd {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// How a job ended, as systemd says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobResult {
    /// It was carried out. For a start that a condition kept from happening, too: see [`Unit::result`].
    Done,
    /// Another job took its place.
    Canceled,
    /// It took longer than the unit allows.
    Timeout,
    /// It failed.
    Failed,
    /// Something that it depends on failed.
    Dependency,
    /// It did not apply to the unit.
    Skipped,
    /// Another word.
    Other(String),
}

impl UnitName {
    /// A name of letters, digits and `:-_.\@`, that ends in `.service`.
    pub fn new(name: impl Into<String>) -> Result<Self, String> {
        let name = name.into();
        let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        let stem = name.strip_suffix(".service");
        let is_name = name.len() <= NAME_BYTES_MAX
            && stem.is_some_and(|stem| {
                !stem.is_empty() && !stem.ends_with('@') && !stem.starts_with(['.', '@'])
            })
            && name.chars().all(plain);
        if is_name {
            Ok(Self(name))
        } else {
            Err(format!("`{}` is not the name of a service unit", name.escape_debug()))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UnitName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::new(name)
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> Self {
        name.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Unit {
    /// Whether one of `ExecCondition=`'s commands is `words`, whatever path its program has.
    #[must_use]
    pub fn has_condition(&self, words: &[&str]) -> bool {
        self.conditions.iter().any(|condition| condition.iter().map(String::as_str).eq(words.iter().copied()))
    }

    /// The control group that the unit has, or would have if it were started.
    #[must_use]
    pub fn expected_cgroup(&self, name: &UnitName) -> String {
        self.cgroup.clone().unwrap_or_else(|| format!("{}/{name}", slice_folder(&self.slice)))
    }
}

impl fmt::Display for MainEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl JobResult {
    pub(crate) fn parse(word: &str) -> Self {
        match word {
            "done" => Self::Done,
            "canceled" => Self::Canceled,
            "timeout" => Self::Timeout,
            "failed" => Self::Failed,
            "dependency" => Self::Dependency,
            "skipped" => Self::Skipped,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for JobResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Canceled => "canceled",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Dependency => "dependency",
            Self::Skipped => "skipped",
            Self::Other(other) => other,
        })
    }
}

/// The properties of the interfaces `Unit` and `Service`, as they came.
pub(crate) struct Properties {
    pub(crate) unit: HashMap<String, OwnedVariant>,
    pub(crate) service: HashMap<String, OwnedVariant>,
}

/// One entry of `ExecCondition`: path, arguments, whether a failure is ignored, four times, process, code and status.
type ExecCommand = (String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32);

/// `CLD_EXITED`, by which systemd tells that a process ended by itself.
const EXITED: i32 = 1;

impl Properties {
    pub(crate) fn read(self, name: &UnitName) -> Result<Unit, SystemdError> {
        let Self { unit, service } = self;
        let at = |detail: String| SystemdError::Answer { what: format!("the properties of {name}"), detail };
        let text = |of: &HashMap<String, OwnedVariant>, key: &str| get::<String>(of, key).map_err(at);
        let (_, load_error): (String, String) = get(&unit, "LoadError").map_err(at)?;
        let (job, _): (u32, OwnedObjectPath) = get(&unit, "Job").map_err(at)?;
        let invocation: Vec<u8> = get(&unit, "InvocationID").map_err(at)?;
        let conditions: Vec<ExecCommand> = get(&service, "ExecCondition").map_err(at)?;
        let commands = |key: &str| get::<Vec<ExecCommand>>(&service, key).map_err(at);
        let has_stop_commands = !commands("ExecStop")?.is_empty() || !commands("ExecStopPost")?.is_empty();
        let stop_timeout: u64 = get(&service, "TimeoutStopUSec").map_err(at)?;
        let started: u64 = get(&service, "ExecMainStartTimestampMonotonic").map_err(at)?;
        let (code, status): (i32, i32) =
            (get(&service, "ExecMainCode").map_err(at)?, get(&service, "ExecMainStatus").map_err(at)?);
        Ok(Unit {
            load: load_state(&text(&unit, "LoadState")?, load_error),
            active: active_state(&text(&unit, "ActiveState")?),
            sub: text(&unit, "SubState")?,
            result: text(&service, "Result")?,
            main_end: main_end(code, status),
            main_pid: Some(get::<u32>(&service, "MainPID").map_err(at)?).filter(|pid| *pid != 0),
            cgroup: Some(text(&service, "ControlGroup")?).filter(|path| !path.is_empty()),
            slice: text(&service, "Slice")?,
            invocation: invocation.iter().map(|byte| format!("{byte:02x}")).collect(),
            main_started: Duration::from_micros(started),
            stop_timeout: (stop_timeout != u64::MAX).then(|| Duration::from_micros(stop_timeout)),
            kill_mode: text(&service, "KillMode")?,
            sends_sigkill: get(&service, "SendSIGKILL").map_err(at)?,
            has_stop_commands,
            conditions: conditions.into_iter().map(|command| command.1).collect(),
            condition_held: get(&unit, "ConditionResult").map_err(at)?,
            binds_to: get(&unit, "BindsTo").map_err(at)?,
            needs_reload: get(&unit, "NeedDaemonReload").map_err(at)?,
            has_job: job != 0,
        })
    }
}

fn get<T>(properties: &HashMap<String, OwnedVariant>, key: &str) -> Result<T, String>
where
    T: TryFrom<OwnedVariant>,
    T::Error: fmt::Display,
{
    let value = properties.get(key).ok_or_else(|| format!("there is no {key}"))?;
    let value = value.try_clone().map_err(|e| format!("{key}: {e}"))?;
    T::try_from(value).map_err(|e| format!("{key}: {e}"))
}

fn load_state(word: &str, error: String) -> LoadState {
    match word {
        "loaded" | "merged" => LoadState::Loaded,
        "not-found" => LoadState::NotFound,
        "masked" => LoadState::Masked,
        other => {
            LoadState::Broken(if error.is_empty() { other.to_owned() } else { format!("{other}: {error}") })
        }
    }
}

fn active_state(word: &str) -> ActiveState {
    match word {
        "active" => ActiveState::Active,
        "reloading" => ActiveState::Reloading,
        "inactive" => ActiveState::Inactive,
        "failed" => ActiveState::Failed,
        "activating" => ActiveState::Activating,
        "deactivating" => ActiveState::Deactivating,
        _ => ActiveState::Other,
    }
}

const fn main_end(code: i32, status: i32) -> Option<MainEnd> {
    match code {
        0 => None,
        EXITED => Some(MainEnd::Code(status)),
        _ => Some(MainEnd::Signal(status)),
    }
}

/// `a-b.slice` lies in `a.slice`; `-.slice` is the root.
fn slice_folder(slice: &str) -> String {
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    if stem == "-" || stem.is_empty() {
        return String::new();
    }
    let mut folder = String::new();
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        folder.push_str(&format!("/{}.slice", &stem[..at]));
    }
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services_and_nothing_else() {
        for good in ["smars.service", "worker@2.service", "a-b_c:d.e\\x2d.service"] {
            assert_eq!(UnitName::new(good).unwrap().as_str(), good);
        }
        let long = format!("{}.service", "a".repeat(250));
        for bad in [
            "smars",
            ".service",
            "@.service",
            "worker@.service",
            "a/b.service",
            "../a.service",
            "a b.service",
            "a.socket",
            &long,
        ] {
            assert!(UnitName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn slices_are_folders_in_folders() {
        assert_eq!(slice_folder("system.slice"), "/system.slice");
        assert_eq!(slice_folder("a-b-c.slice"), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(slice_folder("-.slice"), "");
    }

    #[test]
    fn ends_are_told_as_people_say_them() {
        assert_eq!(main_end(0, 0), None);
        assert_eq!(main_end(1, 3).unwrap().to_string(), "exit code 3");
        assert_eq!(main_end(2, 11).unwrap().to_string(), "signal 11");
        assert_eq!(main_end(3, 6), Some(MainEnd::Signal(6)));
    }
}
