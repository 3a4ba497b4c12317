//! Who is let in, and how much the acceptor takes on.

use std::process::{Command, Output, Stdio};

use rustls::HandshakeKind;
use rustls::client::Resumption;

use super::*;

const CLIENT: &[ExtendedKeyUsagePurpose] = &[ExtendedKeyUsagePurpose::ClientAuth];

#[tokio::test]
async fn a_good_handshake_names_the_peer() {
    let authority = authority();
    let coordinator = Coordinator::start(&server_tls(&authority), Limits::default()).await;
    for role in Role::ALL {
        let credentials = credentials(&authority, role, "host-1");
        let channel = coordinator.connect(&ClientTls::new(&credentials).unwrap()).await.unwrap();
        call(&channel).await.unwrap();
        let peer = coordinator.last_peer();
        assert_eq!(peer.identity, identity(role, "host-1"));
        assert_eq!(&peer.serial, credentials.serial());
        assert_eq!(peer.validity.not_after, credentials.validity().not_after);
        assert_eq!(peer.address.ip(), coordinator.address.ip());
    }
    assert_eq!(coordinator.activity.accepted(), 5);
    assert_eq!(coordinator.activity.refused(), 0);
    eventually("all connections are closed", || coordinator.activity.connections() == 0).await;
}

#[tokio::test]
async fn a_localhost_name_works_as_well_as_an_address() {
    let authority = authority();
    let coordinator = Coordinator::start(&server_tls(&authority), Limits::default()).await;
    let by_name: Address = format!("https://localhost:{}", coordinator.address.port()).parse().unwrap();
    let tls = client_tls(&authority, Role::Agent, "host-1");
    let channel = failure(connect(&by_name, &tls, ConnectOptions::default()).await).unwrap();
    call(&channel).await.unwrap();
}

#[tokio::test]
async fn clients_with_unacceptable_certificates_are_refused_and_the_log_says_why() {
    let (authority, other) = (authority(), self::authority());
    let coordinator = Coordinator::start(&server_tls(&authority), Limits::default()).await;
    let expired = Validity { not_before: ago(2 * HOUR), not_after: ago(HOUR) };
    let future = Validity { not_before: now().after(HOUR), not_after: now().after(2 * HOUR) };
    let cases = [
        ("of another authority", issue(&other, Role::Agent, "host-1", an_hour()), "UnknownIssuer"),
        ("expired", issue(&authority, Role::Agent, "host-1", expired), "expired"),
        ("not valid yet", issue(&authority, Role::Agent, "host-1", future), "not valid yet"),
    ];
    for (what, issued, reason) in cases {
        keep_log();
        let tls = ClientTls::new(&credentials_of(&issued, &authority, None)).unwrap();
        let failure = coordinator.connect(&tls).await.unwrap_err();
        assert!(matches!(failure, ConnectFailure::Refused { .. }), "{what}: {failure:?}");
        let log = log();
        assert!(log.contains("TLS handshake refused") && log.contains("peer=127.0.0.1:"), "{what}: {log}");
        assert!(log.contains(reason), "{what}: {log}");
    }
    assert_eq!(coordinator.activity.refused(), 3);
    assert_eq!(coordinator.activity.accepted(), 0);
}

#[tokio::test]
async fn a_certificate_without_exactly_one_identity_of_this_fleet_is_refused() {
    let authority = authority();
    let coordinator = Coordinator::start(&server_tls(&authority), Limits::default()).await;
    let agent = "spiffe://fleet.example/agent/host-1";
    let server_only = [ExtendedKeyUsagePurpose::ServerAuth];
    let cases: [(&[&str], &[ExtendedKeyUsagePurpose], &str); 7] = [
        (&[], CLIENT, "it has no URI"),
        (&[agent, "spiffe://fleet.example/operator/alice"], CLIENT, "has 2 URIs"),
        (&[agent, "https://fleet.example/"], CLIENT, "has 2 URIs"),
        (&["https://fleet.example/agent/host-1"], CLIENT, "begins with `spiffe://`"),
        (&["spiffe://fleet.example/root/host-1"], CLIENT, "`root` is not a role"),
        (&["spiffe://other.example/agent/host-1"], CLIENT, "is not of the trust domain"),
        (&[agent], &server_only, "does not allow extended key usage for client"),
    ];
    for (uris, usages, reason) in cases {
        keep_log();
        let (cert, key) = odd_leaf(&authority, uris, usages);
        let config = Arc::new(raw_client(&authority, Some((&cert, &key))));
        assert!(raw_connect(coordinator.address, &config).await.is_err(), "{uris:?}");
        let log = log();
        assert!(log.contains(reason), "{uris:?} must be refused because {reason}: {log}");
    }
    // The same client with a good certificate gets in, so that the cases above fail for their own reason.
    let (cert, key) = odd_leaf(&authority, &[agent], CLIENT);
    let config = Arc::new(raw_client(&authority, Some((&cert, &key))));
    raw_connect(coordinator.address, &config).await.unwrap();
}

