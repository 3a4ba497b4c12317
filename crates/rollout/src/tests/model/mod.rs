//! The flip protocol under a model checker: a small fleet in every order in which things can happen, on the code that runs
//! in production.
//!
//! The state is made of the pure core itself (`Fleet` in each coordinator, `Host` on each machine) and of what surrounds
//! it: the store that both coordinators share, guards, connections, and an abstract clock. `config` bounds what may
//! happen; `turn`, `leader`, `host` and `guard` are what an action does; `properties` is what must hold in every state;
//! `runs` explores spaces without a mistake, and `mistakes` shows that each mistake that is planted is found.
//!
//! What is left out, because other tests have it: clocks that differ in rate (the wait that follows from them is checked
//! where it is computed; here the rates are equal and `W` is exactly `D + F`), files that change, disks that are set
//! back, halts, and fast mode, which does not promise P1.
//!
//! `MUSTER_MODEL=long cargo test --release -p muster-rollout model -- --test-threads 1` explores larger spaces, and prints
//! states, unique states, depth and seconds of each. `MUSTER_MODEL=short` prints the same of the ordinary ones.

mod config;
mod guard;
mod host;
mod leader;
mod mistakes;
mod papers;
mod properties;
mod runs;
mod state;
mod turn;

use std::collections::BTreeMap;

use muster_model::{FromHost, Incarnation, ToHost};
use stateright::{Model, Property};

use self::config::{Clock, Config, Fault, Mistake, Schedule};
use self::papers::Archive;
use self::state::{End, History, Latch, LeaderEnd, Left, Machine, Part, SLOTS, State, Store, Up};
use self::turn::{CutShort, Turn};
use super::papers::{fleet_name, host_name};
use crate::fleet::{FleetRecord, Phase};
use crate::host::HostRecord;

/// When the clock starts, in ticks: late enough for what a mistake takes off.
const START: u64 = 100;

/// A fleet, and how much may happen to it.
#[derive(Debug)]
struct FlipModel {
    config: Config,
    papers: Archive,
}

/// What can happen next. Hosts and coordinators are named by their position, and so are streams within a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Tick,
    /// A message arrives at a host.
    Hear(usize),
    /// The agent learns that the leader has ended the stream.
    HearTheEnd(usize),
    HearAndCopy(usize),
    HearAndDie(usize),
    HearCopy(usize),
    LoseDown(usize),
    /// A message arrives at a leader.
    Listen(usize, usize),
    ListenTwice(usize, usize),
    ListenAndDie(usize, usize),
    LoseUp(usize, usize),
    /// The leader learns that the agent has ended the stream.
    Left(usize, usize),
    Connect(usize, usize),
    Cut(usize),
    GiveUp(usize),
    Restart(usize),
    Reboot(usize),
    Fence(usize),
    Renew(usize),
    Drained(usize),
    Finish(usize, usize),
    TakeOver(usize),
    Stop(usize),
    Deadline(usize),
    Answer(usize),
    Propose(usize),
    Abort(usize),
    Remove(usize, usize),
}

impl FlipModel {
    fn new(config: Config) -> Self {
        Self { config, papers: Archive::new(config.hosts) }
    }

    /// A settled fleet that serves its first release, with nothing under way.
    fn settled(&self) -> State {
        let signed = self.papers.first_roster();
        let store = Store {
            record: FleetRecord::first(&signed.roster, signed.digest, signed.envelope, Incarnation(1)),
            sessions: BTreeMap::new(),
            documents: BTreeMap::new(),
            attestations: BTreeMap::new(),
        };
        let machine =
            |index| Part::new(Machine::new(HostRecord::first(fleet_name(), host_name(index + 1)), index));
        let state = State {
            now: START,
            store: Part::new(store),
            leaders: [None, None],
            machines: (0..self.config.hosts).map(machine).collect(),
            history: Part::new(History::default()),
            left: Left { ticks: 0, faults: 0, renewals: 0, rollouts: 0, removals: 0 },
        };
        let mut turn = Turn::new(self, state);
        turn.take_over(0);
        for index in 0..self.config.hosts {
            turn.guard_speaks(index);
            turn.connect(index, 0);
        }
        turn.rest();
        turn.propose(0).expect("the first order is in order");
        turn.rest();
        let mut state = turn.state;
        assert_eq!(state.store.record.phase, Phase::Settled);
        let Config { ticks, faults, renewals, rollouts, removals, .. } = self.config;
        state.left = Left { ticks, faults, renewals, rollouts, removals };
        *state.history.edit() = History::default();
        state.settle();
        state
    }

