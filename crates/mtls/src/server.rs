//! The server's half of TLS: who is let in, and how certificates and revocation lists are exchanged while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use muster_model::{IdentityName, UnixTime};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::acceptor::Peer;
use crate::certificate::{self, Serial};
use crate::credentials::Credentials;
use crate::error::Error;
use crate::identity::{Identity, IdentityError, Role, TrustDomain, identity_of};
use crate::open::OpenConnections;

/// The TLS settings of a coordinator, which can be exchanged while connections are open.
///
/// A clone shares the settings. A new handshake takes what is current when it begins; connections that are open
/// stay open, and [`Self::check`] says which of them would not be let in again.
#[derive(Clone)]
pub struct ServerTls {
    current: watch::Sender<Arc<Current>>,
    excluded: Arc<RwLock<Exclusions>>,
    open: OpenConnections,
}

/// Who is kept out although authorities and lists would let them in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exclusions {
    /// Certificates.
    pub serials: BTreeSet<Serial>,
    /// Hosts that were evicted, each with the certificates that it was given since.
    pub hosts: BTreeMap<IdentityName, BTreeSet<Serial>>,
}

struct Current {
    credentials: Credentials,
    config: Arc<ServerConfig>,
    for_strangers: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ServerTls {
    /// Sets TLS up; the credentials must be a coordinator's.
    pub fn new(credentials: &Credentials) -> Result<Self, Error> {
        let excluded = Arc::default();
        let current = Current::new(credentials, &excluded)?;
        let open = OpenConnections::default();
        Ok(Self { current: watch::Sender::new(Arc::new(current)), excluded, open })
    }

    /// Keeps these out from now on, and nobody else.
    pub fn exclude(&self, exclusions: Exclusions) {
        *self.excluded.write().unwrap_or_else(PoisonError::into_inner) = exclusions;
    }

    /// Ends the open connections that would not be let in again at `now`, and says whose they were. Blocks: every
    /// certificate is verified anew.
    pub fn end_lapsed(&self, now: UnixTime) -> Vec<(Identity, Error)> {
        let mut ended = Vec::new();
        for (number, peer) in self.open.peers() {
            if let Err(error) = self.check(&peer, now) {
                self.open.end(number);
                ended.push((peer.identity, error));
            }
        }
        ended
    }

    /// Whether some open connection rests on a certificate that has expired at `now`.
    #[must_use]
    pub fn has_expired(&self, now: UnixTime) -> bool {
        self.open.peers().iter().any(|(_, peer)| peer.validity.not_after < now)
    }

    /// Ends the open connections whose certificates have expired at `now`, and says whose they were.
    pub fn end_expired(&self, now: UnixTime) -> Vec<Identity> {
        let mut ended = Vec::new();
        for (number, peer) in self.open.peers() {
            if peer.validity.not_after < now {
                self.open.end(number);
                ended.push(peer.identity);
            }
        }
        ended
    }

    pub(crate) const fn open(&self) -> &OpenConnections {
        &self.open
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
        self.current.send_replace(Arc::new(Current::new(credentials, &self.excluded)?));
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

    pub(crate) fn config_for_strangers(&self) -> Arc<ServerConfig> {
        self.current.borrow().for_strangers.clone()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("credentials", &self.current.borrow().credentials).finish()
    }
}

impl Exclusions {
    fn excludes(&self, identity: &Identity, serial: &Serial) -> bool {
        let is_evicted = identity.role == Role::Agent
            && self.hosts.get(&identity.name).is_some_and(|since| !since.contains(serial));
        is_evicted || self.serials.contains(serial)
    }
}

impl Current {
    fn new(credentials: &Credentials, excluded: &Arc<RwLock<Exclusions>>) -> Result<Self, Error> {
        let identity = credentials.identity();
        if identity.role != Role::Coordinator {
            return Err(Error::NotAServer { identity: identity.clone() });
        }
        let failed = |reason: String| Error::Setup { identity: identity.clone(), reason };
        let builder = || {
            WebPkiClientVerifier::builder_with_provider(credentials.roots().clone(), crate::provider())
                .enforce_revocation_expiration()
        };
        // With a list, enforced expiry makes a stale one refuse everybody: unknown means no.
        let chain = builder().with_crls(credentials.crls()).build();
        // Our own list speaks of what our own authority has issued, and of nothing else.
        let own = credentials.own_crl().map(|list| {
            let own = builder().with_crls([list.clone()]).only_check_end_entity_revocation();
            own.allow_unknown_revocation_status().build().map(|own| own as Arc<dyn ClientCertVerifier>)
        });
        let verifier: Arc<dyn ClientCertVerifier> = Arc::new(PeerVerifier {
            chain: chain.map_err(|error| failed(error.to_string()))?,
            own: own.transpose().map_err(|error| failed(error.to_string()))?,
            trust_domain: identity.trust_domain.clone(),
            excluded: Arc::clone(excluded),
        });

        let builder = || {
            ServerConfig::builder_with_provider(crate::provider())
                .with_protocol_versions(crate::PROTOCOL_VERSIONS)
                .map_err(|error| failed(error.to_string()))
        };
        let key = Arc::new(SingleCertAndKey::from(credentials.certified_key().clone()));
        let config = builder()?.with_client_cert_verifier(verifier.clone()).with_cert_resolver(key);
        // Whoever has only a digest of the anchor has to be shown the anchor.
        let key = Arc::new(SingleCertAndKey::from(credentials.certified_key_with_anchors()));
        let for_strangers = builder()?.with_no_client_auth().with_cert_resolver(key);
        let (config, for_strangers) = (Arc::new(hardened(config)), Arc::new(hardened(for_strangers)));
        Ok(Self { credentials: credentials.clone(), config, for_strangers, verifier })
    }
}

fn hardened(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![crate::ALPN_H2.to_vec()];
    // A resumed session would not be verified again, and so would outlive its revocation.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Early data can be replayed.
    config.max_early_data_size = 0;
    config
}

/// What webpki checks, and then that the certificate carries one identity of our own trust domain.
#[derive(Debug)]
struct PeerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    own: Option<Arc<dyn ClientCertVerifier>>,
    trust_domain: TrustDomain,
    excluded: Arc<RwLock<Exclusions>>,
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
        if let Some(own) = &self.own {
            own.verify_client_cert(end_entity, intermediates, now)?;
        }
        let identity = identity_of(end_entity).map_err(refused)?;
        if identity.trust_domain != self.trust_domain {
            let expected = self.trust_domain.clone();
            return Err(refused(IdentityError::ForeignTrustDomain { found: identity, expected }));
        }
        let serial =
            certificate::parse(end_entity).map(|cert| certificate::serial_of(&cert)).map_err(refused)?;
        if self.excluded.read().unwrap_or_else(PoisonError::into_inner).excludes(&identity, &serial) {
            return Err(rustls::Error::InvalidCertificate(CertificateError::Revoked));
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
