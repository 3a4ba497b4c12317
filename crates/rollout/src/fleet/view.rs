//! What is shown of a fleet.

use muster_model::{
    Blocker, BootTime, BrokenGlass, Code, Digest, Epoch, HostMode, HostName, RolloutId, SessionId,
};

use super::record::Phase;
use super::rollout::Progress;
use super::{Fleet, Host, Identity};
use crate::gate;

/// What a host is to its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It counts and is dark: it has not served since the roster has it.
    Joining,
    /// It counts, and serves with the others, or should.
    Serving,
    /// It counts until it has closed: the coming roster does not have it serve.
    Leaving,
    /// It serves nothing and does not count.
    Parked,
}

/// One host, as far as it is known at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostView {
    /// The host.
    pub host: HostName,
    /// What it is to the fleet.
    pub state: State,
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
    /// The break-glass tokens that were used on it, as it said last.
    pub glass: Vec<BrokenGlass>,
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
    /// The N hosts, in the order of the roster. What is not known is never shown as good.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostView> {
        let awaited = self.unfinished_change();
        let views = self.hosts.iter().enumerate().map(|(index, host)| {
            let mut blockers = host.troubles(host.trouble.clone());
            if let Progress::Closing(closing) = &self.progress
                && host.session.is_some()
                && blockers.is_empty()
                && !closing.has_closed(index)
            {
                // Nothing opens before it has: whoever looks must see for whom the others are dark.
                let detail = "it was told to close and has not said yet that it has";
                blockers.push(Blocker::host(Code::HostSilent, &host.name, detail));
            }
            blockers.extend(awaited.iter().filter(|it| it.host.as_ref() == Some(&host.name)).cloned());
            let state = if self.is_leaving(&host.name) {
                State::Leaving
            } else if self.record.joining.contains(&host.name) {
                State::Joining
            } else {
                State::Serving
            };
            host.view(state, blockers)
        });
        views.collect()
    }

    /// The hosts that are parked, in the order of the roster.
    #[must_use]
    pub fn parked(&self) -> Vec<HostView> {
        let unproven = self.unproven();
        let view = |host: &Host| {
            let mut blockers = host.troubles(host.trouble_while_parked());
            blockers.retain(|blocker| blocker.code != Code::HostMissing);
            blockers.extend(unproven.iter().filter(|it| it.host.as_ref() == Some(&host.name)).cloned());
            host.view(State::Parked, blockers)
        };
        self.parked.iter().map(view).collect()
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

impl Host {
    fn view(&self, state: State, blockers: Vec<Blocker>) -> HostView {
        HostView {
            host: self.name.clone(),
            state,
            session: self.session.as_ref().map(|session| session.id),
            since: self.since,
            mode: self.mode(),
            serving: self.session.as_ref().and(self.serving()),
            leased_until: self.leased_until,
            halted: self.halted(),
            agent_version: self.known.as_ref().map(|known| known.agent_version.clone()),
            glass: self.known.as_ref().map(|known| known.glass.clone()).unwrap_or_default(),
            blockers,
        }
    }

    /// What is wrong with it, a connection that is missing and an identity that is not trusted included.
    fn troubles(&self, mut blockers: Vec<Blocker>) -> Vec<Blocker> {
        if self.identity.as_ref().is_some_and(|it| it.identity == Identity::Duplicate)
            && !blockers.iter().any(|blocker| blocker.code == Code::DuplicateHost)
        {
            let detail = "its identity was used by two machines";
            blockers.push(Blocker::host(Code::DuplicateHost, &self.name, detail));
        }
        if !blockers.iter().any(|blocker| blocker.code == Code::BrokenGlass) {
            blockers.extend(self.broken_glass());
        }
        if self.session.is_none() {
            blockers.insert(0, gate::missing(&self.name));
        }
        blockers
    }

    /// That something was started on it without a coordinator, and nobody has settled that. It holds as well while it is not connected.
    pub(super) fn broken_glass(&self) -> Option<Blocker> {
        let used = self.known.as_ref()?.glass.iter().rev().find(|used| !used.settled)?;
        let detail = format!(
            "the break-glass token {} started epoch {} on it without a coordinator ({}); look at what it did, then \
             `muster break-glass settle {}`",
            used.id, used.epoch, used.reason, self.name
        );
        Some(Blocker::host(Code::BrokenGlass, &self.name, detail))
    }
}
