//! What must hold in every state, and what some states must show.

use muster_model::HostName;
use stateright::{Model, Property};

use super::FlipModel;
use super::config::Sight;
use super::papers::{LEASE_TICKS, TICK_MS};
use super::state::{Fate, LeaderEnd, LeaseOrigin, Permitted, PhaseName, Promise, SLOTS, State};
use crate::fleet::{Base, Phase};

/// The invariant that all the others are for.
pub(super) const P1: &str = "P1: no two hosts serve different releases";
/// The one that a deposed leader's grants break.
pub(super) const P5_GRANTS: &str = "P5: no grant outlives the phase it was given in by more than a lease";

/// All invariants, and the sights.
pub(super) fn all(sights: &[Sight]) -> Vec<Property<FlipModel>> {
    let mut properties = vec![
        Property::always(P1, |_, state: &State| one_release(state)),
        Property::always("P2: what is served was opened", |_, state: &State| served_was_opened(state)),
        Property::always("P3: DECIDED rests on N attestations and N armed hosts", |_, state: &State| {
            keeps(state, Promise::P3)
        }),
        Property::always("P4: OPENED finds every host dark", |_, state: &State| keeps(state, Promise::P4)),
        Property::always("P5: no deadline beyond t_send + D", |_, state: &State| keeps(state, Promise::P5)),
        Property::always(P5_GRANTS, |_, state: &State| grants_end(state)),
        Property::always("P6: counters never fall", |_, state: &State| keeps(state, Promise::P6)),
        Property::always("P7: nothing is said before it is durable", |_, state: &State| {
            keeps(state, Promise::P7)
        }),
        Property::always("P9: one session for each host", |_, state: &State| one_session(state)),
        Property::always("P10: one decision for each rollout", |_, state: &State| keeps(state, Promise::P10)),
        Property::always("P11: after a boot nothing is served without a permit", |_, state: &State| {
            permitted(state)
        }),
        Property::always("P12: the wait over, the rollout is opened", |_, state: &State| {
            keeps(state, Promise::P12)
        }),
        Property::always("a removed host serves nothing", removed_hosts_are_dark),
    ];
    properties.extend(sights.iter().map(|sight| sight_of(*sight)));
    properties
}

fn keeps(state: &State, promise: Promise) -> bool {
    state.history.broken.as_ref().is_none_or(|(broken, _)| *broken != promise)
}

fn one_release(state: &State) -> bool {
    let mut served = state.machines.iter().filter_map(|machine| machine.guard.serving);
    served.next().is_none_or(|first| served.all(|other| other == first))
}

fn served_was_opened(state: &State) -> bool {
    let epoch = state.store.record.epoch;
    state.machines.iter().all(|machine| machine.guard.serving.is_none_or(|(served, _)| served <= epoch))
}

fn grants_end(state: &State) -> bool {
    let Some((k, at)) = state.history.left_arming else { return true };
    let latest = (at + LEASE_TICKS) * TICK_MS;
    let granted = state.machines.iter().filter_map(|machine| machine.guard.lease);
    granted
        .filter(|lease| lease.k == k && lease.origin == LeaseOrigin::Granted)
        .all(|lease| lease.deadline.0 <= latest)
}

fn one_session(state: &State) -> bool {
    state.machines.iter().all(|machine| {
        (0..SLOTS).all(|slot| {
            let is_session =
                |it: &&super::state::Stream| it.slot == slot && it.leader_end == LeaderEnd::Accepted;
            machine.streams.iter().filter(is_session).count() <= 1
        })
    })
}

fn permitted(state: &State) -> bool {
    state
        .machines
        .iter()
        .all(|machine| machine.guard.serving.is_none() || machine.permitted == Permitted::Yes)
}

fn removed_hosts_are_dark(model: &FlipModel, state: &State) -> bool {
    let roster = &model.papers.roster(state.store.record.roster.digest).roster;
    let is_removed = |host: &HostName| roster.position(host).is_none();
    state
        .machines
        .iter()
        .all(|machine| machine.guard.serving.is_none() || !is_removed(&machine.agent.record().host))
}

