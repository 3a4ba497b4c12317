//! The door for strangers: hosts that have no certificate yet, or none any more.
//!
//! Nothing here is believed but a token's secret and signatures. The rate is bounded for all together, as a stranger can come
//! from anywhere; what is refused is written down at a bounded rate as well.

use std::sync::Arc;
use std::time::Duration;

use muster_audit::Kind;
use muster_model::{Blocker, Code, Digest, HostName, PublicKey, Refusal, UnixTime};
use muster_mtls::{Identity, Limits, Role, Stranger};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use muster_trust::{TOKEN_SECRET_LEN, enrolment_possession, is_signed_by, recovery_possession, token_digest};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::rate::{Pace, Rate};
use super::registry::{Bound, Recovery, Verdict};
use super::{Change, record_of, token_document};
use crate::audit::Throttle;
use crate::coordinator::Shared;
use crate::status::{malformed, refused};

/// What is taken on at the door, which is little.
pub(crate) const LIMITS: Limits =
    Limits { handshake_timeout: Duration::from_secs(5), handshakes_max: 128, connections_max: 256 };
/// How long a call may take, and how long a connection may last.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);
/// Calls at once on one connection.
pub(crate) const STREAMS_MAX: u32 = 2;

/// The largest request: a certificate request of 16 KiB and little else.
const REQUEST_BYTES_MAX: usize = 20 << 10;

/// How often strangers may call, all together.
const CALLS: Pace = Pace { each: Duration::from_millis(20), at_once: 200 };

/// The service, ready to be added to a server.
pub(crate) fn service(shared: &Arc<Shared>) -> EnrolmentServer<Door> {
    let refusals = Throttle::new(shared.audit.clone(), Kind::Refusal, "strangers were refused");
    let door = Door { shared: Arc::clone(shared), refusals, rate: Rate::new(CALLS) };
    EnrolmentServer::new(door).max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// The service for strangers.
pub(crate) struct Door {
    shared: Arc<Shared>,
    refusals: Throttle,
    rate: Rate,
}

#[tonic::async_trait]
impl Enrolment for Door {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let who = self.stranger(&request)?;
        let request = request.into_inner();
        let host = convert::host(&request.host).map_err(malformed)?;
        let enrolled = self.enrol_host(&host, request).await;
        self.answer(&who, "enrol", &host, enrolled).await
    }

    async fn recover(
        &self,
        request: Request<v1::RecoverRequest>,
    ) -> Result<Response<v1::RecoverResponse>, Status> {
        let who = self.stranger(&request)?;
        let request = request.into_inner();
        let host = convert::host(&request.host).map_err(malformed)?;
        let recovered = self.recover_host(&host, &request).await;
        self.answer(&who, "recover", &host, recovered).await
    }
}

/// Why somebody was sent away: what they are told, and what only the log says.
struct SentAway {
    told: Refusal,
    reason: Option<String>,
}

impl From<Refusal> for SentAway {
    fn from(told: Refusal) -> Self {
        Self { told, reason: None }
    }
}

