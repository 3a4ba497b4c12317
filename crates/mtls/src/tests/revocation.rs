//! Revocation lists, and exchanging certificates while the server runs.

use super::*;

fn crl(authority: &Authority, revoked: &[&Serial], validity: Validity) -> String {
    let revoked: Vec<_> =
        revoked.iter().map(|serial| Revoked { serial: (*serial).clone(), since: now() }).collect();
    authority.revocation_list(&revoked, validity).unwrap()
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_others_are_not() {
    let authority = authority();
    let bad = issue(&authority, Role::Agent, "host-1", an_hour());
    let good = issue(&authority, Role::Agent, "host-2", an_hour());
    let list = crl(&authority, &[&bad.certificate.serial], an_hour());
    let server = issue(&authority, Role::Coordinator, "c1", an_hour());
    let server_tls = ServerTls::new(&credentials_of(&server, &authority, Some(&list))).unwrap();
    let coordinator = Coordinator::start(&server_tls, Limits::default()).await;

    keep_log();
    let tls = ClientTls::new(&credentials_of(&bad, &authority, None)).unwrap();
    let failure = coordinator.connect(&tls).await.unwrap_err();
    assert!(matches!(failure, ConnectFailure::Refused { .. }), "{failure:?}");
    assert!(log().contains("Revoked"), "{}", log());

    let tls = ClientTls::new(&credentials_of(&good, &authority, None)).unwrap();
    call(&coordinator.connect(&tls).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_client_with_a_list_refuses_a_revoked_coordinator() {
    let authority = authority();
    let server = issue(&authority, Role::Coordinator, "c1", an_hour());
    let server_tls = ServerTls::new(&credentials_of(&server, &authority, None)).unwrap();
    let coordinator = Coordinator::start(&server_tls, Limits::default()).await;
    let list = crl(&authority, &[&server.certificate.serial], an_hour());
    let agent = issue(&authority, Role::Agent, "host-1", an_hour());
    let tls = ClientTls::new(&credentials_of(&agent, &authority, Some(&list))).unwrap();
    let failure = coordinator.connect(&tls).await.unwrap_err();
    assert!(matches!(failure, ConnectFailure::NotTrusted { .. }), "{failure:?}");
}

#[tokio::test]
async fn a_stale_list_shuts_everyone_out_until_the_next_one_is_there() {
    let authority = authority();
    let stale = Validity { not_before: ago(2 * HOUR), not_after: ago(HOUR) };
    let server = issue(&authority, Role::Coordinator, "c1", an_hour());
    let with_stale = credentials_of(&server, &authority, Some(&crl(&authority, &[], stale)));
    assert!(!with_stale.crl_validity().unwrap().contains(now()));
    let server_tls = ServerTls::new(&with_stale).unwrap();
    let coordinator = Coordinator::start(&server_tls, Limits::default()).await;
    let tls = client_tls(&authority, Role::Agent, "host-1");

    keep_log();
    let failure = coordinator.connect(&tls).await.unwrap_err();
    assert!(matches!(failure, ConnectFailure::Refused { .. }), "{failure:?}");
    assert!(log().contains("revocation list"), "{}", log());

    let fresh = crl(&authority, &[], an_hour());
    server_tls.replace(&credentials_of(&server, &authority, Some(&fresh))).unwrap();
    call(&coordinator.connect(&tls).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_new_list_leaves_connections_open_and_the_check_finds_them() {
    let authority = authority();
    let server = issue(&authority, Role::Coordinator, "c1", an_hour());
    let empty = crl(&authority, &[], an_hour());
    let server_tls = ServerTls::new(&credentials_of(&server, &authority, Some(&empty))).unwrap();
    let coordinator = Coordinator::start(&server_tls, Limits::default()).await;
    let agent = issue(&authority, Role::Agent, "host-1", an_hour());
    let tls = ClientTls::new(&credentials_of(&agent, &authority, None)).unwrap();
    let channel = coordinator.connect(&tls).await.unwrap();
    call(&channel).await.unwrap();
    let peer = coordinator.last_peer();
    server_tls.check(&peer, now()).unwrap();

    let list = crl(&authority, &[&agent.certificate.serial], an_hour());
    server_tls.replace(&credentials_of(&server, &authority, Some(&list))).unwrap();
    call(&channel).await.unwrap();
    assert_eq!(coordinator.activity.accepted(), 1);
    assert!(matches!(server_tls.check(&peer, now()), Err(Error::PeerLapsed { .. })));
}

#[tokio::test]
async fn an_open_connection_lapses_with_its_certificate() {
    let authority = authority();
    let server_tls = server_tls(&authority);
    let coordinator = Coordinator::start(&server_tls, Limits::default()).await;
    let channel = coordinator.connect(&client_tls(&authority, Role::Agent, "host-1")).await.unwrap();
    call(&channel).await.unwrap();
    let peer = coordinator.last_peer();
    server_tls.check(&peer, now()).unwrap();
    let later = peer.validity.not_after.after(Duration::from_secs(1));
    assert!(matches!(server_tls.check(&peer, later), Err(Error::PeerLapsed { .. })));
}

#[tokio::test]
async fn a_new_server_certificate_is_used_by_the_next_handshake() {
    let authority = authority();
    let first = credentials(&authority, Role::Coordinator, "c1");
    let second = credentials(&authority, Role::Coordinator, "c1");
    let server_tls = ServerTls::new(&first).unwrap();
    let coordinator = Coordinator::start(&server_tls, Limits::default()).await;
    let issued = issue(&authority, Role::Agent, "host-1", an_hour());
    let config = Arc::new(raw_client(&authority, Some((&issued.certificate.cert_pem, &issued.key_pem))));
    let presented = async || {
        let stream = raw_connect(coordinator.address, &config).await.unwrap();
        let der = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        certificate::serial_of(&certificate::parse(&der).unwrap())
    };
    assert_eq!(&presented().await, first.serial());
    let channel = coordinator.connect(&client_tls(&authority, Role::Agent, "host-2")).await.unwrap();

    server_tls.replace(&second).unwrap();
    assert_eq!(&presented().await, second.serial());
    assert_eq!(server_tls.credentials().serial(), second.serial());
    call(&channel).await.unwrap();

    let stranger = credentials(&authority, Role::Coordinator, "c2");
    assert!(matches!(server_tls.replace(&stranger), Err(Error::Setup { .. })));
    assert_eq!(&presented().await, second.serial());
}
