//! What a driver keeps and tells for a coordinator that is being rebuilt.

use muster_model::{Epoch, ToHost};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use muster_rollout::host::Event;
use std::sync::Arc;

use super::FleetDriver;
use crate::AgentError;
use crate::papers::ShownSecrets;
use crate::refusal;

impl FleetDriver {
    /// Remembers what the host was told to open with, until it has.
    pub(super) fn note_secrets(&mut self, message: &ToHost) {
        if let ToHost::Open { epoch, release, secrets, .. } = message {
            let (epoch, release, secrets) = (*epoch, *release, secrets.clone());
            self.shown_secrets = Some(ShownSecrets { epoch, release, secrets });
        }
    }

    /// Keeps the secrets that opened this host. Only now, so that no disk lengthens the time in which nothing is served.
    pub(super) fn keep_secrets(&mut self, epoch: Epoch) {
        let Some(shown) = self.shown_secrets.take_if(|shown| shown.epoch == epoch) else { return };
        let (papers, machine) = (Arc::clone(&self.tools.papers), self.tools.machine.clone());
        let fleet = self.tools.fleet.clone();
        tokio::spawn(async move {
            let kept = machine.run_blocking(move || papers.keep_secrets(shown.release, &shown.secrets)).await;
            if let Ok(Err(error)) = kept {
                let error = refusal::chain(&error);
                tracing::warn!(%fleet, error, "the closing secrets of the flip are not kept here");
            }
        });
    }

    /// What this host has kept counts before it joins: a journal that was lost has forgotten that a roster leaves the host out.
    pub(super) async fn recall_roster(&mut self) -> Result<(), AgentError> {
        let (library, seen) = (Arc::clone(&self.tools.library), self.host.record().roster_revision);
        let kept = self.tools.machine.run_blocking(move || library.kept_since(seen)).await.ok().flatten();
        match kept {
            Some(roster) => self.step(Event::RosterShown(Box::new(roster))).await,
            None => Ok(()),
        }
    }

    /// Tells what this host has promised. It is the host's own word about itself, and no secret.
    pub(super) fn testify(&self) {
        let Some(uplink) = &self.uplink else { return };
        let testimony = self.tools.papers.complete(self.host.testify());
        let body = serde_json::to_vec(&testimony).expect("it has string keys and no failing serialisers");
        uplink.send(&self.tools.fleet, Body::Testimony(v1::Testimony { body }));
    }
}
