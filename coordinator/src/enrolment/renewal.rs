//! The next certificate for whoever has one.

use std::sync::Arc;
use std::time::Duration;

use muster_audit::Kind;
use muster_model::{Blocker, Code, Refusal};
use muster_mtls::{Peer, Role};
use muster_proto::v1;
use muster_proto::v1::certificates_server::{Certificates, CertificatesServer};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::rate::{Pace, Rate};
use super::registry::PersonRefused;
use super::{Change, record_of};
use crate::coordinator::Shared;
use crate::status::refused;

/// The largest request: a certificate request of 16 KiB and little else.
const REQUEST_BYTES_MAX: usize = 20 << 10;

/// How often people and pipelines may renew, all together: each time is an entry in the audit log.
const PERSONS: Pace = Pace { each: Duration::from_secs(2), at_once: 50 };

/// The service, ready to be added to a server.
pub(crate) fn service(shared: &Arc<Shared>) -> CertificatesServer<Renewal> {
    CertificatesServer::new(Renewal { shared: Arc::clone(shared), persons: Rate::new(PERSONS) })
        .max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// The service for peers.
pub(crate) struct Renewal {
    shared: Arc<Shared>,
    persons: Rate,
}

#[tonic::async_trait]
impl Certificates for Renewal {
    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection has no identity"))?;
        let renewed = self.next(&peer, &request.into_inner().request).await;
        let certificate = renewed.map_err(|refusal| {
            tracing::warn!(who = %peer.identity, %refusal, "a certificate was not renewed");
            refused(refusal)
        })?;
        Ok(Response::new(v1::RenewResponse { certificate }))
    }
}

impl Renewal {
    /// The identity is the peer's own; of the request only the key counts.
    async fn next(&self, peer: &Peer, request: &[u8]) -> Result<String, Refusal> {
        let (shared, enrolments) = (&self.shared, &self.shared.enrolments);
        let (issuer, now) = (enrolments.issuer()?, shared.machine.unix_time());
        if peer.identity.role != Role::Agent {
            if !self.persons.take(Instant::now()) {
                let detail = "many certificates were renewed a moment ago; try again in a minute";
                return Err(Refusal::of(Code::TooManyCertificates, detail));
            }
            return self.next_of_person(peer, request).await;
        }
        let host = peer.identity.name.to_host();
        let _turn = enrolments.turn.lock().await;
        let registry = enrolments.registry();
        if registry.is_evicted(&host) {
            let evicted = Blocker::host(Code::HostEvicted, &host, "an operator has evicted this host");
            return Err(Refusal::because(evicted));
        }
        if registry.is_revoked(&peer.serial.to_string()) {
            return Err(revoked());
        }
        if !registry.may_renew(&host, issuer.host_life, now) {
            let detail = "it has several that are good, and was given the last one a short while ago";
            return Err(Refusal::because(Blocker::host(Code::TooManyCertificates, &host, detail)));
        }
        let issued = issuer.issue(&peer.identity, request, issuer.host_life, now)?;
        let change = Change::Renewed { host: host.clone(), issued: record_of(&issued, now) };
        enrolments.change(shared, vec![change]).await?;
        enrolments.refresh_exclusions(shared);
        tracing::info!(%host, serial = %issued.serial, before = %peer.serial, "a certificate was renewed");
        Ok(issued.cert_pem)
    }

    /// Which one it stands for is kept: whoever holds a stolen one may ask as well.
    async fn next_of_person(&self, peer: &Peer, request: &[u8]) -> Result<String, Refusal> {
        let (shared, enrolments) = (&self.shared, &self.shared.enrolments);
        let (issuer, now) = (enrolments.issuer()?, shared.machine.unix_time());
        let (who, before) = (peer.identity.to_string(), peer.serial.to_string());
        let _turn = enrolments.turn.lock().await;
        enrolments.registry().may_renew_person(&who, &before, now).map_err(|refused| match refused {
            PersonRefused::Revoked => revoked(),
            PersonRefused::TooMany => {
                let detail = "many certificates were renewed in this name, and are good yet";
                Refusal::of(Code::TooManyCertificates, detail)
            }
        })?;
        let issued = issuer.issue(&peer.identity, request, issuer.person_life, now)?;
        let entry = shared.audit.entry(Kind::Certificate, &who);
        let said = format!("certificate {} in place of {before}", issued.serial);
        shared.audit(vec![entry.saying(said)]).await?;
        let change = Change::PersonRenewed { who, before, issued: record_of(&issued, now) };
        enrolments.change(shared, vec![change]).await?;
        Ok(issued.cert_pem)
    }
}

fn revoked() -> Refusal {
    Refusal::of(Code::RequestRefused, "the certificate was revoked meanwhile")
}
