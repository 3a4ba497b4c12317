//! The certificates of hosts that have enrolled: renewal, recovery, and what is said before anybody is stranded.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use muster_model::UnixTime;
use muster_mtls::{CredentialPaths, Credentials, Role};

use super::{Invitation, audit, join, reconfigure, serial, text, wait_for_log};
use crate::harness::{Caller, Fleet, Health, PATIENCE, artifact, now, until, wait_until};

/// What the health calls the certificates.
const CERTIFICATES: &str = "fleet.v1.Certificates";

/// Has the coordinator take up a certificate that holds for so long, and says when it ends.
#[track_caller]
fn give_coordinator(fleet: &Fleet, valid_for: &str) -> UnixTime {
    let folder = fleet.scratch().join(format!("given-{valid_for}"));
    let issue = ["certificate", "issue", "coordinator", "--role", "coordinator", "--san", "127.0.0.1"];
    let rest = ["--valid-for", valid_for, "--out", text(&folder)];
    fleet.json(&[&issue[..], &rest[..]].concat()).expect_code(0);
    let own = fleet.dir().join("coordinator");
    for (from, to) in [("certificate.pem", "coordinator.pem"), ("key.pem", "coordinator.key")] {
        fs::copy(folder.join(from), own.join(to)).unwrap();
    }
    Credentials::load(&CredentialPaths::in_dir(&folder)).unwrap().validity().not_after
}

/// How often it is in the audit log that the coordinator's own certificate was renewed.
#[track_caller]
fn own_renewals(fleet: &Fleet) -> usize {
    let is_own = |entry: &&serde_json::Value| {
        entry["kind"] == "certificate" && entry["who"].as_str().unwrap().contains("/coordinator/")
    };
    audit(fleet).iter().filter(is_own).count()
}

#[test]
fn certificates_are_renewed_again_and_again_while_the_fleet_flips() {
    let fleet = Fleet::up(1);
    let tree = artifact(&[("lib/a", "a")]);
    let one = fleet.release(&tree, "1.0");
    reconfigure(&fleet, &[("host_certificate_ms", 10_000), ("revocation_list_ms", 12_000)], 1);
    let host = join(&fleet, "host-x", 2);
    fleet.json(&["deploy", "1.0"]).expect_code(0);
    until("it is let in", || host.serves().as_deref() == Some(one.as_str()));
    let folder = host.folder().to_owned();
    let list = fleet.dir().join("coordinator/state/crl.pem");
    let (first, first_list) = (serial(&folder), fs::read(&list).unwrap());
    let mut seen = BTreeSet::from([first]);
    for version in ["2.0", "3.0", "4.0"] {
        wait_until("another certificate", PATIENCE, || seen.insert(serial(&folder)).then_some(()));
        fleet.wait_connected(2);
        tree.write("lib/a", version);
        let digest = fleet.push(&tree, version);
        // A stream that begins anew is one of a host that is at rest; whoever asks in that moment asks again.
        wait_until("it is deployed", PATIENCE, || (fleet.json(&["deploy", version]).code == 0).then_some(()));
        wait_until("it is flipped", PATIENCE, || (fleet.json(&["flip", version]).code == 0).then_some(()));
        assert_eq!(host.serves().as_deref(), Some(digest.as_str()));
    }
    assert!(fs::read(&list).unwrap() != first_list, "the list is renewed as well");
    let status = fleet.json(&["status"]).expect_code(0).json();
    let own = status["hosts"].as_array().unwrap().iter().find(|it| it["host"] == "host-x").unwrap().clone();
    assert!(own["certificate"]["renews_in_ms"].is_number() && own["certificate"]["failures"] == 0, "{own}");
    assert!(status["coordinator_certificate"]["list_expires"].is_string(), "{status}");
    assert_eq!(fs::read_dir(folder.join("identity")).unwrap().count(), 2, "old keys are gone");
}

