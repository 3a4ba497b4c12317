//! The client's half: connecting to a coordinator and making sure that it is one.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io::{self, Cursor};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption, WebPkiServerVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::address::Address;
use crate::credentials::Credentials;
use crate::error::Error;
use crate::identity::{IdentityError, Role, TrustDomain, identity_of};
use crate::net::Dialer;
use crate::server::{legible, refused};
use crate::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};

/// An HTTP/2 server speaks first, with a SETTINGS frame of some dozens of bytes.
const FIRST_READ_LEN: usize = 1024;

/// When [`connect`] connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At once: an error tells what is wrong.
    Eager,
    /// With the first call; each call that finds no connection makes one.
    Lazy,
}

/// How [`connect`] connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectOptions {
    /// When.
    pub start: Start,
    /// How long one attempt may take, from the name's resolution to the server's first frame.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { start: Start::Eager, timeout: Duration::from_secs(10) }
    }
}

/// Why there is no connection to a coordinator.
///
/// [`Self::find`] finds it in the error of a call on a channel that tried to connect again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectFailure {
    /// The name has no address, nobody listens there, or the network is in the way.
    #[error("cannot reach {address}")]
    Unreachable {
        /// Where.
        address: Address,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nothing came back in time.
    #[error("{address} did not get through {stage} within {} ms", timeout.as_millis())]
    TimedOut {
        /// Where.
        address: Address,
        /// What was waited for.
        stage: Stage,
        /// How long the whole attempt may take.
        timeout: Duration,
    },
    /// **We** refuse the server: it does not prove that it is a coordinator of our fleet.
    #[error(
        "the server at {address} is not trusted: is this the right address, and does its certificate name it, \
         is it current, and is it a coordinator's, of the same authority as ours?"
    )]
    NotTrusted {
        /// Where.
        address: Address,
        /// What is wrong with its certificate.
        #[source]
        source: io::Error,
    },
    /// **The server** refuses us. All that it tells is an alert or a closed connection.
    #[error(
        "{address} refused this certificate: it may be of another authority or trust domain, have expired, not be \
         valid yet, or be revoked, or the server's revocation list is stale; the coordinator's log names the reason"
    )]
    Refused {
        /// Where.
        address: Address,
        /// The alert, or how the connection ended.
        #[source]
        source: io::Error,
    },
    /// The TLS handshake failed in another way, for example because the server speaks something else.
    #[error("the TLS handshake with {address} failed")]
    Handshake {
        /// Where.
        address: Address,
        /// What was wrong.
        #[source]
        source: io::Error,
    },
    /// TLS stands, but the server does not offer HTTP/2.
    #[error("the server at {address} does not speak HTTP/2")]
    NoHttp2 {
        /// Where.
        address: Address,
    },
    /// TLS stands, and HTTP/2 could not begin.
    #[error("cannot begin HTTP/2 with {address}")]
    Http2 {
        /// Where.
        address: Address,
        /// What was wrong.
        #[source]
        source: tonic::transport::Error,
    },
}

impl ConnectFailure {
    /// Whether the server says that our certificate was revoked.
    #[must_use]
    pub fn is_of_revoked(&self) -> bool {
        let Self::Refused { source, .. } = self else { return false };
        let cause = source.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        matches!(cause, Some(rustls::Error::AlertReceived(AlertDescription::CertificateRevoked)))
    }

    /// The failure to connect that `error` stems from, if it stems from one.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

/// A step of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Resolving the name and connecting.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// The server's first frame, which comes once it has accepted our certificate.
    Answer,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "the TCP handshake",
            Self::Tls => "the TLS handshake",
            Self::Answer => "the begin of HTTP/2",
        })
    }
}

/// The TLS settings of a client, which can be exchanged: a channel takes the current ones when it connects again.
///
/// A clone shares the settings.
#[derive(Clone)]
pub struct ClientTls {
    current: watch::Sender<Arc<Current>>,
}

struct Current {
    credentials: Credentials,
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// Sets TLS up for one identity.
    pub fn new(credentials: &Credentials) -> Result<Self, Error> {
        Ok(Self { current: watch::Sender::new(Arc::new(Current::new(credentials)?)) })
    }

    /// Replaces certificate, authorities and revocation lists for all connections to come.
    ///
    /// If this fails, what was in use stays in use. The identity cannot change: that takes a new process.
    pub fn replace(&self, credentials: &Credentials) -> Result<(), Error> {
        let identity = credentials.identity();
        let current = self.credentials();
        if identity != current.identity() {
            let reason = format!("this process runs as {}", current.identity());
            return Err(Error::Setup { identity: identity.clone(), reason });
        }
        self.current.send_replace(Arc::new(Current::new(credentials)?));
        Ok(())
    }

    /// What is in use, for status and health.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.current.borrow().credentials.clone()
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.current.borrow().config.clone()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("credentials", &self.current.borrow().credentials).finish()
    }
}

impl Current {
    fn new(credentials: &Credentials) -> Result<Self, Error> {
        let identity = credentials.identity();
        let failed = |reason: String| Error::Setup { identity: identity.clone(), reason };
        let provider = crate::provider();
        let chain =
            WebPkiServerVerifier::builder_with_provider(credentials.roots().clone(), provider.clone())
                .with_crls(credentials.crls())
                .enforce_revocation_expiration()
                .build()
                .map_err(|error| failed(error.to_string()))?;
        let verifier = CoordinatorVerifier { chain, trust_domain: identity.trust_domain.clone() };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(crate::PROTOCOL_VERSIONS)
            .map_err(|error| failed(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified_key().clone())));
        config.alpn_protocols = vec![crate::ALPN_H2.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { credentials: credentials.clone(), config: Arc::new(config) })
    }
}

