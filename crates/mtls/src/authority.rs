//! The certificate authority of one trust domain: it signs leaves and revocation lists, and nothing else.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use muster_model::{Digest, UnixTime};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::certificate::{self, Serial, Validity};
use crate::credentials::CredentialPaths;
use crate::error::Error;
use crate::file::{create_private_directory, read_private, read_public, write_private, write_public};
use crate::identity::{Identity, Role, TrustDomain, only_uri};

/// The authority's certificate within its folder.
const CERTIFICATE_FILE: &str = "ca.pem";
/// The authority's private key within its folder.
const KEY_FILE: &str = "ca.key";

/// Ten years: the authority is replaced by people, not by a timer.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// An issuing authority is on a machine that can be reached, and is replaced more often.
const ISSUING_LIFETIME: Duration = Duration::from_secs(3 * 365 * 24 * 3600);

/// The authorities in one file: an issuing one, those above it, and an anchor.
const CHAIN_MAX: usize = 4;

/// A request with a P-256 key has about 400 bytes.
const MAX_REQUEST_BYTES: usize = 16 << 10;

/// What a certificate is for. Everyone is a client; only a coordinator is a server as well, and has addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage {
    /// Connects to coordinators.
    Client,
    /// Accepts connections, and connects to other coordinators.
    Server {
        /// The DNS names and IP addresses under which it is reached; at least one.
        names: Vec<String>,
    },
}

/// A certificate that should no longer be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number.
    pub serial: Serial,
    /// Since when.
    pub since: UnixTime,
}

/// A signed certificate for a key that its holder made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// For whom.
    pub identity: Identity,
    /// Its serial number, by which it can be revoked.
    pub serial: Serial,
    /// As it was signed: never beyond the authority's own.
    pub validity: Validity,
    /// The digest of the public key.
    pub spki_pin: Digest,
    /// The certificate as PEM, followed by the issuing authorities between it and the anchor.
    pub cert_pem: String,
}

/// A signed certificate together with its new private key.
pub struct IssuedIdentity {
    /// The certificate.
    pub certificate: IssuedCertificate,
    /// The private key as PEM (PKCS#8); wiped from memory when dropped.
    pub key_pem: Zeroizing<String>,
}

impl IssuedIdentity {
    /// Writes key, certificate and the anchor of the authority to new files; the key with mode 0600.
    pub fn save(&self, paths: &CredentialPaths, authority: &Authority) -> Result<(), Error> {
        write_private(&paths.key, self.key_pem.as_bytes())?;
        write_public(&paths.certificate, self.certificate.cert_pem.as_bytes())?;
        write_public(&paths.ca, authority.anchor_pem().as_bytes())
    }
}

impl fmt::Debug for IssuedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedIdentity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A certificate authority with an ECDSA P-256 key.
///
/// It is either an anchor, which everybody trusts and whose key stays offline, or an issuing authority below one, whose
/// certificate goes along with each one that it signs. Below an issuing authority there is none.
pub struct Authority {
    trust_domain: TrustDomain,
    cert: CertificateDer<'static>,
    cert_pem: String,
    /// The issuing certificates that go along with each leaf; none for an anchor.
    chain_pem: String,
    /// What all peers trust.
    anchor_pem: String,
    validity: Validity,
    key: Zeroizing<KeyPair>,
}

impl Authority {
    /// Makes a new anchor that is valid for ten years from `now`.
    pub fn create(trust_domain: TrustDomain, now: UnixTime) -> Result<Self, Error> {
        const WHAT: &str = "the certificate of the authority";
        let failed = |source| Error::Signing { what: WHAT, source };
        let key = Zeroizing::new(KeyPair::generate().map_err(failed)?);
        let validity = Validity::starting(now, AUTHORITY_LIFETIME);
        let params = authority_params(WHAT, &trust_domain, ("CA", &key), validity, 1)?;
        let cert = params.self_signed(&*key).map_err(failed)?;
        let (cert_pem, cert) = (cert.pem(), CertificateDer::from(cert));
        let validity = validity_of_issued(WHAT, &cert)?.1;
        let (chain_pem, anchor_pem) = (String::new(), cert_pem.clone());
        Ok(Self { trust_domain, cert, cert_pem, chain_pem, anchor_pem, validity, key })
    }

