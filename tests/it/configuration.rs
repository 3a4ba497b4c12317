//! Configuration by drop-ins: what the daemons' own commands say of it, and that none starts with one that is wrong.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::harness::{Fleet, program};

/// The configuration of a daemon of a fleet that is up.
struct Config {
    program: &'static str,
    file: PathBuf,
}

impl Config {
    fn of(program: &'static str, file: PathBuf) -> Self {
        assert!(file.is_file(), "{file:?}");
        Self { program, file }
    }

    fn drop_in(&self, name: &str) -> PathBuf {
        let folder = self.file.with_added_extension("d");
        fs::create_dir_all(&folder).unwrap();
        folder.join(name)
    }

    fn run(&self, verb: &[&str]) -> Output {
        let mut command = Command::new(program(self.program));
        command.args(verb).arg("--config").arg(&self.file).stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn said(&self, verb: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.run(verb);
        assert!(status.success(), "{verb:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, verb: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.run(verb);
        assert!(!status.success(), "{verb:?}: {}", String::from_utf8_lossy(&stdout));
        String::from_utf8(stderr).unwrap()
    }
}

fn all(fleet: &Fleet) -> [Config; 3] {
    let host = fleet.host(1).folder().to_owned();
    [
        Config::of("muster-coordinator", fleet.dir().join("coordinator/coordinator.toml")),
        Config::of("muster-agent", host.join("agent.toml")),
        Config::of("muster-guard", host.join("guard.toml")),
    ]
}

fn line_of(file: &Path, beginning: &str) -> usize {
    let text = fs::read_to_string(file).unwrap();
    1 + text.lines().position(|line| line.starts_with(beginning)).unwrap()
}

#[test]
fn every_daemon_shows_where_each_value_is_from_and_takes_drop_ins() {
    let fleet = Fleet::up(1);
    for config in all(&fleet) {
        let (key, value) = match config.program {
            "muster-coordinator" => ("uploads_max", "7"),
            "muster-agent" => ("jobs", "3"),
            _ => ("allowed_uids", "[7]"),
        };
        fs::write(config.drop_in("10-weak.toml"), format!("{key} = 'never used'\n")).unwrap();
        fs::write(config.drop_in("20-off.toml"), "").unwrap();
        symlink("/dev/null", config.drop_in("30-null.toml")).unwrap();
        let strong = config.drop_in("40-strong.toml");
        fs::write(&strong, format!("# why\n{key} = {value}\n")).unwrap();
        let shown = config.said(&["config", "show"]);
        let column = key.len() + 4;
        assert!(shown.contains(&format!("{key} = {value}  # {}:2:{column}\n", strong.display())), "{shown}");
        let own = if config.program == "muster-guard" { "socket = " } else { "state = " };
        let place = format!("{}:{}:", config.file.display(), line_of(&config.file, own));
        assert!(shown.lines().any(|line| line.starts_with(own) && line.contains(&place)), "{shown}");
        config.said(&["config", "check"]);
        fs::remove_file(strong).unwrap();
        let refused = config.refused(&["config", "check"]);
        assert!(refused.contains("10-weak.toml:1:"), "{refused}");
    }
}

#[test]
fn no_daemon_starts_with_a_configuration_that_is_wrong_and_all_of_it_is_told() {
    let fleet = Fleet::up(1);
    for config in all(&fleet) {
        let wrong = match config.program {
            "muster-coordinator" => "lisen = '127.0.0.1:0'\nuploads_max = 0\n",
            "muster-agent" => "coordinater = 'a:1'\njobs = 0\n",
            _ => "sockt = '/a'\nallowed_uids = 0\n",
        };
        let slip = config.drop_in("50-slip.toml");
        fs::write(&slip, wrong).unwrap();
        for verb in [&["config", "check"][..], &["run"]] {
            let told = config.refused(verb);
            assert!(told.contains("2 things are wrong"), "{told}");
            assert!(told.contains(&format!("{}:1:1: unknown field", slip.display())), "{told}");
            assert!(told.contains("did you mean `"), "{told}");
            assert!(told.contains(&format!("{}:2:", slip.display())), "{told}");
        }
        // What everybody may write to is obeyed by no daemon.
        fs::write(&slip, "").unwrap();
        config.said(&["config", "check"]);
        fs::set_permissions(&slip, fs::Permissions::from_mode(0o666)).unwrap();
        for verb in [&["config", "check"][..], &["run"]] {
            let told = config.refused(verb);
            assert!(told.contains("everybody may write to it (mode 0666)"), "{told}");
        }
    }
}

#[test]
fn what_no_type_refuses_is_told_with_its_place() {
    let fleet = Fleet::up(1);
    let [_, agent, guard] = all(&fleet);
    fs::write(agent.drop_in("a.toml"), "jobs = 2000\n").unwrap();
    assert!(agent.refused(&["config", "check"]).contains("a.toml:1:8: `jobs` is 2000; at most 1024"));
    fs::write(guard.drop_in("a.toml"), "\nstate_dir = 'state'\nsocket = 'guard.sock'\n").unwrap();
    let told = guard.refused(&["run"]);
    assert!(told.contains("a.toml:2:13: state_dir is not an absolute path"), "{told}");
    assert!(told.contains("a.toml:3:10: socket is not an absolute path"), "{told}");
}
