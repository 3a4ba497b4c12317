//! One program of a fleet, which a test can end, halt and start again.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::{Machine, MachineClock, PATIENCE, program, wait_until};

/// One program of one fleet.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    program: &'static str,
    folder: PathBuf,
    /// Those that the test has started itself, to be buried at the end.
    children: Arc<Mutex<Vec<Child>>>,
    place: Option<Arc<Place>>,
}

/// What a daemon is started in, if that is not where the test is.
#[derive(Debug)]
pub(crate) struct Place {
    /// Whose network it has.
    pub(crate) machine: Machine,
    /// What clock it reads.
    pub(crate) clock: MachineClock,
}

impl Daemon {
    pub(super) fn new(program: &'static str, folder: PathBuf, children: &Arc<Mutex<Vec<Child>>>) -> Self {
        Self { program, folder, children: Arc::clone(children), place: None }
    }

    pub(super) fn at(self, place: Option<Arc<Place>>) -> Self {
        Self { place, ..self }
    }

    /// The process number that was recorded last.
    #[track_caller]
    pub(crate) fn pid(&self) -> Pid {
        self.recorded_pid()
            .unwrap_or_else(|| panic!("{} was never started in {:?}", self.program, self.folder))
    }

    /// Whether the process that was recorded last runs.
    pub(crate) fn is_running(&self) -> bool {
        self.recorded_pid().is_some_and(|pid| self.is_it(pid))
    }

    /// Kills it, and waits until it is gone.
    #[track_caller]
    pub(crate) fn kill(&self) {
        let pid = self.pid();
        assert!(self.is_it(pid), "process {pid:?} is no {} of this fleet", self.program);
        kill_process(pid, Signal::KILL).unwrap();
        self.wait_until_gone();
    }

    /// Waits until it has ended, by itself or not, and nothing is left of it that holds a port or a lock.
    #[track_caller]
    pub(crate) fn wait_until_gone(&self) {
        let pid = self.pid();
        wait_until(&format!("{} ends", self.program), PATIENCE, || {
            (!self.is_running() && !is_ending(pid)).then_some(())
        });
    }

    /// Halts it: it keeps its connections and says nothing.
    #[track_caller]
    pub(crate) fn stop(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    /// Lets it go on.
    #[track_caller]
    pub(crate) fn cont(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    /// Sends a signal if it runs, which it may cease to do at any time.
    pub(crate) fn signal_if_running(&self, signal: Signal) {
        if let Some(pid) = self.recorded_pid().filter(|pid| self.is_it(*pid)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Starts it again, with these variables in its environment, and does not wait for anything.
    #[track_caller]
    pub(crate) fn start(&self, environment: &[(&str, &str)]) {
        assert!(!self.is_running(), "{} runs in {:?}", self.program, self.folder);
        let log = OpenOptions::new().create(true).append(true).open(self.file("log")).unwrap();
        let mut command = Command::new(program(self.program));
        command.arg("run").arg("--config").arg(self.file("toml")).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = match &self.place {
            None => command.spawn(),
            Some(place) => place.machine.within(|| command.envs(place.clock.environment()).spawn()),
        };
        let child = child.unwrap();
        fs::write(self.file("pid"), format!("{}\n", child.id())).unwrap();
        self.children.lock().unwrap().push(child);
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Kills it if it runs, which it may cease to do at any time.
    pub(crate) fn kill_if_running(&self) {
        self.signal_if_running(Signal::KILL);
    }

    fn recorded_pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.file("pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    /// Whether this process runs our program with our configuration: a zombie has no command line, and a stranger that
    /// took over the number has another.
    fn is_it(&self, pid: Pid) -> bool {
        // One that this test started stays a zombie until it is looked after.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let mut arguments = command.split(|byte| *byte == 0);
        let named = arguments.next().and_then(|path| Path::new(std::str::from_utf8(path).ok()?).file_name());
        let config = self.file("toml");
        named.is_some_and(|name| name == self.program)
            && arguments.any(|argument| argument == config.as_os_str().as_encoded_bytes())
    }

    fn file(&self, extension: &str) -> PathBuf {
        let stem = self.program.trim_start_matches("muster-");
        self.folder.join(format!("{stem}.{extension}"))
    }
}

/// Whether some thread of a process still runs. One that is ending loses its command line first and its files later.
fn is_ending(pid: Pid) -> bool {
    let threads =
        fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).into_iter().flatten().flatten();
    let states = threads.filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        // The state follows the name, which is in parentheses and may contain some.
        stat.rsplit_once(") ")?.1.chars().next()
    });
    states.into_iter().any(|state| !matches!(state, 'Z' | 'X'))
}
