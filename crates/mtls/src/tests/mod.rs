//! Real TLS over loopback, with a certificate authority for each test.

mod authority;
mod client;
mod enrolment;
mod handshake;
mod revocation;

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant, SystemTime};

use muster_model::{Digest, IdentityName, UnixTime};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::*;

const HOUR: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(20);
const TRUST_DOMAIN: &str = "fleet.example";

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixTime(u64::try_from(since.as_millis()).unwrap())
}

fn ago(duration: Duration) -> UnixTime {
    UnixTime(now().0 - u64::try_from(duration.as_millis()).unwrap())
}

fn an_hour() -> Validity {
    Validity::starting(now(), HOUR)
}

fn identity(role: Role, name: &str) -> Identity {
    Identity::new(TrustDomain::new(TRUST_DOMAIN).unwrap(), role, IdentityName::new(name).unwrap())
}

fn loopback() -> Usage {
    Usage::Server { names: vec!["127.0.0.1".to_owned(), "localhost".to_owned()] }
}

fn usage_of(role: Role) -> Usage {
    if role == Role::Coordinator { loopback() } else { Usage::Client }
}

fn authority() -> Authority {
    Authority::create(TrustDomain::new(TRUST_DOMAIN).unwrap(), now()).unwrap()
}

fn issue(authority: &Authority, role: Role, name: &str, validity: Validity) -> IssuedIdentity {
    authority.issue(&identity(role, name), validity, &usage_of(role)).unwrap()
}

/// Credentials that trust `authority`.
fn credentials_of(issued: &IssuedIdentity, authority: &Authority, crl: Option<&str>) -> Credentials {
    Credentials::from_pem(PemBundle {
        certificate: &issued.certificate.cert_pem,
        key: &issued.key_pem,
        ca: authority.cert_pem(),
        crl,
    })
    .unwrap()
}

fn credentials(authority: &Authority, role: Role, name: &str) -> Credentials {
    credentials_of(&issue(authority, role, name, an_hour()), authority, None)
}

fn server_tls(authority: &Authority) -> ServerTls {
    ServerTls::new(&credentials(authority, Role::Coordinator, "c1")).unwrap()
}

fn client_tls(authority: &Authority, role: Role, name: &str) -> ClientTls {
    ClientTls::new(&credentials(authority, role, name)).unwrap()
}

/// A certificate such as our own code never issues: any names, any usages, PEM with its key.
fn odd_leaf(authority: &Authority, uris: &[&str], usages: &[ExtendedKeyUsagePurpose]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
    params.extended_key_usages = usages.to_vec();
    let cert = params.signed_by(&key, &authority.issuer().unwrap()).unwrap();
    (cert.pem(), key.serialize_pem())
}

/// A coordinator that serves gRPC health; every request notes its peer.
struct Coordinator {
    address: SocketAddr,
    activity: Arc<Activity>,
    peers: Arc<Mutex<Vec<Peer>>>,
    task: AbortHandle,
}

impl Coordinator {
    async fn start(tls: &ServerTls, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = Acceptor::new(listener, tls.clone(), limits);
        let (address, activity) = (acceptor.local_addr().unwrap(), acceptor.activity());
        let peers = Arc::new(Mutex::new(Vec::new()));
        let seen = peers.clone();
        let (_, health) = tonic_health::server::health_reporter();
        let note_peer =
            tonic::service::interceptor::InterceptorLayer::new(move |request: tonic::Request<()>| {
                seen.lock().unwrap().push(request.extensions().get::<Peer>().unwrap().clone());
                Ok(request)
            });
        let server = Server::builder().layer(note_peer).add_service(health);
        let task = tokio::spawn(server.serve_with_incoming(acceptor)).abort_handle();
        Self { address, activity, peers, task }
    }

    fn address(&self) -> Address {
        self.address.to_string().parse().unwrap()
    }

    async fn connect(&self, tls: &ClientTls) -> Result<Channel, ConnectFailure> {
        failure(connect(&self.address(), tls, ConnectOptions::default()).await)
    }

    fn last_peer(&self) -> Peer {
        self.peers.lock().unwrap().last().unwrap().clone()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn failure(result: Result<Channel, Error>) -> Result<Channel, ConnectFailure> {
    result.map_err(|error| {
        let Error::Connect(failure) = error else { panic!("this is no failure to connect") };
        failure
    })
}

async fn call(channel: &Channel) -> Result<(), tonic::Status> {
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.map(|_| ())
}

/// A client that does not use our own code, for certificates that it would not load.
fn raw_client(authority: &Authority, cert: Option<(&str, &str)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.cert_pem().as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match cert {
        Some((cert, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config
}

/// Connects, and waits for the server's first byte: without it nothing is known.
async fn raw_connect(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    let mut stream = TlsConnector::from(config.clone()).connect(name, tcp).await?;
    stream.read_u8().await?;
    Ok(stream)
}

/// Waits until `condition` holds, without sleeping for a guessed time.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::task::yield_now().await;
    }
}

thread_local! {
    /// What this test's thread has logged. A `#[tokio::test]` runs all its tasks on one thread.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct ThreadLog;

impl Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins to keep what this thread logs.
fn keep_log() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        tracing_subscriber::fmt().with_ansi(false).with_writer(|| ThreadLog).init();
    });
    LOG.with_borrow_mut(Vec::clear);
}

/// What was logged since [`keep_log`].
fn log() -> String {
    LOG.with_borrow(|log| String::from_utf8(log.clone()).unwrap())
}
