//! Deadlines, fences, flips and halts of link fleets, on the real clock.

use std::sync::mpsc::{Receiver, channel};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;
use crate::lease::LeaseRefusal;
use crate::protocol::{Fence, FenceCause, FlipTime, KillScope, LeaseState};
use crate::timer::boot_time;

const K: RolloutId = RolloutId(7);

struct Held {
    bench: Bench,
    guard: Option<InProcess>,
    events: Receiver<Event>,
}

impl Held {
    /// Serves the first release in `EPOCH`.
    fn new() -> Self {
        let bench = Bench::new();
        let (guard, events) = listening(&bench);
        guard.open(&bench.fleet, EPOCH, one()).unwrap();
        Self { bench, guard: Some(guard), events }
    }

    fn guard(&self) -> &InProcess {
        self.guard.as_ref().unwrap()
    }

    fn fleet(&self) -> &FleetName {
        &self.bench.fleet
    }

    fn arm(&self, ahead_ms: u64) -> BootTime {
        let deadline = ahead(ahead_ms);
        self.guard().arm(self.fleet(), armed(deadline)).unwrap();
        deadline
    }

    fn state(&self) -> FleetState {
        self.guard().status(self.fleet()).unwrap()
    }

    fn is_linked(&self) -> bool {
        self.bench.path("current").symlink_metadata().is_ok()
    }

    /// As after a SIGKILL of the guard: nothing is fenced by that.
    fn restart(&mut self) {
        self.guard = None;
        let (guard, events) = listening(&self.bench);
        (self.guard, self.events) = (Some(guard), events);
    }

    fn await_fence(&self) -> Fence {
        loop {
            if let Event::Fenced { fence, .. } = self.events.recv_timeout(PATIENCE).unwrap() {
                return fence;
            }
        }
    }
}

#[test]
fn what_has_changed_is_fenced_and_opened_again_once_it_is_right() {
    let held = Held::new();
    let (guard, fleet) = (held.guard(), held.fleet());
    guard.fence(fleet, Epoch(EPOCH.0 - 1), "bin/web differs").unwrap();
    assert!(held.state().serves(EPOCH, one()), "that is not what is served");
    let state = guard.fence(fleet, EPOCH, "bin/web differs").unwrap();
    assert_eq!(state.fenced().map(|fence| (fence.cause, fence.k)), Some((FenceCause::Drifted, None)));
    assert!(state.is_closed() && !held.is_linked());
    assert_eq!(held.await_fence().cause, FenceCause::Drifted);
    guard.fence(fleet, EPOCH, "bin/web differs").unwrap();
    assert!(guard.open(fleet, EPOCH, one()).unwrap().serves(EPOCH, one()));
    assert!(held.is_linked() && held.state().fenced().is_none());
}

#[test]
fn a_rollout_that_is_under_way_is_left_alone_by_drift() {
    let held = Held::new();
    held.arm(60_000);
    let refused = held.guard().fence(held.fleet(), EPOCH, "bin/web differs").unwrap_err();
    assert!(matches!(refused, GuardError::Lease { source: LeaseRefusal::Armed(K), .. }), "{refused:?}");
    assert!(held.state().serves(EPOCH, one()) && held.state().fenced().is_none());
}

fn listening(bench: &Bench) -> (InProcess, Receiver<Event>) {
    let (sender, events) = channel();
    let tell: Events = Arc::new(move |event| drop(sender.send(event)));
    (InProcess::with_events(&bench.settings, tell).unwrap(), events)
}

fn ahead(ms: u64) -> BootTime {
    boot_time().after(Duration::from_millis(ms))
}

fn armed(deadline: BootTime) -> Armed {
    Armed { k: K, epoch: EPOCH, deadline_boot_ms: deadline, flip: None }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, GuardError>) -> LeaseRefusal {
    let GuardError::Lease { source, .. } = result.unwrap_err() else { panic!("another error") };
    source
}

