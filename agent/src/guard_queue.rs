//! Asking the guard: one thing after the other, in the order in which it was decided.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use muster_daemon::{Machine, crash_point};
use muster_guard::{
    Armed, Drill, FleetState, Guard, GuardError, LinkState, Opened, RefusalCode, ServiceState,
};
use muster_model::{BootTime, Code, Digest, Epoch, FleetName, HaltId, HostName, Refusal, RolloutId};
use muster_rollout::host::{CloseCause, Event, GuardState, Halt, Resume, Serving};
use tokio::task::JoinHandle;

use crate::backoff::doubled;
use crate::refusal;

/// How many questions may wait, closings not counted.
const WAITING_MAX: usize = 64;

const CLOSE_RETRY_FIRST: Duration = Duration::from_millis(100);
const CLOSE_RETRY_MAX: Duration = Duration::from_secs(5);

/// Something to ask of the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// What is served?
    Status,
    /// Stop whatever is served, and tell what is left: for a host whose journal was lost.
    Shut,
    /// Stop.
    Close {
        /// Why.
        cause: CloseCause,
        /// How often this failed before.
        attempt: u32,
    },
    /// Serve this.
    Open {
        /// What.
        opened: Opened,
        /// Whether a halt ends with it.
        resume: Resume,
    },
    /// Run the hook that prepares the service for being stopped.
    Quiesce {
        /// The rollout.
        k: RolloutId,
    },
    /// Undo it.
    Unquiesce,
    /// Hold a deadline.
    Arm(Armed),
    /// Hold a later one.
    Renew {
        /// The rollout.
        k: RolloutId,
        /// On this host's clock.
        deadline: BootTime,
    },
    /// Forget it.
    Disarm {
        /// The rollout.
        k: RolloutId,
    },
    /// Flip at an instant.
    Decide {
        /// The rollout.
        k: RolloutId,
        /// On this host's clock.
        at: BootTime,
        /// What is served from then on.
        to: Opened,
    },
    /// Stop, and open nothing before it is resumed.
    Halt,
    /// How long does a fence take?
    Drill,
}

impl Ask {
    /// An opening that ends a halt of which the guard had not told ends the one that was `asked` for last.
    const fn lifting(self, asked: Option<HaltId>) -> Self {
        if let Self::Open { opened, resume: Resume::Yes(None) } = self {
            return Self::Open { opened, resume: Resume::Yes(asked) };
        }
        self
    }
}

/// How often a drill measures.
const DRILL_RUNS: u32 = 3;

/// What is said of a halt that came from the coordinator.
const HALT_REASON: &str = "the fleet was halted through its coordinator";

/// What came of it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What was asked.
    pub(crate) ask: Ask,
    lane: Lane,
    /// The fleet's state afterwards.
    pub(crate) outcome: Result<FleetState, GuardError>,
    /// What a drill has measured.
    pub(crate) drill: Option<Drill>,
    /// When the answer came.
    pub(crate) at: BootTime,
}

/// Where a question is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// After those before it.
    Queue,
    /// At once.
    Beside,
}

/// What waits for the guard of one fleet. At most one question is under way; the rest waits here. Beside it there may be one
/// halt, which the guard carries out at once and which cuts short whatever is being opened; and one drill, which may take a
/// while on a slow machine and has nothing to do with what is served.
pub(crate) struct GuardQueue {
    machine: Machine,
    guard: Arc<dyn Guard>,
    fleet: FleetName,
    waiting: VecDeque<Ask>,
    running: bool,
    /// To be asked at once.
    urgent: Vec<Ask>,
    /// What is under way beside the queue.
    beside: Vec<Ask>,
    /// What is open, and since when.
    open: Option<(Opened, BootTime)>,
    /// The halt that was asked for last.
    asked_halt: Option<HaltId>,
}

/// Whether a question was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It will be answered, or the same question before it will be.
    Taken,
    /// Too much waits already.
    Full,
}

impl GuardQueue {
    /// The guard, for what changes nothing and need not wait for its turn.
    pub(crate) fn guard(&self) -> Arc<dyn Guard> {
        Arc::clone(&self.guard)
    }

