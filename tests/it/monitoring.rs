//! What monitoring is told: numbers that it asks for, and a command that is run when something happens.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use muster_model::Code;
use serde_json::Value;

use crate::harness::{Fleet, PATIENCE, artifact, configure, until, wait_until};

/// Restarts the coordinator with what monitoring needs; answers where its numbers are.
fn watch(fleet: &Fleet, script: &str) -> SocketAddr {
    let config = fleet.dir().join("coordinator/coordinator.toml");
    configure(&config, "metrics_listen", "127.0.0.1:0");
    let command = ["/bin/sh", "-c", script].map(toml::Value::from).to_vec();
    configure(&config, "notify", toml::Table::from_iter([("command".to_owned(), command.into())]));
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_answers();
    wait_until("it says where its numbers are", PATIENCE, || {
        let log = fleet.coordinator().log();
        let line = log.lines().rfind(|line| line.contains("metrics are at"))?;
        line.split("address=").nth(1)?.split_whitespace().next()?.parse().ok()
    })
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: muster\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn monitoring_reads_numbers_and_a_command_is_told_what_happens() {
    let fleet = Fleet::up(3);
    let one = fleet.release(&artifact(&[("bin/server", "one")]), "1.0");
    let told = fleet.scratch().join("told");
    let address = watch(&fleet, &format!("cat >> {0}; echo >> {0}", told.display()));
    fleet.wait_connected(3);
    let has = |line: &str| get(address, "/metrics").lines().any(|it| it == line);
    until("three serve", || has("muster_hosts{fleet=\"demo\",state=\"serving\"} 3"));
    let answer = get(address, "/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("# EOF\n"), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
    for line in [
        "muster_epoch{fleet=\"demo\"} 1",
        "muster_host_last_contact_seconds{fleet=\"demo\",host=\"host-2\"} 0",
    ] {
        assert!(has(line), "{line} is not in {answer}");
    }
    let expiry = answer.lines().find_map(|line| {
        line.strip_prefix("muster_certificate_expiry_timestamp_seconds{of=\"host/host-2\"} ")?
            .parse::<u64>()
            .ok()
    });
    assert!(expiry.is_some_and(|at| at > 1_700_000_000), "{answer}");
    assert!(get(address, "/").starts_with("HTTP/1.1 404 "));

    let victim = fleet.host(2);
    fs::write(victim.tree(&one).join("extra"), "nobody released this").unwrap();
    fleet.wait_named(&victim, Code::Drifted);
    assert!(has("muster_drifts_total{fleet=\"demo\"} 1"));
    assert!(has("muster_blockers{fleet=\"demo\",code=\"drifted\"} 1"));
    let two = fleet.release(&artifact(&[("bin/server", "two")]), "2.0");
    fleet.wait_settled(&two);
    assert!(has("muster_rollouts_total{fleet=\"demo\",outcome=\"flipped\"} 1"));
    fleet.host(3).agent.kill();
    until("one is silent", || has("muster_hosts{fleet=\"demo\",state=\"silent\"} 1"));

    let entries = || {
        let told = fs::read_to_string(&told).unwrap_or_default();
        told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>()
    };
    until("the end of the flip is told", || entries().iter().any(|entry| entry["kind"] == "ended"));
    let drift = entries().into_iter().find(|entry| entry["kind"] == "drift").expect("it was told");
    assert_eq!(drift["fleet"], "demo");
    assert_eq!(drift["hosts"][0], "host-2");
    assert!(drift["detail"].as_str().unwrap().contains("extra"), "{drift}");
    assert!(!entries().iter().any(|entry| entry["kind"] == "phase"), "nobody asked for that");
}

#[test]
fn what_only_this_machine_may_read_is_offered_to_no_other() {
    let fleet = Fleet::up(1);
    let config = fleet.dir().join("coordinator/coordinator.toml");
    let before = fs::read_to_string(&config).unwrap();
    let refused = |word: &str| {
        let out = crate::harness::run_program(
            "muster-coordinator",
            &["run", "--config", config.to_str().unwrap()],
            &[],
        );
        assert_ne!(out.code, 0);
        assert!(out.stderr.contains(word), "{out}");
        fs::write(&config, &before).unwrap();
    };
    configure(&config, "metrics_listen", "0.0.0.0:7403");
    refused("only programs of this machine");
    configure(&config, "notify", toml::Table::from_iter([("command".to_owned(), vec!["tell"].into())]));
    refused("is not an absolute path");
}
