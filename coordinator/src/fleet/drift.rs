//! What hosts tell of changes on their disks, for the audit log: once when it begins, and once when it is over.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_audit::{Entry, Kind};
use muster_model::{BootTime, Code, FleetName, FromHost, HostName};
use muster_rollout::fleet::Event;

use crate::audit::AuditHandle;
use crate::metrics::Counts;

/// A host that drifts again and again fills no log: so soon after it began, it is not told again. One that stays so goes on telling it.
const PAUSE: Duration = Duration::from_secs(10);

/// What was written of each host last, and when its drift began. A host that was never written of is right.
#[derive(Default)]
pub(super) struct DriftNotes(BTreeMap<HostName, (State, BootTime)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Drifted,
    /// It was stopped for that.
    Stopped,
    Right,
}

impl DriftNotes {
    /// The entry for what a host says, if it is news.
    pub(super) fn take(
        &mut self,
        (audit, counts): (&AuditHandle, &Counts),
        fleet: &FleetName,
        event: &Event,
        now: BootTime,
    ) -> Option<Entry> {
        let Event::Message { host, message, .. } = event else { return None };
        let (state, detail) = read(message)?;
        let began = began(self.0.get(host).copied(), state, now)?;
        if state == State::Drifted {
            counts.drifted(fleet);
        }
        self.0.insert(host.clone(), (state, began));
        Some(audit.own_entry(Kind::Drift).of_fleet(fleet).of_hosts([host]).saying(detail))
    }
}

/// When the drift began that is to be written of now, if anything is. Whatever a host says, each pause brings one beginning of it, and at
/// most one stop and one end.
fn began(last: Option<(State, BootTime)>, state: State, now: BootTime) -> Option<BootTime> {
    match (last, state) {
        (None | Some((State::Right, _)), State::Right)
        | (Some((State::Drifted, _)), State::Drifted)
        | (Some((State::Stopped, _)), State::Stopped) => None,
        (Some((State::Drifted, began)), State::Stopped | State::Right)
        | (Some((State::Stopped, began)), State::Right) => Some(began),
        (Some((State::Right, began)), State::Drifted | State::Stopped)
        | (Some((State::Stopped, began)), State::Drifted) => (now.since(began) >= PAUSE).then_some(now),
        (None, State::Drifted | State::Stopped) => Some(now),
    }
}

/// A host that serves, or has measured what it serves, is right.
fn read(message: &FromHost) -> Option<(State, String)> {
    match message {
        FromHost::Refused { k: None, refusal } => {
            let is_drift = |code| matches!(code, Code::Drifted | Code::WrongProcess);
            let drift = refusal.blockers.iter().any(|blocker| is_drift(blocker.code));
            drift.then(|| (State::Drifted, refusal.to_string()))
        }
        FromHost::Dark { refusal, .. } => {
            let is_stopped = refusal.blockers.iter().any(|blocker| blocker.code == Code::Drifted);
            is_stopped.then(|| (State::Stopped, refusal.to_string()))
        }
        FromHost::Measured { .. } => Some((State::Right, "measures right again".to_owned())),
        FromHost::Join(_)
        | FromHost::Confirmed
        | FromHost::Refused { k: Some(_), .. }
        | FromHost::Serving { .. }
        | FromHost::Fresh { .. }
        | FromHost::CannotAttest { .. }
        | FromHost::Prepared { .. }
        | FromHost::Probed { .. }
        | FromHost::Renew { .. }
        | FromHost::Armed { .. }
        | FromHost::Set { .. }
        | FromHost::Closed { .. }
        | FromHost::Disarmed { .. }
        | FromHost::Withdrawn { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_says_anything_at_any_time_fills_no_log() {
        let says = [State::Drifted, State::Stopped, State::Right];
        let second = 1_000;
        // All orders of three words, again and again, a hundred times a second for 100 s.
        for order in 0..27 {
            let word = |at: u64| says[(order / [1, 3, 9][(at % 3) as usize]) % 3];
            let (mut last, mut written) = (None, 0);
            for at in 0..100 * 100 {
                let (now, state) = (BootTime(second + at * 10), word(at));
                if let Some(began) = began(last, state, now) {
                    assert!(state != State::Right || last.is_some_and(|(last, _)| last != State::Right));
                    (last, written) = (Some((state, began)), written + 1);
                }
            }
            assert!(written <= 3 * 10, "{order}: {written}");
        }
    }

    #[test]
    fn a_drift_its_stop_and_its_end_are_written_however_soon_they_follow() {
        let now = BootTime(5_000);
        let drifted = (State::Drifted, began(None, State::Drifted, now).unwrap());
        let stopped = (State::Stopped, began(Some(drifted), State::Stopped, now).unwrap());
        assert_eq!(began(Some(stopped), State::Right, now), Some(now));
        assert_eq!(began(None, State::Right, now), None);
        let right = Some((State::Right, now));
        for state in [State::Drifted, State::Stopped] {
            assert_eq!(began(right, state, now.after(PAUSE - Duration::from_millis(1))), None);
            assert_eq!(began(right, state, now.after(PAUSE)), Some(now.after(PAUSE)));
        }
    }
}