    pub(crate) const fn new(machine: Machine, guard: Arc<dyn Guard>, fleet: FleetName) -> Self {
        Self {
            machine,
            guard,
            fleet,
            waiting: VecDeque::new(),
            running: false,
            urgent: Vec::new(),
            beside: Vec::new(),
            open: None,
            asked_halt: None,
        }
    }

    /// Puts a question at the end. One that repeats the last one waiting is answered together with it.
    ///
    /// A closing is never turned away: between two of them there is another question, and of these the number is
    /// bounded.
    pub(crate) fn push(&mut self, ask: Ask) -> Queued {
        if matches!(ask, Ask::Halt | Ask::Drill) {
            let is_asked = self.urgent.contains(&ask) || self.beside.contains(&ask);
            if !is_asked {
                self.urgent.push(ask);
                return Queued::Taken;
            }
            // A halt that is under way may have come too early for another one, which takes its turn.
            if ask == Ask::Drill {
                return Queued::Taken;
            }
        }
        if self.waiting.back() == Some(&ask) {
            return Queued::Taken;
        }
        let must_not_be_lost = matches!(ask, Ask::Close { .. } | Ask::Shut | Ask::Halt);
        if self.waiting.len() >= WAITING_MAX && !must_not_be_lost {
            return Queued::Full;
        }
        self.waiting.push_back(ask);
        Queued::Taken
    }

    /// Starts on the next question, if there is one that need not wait. Every start is followed by one call of
    /// [`Self::finished`] with its answer.
    pub(crate) fn start(&mut self) -> Option<JoinHandle<Answer>> {
        let (ask, lane) = if let Some(ask) = self.urgent.pop() {
            self.beside.push(ask);
            (ask, Lane::Beside)
        } else if self.running {
            return None;
        } else {
            let ask = self.waiting.pop_front()?.lifting(self.asked_halt);
            self.running = true;
            (ask, Lane::Queue)
        };
        let (machine, guard, fleet) = (self.machine.clone(), Arc::clone(&self.guard), self.fleet.clone());
        Some(tokio::spawn(carry_out(machine, guard, fleet, ask, lane)))
    }

    /// Takes note of an answer, and tells since when what was opened is open: opening what is open has no second
    /// effect.
    pub(crate) fn finished(&mut self, answer: &Answer) -> BootTime {
        match answer.lane {
            Lane::Queue => self.running = false,
            Lane::Beside => self.beside.retain(|ask| *ask != answer.ask),
        }
        if let (Ask::Halt, Ok(FleetState { halted: Some(halt), .. })) = (&answer.ask, &answer.outcome) {
            self.asked_halt = Some(halt.id);
        }
        let opened = match (&answer.ask, &answer.outcome) {
            // What it saw may be older than what the queue was answered since.
            (Ask::Drill, _) => return answer.at,
            (Ask::Open { opened, .. }, Ok(_)) => Some(*opened),
            (Ask::Open { .. }, Err(_)) | (Ask::Close { .. } | Ask::Shut | Ask::Halt, _) => None,
            (_, Ok(state)) => state.open.filter(|open| state.serves(open.epoch, open.digest)),
            (_, Err(_)) => return answer.at,
        };
        self.open = opened.map(|opened| match self.open {
            Some((before, since)) if before == opened => (opened, since),
            Some(_) | None => (opened, answer.at),
        });
        self.open.map_or(answer.at, |(_, since)| since)
    }

    /// The guard or its service ended: whatever is open from now on is so anew.
    pub(crate) const fn interrupted(&mut self) {
        self.open = None;
    }
}