    /// Makes an issuing authority below this anchor, of the same trust domain, with a key of its own.
    pub fn create_issuing(&self, now: UnixTime) -> Result<Self, Error> {
        const WHAT: &str = "the certificate of the issuing authority";
        let failed = |source| Error::Signing { what: WHAT, source };
        let key = Zeroizing::new(KeyPair::generate().map_err(failed)?);
        let mut validity = Validity::starting(now, ISSUING_LIFETIME);
        validity.not_after = validity.not_after.min(self.validity.not_after);
        let mut params = authority_params(WHAT, &self.trust_domain, ("issuing CA", &key), validity, 0)?;
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&*key, &self.issuer()?).map_err(failed)?;
        let (cert_pem, cert) = (cert.pem(), CertificateDer::from(cert));
        let validity = validity_of_issued(WHAT, &cert)?.1;
        let (chain_pem, anchor_pem) = (format!("{cert_pem}{}", self.chain_pem), self.anchor_pem.clone());
        let trust_domain = self.trust_domain.clone();
        Ok(Self { trust_domain, cert, cert_pem, chain_pem, anchor_pem, validity, key })
    }

    /// Writes the authority to a folder of its own, which is created with mode 0700; nothing is overwritten.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        create_private_directory(dir)?;
        let key_pem = Zeroizing::new(self.key.serialize_pem());
        write_private(&dir.join(KEY_FILE), key_pem.as_bytes())?;
        let certificates = match self.chain_pem.as_str() {
            "" => self.cert_pem.clone(),
            chain => format!("{chain}{}", self.anchor_pem),
        };
        write_public(&dir.join(CERTIFICATE_FILE), certificates.as_bytes())
    }

    /// Reads what [`Self::save`] has written, and checks that it is an authority and that the key is its own.
    ///
    /// The file may also be one of another maker: the issuing certificate first, then those above it.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let (cert_path, key_path) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        let unreadable =
            |path: &Path, what, reason: String| Error::Pem { path: path.to_owned(), what, reason };

        let pem = read_public(&cert_path)?;
        let certs = CertificateDer::pem_slice_iter(&pem)
            .take(CHAIN_MAX + 1)
            .collect::<Result<Vec<CertificateDer<'static>>, _>>()
            .map_err(|error| unreadable(&cert_path, "certificate", error.to_string()))?;
        if certs.is_empty() || certs.len() > CHAIN_MAX {
            let reason = format!("there are {} of them; 1 to {CHAIN_MAX} are read", certs.len());
            return Err(unreadable(&cert_path, "certificate", reason));
        }
        let cert = certs[0].clone();
        let bad_cert = |source| Error::Certificate { path: cert_path.clone(), source };
        let trust_domain = only_uri(&cert).and_then(|uri| TrustDomain::from_uri(&uri)).map_err(bad_cert)?;
        let (validity, cert_spki) = {
            let parsed = certificate::parse(&cert).map_err(bad_cert)?;
            (certificate::validity_of(&parsed), parsed.public_key().raw.to_vec())
        };
        let (mut chain_pem, mut anchor_pem) = (String::new(), None);
        for cert in &certs {
            let parsed = certificate::parse(cert).map_err(bad_cert)?;
            if !parsed.is_ca() {
                return Err(Error::NotAnAuthority { path: cert_path });
            }
            let as_pem = certificate::to_pem(cert);
            if parsed.subject() == parsed.issuer() {
                anchor_pem = Some(as_pem);
            } else {
                chain_pem.push_str(&as_pem);
            }
        }
        let cert_pem = certificate::to_pem(&cert);
        let anchor_pem = anchor_pem.unwrap_or_else(|| cert_pem.clone());
        let key = read_key(&key_path)?;
        if key.subject_public_key_info() != cert_spki {
            let source = rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch);
            return Err(Error::KeyMismatch { certificate: cert_path, key: key_path, source });
        }
        Ok(Self { trust_domain, cert, cert_pem, chain_pem, anchor_pem, validity, key })
    }

    /// Whose identities it issues.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The authority's own certificate as PEM.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The certificate that all peers trust, as PEM: of an anchor its own, of an issuing authority the one above it.
    #[must_use]
    pub fn anchor_pem(&self) -> &str {
        &self.anchor_pem
    }

    /// Until when it can sign.
    #[must_use]
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// SHA-256 of the public key (`SubjectPublicKeyInfo`): what an agent is provisioned with before it has a certificate.
    #[must_use]
    pub fn spki_pin(&self) -> Digest {
        Digest::of(&self.key.subject_public_key_info())
    }

    /// Makes a new key and a certificate for it.
    ///
    /// The certificate ends with the authority's own, should `validity` reach beyond that.
    pub fn issue(
        &self,
        identity: &Identity,
        validity: Validity,
        usage: &Usage,
    ) -> Result<IssuedIdentity, Error> {
        let key = KeyPair::generate().map(Zeroizing::new);
        let key = key.map_err(|source| Error::Signing { what: "a private key", source })?;
        let certificate = self.sign(&*key, identity, validity, usage)?;
        Ok(IssuedIdentity { certificate, key_pem: Zeroizing::new(key.serialize_pem()) })
    }

    /// Signs a certificate for the key of a certificate signing request (PKCS#10, DER).
    ///
    /// **Only the public key** is taken from the request, after its signature has shown that the sender has the
    /// private one. Names, usages, constraints and validity come from the arguments; what else was asked for has no effect.
    pub fn issue_for_csr(
        &self,
        csr_der: &[u8],
        identity: &Identity,
        validity: Validity,
        usage: &Usage,
    ) -> Result<IssuedCertificate, Error> {
        self.sign(&requested_key(csr_der)?, identity, validity, usage)
    }

    /// Signs the complete list of revoked certificates as PEM; its `validity` says until when the next one must follow.
    ///
    /// The list's number, which must rise, is the start of its validity.
    pub fn revocation_list(&self, revoked: &[Revoked], validity: Validity) -> Result<String, Error> {
        let failed = |source| Error::Signing { what: "a revocation list", source };
        let revoked_certs = revoked.iter().map(|entry| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(entry.serial.as_bytes()),
                revocation_time: date(entry.since)?,
                reason_code: None,
                invalidity_date: None,
            })
        });
        let number = Serial::from_bytes(&validity.not_before.0.to_be_bytes());
        let params = CertificateRevocationListParams {
            this_update: date(validity.not_before)?,
            next_update: date(validity.not_after)?,
            crl_number: SerialNumber::from_slice(number.as_bytes()),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect::<Result<_, Error>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer()?).and_then(|list| list.pem()).map_err(failed)
    }

    /// Whether one of these anchors is this authority, or the one above it.
    pub(crate) fn is_below(&self, anchors: &[CertificateDer<'_>]) -> bool {
        let anchor = CertificateDer::from_pem_slice(self.anchor_pem.as_bytes());
        anchor.is_ok_and(|anchor| anchors.contains(&anchor)) || anchors.contains(&self.cert)
    }

    pub(crate) fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, Error> {
        Issuer::from_ca_cert_der(&self.cert, &*self.key)
            .map_err(|source| Error::Signing { what: "a signature of the authority", source })
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        mut validity: Validity,
        usage: &Usage,
    ) -> Result<IssuedCertificate, Error> {
        const WHAT: &str = "a certificate";
        if identity.trust_domain != self.trust_domain {
            let trust_domain = self.trust_domain.clone();
            return Err(Error::ForeignIdentity { identity: identity.clone(), trust_domain });
        }
        validity.not_after = validity.not_after.min(self.validity.not_after);
        let mut params = params(validity)?;
        params.distinguished_name = distinguished_name(identity.name.as_str(), Some(identity.role));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![uri(WHAT, &identity.to_string())?];
        params.subject_alt_names.extend(server_names(identity, usage)?);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if matches!(usage, Usage::Server { .. }) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let cert =
            params.signed_by(key, &self.issuer()?).map_err(|source| Error::Signing { what: WHAT, source })?;
        let (serial, validity) = validity_of_issued(WHAT, cert.der())?;
        let cert_pem = format!("{}{}", cert.pem(), self.chain_pem);
        let spki_pin = Digest::of(&key.subject_public_key_info());
        Ok(IssuedCertificate { identity: identity.clone(), serial, validity, spki_pin, cert_pem })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// Parameters with validity and a serial number, and without any name or right.
fn params(validity: Validity) -> Result<CertificateParams, Error> {
    // X.509 counts in seconds.
    if validity.not_before.0 / 1000 >= validity.not_after.0 / 1000 {
        return Err(Error::Validity { reason: "it ends before it begins, or the authority's own has ended" });
    }
    let mut params = CertificateParams::default();
    params.not_before = date(validity.not_before)?;
    params.not_after = date(validity.not_after)?;
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// 127 random bits. Left alone, rcgen would derive it from the public key, and a renewed certificate of the same
/// key could not be told from the revoked one.
fn random_serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    crate::provider().secure_random.fill(&mut bytes).map_err(|_| Error::Random)?;
    // Positive, and never zero or with a leading zero byte.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn date(time: UnixTime) -> Result<OffsetDateTime, Error> {
    i64::try_from(time.0 / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(Error::Validity { reason: "a date lies beyond the year 9999" })
}

/// For people; what counts is the URI. X.500 allows 64 characters, which any name fits and a trust domain may not.
fn distinguished_name(common_name: &str, role: Option<Role>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(role) = role {
        name.push(DnType::OrganizationalUnitName, role.as_str());
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn uri(what: &'static str, text: &str) -> Result<SanType, Error> {
    text.try_into().map(SanType::URI).map_err(|source| Error::Signing { what, source })
}

/// The names a server is reached under. Exactly the coordinator has them.
fn server_names(identity: &Identity, usage: &Usage) -> Result<Vec<SanType>, Error> {
    let refused = |reason: String| Error::Usage { identity: identity.clone(), reason };
    match (identity.role, usage) {
        (Role::Coordinator, Usage::Server { names }) if !names.is_empty() => {
            names.iter().map(|name| server_name(name).ok_or_else(|| refused(not_a_name(name)))).collect()
        }
        (Role::Coordinator, Usage::Server { .. } | Usage::Client) => {
            Err(refused("a coordinator needs at least one DNS name or IP address".to_owned()))
        }
        (Role::Agent | Role::Operator | Role::Pipeline | Role::Viewer, Usage::Client) => Ok(Vec::new()),
        (Role::Agent | Role::Operator | Role::Pipeline | Role::Viewer, Usage::Server { .. }) => {
            Err(refused("only a coordinator is a server".to_owned()))
        }
    }
}

fn not_a_name(name: &str) -> String {
    format!("`{}` is neither a DNS name nor an IP address", name.escape_debug())
}

fn server_name(name: &str) -> Option<SanType> {
    match ServerName::try_from(name).ok()? {
        ServerName::IpAddress(ip) => Some(SanType::IpAddress(ip.into())),
        ServerName::DnsName(dns) => dns.as_ref().try_into().ok().map(SanType::DnsName),
        _ => None,
    }
}

/// The public key of a request whose signature proves possession of the private one.
fn requested_key(csr_der: &[u8]) -> Result<SubjectPublicKeyInfo, Error> {
    let refused = |reason: String| Error::Request { reason };
    if csr_der.len() > MAX_REQUEST_BYTES {
        return Err(refused(format!("it has {} bytes, and {MAX_REQUEST_BYTES} are read", csr_der.len())));
    }
    let (rest, csr) = X509CertificationRequest::from_der(csr_der)
        .map_err(|error| refused(format!("it is not one in DER: {error}")))?;
    if !rest.is_empty() {
        return Err(refused("there are bytes behind it".to_owned()));
    }
    csr.verify_signature()
        .map_err(|_| refused("its signature is not by the key that it holds".to_owned()))?;
    // The key is read from its own encoding. rcgen's reading of a request infers the kind of key from the kind of
    // signature, which need not agree.
    let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|error| refused(format!("its public key cannot be used: {error}")))?;
    if *key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(refused("its key is not ECDSA P-256".to_owned()));
    }
    Ok(key)
}

/// What certificates of authorities share. `ca_below_max` authorities may follow.
fn authority_params(
    what: &'static str,
    trust_domain: &TrustDomain,
    (kind, key): (&str, &KeyPair),
    validity: Validity,
    ca_below_max: u8,
) -> Result<CertificateParams, Error> {
    let mut params = params(validity)?;
    // A revocation list is found by its issuer's name: two authorities of one trust domain need two names.
    let key_digest = Digest::of(&key.subject_public_key_info()).short();
    params.distinguished_name = distinguished_name(&format!("Muster {kind} {key_digest}"), None);
    params.subject_alt_names = vec![uri(what, &trust_domain.uri())?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(ca_below_max));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn read_key(path: &Path) -> Result<Zeroizing<KeyPair>, Error> {
    let unreadable = |reason: String| Error::Pem { path: path.to_owned(), what: "private key", reason };
    let bytes = read_private(path)?;
    let mut der = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
    let key = KeyPair::try_from(&der).map(Zeroizing::new);
    der.zeroize();
    key.map_err(|error| unreadable(error.to_string()))
}

/// What was signed in the end, read back from the certificate itself.
fn validity_of_issued(what: &'static str, cert_der: &[u8]) -> Result<(Serial, Validity), Error> {
    let cert = certificate::parse(cert_der)
        .map_err(|error| Error::Signing { what, source: rcgen::Error::X509(error.to_string()) })?;
    Ok((certificate::serial_of(&cert), certificate::validity_of(&cert)))
}
