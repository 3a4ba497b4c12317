//! What the guard adds to a unit: the start gate, which stays, and the tie to the guard, which is there while a deadline
//! runs. Both are drop-ins, so that whoever looks at the unit sees them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_model::FleetName;
use muster_systemd::{Systemd, Unit, UnitName};

use super::problem::UnitProblem;
use crate::config::{Driver, FleetConfig, Settings};
use crate::error::GuardError;

/// Where the administrator's own drop-ins are: the gate has to be there before the guard is.
const PERSISTENT: &str = "/etc/systemd/system";

/// What a reboot empties.
const RUNTIME: &str = "/run/systemd/system";

/// Late, so that it is not undone by another drop-in by accident.
const GATE_FILE: &str = "90-muster-gate.conf";
const TIE_FILE: &str = "90-muster-armed.conf";

/// The unit of the guard.
pub(crate) const GUARD_UNIT: &str = "muster-guard.service";

/// What a drop-in's folder is readable for.
const FILE_MODE: u32 = 0o644;

/// The start gate of one fleet's units: no start without a permit.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    pub(crate) fleet: FleetName,
    /// The guard's program.
    pub(crate) program: PathBuf,
    /// The guard's configuration.
    pub(crate) config: PathBuf,
    /// How long the units may take to stop.
    pub(crate) stop_timeout: Option<Duration>,
}

/// Whether a drop-in was changed by what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    Yes,
    No,
}

impl Gate {
    /// The gate of a fleet, as the configuration has it.
    pub(crate) fn of(settings: &Settings, fleet: &FleetConfig) -> Result<Self, GuardError> {
        let Driver::Systemd(units) = &fleet.driver else {
            return Err(GuardError::Config { detail: format!("fleet {} has no units", fleet.name) });
        };
        let Some(config) = settings.file.clone() else {
            let detail = format!(
                "fleet {}: units need a configuration in a file, which their start gate names",
                fleet.name
            );
            return Err(GuardError::Config { detail });
        };
        let program =
            std::env::current_exe().map_err(GuardError::io("find", Path::new("the guard's program")))?;
        // After an upgrade, the kernel names the file that was replaced.
        let program = program.to_string_lossy().trim_end_matches(" (deleted)").into();
        let stop_timeout = units.stop_timeout_ms.map(Duration::from_millis);
        Ok(Self { fleet: fleet.name.clone(), program, config, stop_timeout })
    }

    /// Puts the gate before `unit`. systemd has to read its units again if that changed anything.
    pub(crate) fn install(&self, unit: &UnitName) -> Result<Changed, GuardError> {
        put(&drop_in(PERSISTENT, unit, GATE_FILE), &self.text())
    }

    /// Whether systemd keeps to the gate: it may not have read it, or another file may have undone it.
    pub(crate) fn in_force(&self, unit: &Unit) -> Result<(), UnitProblem> {
        let words = self.command();
        if !unit.has_condition(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
            return Err(UnitProblem::Ungated("another file undoes its `ExecCondition=`".to_owned()));
        }
        if unit.needs_reload {
            return Err(UnitProblem::Ungated(
                "files have changed since; run `systemctl daemon-reload`".to_owned(),
            ));
        }
        Ok(())
    }

    fn command(&self) -> Vec<String> {
        let config = self.config.to_string_lossy();
        let program = self.program.to_string_lossy();
        [&*program, "permit", self.fleet.as_str(), "--config", &*config].map(str::to_owned).to_vec()
    }

    fn text(&self) -> String {
        let command = self.command().iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let stop = self
            .stop_timeout
            .map_or(String::new(), |limit| format!("TimeoutStopSec={}ms\n", limit.as_millis()));
        format!(
            "# Written by muster-guard: fleet {} starts only what the fleet has released.\n\
             # `muster-guard gate remove` takes it away.\n\
             [Unit]\nAfter={GUARD_UNIT}\n\n[Service]\nExecCondition=+{command}\n{stop}",
            self.fleet,
        )
    }
}

/// Takes away all gates and ties of this host, and names them.
pub(crate) fn remove_all() -> Result<Vec<PathBuf>, GuardError> {
    let reload = || {
        Systemd::new().and_then(|systemd| systemd.reload()).map_err(|source| GuardError::Reload { source })
    };
    remove_below(Path::new("/"), reload)
}

