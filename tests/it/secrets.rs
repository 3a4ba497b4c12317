//! Keys and secrets stay where they belong: not in logs, arguments, environments or core dumps, and out of reach of other
//! users.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Daemon, FLEET, Fleet, PATIENCE, configure, program, versioned, wait_until};

/// The user `nobody`.
const NOBODY: u32 = 65534;

/// How a secret may be written by whoever does not think of it: in hex, in base64, and as Rust shows bytes.
fn spellings(secret: &[u8]) -> Vec<String> {
    let hex = secret.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let shown = format!("{secret:?}").trim_matches(['[', ']']).to_owned();
    vec![hex.to_uppercase(), hex, shown]
}

/// All files below a folder whose names end so.
fn files_below(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&path, ending));
        } else if path.to_str().is_some_and(|path| path.ends_with(ending)) {
            found.push(path);
        }
    }
    found
}

/// The private keys of a fleet, each with what gives it away.
fn keys_of(fleet: &Fleet) -> Vec<(PathBuf, Vec<String>)> {
    let keys = files_below(fleet.dir(), ".key").into_iter().map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let base64: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
        // Behind what all keys of a kind begin with: the private number is in there.
        let spelling = base64[24..60].to_owned();
        assert!(text.contains(&spelling), "{} would not be found out", path.display());
        (path, vec![spelling])
    });
    keys.collect()
}

#[test]
fn no_log_argument_environment_or_output_has_a_secret_in_it() {
    let fleet = Fleet::up(2);
    let mut said = fleet.down().to_string() + &fleet.start(&[]).to_string();
    let daemons: Vec<Daemon> = fleet.hosts().into_iter().map(|host| host.agent).collect();
    let daemons = [daemons, vec![fleet.coordinator()]].concat();
    for daemon in &daemons {
        daemon.kill();
        daemon.start(&[("RUST_LOG", "trace")]);
    }
    fleet.wait_connected(2);
    fleet.release(&versioned("1"), "1");
    let shown = ["--verbose", "--output", "json"];
    said += &fleet.muster(&[&["status"][..], &shown].concat()).to_string();
    said += &fleet.muster(&[&["host", "list"][..], &shown].concat()).to_string();

    // The closing secrets were secret until the hosts opened; whoever logs them logs the next ones as well.
    let path = fleet.scratch().join("flip.receipt");
    fleet.json(&["receipt", "show", "--out", path.to_str().unwrap()]).expect_code(0);
    let receipt: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut secrets = keys_of(&fleet);
    assert!(secrets.len() >= 10, "{secrets:?}");
    for secret in receipt["secrets"].as_array().unwrap() {
        let hex = secret.as_str().unwrap();
        let bytes: Vec<u8> =
            (0..32).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
        secrets.push(("a closing secret".into(), spellings(&bytes)));
    }

    let mut places: Vec<(String, String)> = vec![("what muster says".to_owned(), said)];
    let guards = fleet.hosts().into_iter().map(|host| host.guard);
    for daemon in daemons.into_iter().chain(guards) {
        let process = format!("/proc/{}", daemon.pid().as_raw_nonzero());
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("{process}/{file}")).unwrap();
            places.push((format!("{process}/{file}"), String::from_utf8_lossy(&bytes).into_owned()));
        }
        places.push((format!("the log of {process}"), daemon.log()));
    }
    let logged = places.iter().filter(|(_, text)| text.contains("TRACE")).count();
    assert!(logged >= 3, "coordinator and agents log at level trace");
    for (place, text) in &places {
        for (secret, spellings) in &secrets {
            let found = spellings.iter().any(|spelling| text.contains(spelling.as_str()));
            assert!(!found, "{place} has {}", secret.display());
        }
    }
}

#[test]
fn daemons_take_their_keys_from_the_credentials_that_systemd_passes() {
    let fleet = Fleet::up(1);
    let (host, coordinator) = (fleet.host(1), fleet.coordinator());
    let credentials = fleet.scratch().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let folders = [(host.folder(), "agent.toml"), (&fleet.dir().join("coordinator"), "coordinator.toml")];
    let pass = |(folder, config): (&Path, &str), key: &str, setting: &str| {
        fs::rename(folder.join(key), credentials.join(key)).unwrap();
        // As systemd shows one that an access list opens for the service's user.
        fs::set_permissions(credentials.join(key), Permissions::from_mode(0o440)).unwrap();
        configure(&folder.join(config), setting, format!("credential:{key}"));
    };
    pass(folders[0], "agent.key", "key");
    pass(folders[0], "attestation.key", "attestation_key");
    pass(folders[1], "coordinator.key", "key");
    pass(folders[1], "audit.key", "audit_key");

    let environment = [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())];
    for (daemon, key) in [(&coordinator, "coordinator.key"), (&host.agent, "agent.key")] {
        daemon.kill();
        daemon.start(&[]);
        daemon.wait_until_gone();
        let log = daemon.log();
        assert!(log.contains("credential:") && log.contains("LoadCredential="), "{log}");
        // Others may not read it there either.
        fs::set_permissions(credentials.join(key), Permissions::from_mode(0o444)).unwrap();
        daemon.start(&environment);
        daemon.wait_until_gone();
        assert!(daemon.log().contains("0444"), "{}", daemon.log());
        fs::set_permissions(credentials.join(key), Permissions::from_mode(0o440)).unwrap();
        daemon.start(&environment);
    }
    fleet.wait_connected(1);
    let one = fleet.release(&versioned("1"), "1");
    fleet.assert_all_serve(&one);
    fleet.json(&["audit", "verify", "--live"]).expect_code(0);
}

