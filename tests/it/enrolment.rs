//! How hosts come by certificates, get the next one and lose them: real processes, from a token to an attestation.

mod foreign;
mod renewal;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use muster_model::{Code, Digest, HostName};
use muster_mtls::{Address, Anchor, ConnectOptions, CredentialPaths, Credentials, introduce};
use muster_proto::v1;
use muster_proto::v1::enrolment_client::EnrolmentClient;
use muster_trust::{JoinToken, KeyAlgorithm, Signer as _, SigningKey, enrolment_possession, token_digest};
use serde_json::Value;
use tokio::runtime::Builder;

use crate::harness::{
    FLEET, Fleet, Host, Output, PATIENCE, artifact, configure, now, refusal_of, run_program, until,
    wait_until,
};

/// What an operator takes to a host.
struct Invitation {
    token: String,
    coordinator: String,
    ca_pin: String,
    root: PathBuf,
}

impl Invitation {
    #[track_caller]
    fn of(fleet: &Fleet, host: &str, more: &[&str]) -> Self {
        let made = fleet.json(&[&["host", "token", host, "--fleet", FLEET], more].concat()).expect_code(0);
        Self {
            token: made.text_at("/token"),
            coordinator: made.text_at("/coordinator"),
            ca_pin: made.text_at("/ca_pin"),
            root: fleet.dir().join("root.json"),
        }
    }

    /// Enrols into a folder, with these variables in the environment.
    fn accept(&self, folder: &Path, environment: &[(&str, &str)]) -> Output {
        self.accept_with(folder, &[], environment)
    }

