//! Starting the fleet's programs: those that lie beside the `muster` that runs.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use super::DevError;
use super::fleet::{Daemon, LocalFleet, Program};
use super::{ready, roster};
use crate::connect::Session;
use crate::error::CliError;
use crate::files::{Existing, write};
use crate::output::Ui;

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

/// Starts the whole fleet and waits until everybody answers. What was started is in `started`, however this ends.
pub(super) async fn fleet(
    fleet: &LocalFleet,
    programs: &Programs,
    started: &mut Vec<Started>,
    ui: &Ui,
) -> Result<Session, CliError> {
    started.push(programs.start(&fleet.coordinator_daemon())?);
    let session = Box::pin(ready::coordinator(fleet, started)).await?;
    ui.say(format_args!("the coordinator answers on {}", fleet.coordinator));
    // Before the agents come: whoever is on no roster would be turned away, and wait before it tries again.
    Box::pin(roster::apply(&session, fleet)).await?;
    for guard in fleet.guards() {
        started.push(programs.start(&guard)?);
    }
    ready::guards(fleet, started).await?;
    ui.say(format_args!("{} guards answer", fleet.hosts.len()));
    for agent in fleet.agents() {
        started.push(programs.start(&agent)?);
    }
    Box::pin(ready::agents(fleet, &session, started)).await?;
    ui.say(format_args!("{} agents are connected", fleet.hosts.len()));
    Ok(session)
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
