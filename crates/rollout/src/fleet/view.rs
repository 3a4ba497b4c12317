//! What is shown of a fleet.

use muster_model::{Blocker, BootTime, Digest, Epoch, HostMode, HostName, RolloutId, SessionId};

use super::record::Phase;
use super::rollout::Progress;
use super::{Fleet, Identity};
use crate::gate;

/// One host, as far as it is known at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostView {
    /// The host.
    pub host: HostName,
    /// Its session, if it is connected.
    pub session: Option<SessionId>,
    /// When it connected or was lost; nothing if it was not seen by this leader.
    pub since: Option<BootTime>,
    /// The mode it stated last.
    pub mode: Option<HostMode>,
    /// What it serves, as far as it is connected and said so.
    pub serving: Option<Epoch>,
    /// While it is armed: until when it may serve at the latest, on the coordinator's clock.
    pub leased_until: Option<BootTime>,
    /// The last rollout when it was halted, if it is.
    pub halted: Option<RolloutId>,
    /// Its agent's version.
    pub agent_version: Option<String>,
    /// What is wrong with it.
    pub blockers: Vec<Blocker>,
}

/// A rollout that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolloutView {
    /// Its number.
    pub k: RolloutId,
    /// The manifest to serve.
    pub to: Digest,
}

impl Fleet {
    /// All hosts, in the order of the roster. What is not known is never shown as good.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostView> {
        self.hosts
            .iter()
            .enumerate()
            .map(|(index, host)| {
                let mut blockers = host.trouble.clone();
                if host.identity.as_ref().is_some_and(|it| it.identity == Identity::Duplicate)
                    && !blockers.iter().any(|blocker| blocker.code == muster_model::Code::DuplicateHost)
                {
                    let detail = "its identity was used by two machines";
                    blockers.push(Blocker::host(muster_model::Code::DuplicateHost, &host.name, detail));
                }
                if host.session.is_none() {
                    blockers.insert(0, gate::missing(&host.name));
                } else if let Progress::Closing(closing) = &self.progress
                    && blockers.is_empty()
                    && !closing.has_closed(index)
                {
                    // Nothing opens before it has: whoever looks must see for whom the others are dark.
                    let detail = "it was told to close and has not said yet that it has";
                    blockers.push(Blocker::host(muster_model::Code::HostSilent, &host.name, detail));
                }
                HostView {
                    host: host.name.clone(),
                    session: host.session.as_ref().map(|session| session.id),
                    since: host.since,
                    mode: host.mode(),
                    serving: host.session.as_ref().and(host.serving()),
                    leased_until: host.leased_until,
                    halted: host.halted(),
                    agent_version: host.known.as_ref().map(|known| known.agent_version.clone()),
                    blockers,
                }
            })
            .collect()
    }

    /// The rollout that hosts are still needed for.
    #[must_use]
    pub fn current_rollout(&self) -> Option<RolloutView> {
        match &self.record.phase {
            Phase::Preparing(rollout) => Some(RolloutView { k: rollout.k, to: rollout.to }),
            Phase::Arming(it) | Phase::Decided(it) => {
                Some(RolloutView { k: it.rollout.k, to: it.rollout.to })
            }
            Phase::Opened(opening) => self.record.serving.map(|to| RolloutView { k: opening.k, to }),
            Phase::Settled => None,
        }
    }

    /// How many hosts have done what the current phase waits for.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        match &self.progress {
            Progress::None => 0,
            Progress::Gathering(it) => it.done(),
            Progress::Attesting(it) => it.done(),
            Progress::Preparing(it) => it.done(),
            Progress::Probing(it) => it.done(),
            Progress::Arming(it) => it.done(),
            Progress::Closing(it) => it.done(),
            Progress::Switching(it) => it.done(),
            Progress::Opening(_) => {
                self.hosts.iter().filter(|host| host.measured == Some(self.record.epoch)).count()
            }
        }
    }

    /// Why this coordinator must not lead, if so.
    #[must_use]
    pub fn frozen(&self) -> Option<&Blocker> {
        self.ahead().next().map(|(_, blocker)| blocker)
    }
}
