//! What hosts run before any release of the fleet does, and how that differs. Changes nothing: it asks, and relays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, HostName, Purpose, Refusal};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::adopt_event::Event;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_rollout::gate;
use tokio::time::Instant;

use super::Sender;
use crate::control::check_attestation;
use crate::coordinator::Shared;
use crate::fleet::{Answers, FleetHandle, HostAnswer, Outbox, Said};

/// Of how many different trees the manifests are relayed: those that most hosts have.
const TREES_MAX: usize = 8;

/// The largest manifest that is read over a host's stream.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// What fits well into a message.
const PART_BYTES_MAX: usize = 1 << 20;

/// One survey that somebody waits for.
pub(super) struct Survey {
    shared: Arc<Shared>,
    fleet: Arc<FleetHandle>,
    request: u64,
    challenge: Digest,
    answers: Answers,
    deadline: Instant,
    /// Those that were asked and have not answered, and how to ask them more.
    asked: BTreeMap<HostName, Outbox>,
    missing: Vec<HostName>,
    /// Who has which tree.
    trees: BTreeMap<Digest, BTreeMap<HostName, Outbox>>,
}

impl Survey {
    pub(super) fn begin(
        shared: &Arc<Shared>,
        fleet: Arc<FleetHandle>,
        timeout: Duration,
    ) -> Result<Self, Refusal> {
        let request = shared.next_request();
        let mut survey = Self {
            answers: fleet.await_answers(request),
            challenge: Digest::from_bytes(crate::random(&shared.machine)?),
            deadline: Instant::now() + timeout,
            shared: Arc::clone(shared),
            fleet,
            request,
            asked: BTreeMap::new(),
            missing: Vec::new(),
            trees: BTreeMap::new(),
        };
        survey.ask();
        Ok(survey)
    }

    /// Runs until every host has answered, time is up, or nobody listens.
    pub(super) async fn run(mut self, events: Sender<v1::AdoptEvent>) {
        for host in &self.missing {
            tell(&events, Event::Host(without(host, vec![gate::missing(host).into()]))).await;
        }
        while !self.asked.is_empty() {
            tokio::select! {
                HostAnswer { host, said } = self.answers.next() => {
                    if let (Said::Checked(ended), Some(outbox)) = (said, self.asked.remove(&host)) {
                        let shown = self.take(&host, outbox, ended);
                        tell(&events, Event::Host(shown)).await;
                    }
                }
                () = tokio::time::sleep_until(self.deadline) => break,
                () = events.closed() => return,
            }
        }
        for host in self.asked.keys() {
            let silent = Blocker::host(Code::HostSilent, host, "it has not answered in time");
            tell(&events, Event::Host(without(host, vec![silent.into()]))).await;
        }
        let blockers = self.relay_manifests(&events).await;
        let roster_revision = self.fleet.roster().roster.revision().0;
        let blockers = blockers.into_iter().map(v1::Blocker::from).collect();
        tell(&events, Event::Finished(v1::AdoptFinished { roster_revision, blockers })).await;
    }

    fn ask(&mut self) {
        let question = self.fleet.frame(ToAgent::Check(v1::Check {
            request: self.request,
            manifest: Vec::new(),
            challenge: self.challenge.as_bytes().to_vec(),
            rehearse: false,
            adopt: true,
        }));
        let connected = self.fleet.connected();
        let connected = connected.borrow();
        for member in self.fleet.roster().roster.hosts() {
            match connected.get(&member.name) {
                Some(outbox) if outbox.frames.try_send(question.clone()).is_ok() => {
                    self.asked.insert(member.name.clone(), outbox.clone());
                }
                Some(_) | None => self.missing.push(member.name.clone()),
            }
        }
    }

    fn take(&mut self, host: &HostName, outbox: Outbox, ended: v1::CheckEnded) -> v1::CheckHost {
        let attested = match (ended.envelope, ended.refusal) {
            (_, Some(refusal)) => Err(convert::refusal(Some(refusal))
                .unwrap_or_else(|error| Refusal::of(Code::Unsupported, error.to_string()))),
            (Some(envelope), None) => check_attestation(&self.fleet, host, &envelope),
            (None, None) => Err(Refusal::of(Code::Unmeasurable, "it gave no measurement and no reason")),
        };
        let refused = |refusal: &Refusal| {
            without(host, refusal.blockers.iter().map(|it| gate::at_host(it, host).into()).collect())
        };
        match attested {
            Ok(attested) if attested.attestation.challenge != self.challenge => {
                refused(&Refusal::of(Code::StaleAttestation, "it answered another question"))
            }
            Ok(attested) if attested.attestation.purpose != Purpose::Adoption => {
                refused(&Refusal::of(Code::AgentTooOld, "its agent does not know how to be adopted"))
            }
            Ok(attested) => {
                let compared = &attested.attestation.compared;
                self.trees.entry(compared.measured).or_default().insert(host.clone(), outbox);
                let (files, bytes) = (compared.files, compared.bytes);
                v1::CheckHost {
                    envelope: Some(attested.envelope.to_vec()),
                    files,
                    bytes,
                    ..without(host, vec![])
                }
            }
            Err(refusal) => refused(&refusal),
        }
    }

    /// Reads the manifests of trees that differ, each from one of the hosts that have it, and says which cannot be had.
    async fn relay_manifests(&self, events: &Sender<v1::AdoptEvent>) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        if self.trees.len() < 2 {
            return blockers;
        }
        let mut trees: Vec<_> = self.trees.iter().collect();
        trees.sort_by_key(|(_, hosts)| std::cmp::Reverse(hosts.len()));
        for (digest, hosts) in trees.into_iter().take(TREES_MAX) {
            let mut failed = BTreeSet::new();
            let mut read = None;
            for (host, outbox) in hosts {
                let name = &self.fleet.name;
                match self.shared.parts.read(name, (host, outbox), *digest, MANIFEST_BYTES_MAX).await {
                    Ok(bytes) => {
                        read = Some(bytes);
                        break;
                    }
                    Err(blocker) => failed.insert(blocker),
                };
            }
            let Some(bytes) = read else {
                blockers.extend(failed);
                continue;
            };
            let mut parts = bytes.chunks(PART_BYTES_MAX).peekable();
            while let Some(part) = parts.next() {
                let digest = digest.as_bytes().to_vec();
                let part = v1::AdoptManifest { digest, part: part.to_vec(), is_last: parts.peek().is_none() };
                tell(events, Event::Manifest(part)).await;
            }
        }
        blockers
    }
}

fn without(host: &HostName, blockers: Vec<v1::Blocker>) -> v1::CheckHost {
    v1::CheckHost { host: host.as_str().to_owned(), blockers, ..v1::CheckHost::default() }
}

/// Nobody may be listening any more.
async fn tell(events: &Sender<v1::AdoptEvent>, event: Event) {
    let _ = events.send(Ok(v1::AdoptEvent { event: Some(event) })).await;
}
