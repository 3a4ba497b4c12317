//! Starting the fleet's programs: those that lie beside the `muster` that runs.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde::Serialize;

use super::DevError;
use super::fleet::{Daemon, LocalFleet, Program};
use super::{ready, roster};
use crate::connect::Session;
use crate::error::CliError;
use crate::files::{Existing, write};
use crate::output::{Ui, counted};

/// Where the programs are.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    folder: PathBuf,
}

/// A daemon that was started by this process.
#[derive(Debug)]
pub(super) struct Started {
    /// Which one.
    pub(super) daemon: Daemon,
    child: Child,
}

impl Programs {
    /// The programs beside this one, all of them.
    pub(super) fn beside_this() -> Result<Self, CliError> {
        let own = std::env::current_exe()
            .map_err(|source| CliError::System { doing: "find the file of this program", source })?;
        let folder = own.parent().unwrap_or(Path::new("/")).to_owned();
        let programs = Self { folder };
        for program in [Program::Coordinator, Program::Guard, Program::Agent] {
            let path = programs.path(program);
            if !path.is_file() {
                return Err(DevError::ProgramMissing { path }.into());
            }
        }
        Ok(programs)
    }

    /// Starts a daemon in a process group of its own: what a terminal sends to its foreground reaches this command only,
    /// which then ends the daemons in good order, or leaves them running if that was asked for.
    pub(super) fn start(&self, daemon: &Daemon) -> Result<Started, CliError> {
        let path = daemon.log();
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let log = log.map_err(CliError::file("open", path.as_path()))?;
        let again = log.try_clone().map_err(CliError::file("open", path))?;
        let program = self.path(daemon.program);
        let child = Command::new(&program)
            .arg("run")
            .arg("--config")
            .arg(daemon.config())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(again)
            .process_group(0)
            .spawn()
            .map_err(CliError::file("start", program))?;
        let pid = format!("{}\n", child.id());
        write(&daemon.pid_file(), pid.as_bytes(), 0o644, Existing::Replace)?;
        Ok(Started { daemon: daemon.clone(), child })
    }

    fn path(&self, program: Program) -> PathBuf {
        self.folder.join(program.file_name())
    }
}

impl Started {
    /// Its process number.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, CliError> {
        self.child
            .try_wait()
            .map_err(|source| CliError::System { doing: "look after a process that was started", source })
    }
}

/// Starts what of the fleet does not run and waits until everybody who was started answers. What was started is in
/// `started`, however this ends.
pub(super) async fn fleet(
    fleet: &LocalFleet,
    programs: &Programs,
    running: &[Daemon],
    started: &mut Vec<Started>,
    ui: &Ui,
) -> Result<Session, CliError> {
    let missing = |daemons: Vec<Daemon>| daemons.into_iter().filter(|daemon| !running.contains(daemon));
    for coordinator in missing(vec![fleet.coordinator_daemon()]) {
        started.push(programs.start(&coordinator)?);
    }
    let session = Box::pin(ready::coordinator(fleet, started)).await?;
    ui.say(format_args!("the coordinator answers on {}", fleet.coordinator));
    // Agents that ran on connect again to a coordinator that was started.
    let mut awaited = if started.is_empty() { Vec::new() } else { fleet.hosts.clone() };
    // Before the agents come: whoever is on no roster would be turned away, and wait before it tries again.
    Box::pin(roster::apply(&session, fleet)).await?;
    let guards: Vec<Daemon> = missing(fleet.guards()).collect();
    for guard in &guards {
        started.push(programs.start(guard)?);
    }
    if !guards.is_empty() {
        ready::guards(fleet, started).await?;
        let answer = if guards.len() == 1 { "answers" } else { "answer" };
        ui.say(format_args!("{} {answer}", counted(guards.len(), "guard")));
    }
    for agent in missing(fleet.agents()) {
        started.push(programs.start(&agent)?);
        awaited.extend(agent.host);
    }
    awaited.sort();
    awaited.dedup();
    if !awaited.is_empty() {
        Box::pin(ready::agents(fleet, &awaited, &session, started)).await?;
        let are = if awaited.len() == 1 { "is" } else { "are" };
        ui.say(format_args!("{} {are} connected", counted(awaited.len(), "agent")));
    }
    Ok(session)
}

/// Starts the guards, then the agents among these daemons, and waits until the guards answer.
pub(super) async fn on_hosts(
    fleet: &LocalFleet,
    programs: &Programs,
    daemons: &[Daemon],
) -> Result<Vec<Started>, CliError> {
    let mut started = Vec::new();
    for guard in daemons.iter().filter(|daemon| daemon.program == Program::Guard) {
        started.push(programs.start(guard)?);
    }
    ready::guards(fleet, &mut started).await?;
    for agent in daemons.iter().filter(|daemon| daemon.program == Program::Agent) {
        started.push(programs.start(agent)?);
    }
    Ok(started)
}

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct StartedView {
    program: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    pid: u32,
    #[serde(skip)]
    called: &'static str,
}

impl From<&Started> for StartedView {
    fn from(started: &Started) -> Self {
        let Daemon { program, host, .. } = &started.daemon;
        let host = host.as_ref().map(ToString::to_string);
        Self { program: program.file_name(), host, pid: started.pid(), called: program.stem() }
    }
}

/// A line for each host, such as `host-3: guard and agent were down, started`.
pub(super) fn started_lines(started: &[StartedView]) -> Vec<String> {
    let mut lines: Vec<(Option<&str>, Vec<&str>)> = Vec::new();
    for one in started {
        let host = one.host.as_deref();
        match lines.iter_mut().find(|(of, _)| *of == host) {
            Some((_, called)) => called.push(one.called),
            None => lines.push((host, vec![one.called])),
        }
    }
    let line = |(host, called): (Option<&str>, Vec<&str>)| {
        let host = host.map_or_else(String::new, |host| format!("{host}: "));
        let were = if called.len() == 1 { "was" } else { "were" };
        format!("{host}{} {were} down, started", called.join(" and "))
    };
    lines.into_iter().map(line).collect()
}

/// The last lines of a log.
pub(super) fn log_tail(path: &Path) -> String {
    const LINES: usize = 8;
    const BYTES_MAX: i64 = 8 << 10;
    let read = || -> io::Result<Vec<u8>> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = std::fs::File::open(path)?;
        let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
        file.seek(SeekFrom::End(-length.min(BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(BYTES_MAX.unsigned_abs()).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LINES)..].join("\n")
        }
        Err(error) => format!("(it cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_started_is_told_once_for_each_host() {
        let view = |program: Program, host: Option<&str>| StartedView {
            program: program.file_name(),
            host: host.map(str::to_owned),
            pid: 7,
            called: program.stem(),
        };
        let started = [
            view(Program::Coordinator, None),
            view(Program::Guard, Some("host-1")),
            view(Program::Agent, Some("host-1")),
            view(Program::Agent, Some("host-3")),
        ];
        assert_eq!(
            started_lines(&started),
            [
                "coordinator was down, started",
                "host-1: guard and agent were down, started",
                "host-3: agent was down, started"
            ]
        );
        assert!(started_lines(&[]).is_empty());
    }
}
