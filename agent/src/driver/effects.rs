//! Carrying out effects. None of them leaves a choice.

use muster_daemon::{DECISIONS, crash_point};
use muster_guard::{Armed, FlipTime, Opened};
use muster_model::{
    Attestation, BootTime, Code, Digest, Documents, FromHost, Refusal, RolloutId, Withdrawal,
};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use muster_rollout::host::{Effect, Event, Purpose, SealPurpose};
use std::sync::Arc;

use super::work::Kind;
use super::{FleetDriver, Session};
use crate::guard_queue::Ask;
use crate::manifests;
use crate::measure::{BrokenSeal, in_lane, on_thread};
use crate::refusal;
use crate::running;

impl FleetDriver {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send(message) => self.say(message),
            Effect::SignAndSend(k, attestation) => self.sign_and_send(k, &attestation),
            Effect::SignWithdrawal { withdrawal, at } => self.sign_withdrawal(&withdrawal, at),
            Effect::Measure { purpose, release } => self.measure(purpose, release),
            Effect::Verify { k, documents } => self.verify(k, documents),
            Effect::Seal { k, release } => self.seal(k, release),
            Effect::CheckSeal { purpose, release } => self.check_seal(purpose, release),
            Effect::Quiesce { k } => self.ask(Ask::Quiesce { k }),
            Effect::Unquiesce => self.ask(Ask::Unquiesce),
            Effect::Lease { k, deadline, serving, instant } => {
                let flip = instant
                    .map(|instant| FlipTime { at_boot_ms: instant.at, epsilon_ms: instant.clock_error_ms });
                self.ask(Ask::Arm(Armed { k, epoch: serving, deadline_boot_ms: deadline, flip }));
            }
            Effect::Extend { k, deadline } => self.ask(Ask::Renew { k, deadline }),
            Effect::Lift { k } => self.ask(Ask::Disarm { k }),
            Effect::Switch { k, at, epoch, release } => {
                self.ask(Ask::Decide { k, at, to: Opened { epoch, digest: release } });
            }
            Effect::Halt => self.ask(Ask::Halt),
            Effect::Close { cause, attempt } => self.ask(Ask::Close { cause, attempt }),
            Effect::Open { epoch, release, resume } => {
                self.ask(Ask::Open { opened: Opened { epoch, digest: release }, resume });
            }
            Effect::Hang(refusal) => self.hang(&refusal),
        }
    }

    fn say(&mut self, message: FromHost) {
        match &message {
            FromHost::Confirmed => self.has_joined(),
            FromHost::Armed { .. } => crash_point("agent.armed.before-ack"),
            FromHost::Serving { .. } => crash_point("agent.serving.before-ack"),
            FromHost::Refused { refusal, .. } | FromHost::Dark { refusal, .. } => {
                tracing::warn!(fleet = %self.tools.fleet, %refusal, "refused");
            }
            FromHost::Withdrawn { .. }
            | FromHost::Join(_)
            | FromHost::Fresh { .. }
            | FromHost::CannotAttest { .. }
            | FromHost::Prepared { .. }
            | FromHost::Probed { .. }
            | FromHost::Renew { .. }
            | FromHost::Set { .. }
            | FromHost::Closed { .. }
            | FromHost::Disarmed { .. }
            | FromHost::Measured { .. } => {}
        }
        if let FromHost::Serving { epoch, .. } = &message {
            self.keep_secrets(*epoch);
        }
        let tells_inventory = message == FromHost::Confirmed;
        // These say that all is well with the host, which takes back what it said before.
        let is_well =
            matches!(message, FromHost::Confirmed | FromHost::Serving { .. } | FromHost::Measured { .. });
        self.send(message);
        if let Some(refusal) = self.tools.witness.distrust().filter(|_| is_well) {
            self.send(FromHost::Refused { k: None, refusal });
        }
        if tells_inventory {
            self.tell_inventory();
        }
    }

    /// Tells what this host has, if there is a session to tell it in: each begins with that.
    pub(super) fn tell_inventory(&self) {
        if let (Session::Joined, Some(uplink)) = (self.session, &self.uplink) {
            self.tools.deployer.tell_inventory(uplink);
        }
    }

    fn has_joined(&mut self) {
        tracing::info!(fleet = %self.tools.fleet, "joined");
        self.session = Session::Joined;
        self.tell_drift_again();
        self.due = None;
        self.again.reset();
    }

    fn sign_and_send(&self, k: RolloutId, attestation: &Attestation) {
        match muster_trust::sign(attestation, &[&*self.tools.key]) {
            Ok(envelope) => {
                if let Some(uplink) = &self.uplink {
                    let digest = envelope.digest();
                    tracing::trace!(target: DECISIONS, host = %self.tools.host, %k, %digest, "attests");
                    let attested = v1::Attested { k: k.0, envelope: envelope.raw().to_vec() };
                    uplink.send(&self.tools.fleet, Body::Attested(attested));
                }
            }
            Err(error) => {
                let refusal = refusal::of_trust(&self.tools.host, Code::BadAttestation, &error);
                self.send(FromHost::CannotAttest { k, refusal });
            }
        }
    }

    /// The host's word that it has closed: the others believe nobody else.
    fn sign_withdrawal(&self, withdrawal: &Withdrawal, at: BootTime) {
        let (fleet, revision) = (&self.tools.fleet, withdrawal.roster_revision);
        tracing::warn!(%fleet, %revision, "the roster does not have this host serve: it has closed");
        match muster_trust::sign(withdrawal, &[&*self.tools.key]) {
            Ok(envelope) => {
                let Some(uplink) = &self.uplink else { return };
                tracing::trace!(target: DECISIONS, host = %self.tools.host, ?withdrawal, "withdraws");
                let (roster_revision, at_boot_ms) = (revision.0, at.0);
                let envelope = Some(envelope.raw().to_vec());
                uplink.send(fleet, Body::Withdrawn(v1::Withdrawn { roster_revision, at_boot_ms, envelope }));
            }
            Err(error) => {
                let refusal = refusal::of_trust(&self.tools.host, Code::NotWithdrawn, &error);
                self.send(FromHost::Refused { k: None, refusal });
            }
        }
    }

    fn measure(&mut self, purpose: Purpose, release: Digest) {
        let kind = match purpose {
            Purpose::Attest(_) => Kind::Attest,
            Purpose::Admit(_) => Kind::Admit,
            Purpose::Settle(_) => Kind::Settle,
        };
        let (trees, lanes) = (Arc::clone(&self.tools.trees), Arc::clone(&self.tools.lanes));
        let channel = self.uplink.as_ref().map(crate::uplink::Uplink::channel);
        let (guard, fleet) = (self.guard.guard(), self.tools.fleet.clone());
        let of_admission = self.drift.of_admission(release);
        self.works.begin(kind, self.post.clone(), async move {
            if let Some(channel) = channel {
                manifests::obtain_for_tree(&trees, channel, release).await;
            }
            let (machine, host) = (trees.machine.clone(), trees.host.clone());
            let outcome = in_lane(&lanes.flips, &machine, &host, move || match purpose {
                // A time daemon is asked, which may take a while: not where others wait for this host to serve.
                Purpose::Attest(_) => trees.measure_to_attest(release),
                Purpose::Admit(_) => trees.measure_to_admit(release).map_err(&of_admission),
                Purpose::Settle(_) => {
                    let measured = trees.measure(release)?;
                    running::check(&guard, &fleet, &trees, release).map(|()| measured)
                }
            })
            .await;
            Event::Measured { purpose, outcome }
        });
    }

    fn verify(&mut self, k: RolloutId, documents: Documents) {
        let library = Arc::clone(&self.tools.library);
        let channel = self.uplink.as_ref().map(crate::uplink::Uplink::channel);
        let host = self.tools.host.clone();
        self.works.begin(Kind::Verify, self.post.clone(), async move {
            let outcome = match channel {
                Some(channel) => library.verify(channel, k, documents).await,
                None => Err(refusal::at(&host, Code::SessionLost, "the stream to the coordinator is gone")),
            };
            Event::Verified { k, outcome }
        });
    }

    fn seal(&mut self, k: RolloutId, release: Digest) {
        let (trees, lanes) = (Arc::clone(&self.tools.trees), Arc::clone(&self.tools.lanes));
        self.works.begin(Kind::Seal, self.post.clone(), async move {
            let (machine, host) = (trees.machine.clone(), trees.host.clone());
            let outcome = in_lane(&lanes.flips, &machine, &host, move || trees.seal(release)).await;
            Event::Sealed { k, outcome }
        });
    }

    /// Not in a lane: while hosts are armed nothing may stand in the way, and a check against a seal is short.
    fn check_seal(&mut self, purpose: SealPurpose, release: Digest) {
        let (kind, broken) = match purpose {
            SealPurpose::Arm(_) => (Kind::CheckToArm, BrokenSeal::Refuses),
            SealPurpose::Open(_) => (Kind::CheckToOpen, BrokenSeal::Measures),
        };
        let trees = Arc::clone(&self.tools.trees);
        self.works.begin(kind, self.post.clone(), async move {
            let (machine, host) = (trees.machine.clone(), trees.host.clone());
            let outcome = on_thread(&machine, &host, move || trees.check_seal(release, broken)).await;
            Event::SealChecked { purpose, outcome }
        });
    }

    /// The coordinator refused this fleet's session. It is asked for again over the same stream, which other fleets
    /// of this host go on using.
    fn hang(&mut self, refusal: &Refusal) {
        tracing::warn!(fleet = %self.tools.fleet, %refusal, "the coordinator ended the session");
        if let Err(error) = self.put_off() {
            tracing::error!(error = refusal::chain(&error), "cannot wait for the next session");
            self.end_stream();
        }
    }
}