#[test]
fn a_deadline_that_passes_takes_the_link_away_and_latches_until_an_opening() {
    let held = Held::new();
    let deadline = held.arm(400);
    assert!(held.is_linked() && held.state().serves(EPOCH, one()));
    let fence = held.await_fence();
    assert!(!held.is_linked());
    assert_eq!((fence.k, fence.cause, fence.due_boot_ms), (Some(K), FenceCause::DeadlinePassed, deadline));
    assert!(deadline <= fence.begun_boot_ms && fence.begun_boot_ms <= fence.dark_boot_ms.unwrap());
    assert!(held.state().is_closed(), "{:?}", held.state());

    assert_eq!(refusal(held.guard().renew(held.fleet(), K, ahead(60_000))), LeaseRefusal::Fenced);
    assert!(held.guard().disarm(held.fleet(), K).unwrap().fenced().is_some());
    assert!(held.guard().close(held.fleet(), None).unwrap().fenced().is_some());
    assert!(!held.is_linked());
    let open = held.guard().open(held.fleet(), Epoch(4), two()).unwrap();
    assert!(open.serves(Epoch(4), two()) && open.lease == LeaseState::Free);
}

#[test]
fn a_renewal_extends_and_one_for_another_rollout_does_not() {
    let held = Held::new();
    let deadline = held.arm(700);
    let error = held.guard().renew(held.fleet(), RolloutId(8), ahead(60_000));
    assert_eq!(refusal(error), LeaseRefusal::Armed(K));
    let later = ahead(1_000);
    let state = held.guard().renew(held.fleet(), K, later).unwrap();
    assert_eq!(state.lease, LeaseState::Armed(armed(later)));
    held.guard().renew(held.fleet(), K, deadline).unwrap();
    assert_eq!(held.state().lease, LeaseState::Armed(armed(later)), "never moved forward");
    let fence = held.await_fence();
    assert!(fence.due_boot_ms == later && fence.begun_boot_ms >= later);
}

#[test]
fn disarming_and_closing_lift_the_deadline() {
    let held = Held::new();
    held.arm(60_000);
    assert_eq!(refusal(held.guard().disarm(held.fleet(), RolloutId(8))), LeaseRefusal::Armed(K));
    assert_eq!(held.guard().disarm(held.fleet(), K).unwrap().lease, LeaseState::Free);
    assert!(held.state().serves(EPOCH, one()));
    held.arm(60_000);
    let closed = held.guard().close(held.fleet(), None).unwrap();
    assert!(closed.is_closed() && closed.lease == LeaseState::Free);
    let error = held.guard().arm(held.fleet(), armed(ahead(60_000)));
    assert_eq!(refusal(error), LeaseRefusal::NotServing);
}

#[test]
fn a_guard_that_restarts_takes_up_a_deadline_that_runs() {
    let mut held = Held::new();
    let deadline = held.arm(60_000);
    held.restart();
    assert_eq!(held.state().lease, LeaseState::Armed(armed(deadline)));
    assert!(held.is_linked());
    held.guard().disarm(held.fleet(), K).unwrap();

    held.arm(60_000);
    let soon = ahead(700);
    held.guard().disarm(held.fleet(), K).unwrap();
    held.guard().arm(held.fleet(), armed(soon)).unwrap();
    held.restart();
    assert_eq!(held.await_fence().due_boot_ms, soon);
    assert!(!held.is_linked());
}

#[test]
fn a_guard_that_restarts_after_the_deadline_is_dark_before_anyone_can_ask() {
    let mut held = Held::new();
    let deadline = held.arm(400);
    held.guard = None;
    until("the deadline has passed", || boot_time() > deadline);
    let linked = held.is_linked();
    held.restart();
    let state = held.state();
    assert!(state.is_closed(), "{state:?}");
    let fence = *state.fenced().unwrap();
    assert_eq!((fence.k, fence.due_boot_ms), (Some(K), deadline));
    assert!(linked || fence.dark_boot_ms.is_some());
    held.restart();
    assert_eq!(held.state().fenced().map(|fence| fence.k), Some(Some(K)), "the latch is durable");
    assert!(held.guard().open(held.fleet(), EPOCH, one()).unwrap().serves(EPOCH, one()));
}

#[test]
fn a_deadline_of_another_boot_has_latched() {
    let bench = Bench::new();
    let (first, second) = ("00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002");
    let guard = bench.guard_in_boot(first);
    guard.open(&bench.fleet, EPOCH, one()).unwrap();
    guard.arm(&bench.fleet, armed(ahead(60_000))).unwrap();
    drop(guard);
    let state = bench.guard_in_boot(second).status(&bench.fleet).unwrap();
    assert!(state.is_closed());
    assert_eq!(state.fenced().map(|fence| fence.cause), Some(FenceCause::Rebooted));
}

