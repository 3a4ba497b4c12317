//! The stream between an agent and the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use muster_model::{
    Blocker, Code, Digest, FleetName, FromHost, HostName, PublicKey, Refusal, SessionId, Standing, Token,
};
use muster_mtls::Peer;
use muster_proto::convert::{self, from_host, to_agent};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use muster_proto::v1::control_server::ControlServer;
use muster_rollout::fleet::Event;
use muster_trust::{verify_attestation, verify_withdrawal};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::coordinator::{ROOTS_IN_MESSAGE_MAX, Shared};
use crate::fleet::{FleetHandle, Held, HostAnswer, Input, OUTBOX_FRAMES, Outbox, RosterInForce, Said};
use crate::rebuild::{self, RebuildHandle};
use crate::status::{chain, root_cause};

/// Releases that are read of one inventory.
const INVENTORY_MAX: usize = 1024;
/// What a host says of what its measurements are worth is a word, and a sentence that may name a path.
const ASSURANCE_BYTES_MAX: usize = 16;
const ASSURANCE_REASON_BYTES_MAX: usize = 1024;
/// What a host says of `enforce` is a word.
const ENFORCE_BYTES_MAX: usize = 16;

/// The largest frame of an agent: an attestation, or a refusal with many blockers.
const FRAME_BYTES_MAX: usize = 256 << 10;

/// The control service.
pub(crate) struct Control {
    shared: Arc<Shared>,
}

/// The service, ready to be added to a server.
pub(crate) fn service(shared: &Arc<Shared>) -> ControlServer<Control> {
    ControlServer::new(Control { shared: Arc::clone(shared) }).max_decoding_message_size(FRAME_BYTES_MAX)
}

#[tonic::async_trait]
impl v1::control_server::Control for Control {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorFrame, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AgentFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection has no identity"))?;
        let host = peer.identity.name.to_host();
        self.shared.note_certificate(&host, peer.validity);
        let (frames, outgoing) = mpsc::channel(OUTBOX_FRAMES);
        let attachment = Attachment {
            shared: Arc::clone(&self.shared),
            host,
            sessions: BTreeMap::new(),
            asked: BTreeMap::new(),
            frames,
            hang_up: Arc::default(),
        };
        tokio::spawn(attachment.read(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing).map(Ok))))
    }
}

/// One agent's stream.
struct Attachment {
    shared: Arc<Shared>,
    host: HostName,
    sessions: BTreeMap<FleetName, (SessionId, Arc<FleetHandle>)>,
    /// Of fleets that are not led yet.
    asked: BTreeMap<FleetName, (SessionId, Arc<RebuildHandle>)>,
    frames: mpsc::Sender<v1::CoordinatorFrame>,
    /// Ends the stream from the coordinator's side.
    hang_up: Arc<Notify>,
}

impl Attachment {
    /// Reads frames until the stream ends, for whatever reason: any error is the loss of the host.
    async fn read(mut self, mut incoming: Streaming<v1::AgentFrame>) {
        let mut roots = self.shared.watch_roots();
        let (stopping, hang_up) = (self.shared.stopping.clone(), Arc::clone(&self.hang_up));
        let ended = loop {
            let next = tokio::select! {
                biased;
                next = incoming.next() => next,
                () = hang_up.notified() => break "the host took no more messages".to_owned(),
                // The sender lives as long as the coordinator.
                Ok(()) = roots.changed() => {
                    if let Err(refusal) = self.relay_roots(self.sessions.keys().next()) {
                        break refusal.to_string();
                    }
                    continue;
                }
                () = stopping.requested() => break "the coordinator is shutting down".to_owned(),
            };
            match next {
                Some(Ok(frame)) => {
                    if let Err(refusal) = self.frame(frame).await {
                        tracing::warn!(host = %self.host, %refusal, "frame refused; the stream ends");
                        break refusal.to_string();
                    }
                }
                Some(Err(status)) => break root_cause(&status),
                None => break "the agent hung up".to_owned(),
            }
        };
        for (session, fleet) in self.sessions.values() {
            tracing::info!(host = %self.host, fleet = %fleet.name, reason = %ended, "session ended");
            let event = Event::Left { host: self.host.clone(), session: *session };
            // The coordinator is ending if nobody listens.
            let _ = fleet.tell(Input::Event(Box::new(event))).await;
        }
        for (session, rebuild) in self.asked.values() {
            let left = rebuild::Input::Left { host: self.host.clone(), session: *session };
            // The fleet is led by now, or the coordinator is ending.
            let _ = rebuild.tell(left).await;
        }
    }

