//! Tokens, evictions and revocations.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{FleetName, HostName};
use muster_mtls::Serial;
use muster_proto::convert;
use muster_proto::v1;
use tonic::Status;

use super::audit::settled;
use crate::coordinator::Shared;
use crate::enrolment::{self, Finality, Reach};
use crate::status::{malformed, refused};

/// A host is in a few fleets; its agent takes no more.
const FLEETS_MAX: usize = 64;

pub(super) async fn issue_token(
    shared: &Arc<Shared>,
    request: v1::IssueTokenRequest,
    operator: &str,
) -> Result<v1::IssueTokenResponse, Status> {
    let host = convert::host(&request.host).map_err(malformed)?;
    let fleets = request.fleets.iter().take(FLEETS_MAX).map(|fleet| convert::fleet(fleet));
    let fleets: BTreeSet<FleetName> = fleets.collect::<Result<_, _>>().map_err(malformed)?;
    if fleets.is_empty() {
        return Err(Status::invalid_argument("a host belongs to at least one fleet"));
    }
    let life = Duration::from_millis(request.valid_for_ms);
    let made = enrolment::make_token(shared, host, fleets, life, operator).await;
    let made = settled(shared, operator, "make a token", None, made).await.map_err(refused)?;
    Ok(v1::IssueTokenResponse {
        token: made.token.to_text().to_string(),
        expires_unix_ms: made.expires.0,
        port: made.port.into(),
    })
}

pub(super) fn list_enrolled(shared: &Shared) -> v1::ListEnrolledResponse {
    let text = |fleet: &FleetName| fleet.as_str().to_owned();
    let hosts = enrolment::enrolled(shared).into_iter().map(|host| v1::EnrolledHost {
        host: host.host.as_str().to_owned(),
        fleets: host.fleets.iter().map(text).collect(),
        attestation_key: host.attestation_key,
        enrolled_unix_ms: host.at.0,
        certificate_expires_unix_ms: host.certificate_expires.0,
        pending: host.pending.iter().map(text).collect(),
    });
    v1::ListEnrolledResponse { hosts: hosts.collect() }
}

pub(super) async fn evict(
    shared: &Arc<Shared>,
    request: v1::EvictHostRequest,
    operator: &str,
) -> Result<v1::EvictHostResponse, Status> {
    let host: HostName = convert::host(&request.host).map_err(malformed)?;
    let finality = if request.for_good { Finality::ForGood } else { Finality::UntilToken };
    let evicted = enrolment::evict(shared, (host, finality), &request.reason, operator).await;
    let evicted = settled(shared, operator, "evict a host", None, evicted).await.map_err(refused)?;
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Ok(v1::EvictHostResponse {
        certificates: count(evicted.certificates),
        connections: count(evicted.connections),
    })
}

pub(super) async fn revoke(
    shared: &Arc<Shared>,
    request: v1::RevokeCertificateRequest,
    (operator, own): (&str, &str),
) -> Result<v1::RevokeCertificateResponse, Status> {
    let serial: Serial = request.serial.parse().map_err(Status::invalid_argument)?;
    let reach = if request.alone { Reach::Alone } else { Reach::Renewed };
    let revoked = enrolment::revoke(shared, (&serial, reach), &request.reason, (operator, own)).await;
    let revoked = settled(shared, operator, "revoke a certificate", None, revoked).await;
    let (renewed, ended) = revoked.map_err(refused)?;
    let count = |it: usize| u32::try_from(it).unwrap_or(u32::MAX);
    Ok(v1::RevokeCertificateResponse { connections: count(ended), renewed: count(renewed) })
}

/// What the status says of the coordinator's own certificates.
pub(super) fn own(shared: &Shared) -> Option<v1::CoordinatorCertificate> {
    let standing = shared.enrolments.standing();
    let certificate = standing.certificate?;
    Some(v1::CoordinatorCertificate {
        began_unix_ms: certificate.began().0,
        expires_unix_ms: certificate.not_after.0,
        list_expires_unix_ms: standing.list.map(|list| list.not_after.0),
        issuer_expires_unix_ms: standing.issuer.map(|issuer| issuer.not_after.0),
        renews_unix_ms: standing.renews.map(|at| at.0),
    })
}
