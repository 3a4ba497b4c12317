//! What the guard tells unasked, and a guard that does not answer.

use muster_rollout::host::{Event, GuardState};

use super::drill::Drilled;
use super::input::Input;
use super::{FleetDriver, GUARD_AGAIN, Presence, silent};
use crate::AgentError;
use crate::guard_queue::Ask;
use crate::guard_watch::GuardChange;

impl FleetDriver {
    /// Asks a guard again soon that did not answer. One that is gone is looked for already.
    pub(super) fn look_again(&mut self) {
        match self.guard_presence {
            Presence::Silent | Presence::Lost => return,
            Presence::Present | Presence::Asked => self.guard_presence = Presence::Silent,
        }
        let post = self.post.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GUARD_AGAIN).await;
            // A driver that has ended has no use for it.
            let _ = post.send(Input::GuardChanged(GuardChange::Found)).await;
        });
    }

    pub(super) async fn guard_changed(&mut self, change: GuardChange) -> Result<(), AgentError> {
        match change {
            GuardChange::WentDark(refusal) => {
                self.guard.interrupted();
                self.drift.went_dark(&refusal);
                let (state, halt) = (GuardState::Dark, self.halt_so_far());
                self.step(Event::Guard { state, since: None, halt, refusal: Some(refusal) }).await?;
                // It may be running again by now.
                self.ask(Ask::Status);
            }
            GuardChange::Changed => self.ask(Ask::Status),
            GuardChange::Lost(refusal) => {
                self.guard_presence = Presence::Lost;
                self.drill = Drilled::No;
                self.guard.interrupted();
                // Without a guard nothing is known: a link may go on, a service has died with it.
                self.step(silent(Some(refusal))).await?;
            }
            GuardChange::Found => {
                if self.guard_presence != Presence::Present {
                    self.guard_presence = Presence::Asked;
                }
                // Also if it has answered meanwhile: it may have ended and begun again before it was watched.
                self.ask(Ask::Status);
            }
        }
        Ok(())
    }
}