    async fn frame(&mut self, frame: v1::AgentFrame) -> Result<(), Refusal> {
        let unreadable = |error: convert::ConvertError| Refusal::of(Code::Unsupported, error.to_string());
        let fleet = convert::fleet(&frame.fleet).map_err(unreadable)?;
        let body = frame
            .body
            .ok_or_else(|| Refusal::of(Code::Unsupported, "a frame without a body that is known"))?;
        if let Body::Join(mut join) = body {
            let seen = join.audit.take();
            let Some(FromHost::Join(report)) = from_host(Body::Join(join)).map_err(unreadable)? else {
                return Ok(());
            };
            return self.join(&fleet, report, seen).await;
        }
        if let Some((session, rebuild)) = self.asked.get(&fleet).cloned() {
            return self.while_not_led(&rebuild, session, body).await;
        }
        let Some((session, handle)) = self.sessions.get(&fleet).cloned() else {
            return Err(Refusal::of(
                Code::StaleSession,
                format!("no session of the fleet {fleet} has begun"),
            ));
        };
        match body {
            Body::Attested(attested) => self.attested(&handle, session, attested).await,
            Body::Withdrawn(v1::Withdrawn { envelope: Some(envelope), .. }) => {
                self.withdrew(&handle, session, &envelope).await
            }
            Body::Inventory(_) | Body::DeployProgress(_) | Body::DeployEnded(_) | Body::CheckEnded(_) => {
                self.outside_of_rollouts(&handle, session, body).await.map_err(unreadable)
            }
            Body::DocumentPart(part) => {
                self.shared.parts.arrived(&self.host, part);
                Ok(())
            }
            // Asked for by a task that has ended.
            Body::Testimony(_) => Ok(()),
            Body::Join(_)
            | Body::Confirmed(_)
            | Body::Fresh(_)
            | Body::CannotAttest(_)
            | Body::Prepared(_)
            | Body::Probed(_)
            | Body::Renew(_)
            | Body::SwitchSet(_)
            | Body::Armed(_)
            | Body::Closed(_)
            | Body::Disarmed(_)
            | Body::Serving(_)
            | Body::Measured(_)
            | Body::Dark(_)
            | Body::Withdrawn(_)
            | Body::Refused(_) => {
                let Some(message) = from_host(body).map_err(unreadable)? else { return Ok(()) };
                let event = Event::Message { host: self.host.clone(), session, message };
                handle.tell(Input::Event(Box::new(event))).await
            }
        }
    }

    /// Inventories and answers to deployments and checks, which the fleet's state does not depend on.
    async fn outside_of_rollouts(
        &self,
        handle: &Arc<FleetHandle>,
        session: SessionId,
        body: Body,
    ) -> Result<(), convert::ConvertError> {
        let host = self.host.clone();
        if !handle.is_current(&host, session) {
            // P9: a session that was refused, or that a newer one has ended, changes nothing.
            return Ok(());
        }
        if let Body::Inventory(inventory) = &body {
            let manifests = inventory.manifests.iter().take(INVENTORY_MAX);
            let manifests: Result<BTreeSet<_>, _> =
                manifests.map(|it| convert::digest("manifests", it)).collect();
            let (root_version, certificate) = (inventory.root_version, inventory.certificate.clone());
            let mut enforce = inventory.enforce.clone();
            enforce.iter_mut().for_each(|it| it.truncate(it.floor_char_boundary(ENFORCE_BYTES_MAX)));
            let mut assurance = inventory.verity.clone();
            assurance.iter_mut().for_each(bound_assurance);
            let manifests = manifests?;
            handle.set_inventory(host, Held { manifests, root_version, certificate, enforce, assurance });
            return Ok(());
        }
        let mut deployed = None;
        if let Body::DeployEnded(ended) = &body {
            let manifest = convert::digest("manifest", &ended.manifest)?;
            deployed = ended.refusal.is_none().then_some(manifest);
        }
        if let Some((request, said)) = Said::of(body) {
            handle.answer(request, HostAnswer { host: host.clone(), said });
        }
        if let Some(manifest) = deployed {
            let event = Event::Deployed { host, session, manifest };
            // The coordinator is ending if nobody listens.
            let _ = handle.tell(Input::Event(Box::new(event))).await;
        }
        Ok(())
    }

