//! Hosts on which Muster may not do everything: they measure and attest, and no flip gets past them.

use std::fs;

use crate::harness::{Fleet, Host, artifact};

fn enforce(fleet: &Fleet, host: &Host, how: &str) {
    let file = host.folder().join("agent.toml");
    let mut config: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    let of_fleet = config["fleet"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
    of_fleet.insert("enforce".to_owned(), how.into());
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