#[tokio::test]
async fn a_client_without_certificate_or_without_http2_is_refused() {
    let authority = authority();
    let coordinator = Coordinator::start(&server_tls(&authority), Limits::default()).await;
    keep_log();
    let config = Arc::new(raw_client(&authority, None));
    assert!(raw_connect(coordinator.address, &config).await.is_err());
    assert!(log().contains("certificate"), "{}", log());

    keep_log();
    let issued = issue(&authority, Role::Agent, "host-1", an_hour());
    let mut config = raw_client(&authority, Some((&issued.certificate.cert_pem, &issued.key_pem)));
    config.alpn_protocols.clear();
    assert!(raw_connect(coordinator.address, &Arc::new(config)).await.is_err());
    assert!(log().contains("does not speak HTTP/2"), "{}", log());
}

/// `openssl s_client` is the independent opinion, and the only client here that still speaks TLS 1.2.
#[tokio::test]
async fn tls_1_2_is_refused() {
    let authority = authority();
    let coordinator = Coordinator::start(&server_tls(&authority), Limits::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let paths = CredentialPaths::in_dir(dir.path());
    issue(&authority, Role::Agent, "host-1", an_hour()).save(&paths, &authority).unwrap();
    let address = coordinator.address.to_string();
    let s_client = |version: &'static str| {
        let (paths, address) = (paths.clone(), address.clone());
        tokio::task::spawn_blocking(move || -> Output {
            Command::new("openssl")
                .args(["s_client", version, "-alpn", "h2", "-connect", &address, "-cert"])
                .arg(&paths.certificate)
                .arg("-key")
                .arg(&paths.key)
                .arg("-CAfile")
                .arg(&paths.ca)
                .stdin(Stdio::null())
                .output()
                .expect("openssl is installed")
        })
    };
    let new = s_client("-tls1_3").await.unwrap();
    assert!(String::from_utf8_lossy(&new.stdout).contains("New, TLSv1.3"), "{new:?}");
    let old = s_client("-tls1_2").await.unwrap();
    assert!(!old.status.success(), "{old:?}");
    assert!(String::from_utf8_lossy(&old.stderr).contains("protocol version"), "{old:?}");
}

#[tokio::test]
async fn sessions_are_not_resumed() {
    let authority = authority();
    let coordinator = Coordinator::start(&server_tls(&authority), Limits::default()).await;
    let issued = issue(&authority, Role::Agent, "host-1", an_hour());
    let mut config = raw_client(&authority, Some((&issued.certificate.cert_pem, &issued.key_pem)));
    config.resumption = Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    for _ in 0..3 {
        let stream = raw_connect(coordinator.address, &config).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn a_peer_that_never_finishes_is_cut_off_and_holds_up_nobody() {
    let authority = authority();
    let limits = Limits { handshake_timeout: Duration::from_secs(1), ..Limits::default() };
    let coordinator = Coordinator::start(&server_tls(&authority), limits).await;
    let mut silent = TcpStream::connect(coordinator.address).await.unwrap();
    eventually("the silent peer is being waited for", || coordinator.activity.handshakes() == 1).await;

    let channel = coordinator.connect(&client_tls(&authority, Role::Agent, "host-1")).await.unwrap();
    call(&channel).await.unwrap();

    let end = tokio::time::timeout(DEADLINE, silent.read(&mut [0; 16])).await.expect("the server hangs up");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    eventually("it is counted", || coordinator.activity.timed_out() == 1).await;
    assert_eq!(coordinator.activity.handshakes(), 0);
}

#[tokio::test]
async fn a_flood_of_handshakes_is_bounded() {
    let authority = authority();
    let limits = Limits { handshake_timeout: Duration::from_secs(1), handshakes_max: 4, ..Limits::default() };
    let coordinator = Coordinator::start(&server_tls(&authority), limits).await;
    let mut flood = Vec::new();
    for _ in 0..8 {
        flood.push(TcpStream::connect(coordinator.address).await.unwrap());
    }
    let activity = coordinator.activity.clone();
    let mut most = 0;
    eventually("the flood is over", || {
        most = most.max(activity.handshakes());
        activity.timed_out() == 8
    })
    .await;
    assert_eq!(most, 4);
    let channel = coordinator.connect(&client_tls(&authority, Role::Agent, "host-1")).await.unwrap();
    call(&channel).await.unwrap();
}

#[tokio::test]
async fn connections_are_bounded_and_the_next_waits_for_its_turn() {
    let authority = authority();
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let coordinator = Coordinator::start(&server_tls(&authority), limits).await;
    let (first_tls, second_tls) =
        (client_tls(&authority, Role::Agent, "host-1"), client_tls(&authority, Role::Agent, "host-2"));
    let first = coordinator.connect(&first_tls).await.unwrap();
    call(&first).await.unwrap();

    let impatient = ConnectOptions { timeout: Duration::from_millis(200), ..ConnectOptions::default() };
    let waited = failure(connect(&coordinator.address(), &second_tls, impatient).await).unwrap_err();
    assert!(matches!(waited, ConnectFailure::TimedOut { stage: Stage::Tls, .. }), "{waited:?}");

    drop(first);
    let second = coordinator.connect(&second_tls).await.unwrap();
    call(&second).await.unwrap();
    assert_eq!(coordinator.last_peer().identity, identity(Role::Agent, "host-2"));
    assert_eq!(coordinator.activity.connections(), 1);
}

#[test]
fn only_a_coordinator_can_be_a_server() {
    let authority = authority();
    for role in Role::ALL {
        let result = ServerTls::new(&credentials(&authority, role, "x"));
        assert_eq!(result.is_ok(), role == Role::Coordinator, "{role}");
    }
}