    /// Step 2, at the edge: a session is asked for; whether it begins is for the fleet to say.
    async fn join(
        &mut self,
        fleet: &FleetName,
        report: muster_model::JoinReport,
        seen: Option<v1::AuditSeen>,
    ) -> Result<(), Refusal> {
        let before = self.asked.remove(fleet);
        let Some(handle) = self.shared.fleet(fleet) else {
            return self.join_what_is_not_led(fleet, report, seen).await;
        };
        drop(before);
        // A second session over the same stream ends the first, whatever becomes of the second.
        if let Some((session, before)) = self.sessions.remove(fleet) {
            let event = Event::Left { host: self.host.clone(), session };
            before.tell(Input::Event(Box::new(event))).await?;
        }
        // Before anything that the keys of a new root may have signed.
        self.relay_roots(Some(fleet))?;
        let audit_shown = self.show_audit(fleet, seen).await?;
        let roster_shown = Some(self.show_mandate(&handle, &report.standing)?);
        let session = self.shared.next_session();
        let (frames, hang_up) = (self.frames.clone(), Arc::clone(&self.hang_up));
        let outbox = Outbox { session, frames, roster_shown, audit_shown, hang_up };
        let next = Token::from_bytes(crate::random(&self.shared.machine)?);
        let event = Event::Joining { host: self.host.clone(), session, report, next };
        handle.tell(Input::Joining(Box::new(event), self.host.clone(), outbox)).await?;
        self.sessions.insert(fleet.clone(), (session, handle));
        Ok(())
    }

    /// The host is asked what it has promised; it joins for good once the fleet is led.
    async fn join_what_is_not_led(
        &mut self,
        fleet: &FleetName,
        report: muster_model::JoinReport,
        seen: Option<v1::AuditSeen>,
    ) -> Result<(), Refusal> {
        let Some(rebuild) = self.shared.claimed(fleet) else {
            let refusal = Refusal::of(Code::FleetUnknown, format!("there is no fleet {fleet}"));
            self.refuse(fleet, refusal);
            return Ok(());
        };
        self.relay_roots(Some(fleet))?;
        let audit_shown = self.show_audit(fleet, seen).await?;
        let session = self.shared.next_session();
        let (frames, hang_up) = (self.frames.clone(), Arc::clone(&self.hang_up));
        let outbox = Outbox { session, frames, roster_shown: None, audit_shown, hang_up };
        let next = Token::from_bytes(crate::random(&self.shared.machine)?);
        let joining =
            rebuild::Input::Joining { host: self.host.clone(), report: Box::new(report), outbox, next };
        // The fleet is led by now if nobody listens; the host asks again.
        if rebuild.tell(joining).await.is_ok() {
            self.asked.insert(fleet.clone(), (session, rebuild));
        }
        Ok(())
    }

