//! The pre-release check: what the gate would say, from measurements made now; and the rehearsal, which has every host run the
//! release's self-test as well. Neither changes what is served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, FlipMode, HostName, Purpose, Refusal, SessionId};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::check_event::Event;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_rollout::gate::{self, Answer, Question};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Sender;
use crate::control::check_attestation;
use crate::coordinator::Shared;
use crate::fleet::{Answers, Attested, Connected, FleetHandle, HostAnswer, Said};
use crate::ledger::ReleaseEntry;
use crate::status::listed;

/// One check that somebody waits for.
pub(super) struct Check {
    fleet: Arc<FleetHandle>,
    release: ReleaseEntry,
    request: u64,
    challenge: Digest,
    asking: Asking,
    answers: Answers,
    deadline: Instant,
    connected: watch::Receiver<Connected>,
    hosts: BTreeMap<HostName, Known>,
    /// How many of them were asked and have not answered.
    asked: usize,
}

/// What hosts are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    /// A measurement of at most this age.
    Measurement(Duration),
    /// A measurement after the self-test has passed; there is none that is old enough.
    Rehearsal,
}

/// What a host has answered.
enum Known {
    Missing,
    /// It was asked over this session; if it comes back over another one it is asked again.
    Asked(SessionId),
    Attested(Box<Attested>),
    Refused(Vec<Blocker>),
}

impl Asking {
    const fn max_age(self) -> Duration {
        match self {
            Self::Measurement(max_age) => max_age,
            Self::Rehearsal => Duration::ZERO,
        }
    }
}

impl Check {
    pub(super) fn begin(
        shared: &Arc<Shared>,
        fleet: Arc<FleetHandle>,
        manifest: Digest,
        timeout: Duration,
        asking: Asking,
    ) -> Result<Self, Refusal> {
        let Some(release) = shared.ledger.history(&fleet.name).release(manifest).cloned() else {
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
            answers: fleet.await_answers(request),
            connected: fleet.connected(),
            challenge: Digest::from_bytes(crate::random(&shared.machine)?),
            deadline: Instant::now() + timeout,
            fleet,
            release,
            request,
            asking,
            hosts,
            asked: 0,
        })
    }

    /// Runs until every host has answered or is lost, time is up, or nobody listens.
    pub(super) async fn run(mut self, events: Sender<v1::CheckEvent>) {
        self.ask();
        let is_known =
            |(host, known): (&HostName, &Known)| (!matches!(known, Known::Asked(_))).then(|| host.clone());
        let known: Vec<HostName> = self.hosts.iter().filter_map(is_known).collect();
        for host in known {
            self.show(&host, &events).await;
        }
        while self.asked > 0 {
            tokio::select! {
                HostAnswer { host, said } = self.answers.next() => {
                    if let Said::Checked(ended) = said {
                        self.take(&host, ended);
                        self.show(&host, &events).await;
                    }
                }
                changed = self.connected.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.ask_again();
                }
                () = tokio::time::sleep_until(self.deadline) => break,
                () = events.closed() => return,
            }
        }
        let mut finished = self.finished();
        // No flip comes to its end without their word.
        let unproven = self.fleet.view().await.map(|view| view.unproven).unwrap_or_else(|it| it.blockers);
        finished.blockers.extend(listed(unproven));
        // Nobody may be listening any more.
        let _ = events.send(Ok(v1::CheckEvent { event: Some(Event::Finished(finished)) })).await;
    }

    /// Asks every connected host of which nothing recent enough is known.
    fn ask(&mut self) {
        let question = self.question();
        let connected = self.connected.borrow_and_update();
        for (host, known) in &mut self.hosts {
            let Some(outbox) = connected.get(host) else { continue };
            let remembered = self.fleet.remembered(host, self.release.manifest);
            let is_young = |attested: &Attested| attested.arrived.elapsed() < self.asking.max_age();
            *known = match remembered.filter(is_young) {
                Some(attested) => Known::Attested(Box::new(attested)),
                None if outbox.frames.try_send(question.clone()).is_ok() => {
                    self.asked += 1;
                    Known::Asked(outbox.session)
                }
                None => Known::Missing,
            };
        }
    }

    /// Asks those again that came back over another session, and gives up those that have left.
    fn ask_again(&mut self) {
        let question = self.question();
        let connected = self.connected.borrow_and_update();
        for (host, known) in &mut self.hosts {
            let Known::Asked(session) = known else { continue };
            match connected.get(host) {
                Some(outbox) if outbox.session == *session => {}
                Some(outbox) if outbox.frames.try_send(question.clone()).is_ok() => *session = outbox.session,
                Some(_) | None => {
                    self.asked -= 1;
                    *known = Known::Missing;
                }
            }
        }
    }

    fn question(&self) -> v1::CoordinatorFrame {
        self.fleet.frame(ToAgent::Check(v1::Check {
            request: self.request,
            manifest: self.release.manifest.as_bytes().to_vec(),
            challenge: self.challenge.as_bytes().to_vec(),
            rehearse: self.asking == Asking::Rehearsal,
            adopt: false,
        }))
    }

    fn take(&mut self, host: &HostName, ended: v1::CheckEnded) {
        let Some(known @ Known::Asked(_)) = self.hosts.get_mut(host) else { return };
        self.asked -= 1;
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
                    match (self.asking, attested.attestation.purpose) {
                        (Asking::Rehearsal, Purpose::Rehearsal { .. }) => Known::Attested(Box::new(attested)),
                        (Asking::Rehearsal, Purpose::Check | Purpose::Adoption | Purpose::Rollout { .. }) => {
                            refused(Refusal::of(Code::AgentTooOld, "its agent does not know rehearsals"))
                        }
                        (Asking::Measurement(_), Purpose::Check) => {
                            self.fleet.remember(attested.clone());
                            Known::Attested(Box::new(attested))
                        }
                        (
                            Asking::Measurement(_),
                            Purpose::Adoption | Purpose::Rehearsal { .. } | Purpose::Rollout { .. },
                        ) => refused(Refusal::of(Code::StaleAttestation, "it answered another question")),
                    }
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
            Known::Asked(_) => return,
        }
        // Nobody may be listening any more.
        let _ = events.send(Ok(v1::CheckEvent { event: Some(Event::Host(shown)) })).await;
    }

    fn finished(&self) -> v1::CheckFinished {
        let roster = self.fleet.roster().roster;
        // Attestations that are recent enough may answer older challenges; each was verified when it arrived.
        let challenge = self.asking.max_age().is_zero().then_some(self.challenge);
        let question =
            Question { manifest: self.release.manifest, challenge, rollout: None, mode: FlipMode::Strict };
        let blockers = gate::evaluate(&roster, &question, |_, host| match self.hosts.get(host) {
            Some(Known::Attested(attested)) => Answer::Attested(&attested.attestation),
            Some(Known::Refused(blockers)) => Answer::Refused(blockers),
            Some(Known::Asked(_)) => Answer::Silent,
            Some(Known::Missing) | None => Answer::Missing,
        });
        let matches = |known: &&Known| matches!(known, Known::Attested(it) if it.attestation.matches());
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        v1::CheckFinished {
            release: Some(super::release::reference(&self.release).into()),
            hosts: count(roster.hosts().len()),
            identical: count(self.hosts.values().filter(matches).count()),
            roster_revision: roster.revision().0,
            blockers: listed(blockers),
        }
    }
}
