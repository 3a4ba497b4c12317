//! The server's half of TLS: who is let in, and how certificates and revocation lists are exchanged while it runs.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use muster_model::UnixTime;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::acceptor::Peer;
use crate::credentials::Credentials;
use crate::error::Error;
use crate::identity::{IdentityError, Role, TrustDomain, identity_of};

/// The TLS settings of a coordinator, which can be exchanged while connections are open.
///
/// A clone shares the settings. A new handshake takes what is current when it begins; connections that are open
/// stay open, and [`Self::check`] says which of them would not be let in again.
#[derive(Clone)]
pub struct ServerTls {
    current: watch::Sender<Arc<Current>>,
}

struct Current {
    credentials: Credentials,
    config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ServerTls {
    /// Sets TLS up; the credentials must be a coordinator's.
    pub fn new(credentials: &Credentials) -> Result<Self, Error> {
        Ok(Self { current: watch::Sender::new(Arc::new(Current::new(credentials)?)) })
    }

    /// Replaces certificate, authorities and revocation lists for all handshakes to come.
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

    /// Checks an open connection again with the settings of now, as if it began at `now`.
    ///
    /// A new revocation list drops no connection by itself; the caller ends those that fail here.
    pub fn check(&self, peer: &Peer, now: UnixTime) -> Result<(), Error> {
        let current = self.current.borrow().clone();
        let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        let lapsed = |source| Error::PeerLapsed { identity: peer.identity.clone(), source };
        let (leaf, intermediates) = peer.chain.split_first().expect("a peer has a certificate");
        current.verifier.verify_client_cert(leaf, intermediates, now).map(|_| ()).map_err(lapsed)
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.current.borrow().config.clone()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("credentials", &self.current.borrow().credentials).finish()
    }
}

impl Current {
    fn new(credentials: &Credentials) -> Result<Self, Error> {
        let identity = credentials.identity();
        if identity.role != Role::Coordinator {
            return Err(Error::NotAServer { identity: identity.clone() });
        }
        let failed = |reason: String| Error::Setup { identity: identity.clone(), reason };
        let provider = crate::provider();
        // With a list, enforced expiry makes a stale one refuse everybody: unknown means no.
        let chain_verifier =
            WebPkiClientVerifier::builder_with_provider(credentials.roots().clone(), provider.clone())
                .with_crls(credentials.crls())
                .enforce_revocation_expiration()
                .build()
                .map_err(|error| failed(error.to_string()))?;
        let verifier: Arc<dyn ClientCertVerifier> =
            Arc::new(PeerVerifier { chain: chain_verifier, trust_domain: identity.trust_domain.clone() });

        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(crate::PROTOCOL_VERSIONS)
            .map_err(|error| failed(error.to_string()))?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified_key().clone())));
        config.alpn_protocols = vec![crate::ALPN_H2.to_vec()];
        // A resumed session would not be verified again, and so would outlive its revocation.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        // Early data can be replayed.
        config.max_early_data_size = 0;
        Ok(Self { credentials: credentials.clone(), config: Arc::new(config), verifier })
    }
}

/// What webpki checks, and then that the certificate carries one identity of our own trust domain.
#[derive(Debug)]
struct PeerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: rustls_pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let identity = identity_of(end_entity).map_err(refused)?;
        if identity.trust_domain != self.trust_domain {
            let expected = self.trust_domain.clone();
            return Err(refused(IdentityError::ForeignTrustDomain { found: identity, expected }));
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

/// An identity that is not accepted, as rustls carries it.
pub(crate) fn refused(error: IdentityError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// The same error with the identity's own words in place of rustls's debug output, where an identity was the matter.
pub(crate) fn legible(error: io::Error) -> io::Error {
    let identity_error = match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))) => {
            cause.downcast_ref::<IdentityError>().cloned()
        }
        _ => None,
    };
    identity_error.map_or(error, io::Error::other)
}
