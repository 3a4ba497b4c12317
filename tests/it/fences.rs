//! Hosts that are stated to be off, on real processes: what holds of that, what is said of it, and how they come back.

use std::fs;
use std::thread;

use muster_model::Code;
use serde_json::Value;

use crate::harness::{Fleet, Host, Output, artifact, until};

/// A fleet of three that serves release 1, as its digest.
fn serving() -> (Fleet, String) {
    let fleet = Fleet::up(3);
    let digest = fleet.release(&artifact(&[("lib/a", "a")]), "1");
    (fleet, digest)
}

/// The machine is off: when it is on again, nothing is served before something permits it.
fn switch_off(host: &Host) {
    host.agent.kill();
    host.guard.kill();
    fs::remove_file(host.link()).unwrap();
}

fn switch_on(host: &Host) {
    host.guard.start(&[]);
    host.agent.start(&[]);
}

fn park(fleet: &Fleet, host: &str) -> Output {
    fleet.json(&["host", "park", host, "--reason", "a fan rattles", "--timeout", "1s"])
}

fn state_off(fleet: &Fleet, host: &str) -> Output {
    fleet.json(&["host", "park", host, "--fenced", "--reason", "pulled out of rack 4", "--timeout", "1s"])
}

/// The audit log's entries about rosters, newest first.
fn rosters(fleet: &Fleet) -> Vec<Value> {
    let log = fleet.json(&["audit", "log", "--kind", "roster"]).expect_code(0);
    let mut entries = log.json()["results"].as_array().unwrap().clone();
    entries.reverse();
    entries
}

#[test]
fn two_hosts_that_are_off_leave_one_after_the_other_and_the_log_says_when() {
    let (fleet, _) = serving();
    for number in [2, 3] {
        switch_off(&fleet.host(number));
    }
    fleet.wait_connected(1);
    for host in ["host-2", "host-3"] {
        park(&fleet, host).expect_code(12).expect_blocker("removal-needs-evidence", host, "");
    }
    let waits = state_off(&fleet, "host-2").expect_code(12);
    assert!(!waits.names(&fleet.host(2), Code::RemovalNeedsEvidence), "{waits}");
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_answers();
    assert_eq!(state_off(&fleet, "host-3").expect_code(0).json()["hosts"], 1);
    let log = rosters(&fleet);
    assert!(log[0]["who"].as_str().unwrap().contains("coordinator"), "{log:?}");
    assert_eq!(
        log[0]["detail"],
        "revision 5 holds, 1 hosts: host-2 is parked, as it is stated to be off; host-3 is parked, as it is stated to be off"
    );
    assert!(log.iter().all(|it| !it["detail"].as_str().unwrap().contains("revision 4 holds")), "{log:?}");
    fleet.release(&artifact(&[("lib/a", "b")]), "2");
}

#[test]
fn a_host_that_was_parked_and_taken_back_while_it_was_off_comes_back_by_itself() {
    let (fleet, _) = serving();
    let host = fleet.host(3);
    switch_off(&host);
    fleet.wait_connected(2);
    state_off(&fleet, "host-3").expect_code(0);
    let two = fleet.push(&artifact(&[("lib/a", "b")]), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    fleet.json(&["flip", "2"]).expect_code(0);
    assert_ne!(fleet.json(&["host", "unpark", "host-3", "--timeout", "1s"]).code, 0, "it is off");
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_answers();
    switch_on(&host);
    fleet.wait_connected(3);
    // It has left its time behind, and lacks only the bytes.
    fleet.json(&["deploy", "2"]).expect_code(0);
    let back = fleet.json(&["host", "unpark", "host-3", "--timeout", "60s"]).expect_code(0);
    assert_eq!(back.text_at("/outcome"), "serving");
    fleet.assert_all_serve(&two);
    fleet.release(&artifact(&[("lib/a", "c")]), "3");
}

#[test]
fn whoever_parks_a_host_that_another_takes_back_is_told_so() {
    let (fleet, one) = serving();
    fleet.host(3).agent.kill();
    fleet.wait_connected(2);
    let asked = ["host", "park", "host-3", "--reason", "a fan rattles", "--timeout", "60s"];
    let overtaken = thread::scope(|scope| {
        let parks = scope.spawn(|| fleet.json(&asked));
        until("the roster is kept", || fleet.json(&["status"]).json()["coming_roster"].is_object());
        assert_ne!(fleet.json(&["host", "unpark", "host-3", "--timeout", "1s"]).code, 0, "it is cut off");
        parks.join().unwrap()
    });
    let blocker = overtaken.expect_code(15).expect_blocker("roster-changed", "host-3", "");
    assert!(blocker.detail.contains("has it serve"), "{blocker:?}");
    assert_eq!(fleet.host(3).serves().as_deref(), Some(one.as_str()));
}

#[test]
fn who_comes_second_with_a_roster_learns_who_came_first_and_what_to_do() {
    let (fleet, _) = serving();
    let file = |name: &str| fleet.scratch().join(name).to_str().unwrap().to_owned();
    let (first, second) = (file("first.toml"), file("second.toml"));
    fleet.json(&["roster", "draft", "--out", &first]).expect_code(0);
    fleet.json(&["roster", "draft", "host-1", "host-2", "--out", &second]).expect_code(0);
    for draft in [&first, &second] {
        fleet.json(&["roster", "sign", draft]).expect_code(0);
    }
    let (first, second) = (file("first.json"), file("second.json"));
    fleet.json(&["roster", "apply", &first]).expect_code(0);
    let refused = fleet.json(&["roster", "apply", &second]).expect_code(15);
    let said = &refused.blockers()[0].detail;
    for what in ["revision 2 was handed in before by spiffe://", "/operator/", "3 hosts", "draft yours again"]
    {
        assert!(said.contains(what), "{said}");
    }
    let again = fleet.json(&["roster", "apply", &first]).expect_code(15);
    assert!(
        again.blockers()[0].detail.contains("this very roster was handed in before by spiffe://"),
        "{again}"
    );
}