    fn may(&self, fault: Fault, state: &State) -> bool {
        state.left.faults > 0 && self.config.kinds.contains(&fault)
    }

    fn may_tick(&self, state: &State) -> bool {
        let is_time = match self.config.clock {
            Clock::Always => true,
            Clock::WhileDecided => matches!(state.store.record.phase, Phase::Decided(_)),
        };
        is_time && state.left.ticks > 0 && state.may_tick()
    }

    /// What goes on by itself on a machine and its streams.
    fn goes_on(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let machine = &state.machines[index];
        match machine.current() {
            Some(stream) if !stream.down.is_empty() => actions.push(Action::Hear(index)),
            Some(stream) if stream.leader_end == LeaderEnd::Gone => actions.push(Action::HearTheEnd(index)),
            Some(_) => {}
            None => {
                let open = (0..SLOTS).filter(|slot| {
                    let leader = state.leaders[*slot].as_ref();
                    leader.is_some_and(|it| Some(it.fleet.record().leadership) != machine.refused_by)
                });
                actions.extend(open.map(|slot| Action::Connect(index, slot)));
            }
        }
        for (at, stream) in machine.streams.iter().enumerate() {
            if !stream.up.is_empty() {
                actions.push(Action::Listen(index, at));
            } else if stream.host_end == End::Gone {
                actions.push(Action::Left(index, at));
            }
        }
        let now = muster_model::BootTime(state.now * papers::TICK_MS);
        if machine.guard.lease.is_some_and(|it| it.latch == Latch::Open && it.deadline <= now) {
            actions.push(Action::Fence(index));
        }
        if state.left.renewals > 0 && machine.agent.next_deadline().is_some_and(|due| due <= now) {
            actions.push(Action::Renew(index));
        }
        if machine.guard.draining.is_some() {
            actions.push(Action::Drained(index));
        }
        if machine.copy.is_some() && machine.current().is_some() {
            actions.push(Action::HearCopy(index));
        }
        actions.extend((0..machine.work.len()).map(|at| Action::Finish(index, at)));
    }

    /// What may go wrong on a machine and its streams.
    fn goes_wrong(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let machine = &state.machines[index];
        let mut add = |fault, action| {
            if self.may(fault, state) {
                actions.push(action);
            }
        };
        if let Some(stream) = machine.current() {
            add(Fault::Cut, Action::Cut(index));
            if let Some((_, message)) = stream.down.front() {
                add(Fault::DieAfterWriting, Action::HearAndDie(index));
                add(Fault::Lose, Action::LoseDown(index));
                if machine.copy.is_none() && self.is_worth_a_copy(message) {
                    add(Fault::Copy, Action::HearAndCopy(index));
                }
            }
            if stream.leader_end != LeaderEnd::Gone {
                add(Fault::GiveUp, Action::GiveUp(index));
            }
        }
        for (at, _) in machine.streams.iter().enumerate().filter(|(_, stream)| !stream.up.is_empty()) {
            add(Fault::Twice, Action::ListenTwice(index, at));
            add(Fault::StopAfterWriting, Action::ListenAndDie(index, at));
            add(Fault::Lose, Action::LoseUp(index, at));
        }
        add(Fault::Restart, Action::Restart(index));
        add(Fault::Reboot, Action::Reboot(index));
    }

    /// A copy of what starts a rollout is refused by its number. The rest is what matters.
    fn is_worth_a_copy(&self, message: &ToHost) -> bool {
        match self.config.mistake {
            Some(Mistake::StaleAdmitAccepted) => matches!(message, ToHost::Admit { .. }),
            Some(Mistake::StaleDisarmAccepted) => matches!(message, ToHost::Disarm { .. }),
            Some(_) | None => matches!(
                message,
                ToHost::Arm { .. }
                    | ToHost::Grant { .. }
                    | ToHost::Close { .. }
                    | ToHost::Open { .. }
                    | ToHost::Disarm { .. }
                    | ToHost::Admit { .. }
            ),
        }
    }

