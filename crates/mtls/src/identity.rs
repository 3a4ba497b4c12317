//! Who a certificate speaks for: one SPIFFE ID, `spiffe://<trust-domain>/<role>/<name>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use muster_model::{IdentityName, NameError};
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::extensions::GeneralName;

use crate::certificate;

const SCHEME: &str = "spiffe://";

/// The limit of the SPIFFE standard, in bytes.
const MAX_TRUST_DOMAIN_LEN: usize = 255;

/// The tag of a URI among the kinds of `GeneralName` (RFC 5280).
const URI_TAG: Tag = Tag(6);

/// What kind of peer a certificate is for. What each may call is in the coordinator's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The only role that may act as a server.
    Coordinator,
    /// A host of a fleet.
    Agent,
    /// A person who runs fleets.
    Operator,
    /// A build or release pipeline.
    Pipeline,
    /// Someone who only looks.
    Viewer,
}

impl Role {
    /// All roles, for tables and tests that walk them.
    pub const ALL: [Self; 5] = [Self::Coordinator, Self::Agent, Self::Operator, Self::Pipeline, Self::Viewer];

    /// The role as it is written in an identity.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Pipeline => "pipeline",
            Self::Viewer => "viewer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| IdentityError::Role { found: escaped(text) })
    }
}

/// The name under which one CA speaks: identities of another trust domain are strangers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks `text`: 1 to 255 of `a-z`, `0-9`, `.`, `-`, `_`, as SPIFFE says.
    pub fn new(text: &str) -> Result<Self, IdentityError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN_LEN || !text.bytes().all(allowed) {
            return Err(IdentityError::TrustDomain { found: escaped(text) });
        }
        Ok(Self(text.into()))
    }

    /// The trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `spiffe://<trust-domain>`: what the CA's own certificate carries.
    pub(crate) fn uri(&self) -> String {
        format!("{SCHEME}{self}")
    }

    /// The opposite of [`Self::uri`].
    pub(crate) fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        Self::new(uri.strip_prefix(SCHEME).ok_or_else(|| IdentityError::Scheme { found: escaped(uri) })?)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

/// Who someone is: trust domain, role and name. Its text form has exactly one spelling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Which CA's world.
    pub trust_domain: TrustDomain,
    /// What kind of peer.
    pub role: Role,
    /// Which one of that kind.
    pub name: IdentityName,
}

impl Identity {
    /// Puts the three parts together.
    #[must_use]
    pub const fn new(trust_domain: TrustDomain, role: Role, name: IdentityName) -> Self {
        Self { trust_domain, role, name }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.trust_domain, self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| IdentityError::Scheme { found: escaped(text) })?;
        let mut parts = rest.split('/');
        let (Some(domain), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::Shape { found: escaped(text) });
        };
        Ok(Self {
            trust_domain: TrustDomain::new(domain)?,
            role: role.parse()?,
            name: IdentityName::new(name)?,
        })
    }
}

/// Why a certificate or a text gives no [`Identity`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate.
    #[error("this is not an X.509 certificate: {reason}")]
    Certificate {
        /// What the parser said.
        reason: String,
    },
    /// No URI among the certificate's alternative names.
    #[error("the certificate names no identity: it has no URI among its alternative names")]
    NoUri,
    /// More than one URI: which of them would speak?
    #[error("the certificate has {count} URIs among its alternative names, and exactly one is allowed")]
    SeveralUris {
        /// How many.
        count: usize,
    },
    /// Another kind of URI.
    #[error("an identity begins with `spiffe://`, this is `{found}`")]
    Scheme {
        /// The text.
        found: String,
    },
    /// Too few or too many parts.
    #[error("an identity is `spiffe://<trust-domain>/<role>/<name>`, this is `{found}`")]
    Shape {
        /// The text.
        found: String,
    },
    /// Not the name of a trust domain.
    #[error("`{found}` is not a trust domain: use 1 to 255 of a-z, 0-9, `.`, `-` and `_`")]
    TrustDomain {
        /// The text.
        found: String,
    },
    /// No such role.
    #[error("`{found}` is not a role: use coordinator, agent, operator, pipeline or viewer")]
    Role {
        /// The text.
        found: String,
    },
    /// The last part is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A well-formed identity of somebody else's world.
    #[error("{found} is not of the trust domain `{expected}`")]
    ForeignTrustDomain {
        /// Who presented itself.
        found: Identity,
        /// The trust domain of this side.
        expected: TrustDomain,
    },
    /// A well-formed identity where another role is needed.
    #[error("{found} is not a {expected}")]
    WrongRole {
        /// Who presented itself.
        found: Identity,
        /// The role that is needed there.
        expected: Role,
    },
}

