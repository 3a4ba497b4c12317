//! Renews this host's certificate about half-way through its life, each time with a new key, and recovers from one that has
//! expired. Where a PKI of one's own renews the files, they are read again once they have changed.
//!
//! The stream to the coordinator goes on over the certificate that it began with; `stream` begins it anew when the host is at
//! rest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_daemon::{Machine, Shutdown, crash_point};
use muster_model::{Code, HostName, UnixTime};
use muster_mtls::{
    Address, Anchor, CertificateFiles, ClientTls, ConnectOptions, Credentials, FileMarks, Keeping,
    KeyRequest, Start, Validity, connect_through, introduce,
};
use muster_proto::v1;
use muster_proto::v1::certificates_client::CertificatesClient;
use muster_proto::v1::enrolment_client::EnrolmentClient;
use muster_trust::{Signer as _, SigningKey, recovery_possession};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::agent::Coordinator;
use crate::driver::Input;
use crate::enrol::refusal_of;
use crate::{AgentError, refusal};

/// How often files and times are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the coordinator may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A failed attempt is repeated after this part of a life, within these limits.
const RETRY_PART: u64 = 50;
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15 * 60);

/// After how many failed attempts somebody should look.
const FAILURES_MAX: u32 = 2;

/// What becomes of the certificate. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CertificateState(Arc<Mutex<Option<v1::CertificateReport>>>);

/// Renews.
pub(crate) struct Renewal {
    pub(crate) coordinator: Coordinator,
    pub(crate) host: HostName,
    pub(crate) machine: Machine,
    pub(crate) files: CertificateFiles,
    /// Where hosts are expected whose certificate has expired.
    pub(crate) enrolment: Option<Address>,
    pub(crate) attestation_key: Arc<SigningKey>,
    pub(crate) state: CertificateState,
    /// The fleets, which tell of it.
    pub(crate) inboxes: Vec<mpsc::Sender<Input>>,
}

/// What is to be done next, and when.
struct Plan {
    due: Option<UnixTime>,
    failures: u32,
    failure: String,
    marks: FileMarks,
}

/// Why an attempt failed.
#[derive(Debug)]
enum Failed {
    /// The coordinator issues none: it is somebody else's business.
    NotIssued,
    Because(String),
}

impl CertificateState {
    /// What is told of it.
    pub(crate) fn report(&self) -> Option<v1::CertificateReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is another one than before.
    fn set(&self, report: v1::CertificateReport) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_changed = told.as_ref() != Some(&report);
        *told = Some(report);
        is_changed
    }
}