    fn led(&self, state: &State, slot: usize, actions: &mut Vec<Action>) {
        let is_led = (0..SLOTS).any(|slot| state.leads(slot));
        let Some(leader) = &state.leaders[slot] else {
            if !is_led || self.may(Fault::TakeOver, state) {
                actions.push(Action::TakeOver(slot));
            }
            return;
        };
        let now = muster_model::BootTime(state.now * papers::TICK_MS);
        if leader.fleet.next_deadline().is_some_and(|deadline| deadline <= now) {
            actions.push(Action::Deadline(slot));
        }
        if leader.read.is_some() {
            actions.push(Action::Answer(slot));
        }
        if !state.leads(slot) {
            return;
        }
        if self.may(Fault::Stop, state) {
            actions.push(Action::Stop(slot));
        }
        if self.may(Fault::Abort, state) && state.store.record.phase.rollout().is_some() {
            actions.push(Action::Abort(slot));
        }
        if state.left.removals > 0 {
            actions.extend((0..self.config.victims).map(|index| Action::Remove(slot, index)));
        }
        if state.left.rollouts > 0 && state.store.record.phase.rollout().is_none() {
            actions.push(Action::Propose(slot));
        }
    }
}

impl Model for FlipModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.settled()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let quiet = match self.config.schedule {
            Schedule::QuietFirst => quiet(state),
            Schedule::Every => None,
        };
        match quiet {
            Some(action) => actions.push(action),
            None => {
                for index in 0..state.machines.len() {
                    self.goes_on(state, index, actions);
                }
                if self.may_tick(state) {
                    actions.push(Action::Tick);
                }
            }
        }
        for index in 0..self.config.victims {
            self.goes_wrong(state, index, actions);
        }
        for slot in 0..SLOTS {
            self.led(state, slot, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut turn = Turn::new(self, last.clone());
        turn.take(action)?;
        turn.state.settle();
        Some(turn.state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self.config.sights)
    }
}

/// The first delivery that changes no permit, deadline or promise.
fn quiet(state: &State) -> Option<Action> {
    for (index, machine) in state.machines.iter().enumerate() {
        let current = machine.current();
        if current.and_then(|it| it.down.front()).is_some_and(|(_, message)| is_quiet_down(message)) {
            return Some(Action::Hear(index));
        }
        let at = machine.streams.iter().position(|it| it.up.front().is_some_and(is_quiet_up));
        if let Some(at) = at.filter(|at| machine.streams[*at].host_end == End::Open) {
            return Some(Action::Listen(index, at));
        }
    }
    None
}

const fn is_quiet_down(message: &ToHost) -> bool {
    matches!(
        message,
        ToHost::Joined { .. }
            | ToHost::Propose { .. }
            | ToHost::Attest { .. }
            | ToHost::Prepare { .. }
            | ToHost::Probe { .. }
    )
}

fn is_quiet_up(up: &Up) -> bool {
    match up {
        Up::Attested(..) => true,
        Up::Join(_) => false,
        Up::Message(message) => matches!(
            &**message,
            FromHost::Confirmed
                | FromHost::Fresh { .. }
                | FromHost::CannotAttest { .. }
                | FromHost::Prepared { .. }
                | FromHost::Probed { .. }
                | FromHost::Serving { .. }
                | FromHost::Measured { .. }
        ),
    }
}

