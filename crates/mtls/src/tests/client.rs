//! Whom a client trusts, and what it says when it cannot connect.

use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::acceptor::with_causes;

const BOTH: &[ExtendedKeyUsagePurpose] =
    &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

/// A server that does not use our own code and shows the given certificate to anyone.
async fn raw_server(cert: &str, key: &str) -> Address {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(tcp).await {
                // An empty SETTINGS frame, so that only the certificate can be the matter.
                let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
                let _ = stream.read(&mut [0; 64]).await;
            }
        }
    });
    address
}

async fn attempt(address: &Address, authority: &Authority) -> Result<Channel, ConnectFailure> {
    let tls = client_tls(authority, Role::Agent, "host-1");
    failure(connect(address, &tls, ConnectOptions::default()).await)
}

#[tokio::test]
async fn a_server_that_is_not_our_coordinator_is_not_trusted() {
    let (authority, other) = (authority(), self::authority());
    let issued_at = |validity: Validity| issue(&authority, Role::Coordinator, "c1", validity);
    let expired = issued_at(Validity { not_before: ago(2 * HOUR), not_after: ago(HOUR) });
    let future = issued_at(Validity { not_before: now().after(HOUR), not_after: now().after(2 * HOUR) });
    let foreign = issue(&other, Role::Coordinator, "c1", an_hour());
    let elsewhere = Usage::Server { names: vec!["10.0.0.1".to_owned(), "localhost".to_owned()] };
    let elsewhere = authority.issue(&identity(Role::Coordinator, "c1"), an_hour(), &elsewhere).unwrap();
    let agent = issue(&authority, Role::Agent, "host-2", an_hour());
    let pem = |issued: &IssuedIdentity| (issued.certificate.cert_pem.clone(), issued.key_pem.to_string());
    let cases = [
        ("of another authority", pem(&foreign), "UnknownIssuer"),
        ("expired", pem(&expired), "expired"),
        ("not valid yet", pem(&future), "not valid yet"),
        ("for another address", pem(&elsewhere), "not valid for name"),
        ("an agent's", pem(&agent), ""),
        (
            "an agent's that may be a server",
            odd_leaf(&authority, &["spiffe://fleet.example/agent/host-2"], BOTH),
            "is not a coordinator",
        ),
        (
            "of another trust domain",
            odd_leaf(&authority, &["spiffe://other.example/coordinator/c1"], BOTH),
            "is not of the trust domain",
        ),
        ("of nobody", odd_leaf(&authority, &[], BOTH), "it has no URI"),
    ];
    for (what, (cert, key), reason) in cases {
        let address = raw_server(&cert, &key).await;
        let failure = attempt(&address, &authority).await.unwrap_err();
        assert!(matches!(failure, ConnectFailure::NotTrusted { .. }), "{what}: {failure:?}");
        let text = with_causes(&failure);
        assert!(text.contains(reason), "{what}: {text}");
    }
    // The same server with a good certificate is trusted, so that the cases above fail for their own reason.
    let (cert, key) = odd_leaf(&authority, &["spiffe://fleet.example/coordinator/c1"], BOTH);
    attempt(&raw_server(&cert, &key).await, &authority).await.unwrap();
}

#[tokio::test]
async fn failures_name_the_address_and_the_stage() {
    let authority = authority();
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Address = unused.local_addr().unwrap().to_string().parse().unwrap();
    drop(unused);
    let failure = attempt(&address, &authority).await.unwrap_err();
    assert!(matches!(failure, ConnectFailure::Unreachable { .. }), "{failure:?}");
    assert_eq!(failure.to_string(), format!("cannot reach {address}"));

    // The kernel accepts, nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Address = silent.local_addr().unwrap().to_string().parse().unwrap();
    let impatient = ConnectOptions { timeout: Duration::from_millis(100), ..ConnectOptions::default() };
    let tls = client_tls(&authority, Role::Agent, "host-1");
    let failure = super::failure(connect(&address, &tls, impatient).await).unwrap_err();
    assert!(matches!(failure, ConnectFailure::TimedOut { stage: Stage::Tls, .. }), "{failure:?}");
}

#[tokio::test]
async fn a_server_that_speaks_something_else_is_told_apart() {
    let authority = authority();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.read(&mut [0; 16]).await;
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let failure = attempt(&address, &authority).await.unwrap_err();
    assert!(matches!(failure, ConnectFailure::Handshake { .. }), "{failure:?}");
}

#[tokio::test]
async fn a_lazy_channel_tells_with_the_call_and_takes_new_credentials_when_it_tries_again() {
    let (authority, other) = (authority(), self::authority());
    let coordinator = Coordinator::start(&server_tls(&authority), Limits::default()).await;
    let stranger = issue(&other, Role::Agent, "host-1", an_hour());
    let tls = ClientTls::new(&credentials_of(&stranger, &authority, None)).unwrap();
    let lazy = ConnectOptions { start: Start::Lazy, ..ConnectOptions::default() };
    let channel = failure(connect(&coordinator.address(), &tls, lazy).await).unwrap();
    assert_eq!(coordinator.activity.refused(), 0);

    let status = call(&channel).await.unwrap_err();
    let failure = ConnectFailure::find(&status).expect("the status carries its cause");
    assert!(matches!(failure, ConnectFailure::Refused { .. }), "{failure:?}");
    assert_eq!(status.code(), tonic::Code::Unavailable);

    tls.replace(&credentials(&authority, Role::Agent, "host-1")).unwrap();
    call(&channel).await.unwrap();
    assert!(matches!(tls.replace(&credentials(&authority, Role::Agent, "host-2")), Err(Error::Setup { .. })));
}