/// Reads the identity of a certificate in DER: exactly one URI among its alternative names, and that one a valid identity.
///
/// It says nothing of who signed the certificate.
pub fn identity_of(cert_der: &[u8]) -> Result<Identity, IdentityError> {
    only_uri(cert_der)?.parse()
}

/// The one URI of a certificate.
pub(crate) fn only_uri(cert_der: &[u8]) -> Result<String, IdentityError> {
    let unreadable = |reason: String| IdentityError::Certificate { reason };
    // webpki leaves out URIs that are not UTF-8, so the entries are counted in a second reading that keeps them.
    let count = uri_count(cert_der)?;
    let cert_der = CertificateDer::from(cert_der);
    let cert = EndEntityCert::try_from(&cert_der).map_err(|error| unreadable(error.to_string()))?;
    let mut uris = cert.valid_uri_names();
    match (count, uris.next(), uris.next()) {
        (0, None, None) => Err(IdentityError::NoUri),
        (1, Some(uri), None) => Ok(uri.to_owned()),
        (1, None, None) => Err(unreadable("its URI is not text".to_owned())),
        _ => Err(IdentityError::SeveralUris { count }),
    }
}

fn uri_count(cert_der: &[u8]) -> Result<usize, IdentityError> {
    let cert = certificate::parse(cert_der)?;
    let names = cert
        .subject_alternative_name()
        .map_err(|error| IdentityError::Certificate { reason: error.to_string() })?;
    let is_uri = |name: &&GeneralName<'_>| {
        matches!(name, GeneralName::URI(_)) || matches!(name, GeneralName::Invalid(tag, _) if *tag == URI_TAG)
    };
    Ok(names.map_or(0, |names| names.value.general_names.iter().filter(is_uri).count()))
}

fn escaped(text: &str) -> String {
    text.chars().take(MAX_TRUST_DOMAIN_LEN).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_form_is_strict() {
        let text = "spiffe://fleet.example/agent/host-1";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.role, Role::Agent);
        assert_eq!(identity.name.as_str(), "host-1");
        assert_eq!(identity.to_string(), text);
        for bad in [
            "",
            "https://fleet.example/agent/host-1",
            "SPIFFE://fleet.example/agent/host-1",
            "spiffe:///agent/host-1",
            "spiffe://Fleet.example/agent/host-1",
            "spiffe://fleet.example:443/agent/host-1",
            "spiffe://user@fleet.example/agent/host-1",
            "spiffe://fleet.example/Agent/host-1",
            "spiffe://fleet.example/root/host-1",
            "spiffe://fleet.example/agent",
            "spiffe://fleet.example/agent/",
            "spiffe://fleet.example/agent/host-1/",
            "spiffe://fleet.example//agent/host-1",
            "spiffe://fleet.example/agent/host-1?x=1",
            "spiffe://fleet.example/agent/host-1#x",
            "spiffe://fleet.example/agent/host%2d1",
            "spiffe://fleet.example/agent/..",
            " spiffe://fleet.example/agent/host-1",
            "spiffe://fleet.example/agent/host-1\n",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_parses_is_written_as_it_was_read(text in "spiffe://[a-z0-9._-]{0,6}/(agent|operator|viewr)/[a-zA-Z0-9._/-]{0,6}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_have_no_identity() {
        assert!(matches!(identity_of(b"not DER"), Err(IdentityError::Certificate { .. })));
    }
}
