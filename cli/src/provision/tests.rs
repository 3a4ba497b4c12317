use std::os::unix::fs::PermissionsExt as _;

use muster_guard::GuardConfig;
use muster_model::{BootGate, HostName};
use muster_mtls::Credentials;

use super::host::AgentFile;
use super::*;
use crate::context::Context;
use crate::exit::Exit;

fn init_options() -> InitOptions {
    InitOptions {
        trust_domain: TrustDomain::new("muster.local").unwrap(),
        coordinator: "127.0.0.1:7400".parse().unwrap(),
        coordinator_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        enrolment_port: 7401,
        operator: IdentityName::new("operator").unwrap(),
        fleet: Some(FleetName::new("demo").unwrap()),
        now: crate::clock::unix_time(),
    }
}

fn host_options() -> HostOptions {
    HostOptions {
        coordinator: "127.0.0.1:7400".parse().unwrap(),
        fleets: vec![FleetName::new("demo").unwrap()],
        driver: Driver::Link,
        state: None,
        link: None,
        clock_error_ms: None,
        valid_for: Duration::from_secs(3600),
        now: crate::clock::unix_time(),
    }
}

fn name(text: &str) -> HostName {
    HostName::new(text).unwrap()
}

/// Every path below `dir` with its permission bits.
fn listing(dir: &Path) -> String {
    fn walk(base: &Path, dir: &Path, lines: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            lines.push(format!("{} {mode:04o}", path.strip_prefix(base).unwrap().display()));
            if metadata.is_dir() {
                walk(base, &path, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(dir, dir, &mut lines);
    lines.sort();
    lines.join("\n")
}

#[test]
fn the_layout_is_private_and_complete() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("fleet");
    init(&dir, &init_options()).unwrap();
    issue_host(&dir, &name("host-1"), &host_options()).unwrap();
    insta::assert_snapshot!(listing(&dir), @"
    audit.pub 0644
    ca 0700
    ca/ca.key 0600
    ca/ca.pem 0644
    coordinator 0700
    coordinator/audit.key 0600
    coordinator/ca.pem 0644
    coordinator/coordinator.key 0600
    coordinator/coordinator.pem 0644
    coordinator/coordinator.toml 0644
    coordinator/issuer 0700
    coordinator/issuer/ca.key 0600
    coordinator/issuer/ca.pem 0644
    coordinator/root.json 0644
    hosts 0700
    hosts/host-1 0700
    hosts/host-1/agent.key 0600
    hosts/host-1/agent.pem 0644
    hosts/host-1/agent.toml 0644
    hosts/host-1/attestation.key 0600
    hosts/host-1/attestation.pub 0644
    hosts/host-1/ca.pem 0644
    hosts/host-1/guard.toml 0644
    hosts/host-1/root.json 0644
    keys 0700
    keys/root.key 0600
    operator 0700
    operator/ca.pem 0644
    operator/context.toml 0644
    operator/operator-signing.key 0600
    operator/operator.key 0600
    operator/operator.pem 0644
    operator/release-signing.key 0600
    operator/root.json 0644
    root.json 0644
    ");
}

#[test]
fn the_operators_context_works_and_fits_the_root() {
    let temporary = tempfile::tempdir().unwrap();
    let made = init(temporary.path(), &init_options()).unwrap();
    let context = Context::read(&made.context).unwrap();
    let root = context.trust_root().unwrap();
    assert!(root.root().is_solo());
    assert_eq!(
        root.root().role(SigningRole::Operator).keys,
        [context.operator_key().unwrap().public().clone()]
    );
    assert_eq!(
        root.root().role(SigningRole::Release).keys,
        [context.release_key().unwrap().public().clone()]
    );
    let credentials = Credentials::load(&context.credential_paths()).unwrap();
    assert_eq!(credentials.identity().to_string(), "spiffe://muster.local/operator/operator");
    assert_eq!(context.fleet_folder().as_deref(), Some(temporary.path()));
    assert_eq!(context.fleet().map(FleetName::as_str), Some("demo"));
}

#[test]
fn a_folder_with_anything_in_it_is_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    std::fs::write(temporary.path().join("precious"), b"x").unwrap();
    let error = init(temporary.path(), &init_options()).unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);
}

#[test]
fn the_guard_accepts_what_is_written_for_it() {
    let temporary = tempfile::tempdir().unwrap();
    init(temporary.path(), &init_options()).unwrap();
    let command = vec!["./bin/server".to_owned(), "--port".to_owned(), "1".to_owned()];
    let bundle = issue_host(
        temporary.path(),
        &name("host-1"),
        &HostOptions {
            driver: Driver::Supervise { command: command.clone(), stop_timeout_ms: Some(900) },
            ..host_options()
        },
    )
    .unwrap();
    let path = bundle.folder.join("guard.toml");
    GuardConfig::load(&path).unwrap();
    let config: GuardConfig = toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(config.state_dir, bundle.folder);
    assert_eq!(config.fleets[0].link, bundle.folder.join("fleets/demo/current"));
    assert_eq!(config.fleets[0].releases, bundle.folder.join("fleets/demo/releases"));
    let muster_guard::Driver::Supervise(service) = &config.fleets[0].driver else {
        panic!("it is supervised")
    };
    assert_eq!(service.command, command);

    let elsewhere = HostOptions {
        state: Some("/var/lib/muster".into()),
        link: Some("/run/muster/current".into()),
        ..host_options()
    };
    let bundle = issue_host(temporary.path(), &name("host-2"), &elsewhere).unwrap();
    let config: GuardConfig =
        toml::from_str(&std::fs::read_to_string(bundle.folder.join("guard.toml")).unwrap()).unwrap();
    assert_eq!(config.socket, Path::new("/var/lib/muster/guard.sock"));
    assert_eq!(config.fleets[0].link, Path::new("/run/muster/current"));
    let agent: AgentFile =
        toml::from_str(&std::fs::read_to_string(bundle.folder.join("agent.toml")).unwrap()).unwrap();
    assert_eq!(agent.guard_socket, config.socket);
    assert_eq!(agent.state, config.state_dir);
    assert_eq!(agent.fleets[0].boot_gate, BootGate::Volatile, "/run is emptied by a boot");
    assert_eq!(agent.clock_error_ms, None, "only the host's time daemon can tell");
}

#[test]
fn issued_hosts_are_listed_with_the_key_for_the_roster() {
    let temporary = tempfile::tempdir().unwrap();
    init(temporary.path(), &init_options()).unwrap();
    assert_eq!(hosts(temporary.path()).unwrap(), []);
    let second = issue_host(temporary.path(), &name("host-2"), &host_options()).unwrap();
    let first = issue_host(temporary.path(), &name("host-1"), &host_options()).unwrap();
    assert_eq!(hosts(temporary.path()).unwrap(), [first.clone(), second]);
    let key = SigningKey::read(&first.folder.join("attestation.key")).unwrap();
    assert_eq!(key.public(), &first.attestation_key);

    let again = issue_host(temporary.path(), &name("host-1"), &host_options()).unwrap_err();
    assert_eq!(again.exit(), Exit::Usage);
    let agent = first.folder.join("agent.toml");
    let edited = format!("jobs = 2\n{}", std::fs::read_to_string(&agent).unwrap());
    std::fs::write(&agent, edited).unwrap();
    std::fs::remove_file(first.folder.join("agent.key")).unwrap();
    assert_eq!(hosts(temporary.path()).unwrap()[0].certificate_expires, None);
}

#[test]
fn a_name_is_listened_for_on_all_addresses() {
    for (address, listen) in [
        ("127.0.0.1:7400", "127.0.0.1:7400"),
        ("[::1]:7400", "[::1]:7400"),
        ("coordinator.example:7443", "0.0.0.0:7400"),
    ] {
        assert_eq!(listen_address(&address.parse().unwrap(), 7400), listen);
    }
}

#[test]
fn a_persons_context_reaches_the_coordinator_and_signs_nothing_by_itself() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("fleet");
    init(&dir, &init_options()).unwrap();
    let bob = IdentityName::new("bob").unwrap();
    let options = PersonOptions {
        role: Role::Pipeline,
        operator_key: None,
        release_key: Some("ssh-agent:bob.pub".parse().unwrap()),
        coordinator: None,
        fleet: None,
        valid_for: Duration::from_secs(3600),
        now: crate::clock::unix_time(),
    };
    let person = add_person(&dir, &bob, &options).unwrap();
    insta::assert_snapshot!(listing(&person.folder), @"
    ca.pem 0644
    certificate.key 0600
    certificate.pem 0644
    context.toml 0644
    root.json 0644
    ");
    let context = Context::read(&person.folder.join(CONTEXT_FILE)).unwrap();
    let credentials = Credentials::load(&context.credential_paths()).unwrap();
    assert_eq!(credentials.identity().to_string(), "spiffe://muster.local/pipeline/bob");
    assert_eq!(credentials.validity().not_after, person.certificate_expires);
    let first = Context::read(&dir.join("operator/context.toml")).unwrap();
    assert_eq!(context.trust_root().unwrap().root(), first.trust_root().unwrap().root());
    assert_eq!((context.fleet(), context.coordinator()), (first.fleet(), first.coordinator()));
    assert_eq!(context.audit_key(), first.audit_key());
    assert_eq!(context.operator_key().unwrap_err().exit(), Exit::Usage);
    let again = add_person(&dir, &bob, &options).unwrap_err();
    assert!(again.to_string().contains("has a context already"), "{again}");
    assert_eq!(std::fs::read_dir(dir.join("people")).unwrap().count(), 1);
}
