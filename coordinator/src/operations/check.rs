//! The pre-release check: what the gate would say, from measurements made now. Changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, HostName, Refusal};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use muster_proto::v1::check_event::Event;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_rollout::gate::{self, Answer, Question};
use tokio::time::Instant;

use super::Sender;
use crate::control::check_attestation;
use crate::coordinator::Shared;
use crate::fleet::{Answers, Attested, FleetHandle, HostAnswer};
use crate::ledger::ReleaseEntry;

/// One check that somebody waits for.
pub(super) struct Check {
    fleet: Arc<FleetHandle>,
    release: ReleaseEntry,
    request: u64,
    challenge: Digest,
    max_age: Duration,
    answers: Answers,
    deadline: Instant,
    hosts: BTreeMap<HostName, Known>,
}

/// What a host has answered.
enum Known {
    Missing,
    Asked,
    Attested(Box<Attested>),
    Refused(Vec<Blocker>),
}

impl Check {
    pub(super) fn begin(
        shared: &Arc<Shared>,
        fleet: Arc<FleetHandle>,
        manifest: Digest,
        timeout: Duration,
        max_age: Duration,
    ) -> Result<Self, Refusal> {
        let Some(release) = shared.release(&fleet.name, manifest) else {
            let detail = format!("{} has no release {manifest}; push it first", fleet.name);
            return Err(Refusal::of(Code::ReleaseUnknown, detail));
        };
        let request = shared.next_request();
        let hosts: BTreeMap<HostName, Known> = fleet
            .roster()
            .roster
            .hosts()
            .iter()
            .map(|member| (member.name.clone(), Known::Missing))
            .collect();
        Ok(Self {
            // A host answers a check once.
            answers: fleet.await_answers(request, hosts.len()),
            challenge: Digest::from_bytes(crate::random()?),
            deadline: Instant::now() + timeout,
            fleet,
            release,
            request,
            max_age,
            hosts,
        })
    }

    /// Runs until every host has answered or is lost, time is up, or nobody listens.
    pub(super) async fn run(mut self, events: Sender<v1::CheckEvent>) {
        self.ask();
        let known: Vec<HostName> = self
            .hosts
            .iter()
            .filter(|(_, known)| !matches!(known, Known::Asked))
            .map(|(host, _)| host.clone())
            .collect();
        for host in known {
            self.show(&host, &events).await;
        }
        let mut connected = self.fleet.connected();
        while self.hosts.values().any(|known| matches!(known, Known::Asked)) {
            tokio::select! {
                answer = self.answers.next() => {
                    if let Some(HostAnswer { host, body: Body::CheckEnded(ended) }) = answer {
                        self.take(&host, ended);
                        self.show(&host, &events).await;
                    }
                }
                changed = connected.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let now = connected.borrow_and_update().clone();
                    for (host, known) in &mut self.hosts {
                        if matches!(known, Known::Asked) && !now.contains_key(host) {
                            *known = Known::Missing;
                        }
                    }
                }
                () = tokio::time::sleep_until(self.deadline) => break,
                () = events.closed() => return,
            }
        }
        let finished = self.finished();
        // Nobody may be listening any more.
        let _ = events.send(Ok(v1::CheckEvent { event: Some(Event::Finished(finished)) })).await;
    }

    /// Asks every connected host of which nothing recent enough is known.
    fn ask(&mut self) {
        let connected = self.fleet.connected().borrow().clone();
        let frame = self.fleet.frame(ToAgent::Check(v1::Check {
            request: self.request,
            manifest: self.release.manifest.as_bytes().to_vec(),
            challenge: self.challenge.as_bytes().to_vec(),
        }));
        for (host, known) in &mut self.hosts {
            let remembered = self.fleet.remembered(host, self.release.manifest);
            let Some(outbox) = connected.get(host) else { continue };
            *known = match remembered.filter(|attested| attested.arrived.elapsed() < self.max_age) {
                Some(attested) => Known::Attested(Box::new(attested)),
                None if outbox.frames.try_send(frame.clone()).is_ok() => Known::Asked,
                None => Known::Missing,
            };
        }
    }

    fn take(&mut self, host: &HostName, ended: v1::CheckEnded) {
        let Some(known @ Known::Asked) = self.hosts.get_mut(host) else { return };
        let refused = |refusal: Refusal| {
            Known::Refused(refusal.blockers.iter().map(|blocker| gate::at_host(blocker, host)).collect())
        };
        *known = match (ended.envelope, ended.refusal) {
            (_, Some(refusal)) => match convert::refusal(Some(refusal)) {
                Ok(refusal) => refused(refusal),
                Err(error) => refused(Refusal::of(Code::Unsupported, error.to_string())),
            },
            (Some(envelope), None) => match check_attestation(&self.fleet, host, &envelope) {
                Ok(attested) if attested.attestation.challenge == self.challenge => {
                    self.fleet.remember(attested.clone());
                    Known::Attested(Box::new(attested))
                }
                Ok(_) => refused(Refusal::of(Code::StaleAttestation, "it answered another question")),
                Err(refusal) => refused(refusal),
            },
            (None, None) => refused(Refusal::of(Code::Unmeasurable, "it gave no measurement and no reason")),
        };
    }

    async fn show(&self, host: &HostName, events: &Sender<v1::CheckEvent>) {
        let Some(known) = self.hosts.get(host) else { return };
        let mut shown = v1::CheckHost { host: host.as_str().to_owned(), ..v1::CheckHost::default() };
        match known {
            Known::Attested(attested) => {
                shown.envelope = Some(attested.envelope.to_vec());
                shown.age_ms = u64::try_from(attested.arrived.elapsed().as_millis()).unwrap_or(u64::MAX);
                shown.files = attested.attestation.compared.files;
                shown.bytes = attested.attestation.compared.bytes;
            }
            Known::Refused(blockers) => {
                shown.blockers = blockers.iter().cloned().map(v1::Blocker::from).collect()
            }
            Known::Missing => shown.blockers = vec![gate::missing(host).into()],
            Known::Asked => return,
        }
        // Nobody may be listening any more.
        let _ = events.send(Ok(v1::CheckEvent { event: Some(Event::Host(shown)) })).await;
    }

    fn finished(&self) -> v1::CheckFinished {
        let roster = self.fleet.roster().roster;
        // Attestations that are recent enough may answer older challenges; each was verified when it arrived.
        let challenge = self.max_age.is_zero().then_some(self.challenge);
        let question = Question { manifest: self.release.manifest, challenge, rollout: None };
        let blockers = gate::evaluate(&roster, &question, |_, host| match self.hosts.get(host) {
            Some(Known::Attested(attested)) => Answer::Attested(&attested.attestation),
            Some(Known::Refused(blockers)) => Answer::Refused(blockers),
            Some(Known::Asked) => Answer::Silent,
            Some(Known::Missing) | None => Answer::Missing,
        });
        let matches = |known: &&Known| matches!(known, Known::Attested(it) if it.attestation.matches());
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        v1::CheckFinished {
            release: Some(super::release::reference(&self.release).into()),
            hosts: count(roster.hosts().len()),
            identical: count(self.hosts.values().filter(matches).count()),
            roster_revision: roster.revision().0,
            blockers: blockers.into_iter().map(v1::Blocker::from).collect(),
        }
    }
}
