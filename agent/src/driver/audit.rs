//! What stands between the coordinator's words and the state machine: whether this host believes its audit log.

use muster_model::{FromHost, Leadership, ToHost};
use muster_rollout::host::Event;

use super::FleetDriver;
use crate::AgentError;

impl FleetDriver {
    /// The coordinator said something. Whoever it is that rewrites an audit log, this host takes part in nothing of theirs.
    pub(super) async fn said(&mut self, leadership: Leadership, message: ToHost) -> Result<(), AgentError> {
        if let Some((k, refusal)) = self.tools.witness.objection(&message) {
            tracing::warn!(fleet = %self.tools.fleet, %k, %refusal, "takes no part in a rollout");
            self.send(FromHost::Refused { k: Some(k), refusal });
            return Ok(());
        }
        if let ToHost::Joined { .. } = message {
            let judged = self.tools.witness.judge(leadership.incarnation);
            if let Some(kept) = judged {
                let kept = self.tools.machine.run_blocking(move || kept.write()).await;
                kept.map_err(|source| AgentError::Task { source })??;
            }
        }
        self.step(Event::Message { leadership, message }).await
    }
}