impl Door {
    /// Who asks, unless too many do.
    fn stranger<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let address = request.extensions().get::<Stranger>().map(|stranger| stranger.address.ip());
        if !self.rate.take(Instant::now()) {
            return Err(Status::resource_exhausted("too many ask at once; try again in a moment"));
        }
        Ok(address.map_or_else(|| "a stranger".to_owned(), |ip| format!("a stranger at {ip}")))
    }

    async fn answer<T>(
        &self,
        who: &str,
        asked: &str,
        host: &HostName,
        outcome: Result<T, SentAway>,
    ) -> Result<Response<T>, Status> {
        let SentAway { told, reason } = match outcome {
            Ok(answer) => return Ok(Response::new(answer)),
            Err(sent_away) => sent_away,
        };
        let reason = reason.unwrap_or_else(|| told.to_string());
        tracing::warn!(%host, who, asked, reason, "a stranger was refused");
        let code = told.code().unwrap_or(Code::TokenRefused);
        let written = Refusal::because(Blocker::host(code, host, reason));
        let written = self.refusals.refused(who, asked, &written).await;
        written.map_err(|error| refused(self.shared.store_failed(error)))?;
        Err(refused(told))
    }

    async fn enrol_host(
        &self,
        host: &HostName,
        request: v1::EnrolRequest,
    ) -> Result<v1::EnrolResponse, SentAway> {
        let (shared, enrolments) = (&self.shared, &self.shared.enrolments);
        let attestation_key: PublicKey = request.attestation_key.parse().map_err(|_| {
            Refusal::of(Code::RequestRefused, "the attestation key is none that is known here")
        })?;
        if request.secret.len() != TOKEN_SECRET_LEN {
            return Err(token_refused("its secret has another length"));
        }
        let token = token_digest(&request.secret);
        let message = enrolment_possession(&token, host, &request.request);
        if !is_signed_by(&attestation_key, &message, &request.possession) {
            return Err(not_possessed().into());
        }
        let (issuer, now) = (enrolments.issuer()?, shared.machine.unix_time());
        // Signed before it is known whether it is wanted: only the request's own key is taken of it, and what nobody is
        // given is nothing.
        let identity = agent(&issuer.authority, host);
        let issued = issuer.issue(&identity, &request.request, issuer.host_life, now)?;
        let _turn = enrolments.turn.lock().await;
        let verdict = enrolments.registry().enrol(&token, host, (&issued.spki_pin, &attestation_key), now);
        match verdict {
            Verdict::Bind => {
                let key = Digest::of(attestation_key.to_string().as_bytes());
                let (name, digest) = token_document(token);
                let entry = shared.audit.entry(Kind::Enrol, &identity.to_string()).of_hosts([host]);
                let entry = entry.with(name, digest).with("attestation_key", key);
                let said = format!("certificate {}, attestation key {attestation_key}", issued.serial);
                shared.audit(vec![entry.saying(said)]).await?;
                let certificate_pem = issued.cert_pem.clone();
                let bound = Bound { spki: issued.spki_pin, attestation_key, certificate_pem };
                let issued_record = record_of(&issued, now);
                enrolments
                    .change(shared, vec![Change::Enrolled { token, bound, issued: issued_record }])
                    .await?;
                shared.enrolments.refresh_exclusions(shared);
                tracing::info!(%host, serial = %issued.serial, "a host has enrolled");
                let registry = enrolments.registry();
                let fleets = registry.token(&token).map(|token| token.fleets.clone()).unwrap_or_default();
                Ok(self.enrolled(issued.cert_pem, fleets))
            }
            Verdict::Again { certificate_pem, fleets } => Ok(self.enrolled(certificate_pem, fleets)),
            Verdict::Elsewhere { first } => {
                if first {
                    self.raise_alarm(host, token).await?;
                }
                let detail = "another machine has enrolled with this token, and it is not this one's key";
                Err(Refusal::of(Code::TokenBoundElsewhere, detail).into())
            }
            Verdict::Refused(reason) => Err(token_refused(reason)),
        }
    }

    fn enrolled(
        &self,
        certificate: String,
        fleets: impl IntoIterator<Item = muster_model::FleetName>,
    ) -> v1::EnrolResponse {
        v1::EnrolResponse {
            certificate,
            fleets: fleets.into_iter().map(|fleet| fleet.as_str().to_owned()).collect(),
            port: self.shared.enrolments.main.get().map_or(0, |main| main.port().into()),
            audit_key: self.shared.audit.key().to_string(),
        }
    }

    /// Two machines show one token: one of them may be a thief, whoever was first. It is said once for each token.
    async fn raise_alarm(&self, host: &HostName, token: Digest) -> Result<(), Refusal> {
        let (shared, enrolments) = (&self.shared, &self.shared.enrolments);
        let (name, digest) = token_document(token);
        let entry = shared.audit.own_entry(Kind::Alarm).of_hosts([host]).with(name, digest);
        let said =
            "two machines have shown the token that was made for this host; evict it unless you know both";
        shared.audit(vec![entry.saying(said)]).await?;
        tracing::error!(%host, "two machines have shown one token: it may have been stolen");
        enrolments.change(shared, vec![Change::Contested { token }]).await
    }

    async fn recover_host(
        &self,
        host: &HostName,
        request: &v1::RecoverRequest,
    ) -> Result<v1::RecoverResponse, SentAway> {
        let (shared, enrolments) = (&self.shared, &self.shared.enrolments);
        let asked = UnixTime(request.at_unix_ms);
        let message = recovery_possession(host, asked, &request.request);
        let is_signed = |key: &PublicKey| is_signed_by(key, &message, &request.possession);
        if !keys_of(shared, host).iter().any(is_signed) {
            return Err(recovery_refused("no roster in force names the key that has signed"));
        }
        let (issuer, now) = (enrolments.issuer()?, shared.machine.unix_time());
        let identity = agent(&issuer.authority, host);
        let issued = issuer.issue(&identity, &request.request, issuer.host_life, now)?;
        let _turn = enrolments.turn.lock().await;
        let recovery = enrolments.registry().recover(host, &issued.spki_pin, asked, now);
        let (certificate, left) = match recovery.map_err(recovery_refused)? {
            Recovery::Again { certificate_pem, left } => (certificate_pem, left),
            Recovery::Issue { left } => {
                let entry = shared.audit.entry(Kind::Certificate, &identity.to_string()).of_hosts([host]);
                let said = format!("recovered: certificate {}; {left} more times", issued.serial);
                shared.audit(vec![entry.saying(said)]).await?;
                let change = Change::Recovered {
                    host: host.clone(),
                    issued: record_of(&issued, now),
                    spki: issued.spki_pin,
                    certificate_pem: issued.cert_pem.clone(),
                };
                enrolments.change(shared, vec![change]).await?;
                shared.enrolments.refresh_exclusions(shared);
                tracing::warn!(%host, left, "a host has recovered from an expired certificate");
                (issued.cert_pem, left)
            }
        };
        Ok(v1::RecoverResponse { certificate, left: u32::try_from(left).unwrap_or(u32::MAX) })
    }
}

/// The keys that the rosters in force name for this host, serving or parked.
fn keys_of(shared: &Shared, host: &HostName) -> Vec<PublicKey> {
    let rosters = shared.fleets().into_iter().map(|fleet| fleet.roster().roster);
    let keys = rosters.filter_map(|roster| {
        let serving = roster.member(host).map(|member| member.attestation_key.clone());
        serving.or_else(|| roster.parked_host(host).map(|it| it.attestation_key.clone()))
    });
    keys.collect()
}

fn agent(authority: &muster_mtls::Authority, host: &HostName) -> Identity {
    Identity::new(authority.trust_domain().clone(), Role::Agent, host.clone().into())
}

fn token_refused(reason: &str) -> SentAway {
    let told = "the token does not let this host enrol: it may be mistyped, have expired, or be another host's; the \
                coordinator's audit log says which";
    SentAway { told: Refusal::of(Code::TokenRefused, told), reason: Some(reason.to_owned()) }
}

fn recovery_refused(reason: &str) -> SentAway {
    let told =
        "this host is given no certificate in place of an expired one; the coordinator's audit log says why";
    SentAway { told: Refusal::of(Code::RecoveryRefused, told), reason: Some(reason.to_owned()) }
}

fn not_possessed() -> Refusal {
    Refusal::of(Code::RequestRefused, "it is not signed with the attestation key that it names")
}
