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
        let began = match (self.0.get(host), state) {
            (None, State::Right) => return None,
            (Some((last, _)), _) if *last == state => return None,
            (Some((_, began)), State::Drifted) if now.since(*began) < PAUSE => return None,
            (Some((_, began)), State::Right | State::Stopped) => *began,
            (None, State::Stopped) | (None | Some(_), State::Drifted) => now,
        };
        if state == State::Drifted {
            counts.drifted(fleet);
        }
        self.0.insert(host.clone(), (state, began));
        Some(audit.own_entry(Kind::Drift).of_fleet(fleet).of_hosts([host]).saying(detail))
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
