//! What the packages install: samples that say the truth.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use muster_agent::AgentConfig;
use muster_coordinator::CoordinatorConfig;
use muster_guard::GuardConfig;
use serde::de::DeserializeOwned;

/// How much of a sample is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// What is written.
    Written,
    /// What it says holds anyway, too.
    WithDefaults,
    /// And its examples.
    WithExamples,
}

fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/samples").join(name);
    fs::read_to_string(path).unwrap()
}

/// The sample with the marks of its defaults and examples taken away.
fn text(name: &str, read: Read) -> String {
    let lines = sample(name).lines().map(|line| uncommented(line, read).to_owned()).collect::<Vec<_>>();
    lines.join("\n")
}

fn uncommented(line: &str, read: Read) -> &str {
    match (line.strip_prefix("#? "), line.strip_prefix('#')) {
        (Some(example), _) if read == Read::WithExamples => example,
        (None, Some(default))
            if read != Read::Written && default.starts_with(|c: char| c.is_ascii_lowercase()) =>
        {
            default
        }
        _ => line,
    }
}

/// What holds without the defaults holds with them; the examples are accepted.
#[track_caller]
fn says_the_truth<T: PartialEq + Debug>(name: &str, read: impl Fn(&str) -> T) {
    let [written, with_defaults, _] =
        [Read::Written, Read::WithDefaults, Read::WithExamples].map(|how| read(&text(name, how)));
    assert_eq!(with_defaults, written, "{name} states a default that is none");
    assert_ne!(text(name, Read::WithDefaults), text(name, Read::Written), "{name} states no default");
}

/// Every setting of the table that `before` opens is in the sample. serde names them all when it meets one that it does not know.
#[track_caller]
fn names_every_setting<T: DeserializeOwned + Debug>(name: &str, table: &str) {
    let unknown = format!("{table}\nno_such_setting = 1\n");
    let all = text(name, Read::WithExamples);
    let with = match table {
        "" => format!("no_such_setting = 1\n{all}"),
        _ => all.replacen(table, &unknown, 1),
    };
    let refused = toml::from_str::<T>(&with).unwrap_err().to_string();
    let (_, expected) = refused
        .split_once("unknown field `no_such_setting`, expected ")
        .unwrap_or_else(|| panic!("{name} {table}: {refused}"));
    let settings: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    assert!(settings.len() > 1, "{refused}");
    for setting in settings {
        let is_named = all.lines().any(|line| {
            let line = line.trim_start_matches('[');
            line.split([' ', '.', ']', '=']).any(|word| word == setting)
        });
        assert!(is_named, "{name} does not name `{setting}`");
    }
}

fn loaded<T>(name: &str, text: &str, load: impl Fn(&Path) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    // Paths of the samples are relative to the file, whose folder would differ from one time to the next.
    let file: PathBuf = folder.path().join(name);
    let text = text
        .replace("= \"agent.", "= \"/etc/muster/agent.")
        .replace("= \"coordinator.", "= \"/etc/muster/coordinator.");
    let text = ["ca.pem", "crl.pem", "root.json", "attestation.key", "audit.key", "issuer"]
        .iter()
        .fold(text, |text, file| {
            text.replace(&format!("= \"{file}\""), &format!("= \"/etc/muster/{file}\""))
        });
    fs::write(&file, text).unwrap();
    load(&file)
}

#[test]
fn the_agents_sample_is_true() {
    says_the_truth("agent.toml", |text| {
        loaded("agent.toml", text, |file| AgentConfig::load(Some(file)).unwrap())
    });
    names_every_setting::<AgentConfig>("agent.toml", "");
    names_every_setting::<AgentConfig>("agent.toml", "[[fleet]]");
}

#[test]
fn the_guards_sample_is_true() {
    says_the_truth("guard.toml", |text| {
        let config: GuardConfig = toml::from_str(text).unwrap();
        config.clone().validate().unwrap();
        config
    });
    for table in [
        "",
        "[[fleets]]",
        "[fleets.driver.systemd]",
        "[fleets.driver.supervise]",
        "[fleets.hooks.on_fence]",
        "[fleets.hooks.health]",
    ] {
        names_every_setting::<GuardConfig>("guard.toml", table);
    }
}

#[test]
fn the_coordinators_sample_is_true() {
    says_the_truth("coordinator.toml", |text| {
        loaded("coordinator.toml", text, |file| CoordinatorConfig::load(Some(file)).unwrap())
    });
    names_every_setting::<CoordinatorConfig>("coordinator.toml", "");
}