/// What the guard's word means to the rollout core. `allowed` is what the host's record lets it serve.
///
/// Where something is left of a serving, it depends on the record: what it allows is dark and may be opened again;
/// anything else has to be closed, and is told as the release of an epoch that no record allows.
pub(crate) fn meaning(state: &FleetState, allowed: Option<Serving>) -> GuardState {
    if let Some(open) = state.open
        && state.serves(open.epoch, open.digest)
    {
        return GuardState::Open(open.epoch, open.digest);
    }
    if state.is_closed() {
        return GuardState::Dark;
    }
    let is_allowed = |open: &Opened| {
        allowed.is_some_and(|it| it.epoch == open.epoch && it.release == Some(open.digest))
            && (state.link == LinkState::Absent || state.link == LinkState::Release(open.digest))
    };
    match (&state.open, &state.link) {
        (Some(open), _) if is_allowed(open) => GuardState::Dark,
        (Some(open), _) => GuardState::Open(Epoch(0), open.digest),
        (None, LinkState::Release(digest)) => GuardState::Open(Epoch(0), *digest),
        (None, LinkState::Foreign { target }) => GuardState::Open(Epoch(0), Digest::of(target.as_bytes())),
        (None, LinkState::Obstructed | LinkState::Absent) => GuardState::Open(Epoch(0), Digest::of(b"")),
    }
}

/// The guard's word as the rollout core takes it.
pub(crate) fn told(state: &FleetState, allowed: Option<Serving>, host: &HostName) -> Event {
    let flipped = state.flipped.filter(|flipped| state.open == Some(flipped.to));
    Event::Guard {
        state: meaning(state, allowed),
        since: flipped.map(|flipped| flipped.opened_boot_ms),
        halt: state.halted.as_ref().map_or(Halt::Running, |halt| Halt::Halted(halt.id)),
        refusal: why_dark(state, host),
    }
}

/// Has the guard hold the deadline. One that refuses because nothing is permitted is believed only if its state says so:
/// then nothing can be served without being opened anew, and whatever was asked before has been answered.
fn arm(guard: &dyn Guard, fleet: &FleetName, armed: Armed) -> Result<FleetState, GuardError> {
    let error = match guard.arm(fleet, armed) {
        Ok(state) => return Ok(state),
        Err(error) => error,
    };
    match error.code() {
        Some(RefusalCode::NotServing | RefusalCode::Fenced | RefusalCode::Halted) => {}
        Some(_) | None => return Err(error),
    }
    let state = guard.status(fleet)?;
    if state.is_closed() || state.fenced().is_some() || state.halted.is_some() {
        Ok(state)
    } else {
        Err(error)
    }
}

/// Why a fleet that the guard knows serves nothing, where its state tells.
pub(crate) fn why_dark(state: &FleetState, host: &HostName) -> Option<Refusal> {
    if let Some(halt) = &state.halted {
        return Some(refusal::at(host, Code::Halted, format!("this host was halted: {}", halt.reason)));
    }
    if let Some(fence) = state.fenced() {
        return Some(refusal::of_fence(host, fence.cause));
    }
    let detail = match state.service? {
        ServiceState::Exited { status, .. } => format!("the service ended: {status}"),
        ServiceState::Restarting { status, .. } => format!("the service ended and is restarted: {status}"),
        ServiceState::Stopped => "the service is stopped".to_owned(),
        ServiceState::Starting | ServiceState::Running { .. } => return None,
    };
    Some(refusal::at(host, Code::StartFailed, detail))
}

async fn carry_out(
    machine: Machine,
    guard: Arc<dyn Guard>,
    fleet: FleetName,
    ask: Ask,
    lane: Lane,
) -> Answer {
    if let Ask::Close { attempt, .. } = ask
        && attempt > 0
    {
        tokio::time::sleep(close_delay(attempt)).await;
    }
    let clock = machine.clone();
    let asked = machine.run_blocking(move || {
        let (outcome, drill) = put(&*guard, &fleet, ask);
        (outcome, drill, clock.boot_time())
    });
    match asked.await {
        Ok((outcome, drill, at)) => Answer { ask, lane, outcome, drill, at },
        Err(error) => {
            let outcome = Err(GuardError::Protocol { detail: format!("the guard's client failed: {error}") });
            Answer { ask, lane, outcome, drill: None, at: machine.boot_time() }
        }
    }
}

