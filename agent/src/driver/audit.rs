//! What stands between the coordinator's words and the state machine: whether this host believes its audit log.

use muster_audit::Offer;
use muster_model::{FromHost, Leadership, ToHost};
use muster_rollout::host::Event;

use super::FleetDriver;
use crate::witness::Kept;
use crate::{AgentError, refusal};

impl FleetDriver {
    /// The coordinator said something. Whoever it is that rewrites an audit log, this host takes part in nothing of theirs.
    pub(super) async fn said(&mut self, leadership: Leadership, message: ToHost) -> Result<(), AgentError> {
        if let Some((k, refusal)) = self.tools.witness.objection(&message) {
            tracing::warn!(fleet = %self.tools.fleet, %k, %refusal, "takes no part in a rollout");
            self.send(FromHost::Refused { k: Some(k), refusal });
            return Ok(());
        }
        // Of a coordinator that this host does not obey, the log is of no interest.
        if let ToHost::Joined { .. } = message
            && !self.host.is_unmandated(leadership)
        {
            let kept = self.tools.witness.judge(leadership.incarnation);
            self.keep(kept).await?;
        }
        self.note_secrets(&message);
        self.step(Event::Message { leadership, message }).await
    }

    /// The coordinator showed how far its log has gone.
    pub(super) async fn audit_shown(&mut self, offer: Offer) -> Result<(), AgentError> {
        let kept = self.tools.witness.show(offer);
        let is_new = kept.is_some();
        self.keep(kept).await?;
        if let Some(refusal) = self.tools.witness.distrust().filter(|_| is_new) {
            self.send(FromHost::Refused { k: None, refusal });
        }
        Ok(())
    }

    /// A checkpoint that cannot be kept leaves the one before, which the log must continue as well. That the log is not believed
    /// any more has to be kept: whoever forgets it would go on.
    async fn keep(&mut self, kept: Option<Kept>) -> Result<(), AgentError> {
        let Some(kept) = kept else { return Ok(()) };
        let must_be_kept = kept.tells_distrust();
        let written = self.tools.machine.run_blocking(move || kept.write()).await;
        match written.map_err(|source| AgentError::Task { source })? {
            Err(error) if !must_be_kept => {
                let error = refusal::chain(&error);
                tracing::warn!(fleet = %self.tools.fleet, error, "the checkpoint of the audit log is not kept");
                Ok(())
            }
            written => written,
        }
    }
}
