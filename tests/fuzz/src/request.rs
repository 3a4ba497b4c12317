//! Certificate signing requests: nothing but the key is taken from them.

use std::sync::LazyLock;

use muster_model::{IdentityName, UnixTime};
use muster_mtls::{Authority, Identity, Role, TrustDomain, Usage, Validity, identity_of};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::Verdict;

const HOUR_MS: u64 = 3_600_000;
const NOW: UnixTime = UnixTime(1_700_000_000_000);
const VALIDITY: Validity = Validity { not_before: NOW, not_after: UnixTime(NOW.0 + HOUR_MS) };

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::create(domain(), NOW).unwrap());

fn domain() -> TrustDomain {
    TrustDomain::new("muster.local").unwrap()
}

pub(crate) fn run(bytes: &[u8]) -> Verdict {
    let identity = Identity::new(domain(), Role::Agent, IdentityName::new("host-1").unwrap());
    let Ok(issued) = AUTHORITY.issue_for_csr(bytes, &identity, VALIDITY, &Usage::Client) else {
        return Verdict::Refused;
    };
    let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
    assert_eq!(identity_of(&der).unwrap(), identity, "whatever name was asked for");
    assert_eq!((issued.identity, issued.validity), (identity, VALIDITY), "and for however long");
    Verdict::Taken
}
