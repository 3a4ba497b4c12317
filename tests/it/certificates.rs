//! Certificates and keys that are not what they should be: refused by name, on the side that has to, and nobody else
//! notices.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use muster_mtls::{Authority, IssuedIdentity, Role, TrustDomain};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::harness::{
    Artifact, Daemon, Fleet, Output, PATIENCE, artifact, issue, long_ago, now, run, today, wait_until,
};

/// Another `muster init` of somebody who chose the same name.
fn foreign() -> Authority {
    Authority::create(TrustDomain::new("muster.local").unwrap(), now()).unwrap()
}

/// A fleet that serves a release, and the tree of the next one.
fn serving(hosts: usize) -> (Fleet, String, Artifact) {
    let fleet = Fleet::up(hosts);
    let tree = artifact(&[("lib/a", "a")]);
    let one = fleet.release(&tree, "1.0");
    tree.write("lib/a", "b");
    (fleet, one, tree)
}

#[track_caller]
fn wait_for_log(daemon: &Daemon, texts: &[&str]) {
    wait_until(&format!("the log says {texts:?}"), PATIENCE, || {
        daemon.log().lines().any(|line| texts.iter().all(|text| line.contains(text))).then_some(())
    });
}

/// All hosts take part in a flip to the next release. Gives its digest.
#[track_caller]
fn flips(fleet: &Fleet, tree: &Artifact) -> String {
    let two = fleet.release(tree, "2.0");
    fleet.assert_all_serve(&two);
    two
}

/// Only host-2 is missed, and what is served is as before.
#[track_caller]
fn assert_only_host_2_is_missed(fleet: &Fleet, serving: &str) {
    fleet.wait_connected(1);
    let checked = fleet.json(&["check", "--release", "1.0"]).expect_code(11);
    checked.expect_blocker("host-missing", "host-2", "");
    assert_eq!(checked.blockers().len(), 1, "{checked}");
    fleet.assert_all_serve(serving);
}

#[test]
fn an_agent_with_a_certificate_that_does_not_count_is_refused_by_the_coordinator() {
    let (fleet, one, tree) = serving(2);
    let (host, coordinator) = (fleet.host(2), fleet.coordinator());
    let own = ["agent.pem", "agent.key"].map(|file| fs::read(host.folder().join(file)).unwrap());
    let cases = [
        (issue(&foreign(), Role::Agent, "host-2", today()), "UnknownIssuer"),
        (issue(&fleet.authority(), Role::Agent, "host-2", long_ago()), "expired"),
    ];
    for (issued, reason) in cases {
        host.agent.kill();
        host.become_another(&issued);
        host.agent.start(&[]);
        wait_for_log(&coordinator, &["TLS handshake refused", reason]);
        wait_for_log(&host.agent, &["cannot connect", "refused"]);
        assert_only_host_2_is_missed(&fleet, &one);
    }
    host.agent.kill();
    for (file, bytes) in ["agent.pem", "agent.key"].into_iter().zip(own) {
        fs::write(host.folder().join(file), bytes).unwrap();
    }
    host.agent.start(&[]);
    fleet.wait_connected(2);
    flips(&fleet, &tree);
}

#[test]
fn an_agent_believes_no_coordinator_of_another_authority() {
    let (fleet, one, tree) = serving(2);
    let host = fleet.host(2);
    let ca = host.folder().join("ca.pem");
    let own = fs::read(&ca).unwrap();
    host.agent.kill();
    fs::write(&ca, foreign().cert_pem()).unwrap();
    host.agent.start(&[]);
    wait_for_log(&host.agent, &["cannot connect", "not trusted"]);
    assert_only_host_2_is_missed(&fleet, &one);

    host.agent.kill();
    fs::write(&ca, own).unwrap();
    host.agent.start(&[]);
    fleet.wait_connected(2);
    flips(&fleet, &tree);
}

#[test]
fn a_daemon_does_not_start_in_anothers_role() {
    let (fleet, one, _tree) = serving(1);
    let host = fleet.host(1);
    host.agent.kill();
    host.become_another(&issue(&fleet.authority(), Role::Operator, "host-1", today()));
    host.agent.start(&[]);
    host.agent.wait_until_gone();
    wait_for_log(
        &host.agent,
        &["spiffe://muster.local/operator/host-1", "an agent needs one of the role `agent`"],
    );

    let coordinator = fleet.coordinator();
    coordinator.kill();
    let folder = fleet.dir().join("coordinator");
    let issued = issue(&fleet.authority(), Role::Agent, "host-1", today());
    fs::write(folder.join("coordinator.pem"), &issued.certificate.cert_pem).unwrap();
    fs::write(folder.join("coordinator.key"), issued.key_pem.as_bytes()).unwrap();
    coordinator.start(&[]);
    coordinator.wait_until_gone();
    wait_for_log(&coordinator, &["spiffe://muster.local/agent/host-1", "not for a coordinator"]);
    fleet.assert_all_serve(&one);
}