impl Renewal {
    /// Runs until the agent ends.
    pub(crate) async fn run(self, shutdown: Shutdown) -> Result<(), AgentError> {
        let validity = self.tls().credentials().validity();
        let due = Some(self.half_way(validity)?);
        let mut plan = Plan { due, failures: 0, failure: String::new(), marks: self.marks().await };
        loop {
            self.tell(&plan).await;
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = shutdown.requested() => return Ok(()),
            }
            self.look_at_files(&mut plan).await?;
            if plan.due.is_some_and(|due| due <= self.machine.unix_time()) {
                tokio::select! {
                    attempted = self.attempt(&mut plan) => attempted?,
                    () = shutdown.requested() => return Ok(()),
                }
            }
        }
    }

    const fn tls(&self) -> &ClientTls {
        &self.coordinator.tls
    }

    async fn marks(&self) -> FileMarks {
        let files = self.files.clone();
        // A thread that ended without an outcome is asked again a second later.
        self.machine.run_blocking(move || files.marks()).await.unwrap_or_default()
    }

    /// Takes over what somebody else has put into the configured files.
    async fn look_at_files(&self, plan: &mut Plan) -> Result<(), AgentError> {
        let marks = self.marks().await;
        if marks == plan.marks || marks == FileMarks::default() {
            return Ok(());
        }
        let files = self.files.clone();
        let loaded = self.machine.run_blocking(move || files.load()).await;
        let loaded = loaded.map_err(|source| AgentError::Task { source })?;
        match loaded.and_then(|credentials| self.tls().replace(&credentials).map(|()| credentials)) {
            Ok(credentials) => {
                tracing::info!(serial = %credentials.serial(), "the certificate files were read again");
                plan.renewed(self.half_way(credentials.validity())?);
                plan.marks = marks;
            }
            // They may be half exchanged; looked at again until they can be read.
            Err(error) => {
                tracing::warn!(
                    error = refusal::chain(&error),
                    "the certificate files cannot be used as they are"
                );
            }
        }
        Ok(())
    }

    async fn attempt(&self, plan: &mut Plan) -> Result<(), AgentError> {
        let now = self.machine.unix_time();
        let validity = self.tls().credentials().validity();
        let has_expired = validity.not_after < now;
        let outcome = if has_expired { self.recover().await } else { self.renew().await };
        match outcome {
            Ok(credentials) => {
                let serial = credentials.serial();
                tracing::info!(%serial, has_expired, "this host has a new certificate");
                plan.renewed(self.half_way(credentials.validity())?);
            }
            Err(Failed::NotIssued) => {
                tracing::info!("the coordinator issues no certificates; whoever does renews the files");
                plan.due = None;
            }
            Err(Failed::Because(reason)) => {
                plan.failures += 1;
                tracing::warn!(failures = plan.failures, reason, "this host's certificate was not renewed");
                if plan.failures >= FAILURES_MAX || validity.is_ending(now) {
                    let until = validity.not_after.0;
                    tracing::error!(
                        until_unix_ms = until,
                        "this host will be stranded unless somebody looks at it"
                    );
                }
                plan.failure = reason;
                plan.due = Some(self.machine.unix_time().after(self.pause(validity)?));
            }
        }
        Ok(())
    }

    async fn renew(&self) -> Result<Credentials, Failed> {
        let (request, key) = new_request()?;
        let Coordinator { address, tls, dialer } = &self.coordinator;
        let options = ConnectOptions { start: Start::Eager, ..ConnectOptions::default() };
        let channel = connect_through(dialer, address, tls, options).await.map_err(because)?;
        let mut client = CertificatesClient::new(channel);
        let answer = within(client.renew(v1::RenewRequest { request })).await?;
        self.put_in_force(answer.certificate, key).await
    }

    /// The certificate has expired: the attestation key that the roster names stands in for it.
    async fn recover(&self) -> Result<Credentials, Failed> {
        let Some(address) = &self.enrolment else {
            let reason = "its certificate has expired, and agent.toml names no `enrolment` where it could recover; enrol \
                          it anew with a token";
            return Err(Failed::Because(reason.to_owned()));
        };
        let files = self.files.clone();
        let (request, key) =
            self.machine.run_blocking(move || pending_request(&files)).await.map_err(because)??;
        let anchor = Anchor::Trusted(Box::new(self.tls().credentials()));
        let door = introduce(address, anchor, ConnectOptions::default()).await.map_err(because)?;
        let at = self.machine.unix_time();
        let message = recovery_possession(&self.host, at, &request);
        let possession = self.attestation_key.sign(&message).map_err(because)?;
        let host = self.host.as_str().to_owned();
        let request = v1::RecoverRequest { host, request, at_unix_ms: at.0, possession };
        let mut client = EnrolmentClient::new(door.channel);
        let answer = within(client.recover(request)).await?;
        crash_point("agent.recovery.answered");
        tracing::warn!(left = answer.left, "recovered from an expired certificate");
        let credentials = self.put_in_force(answer.certificate, key).await?;
        self.files.forget_pending();
        Ok(credentials)
    }

    /// Checked and durable first, then in use; what was in use before is forgotten last.
    async fn put_in_force(&self, certificate: String, key: Zeroizing<String>) -> Result<Credentials, Failed> {
        let (files, in_use, now) = (self.files.clone(), self.tls().credentials(), self.machine.unix_time());
        let kept = self.machine.run_blocking(move || {
            files.keep(&in_use, (&certificate, &key), now, |step| {
                crash_point(match step {
                    Keeping::Written => "agent.identity.written",
                    Keeping::Named => "agent.identity.named",
                    Keeping::Linked => "agent.identity.linked",
                });
            })
        });
        let kept = kept.await.map_err(because)?;
        if let Err(muster_mtls::Error::Ended { .. }) = kept {
            // Whoever asks again with the same key may be answered the same again.
            self.files.forget_pending();
        }
        let credentials = kept.map_err(because)?;
        self.tls().replace(&credentials).map_err(because)?;
        let (files, in_use) = (self.files.clone(), credentials.clone());
        self.machine.run_blocking(move || files.forget_others(&in_use)).await.map_err(because)?;
        Ok(credentials)
    }

    /// About half-way through a life: all hosts of a fleet may have begun it together.
    fn half_way(&self, validity: Validity) -> Result<UnixTime, AgentError> {
        let random = self.machine.random_u64().map_err(|source| AgentError::Random { source })?;
        Ok(half_way(validity, random))
    }

    fn pause(&self, validity: Validity) -> Result<Duration, AgentError> {
        let random = self.machine.random_u64().map_err(|source| AgentError::Random { source })?;
        let life =
            Duration::from_millis(validity.not_after.0.saturating_sub(validity.began().0) / RETRY_PART);
        let pause = life.clamp(RETRY_MIN, RETRY_MAX);
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        Ok(pause / 2 + Duration::from_millis(random % (pause_ms + 1)))
    }

    async fn tell(&self, plan: &Plan) {
        let validity = self.tls().credentials().validity();
        let is_changed = self.state.set(v1::CertificateReport {
            began_unix_ms: validity.began().0,
            expires_unix_ms: validity.not_after.0,
            renews_unix_ms: plan.due.map(|due| due.0),
            failures: plan.failures,
            failure: plan.failure.clone(),
        });
        for inbox in self.inboxes.iter().filter(|_| is_changed) {
            // A driver that has ended has ended the agent as well.
            let _ = inbox.send(Input::CertificateChanged).await;
        }
    }
}