    /// The same with further arguments.
    fn accept_with(&self, folder: &Path, more: &[&str], environment: &[(&str, &str)]) -> Output {
        let arguments = ["enrol", "--coordinator", &self.coordinator, "--ca-pin", &self.ca_pin];
        let folders = ["--root", text(&self.root), "--config", text(folder)];
        let environment = [&[("MUSTER_JOIN_TOKEN", self.token.as_str())], environment].concat();
        run_program("muster-agent", &[&arguments[..], &folders[..], more].concat(), &environment)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn folder_of(fleet: &Fleet, host: &str) -> PathBuf {
    fleet.dir().join("hosts").join(host)
}

/// The certificate that a host goes by now.
fn serial(folder: &Path) -> String {
    let given = folder.join("identity/current");
    let paths = |folder: &Path, certificate: &str, key: &str| CredentialPaths {
        certificate: folder.join(certificate),
        key: folder.join(key),
        ca: folder.ancestors().find_map(|it| Some(it.join("ca.pem")).filter(|ca| ca.exists())).unwrap(),
        crl: None,
    };
    let loaded = Credentials::load(&paths(&given, "certificate.pem", "key.pem"))
        .or_else(|_| Credentials::load(&paths(folder, "agent.pem", "agent.key")));
    loaded.unwrap().serial().to_string()
}

/// Starts the guard and the agent of a host that has enrolled.
fn start(host: &Host) {
    host.guard.start(&[]);
    host.agent.start(&[]);
}

/// Enrols a host, starts it, and puts it into the roster. `hosts` are connected then.
#[track_caller]
fn join(fleet: &Fleet, name: &str, hosts: usize) -> Host {
    Invitation::of(fleet, name, &[]).accept(&folder_of(fleet, name), &[]).expect_code(0);
    let host = fleet.outsider(name);
    start(&host);
    apply_pending(fleet, name);
    fleet.wait_connected(hosts);
    host
}

#[track_caller]
fn apply_pending(fleet: &Fleet, name: &str) {
    let roster = fleet.scratch().join(format!("with-{name}.toml"));
    fleet.json(&["roster", "propose", "--from-pending", "--out", text(&roster)]).expect_code(0);
    fleet.json(&["roster", "apply", text(&roster)]).expect_code(0);
}

#[track_caller]
fn wait_for_log(daemon: &crate::harness::Daemon, said: &str) {
    until(&format!("the log says {said:?}"), || daemon.log().contains(said));
}

/// Restarts the coordinator with other settings.
#[track_caller]
fn reconfigure(fleet: &Fleet, settings: &[(&str, i64)], hosts: usize) {
    let coordinator = fleet.coordinator();
    coordinator.kill();
    for (key, value) in settings {
        configure(&fleet.dir().join("coordinator/coordinator.toml"), key, *value);
    }
    coordinator.start(&[]);
    fleet.wait_connected(hosts);
}

/// The overrides and alarms that nobody has looked at.
#[track_caller]
fn open_overrides(fleet: &Fleet) -> Vec<String> {
    let status = fleet.json(&["status"]).expect_code(0).json();
    let open = status["open_overrides"].as_array().unwrap().iter();
    open.map(|entry| entry["kind"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn audit(fleet: &Fleet) -> Vec<Value> {
    let log = fleet.json(&["audit", "log"]).expect_code(0);
    log.json()["results"].as_array().unwrap_or_else(|| panic!("no entries: {log}")).clone()
}

#[track_caller]
fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
    said
}

#[test]
fn a_host_enrols_from_nothing_and_takes_part_once_a_roster_has_it() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let invitation = Invitation::of(&fleet, "host-x", &[]);
    let folder = folder_of(&fleet, "host-x");
    invitation.accept(&folder, &[]).expect_code(0);
    for (file, mode) in [("agent.key", 0o600), ("attestation.key", 0o600), ("agent.pem", 0o644)] {
        let found = fs::metadata(folder.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
    let host = fleet.outsider("host-x");
    start(&host);

    let key = fs::read_to_string(folder.join("attestation.pub")).unwrap();
    let pending = fleet.json(&["host", "list", "--pending"]).expect_code(0);
    assert_eq!(pending.text_at("/hosts/0/attestation_key"), key.trim());
    assert_eq!(pending.text_at("/hosts/0/pending/0"), FLEET);
    wait_for_log(&fleet.coordinator(), "host-not-in-roster");
    assert!(host.agent.is_running(), "it waits");
    apply_pending(&fleet, "host-x");
    fleet.wait_connected(2);
    let pending = fleet.json(&["host", "list", "--pending"]).expect_code(0);
    assert_eq!(pending.json()["hosts"].as_array().map(Vec::len), Some(0), "{pending}");
    fleet.json(&["roster", "propose", "--from-pending", "--out", "/dev/null/x"]).expect_code(11);

    fleet.json(&["deploy", "1.0"]).expect_code(0);
    until("it is let in", || host.serves().as_deref() == Some(one.as_str()));
    fleet.json(&["check", "--release", "1.0"]).expect_code(0);

    // Others' programs believe the chain and the list as well.
    let (ca, own) = (folder.join("ca.pem"), folder.join("agent.pem"));
    let list = fleet.dir().join("coordinator/state/crl.pem");
    let chain = ["-CAfile", text(&ca), "-untrusted", text(&own), text(&own)];
    openssl(&[&["verify", "-x509_strict"], &chain[..]].concat());
    openssl(&[&["verify", "-crl_check", "-CRLfile", text(&list)], &chain[..]].concat());
    assert!(!audit(&fleet).iter().any(|entry| entry.to_string().contains(&invitation.token)));
    assert!(!fleet.coordinator().log().contains(invitation.token.rsplit_once('.').unwrap().1));
}

#[test]
fn whoever_runs_it_again_goes_on_with_the_keys_that_are_there() {
    let fleet = Fleet::up(1);
    let invitation = Invitation::of(&fleet, "host-x", &[]);
    let folder = folder_of(&fleet, "host-x");
    for point in ["attestation-key", "key", "answered", "certificate"] {
        let crash = format!("agent.enrol.{point}");
        invitation.accept(&folder, &[("MUSTER_CRASH_AT", &crash)]).expect_code(-1);
        assert!(!folder.join("agent.toml").exists(), "the configuration is last");
    }
    let key = fs::read(folder.join("agent.key")).unwrap();
    let certificate = fs::read(folder.join("agent.pem")).unwrap();
    invitation.accept(&folder, &[]).expect_code(0);
    fs::remove_file(folder.join("agent.pem")).unwrap();
    // The coordinator may be killed in between as well: what it said it keeps.
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_connected(1);
    invitation.accept(&folder, &[]).expect_code(0);
    assert_eq!(fs::read(folder.join("agent.key")).unwrap(), key);
    assert_eq!(fs::read(folder.join("agent.pem")).unwrap(), certificate, "the same certificate again");
    let enrolled = audit(&fleet).iter().filter(|entry| entry["kind"] == "enrol").count();
    assert_eq!(enrolled, 1);
    start(&fleet.outsider("host-x"));
    apply_pending(&fleet, "host-x");
    fleet.wait_connected(2);
}

#[test]
fn a_coordinator_that_dies_before_its_answer_has_bound_the_token_or_has_not() {
    let fleet = Fleet::up(1);
    let coordinator = fleet.coordinator();
    let invitation = Invitation::of(&fleet, "host-x", &[]);
    let (folder, other) = (folder_of(&fleet, "host-x"), fleet.scratch().join("other"));
    coordinator.kill();
    coordinator.start(&[("MUSTER_CRASH_AT", "coordinator.ledger.before-append")]);
    until("it listens", || invitation.accept(&folder, &[]).code != 0 && !coordinator.is_running());
    coordinator.start(&[]);
    fleet.wait_connected(1);
    // Nothing was promised: the token is the first one's that comes.
    invitation.accept(&folder, &[]).expect_code(0);
    let refused = invitation.accept(&other, &[]).expect_code(1);
    assert!(refused.stderr.contains("token-bound-elsewhere"), "{refused}");
}

#[test]
fn of_two_machines_with_one_token_the_second_is_refused_and_somebody_is_told() {
    let fleet = Fleet::up(1);
    fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let invitation = Invitation::of(&fleet, "host-x", &[]);
    let (thief, folder) = (fleet.scratch().join("thief"), folder_of(&fleet, "host-x"));
    invitation.accept(&thief, &[]).expect_code(0);
    assert_eq!(open_overrides(&fleet), Vec::<String>::new());
    for _ in 0..3 {
        let refused = invitation.accept(&folder, &[]).expect_code(1);
        assert!(refused.stderr.contains("token-bound-elsewhere"), "{refused}");
    }
    assert_eq!(open_overrides(&fleet), ["alarm"], "once for each token");
    assert!(fleet.muster(&["status"]).expect_code(0).stdout.contains("evict it unless you know both"));
    // The keys tell who is in the roster's way.
    let pending = fleet.json(&["host", "list", "--pending"]).expect_code(0);
    let key = |folder: &Path| fs::read_to_string(folder.join("attestation.pub")).unwrap().trim().to_owned();
    assert_eq!(pending.text_at("/hosts/0/attestation_key"), key(&thief));
    assert_ne!(key(&thief), key(&folder));

    let evicted = fleet.json(&["host", "evict", "host-x", "--reason", "its token was stolen"]).expect_code(0);
    assert_eq!(evicted.json()["certificates"], 1, "{evicted}");
    assert!(invitation.accept(&thief, &[]).expect_code(1).stderr.contains("token-refused"));
    let anew = Invitation::of(&fleet, "host-x", &[]);
    anew.accept(&folder, &[]).expect_code(0);
    start(&fleet.outsider("host-x"));
    apply_pending(&fleet, "host-x");
    fleet.wait_connected(2);
    assert_eq!(
        open_overrides(&fleet).iter().map(String::as_str).collect::<BTreeSet<_>>(),
        ["alarm", "evict"].into()
    );
}

#[test]
fn a_token_that_does_not_hold_says_nothing_of_why() {
    let fleet = Fleet::up(1);
    let folder = |name: &str| fleet.scratch().join(name);
    let short = Invitation::of(&fleet, "host-x", &["--valid-for", "1s"]);
    let made = now();
    until("it has expired", || now().0 > made.0 + 2_000);
    let of_another = Invitation::of(&fleet, "host-y", &[]);
    let secret = of_another.token.rsplit_once('.').unwrap().1.to_owned();
    let renamed = Invitation { token: format!("host-x.{secret}"), ..Invitation::of(&fleet, "host-z", &[]) };
    let mut guess = JoinToken::new(HostName::new("host-x").unwrap(), [7; 32]).to_text().to_string();
    let guessed = Invitation { token: std::mem::take(&mut guess), ..Invitation::of(&fleet, "host-w", &[]) };

    let said = [(&short, "a"), (&renamed, "b"), (&guessed, "c")].map(|(invitation, name)| {
        let refused = invitation.accept(&folder(name), &[]).expect_code(1);
        assert!(refused.stderr.contains("token-refused"), "{refused}");
        assert!(!folder(name).join("agent.pem").exists());
        refused.stderr
    });
    assert!(said.iter().all(|text| *text == said[0]), "{said:?}");
    let log = fleet.coordinator().log();
    for reason in ["the token has expired", "the token was made for another host", "there is no such token"] {
        assert!(log.contains(reason), "{reason}");
        assert!(audit(&fleet).iter().any(|entry| entry.to_string().contains(reason)), "{reason}");
    }
    assert_eq!(open_overrides(&fleet), Vec::<String>::new());
    // Whom it was made for can still use it.
    of_another.accept(&folder("y"), &[]).expect_code(0);
}

#[test]
fn a_host_enrols_with_nobody_but_the_pinned_authority() {
    let (fleet, other) = (Fleet::up(1), Fleet::up(1));
    let theirs = Invitation::of(&other, "host-x", &[]);
    let wrong_pin = Invitation { ca_pin: theirs.ca_pin.clone(), ..Invitation::of(&fleet, "host-x", &[]) };
    let folder = fleet.scratch().join("x");
    let refused = wrong_pin.accept(&folder, &[]).expect_code(1);
    assert!(refused.stderr.contains("not trusted"), "{refused}");
    assert!(!folder.join("agent.pem").exists() && !folder.join("ca.pem").exists());
    // The port for peers is none for strangers.
    let main = fleet.address().to_string();
    let wrong_port = Invitation { coordinator: main, ..Invitation::of(&fleet, "host-x", &[]) };
    wrong_port.accept(&folder, &[]).expect_code(1);
    let caller =
        crate::harness::Caller::connect(&fleet, &fleet.credentials(muster_mtls::Role::Agent, "host-1"));
    for path in muster_coordinator::FOR_STRANGERS {
        let denied = caller.as_ref().unwrap().call(path).unwrap_err();
        assert_eq!(refusal_of(&denied).code(), Some(Code::NotAllowed), "{path}");
    }
}

/// What asks `openssl` for a request with a new key of the kind that is taken.
fn new_key(key: &Path) -> [&str; 9] {
    ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", text(key)]
}

/// A request for a certificate authority that is a coordinator.
fn odd_request(folder: &Path) -> Vec<u8> {
    let (key, der) = (folder.join("odd.key"), folder.join("odd.der"));
    let names = "subjectAltName=URI:spiffe://muster.local/coordinator/coordinator,DNS:localhost";
    let asked =
        ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", names, "-addext", "keyUsage=keyCertSign"];
    let rest = [
        "-addext",
        "extendedKeyUsage=serverAuth",
        "-subj",
        "/CN=coordinator",
        "-outform",
        "DER",
        "-out",
        text(&der),
    ];
    openssl(&[&new_key(&key)[..], &asked[..], &rest[..]].concat());
    fs::read(&der).unwrap()
}

#[test]
fn strangers_who_say_nothing_hold_up_nobody_for_long() {
    let fleet = Fleet::up(1);
    let invitation = Invitation::of(&fleet, "host-x", &[]);
    // More than have a place, each of them silent.
    let silent: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(&invitation.coordinator).unwrap()).collect();
    fleet.json(&["status"]).expect_code(0);
    let folder = folder_of(&fleet, "host-x");
    wait_until("there is room again", PATIENCE, || (invitation.accept(&folder, &[]).code == 0).then_some(()));
    wait_for_log(&fleet.coordinator(), "TLS handshake given up");
    fleet.wait_connected(1);
    drop(silent);
}

#[test]
fn of_a_request_nothing_is_taken_but_its_key() {
    let fleet = Fleet::up(1);
    let invitation = Invitation::of(&fleet, "host-x", &[]);
    let request = odd_request(fleet.scratch());
    let token: JoinToken = invitation.token.parse().unwrap();
    let attestation = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
    let message = enrolment_possession(&token_digest(token.secret()), token.host(), &request);
    let ask = |possession: Vec<u8>, request: Vec<u8>| {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address: Address = invitation.coordinator.parse().unwrap();
        let pin: Digest = invitation.ca_pin.parse().unwrap();
        let request = v1::EnrolRequest {
            secret: token.secret().to_vec(),
            host: "host-x".to_owned(),
            request,
            attestation_key: attestation.public().to_string(),
            possession,
        };
        runtime.block_on(async {
            let door = introduce(&address, Anchor::Pinned(pin), ConnectOptions::default()).await.unwrap();
            EnrolmentClient::new(door.channel)
                .enrol(request)
                .await
                .map(|answer| answer.into_inner().certificate)
        })
    };
    let good = attestation.sign(&message).unwrap();
    for (possession, request) in [
        (attestation.sign(b"something else").unwrap(), request.clone()),
        (Vec::new(), request.clone()),
        (good.clone(), [request.clone(), vec![0]].concat()),
    ] {
        let refused = ask(possession, request).unwrap_err();
        assert_eq!(refusal_of(&refused).code(), Some(Code::RequestRefused), "{refused}");
    }
    let pem = fleet.scratch().join("odd.pem");
    fs::write(&pem, ask(good, request).unwrap()).unwrap();
    let shown = openssl(&["x509", "-in", text(&pem), "-noout", "-text"]);
    for there in ["CA:FALSE", "URI:spiffe://muster.local/agent/host-x", "TLS Web Client Authentication"] {
        assert!(shown.contains(there), "{there}: {shown}");
    }
    for absent in ["CA:TRUE", "localhost", "/coordinator", "TLS Web Server", "Certificate Sign"] {
        assert!(!shown.contains(absent), "{absent}: {shown}");
    }
}

#[test]
fn the_first_hosts_of_a_fleet_wait_for_its_first_roster() {
    let fleet = Fleet::up(1);
    let (name, folder) = ("host-x", folder_of(&fleet, "host-x"));
    let made = fleet.json(&["host", "token", name, "--fleet", "other"]).expect_code(0);
    let invitation = Invitation {
        token: made.text_at("/token"),
        coordinator: made.text_at("/coordinator"),
        ca_pin: made.text_at("/ca_pin"),
        root: fleet.dir().join("root.json"),
    };
    invitation.accept(&folder, &[]).expect_code(0);
    start(&fleet.outsider(name));
    wait_for_log(&fleet.outsider(name).agent, "fleet-unknown");
    let roster = fleet.scratch().join("first.toml");
    let propose = ["roster", "propose", "--from-pending", "--fleet", "other", "--out", text(&roster)];
    fleet.json(&propose).expect_code(0);
    fleet.json(&["roster", "apply", text(&roster)]).expect_code(0);
    until("it is connected", || {
        let status = fleet.json(&["status", "--fleet", "other"]).expect_code(0).json();
        status["hosts_connected"] == 1
    });
}

#[test]
fn a_host_whose_keys_were_stolen_enrols_with_others() {
    let fleet = Fleet::up(1);
    let host = join(&fleet, "host-x", 2);
    let keys = || ["attestation.key", "agent.key"].map(|file| fs::read(host.folder().join(file)).unwrap());
    let stolen = keys();
    fleet.json(&["host", "evict", "host-x", "--reason", "its keys were stolen"]).expect_code(0);
    host.agent.kill();
    let again = Invitation::of(&fleet, "host-x", &[]);
    again.accept_with(host.folder(), &["--new-keys"], &[]).expect_code(0);
    let new = keys();
    assert!(new[0] != stolen[0] && new[1] != stolen[1]);
    assert_eq!(fs::read(host.folder().join("agent.key.replaced")).unwrap(), stolen[1]);
    again.accept(host.folder(), &[]).expect_code(0);
    assert_eq!(keys(), new, "an attempt that is repeated goes on with them");
    again.accept_with(host.folder(), &["--new-keys"], &[]).expect_code(1);
}

#[test]
fn an_evicted_host_is_cut_off_at_once_and_told_so() {
    let fleet = Fleet::up(2);
    fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let host = fleet.host(2);
    fleet.json(&["host", "evict", "host-2", "--reason", ""]).expect_code(1);
    fleet.wait_connected(2);
    let evicted = fleet.json(&["host", "evict", "host-2", "--reason", "stolen"]).expect_code(0);
    assert_eq!(evicted.json()["connections"], 1, "{evicted}");
    wait_for_log(&host.agent, "this host was evicted");
    fleet.wait_connected(1);
    assert_eq!(open_overrides(&fleet), ["evict"]);
    assert!(fleet.muster(&["status"]).expect_code(0).stdout.contains("host-evicted at host-2"));
    // It outlives a restart of both.
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_connected(1);
    host.agent.kill();
    host.agent.start(&[]);
    fleet.json(&["check", "--release", "1.0"]).expect_code(11).expect_blocker("host-missing", "host-2", "");

    host.agent.kill();
    Invitation::of(&fleet, "host-2", &[]).accept(host.folder(), &[]).expect_code(0);
    host.agent.start(&[]);
    fleet.wait_connected(2);
}

#[test]
fn certificates_that_are_issued_by_hand_count_and_a_coordinator_takes_its_own_over() {
    let fleet = Fleet::up(1);
    let folder = |name: &str| fleet.scratch().join(name);
    let issue = |name: &str, role: &str, more: &[&str]| {
        let out = folder(name);
        let arguments = ["certificate", "issue", name, "--role", role, "--out", text(&out)];
        fleet.json(&[&arguments[..], more].concat())
    };
    issue("carol", "viewer", &[]).expect_code(0);
    issue("carol", "viewer", &[]).expect_code(2);
    issue("dave", "coordinator", &[]).expect_code(2);
    let (certificate, key) = (folder("carol").join("certificate.pem"), folder("carol").join("key.pem"));
    let context =
        fleet.context_with("carol.toml", &[("certificate", text(&certificate)), ("key", text(&key))]);
    let carol = |arguments: &[&str]| {
        crate::harness::run(
            &[arguments, &["--output", "json"]].concat(),
            &[("MUSTER_CONTEXT", text(&context))],
        )
    };
    carol(&["status"]).expect_code(0);
    carol(&["host", "evict", "host-1", "--reason", "spite"]).expect_code(12).expect_blocker(
        "not-allowed",
        "",
        "",
    );

    issue("coordinator", "coordinator", &["--san", "127.0.0.1"]).expect_code(0);
    let own = fleet.dir().join("coordinator");
    for (from, to) in [("certificate.pem", "coordinator.pem"), ("key.pem", "coordinator.key")] {
        fs::copy(folder("coordinator").join(from), own.join(to)).unwrap();
    }
    wait_for_log(&fleet.coordinator(), "certificate files were read again");
    fleet.json(&["status"]).expect_code(0);
    fleet.wait_connected(1);
}

#[test]
fn an_operator_renews_and_revokes_certificates() {
    let fleet = Fleet::up(1);
    let before = fleet.json(&["certificate", "show"]).expect_code(0).text_at("/serial");
    let old = ["operator.pem", "operator.key"]
        .map(|file| fs::read(fleet.dir().join("operator").join(file)).unwrap());
    let renewed = fleet.json(&["certificate", "renew"]).expect_code(0).text_at("/serial");
    assert_ne!(before, renewed);
    assert_eq!(fleet.json(&["certificate", "show"]).expect_code(0).text_at("/serial"), renewed);
    fleet.json(&["status"]).expect_code(0);

    let (certificate, key) = (fleet.scratch().join("old.pem"), fleet.scratch().join("old.key"));
    fs::write(&certificate, &old[0]).unwrap();
    fs::write(&key, &old[1]).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let context = fleet.context_with("old.toml", &[("certificate", text(&certificate)), ("key", text(&key))]);
    let as_before = |arguments: &[&str]| {
        crate::harness::run(
            &[arguments, &["--output", "json"]].concat(),
            &[("MUSTER_CONTEXT", text(&context))],
        )
    };
    as_before(&["status"]).expect_code(0);
    // What a thief has renewed is not told apart from what its owner has, unless somebody knows.
    let stolen = as_before(&["certificate", "renew"]).expect_code(0).text_at("/serial");
    as_before(&["status"]).expect_code(0);
    fleet.json(&["certificate", "revoke", &stolen, "--reason", "a thief's"]).expect_code(0);
    as_before(&["status"]).expect_code(1);
    let alone = ["certificate", "revoke", &before, "--alone", "--reason", "the laptop was lost"];
    assert_eq!(fleet.json(&alone).expect_code(0).json()["renewed"], 0);
    fleet.json(&["status"]).expect_code(0);
    let all = ["certificate", "revoke", &before, "--reason", "the laptop was lost"];
    let own = fleet.json(&all).expect_code(12);
    assert!(own.stdout.contains("that you come with would go as well"), "{own}");
    fleet.json(&["operator", "add", "bob"]).expect_code(0);
    let bob = fleet.dir().join("people/bob/context.toml");
    let as_bob = [("MUSTER_CONTEXT", text(&bob))];
    let revoked = crate::harness::run(&[&all[..], &["--output", "json"]].concat(), &as_bob).expect_code(0);
    assert_eq!(revoked.json()["renewed"], 2, "{revoked}");
    fleet.json(&["status"]).expect_code(1);
    until("the list names it", || {
        let list = fleet.dir().join("coordinator/state/crl.pem");
        let shown = openssl(&["crl", "-in", text(&list), "-noout", "-text"]).to_lowercase();
        shown.contains(before.trim_start_matches('0'))
    });
}
