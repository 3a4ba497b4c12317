//! What one process proves itself with and whom it trusts, read from files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_model::Digest;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::authority::Authority;
use crate::certificate::{self, Serial, Validity};
use crate::error::Error;
use crate::file::{read_private, read_public};
use crate::identity::{Identity, identity_of};

/// A certificate chain, its key and a bundle of authorities are each far shorter.
const MAX_PEM_SECTIONS: usize = 64;

/// How many authorities a stranger is shown.
const ANCHORS_SHOWN_MAX: usize = 4;

/// Where the credentials of a process are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialPaths {
    /// The certificate, followed by intermediate ones if there are any.
    pub certificate: PathBuf,
    /// The private key; nobody but its owner may read it.
    pub key: PathBuf,
    /// The authorities that are trusted.
    pub ca: PathBuf,
    /// The revocation lists. Once named they must exist and be current: a list that is stale shuts everyone out.
    pub crl: Option<PathBuf>,
}

impl CredentialPaths {
    /// The usual names within one folder, without revocation lists.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            certificate: dir.join("certificate.pem"),
            key: dir.join("key.pem"),
            ca: dir.join("ca.pem"),
            crl: None,
        }
    }
}

/// The same as PEM in memory. Errors call the parts `certificate`, `key`, `ca` and `crl`.
#[derive(Clone, Copy)]
pub struct PemBundle<'a> {
    /// The certificate chain.
    pub certificate: &'a str,
    /// The private key.
    pub key: &'a str,
    /// The authorities.
    pub ca: &'a str,
    /// The revocation lists.
    pub crl: Option<&'a str>,
}

/// A certificate with its key, the authorities that are trusted, and the revocation lists.
///
/// Cheap to clone. It may have expired: the peer decides whether it accepts it, and [`Self::validity`] tells
/// everyone else.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    serial: Serial,
    validity: Validity,
    certified_key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    anchors: Arc<[CertificateDer<'static>]>,
    crls: Vec<CertificateRevocationListDer<'static>>,
    own_crl: Option<CertificateRevocationListDer<'static>>,
    crl_validity: Option<Validity>,
}

impl Credentials {
    /// Reads the files. Blocks, as they are small and local.
    pub fn load(paths: &CredentialPaths) -> Result<Self, Error> {
        let part = |path: &Path| read_public(path).map(|bytes| (path.to_owned(), bytes));
        let key = read_private(&paths.key)?;
        Self::parse(
            part(&paths.certificate)?,
            (&paths.key, &key),
            part(&paths.ca)?,
            paths.crl.as_deref().map(part).transpose()?,
        )
    }

    /// Takes the parts from memory.
    pub fn from_pem(pem: PemBundle<'_>) -> Result<Self, Error> {
        let part = |name: &str, text: &str| (PathBuf::from(name), text.as_bytes().to_vec());
        Self::parse(
            part("certificate", pem.certificate),
            (Path::new("key"), pem.key.as_bytes()),
            part("ca", pem.ca),
            pem.crl.map(|text| part("crl", text)),
        )
    }

    /// Whom the certificate speaks for.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The certificate's serial number.
    #[must_use]
    pub const fn serial(&self) -> &Serial {
        &self.serial
    }

    /// From when until when the certificate is valid: health turns bad before it ends.
    #[must_use]
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// The same of the revocation list that ends first, if there are any.
    #[must_use]
    pub const fn crl_validity(&self) -> Option<Validity> {
        self.crl_validity
    }

    /// The same, for a server that also goes by the list of its own issuing authority. It speaks of the certificates that
    /// this authority has issued; a stale one lets nobody in whom it speaks of.
    pub fn with_own_list(mut self, list_pem: &str) -> Result<Self, Error> {
        let (mut lists, validity) = revocation_lists(Path::new("own list"), list_pem.as_bytes())?;
        self.own_crl = lists.pop();
        let is_first = self.crl_validity.is_none_or(|first| validity.not_after < first.not_after);
        self.crl_validity = if is_first { Some(validity) } else { self.crl_validity };
        Ok(self)
    }

    /// The DNS names and IP addresses under which a server with this certificate is reached.
    pub fn server_names(&self) -> Result<Vec<String>, Error> {
        let leaf = self.certified_key.cert.first().expect("a chain begins with a certificate");
        let names = certificate::server_names(leaf);
        names.map_err(|source| Error::Certificate { path: PathBuf::from("the chain"), source })
    }

    /// The digests of the trusted authorities' public keys: what a host is provisioned with before it has a certificate.
    pub fn anchor_pins(&self) -> Result<Vec<Digest>, Error> {
        self.anchors.iter().map(|anchor| spki_pin(anchor)).collect()
    }

    /// Whether `authority` is one of the trusted ones or is vouched for by one of them, so that all who trust the same
    /// accept what it issues.
    #[must_use]
    pub fn trusts(&self, authority: &Authority) -> bool {
        authority.is_below(&self.anchors)
    }