/// Connects to a coordinator.
///
/// The server is trusted if its certificate chain leads to one of our authorities, is valid and not revoked, is
/// valid for the **name or IP address** that we connect to, and carries the identity of a **coordinator** of our
/// own trust domain. Both of the last two: the role keeps an agent's certificate from passing for a coordinator's,
/// the name keeps one coordinator from passing for another (a standby, a test fleet of the same authority).
///
/// In TLS 1.3 a client has finished before the server has looked at its certificate. The connection therefore counts
/// only when the server's first HTTP/2 frame has come; a refusal shows here and not in a later call.
pub async fn connect(address: &Address, tls: &ClientTls, options: ConnectOptions) -> Result<Channel, Error> {
    connect_through(&Dialer::default(), address, tls, options).await
}

/// As [`connect`], over the connections that `dialer` makes.
pub async fn connect_through(
    dialer: &Dialer,
    address: &Address,
    tls: &ClientTls,
    options: ConnectOptions,
) -> Result<Channel, Error> {
    let tls = tls.clone();
    connect_with(dialer, address, move || tls.config(), options).await
}

/// The same with any settings; each attempt asks for the current ones.
pub(crate) async fn connect_with(
    dialer: &Dialer,
    address: &Address,
    config: impl Fn() -> Arc<ClientConfig> + Clone + Send + Sync + 'static,
    options: ConnectOptions,
) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Error::Address { text: address.to_string() })?
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let mut first = match options.start {
        Start::Eager => Some(dial(dialer, address, config(), options.timeout).await?),
        Start::Lazy => None,
    };
    let (dialer, target) = (dialer.clone(), address.clone());
    let connector = tower::service_fn(move |_: Uri| {
        let (first, dialer, target) = (first.take(), dialer.clone(), target.clone());
        let config = config.clone();
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => dial(&dialer, &target, config(), options.timeout).await?,
            };
            Ok::<_, ConnectFailure>(TokioIo::new(stream))
        }
    });
    match options.start {
        Start::Eager => endpoint.connect_with_connector(connector).await.map_err(|source| {
            let address = address.clone();
            ConnectFailure::Http2 { address, source }.into()
        }),
        Start::Lazy => Ok(endpoint.connect_with_connector_lazy(connector)),
    }
}

/// One attempt: TCP, TLS, and the server's first bytes, which are put back in front.
async fn dial(
    dialer: &Dialer,
    address: &Address,
    config: Arc<ClientConfig>,
    timeout: Duration,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, ConnectFailure> {
    let deadline = Instant::now() + timeout;
    let late = |stage| ConnectFailure::TimedOut { address: address.clone(), stage, timeout };
    let unreachable = |source| ConnectFailure::Unreachable { address: address.clone(), source };

    let connecting = dialer.dial(address);
    let tcp = before(deadline, connecting).await.ok_or_else(|| late(Stage::Tcp))?.map_err(unreachable)?;

    let handshake = TlsConnector::from(config).connect(address.server_name().clone(), tcp);
    let mut stream = before(deadline, handshake)
        .await
        .ok_or_else(|| late(Stage::Tls))?
        .map_err(|source| handshake_failure(address, source))?;
    if stream.get_ref().1.alpn_protocol() != Some(crate::ALPN_H2) {
        return Err(ConnectFailure::NoHttp2 { address: address.clone() });
    }

    let mut first = vec![0; FIRST_READ_LEN];
    let read = before(deadline, stream.read(&mut first)).await.ok_or_else(|| late(Stage::Answer))?;
    let read = read.and_then(|len| if len == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(len) });
    let len = read.map_err(|source| ConnectFailure::Refused { address: address.clone(), source })?;
    first.truncate(len);
    let (reader, writer) = tokio::io::split(stream);
    Ok(tokio::io::join(Cursor::new(first).chain(reader), writer))
}

async fn before<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    tokio::time::timeout_at(deadline, future).await.ok()
}

/// Who refused whom.
fn handshake_failure(address: &Address, source: io::Error) -> ConnectFailure {
    let address = address.clone();
    let cause = source.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    if matches!(
        cause,
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::InvalidCertRevocationList(_))
    ) {
        ConnectFailure::NotTrusted { address, source: legible(source) }
    } else if matches!(cause, Some(rustls::Error::AlertReceived(_))) {
        ConnectFailure::Refused { address, source }
    } else {
        ConnectFailure::Handshake { address, source }
    }
}

/// What webpki checks, the name we connect to included, and then that the server is a coordinator of our trust domain.
#[derive(Debug)]
struct CoordinatorVerifier {
    chain: Arc<WebPkiServerVerifier>,
    trust_domain: TrustDomain,
}

impl ServerCertVerifier for CoordinatorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let found = identity_of(end_entity).map_err(refused)?;
        if found.trust_domain != self.trust_domain {
            let expected = self.trust_domain.clone();
            return Err(refused(IdentityError::ForeignTrustDomain { found, expected }));
        }
        if found.role != Role::Coordinator {
            return Err(refused(IdentityError::WrongRole { found, expected: Role::Coordinator }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
