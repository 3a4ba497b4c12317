//! A fleet that `muster dev up` started, and its end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::{Artifact, Daemon, Output, PATIENCE, Place, run, run_program, wait_until};

/// The fleet's name.
pub(crate) const FLEET: &str = "demo";

/// A fleet that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Fleet {
    folder: TempDir,
    dir: PathBuf,
    hosts: usize,
    children: Arc<Mutex<Vec<Child>>>,
    /// Where the daemons of a folder are started, if not where the test is.
    places: BTreeMap<PathBuf, Arc<Place>>,
}

/// One host of a fleet.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    name: String,
    folder: PathBuf,
    /// Its agent.
    pub(crate) agent: Daemon,
    /// Its guard.
    pub(crate) guard: Daemon,
}

impl Fleet {
    /// Starts a fleet with the driver `link`.
    #[track_caller]
    pub(crate) fn up(hosts: usize) -> Self {
        Self::up_with(hosts, &[])
    }

    /// Starts a fleet with further arguments for `muster dev up`.
    #[track_caller]
    pub(crate) fn up_with(hosts: usize, arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("muster-").tempdir().unwrap();
        let dir = fs::canonicalize(folder.path()).unwrap().join("fleet");
        let fleet = Self { folder, dir, hosts, children: Arc::default(), places: BTreeMap::new() };
        fleet.start(&[&["--hosts", &hosts.to_string()], arguments].concat());
        fleet
    }

    /// Starts a fleet for a test that is not about deadlines: its flips end well even if the machine stands still for ten seconds,
    /// in which hosts of the usual lease of 2 s, and an `arm_timeout_ms` of 3 s, are too late.
    #[track_caller]
    pub(crate) fn patient(hosts: usize) -> Self {
        let fleet = Self::up_with(hosts, &["--lease", "60s"]);
        let drop_ins = fleet.dir.join("coordinator/coordinator.toml.d");
        fs::create_dir(&drop_ins).unwrap();
        fs::write(drop_ins.join("patience.toml"), "arm_timeout_ms = 60000\n").unwrap();
        fleet.coordinator().kill();
        fleet.coordinator().start(&[]);
        fleet.wait_connected(hosts);
        fleet
    }

    /// Starts a fleet again that was stopped with `muster dev down`.
    #[track_caller]
    pub(crate) fn start(&self, arguments: &[&str]) -> Output {
        let first = ["dev", "up", "--dir", self.dir.to_str().unwrap(), "--detach", "--output", "json"];
        run(&[&first, arguments].concat(), &[]).expect_code(0)
    }

    /// Stops it. Its folder stays.
    #[track_caller]
    pub(crate) fn down(&self) -> Output {
        run(&["dev", "down", "--dir", self.dir.to_str().unwrap(), "--output", "json"], &[]).expect_code(0)
    }

    /// The fleet's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A folder beside the fleet's, for what a test writes.
    pub(crate) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The operator's context file.
    pub(crate) fn context(&self) -> PathBuf {
        self.dir.join("operator/context.toml")
    }

    /// Runs `muster` with the operator's context.
    #[track_caller]
    pub(crate) fn muster(&self, arguments: &[&str]) -> Output {
        run(arguments, &[("MUSTER_CONTEXT", self.context().to_str().unwrap())])
    }

