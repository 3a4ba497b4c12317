//! What is served changes on the disk, and nobody asked: the host tells it, keeps what changed from being started, and takes the
//! alarm back once it is repaired.

use std::fs;

use muster_model::Code;
use rustix::process::{Signal, kill_process};

use crate::harness::{Fleet, Observer, Service, artifact, until};

#[test]
fn a_change_of_what_is_served_is_told_unasked_and_taken_back_once_it_is_repaired() {
    let fleet = Fleet::up(3);
    let one = fleet.release(&artifact(&[("bin/server", "one")]), "1.0");
    let victim = fleet.host(2);
    for entry in ["extra", "another"] {
        fs::write(victim.tree(&one).join(entry), "nobody released this").unwrap();
        fleet.wait_named(&victim, Code::Drifted);
        let status = fleet.json(&["status"]);
        assert!(!status.names(&fleet.host(1), Code::Drifted), "{status}");
        fleet.assert_all_serve(&one);
        fleet.json(&["deploy", "1.0"]).expect_code(0);
        until("the alarm is taken back", || !fleet.json(&["status"]).names(&victim, Code::Drifted));
    }
    let log = fleet.json(&["audit", "log"]).expect_code(0).json();
    let drifts = log["results"].as_array().unwrap().iter().filter(|entry| entry["kind"] == "drift");
    let told: Vec<_> = drifts.map(|entry| entry["detail"].as_str().unwrap().to_owned()).collect();
    assert!(told[0].contains("drifted at host-2, extra"), "{told:?}");
    assert!(told[1..].iter().any(|detail| detail.contains("right again")), "{told:?}");
    // A coordinator that was not there when it was told hears it all the same.
    fleet.coordinator().kill();
    fs::write(victim.tree(&one).join("extra"), "nobody released this").unwrap();
    fleet.coordinator().start(&[]);
    fleet.wait_answers();
    fleet.wait_named(&victim, Code::Drifted);
    // Reading changes nothing, and neither does a touch that leaves the bytes and the modes as they were.
    let other = fleet.host(3);
    fs::File::open(other.tree(&one)).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    fleet.json(&["check", "--release", &one]).expect_code(10);
    assert!(!fleet.json(&["status"]).names(&other, Code::Drifted));
    // A release that is right is the way out as well.
    let two = fleet.release(&artifact(&[("bin/server", "two")]), "2.0");
    fleet.wait_settled(&two);
    assert!(!fleet.json(&["status"]).names(&victim, Code::Drifted));
}

#[test]
fn a_service_whose_release_has_drifted_goes_on_and_is_not_started_again() {
    let service = Service::build();
    let fleet = Service::fleet(2);
    let observer = Observer::of_services(&fleet);
    let one = fleet.push(&service.tree("1"), "1");
    fleet.json(&["deploy", "1"]).expect_code(0);
    fleet.json(&["flip", "1"]).expect_code(0);
    observer.wait_all_serve("1");
    let victim = fleet.host(2);
    let extra = victim.tree(&one).join("extra");
    fs::write(&extra, "nobody released this").unwrap();
    fleet.wait_named(&victim, Code::Drifted);
    observer.wait_all_serve("1");

    for pid in Service::processes(&victim) {
        kill_process(pid, Signal::KILL).unwrap();
    }
    // It may not be started, and is not admitted either.
    fleet.wait_named(&victim, Code::Mismatch);
    assert!(Service::processes(&victim).is_empty(), "what has changed is not started");

    fleet.json(&["deploy", "1"]).expect_code(0);
    fleet.wait_settled(&one);
    observer.wait_all_serve("1");
    assert!(!fleet.json(&["status"]).names(&victim, Code::Drifted));
}

/// The host's own file says so: what has changed is not only told.
#[test]
fn where_the_host_says_so_what_has_changed_is_stopped_until_it_is_repaired() {
    let service = Service::build();
    let fleet = Service::fleet(2);
    let observer = Observer::of_services(&fleet);
    let one = fleet.push(&service.tree("1"), "1");
    fleet.json(&["deploy", "1"]).expect_code(0);
    fleet.json(&["flip", "1"]).expect_code(0);
    observer.wait_all_serve("1");
    let victim = fleet.host(2);
    let config = victim.folder().join("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[[fleet]]", "[[fleet]]\non_drift = \"fence\"")).unwrap();
    victim.agent.kill();
    victim.agent.start(&[]);
    fleet.wait_connected(2);

    fs::write(victim.tree(&one).join("extra"), "nobody released this").unwrap();
    until("it is stopped", || Service::processes(&victim).is_empty() && victim.serves().is_none());
    let why = || fleet.json(&["status"]).stdout.contains("it was stopped for that");
    until("the status says why", || fleet.json(&["status"]).names(&victim, Code::Drifted) && why());
    assert!(!Service::processes(&fleet.host(1)).is_empty(), "the other host goes on");
    // An admission is not enough while it is as it is.
    victim.agent.kill();
    victim.agent.start(&[]);
    fleet.wait_connected(2);
    fleet.wait_named(&victim, Code::Mismatch);
    assert!(Service::processes(&victim).is_empty());

    fleet.json(&["deploy", "1"]).expect_code(0);
    fleet.wait_settled(&one);
    observer.wait_all_serve("1");
    let told = || {
        let log = fleet.json(&["audit", "log"]).expect_code(0).json();
        let drifts = log["results"].as_array().unwrap().iter().filter(|entry| entry["kind"] == "drift");
        drifts.map(|entry| entry["detail"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    until("it measures right", || told().last().unwrap().contains("right again"));
    let told = told();
    assert!(told[0].contains("drifted at host-2, extra"), "{told:?}");
    assert!(told[1].contains("fenced it: what it served had changed"), "{told:?}");
}
