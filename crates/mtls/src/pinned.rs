//! The client of somebody who has no certificate yet, and knows of the authority only a digest of its public key.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use muster_model::Digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption, WebPkiServerVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tonic::transport::Channel;

use crate::address::Address;
use crate::certificate;
use crate::client::{ConnectOptions, connect_with};
use crate::credentials::{Credentials, spki_pin};
use crate::error::Error;
use crate::identity::{Identity, IdentityError, Role, identity_of};
use crate::net::Dialer;
use crate::server::refused;

/// What the server's certificate must lead to.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// An authority whose public key has this SHA-256, and which the server shows along with its own certificate.
    Pinned(Digest),
    /// One of the authorities that these credentials trust. The certificate in them is not shown.
    Trusted(Box<Credentials>),
}

/// A coordinator that was found to be one by nothing but its anchor.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// The connection. The server knows nobody at our end.
    pub channel: Channel,
    /// Whom the server's certificate speaks for.
    pub coordinator: Identity,
    /// The authority that it leads to, as PEM.
    pub anchor_pem: String,
}

/// Connects without a certificate of one's own.
///
/// The server is trusted if its chain leads to the anchor, is valid now and for the name or address that is connected to, and
/// its certificate is that of a coordinator.
pub async fn introduce(
    address: &Address,
    anchor: Anchor,
    options: ConnectOptions,
) -> Result<Introduction, Error> {
    let found = Arc::new(Mutex::new(None));
    let verifier = AnchorVerifier { anchor, found: Arc::clone(&found) };
    let mut config = ClientConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(crate::PROTOCOL_VERSIONS)
        .map_err(|_| Error::Random)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![crate::ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    let config = Arc::new(config);
    let channel = connect_with(&Dialer::default(), address, move || Arc::clone(&config), options).await?;
    let found = found.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Found { coordinator, anchor_pem } = found.expect("whoever connected eagerly has verified the server");
    Ok(Introduction { channel, coordinator, anchor_pem })
}

struct Found {
    coordinator: Identity,
    anchor_pem: String,
}

struct AnchorVerifier {
    anchor: Anchor,
    found: Arc<Mutex<Option<Found>>>,
}

impl AnchorVerifier {
    /// The authorities that count, of those that the server shows.
    fn roots(&self, shown: &[CertificateDer<'_>]) -> Result<(RootCertStore, String), rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        match &self.anchor {
            Anchor::Trusted(credentials) => Ok((RootCertStore::clone(credentials.roots()), String::new())),
            Anchor::Pinned(pin) => {
                let is_it = |cert: &&CertificateDer<'_>| {
                    let is_ca = certificate::parse(cert).is_ok_and(|cert| cert.is_ca());
                    is_ca && spki_pin(cert).is_ok_and(|found| found == *pin)
                };
                let anchor = shown.iter().find(is_it).ok_or_else(unknown)?.clone().into_owned();
                let anchor_pem = certificate::to_pem(&anchor);
                let mut roots = RootCertStore::empty();
                roots.add(anchor).map_err(|_| unknown())?;
                Ok((roots, anchor_pem))
            }
        }
    }
}

impl ServerCertVerifier for AnchorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (roots, anchor_pem) = self.roots(intermediates)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crate::provider())
            .build()
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let coordinator = identity_of(end_entity).map_err(refused)?;
        if coordinator.role != Role::Coordinator {
            let expected = Role::Coordinator;
            return Err(refused(IdentityError::WrongRole { found: coordinator, expected }));
        }
        let found = Found { coordinator, anchor_pem };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = crate::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crate::provider().signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for AnchorVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnchorVerifier").field("anchor", &self.anchor).finish_non_exhaustive()
    }
}