#[test]
fn a_lease_that_cannot_be_read_has_latched() {
    let mut held = Held::new();
    fs::write(held.bench.path("lease.json"), "{").unwrap();
    held.restart();
    assert_eq!(held.state().fenced().map(|fence| fence.cause), Some(FenceCause::RecordLost));
    assert!(held.state().is_closed());
}

#[test]
fn a_disk_that_hangs_holds_no_fence_up() {
    let held = Held::new();
    held.arm(1_000);
    let next = held.bench.path("lease.next");
    fs::remove_file(&next).unwrap_or_default();
    // Opening a pipe to which nobody listens hangs as a write to a broken disk does.
    mknodat(CWD, &next, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let (guard, fleet) = (held.guard(), held.fleet());
    thread::scope(|scope| {
        let renewing = scope.spawn(|| guard.renew(fleet, K, ahead(1_200)));
        let fence = held.await_fence();
        assert!(!held.is_linked() && !renewing.is_finished());
        assert!(fence.dark_boot_ms.unwrap().since(fence.due_boot_ms) < PATIENCE);
        // The disk comes back: what hung goes on.
        fs::rename(&next, held.bench.path("pipe")).unwrap();
        let drain = fs::OpenOptions::new().read(true).write(true).open(held.bench.path("pipe")).unwrap();
        until("the renewal has ended", || renewing.is_finished());
        drop(drain);
    });
}

#[test]
fn a_fence_that_is_obstructed_raises_an_alarm_and_goes_on_trying() {
    let held = Held::new();
    held.arm(500);
    fs::remove_file(held.bench.path("current")).unwrap();
    fs::create_dir(held.bench.path("current")).unwrap();
    let Event::FenceFailing { attempts: 1, detail, .. } = held.events.recv_timeout(PATIENCE).unwrap() else {
        panic!("no alarm")
    };
    assert!(detail.contains("is not a symbolic link"), "{detail}");
    let error = held.guard().open(held.fleet(), Epoch(4), two());
    assert_eq!(refusal(error), LeaseRefusal::Fenced);
    fs::remove_dir(held.bench.path("current")).unwrap();
    assert_eq!(held.await_fence().cause, FenceCause::DeadlinePassed);
    assert!(held.guard().open(held.fleet(), Epoch(4), two()).unwrap().serves(Epoch(4), two()));
}

fn fast(at: BootTime, epsilon_ms: u64) -> Armed {
    Armed { flip: Some(FlipTime { at_boot_ms: at, epsilon_ms }), ..armed(ahead(60_000)) }
}

#[test]
fn what_is_decided_flips_at_its_time_without_a_gap() {
    let held = Held::new();
    let at = ahead(500);
    held.guard().arm(held.fleet(), fast(at, 10)).unwrap();
    let to = Opened { epoch: Epoch(4), digest: two() };
    let state = held.guard().decide(held.fleet(), K, at, to).unwrap();
    assert!(state.serves(EPOCH, one()), "not before its time");
    while boot_time() < at {
        assert!(held.is_linked());
    }
    let Event::Flipped { flip, .. } = held.events.recv_timeout(PATIENCE).unwrap() else { panic!("no flip") };
    assert_eq!((flip.from.unwrap().digest, flip.to, flip.at_boot_ms), (one(), to, at));
    assert!(at <= flip.opened_boot_ms && flip.closed_boot_ms == flip.opened_boot_ms);
    let state = held.state();
    assert!(state.serves(Epoch(4), two()) && state.lease == LeaseState::Free);
    assert_eq!(state.flipped, Some(flip));
}

#[test]
fn what_is_not_decided_in_time_is_fenced_and_cannot_be_decided_any_more() {
    let held = Held::new();
    let at = ahead(400);
    held.guard().arm(held.fleet(), fast(at, 100)).unwrap();
    let to = Opened { epoch: Epoch(4), digest: two() };
    let fence = held.await_fence();
    assert_eq!(fence.due_boot_ms, BootTime(at.0 - 100));
    assert_eq!(refusal(held.guard().decide(held.fleet(), K, at, to)), LeaseRefusal::Fenced);
    until("T has passed", || boot_time() > at);
    assert!(held.state().is_closed());
}

#[test]
fn a_flip_survives_a_restart_and_one_that_fails_ends_dark() {
    let mut held = Held::new();
    let to = Opened { epoch: Epoch(4), digest: two() };
    let at = ahead(800);
    held.guard().arm(held.fleet(), fast(at, 10)).unwrap();
    held.guard().decide(held.fleet(), K, at, to).unwrap();
    held.restart();
    assert!(
        matches!(held.events.recv_timeout(PATIENCE).unwrap(), Event::Flipped { flip, .. } if flip.to == to)
    );
    assert!(held.state().serves(Epoch(4), two()));

    let at = ahead(600);
    let again = Armed { k: RolloutId(8), epoch: Epoch(4), ..fast(at, 10) };
    held.guard().arm(held.fleet(), again).unwrap();
    let back = Opened { epoch: Epoch(5), digest: one() };
    held.guard().decide(held.fleet(), RolloutId(8), at, back).unwrap();
    fs::remove_file(held.bench.path(".current.next")).unwrap();
    assert!(matches!(held.events.recv_timeout(PATIENCE).unwrap(), Event::FlipFailed { .. }));
    assert_eq!(held.await_fence().cause, FenceCause::FlipFailed);
    assert!(held.state().is_closed());
}

#[test]
fn a_decision_names_a_release_that_is_here() {
    let held = Held::new();
    let at = ahead(60_000);
    held.guard().arm(held.fleet(), fast(at, 10)).unwrap();
    let to = Opened { epoch: Epoch(4), digest: Digest::of(b"three") };
    let error = held.guard().decide(held.fleet(), K, at, to).unwrap_err();
    assert!(matches!(error, GuardError::ReleaseMissing { .. }), "{error}");
    assert!(matches!(held.state().lease, LeaseState::Armed(_)), "the deadline stands");
    let wrong = held.guard().decide(held.fleet(), K, ahead(70_000), Opened { digest: two(), ..to });
    assert_eq!(refusal(wrong), LeaseRefusal::WrongTime);
    assert!(!held.bench.path(".current.next").exists());
}

#[test]
fn a_halt_survives_a_restart_and_a_reboot_and_is_lifted_by_resume_alone() {
    let mut held = Held::new();
    let state = held.guard().halt(held.fleet(), "wrong prices").unwrap();
    assert!(state.is_closed() && !held.is_linked());
    let first = state.halted.unwrap();
    assert_eq!(first.reason, "wrong prices");
    let state = held.guard().halt(held.fleet(), "again").unwrap();
    let second = state.halted.clone().unwrap();
    assert_eq!(second.reason, "wrong prices", "the first reason stays");
    held.restart();
    assert_eq!(held.state().halted, state.halted);
    assert_eq!(refusal(held.guard().open(held.fleet(), EPOCH, one())), LeaseRefusal::Halted);
    held.guard = None;
    let rebooted = held.bench.guard_in_boot("00000000-0000-4000-8000-000000000002");
    assert_eq!(rebooted.status(held.fleet()).unwrap().halted, state.halted);
    drop(rebooted);

    held.restart();
    assert_eq!(refusal(held.guard().resume(held.fleet(), first.id)), LeaseRefusal::Halted);
    held.restart();
    assert_eq!(held.state().halted.as_ref(), Some(&second), "the second halt is not lifted with the first");
    let resumed = held.guard().resume(held.fleet(), second.id).unwrap();
    assert!(resumed.halted.is_none() && resumed.is_closed(), "resuming serves nothing");
    held.restart();
    assert!(held.guard().open(held.fleet(), EPOCH, one()).unwrap().serves(EPOCH, one()));
}

#[test]
fn a_guard_that_goes_down_fences_what_is_armed_and_leaves_the_rest() {
    let held = Held::new();
    held.arm(60_000);
    held.guard().0.shut_down().unwrap();
    assert_eq!(held.await_fence().cause, FenceCause::GuardStopped);
    assert!(!held.is_linked());
}

#[test]
fn a_drill_measures_beside_what_is_served() {
    let held = Held::new();
    let drill = held.guard().drill(held.fleet(), 3).unwrap();
    assert_eq!((drill.driver, drill.kill, drill.runs), (DriverKind::Link, None::<KillScope>, 3));
    assert!(drill.fence_ms >= 1 && drill.on_fence_ms_max == 0);
    assert!(held.state().serves(EPOCH, one()));
    for runs in [0, 11] {
        assert!(matches!(held.guard().drill(held.fleet(), runs), Err(GuardError::OutOfBounds { .. })));
    }
}
