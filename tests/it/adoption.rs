//! Hosts that run something before Muster comes: what each runs, how that differs, and how it becomes the first release.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Artifact, Fleet, Host, Output, artifact};

/// The folder that a host's service runs from, whatever Muster thinks of it.
fn app(host: &Host) -> PathBuf {
    host.folder().join("app")
}

/// A fleet whose hosts all run a copy of this tree.
fn up(hosts: usize, tree: &Artifact, mutable: &[&str]) -> Fleet {
    let fleet = Fleet::up(hosts);
    for host in fleet.hosts() {
        copy(Path::new(tree.argument()), &app(&host));
        let file = host.folder().join("agent.toml");
        let mut config: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        let of_fleet = config["fleet"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
        of_fleet.insert("adopt_from".to_owned(), "app".into());
        let mutable: Vec<toml::Value> = mutable.iter().map(|path| (*path).into()).collect();
        of_fleet.insert("adopt_mutable".to_owned(), mutable.into());
        fs::write(&file, config.to_string()).unwrap();
    }
    restart(&fleet);
    fleet
}

fn restart(fleet: &Fleet) {
    fleet.down();
    fleet.start(&[]);
    fleet.wait_connected(fleet.hosts().len());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
}

fn hosts_of(output: &Output) -> Vec<Value> {
    output.json()["groups"].as_array().unwrap().iter().map(|group| group["hosts"].clone()).collect()
}

#[test]
fn one_host_of_four_that_differs_is_named_path_by_path() {
    let tree = artifact(&[("bin/server", "#!/bin/sh\necho one\n"), ("conf/a", "a"), ("conf/b", "b")]);
    let fleet = up(4, &tree, &["log"]);
    let odd = app(&fleet.host(3));
    fs::write(odd.join("conf/b"), "B").unwrap();
    fs::write(odd.join("bin/old-server"), "left behind").unwrap();
    fs::remove_file(odd.join("conf/a")).unwrap();
    // Every host writes what it likes where the service may.
    for host in fleet.hosts() {
        fs::create_dir(app(&host).join("log")).unwrap();
        fs::write(app(&host).join("log/today"), host.name()).unwrap();
    }

    let adopted = fleet.json(&["adopt"]).expect_code(10);
    assert_eq!(adopted.json()["schema"], "muster.adopt/1");
    assert_eq!(adopted.json()["identical"], false);
    assert_eq!(hosts_of(&adopted), [json!(["host-1", "host-2", "host-4"]), json!(["host-3"])]);
    let odd_one = &adopted.json()["groups"][1];
    let paths: Vec<&str> = odd_one["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["bin/old-server", "conf/a", "conf/b"]);
    assert_eq!(odd_one["changes_total"], 3);
    let blocker = adopted.expect_blocker("mismatch", "host-3", "");
    assert_eq!(blocker.measured.as_deref(), odd_one["digest"].as_str());
    let text = fleet.muster(&["adopt"]).expect_code(10);
    for line in ["bin/old-server", "conf/a", "at most 3 of 4 hosts have the same"] {
        assert!(text.stdout.contains(line), "{text}");
    }
    assert!(fleet.hosts().iter().all(|host| host.serves().is_none()), "nothing is served by that");

    // A host that cannot be asked is no host that agrees.
    copy(Path::new(tree.argument()), &odd);
    fs::remove_file(odd.join("bin/old-server")).unwrap();
    fleet.host(2).agent.kill();
    fleet.wait_connected(3);
    let partly = fleet.json(&["adopt"]).expect_code(11);
    partly.expect_blocker("host-missing", "host-2", "");
    assert_eq!(hosts_of(&partly), [json!(["host-1", "host-3", "host-4"])]);
    assert_eq!(partly.json()["identical"], false);
}

#[test]
fn what_all_hosts_run_becomes_the_first_release_without_a_byte_over_the_network() {
    let tree = artifact(&[("bin/server", "#!/bin/sh\necho one\n"), ("data/big", &"x".repeat(300_000))]);
    let fleet = up(2, &tree, &[]);
    let adopted = fleet.json(&["adopt"]).expect_code(0);
    let digest = adopted.text_at("/groups/0/digest");
    assert_eq!(adopted.json()["identical"], true);
    assert!(adopted.json()["groups"][0].get("changes").is_none());
    assert_eq!(fleet.push(&tree, "1"), digest, "a copy of it is the release");

    let deployed = fleet.json(&["deploy", "1"]).expect_code(0);
    for host in deployed.json()["results"].as_array().unwrap() {
        assert_eq!(host["fetched_bytes"], 0, "{deployed}");
    }
    fs::write(app(&fleet.host(1)).join("bin/server"), "changed later").unwrap();
    fleet.json(&["check", "--release", "1"]).expect_code(0);
    fleet.json(&["flip", "1"]).expect_code(0);
    fleet.assert_all_serve(&digest);
}

#[test]
fn a_folder_that_changed_since_is_fetched_and_one_that_cannot_be_measured_is_told() {
    let tree = artifact(&[("bin/server", "one"), ("lib/a", "a")]);
    let fleet = up(2, &tree, &[]);
    let one = fleet.push(&tree, "1");
    // As long as what it should be, and something else; and a link to the right bytes.
    fs::write(app(&fleet.host(1)).join("lib/a"), "b").unwrap();
    fs::remove_file(app(&fleet.host(2)).join("lib/a")).unwrap();
    symlink(tree.path().join("lib/a"), app(&fleet.host(2)).join("lib/a")).unwrap();
    fleet.json(&["deploy", "1"]).expect_code(0);
    fleet.json(&["check", "--release", "1"]).expect_code(0);
    assert_eq!(fs::read_to_string(fleet.host(1).tree(&one).join("lib/a")).unwrap(), "a");

    fs::set_permissions(app(&fleet.host(1)).join("bin/server"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::remove_dir_all(app(&fleet.host(2))).unwrap();
    let failed = fleet.json(&["adopt"]);
    assert_ne!(failed.code, 0, "{failed}");
    for host in ["host-1", "host-2"] {
        assert!(
            failed.blockers().iter().any(|it| it.host.as_ref().is_some_and(|it| it.as_str() == host)),
            "{failed}"
        );
    }
    assert_eq!(hosts_of(&failed), Vec::<Value>::new());
}

#[test]
fn hosts_whose_configuration_names_nothing_say_so() {
    let fleet = Fleet::up(1);
    let none = fleet.json(&["adopt"]).expect_code(10);
    let blocker = none.expect_blocker("not-deployed", "host-1", "");
    assert!(blocker.detail.contains("`adopt_from` in agent.toml"), "{none}");
}
