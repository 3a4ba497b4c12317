//! The guard as a process: supervised services, and the ways in which they and the guard can die.

mod deadlines;
mod hooks;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use muster_guard::{
    Driver, Event, ExitKind, FleetConfig, FleetState, Guard, GuardClient, GuardConfig, HooksConfig,
    LinkState, RefusalCode, ServiceConfig, ServiceState, StopSignal,
};
use muster_model::{Digest, Epoch, FleetName, HostName};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::until;

const EPOCH: Epoch = Epoch(5);

/// Ends only by a signal, and says so.
const POLITE: &str =
    r#"trap 'echo bye > "$OUT/bye"; exit 0' TERM; touch "$OUT/up"; while :; do sleep 0.05; done"#;

/// Does not end by itself.
const PLAIN: &str = r#"touch "$OUT/up"; exec sleep 600"#;

/// A family of which every member but the first ignores SIGTERM: one in the group, one in a session of its own, and one
/// that has also cleared its environment and lost its parent.
const FAMILY: &str = r#"
    stubborn='trap "" TERM; while :; do sleep 0.05; done'
    sh -c "$stubborn" "$TAG" &
    setsid sh -c "$stubborn" "$TAG" &
    (setsid env -i PATH="$PATH" sh -c "$stubborn" "$TAG" &)
    touch "$OUT/up"
    while :; do sleep 0.05; done
"#;

struct Host {
    folder: TempDir,
    guard: Child,
    client: GuardClient,
    fleet: FleetName,
    tag: String,
}

impl Host {
    /// A host whose fleet runs `script`.
    fn new(script: &str) -> Self {
        Self::with(script, |_| {})
    }

    fn with(script: &str, adjust: impl FnOnce(&mut ServiceConfig)) -> Self {
        Self::with_config(script, |config, _| {
            let Driver::Supervise(service) = &mut config.fleets[0].driver else { panic!("supervised") };
            adjust(service);
        })
    }

