//! Hosts on which Muster may not do everything: they measure and attest, and no flip gets past them.

use std::fs;

use crate::harness::{Fleet, Host, artifact};

fn enforce(fleet: &Fleet, host: &Host, how: &str) {
    configure(fleet, host, |config| {
        let of_fleet = config["fleet"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
        of_fleet.insert("enforce".to_owned(), how.into());
    });
}

/// Changes a host's agent.toml, and starts everything again.
fn configure(fleet: &Fleet, host: &Host, change: impl FnOnce(&mut toml::Table)) {
    let file = host.folder().join("agent.toml");
    let mut config: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    change(&mut config);
    fs::write(&file, config.to_string()).unwrap();
    fleet.down();
    fleet.start(&[]);
    fleet.wait_connected(fleet.hosts().len());
}

fn refusals(host: &Host) -> usize {
    host.agent.log().matches("takes no part").count()
}

#[test]
fn one_host_that_observes_or_is_a_gate_keeps_all_from_flipping() {
    let fleet = Fleet::up(3);
    let tree = artifact(&[("bin/server", "one")]);
    let one = fleet.release(&tree, "1.0");
    tree.write("bin/server", "two");
    let two = fleet.push(&tree, "2.0");
    for how in ["observe", "gate"] {
        enforce(&fleet, &fleet.host(2), how);
        fleet.json(&["deploy", "2.0"]).expect_code(0);
        fleet.json(&["check", "--release", "2.0"]).expect_code(0);
        let flip = fleet.json(&["flip", "2.0"]).expect_code(12);
        let blocker = flip.expect_blocker("not-enforced", "host-2", "");
        assert!(blocker.detail.contains(&format!("`enforce = \"{how}\"` in its agent.toml")), "{flip}");
        fleet.assert_all_serve(&one);
        let status = fleet.json(&["status"]).expect_code(0).json();
        assert_eq!(status["hosts"][1]["enforce"], how);
        assert!(status["hosts"][0].get("enforce").is_none());
        assert_eq!(status["warnings"][0]["code"], "not-enforced");
        assert_eq!(status["warnings"][0]["host"], "host-2");
        assert_eq!(refusals(&fleet.host(2)), if how == "observe" { 1 } else { 2 });
    }
    fleet.json(&["halt", "demo", "--reason", "fire", "--yes"]).expect_code(0);
    assert_eq!(fleet.host(2).serves(), None, "halts are obeyed");
    enforce(&fleet, &fleet.host(2), "full");
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two);
    assert!(fleet.json(&["status"]).json()["hosts"][1].get("enforce").is_none());
}

/// These tests run on whatever file system there is, so that what it has is asked of the host itself; `tests/verity/run` has one that can.
#[test]
fn a_host_that_requires_what_its_kernel_does_not_do_installs_and_attests_nothing() {
    let fleet = Fleet::up(2);
    let tree = artifact(&[("bin/server", "one")]);
    let one = fleet.release(&tree, "1.0");
    let of_host = |at: usize| fleet.json(&["status"]).expect_code(0).json()["hosts"][at]["assurance"].clone();
    let can = of_host(0)["level"] == "verity";
    if !can {
        assert_eq!(
            of_host(0),
            serde_json::json!({ "level": "sha256", "reason": "this filesystem has no fs-verity" })
        );
    }
    tree.write("bin/server", "two");
    fleet.push(&tree, "2.0");
    let set = |how: &str| {
        configure(&fleet, &fleet.host(2), |config| {
            config.insert("verity".to_owned(), how.into());
        });
    };
    set("require");
    if can {
        fleet.json(&["deploy", "2.0"]).expect_code(0);
        return;
    }
    for ask in [["deploy", "2.0"], ["check", "--release=1.0"]] {
        let refused = fleet.json(&ask);
        assert_ne!(refused.code, 0, "{ask:?}");
        let blocker = refused.expect_blocker("not-assured", "host-2", "");
        assert!(blocker.detail.contains("has no fs-verity; `verity = \"require\"`"), "{refused}");
    }
    // What is served goes on.
    fleet.assert_all_serve(&one);
    set("off");
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    assert_eq!(of_host(1)["reason"], "fs-verity is switched off here");
}