#[test]
fn an_agent_that_dies_while_it_renews_has_the_old_certificate_or_the_new_one() {
    let fleet = Fleet::up(1);
    reconfigure(&fleet, &[("host_certificate_ms", 8_000)], 1);
    let host = join(&fleet, "host-x", 2);
    for point in ["written", "named", "linked"] {
        host.agent.kill_if_running();
        host.agent.wait_until_gone();
        host.agent.start(&[("MUSTER_CRASH_AT", &format!("agent.identity.{point}"))]);
        host.agent.wait_until_gone();
        // Whichever it is, it is whole.
        serial(host.folder());
        host.agent.start(&[]);
        fleet.wait_connected(2);
    }
}

#[test]
fn a_host_recovers_from_an_expired_certificate_a_few_times() {
    let fleet = Fleet::up(1);
    reconfigure(&fleet, &[("host_certificate_ms", 4_000)], 1);
    let host = join(&fleet, "host-x", 2);
    for time in 1..=3 {
        host.agent.kill();
        let expired = || {
            let folder = host.folder().join("identity/current");
            let (certificate, key) = if folder.exists() {
                (folder.join("certificate.pem"), folder.join("key.pem"))
            } else {
                (host.folder().join("agent.pem"), host.folder().join("agent.key"))
            };
            let paths = CredentialPaths { certificate, key, ca: host.folder().join("ca.pem"), crl: None };
            Credentials::load(&paths).unwrap().validity().not_after.0 + 1_000 < now().0
        };
        until("its certificate has expired", expired);
        if time == 2 {
            // An answer that is lost is given again, and counts once.
            host.agent.start(&[("MUSTER_CRASH_AT", "agent.recovery.answered")]);
            host.agent.wait_until_gone();
            assert!(host.folder().join("identity/.pending").exists());
        }
        if time == 3 {
            // So is one that was kept and did not count yet.
            host.agent.start(&[("MUSTER_CRASH_AT", "agent.identity.named")]);
            host.agent.wait_until_gone();
        }
        host.agent.start(&[]);
        let recovered = format!("left={}", 3 - time);
        wait_for_log(&host.agent, &recovered);
        until("the key in waiting is forgotten", || !host.folder().join("identity/.pending").exists());
        fleet.wait_connected(2);
    }
    let entries = audit(&fleet);
    let recoveries =
        entries.iter().filter(|it| it["kind"] == "certificate" && it.to_string().contains("recovered"));
    assert_eq!(recoveries.count(), 3);

    host.agent.kill();
    let stopped = now();
    until("its certificate has expired", || now().0 > stopped.0 + 6_000);
    host.agent.start(&[]);
    wait_for_log(&host.agent, "recovery-refused");
    wait_for_log(&fleet.coordinator(), "it has recovered as often as a host may");
    fleet.wait_connected(1);
    // A new token is the way back.
    host.agent.kill();
    Invitation::of(&fleet, "host-x", &[]).accept(host.folder(), &[]).expect_code(0);
    host.agent.start(&[]);
    fleet.wait_connected(2);
}

#[test]
fn a_status_warns_long_before_a_host_is_stranded() {
    let fleet = Fleet::up(1);
    reconfigure(&fleet, &[("host_certificate_ms", 30_000)], 1);
    let host = join(&fleet, "host-x", 2);
    let warned = |text: &str| {
        let status = fleet.json(&["status"]).expect_code(0).json();
        let mut warnings = status["warnings"].as_array().unwrap().iter();
        warnings.any(|it| {
            it["code"] == "certificate-ending" && it["host"] == "host-x" && it.to_string().contains(text)
        })
    };
    assert!(!warned(""));
    let caller = Caller::connect(&fleet, &fleet.credentials(Role::Agent, "host-1")).unwrap();
    until("all is well", || caller.health(CERTIFICATES) == Health::Serving);
    // Something is in the way of what it is given.
    fs::write(host.folder().join("identity"), "in the way").unwrap();
    until("two attempts have failed", || warned("attempts to renew its certificate have failed"));
    assert!(fleet.muster(&["status"]).expect_code(0).stdout.contains("certificate-ending at host-x"));
    until("the health says so as well", || caller.health(CERTIFICATES) == Health::NotServing);
    fleet.wait_connected(2);
    fs::remove_file(host.folder().join("identity")).unwrap();
    until("nobody needs to look any more", || !warned(""));
    until("all is well again", || caller.health(CERTIFICATES) == Health::Serving);
    fleet.wait_connected(2);
}