#[test]
fn an_operator_is_told_whose_certificate_does_not_count() {
    let (fleet, one, _tree) = serving(1);
    let asked =
        |context: &Path| run(&["status", "--context", context.to_str().unwrap(), "--output", "json"], &[]);
    let told = |output: &Output, pointer: &str, text: &str| {
        assert!(output.json().pointer(pointer).unwrap().to_string().contains(text), "no `{text}`: {output}");
    };

    let expired = issue(&fleet.authority(), Role::Operator, "alice", long_ago());
    let refused = asked(&fleet.context_of("expired.toml", &expired)).expect_code(1);
    told(&refused, "/causes", "refused");
    told(&refused, "/next", "expired");
    let stranger = issue(&foreign(), Role::Operator, "alice", today());
    let refused = asked(&fleet.context_of("stranger.toml", &stranger)).expect_code(1);
    told(&refused, "/next", "another `muster init`");
    wait_for_log(&fleet.coordinator(), &["TLS handshake refused", "UnknownIssuer"]);

    let ca = fleet.scratch().join("foreign-ca.pem");
    fs::write(&ca, foreign().cert_pem()).unwrap();
    let mistrusted = fleet.context_with("foreign-ca.toml", &[("ca", ca.to_str().unwrap())]);
    told(&asked(&mistrusted).expect_code(1), "/causes", "not trusted");

    // Whoever has stolen a host's certificate cannot pass for the coordinator with it.
    let impostor = present(&issue(&fleet.authority(), Role::Agent, "host-1", today()));
    let context = fleet.context_with("impostor.toml", &[("coordinator", &impostor)]);
    let refused = asked(&context).expect_code(1);
    told(&refused, "/causes", "not trusted");
    told(&refused, "/next", "certificate");

    // A viewer may look and do nothing else, whatever keys it holds.
    let viewer = issue(&fleet.authority(), Role::Viewer, "victor", today());
    let context = fleet.context_of("viewer.toml", &viewer);
    asked(&context).expect_code(0);
    for command in [&["deploy", "1.0"][..], &["check", "--release", "1.0"], &["abort"]] {
        let rest = ["--context", context.to_str().unwrap(), "--output", "json"];
        let refused = run(&[command, &rest].concat(), &[]).expect_code(12);
        refused.expect_blocker("not-allowed", "", "");
    }
    fleet.assert_all_serve(&one);
}

#[test]
fn a_host_outside_of_the_roster_can_connect_to_nothing() {
    let (fleet, one, tree) = serving(1);
    fleet.json(&["host", "issue", "host-9", "--fleet", "demo"]).expect_code(0);
    let outsider = fleet.outsider("host-9");
    outsider.guard.start(&[]);
    outsider.agent.start(&[]);
    wait_for_log(&outsider.agent, &["host-not-in-roster", "host-9"]);
    let status = fleet.json(&["status"]).expect_code(0);
    assert_eq!(status.json()["hosts"].as_array().map(Vec::len), Some(1), "{status}");
    let two = flips(&fleet, &tree);
    assert_ne!(one, two);
    assert_eq!(outsider.serves(), None);
    assert!(!outsider.tree(&two).exists(), "a host outside of the roster gets no bytes");
}

#[test]
fn a_private_key_that_others_may_read_is_not_used() {
    let (fleet, one, tree) = serving(1);
    let (host, coordinator) = (fleet.host(1), fleet.coordinator());
    let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let shut = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    let daemons = [
        (&host.agent, host.folder().join("agent.key")),
        (&host.agent, host.folder().join("attestation.key")),
        (&coordinator, fleet.dir().join("coordinator/coordinator.key")),
        (&coordinator, fleet.dir().join("coordinator/audit.key")),
    ];
    for (daemon, key) in daemons {
        daemon.kill();
        open(&key);
        daemon.start(&[]);
        daemon.wait_until_gone();
        wait_for_log(daemon, &[key.file_name().unwrap().to_str().unwrap(), "0644"]);
        shut(&key);
        daemon.start(&[]);
        fleet.wait_connected(1);
    }
    fleet.push(&tree, "2.0");
    let push = ["release", "push", tree.argument(), "--version", "2.0"];
    for (key, command) in [
        ("operator.key", &["status"][..]),
        ("operator-signing.key", &["flip", "2.0"]),
        ("release-signing.key", &push),
    ] {
        let path = fleet.dir().join("operator").join(key);
        open(&path);
        let refused = fleet.json(command);
        assert_ne!(refused.code, 0, "{refused}");
        assert!(refused.stderr.contains(key) && refused.stderr.contains("0644"), "{refused}");
        shut(&path);
    }
    let draft = fleet.scratch().join("next.toml");
    let (draft, root_key) = (draft.to_str().unwrap(), fleet.dir().join("keys/root.key"));
    fleet.json(&["root", "edit", "--out", draft]).expect_code(0);
    let issue = ["host", "issue", "host-9", "--fleet", "demo"];
    for (path, command) in [
        (&root_key, &["root", "sign", draft, "--key", root_key.to_str().unwrap()][..]),
        (&fleet.dir().join("coordinator/issuer/ca.key"), &issue),
    ] {
        open(path);
        let refused = fleet.json(command);
        assert_ne!(refused.code, 0, "{refused}");
        let key = path.file_name().unwrap().to_str().unwrap();
        assert!(refused.stderr.contains(key) && refused.stderr.contains("0644"), "{refused}");
        shut(path);
    }
    fleet.assert_all_serve(&one);
    flips(&fleet, &tree);
}

/// A TLS server with this certificate that takes one connection. Gives its address.
fn present(issued: &IssuedIdentity) -> String {
    let certificate = CertificateDer::from_pem_slice(issued.certificate.cert_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut session = ServerConnection::new(Arc::new(config)).unwrap();
        // It ends with the alert of a client that does not believe us.
        while session.is_handshaking() && session.complete_io(&mut stream).is_ok() {}
    });
    address
}