/// Asks one thing of the guard. Blocks.
fn put(guard: &dyn Guard, fleet: &FleetName, ask: Ask) -> (Result<FleetState, GuardError>, Option<Drill>) {
    let outcome = match ask {
        Ask::Status => guard.status(fleet),
        Ask::Shut => guard.close(fleet, None),
        Ask::Close { .. } => {
            crash_point("agent.close.before-guard");
            guard.close(fleet, None)
        }
        Ask::Open { opened, resume } => {
            crash_point("agent.open.before-guard");
            open(guard, fleet, opened, resume)
        }
        Ask::Quiesce { .. } => guard.quiesce(fleet),
        Ask::Unquiesce => guard.unquiesce(fleet),
        Ask::Arm(armed) => {
            crash_point("agent.arm.before-guard");
            arm(guard, fleet, armed)
        }
        Ask::Renew { k, deadline } => guard.renew(fleet, k, deadline),
        Ask::Disarm { k } => guard.disarm(fleet, k),
        Ask::Decide { k, at, to } => guard.decide(fleet, k, at, to),
        Ask::Halt => guard.halt(fleet, HALT_REASON),
        Ask::Drill => return drill(guard, fleet),
    };
    (outcome, None)
}

fn open(
    guard: &dyn Guard,
    fleet: &FleetName,
    Opened { epoch, digest }: Opened,
    resume: Resume,
) -> Result<FleetState, GuardError> {
    match resume {
        Resume::No | Resume::Yes(None) => {}
        Resume::Yes(Some(halt)) => {
            guard.resume(fleet, halt)?;
        }
    }
    guard.open(fleet, epoch, digest)
}

fn drill(guard: &dyn Guard, fleet: &FleetName) -> (Result<FleetState, GuardError>, Option<Drill>) {
    match guard.drill(fleet, DRILL_RUNS) {
        Ok(drill) => (guard.status(fleet), Some(drill)),
        Err(error) => (Err(error), None),
    }
}