    pub(crate) const fn own_crl(&self) -> Option<&CertificateRevocationListDer<'static>> {
        self.own_crl.as_ref()
    }

    /// The chain up to the anchors, with the same key.
    pub(crate) fn certified_key_with_anchors(&self) -> Arc<CertifiedKey> {
        let mut chain = self.certified_key.cert.clone();
        for anchor in self.anchors.iter().take(ANCHORS_SHOWN_MAX) {
            if !chain.contains(anchor) {
                chain.push(anchor.clone());
            }
        }
        Arc::new(CertifiedKey::new(chain, self.certified_key.key.clone()))
    }

    pub(crate) const fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified_key
    }

    pub(crate) const fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    pub(crate) fn crls(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.crls.clone()
    }

    fn parse(
        (cert_path, cert): (PathBuf, Vec<u8>),
        (key_path, key): (&Path, &[u8]),
        (ca_path, ca): (PathBuf, Vec<u8>),
        crl: Option<(PathBuf, Vec<u8>)>,
    ) -> Result<Self, Error> {
        let chain: Vec<CertificateDer<'static>> = sections(&cert_path, "certificate", &cert)?;
        let bad_cert = |source| Error::Certificate { path: cert_path.clone(), source };
        let identity = identity_of(&chain[0]).map_err(bad_cert)?;
        let (serial, validity) = {
            let parsed = certificate::parse(&chain[0]).map_err(bad_cert)?;
            (certificate::serial_of(&parsed), certificate::validity_of(&parsed))
        };

        let private_key = PrivateKeyDer::from_pem_slice(key).map_err(|error| Error::Pem {
            path: key_path.to_owned(),
            what: "private key",
            reason: error.to_string(),
        })?;
        let certified_key =
            CertifiedKey::from_der(chain, private_key, &crate::provider()).map_err(|source| {
                Error::KeyMismatch { certificate: cert_path.clone(), key: key_path.to_owned(), source }
            })?;

        let (crls, crl_validity) = match crl {
            Some((path, bytes)) => {
                revocation_lists(&path, &bytes).map(|(crls, validity)| (crls, Some(validity)))?
            }
            None => (Vec::new(), None),
        };
        Ok(Self {
            identity,
            serial,
            validity,
            certified_key: Arc::new(certified_key),
            roots: Arc::new(roots(&ca_path, &ca)?),
            anchors: sections::<CertificateDer<'static>>(&ca_path, "CA certificate", &ca)?.into(),
            crls,
            own_crl: None,
            crl_validity,
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("validity", &self.validity)
            .field("crl_validity", &self.crl_validity)
            .finish_non_exhaustive()
    }
}

/// The digest of a certificate's public key.
pub(crate) fn spki_pin(cert_der: &[u8]) -> Result<Digest, Error> {
    let parsed = certificate::parse(cert_der)
        .map_err(|source| Error::Certificate { path: PathBuf::from("the chain"), source })?;
    Ok(Digest::of(parsed.public_key().raw))
}

/// All sections of one kind; at least one.
fn sections<T: PemObject>(path: &Path, what: &'static str, bytes: &[u8]) -> Result<Vec<T>, Error> {
    let failed = |reason: String| Error::Pem { path: path.to_owned(), what, reason };
    let found: Vec<T> = T::pem_slice_iter(bytes)
        .take(MAX_PEM_SECTIONS + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    match found.len() {
        0 => Err(failed("there is no such PEM section".to_owned())),
        1..=MAX_PEM_SECTIONS => Ok(found),
        _ => Err(failed(format!("there are more than {MAX_PEM_SECTIONS}"))),
    }
}

fn roots(path: &Path, bytes: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for cert in sections::<CertificateDer<'static>>(path, "CA certificate", bytes)? {
        let parsed = certificate::parse(&cert)
            .map_err(|source| Error::Certificate { path: path.to_owned(), source })?;
        // A leaf that is taken for an anchor would be trusted without any check of its own.
        if !parsed.is_ca() {
            return Err(Error::NotAnAuthority { path: path.to_owned() });
        }
        roots.add(cert).map_err(|error| Error::Pem {
            path: path.to_owned(),
            what: "CA certificate",
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn revocation_lists(
    path: &Path,
    bytes: &[u8],
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Validity), Error> {
    const WHAT: &str = "revocation list";
    let failed = |reason: &str| Error::Pem { path: path.to_owned(), what: WHAT, reason: reason.to_owned() };
    let lists: Vec<CertificateRevocationListDer<'static>> = sections(path, WHAT, bytes)?;
    let mut first: Option<Validity> = None;
    for list in &lists {
        let (_, parsed) =
            CertificateRevocationList::from_der(list).map_err(|error| failed(&error.to_string()))?;
        let next_update =
            parsed.next_update().ok_or_else(|| failed("it does not say when the next follows"))?;
        let validity = Validity {
            not_before: certificate::unix_time(parsed.last_update()),
            not_after: certificate::unix_time(next_update),
        };
        if first.is_none_or(|first| validity.not_after < first.not_after) {
            first = Some(validity);
        }
    }
    first.map(|validity| (lists, validity)).ok_or_else(|| failed("there is no such PEM section"))
}