/// Lets others look into a folder.
fn show(folder: &Path) {
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
}

/// Runs a program as nobody.
fn as_nobody(program: &str, arguments: &[&str]) -> std::process::Output {
    Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", program])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn chown_all(folder: &Path, user: u32) {
    chown(folder, Some(user), Some(user)).unwrap();
    for path in files_below(folder, "") {
        for path in path.ancestors().take_while(|path| *path != folder) {
            std::os::unix::fs::lchown(path, Some(user), Some(user)).unwrap();
        }
    }
}

/// A copy of a program where everybody can run it.
fn copied(fleet: &Fleet, name: &str) -> PathBuf {
    let copy = fleet.scratch().join(name);
    fs::copy(program(name), &copy).unwrap();
    show(&copy);
    copy
}

#[test]
#[ignore = "needs root to become another user"]
fn a_local_user_can_change_neither_trees_nor_state_nor_ask_the_guard() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&versioned("1"), "1");
    let host = fleet.host(1);
    // As they are made: nobody gets in at all.
    show(fleet.scratch());
    let closed = as_nobody("ls", &[fleet.dir().to_str().unwrap()]);
    assert!(!closed.status.success(), "{closed:?}");
    // Where somebody has opened the folders above, what is in them holds by itself.
    for folder in [fleet.dir(), &fleet.dir().join("hosts"), host.folder(), &fleet.dir().join("coordinator")] {
        show(folder);
    }
    for folder in [host.folder(), &fleet.dir().join("coordinator")] {
        let folder = folder.to_str().unwrap();
        let writable = as_nobody("find", &[folder, "-writable", "!", "-type", "l", "-print"]);
        assert!(writable.stdout.is_empty(), "{writable:?}");
        let keys = as_nobody("find", &[folder, "-name", "*.key", "-readable", "-print"]);
        assert!(keys.stdout.is_empty(), "{keys:?}");
        let seen = as_nobody("find", &[folder, "-name", "*.toml"]);
        assert!(!seen.stdout.is_empty(), "the folder was looked into: {seen:?}");
    }
    let agent = copied(&fleet, "muster-agent");
    let config = host.folder().join("agent.toml");
    show(&config);
    for verb in [&["status", FLEET][..], &["halt", FLEET, "--reason", "mischief"]] {
        let arguments = [verb, &["--config", config.to_str().unwrap()]].concat();
        let refused = as_nobody(agent.to_str().unwrap(), &arguments);
        assert!(!refused.status.success(), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("ermission denied"), "{said}");
    }
    let mischief = format!("ln -sfn /tmp {}", host.link().display());
    assert!(!as_nobody("sh", &["-c", &mischief]).status.success());
    fleet.assert_all_serve(&one);
    fleet.json(&["check", "--release", "1"]).expect_code(0);
}

#[test]
#[ignore = "needs root to become another user, and a kernel that dumps core into files"]
fn memory_with_keys_in_it_is_neither_dumped_nor_shown_to_other_processes_of_the_user() {
    let fleet = Fleet::up(1);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let folder = fleet.dir().join("coordinator");
    chown_all(&folder, NOBODY);
    for folder in [fleet.scratch(), fleet.dir()] {
        show(folder);
    }
    let program = copied(&fleet, "muster-coordinator");
    let config = folder.join("coordinator.toml");
    let started = |line: &str| {
        let limited = format!("ulimit -c unlimited; exec {line}");
        Command::new("sh")
            .args(["-c", &limited])
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir(&folder)
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let environ = |child: &std::process::Child| format!("/proc/{}/environ", child.id());
    let line = format!("{} run --config {}", program.display(), config.display());
    let (mut plain, mut daemon) = (started("sleep 600"), started(&line));
    fleet.wait_connected(1);
    let readable = |path: &str| as_nobody("cat", &[path]).status.success();
    assert!(readable(&environ(&plain)), "a process shows its memory to its user");
    assert!(!readable(&environ(&daemon)), "and one with keys does not");
    for (child, is_dumped) in [(&mut plain, true), (&mut daemon, false)] {
        kill_process(Pid::from_child(child), Signal::ABORT).unwrap();
        let ended = wait_until("it ends", PATIENCE, || child.try_wait().unwrap());
        assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), is_dumped));
    }
    chown_all(&folder, 0);
    coordinator.start(&[]);
    fleet.wait_connected(1);
}