fn close_delay(attempt: u32) -> Duration {
    doubled(CLOSE_RETRY_FIRST, attempt, CLOSE_RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use muster_guard::{Armed, Drill, DriverKind, LeaseState};

    use super::*;

    const EPOCH: Epoch = Epoch(3);

    fn digest() -> Digest {
        Digest::of(b"release")
    }

    fn state(open: Option<Opened>, link: LinkState, service: Option<ServiceState>) -> FleetState {
        let driver = if service.is_some() { DriverKind::Supervise } else { DriverKind::Link };
        FleetState {
            fleet: FleetName::new("smars").unwrap(),
            driver,
            open,
            link,
            service,
            doubt: None,
            ends_with_guard: false,
            lease: LeaseState::Free,
            halted: None,
            flipped: None,
            generation: 1,
        }
    }

    fn opened() -> Option<Opened> {
        Some(Opened { epoch: EPOCH, digest: digest() })
    }

    #[test]
    fn what_the_record_does_not_allow_is_never_called_dark() {
        let allowed = Some(Serving { epoch: EPOCH, release: Some(digest()) });
        let linked = LinkState::Release(digest());
        let stopped = Some(ServiceState::Stopped);
        let running = Some(ServiceState::Running { pid: 1, started_boot_ms: BootTime(1) });
        let closed = Some(Serving { epoch: Epoch(4), release: Some(Digest::of(b"next")) });
        let open = GuardState::Open(EPOCH, digest());
        let foreign = || LinkState::Foreign { target: "/x".to_owned() };
        let must_close =
            |state: &FleetState, allowed| matches!(meaning(state, allowed), GuardState::Open(Epoch(0), _));

        assert_eq!(meaning(&state(None, LinkState::Absent, None), None), GuardState::Dark);
        assert_eq!(meaning(&state(opened(), linked.clone(), None), allowed), open);
        assert_eq!(meaning(&state(opened(), linked.clone(), running), allowed), open);
        // A service that ended under a permit that still holds may be opened again.
        assert_eq!(meaning(&state(opened(), linked.clone(), stopped), allowed), GuardState::Dark);
        assert_eq!(meaning(&state(opened(), LinkState::Absent, None), allowed), GuardState::Dark);
        // The same leftovers under another record, or a link that nobody answers for.
        assert!(must_close(&state(opened(), linked.clone(), stopped), closed));
        assert!(must_close(&state(opened(), LinkState::Absent, None), None));
        assert!(must_close(&state(None, linked, None), allowed));
        assert!(must_close(&state(None, foreign(), None), None));
        assert!(must_close(&state(opened(), foreign(), None), allowed));
        assert!(must_close(&state(None, LinkState::Obstructed, None), allowed));
        assert!(must_close(&state(None, LinkState::Absent, running), allowed));
    }

    struct Never;

    impl Guard for Never {
        fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
            Err(GuardError::UnknownFleet { fleet: fleet.clone() })
        }

        fn close(&self, fleet: &FleetName, _: Option<Duration>) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }

        fn open(&self, fleet: &FleetName, _: Epoch, _: Digest) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }

        fn arm(&self, fleet: &FleetName, _: Armed) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }

        fn renew(&self, fleet: &FleetName, _: RolloutId, _: BootTime) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }

        fn disarm(&self, fleet: &FleetName, _: RolloutId) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }

        fn decide(
            &self,
            fleet: &FleetName,
            _: RolloutId,
            _: BootTime,
            _: Opened,
        ) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }

        fn quiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }

        fn unquiesce(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }

        fn drill(&self, fleet: &FleetName, _: u32) -> Result<Drill, GuardError> {
            Err(GuardError::UnknownFleet { fleet: fleet.clone() })
        }

        fn halt(&self, fleet: &FleetName, _: &str) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }

        fn resume(&self, fleet: &FleetName, _: HaltId) -> Result<FleetState, GuardError> {
            self.status(fleet)
        }
    }

    #[test]
    fn a_full_queue_turns_all_away_but_closings_and_repetitions_count_once() {
        let mut queue = GuardQueue::new(Machine::real(), Arc::new(Never), FleetName::new("smars").unwrap());
        let open = |epoch| Ask::Open {
            opened: Opened { epoch: Epoch(epoch), digest: digest() },
            resume: Resume::No,
        };
        let close = Ask::Close { cause: CloseCause::Rollout(RolloutId(1)), attempt: 0 };
        for epoch in 0..WAITING_MAX as u64 {
            assert_eq!(queue.push(open(epoch)), Queued::Taken);
            assert_eq!(queue.push(open(epoch)), Queued::Taken);
        }
        assert_eq!(queue.waiting.len(), WAITING_MAX);
        assert_eq!(queue.push(open(1000)), Queued::Full);
        assert_eq!(queue.push(Ask::Status), Queued::Full);
        assert_eq!(queue.push(close), Queued::Taken);
        assert_eq!(queue.push(close), Queued::Taken);
        assert_eq!(queue.waiting.len(), WAITING_MAX + 1);
    }

    #[test]
    fn what_is_open_stays_open_since_it_was_opened() {
        let mut queue = GuardQueue::new(Machine::real(), Arc::new(Never), FleetName::new("smars").unwrap());
        let open = Opened { epoch: EPOCH, digest: digest() };
        let good = || Ok(state(Some(open), LinkState::Release(digest()), None));
        let mut answer = |ask, outcome, at| {
            queue.finished(&Answer { ask, lane: Lane::Queue, outcome, drill: None, at: BootTime(at) })
        };
        let none = || Ok(state(None, LinkState::Absent, None));
        assert_eq!(answer(Ask::Open { opened: open, resume: Resume::No }, good(), 5), BootTime(5));
        assert_eq!(answer(Ask::Status, good(), 7), BootTime(5));
        assert_eq!(answer(Ask::Open { opened: open, resume: Resume::No }, good(), 9), BootTime(5));
        assert_eq!(
            answer(Ask::Close { cause: CloseCause::NotAllowed, attempt: 0 }, none(), 11),
            BootTime(11)
        );
        assert_eq!(answer(Ask::Open { opened: open, resume: Resume::No }, good(), 13), BootTime(13));
    }

    #[test]
    fn closings_are_tried_again_ever_less_often() {
        let delays: Vec<u128> = [1, 2, 3, 5, 6, 40].map(|attempt| close_delay(attempt).as_millis()).to_vec();
        assert_eq!(delays, [200, 400, 800, 3200, 5000, 5000]);
    }
}
