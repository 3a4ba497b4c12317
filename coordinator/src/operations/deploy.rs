//! Step 4, deployment: a release's bytes onto all N hosts. It has no effect on what is served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, HostName, Refusal, SessionId};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_proto::v1::deploy_event::Event;
use muster_proto::v1::deploy_host::State;
use muster_rollout::gate;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Sender, blocking};
use crate::coordinator::Shared;
use crate::fleet::{Answers, Connected, FleetHandle, HostAnswer, Said};
use crate::ledger::ReleaseEntry;
use crate::status::{blob_refusal, listed};

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
    /// They are told as well, so that they have the bytes if they come back. Nobody waits for them.
    parked: BTreeMap<HostName, Standing>,
    /// How many of them are still waiting or deploying.
    unfinished: usize,
}

/// How far a host is.
enum Standing {
    Waiting,
    /// It was told over this session; if it comes back over another one it is told again.
    Deploying(SessionId),
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
        let Some(release) = shared.ledger.history(&fleet.name).release(manifest).cloned() else {
            let detail = format!("{} has no release {manifest}; push it first", fleet.name);
            return Err(Refusal::of(Code::ReleaseUnknown, detail));
        };
        let (documents, name) = (shared.documents.clone(), release.envelope);
        let envelope =
            blocking(&shared.machine, move || documents.read(name).map_err(|error| blob_refusal(&error)))
                .await?;
        let roster = fleet.roster().roster;
        let request = shared.next_request();
        Ok(Self {
            answers: fleet.await_answers(request),
            connected: fleet.connected(),
            unfinished: roster.hosts().len(),
            hosts: roster.hosts().iter().map(|member| (member.name.clone(), Standing::Waiting)).collect(),
            parked: roster.parked().iter().map(|it| (it.name.clone(), Standing::Waiting)).collect(),
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
        self.tell_connected();
        let is_waiting = |(host, standing): (&HostName, &Standing)| {
            matches!(standing, Standing::Waiting).then(|| host.clone())
        };
        let absent: Vec<HostName> = self.hosts.iter().filter_map(is_waiting).collect();
        for host in absent {
            self.show(&events, host, State::Waiting(v1::Waiting {})).await;
        }
        while self.unfinished > 0 {
            tokio::select! {
                biased;
                answer = self.answers.next() => self.take(answer, &events).await,
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
    fn tell_connected(&mut self) {
        let frame = self.fleet.frame(ToAgent::Deploy(v1::Deploy {
            request: self.request,
            release_envelope: self.envelope.clone(),
            manifest_size: self.release.manifest_bytes,
        }));
        let connected = self.connected.borrow_and_update();
        for (host, standing) in self.hosts.iter_mut().chain(&mut self.parked) {
            let told = match standing {
                Standing::Waiting => None,
                Standing::Deploying(session) => Some(*session),
                Standing::Deployed | Standing::Failed(_) => continue,
            };
            if let Some(outbox) = connected.get(host).filter(|outbox| told != Some(outbox.session))
                && outbox.frames.try_send(frame.clone()).is_ok()
            {
                *standing = Standing::Deploying(outbox.session);
            }
        }
    }

    async fn take(&mut self, answer: HostAnswer, events: &Sender<v1::DeployEvent>) {
        let HostAnswer { host, said } = answer;
        let Some(standing) = self.hosts.get_mut(&host) else { return };
        let state = match said {
            Said::Progress(progress) => State::Progress(progress),
            Said::Deployed(ended) => {
                if matches!(standing, Standing::Waiting | Standing::Deploying(_)) {
                    self.unfinished -= 1;
                }
                *standing = ended_as(&host, &ended);
                State::Ended(ended)
            }
            Said::Checked(_) => return,
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
                Standing::Waiting | Standing::Deploying(_) if !connected.contains_key(host) => {
                    blockers.push(gate::missing(host));
                }
                Standing::Waiting | Standing::Deploying(_) => {
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
            blockers: listed(blockers),
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
