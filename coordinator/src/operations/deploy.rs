//! Step 4, deployment: a release's bytes onto all N hosts. It has no effect on what is served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, HostName, Refusal};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_proto::v1::deploy_event::Event;
use muster_proto::v1::deploy_host::State;
use muster_rollout::gate;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Sender, blocking};
use crate::coordinator::Shared;
use crate::fleet::{Answers, Connected, FleetHandle, HostAnswer};
use crate::ledger::ReleaseEntry;
use crate::status::chain;

/// Answers of each host that may wait for an operator that is slow. What is dropped is progress; see
/// [`FleetHandle::answer`].
const ANSWERS_AHEAD: usize = 8;

/// One deployment that an operator waits for.
pub(super) struct Deployment {
    fleet: Arc<FleetHandle>,
    release: ReleaseEntry,
    envelope: Vec<u8>,
    request: u64,
    answers: Answers,
    connected: watch::Receiver<Connected>,
    deadline: Instant,
    hosts: BTreeMap<HostName, Standing>,
    /// The sessions that were told; a host that comes back over another one is told again.
    told: BTreeSet<(HostName, muster_model::SessionId)>,
}

/// How far a host is.
enum Standing {
    Waiting,
    Deploying,
    Deployed,
    Failed(Vec<Blocker>),
}

impl Deployment {
    pub(super) async fn begin(
        shared: &Arc<Shared>,
        fleet: Arc<FleetHandle>,
        manifest: Digest,
        timeout: Duration,
    ) -> Result<Self, Refusal> {
        let Some(release) = shared.release(&fleet.name, manifest) else {
            let detail = format!("{} has no release {manifest}; push it first", fleet.name);
            return Err(Refusal::of(Code::ReleaseUnknown, detail));
        };
        let (documents, name) = (shared.documents.clone(), release.envelope);
        let read =
            move || documents.read(name).map_err(|error| Refusal::of(Code::BlobDamaged, chain(&error)));
        let envelope = blocking(read).await?;
        let roster = fleet.roster().roster;
        let request = shared.next_request();
        Ok(Self {
            answers: fleet.await_answers(request, ANSWERS_AHEAD * roster.hosts().len()),
            connected: fleet.connected(),
            hosts: roster.hosts().iter().map(|member| (member.name.clone(), Standing::Waiting)).collect(),
            told: BTreeSet::new(),
            deadline: Instant::now() + timeout,
            fleet,
            release,
            envelope,
            request,
        })
    }

    /// Runs until every host has the release or cannot have it, time is up, or nobody listens.
    pub(super) async fn run(mut self, events: Sender<v1::DeployEvent>) {
        if !self.send(&events, Event::Started(self.started())).await {
            return;
        }
        let silent: Vec<HostName> = self.hosts.keys().cloned().collect();
        let present = self.tell_connected();
        for host in silent.into_iter().filter(|host| !present.contains(host)) {
            self.show(&events, host, State::Waiting(v1::Waiting {})).await;
        }
        while self.hosts.values().any(|standing| matches!(standing, Standing::Waiting | Standing::Deploying))
        {
            tokio::select! {
                answer = self.answers.next() => {
                    if let Some(answer) = answer {
                        self.take(answer, &events).await;
                    }
                }
                changed = self.connected.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.tell_connected();
                }
                () = tokio::time::sleep_until(self.deadline) => break,
                // Hosts go on with what they were told; it harms nobody.
                () = events.closed() => return,
            }
        }
        let finished = self.finished();
        self.send(&events, Event::Finished(finished)).await;
    }

    /// Tells every host that is connected and was not told over this session.
    fn tell_connected(&mut self) -> BTreeSet<HostName> {
        let connected = self.connected.borrow_and_update().clone();
        let frame = self.fleet.frame(ToAgent::Deploy(v1::Deploy {
            request: self.request,
            release_envelope: self.envelope.clone(),
            manifest_size: self.release.manifest_bytes,
        }));
        for (host, outbox) in &connected {
            let Some(standing @ (Standing::Waiting | Standing::Deploying)) = self.hosts.get_mut(host) else {
                continue;
            };
            let session = (host.clone(), outbox.session);
            if !self.told.contains(&session) && outbox.frames.try_send(frame.clone()).is_ok() {
                self.told.insert(session);
                *standing = Standing::Deploying;
            }
        }
        connected.into_keys().collect()
    }

    async fn take(&mut self, answer: HostAnswer, events: &Sender<v1::DeployEvent>) {
        let HostAnswer { host, body } = answer;
        let Some(standing) = self.hosts.get_mut(&host) else { return };
        let state = if let Body::DeployProgress(progress) = body {
            State::Progress(progress)
        } else if let Body::DeployEnded(ended) = body {
            *standing = ended_as(&host, &ended);
            State::Ended(ended)
        } else {
            return;
        };
        self.show(events, host, state).await;
    }

    fn started(&self) -> v1::DeployStarted {
        v1::DeployStarted {
            release: Some(super::release::reference(&self.release).into()),
            hosts: self.hosts.keys().map(|host| host.as_str().to_owned()).collect(),
            files: self.release.files,
            bytes: self.release.bytes,
        }
    }

    fn finished(&self) -> v1::DeployFinished {
        let connected = self.connected.borrow();
        let mut deployed = 0;
        let mut blockers = Vec::new();
        for (host, standing) in &self.hosts {
            match standing {
                Standing::Deployed => deployed += 1,
                Standing::Failed(reasons) => blockers.extend(reasons.iter().cloned()),
                Standing::Waiting | Standing::Deploying if !connected.contains_key(host) => {
                    blockers.push(gate::missing(host));
                }
                Standing::Waiting | Standing::Deploying => {
                    blockers.push(Blocker::host(
                        Code::HostSilent,
                        host,
                        "it did not finish the deployment in time",
                    ));
                }
            }
        }
        v1::DeployFinished {
            deployed,
            hosts: u32::try_from(self.hosts.len()).unwrap_or(u32::MAX),
            blockers: blockers.into_iter().map(v1::Blocker::from).collect(),
        }
    }

    async fn show(&self, events: &Sender<v1::DeployEvent>, host: HostName, state: State) {
        let host = v1::DeployHost { host: host.as_str().to_owned(), state: Some(state) };
        self.send(events, Event::Host(host)).await;
    }

    async fn send(&self, events: &Sender<v1::DeployEvent>, event: Event) -> bool {
        events.send(Ok(v1::DeployEvent { event: Some(event) })).await.is_ok()
    }
}

fn ended_as(host: &HostName, ended: &v1::DeployEnded) -> Standing {
    if ended.refusal.is_none() {
        return Standing::Deployed;
    }
    let reasons = match convert::refusal(ended.refusal.clone()) {
        Ok(refusal) => refusal.blockers.iter().map(|reason| gate::at_host(reason, host)).collect(),
        Err(error) => vec![Blocker::host(Code::Unsupported, host, error.to_string())],
    };
    Standing::Failed(reasons)
}