#[test]
fn a_coordinator_renews_its_own_certificate_and_no_stream_notices() {
    let fleet = Fleet::up(2);
    let (tree, coordinator) = (artifact(&[("lib/a", "a")]), fleet.coordinator());
    fleet.release(&tree, "1.0");
    reconfigure(&fleet, &[("coordinator_certificate_ms", 8_000)], 2);
    let (since, ends) = (Instant::now(), give_coordinator(&fleet, "8s"));
    wait_for_log(&coordinator, "certificate files were read again");
    tree.write("lib/a", "b");
    let two = fleet.push(&tree, "2.0");
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    until("it was renewed twice", || own_renewals(&fleet) >= 2);
    until("the one that it was given has ended", || now() > ends);
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two);

    let status = fleet.json(&["status"]).expect_code(0).json();
    let elapsed_ms = since.elapsed().as_millis();
    for host in status["hosts"].as_array().unwrap() {
        let age_ms = u128::from(host["age_ms"].as_u64().unwrap());
        assert!(host["connected"] == true && age_ms > elapsed_ms, "{elapsed_ms} ms: {host}");
    }
    assert_eq!(status["warnings"].as_array().map(Vec::len), Some(0), "{status}");
    assert!(status["coordinator_certificate"]["renews"].is_string(), "{status}");

    // It starts again with what it has given itself: the one in its configuration has ended.
    coordinator.kill();
    coordinator.start(&[]);
    fleet.wait_connected(2);
    fleet.json(&["rollback"]).expect_code(0);
    let identity = fleet.dir().join("coordinator/state/identity");
    until("old keys are gone", || fs::read_dir(&identity).unwrap().count() == 2);
}

#[test]
fn a_coordinator_that_dies_while_it_renews_has_the_old_certificate_or_the_new_one() {
    let fleet = Fleet::up(1);
    let coordinator = fleet.coordinator();
    reconfigure(&fleet, &[("coordinator_certificate_ms", 8_000)], 1);
    give_coordinator(&fleet, "8s");
    for point in ["written", "named", "linked"] {
        coordinator.kill_if_running();
        coordinator.wait_until_gone();
        coordinator.start(&[("MUSTER_CRASH_AT", &format!("coordinator.identity.{point}"))]);
        coordinator.wait_until_gone();
        coordinator.start(&[]);
        fleet.wait_connected(1);
    }
}

#[test]
fn the_health_turns_bad_before_a_certificate_strands_anybody() {
    let fleet = Fleet::up(1);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    // From a PKI of one's own: nobody but its owner renews it.
    let file = fleet.dir().join("coordinator/coordinator.toml");
    let settings = fs::read_to_string(&file).unwrap();
    let kept =
        settings.lines().filter(|line| !line.starts_with("issuer") && !line.starts_with("enrol_listen"));
    fs::write(&file, kept.collect::<Vec<_>>().join("\n")).unwrap();
    let ends = give_coordinator(&fleet, "24s");
    coordinator.start(&[]);
    fleet.wait_connected(1);
    let caller = Caller::connect(&fleet, &fleet.credentials(Role::Viewer, "victor")).unwrap();
    wait_until("all is well", PATIENCE, || (caller.health(CERTIFICATES) == Health::Serving).then_some(()));
    wait_until("it says so", PATIENCE, || (caller.health(CERTIFICATES) == Health::NotServing).then_some(()));
    assert!(now().0 + 4_000 < ends.0, "there is time to do something about it");
    let status = fleet.json(&["status"]).expect_code(0);
    assert!(status.json()["warnings"].to_string().contains("the coordinator's own certificate"), "{status}");
    assert_eq!(caller.health(""), Health::Serving, "nobody is to be sent elsewhere");

    give_coordinator(&fleet, "365d");
    until("all is well again", || caller.health(CERTIFICATES) == Health::Serving);
}