    /// The same, with JSON on stdout.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Output {
        self.muster(&[arguments, &["--output", "json"]].concat())
    }

    /// Pushes a tree, and returns the release's digest.
    #[track_caller]
    pub(crate) fn push(&self, tree: &Artifact, version: &str) -> String {
        let pushed = self.json(&["release", "push", tree.argument(), "--version", version]);
        pushed.expect_code(0).text_at("/digest")
    }

    /// Pushes, deploys and flips, and returns the release's digest.
    #[track_caller]
    pub(crate) fn release(&self, tree: &Artifact, version: &str) -> String {
        let digest = self.push(tree, version);
        self.json(&["deploy", version]).expect_code(0);
        self.json(&["flip", version]).expect_code(0);
        digest
    }

    /// A host, by its number from 1 on.
    pub(crate) fn host(&self, number: usize) -> Host {
        assert!((1..=self.hosts).contains(&number));
        let name = format!("host-{number}");
        let folder = self.dir.join("hosts").join(&name);
        let daemon = |program| self.daemon(program, &folder);
        Host { agent: daemon("muster-agent"), guard: daemon("muster-guard"), name, folder }
    }

    /// A machine that was issued for this fleet and is in no roster.
    pub(crate) fn outsider(&self, name: &str) -> Host {
        let folder = self.dir.join("hosts").join(name);
        let daemon = |program| self.daemon(program, &folder);
        Host { agent: daemon("muster-agent"), guard: daemon("muster-guard"), name: name.to_owned(), folder }
    }

    /// Enrols a machine with a token and starts it. It is in no roster.
    #[track_caller]
    pub(crate) fn enrol(&self, name: &str) -> Host {
        let made = self.json(&["host", "token", name, "--fleet", FLEET]).expect_code(0);
        let [token, coordinator, pin] = ["/token", "/coordinator", "/ca_pin"].map(|at| made.text_at(at));
        let host = self.outsider(name);
        let root = self.dir().join("root.json");
        let at = ["enrol", "--coordinator", &coordinator, "--ca-pin", &pin];
        let folders = ["--root", root.to_str().unwrap(), "--config", host.folder().to_str().unwrap()];
        let token = [("MUSTER_JOIN_TOKEN", token.as_str())];
        run_program("muster-agent", &[&at[..], &folders].concat(), &token).expect_code(0);
        host.guard.start(&[]);
        host.agent.start(&[]);
        host
    }

    /// All hosts.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        (1..=self.hosts).map(|number| self.host(number)).collect()
    }

    /// The coordinator.
    pub(crate) fn coordinator(&self) -> Daemon {
        self.daemon("muster-coordinator", &self.dir.join("coordinator"))
    }

    /// From their next start on the daemons of this folder are started there.
    pub(crate) fn place(&mut self, folder: PathBuf, place: Arc<Place>) {
        self.places.insert(folder, place);
    }

    /// Waits until the coordinator answers, whatever it says.
    #[track_caller]
    pub(crate) fn wait_answers(&self) {
        wait_until("the coordinator answers", PATIENCE, || (self.json(&["status"]).code != 1).then_some(()));
    }

    /// Has the operators mandate the coordinator that runs, and waits until it leads.
    #[track_caller]
    pub(crate) fn rebuild(&self) -> Output {
        self.wait_answers();
        self.json(&["coordinator", "rebuild", "--reason", "a test", "--timeout", "60s"]).expect_code(0)
    }

    /// Kills the coordinator, takes its state away and starts one that knows nothing. Returns where the old state is.
    #[track_caller]
    pub(crate) fn lose_coordinator(&self) -> PathBuf {
        let coordinator = self.coordinator();
        if coordinator.is_running() {
            coordinator.kill();
        }
        let lost = self.scratch().join("lost");
        fs::rename(self.dir.join("coordinator/state"), &lost).unwrap();
        coordinator.start(&[]);
        self.wait_answers();
        lost
    }

    fn daemon(&self, program: &'static str, folder: &Path) -> Daemon {
        Daemon::new(program, folder.to_owned(), &self.children).at(self.places.get(folder).cloned())
    }

    /// Waits until the coordinator answers and sees exactly so many hosts connected.
    #[track_caller]
    pub(crate) fn wait_connected(&self, hosts: usize) {
        wait_until(&format!("{hosts} hosts are connected"), PATIENCE, || {
            let status = self.json(&["status"]);
            if status.code != 0 {
                return None;
            }
            let listed = status.json()["hosts"].as_array()?.clone();
            let connected = listed.iter().filter(|host| host["connected"] == true).count();
            (connected == hosts).then_some(())
        });
    }

    /// Panics unless every host's link leads to this release.
    #[track_caller]
    pub(crate) fn assert_all_serve(&self, digest: &str) {
        for host in self.hosts() {
            assert_eq!(host.serves().as_deref(), Some(digest), "{}", host.name());
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let down = run(&["dev", "down", "--dir", self.dir.to_str().unwrap()], &[]);
        if down.code != 0 && self.dir.exists() {
            for host in self.hosts() {
                host.agent.kill_if_running();
                host.guard.kill_if_running();
            }
            self.coordinator().kill_if_running();
        }
        for child in self.children.lock().unwrap().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            self.show_logs();
        }
        make_writable(&self.dir);
    }
}

impl Fleet {
    /// What the daemons said last, where a test has failed.
    #[expect(clippy::print_stderr, reason = "this is what the reader of a failed test needs")]
    fn show_logs(&self) {
        const LINES: usize = 20;
        let agents =
            self.hosts().into_iter().map(|host| (format!("agent of {}", host.name), host.agent.log()));
        for (who, log) in agents.chain([("coordinator".to_owned(), self.coordinator().log())]) {
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
            eprintln!("--- the last of the log: {who}\n{last}");
        }
    }
}

impl Host {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its folder: bundle, agent's and guard's state.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of a release's tree.
    pub(crate) fn tree(&self, digest: &str) -> PathBuf {
        self.fleet_folder().join("releases").join(digest.trim_start_matches("sha256:"))
    }

    /// The link that services use.
    pub(crate) fn link(&self) -> PathBuf {
        self.fleet_folder().join("current")
    }

    /// What the link leads to at this moment.
    pub(crate) fn serves(&self) -> Option<String> {
        let target = fs::read_link(self.link()).ok()?;
        Some(format!("sha256:{}", target.file_name()?.to_str()?))
    }

    fn fleet_folder(&self) -> PathBuf {
        self.folder.join("fleets").join(FLEET)
    }
}

/// Folders of releases may be read-only, and could then not be removed.
fn make_writable(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}