    /// What a host says of whose fleet nothing is led. All but what it was asked is of no use yet.
    async fn while_not_led(
        &self,
        rebuild: &RebuildHandle,
        session: SessionId,
        body: Body,
    ) -> Result<(), Refusal> {
        let host = self.host.clone();
        let input = match body {
            Body::Testimony(told) => {
                let testimony = Box::new(rebuild::testimony(&host, &told)?);
                rebuild::Input::Told { host, session, testimony }
            }
            Body::DocumentPart(part) => {
                rebuild.parts.arrived(&host, part);
                return Ok(());
            }
            Body::Confirmed(v1::Confirmed {}) => rebuild::Input::Confirmed { host, session },
            Body::Refused(refused) => {
                let unreadable =
                    |error: convert::ConvertError| Refusal::of(Code::Unsupported, error.to_string());
                let refusal = convert::refusal(refused.refusal).map_err(unreadable)?;
                rebuild::Input::Refused { host, session, refusal }
            }
            Body::Join(_)
            | Body::Attested(_)
            | Body::Inventory(_)
            | Body::DeployProgress(_)
            | Body::DeployEnded(_)
            | Body::CheckEnded(_)
            | Body::Fresh(_)
            | Body::CannotAttest(_)
            | Body::Prepared(_)
            | Body::Probed(_)
            | Body::Renew(_)
            | Body::SwitchSet(_)
            | Body::Armed(_)
            | Body::Closed(_)
            | Body::Disarmed(_)
            | Body::Serving(_)
            | Body::Measured(_)
            | Body::Withdrawn(_)
            | Body::Dark(_) => return Ok(()),
        };
        // The fleet is led by now, or the coordinator is ending.
        let _ = rebuild.tell(input).await;
        Ok(())
    }

    /// Shows what makes hosts obey this life of the database, if it is not their first, and the roster that the host is to see.
    fn show_mandate(&self, fleet: &FleetHandle, standing: &Standing) -> Result<Digest, Refusal> {
        let leadership = muster_model::Leadership::default();
        if let Some(mandate) = self.shared.ledger.history(&fleet.name).mandate {
            let envelope = mandate.envelope.clone().into_bytes();
            let body = v1::coordinator_frame::Body::Mandate(v1::Mandate { envelope });
            let frame = crate::fleet::stamp(&fleet.name, leadership, body);
            self.frames.try_send(frame).map_err(out_of_room)?;
        }
        let envelope = fleet.roster().shown_to_joining(&self.host, standing);
        let roster = envelope.as_bytes().to_vec();
        let body = v1::coordinator_frame::Body::RosterShown(v1::RosterShown { roster });
        let frame = crate::fleet::stamp(&fleet.name, leadership, body);
        self.frames.try_send(frame).map_err(out_of_room)?;
        Ok(envelope)
    }

    /// Shows the host the audit log, as far as it has gone, before its session begins: the fleet is the witness.
    async fn show_audit(
        &self,
        fleet: &FleetName,
        seen: Option<v1::AuditSeen>,
    ) -> Result<Arc<AtomicU64>, Refusal> {
        let incarnation = self.shared.incarnation();
        // Of a log that is closed by now nothing is proven: the new one names it.
        let seen = seen.filter(|seen| seen.incarnation == incarnation.0).map_or(0, |seen| seen.size);
        let offer = self.shared.audit.offer(seen).await.map_err(|error| self.shared.store_failed(error))?;
        let leadership = muster_model::Leadership { incarnation, ..muster_model::Leadership::default() };
        let body = v1::coordinator_frame::Body::AuditShown(crate::audit::on_wire(&offer));
        let frame = crate::fleet::stamp(fleet, leadership, body);
        // A session that begins without it would look to the host as if the log were withheld.
        self.frames.try_send(frame).map_err(out_of_room)?;
        Ok(Arc::new(AtomicU64::new(offer.size)))
    }

    /// Step 5, at the edge: a signature that does not verify is the host's refusal to attest.
    async fn attested(
        &self,
        handle: &Arc<FleetHandle>,
        session: SessionId,
        attested: v1::Attested,
    ) -> Result<(), Refusal> {
        let RosterInForce { roster, .. } = handle.roster();
        let k = muster_model::RolloutId(attested.k);
        let host = self.host.clone();
        let event = match verify_attestation(&attested.envelope, &roster) {
            Ok(verified) if verified.document().host == host => Event::Attested {
                host,
                session,
                k,
                envelope: Arc::clone(verified.raw()),
                attestation: verified.into_document(),
            },
            Ok(verified) => {
                let detail = format!("it sent an attestation of {}", verified.document().host);
                self.bad_attestation(session, k, detail)
            }
            Err(error) => self.bad_attestation(session, k, chain(&error)),
        };
        handle.tell(Input::Event(Box::new(event))).await
    }