fn sight_of(sight: Sight) -> Property<FlipModel> {
    match sight {
        Sight::TwoFlipsCompleted => {
            Property::sometimes("two flips are completed", |_, state: &State| settled_at(state, 3))
        }
        Sight::AbortThenFlip => {
            Property::sometimes("a flip follows one that was given up", |_, state: &State| {
                settled_at(state, 2) && state.history.fates.values().any(|fate| *fate == Fate::Aborted)
            })
        }
        Sight::LapseThenOpen => Property::sometimes("a host lapses and another opens", |_, state: &State| {
            let lapsed = |phase: &Phase| phase.opening().is_some_and(|opening| !opening.lapsed.is_empty());
            lapsed(&state.store.record.phase) && serves(state, 2) == 1
        }),
        Sight::LapsedHostServesAgain => {
            Property::sometimes("a host that lapsed serves again", |_, state: &State| {
                let completed = state.store.record.completed.as_ref();
                settled_at(state, 2)
                    && completed.is_some_and(|it| !it.lapsed.is_empty())
                    && serves(state, 2) == state.machines.len()
            })
        }
        Sight::RebootedHostServesAgain => {
            Property::sometimes("a host that was rebooted serves again", |_, state: &State| {
                state.machines.iter().any(|it| it.boots > 0 && it.guard.serving.is_some())
            })
        }
        Sight::RemovalInOpened => {
            Property::sometimes("a host is removed while others open", |_, state: &State| {
                state.store.record.roster.revision.0 == 2
            })
        }
        Sight::RemovalThenFlip => Property::sometimes("a flip follows a removal", |_, state: &State| {
            state.store.record.roster.revision.0 == 2 && settled_at(state, 3)
        }),
        Sight::TakeOverInSettled => found("a take-over in SETTLED", PhaseName::Settled),
        Sight::TakeOverInPreparing => found("a take-over in PREPARING", PhaseName::Preparing),
        Sight::TakeOverInArming => found("a take-over in ARMING", PhaseName::Arming),
        Sight::TakeOverInDecided => found("a take-over in DECIDED", PhaseName::Decided),
        Sight::TakeOverInOpened => found("a take-over in OPENED", PhaseName::Opened),
        Sight::RolloutFromOpened => Property::sometimes("a rollout begins in OPENED", |_, state: &State| {
            let rollout = state.store.record.phase.rollout();
            rollout.is_some_and(|rollout| matches!(rollout.base, Base::Opened(_)))
        }),
        Sight::LeaseExtended => Property::sometimes("a lease is extended", |_, state: &State| {
            let lease = |it: &super::state::Part<super::state::Machine>| it.running_lease();
            state.machines.iter().filter_map(lease).any(|lease| lease.origin == LeaseOrigin::Granted)
        }),
        Sight::TwoLeaders => {
            Property::sometimes("two coordinators think that they lead", |_, state: &State| {
                state.leaders.iter().all(Option::is_some)
            })
        }
    }
}

/// A property can only hold a plain function, so there is one for each phase.
fn found<M: Model<State = State>>(name: &'static str, phase: PhaseName) -> Property<M> {
    let condition: fn(&M, &State) -> bool = match phase {
        PhaseName::Settled => |_, state: &State| state.history.found == Some(PhaseName::Settled),
        PhaseName::Preparing => |_, state: &State| state.history.found == Some(PhaseName::Preparing),
        PhaseName::Arming => |_, state: &State| state.history.found == Some(PhaseName::Arming),
        PhaseName::Decided => |_, state: &State| state.history.found == Some(PhaseName::Decided),
        PhaseName::Opened => |_, state: &State| state.history.found == Some(PhaseName::Opened),
    };
    Property::sometimes(name, condition)
}

fn settled_at(state: &State, epoch: u64) -> bool {
    state.store.record.phase == Phase::Settled && state.store.record.epoch.0 == epoch
}

fn serves(state: &State, epoch: u64) -> usize {
    let served = state.machines.iter().filter_map(|machine| machine.guard.serving);
    served.filter(|(served, _)| served.0 == epoch).count()
}