/// The same below a root, where systemd need not run: a folder that becomes a host, or one that is off.
fn remove_below(
    root: &Path,
    reload: impl FnOnce() -> Result<(), GuardError>,
) -> Result<Vec<PathBuf>, GuardError> {
    let mut removed = Vec::new();
    let place = |below: &str| root.join(below.trim_start_matches('/'));
    for (below, file) in [(PERSISTENT, GATE_FILE), (RUNTIME, TIE_FILE)] {
        let below = &*place(below);
        let folders = match fs::read_dir(below) {
            Ok(folders) => folders,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(GuardError::io("list", below)(error)),
        };
        for folder in folders {
            let path = folder.map_err(GuardError::io("list", below))?.path().join(file);
            if path.exists() && take_away(&path)? == Changed::Yes {
                removed.push(path);
            }
        }
    }
    // As sd_booted(3) tells it: without this folder nobody has read the files.
    if !removed.is_empty() && place(RUNTIME).is_dir() {
        reload()?;
    }
    Ok(removed)
}

/// Ties `unit` to the guard: when the guard ends, systemd stops it.
pub(crate) fn tie(unit: &UnitName) -> Result<Changed, GuardError> {
    let text = format!(
        "# Written by muster-guard while a deadline runs.\n[Unit]\nBindsTo={GUARD_UNIT}\nAfter={GUARD_UNIT}\n"
    );
    put(&drop_in(RUNTIME, unit, TIE_FILE), &text)
}

/// Unties it.
pub(crate) fn untie(unit: &UnitName) -> Result<Changed, GuardError> {
    take_away(&drop_in(RUNTIME, unit, TIE_FILE))
}

/// Whether the unit is stopped with its guard.
pub(crate) fn is_tied(unit: &Unit) -> bool {
    unit.binds_to.iter().any(|other| other == GUARD_UNIT)
}

/// Has systemd read its files again, if anything changed.
pub(crate) fn reload(systemd: &Systemd, fleet: &FleetName, changed: &[Changed]) -> Result<(), GuardError> {
    if changed.contains(&Changed::Yes) {
        systemd.reload().map_err(GuardError::systemd(fleet))
    } else {
        Ok(())
    }
}

fn drop_in(below: &str, unit: &UnitName, file: &str) -> PathBuf {
    Path::new(below).join(format!("{unit}.d")).join(file)
}

/// Written beside it and renamed: systemd never reads half of it.
fn put(path: &Path, text: &str) -> Result<Changed, GuardError> {
    use std::os::unix::fs::PermissionsExt;
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(Changed::No);
    }
    let folder = path.parent().expect("a drop-in lies in a folder");
    fs::create_dir_all(folder).map_err(GuardError::io("make", folder))?;
    let next = path.with_extension("next");
    let written = fs::write(&next, text)
        .and_then(|()| fs::set_permissions(&next, fs::Permissions::from_mode(FILE_MODE)))
        .and_then(|()| fs::File::open(&next)?.sync_all())
        .and_then(|()| fs::rename(&next, path));
    written.map_err(GuardError::io("write", path))?;
    Ok(Changed::Yes)
}

fn take_away(path: &Path) -> Result<Changed, GuardError> {
    match fs::remove_file(path) {
        Ok(()) => {
            // It may hold other drop-ins.
            let _ = path.parent().map(fs::remove_dir);
            Ok(Changed::Yes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Changed::No),
        Err(error) => Err(GuardError::io("remove", path)(error)),
    }
}

/// A word of a command line in a unit file: no specifier, no variable, no blank is taken for one.
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '%' => text.push_str("%%"),
            '$' => text.push_str("$$"),
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_unit_file() {
        assert_eq!(quoted("/usr/bin/muster-guard"), "\"/usr/bin/muster-guard\"");
        assert_eq!(quoted("a b%n$HOME\"\\"), "\"a b%%n$$HOME\\\"\\\\\"");
    }

    #[test]
    fn gates_go_with_and_without_a_systemd_that_has_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let gate = root.join("etc/systemd/system/smars.service.d").join(GATE_FILE);
        let other = gate.with_file_name("10-own.conf");
        let remove = |reload: fn() -> Result<(), GuardError>| {
            put(&gate, "gate").unwrap();
            fs::write(&other, "own").unwrap();
            remove_below(root, reload)
        };
        let removed = remove(|| panic!("there is no systemd")).unwrap();
        assert_eq!(removed, std::slice::from_ref(&gate));
        assert!(other.exists() && !gate.exists(), "nobody else's drop-in goes");
        fs::create_dir_all(root.join("run/systemd/system")).unwrap();
        let failed = || Err(GuardError::Config { detail: "reload".to_owned() });
        assert!(remove(failed).unwrap_err().to_string().contains("reload"));
    }

    #[test]
    fn a_drop_in_is_written_once_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("smars.service.d").join(GATE_FILE);
        assert_eq!(put(&path, "one").unwrap(), Changed::Yes);
        assert_eq!(put(&path, "one").unwrap(), Changed::No);
        assert_eq!(put(&path, "two").unwrap(), Changed::Yes);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(take_away(&path).unwrap(), Changed::Yes);
        assert_eq!(take_away(&path).unwrap(), Changed::No);
        assert!(!path.parent().unwrap().exists());
    }
}
