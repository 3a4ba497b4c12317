//! How long a fence takes on this host: tried before the first session, and again and again while nothing else goes on.

use std::time::Duration;

use muster_guard::{Drill, FleetState, GuardError};
use tokio::time::Instant;

use super::{FleetDriver, Presence, Session};
use crate::AgentError;
use crate::backoff::Backoff;
use crate::guard_queue::Ask;

/// A host that has been found the same for long is tried this often.
const AGAIN_MAX: Duration = Duration::from_secs(600);

/// Added to what was measured, at least: no two runs take the same time, and a session that begins anew is in the way of
/// whatever is asked of the host at that moment.
const MARGIN_MS: u64 = 250;

/// A host that told no more than this is hardly refused anywhere, and need not tell that it is quicker.
const QUICK_MS: u64 = 1_000;

/// How long a fence takes on this host, as far as the guard has tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drilled {
    No,
    /// A session that begins waits for it.
    Asked,
    Yes(Drill),
}

/// When the next drill is due.
pub(super) struct Drills {
    due: Option<Instant>,
    /// The shortest wait, which the others are added to.
    first: Duration,
    waits: Backoff,
}

impl Drills {
    pub(super) const fn new(first: Duration) -> Self {
        Self { due: None, first, waits: Backoff::new(first, AGAIN_MAX) }
    }

    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl FleetDriver {
    /// Has the guard try again, if that is in nobody's way.
    pub(super) fn drill_again(&mut self) -> Result<(), AgentError> {
        self.plan_drill()?;
        if self.host.is_at_rest()
            && self.session == Session::Joined
            && self.guard_presence == Presence::Present
        {
            self.ask(Ask::Drill);
        }
        Ok(())
    }

    /// The guard has tried, or could not. What a session has told is told anew, by a new session, if it is no longer so: a
    /// host that was slow once must not be refused for ever, nor one that has become slow be taken for quick.
    pub(super) fn drilled(
        &mut self,
        drill: Option<Drill>,
        outcome: &Result<FleetState, GuardError>,
    ) -> Result<(), AgentError> {
        if let Err(error) = outcome {
            // Without it the host does not arm.
            tracing::warn!(fleet = %self.tools.fleet, error = error.chain(), "no fence could be tried");
        }
        let was_awaited = self.drill == Drilled::Asked;
        match (self.drill, drill) {
            (Drilled::Asked, None) => self.drill = Drilled::No,
            (Drilled::Asked, Some(found)) => self.drill = Drilled::Yes(found),
            (Drilled::Yes(_) | Drilled::No, None) => {}
            (Drilled::Yes(told), Some(found)) if is_same(told, found) => {}
            (Drilled::Yes(_) | Drilled::No, Some(found)) if self.host.is_at_rest() => {
                let fence_ms = fence_ms(found);
                tracing::info!(fleet = %self.tools.fleet, fence_ms, "a fence takes another time than it did");
                self.drill = Drilled::Yes(found);
                self.drills.waits.reset();
                if self.session == Session::Joined {
                    self.end_stream();
                }
            }
            // It is tried again soon, when the rollout may be over.
            (Drilled::Yes(_) | Drilled::No, Some(_)) => self.drills.waits.reset(),
        }
        if was_awaited && self.session == Session::AskingGuard {
            // The session waits for this; what the guard serves is asked for again.
            self.ask(self.first_question());
        }
        self.plan_drill()
    }

    fn plan_drill(&mut self) -> Result<(), AgentError> {
        let random = self.tools.machine.random_u64().map_err(|source| AgentError::Random { source })?;
        self.drills.due = Some(Instant::now() + self.drills.first + self.drills.waits.next(random));
        Ok(())
    }
}

/// From the deadline to the end of the fence, at most: what was measured, and a quarter of it, at least [`MARGIN_MS`].
pub(super) const fn fence_ms(drill: Drill) -> u64 {
    let measured = drill.fence_ms + drill.on_fence_ms_max;
    let quarter = measured / 4;
    measured + if quarter > MARGIN_MS { quarter } else { MARGIN_MS }
}

/// Whether what was told still holds, and is not far too much. What takes longer than was told is never the same.
fn is_same(told: Drill, found: Drill) -> bool {
    let measured = found.fence_ms + found.on_fence_ms_max;
    measured <= fence_ms(told) && (fence_ms(told) <= QUICK_MS || fence_ms(told) <= 4 * fence_ms(found))
}

#[cfg(test)]
mod tests {
    use muster_guard::DriverKind;

    use super::*;

    #[test]
    fn only_what_makes_a_difference_is_told_anew() {
        let drill = |fence_ms| Drill {
            driver: DriverKind::Link,
            kill: None,
            runs: 3,
            fence_ms,
            on_fence_ms_max: 10,
            drain_ms_max: 0,
        };
        let same = |told, found| is_same(drill(told), drill(found));
        assert!(same(3, 250) && same(700, 3) && same(400, 650) && same(1_200, 900));
        assert!(!same(3, 300) && !same(400, 700) && !same(2_000, 3) && !same(9_000, 400));
        assert!((0..10_000).all(|ms| !same(ms, fence_ms(drill(ms)))), "never more than was told");
    }
}
