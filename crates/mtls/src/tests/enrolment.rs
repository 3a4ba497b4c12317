//! Issuing authorities, strangers, and ending connections that are open.

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Credentials of a coordinator, and what the issuing authority of `anchor` issues.
fn coordinator(anchor: &Authority, issuing: &Authority) -> Credentials {
    credentials_of(&issue(issuing, Role::Coordinator, "c1", an_hour()), anchor, None)
}

fn list(issuing: &Authority, revoked: &[&Serial], validity: Validity) -> String {
    let revoked: Vec<_> =
        revoked.iter().map(|serial| Revoked { serial: (*serial).clone(), since: now() }).collect();
    issuing.revocation_list(&revoked, validity).unwrap()
}

#[tokio::test]
async fn what_an_issuing_authority_signs_leads_to_the_anchor_and_its_list_speaks_of_it_alone() {
    let anchor = authority();
    let dir = tempfile::tempdir().unwrap();
    anchor.create_issuing(now()).unwrap().save(&dir.path().join("issuer")).unwrap();
    let issuing = Authority::load(&dir.path().join("issuer")).unwrap();
    assert_eq!(issuing.anchor_pem(), anchor.cert_pem());
    let (bad, good) =
        (issue(&issuing, Role::Agent, "bad", an_hour()), issue(&issuing, Role::Agent, "good", an_hour()));
    let of_anchor = issue(&anchor, Role::Agent, "other", an_hour());
    let own = list(&issuing, &[&bad.certificate.serial], an_hour());
    let tls = ServerTls::new(&coordinator(&anchor, &issuing).with_own_list(&own).unwrap()).unwrap();
    let server = Coordinator::start(&tls, Limits::default()).await;
    let connect = async |issued: &IssuedIdentity| {
        let tls = ClientTls::new(&credentials_of(issued, &anchor, None)).unwrap();
        server.connect(&tls).await
    };
    assert!(matches!(connect(&bad).await, Err(ConnectFailure::Refused { .. })));
    call(&connect(&good).await.unwrap()).await.unwrap();
    call(&connect(&of_anchor).await.unwrap()).await.unwrap();

    let stale = list(&issuing, &[], Validity { not_before: ago(2 * HOUR), not_after: ago(HOUR) });
    tls.replace(&coordinator(&anchor, &issuing).with_own_list(&stale).unwrap()).unwrap();
    assert!(matches!(connect(&good).await, Err(ConnectFailure::Refused { .. })), "a stale list");
    call(&connect(&of_anchor).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_issuing_authority_is_none_for_other_authorities_nor_beyond_its_own_time() {
    let anchor = authority();
    let issuing = anchor.create_issuing(now()).unwrap();
    let below = issuing.create_issuing(now()).unwrap();
    let issued = issue(&below, Role::Agent, "host-1", an_hour());
    let tls = ServerTls::new(&coordinator(&anchor, &issuing)).unwrap();
    let server = Coordinator::start(&tls, Limits::default()).await;
    let tls = ClientTls::new(&credentials_of(&issued, &anchor, None)).unwrap();
    assert!(matches!(server.connect(&tls).await, Err(ConnectFailure::Refused { .. })), "its length is 0");
    let long = Validity { not_before: now(), not_after: now().after(20 * 365 * DAY) };
    assert!(
        issue(&issuing, Role::Agent, "host-1", long).certificate.validity.not_after
            <= issuing.validity().not_after
    );
}

#[tokio::test]
async fn who_is_kept_out_loses_the_connection_that_is_open() {
    let anchor = authority();
    let tls = ServerTls::new(&coordinator(&anchor, &anchor)).unwrap();
    let server = Coordinator::start(&tls, Limits::default()).await;
    let [evicted, again, revoked, other] =
        ["host-1", "host-1", "host-2", "host-3"].map(|name| issue(&anchor, Role::Agent, name, an_hour()));
    let connect = async |issued: &IssuedIdentity| {
        let tls = ClientTls::new(&credentials_of(issued, &anchor, None)).unwrap();
        server.connect(&tls).await
    };
    let mut open = Vec::new();
    for issued in [&evicted, &revoked, &other] {
        let channel = connect(issued).await.unwrap();
        call(&channel).await.unwrap();
        open.push(channel);
    }
    let name = evicted.certificate.identity.name.clone();
    tls.exclude(Exclusions {
        serials: [revoked.certificate.serial.clone()].into(),
        hosts: [(name, [again.certificate.serial.clone()].into())].into(),
    });
    assert_eq!(tls.end_lapsed(now()).len(), 2);
    assert_eq!(tls.end_lapsed(now()).len(), 0);
    eventually("two connections end", || server.activity.connections() == 1).await;
    call(&open[2]).await.unwrap();
    assert!(connect(&evicted).await.unwrap_err().is_of_revoked(), "it is told why");
    for (issued, is_let_in) in [(&evicted, false), (&revoked, false), (&again, true), (&other, true)] {
        assert_eq!(connect(issued).await.is_ok(), is_let_in, "{:?}", issued.certificate);
    }
    eventually("the others have gone", || server.activity.connections() == 1).await;
    assert_eq!(tls.end_lapsed(now().after(2 * HOUR)).len(), 1, "it has expired by then");
}

/// A coordinator's door for strangers.
async fn door(tls: &ServerTls) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let acceptor = Acceptor::for_strangers(listener, tls.clone(), Limits::default());
    let address = acceptor.local_addr().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    tokio::spawn(Server::builder().add_service(health).serve_with_incoming(acceptor));
    address.to_string().parse().unwrap()
}

#[tokio::test]
async fn a_stranger_knows_the_coordinator_by_the_digest_of_its_anchor_alone() {
    let (anchor, other) = (authority(), authority());
    let issuing = anchor.create_issuing(now()).unwrap();
    let tls = ServerTls::new(&coordinator(&anchor, &issuing)).unwrap();
    let address = door(&tls).await;
    let introduced =
        introduce(&address, Anchor::Pinned(anchor.spki_pin()), ConnectOptions::default()).await.unwrap();
    assert_eq!(introduced.anchor_pem, anchor.cert_pem());
    assert_eq!(introduced.coordinator, identity(Role::Coordinator, "c1"));
    call(&introduced.channel).await.unwrap();
    introduce(&address, Anchor::Pinned(issuing.spki_pin()), ConnectOptions::default()).await.unwrap();

    let leaf = Digest::of(b"somebody else");
    for pin in [other.spki_pin(), leaf] {
        let refused = introduce(&address, Anchor::Pinned(pin), ConnectOptions::default()).await;
        assert!(matches!(refused, Err(Error::Connect(ConnectFailure::NotTrusted { .. }))), "{refused:?}");
    }
    let ours = |ca| {
        Anchor::Trusted(Box::new(credentials_of(&issue(&anchor, Role::Agent, "a", an_hour()), ca, None)))
    };
    introduce(&address, ours(&anchor), ConnectOptions::default()).await.unwrap();
    introduce(&address, ours(&other), ConnectOptions::default()).await.unwrap_err();
}

#[tokio::test]
async fn the_door_for_strangers_is_no_way_around_the_pin_for_whoever_shows_the_anchor_without_its_key() {
    let (anchor, thief) = (authority(), authority());
    let shown = issue(&thief, Role::Coordinator, "c1", an_hour());
    // A coordinator of the thief's own authority that shows the fleet's anchor beside it.
    let tls = ServerTls::new(&credentials_of(&shown, &anchor, None)).unwrap();
    let address = door(&tls).await;
    let refused = introduce(&address, Anchor::Pinned(anchor.spki_pin()), ConnectOptions::default()).await;
    assert!(matches!(refused, Err(Error::Connect(ConnectFailure::NotTrusted { .. }))), "{refused:?}");
}

#[test]
fn a_request_names_nobody_and_survives_writing_its_key() {
    let request = KeyRequest::generate().unwrap();
    let again = KeyRequest::from_key_pem(&request.key_pem()).unwrap();
    assert_eq!(again.spki_pin(), request.spki_pin());
    let who = identity(Role::Agent, "host-1");
    let issued =
        authority().issue_for_csr(&again.to_der().unwrap(), &who, an_hour(), &Usage::Client).unwrap();
    assert_eq!(issued.identity, who);
    assert!(KeyRequest::from_key_pem("nothing").is_err());
}

#[test]
fn a_third_of_a_life_is_its_end() {
    let validity = Validity::starting(UnixTime(1_000_000_000), Duration::from_secs(900));
    assert_eq!(validity.began(), UnixTime(1_000_000_000));
    assert!(!validity.is_ending(UnixTime(1_000_600_000)));
    assert!(validity.is_ending(UnixTime(1_000_600_001)) && validity.is_ending(UnixTime(2_000_000_000)));
}