impl Turn<'_> {
    /// Does what the action says. Nothing if it is not in order.
    fn take(&mut self, action: Action) -> Option<()> {
        self.pay_for(action);
        match action {
            Action::Tick => self.tick(),
            Action::Hear(index) => self.hear_next(index)?,
            Action::HearTheEnd(index) => {
                self.state.machines[index].edit().hang_up();
                self.host_event(index, crate::host::Event::Disconnected);
            }
            Action::HearAndCopy(index) => {
                let copy = self.state.machines[index].current()?.down.front().cloned();
                self.state.machines[index].edit().copy = copy;
                self.hear_next(index)?;
            }
            Action::HearAndDie(index) => {
                self.cut_short = CutShort::Agent;
                self.hear_next(index)?;
                // Without a write it is an ordinary restart.
                (self.cut_short == CutShort::Nobody).then_some(())?;
            }
            Action::HearCopy(index) => self.hear_copy(index)?,
            Action::LoseDown(index) => {
                self.state.machines[index].edit().current_mut()?.down.pop_front()?;
            }
            Action::Listen(index, at) => self.listen_next(index, at)?,
            Action::ListenTwice(index, at) => {
                let up = self.state.machines[index].streams[at].up.front()?.clone();
                let stream = self.state.machines[index].edit().streams.get_mut(at)?;
                stream.up.push_front(up);
                self.listen_next(index, at)?;
            }
            Action::ListenAndDie(index, at) => {
                let slot = self.state.machines[index].streams[at].slot;
                self.cut_short = CutShort::Leader;
                self.listen_next(index, at)?;
                self.state.leaders[slot].is_none().then_some(())?;
            }
            Action::LoseUp(index, at) => {
                self.state.machines[index].edit().streams.get_mut(at)?.up.pop_front()?;
            }
            Action::Left(index, at) => self.left(index, at),
            Action::Connect(index, slot) => self.connect(index, slot),
            Action::Cut(index) => {
                self.state.machines[index].edit().hang_up();
                self.host_event(index, crate::host::Event::Disconnected);
            }
            Action::GiveUp(index) => self.give_up(index)?,
            Action::Restart(index) => self.restart(index),
            Action::Reboot(index) => self.reboot(index),
            Action::Fence(index) => self.fence(index)?,
            Action::Renew(index) => self.host_event(index, crate::host::Event::DeadlineReached),
            Action::Drained(index) => self.drained(index)?,
            Action::Finish(index, at) => self.finish(index, at),
            Action::TakeOver(slot) => self.take_over(slot),
            Action::Stop(slot) => self.stop_leader(slot),
            Action::Deadline(slot) => self.leader_deadline(slot),
            Action::Answer(slot) => self.answer(slot)?,
            Action::Propose(slot) => self.propose(slot)?,
            Action::Abort(slot) => self.abort(slot)?,
            Action::Remove(slot, index) => self.remove(slot, index)?,
        }
        Some(())
    }

    /// Counts what is bounded.
    fn pay_for(&mut self, action: Action) {
        let is_led = (0..SLOTS).any(|slot| self.state.leads(slot));
        let left = &mut self.state.left;
        match action {
            Action::Tick => left.ticks -= 1,
            Action::Renew(_) => left.renewals -= 1,
            Action::Propose(_) => left.rollouts -= 1,
            Action::Remove(..) => left.removals -= 1,
            Action::TakeOver(_) if !is_led => {}
            Action::TakeOver(_)
            | Action::HearAndCopy(_)
            | Action::HearAndDie(_)
            | Action::LoseDown(_)
            | Action::ListenTwice(..)
            | Action::ListenAndDie(..)
            | Action::LoseUp(..)
            | Action::Cut(_)
            | Action::GiveUp(_)
            | Action::Restart(_)
            | Action::Reboot(_)
            | Action::Stop(_)
            | Action::Abort(_) => left.faults = left.faults.saturating_sub(1),
            Action::Hear(_)
            | Action::HearTheEnd(_)
            | Action::HearCopy(_)
            | Action::Listen(..)
            | Action::Left(..)
            | Action::Connect(..)
            | Action::Fence(_)
            | Action::Drained(_)
            | Action::Finish(..)
            | Action::Deadline(_)
            | Action::Answer(_) => {}
        }
    }

    fn hear_next(&mut self, index: usize) -> Option<()> {
        let (leadership, message) = self.state.machines[index].edit().current_mut()?.down.pop_front()?;
        self.hear(index, leadership, message);
        Some(())
    }

    fn listen_next(&mut self, index: usize, at: usize) -> Option<()> {
        let stream = self.state.machines[index].edit().streams.get_mut(at)?;
        let (slot, session) = (stream.slot, stream.session);
        let up = stream.up.pop_front()?;
        self.listen(index, slot, session, up);
        self.state.machines[index].edit().forget_streams();
        Some(())
    }

    fn left(&mut self, index: usize, at: usize) {
        let machine = self.state.machines[index].edit();
        let stream = machine.streams.remove(at);
        let host = self.host_name(index);
        self.coordinate(stream.slot, crate::fleet::Event::Left { host, session: stream.session });
    }

    fn give_up(&mut self, index: usize) -> Option<()> {
        let stream = self.state.machines[index].edit().current_mut()?;
        let (slot, session) = (stream.slot, stream.session);
        stream.leave();
        let host = self.host_name(index);
        self.coordinate(slot, crate::fleet::Event::Left { host, session });
        Some(())
    }

    /// Delivers whatever is under way, until nothing is.
    fn rest(&mut self) {
        while let Some(action) = (0..self.state.machines.len()).find_map(|index| {
            let machine = &self.state.machines[index];
            if machine.guard.draining.is_some() {
                return Some(Action::Drained(index));
            }
            if !machine.work.is_empty() {
                return Some(Action::Finish(index, 0));
            }
            let stream = machine.current()?;
            if stream.down.is_empty() {
                (!stream.up.is_empty()).then_some(Action::Listen(index, 0))
            } else {
                Some(Action::Hear(index))
            }
        }) {
            self.take(action).expect("what is under way can be delivered");
        }
    }
}
