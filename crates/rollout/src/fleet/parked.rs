//! Hosts that are parked: connected, asked nothing, and offered nothing.

use muster_model::{Blocker, BootTime, Code, FromHost, HostName, JoinReport, SessionId, ToHost, Token};

use super::{Fleet, Out};
use crate::gate;

impl Fleet {
    /// Step 2 for a host that is parked. No step follows it.
    pub(super) fn join_parked(
        &mut self,
        index: usize,
        session: SessionId,
        report: JoinReport,
        next: Token,
        now: BootTime,
        out: &mut Out,
    ) {
        if let Err(refusal) = self.admissible(&self.parked[index], session, &report) {
            self.parked[index].turned_away(session, refusal, out);
            return;
        }
        let host = &mut self.parked[index];
        host.replaces_session(out);
        host.begin_session(session, report, next, now, out);
        out.effects.push(super::Effect::Send {
            host: host.name.clone(),
            session,
            message: ToHost::Joined { next },
        });
    }

    /// The session of a parked host has ended.
    pub(super) fn parked_left(&mut self, host: &HostName, session: SessionId, now: BootTime) {
        if let Some(index) = self.current_parked(host, session) {
            self.parked[index].session = None;
            self.parked[index].since = Some(now);
        }
    }

    /// What a parked host says: nothing of it moves the fleet.
    pub(super) fn parked_says(
        &mut self,
        host: &HostName,
        session: SessionId,
        message: FromHost,
        out: &mut Out,
    ) {
        let Some(index) = self.current_parked(host, session) else { return };
        let host = &mut self.parked[index];
        match message {
            FromHost::Confirmed => host.confirmed(out),
            FromHost::Withdrawn { roster, at: _ } => {
                host.has_withdrawn(roster);
            }
            FromHost::Serving { epoch, at: _ } => host.serves(Some(epoch)),
            FromHost::Dark { refusal, nonce: _, returned: _ } => {
                host.serves(None);
                host.trouble = refusal.blockers.iter().map(|it| gate::at_host(it, &host.name)).collect();
            }
            FromHost::Refused { k: _, refusal } => {
                host.trouble = refusal.blockers.iter().map(|it| gate::at_host(it, &host.name)).collect();
            }
            FromHost::Join(_)
            | FromHost::Fresh { .. }
            | FromHost::CannotAttest { .. }
            | FromHost::Prepared { .. }
            | FromHost::Probed { .. }
            | FromHost::Armed { .. }
            | FromHost::Renew { .. }
            | FromHost::Set { .. }
            | FromHost::Closed { .. }
            | FromHost::Disarmed { .. }
            | FromHost::Measured { .. } => {}
        }
    }

    /// The position of a host among those that are parked.
    pub(super) fn parked_position(&self, host: &HostName) -> Option<usize> {
        self.parked.binary_search_by(|it| it.name.cmp(host)).ok()
    }

    pub(super) fn current_parked(&self, host: &HostName, session: SessionId) -> Option<usize> {
        let index = self.parked_position(host)?;
        let current = self.parked[index].session.as_ref()?;
        (current.id == session).then_some(index)
    }
}

impl super::Host {
    /// What is wrong with a host that is parked.
    pub(super) fn trouble_while_parked(&self) -> Vec<Blocker> {
        let mut trouble = self.trouble.clone();
        if let Some(epoch) = self.session.as_ref().and(self.serving()) {
            let detail = format!("it is parked, and says that it serves epoch {epoch}: fence its machine");
            trouble.push(Blocker::host(Code::WrongState, &self.name, detail));
        }
        trouble
    }
}