    /// `adjust` changes the guard's whole configuration, and is told the folder of the host.
    fn with_config(script: &str, adjust: impl FnOnce(&mut GuardConfig, &Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tag = format!("tag-{}", folder.path().file_name().unwrap().to_str().unwrap());
        let at = folder.path().join("fleets/smars");
        let release = at.join("releases").join(digest().hex());
        fs::create_dir_all(&release).unwrap();
        fs::write(release.join("run"), script).unwrap();
        let service = ServiceConfig {
            command: vec!["sh".to_owned(), "./run".to_owned()],
            env: [("OUT", folder.path().to_str().unwrap()), ("TAG", &tag)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            stop_signal: StopSignal::Term,
            stop_timeout_ms: 300,
            start_grace_ms: 100,
            restart_delay_ms: 10,
        };
        let fleet = FleetName::new("smars").unwrap();
        let mut config = GuardConfig {
            host: HostName::new("host-1").unwrap(),
            state_dir: folder.path().join("state"),
            socket: folder.path().join("run/guard.sock"),
            exec_shim: None,
            allowed_uids: Vec::new(),
            fleets: vec![FleetConfig {
                name: fleet.clone(),
                link: at.join("current"),
                releases: at.join("releases"),
                driver: Driver::Supervise(service),
                hooks: HooksConfig::default(),
            }],
        };
        adjust(&mut config, folder.path());
        fs::write(folder.path().join("guard.toml"), toml::to_string(&config).unwrap()).unwrap();
        let guard = start_guard(folder.path());
        let client = GuardClient::new(&config.socket);
        let host = Self { folder, guard, client, fleet, tag };
        host.await_guard();
        host
    }

    fn await_guard(&self) {
        until("the guard answers", || self.client.hello().is_ok_and(|hello| hello.pid == self.guard.id()));
    }

    fn restart_guard(&mut self) {
        self.guard = start_guard(self.folder.path());
        self.await_guard();
    }

    fn open(&self) -> FleetState {
        self.client.open(&self.fleet, EPOCH, digest()).unwrap()
    }

    /// Opens, and waits until the script has got to where it says so.
    fn open_until_up(&self) -> i32 {
        assert!(self.open().serves(EPOCH, digest()));
        until("the service is up", || self.path("up").exists());
        self.main_pid()
    }

    fn state(&self) -> FleetState {
        self.client.status(&self.fleet).unwrap()
    }

    fn main_pid(&self) -> i32 {
        let state = self.state();
        let Some(ServiceState::Running { pid, .. }) = state.service else { panic!("not running: {state:?}") };
        pid.try_into().unwrap()
    }

    fn kill_guard(&mut self, signal: Signal) -> std::process::ExitStatus {
        kill(self.guard.id().try_into().unwrap(), signal);
        self.guard.wait().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn link_exists(&self) -> bool {
        self.path("fleets/smars/current").symlink_metadata().is_ok()
    }

    fn tagged(&self) -> Vec<i32> {
        living().into_iter().filter(|pid| cmdline(*pid).contains(&self.tag)).collect()
    }

    /// The members of `FAMILY`; what they fork bears the tag as well until it has become something else.
    fn family(&self) -> usize {
        let tagged = self.tagged();
        let forked = |pid: &&i32| parent(**pid).is_some_and(|parent| tagged.contains(&parent));
        tagged.len() - tagged.iter().filter(forked).count()
    }

    fn await_family(&self) {
        until("the family is complete", || self.family() == 3);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The keeper sees the guard's end, and the test's service ends with it.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        // Only a test that failed leaves these.
        for pid in self.tagged() {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

fn digest() -> Digest {
    Digest::of(b"tree")
}

fn guard_command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-guard"));
    command.arg("run").arg("--config").arg(folder.join("guard.toml"));
    command
}

fn start_guard(folder: &Path) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("guard.log")).unwrap();
    guard_command(folder).stderr(log).stdin(Stdio::null()).spawn().unwrap()
}

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn living() -> Vec<i32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_alive(*pid)).collect()
}

fn is_alive(pid: i32) -> bool {
    stat_field(pid, 0).is_some_and(|state| state != "Z" && state != "X")
}

fn parent(pid: i32) -> Option<i32> {
    stat_field(pid, 1)?.parse().ok()
}

/// The fields after the process's name: state, parent, group, session.
fn stat_field(pid: i32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(index).map(str::to_owned)
}

fn cmdline(pid: i32) -> String {
    fs::read(format!("/proc/{pid}/cmdline"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

#[test]
fn a_service_starts_in_its_release_with_a_clean_environment_and_stops_in_order() {
    let script = format!("pwd > \"$OUT/pwd\"; env > \"$OUT/env\"; echo hello; {POLITE}");
    let host = Host::with(&script, |service| service.stop_timeout_ms = 10_000);
    let pid = host.open_until_up();
    assert!(host.link_exists() && is_alive(pid));
    assert_eq!(stat_field(pid, 3).unwrap(), pid.to_string(), "the service leads a session of its own");

    let folder = host.path("fleets/smars/releases").join(digest().hex()).canonicalize().unwrap();
    assert_eq!(fs::read_to_string(host.path("pwd")).unwrap().trim(), folder.to_str().unwrap());
    let env = fs::read_to_string(host.path("env")).unwrap();
    for line in
        ["MUSTER_HOST=host-1", "MUSTER_FLEET=smars", "MUSTER_EPOCH=5", &format!("MUSTER_DIGEST={}", digest())]
    {
        assert!(env.lines().any(|found| found == line), "{line} in {env}");
    }
    assert!(!env.contains("CARGO"), "{env}");

    assert_eq!(host.open(), host.state(), "opening again changes nothing");
    let error = host.client.open(&host.fleet, Epoch(6), digest()).unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::NotClosed), "{error}");
    assert_eq!(host.main_pid(), pid);

    assert!(host.client.close(&host.fleet, None).unwrap().is_closed());
    assert!(!is_alive(pid) && !host.link_exists());
    assert!(host.path("bye").exists(), "the service was asked before it was killed");
    let log = fs::read_to_string(host.path("state/fleets/smars/service.log")).unwrap();
    assert_eq!(log.lines().next(), Some("hello"));
    assert!(host.client.close(&host.fleet, None).unwrap().is_closed());
}

#[test]
fn a_failed_start_is_told_with_its_last_words_and_leaves_nothing() {
    for (script, command, words) in [
        ("echo out; echo boom >&2; exit 3", vec!["sh", "./run"], ["exit code 3", "boom"]),
        ("kill -KILL $$", vec!["sh", "./run"], ["killed by signal 9", "signal"]),
        ("", vec!["./bin/nothing"], ["exit code 127", "cannot execute ./bin/nothing"]),
    ] {
        let host = Host::with(script, |service| {
            service.command = command.iter().map(|&arg| arg.to_owned()).collect();
            service.start_grace_ms = 60_000;
        });
        let error = host.client.open(&host.fleet, EPOCH, digest()).unwrap_err();
        assert_eq!(error.code(), Some(RefusalCode::ServiceExited), "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        assert!(host.state().is_closed());
        assert!(!host.link_exists() && !host.path("state/fleets/smars/permit.json").exists());
    }
}

#[test]
fn closing_leaves_no_descendant_however_it_hides() {
    let host = Host::new(FAMILY);
    let main = host.open_until_up();
    host.await_family();
    assert!(host.client.close(&host.fleet, None).unwrap().is_closed());
    assert!(host.tagged().is_empty(), "none may be alive once the answer is here");
    assert!(!is_alive(main));
}

#[test]
fn what_a_service_that_ended_has_left_behind_is_killed() {
    let script = FAMILY.replace("while :; do sleep 0.05; done\n", "sleep 600\n");
    let host = Host::with(&script, |service| service.restart_delay_ms = 30_000);
    let main = host.open_until_up();
    host.await_family();
    let mut watch = host.client.watch().unwrap();
    kill(main, Signal::KILL);
    let event = watch.next().unwrap().unwrap();
    let Event::ServiceExited { status: ExitKind::Signal(9), restart_boot_ms: Some(_), .. } = event else {
        panic!("{event:?}")
    };
    assert!(host.tagged().is_empty());
    let state = host.state();
    assert!(matches!(state.service, Some(ServiceState::Restarting { .. })), "{state:?}");
    assert!(
        host.client.close(&host.fleet, None).unwrap().is_closed(),
        "closing does not wait for the restart"
    );
}

#[test]
fn killing_the_guard_kills_the_service_and_all_it_started() {
    let mut host = Host::new(FAMILY);
    let main = host.open_until_up();
    let keeper = parent(main).unwrap();
    host.await_family();
    assert_eq!(host.kill_guard(Signal::KILL).signal(), Some(9));
    until("nothing is left", || host.tagged().is_empty() && !is_alive(main) && !is_alive(keeper));

    // In the same boot the permit stands, but nothing starts by itself.
    host.restart_guard();
    let state = host.state();
    assert_eq!(state.service, Some(ServiceState::Stopped));
    assert_eq!(state.link, LinkState::Release(digest()));
    assert!(state.open.is_some());
    assert!(host.open().serves(EPOCH, digest()));
}

#[test]
fn a_guard_finds_what_was_left_when_guard_and_keeper_died_together() {
    let family = FAMILY.replace("env -i PATH=\"$PATH\" ", "");
    let mut host = Host::new(&family);
    let main = host.open_until_up();
    let keeper = parent(main).unwrap();
    host.await_family();
    // A stopped keeper cannot react to the guard's end before it is killed itself.
    kill(keeper, Signal::STOP);
    host.kill_guard(Signal::KILL);
    kill(keeper, Signal::KILL);
    until("the kernel has killed the service", || !is_alive(main));
    assert_eq!(host.family(), 3, "the others are what the next guard is for");
    host.restart_guard();
    assert!(host.tagged().is_empty());
    assert_eq!(host.state().service, Some(ServiceState::Stopped));
}

#[test]
fn the_guard_survives_the_death_of_a_keeper() {
    let host = Host::new(PLAIN);
    let main = host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    kill(parent(main).unwrap(), Signal::KILL);
    let event = watch.next().unwrap().unwrap();
    assert!(matches!(event, Event::ServiceExited { status: ExitKind::Unknown, .. }), "{event:?}");
    assert!(!is_alive(main));
    assert!(matches!(watch.next(), Some(Ok(Event::ServiceRestarted { .. }))));
    assert!(host.client.close(&host.fleet, None).unwrap().is_closed());
}

#[test]
fn sigterm_stops_services_in_order_and_leaves_the_permit() {
    let mut host = Host::with(POLITE, |service| service.stop_timeout_ms = 10_000);
    let main = host.open_until_up();
    assert_eq!(host.kill_guard(Signal::TERM).code(), Some(0));
    assert!(!is_alive(main) && host.path("bye").exists());
    assert!(host.link_exists() && !host.path("run/guard.sock").exists());
    host.restart_guard();
    assert!(host.open().serves(EPOCH, digest()));
}

#[test]
fn a_crashed_service_is_started_again_until_it_fails_too_often() {
    let script = r#"test -e "$OUT/broken" && exit 4; touch "$OUT/up"; exec sleep 600"#;
    let host = Host::new(script);
    let first = host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    kill(first, Signal::SEGV);
    assert!(matches!(
        watch.next().unwrap().unwrap(),
        Event::ServiceExited { status: ExitKind::Signal(11), restart_boot_ms: Some(_), .. }
    ));
    let Event::ServiceRestarted { pid, .. } = watch.next().unwrap().unwrap() else { panic!("not restarted") };
    until("the new one is shown", || host.state().serves(EPOCH, digest()));
    let second = host.main_pid();
    assert_eq!(second.unsigned_abs(), pid);
    assert_ne!(second, first);

    fs::write(host.path("broken"), "").unwrap();
    kill(second, Signal::SEGV);
    let mut restarts = 1;
    loop {
        let event = watch.next().unwrap().unwrap();
        if matches!(event, Event::ServiceRestarted { .. }) {
            restarts += 1;
        } else if let Event::ServiceExited { restart_boot_ms: None, status, .. } = event {
            assert_eq!(status, ExitKind::Code(4));
            break;
        }
    }
    assert_eq!(restarts, 5);
    until("the end is shown", || matches!(host.state().service, Some(ServiceState::Exited { .. })));
    assert!(host.state().open.is_some());

    fs::remove_file(host.path("broken")).unwrap();
    assert!(host.open().serves(EPOCH, digest()), "opening again starts it again");
}

#[test]
fn a_service_that_is_done_is_not_started_again() {
    let host = Host::new(r#"touch "$OUT/up"; until test -e "$OUT/done"; do sleep 0.05; done; exit 0"#);
    host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    fs::write(host.path("done"), "").unwrap();
    assert!(matches!(
        watch.next().unwrap().unwrap(),
        Event::ServiceExited { status: ExitKind::Code(0), restart_boot_ms: None, .. }
    ));
    let service = host.state().service;
    assert!(!service.unwrap().may_be_alive(), "{service:?}");
}

#[test]
fn a_service_without_its_permit_is_not_started_again() {
    let host = Host::new(PLAIN);
    let main = host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    fs::remove_file(host.path("state/fleets/smars/permit.json")).unwrap();
    kill(main, Signal::KILL);
    assert!(matches!(watch.next().unwrap().unwrap(), Event::ServiceExited { restart_boot_ms: None, .. }));
    assert!(host.client.close(&host.fleet, None).unwrap().is_closed());
}

#[test]
fn a_second_guard_on_the_same_state_says_who_is_there() {
    let host = Host::new(PLAIN);
    let Output { status, stderr, .. } = guard_command(host.folder.path()).output().unwrap();
    assert!(!status.success());
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(stderr.contains(&format!("another guard (process {})", host.guard.id())), "{stderr}");
    assert!(host.open().serves(EPOCH, digest()));
}

#[test]
fn a_wrong_configuration_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("guard.toml"), "host = \"host-1\"\nverb = \"sh\"\n").unwrap();
    let Output { status, stderr, .. } = guard_command(folder.path()).output().unwrap();
    assert!(!status.success());
    assert!(String::from_utf8(stderr).unwrap().contains("unknown field `verb`"));
}