impl Plan {
    fn renewed(&mut self, due: UnixTime) {
        self.due = Some(due);
        self.failures = 0;
        self.failure.clear();
    }
}

/// Between 40 and 60 hundredths of a life.
fn half_way(validity: Validity, random: u64) -> UnixTime {
    let began = validity.began();
    let life = validity.not_after.0.saturating_sub(began.0);
    let fifth = life / 5;
    UnixTime(began.0.saturating_add(2 * fifth).saturating_add(random % (fifth + 1)))
}

/// The request that has had no answer, or a new one, whose key is kept before anybody is asked: each answer counts.
fn pending_request(files: &CertificateFiles) -> Result<(Vec<u8>, Zeroizing<String>), Failed> {
    let pending = files.pending_key();
    let pending = pending.as_ref().and_then(|pem| std::str::from_utf8(pem).ok());
    if let Some(request) = pending.and_then(|pem| KeyRequest::from_key_pem(pem).ok()) {
        return Ok((request.to_der().map_err(because)?, request.key_pem()));
    }
    let (request, key) = new_request()?;
    files.keep_pending(&key).map_err(because)?;
    Ok((request, key))
}

fn new_request() -> Result<(Vec<u8>, Zeroizing<String>), Failed> {
    let request = KeyRequest::generate().map_err(because)?;
    Ok((request.to_der().map_err(because)?, request.key_pem()))
}

async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(match refusal_of(&status) {
            Some(refusal) if refusal.code() == Some(Code::NoIssuer) => Failed::NotIssued,
            Some(refusal) => Failed::Because(refusal.to_string()),
            None if status.code() == tonic::Code::Unimplemented => Failed::NotIssued,
            None => because(status),
        }),
        Err(_) => Err(Failed::Because("the coordinator does not answer".to_owned())),
    }
}

fn because(error: impl std::error::Error + 'static) -> Failed {
    Failed::Because(refusal::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_about_half_way_through_its_life() {
        let validity = Validity::starting(UnixTime(1_000_000_000), Duration::from_secs(1000));
        assert_eq!(half_way(validity, 0), UnixTime(1_000_400_000));
        assert_eq!(half_way(validity, 200_000), UnixTime(1_000_600_000));
        for random in [1, 77, u64::MAX] {
            let due = half_way(validity, random);
            assert!((1_000_400_000..=1_000_600_000).contains(&due.0), "{due:?}");
        }
    }
}