    /// A host's word that it has closed, at the edge: it is worth what its signature is worth.
    async fn withdrew(
        &self,
        handle: &Arc<FleetHandle>,
        session: SessionId,
        envelope: &[u8],
    ) -> Result<(), Refusal> {
        let RosterInForce { roster, coming, .. } = handle.roster();
        let host = self.host.clone();
        let of_coming = coming.as_ref().and_then(|(coming, _)| coming.key_of(&host));
        let keys: Vec<PublicKey> = roster.key_of(&host).into_iter().chain(of_coming).cloned().collect();
        let verify = |key: &PublicKey| verify_withdrawal(envelope, &handle.name, &host, key);
        let mut why = "no roster that is known here lists it".to_owned();
        let mut verified = None;
        for key in keys {
            match verify(&key) {
                Ok(withdrawal) => verified = Some((withdrawal, key)),
                Err(error) => why = chain(&error),
            }
        }
        let event = match verified {
            Some((withdrawal, attestation_key)) => Event::Withdrew {
                host,
                session,
                envelope: String::from_utf8_lossy(withdrawal.raw()).into(),
                withdrawal: withdrawal.into_document(),
                attestation_key,
            },
            None => {
                let refusal = Refusal::because(Blocker::host(Code::NotWithdrawn, &host, why));
                Event::Message { host, session, message: FromHost::Refused { k: None, refusal } }
            }
        };
        handle.tell(Input::Event(Box::new(event))).await
    }

    fn bad_attestation(&self, session: SessionId, k: muster_model::RolloutId, detail: String) -> Event {
        let refusal = Refusal::because(Blocker::host(Code::BadAttestation, &self.host, detail));
        let message = FromHost::CannotAttest { k, refusal };
        Event::Message { host: self.host.clone(), session, message }
    }

    /// Sends the successors of the pinned root. All fleets of the host share them, but a frame is one of some fleet.
    fn relay_roots(&self, fleet: Option<&FleetName>) -> Result<(), Refusal> {
        let successors = self.shared.roots_after(0);
        let Some(fleet) = fleet.filter(|_| !successors.is_empty()) else {
            return Ok(());
        };
        for part in successors.chunks(ROOTS_IN_MESSAGE_MAX) {
            let body = v1::coordinator_frame::Body::Roots(v1::Roots { successors: part.to_vec() });
            let frame = crate::fleet::stamp(fleet, muster_model::Leadership::default(), body);
            // A host that was hung up on gets them when it joins again; one that goes on would go on with the old keys.
            self.frames.try_send(frame).map_err(out_of_room)?;
        }
        Ok(())
    }

    fn refuse(&self, fleet: &FleetName, refusal: Refusal) {
        let body = to_agent(muster_model::ToHost::Refuse { refusal });
        let frame = crate::fleet::stamp(fleet, muster_model::Leadership::default(), body);
        // An agent that takes no messages learns it when it asks again.
        let _ = self.frames.try_send(frame);
    }
}

fn out_of_room<T>(_: T) -> Refusal {
    Refusal::of(Code::SessionLost, "the host takes no more messages")
}

/// Verifies an attestation that a host gave for a check.
pub(crate) fn check_attestation(
    handle: &FleetHandle,
    host: &HostName,
    envelope: &[u8],
) -> Result<crate::fleet::Attested, Refusal> {
    let RosterInForce { roster, .. } = handle.roster();
    let bad = |detail: String| Refusal::because(Blocker::host(Code::BadAttestation, host, detail));
    let verified = verify_attestation(envelope, &roster).map_err(|error| bad(chain(&error)))?;
    if verified.document().host != *host {
        return Err(bad(format!("it sent an attestation of {}", verified.document().host)));
    }
    let envelope = Arc::clone(verified.raw());
    Ok(crate::fleet::Attested { attestation: verified.into_document(), envelope, arrived: Instant::now() })
}

fn bound_assurance(assurance: &mut v1::Assurance) {
    let v1::Assurance { level, reason } = assurance;
    level.truncate(level.floor_char_boundary(ASSURANCE_BYTES_MAX));
    reason.truncate(reason.floor_char_boundary(ASSURANCE_REASON_BYTES_MAX));
}
