//! The lease over random histories, and each rule by itself.

use muster_model::{Digest, Epoch};
use proptest::prelude::*;

use super::*;
use crate::protocol::FlipTime;

const EPOCH: Epoch = Epoch(3);

fn serving() -> Option<Opened> {
    Some(Opened { epoch: EPOCH, digest: Digest::of(b"old") })
}

fn next() -> Opened {
    Opened { epoch: EPOCH.next(), digest: Digest::of(b"new") }
}

fn ask(k: u64, deadline: u64) -> Armed {
    Armed { k: RolloutId(k), epoch: EPOCH, deadline_boot_ms: BootTime(deadline), flip: None }
}

fn fast(k: u64, deadline: u64, at: u64, epsilon_ms: u64) -> Armed {
    Armed { flip: Some(FlipTime { at_boot_ms: BootTime(at), epsilon_ms }), ..ask(k, deadline) }
}

fn armed(k: u64, deadline: u64) -> Lease {
    let mut lease = Lease::new();
    assert_eq!(lease.arm(BootTime(0), serving(), ask(k, deadline)), Ok(Change::Made));
    lease
}

fn halt() -> Halt {
    Halt { id: HaltId(0), at_unix_ms: UnixTime(0), reason: "test".to_owned() }
}

fn boot(n: u8) -> BootId {
    BootId::new(&format!("00000000-0000-4000-8000-0000000000{n:02}")).unwrap()
}

fn fence(lease: &Lease) -> Fence {
    let LeaseState::Fenced(fence) = lease.hold() else { panic!("not fenced: {lease:?}") };
    *fence
}

fn deadline(lease: &Lease) -> Option<BootTime> {
    match lease.hold() {
        LeaseState::Armed(armed) => Some(armed.deadline_boot_ms),
        LeaseState::Free | LeaseState::Decided(_) | LeaseState::Fenced(_) => None,
    }
}

#[test]
fn a_deadline_latches_at_its_millisecond_and_not_before() {
    let mut lease = armed(1, 100);
    assert_eq!((lease.poll(BootTime(99)), lease.due()), (None, Some(BootTime(100))));
    let Some(Duty::Fence(fence)) = lease.poll(BootTime(100)) else { panic!("{lease:?}") };
    assert_eq!((fence.k, fence.cause), (Some(RolloutId(1)), FenceCause::DeadlinePassed));
    assert_eq!((fence.due_boot_ms, fence.begun_boot_ms), (BootTime(100), BootTime(100)));
    assert_eq!(lease.fence_failed(BootTime(101)), 1);
    assert_eq!(lease.poll(BootTime(102)), None, "not before its time");
    assert!(matches!(lease.poll(BootTime(400)), Some(Duty::Fence(_))));
    lease.fence_dark(BootTime(401));
    assert!(matches!(lease.poll(BootTime(401)), Some(Duty::EndFence(_))));
    lease.fence_ended(BootTime(402));
    assert_eq!((lease.poll(BootTime(999)), lease.due()), (None, None));
}

#[test]
fn a_request_that_comes_after_the_deadline_finds_it_latched_though_no_timer_fired() {
    let late = BootTime(100);
    for request in [
        |lease: &mut Lease, at| lease.renew(at, RolloutId(1), BootTime(500)).err(),
        |lease: &mut Lease, at| lease.decide(at, RolloutId(1), BootTime(500), next()).err(),
        |lease: &mut Lease, at| lease.arm(at, serving(), ask(2, 500)).err(),
    ] {
        let mut lease = armed(1, 100);
        assert_eq!(request(&mut lease, late), Some(LeaseRefusal::Fenced));
        assert_eq!(fence(&lease).cause, FenceCause::DeadlinePassed);
    }
    let mut lease = armed(1, 100);
    assert_eq!(lease.disarm(late, RolloutId(1)), Ok(Change::None));
    lease.begin_close(late);
    lease.end_close(late);
    assert_eq!(fence(&lease).dark_boot_ms, None, "neither lifts a fence");
}

#[test]
fn arming_again_never_extends_and_an_older_rollout_never_arms() {
    let mut lease = armed(2, 100);
    assert_eq!(lease.arm(BootTime(50), serving(), ask(2, 900)), Ok(Change::None));
    assert_eq!(deadline(&lease), Some(BootTime(100)));
    assert_eq!(lease.arm(BootTime(50), serving(), ask(1, 900)), Err(LeaseRefusal::Armed(RolloutId(2))));
    assert_eq!(lease.arm(BootTime(50), serving(), ask(3, 900)), Ok(Change::Made));
    assert_eq!((lease.rollout(), deadline(&lease)), (Some(RolloutId(3)), Some(BootTime(900))));
}

#[test]
fn only_what_is_served_is_armed_and_only_for_a_time_that_can_be_meant() {
    let mut lease = Lease::new();
    let now = BootTime(100);
    assert_eq!(lease.arm(now, None, ask(1, 200)), Err(LeaseRefusal::NotServing));
    assert_eq!(lease.arm(now, Some(next()), ask(1, 200)), Err(LeaseRefusal::NotServing));
    assert_eq!(lease.arm(now, serving(), ask(1, 100)), Err(LeaseRefusal::TooLate));
    let far = now.after(AHEAD_MAX).0 + 1;
    assert_eq!(lease.arm(now, serving(), ask(1, far)), Err(LeaseRefusal::WrongTime));
    assert_eq!(lease.arm(now, serving(), fast(1, 200, far, 5)), Err(LeaseRefusal::WrongTime));
    assert_eq!(lease.arm(now, serving(), fast(1, 300, 200, 100)), Err(LeaseRefusal::TooLate));
    assert_eq!(*lease.hold(), LeaseState::Free);
}

#[test]
fn a_closing_lifts_the_deadline_only_at_its_end() {
    let mut lease = armed(1, 100);
    assert_eq!(lease.begin_close(BootTime(10)), Some(BootTime(100)));
    assert_eq!(lease.due(), Some(BootTime(100)), "the deadline runs on");
    assert!(lease.clone().poll(BootTime(100)).is_some(), "and passes during the drain");
    lease.end_close(BootTime(99));
    assert_eq!(*lease.hold(), LeaseState::Free);
}

#[test]
fn a_decision_replaces_the_deadline_until_epsilon_before_the_flip() {
    let mut lease = Lease::new();
    lease.arm(BootTime(0), serving(), fast(1, 900, 500, 50)).unwrap();
    assert_eq!(deadline(&lease), Some(BootTime(450)), "capped");
    lease.renew(BootTime(1), RolloutId(1), BootTime(800)).unwrap();
    assert_eq!(deadline(&lease), Some(BootTime(450)), "and stays capped");
    let (k, at) = (RolloutId(1), BootTime(500));
    assert_eq!(lease.decide(BootTime(2), k, BootTime(501), next()), Err(LeaseRefusal::WrongTime));
    let mut late = lease.clone();
    assert_eq!(late.decide(BootTime(450), k, at, next()), Err(LeaseRefusal::Fenced));

    assert_eq!(lease.decide(BootTime(449), k, at, next()), Ok(Change::Made));
    assert_eq!(lease.decide(BootTime(470), k, at, next()), Ok(Change::None));
    assert_eq!(lease.renew(BootTime(470), k, BootTime(600)), Err(LeaseRefusal::Decided(k)));
    assert_eq!(lease.disarm(BootTime(470), k), Err(LeaseRefusal::Decided(k)));
    assert_eq!((lease.poll(BootTime(499)), lease.due()), (None, Some(at)));
    assert!(matches!(lease.poll(at), Some(Duty::Flip(decided)) if decided.to == next()));
    assert_eq!(lease.poll(at), None, "given out once");

    let flipped =
        Flipped { k, from: serving(), to: next(), at_boot_ms: at, closed_boot_ms: at, opened_boot_ms: at };
    let mut failed = lease.clone();
    assert!(lease.flip_done(flipped));
    assert_eq!((lease.hold(), lease.flipped()), (&LeaseState::Free, Some(&flipped)));
    failed.flip_failed(BootTime(510));
    assert_eq!((fence(&failed).cause, fence(&failed).due_boot_ms), (FenceCause::FlipFailed, at));
    assert!(!failed.flip_done(flipped), "what is fenced has not flipped");
}

#[test]
fn a_flip_is_not_made_while_closing_nor_long_after_its_time() {
    let mut lease = Lease::new();
    lease.arm(BootTime(0), serving(), fast(1, 900, 500, 50)).unwrap();
    lease.decide(BootTime(1), RolloutId(1), BootTime(500), next()).unwrap();
    let mut stalled = lease.clone();
    assert!(
        matches!(stalled.poll(BootTime(1501)), Some(Duty::Fence(f)) if f.cause == FenceCause::FlipMissed)
    );
    let mut closing = lease.clone();
    closing.begin_close(BootTime(2));
    assert!(matches!(closing.poll(BootTime(500)), Some(Duty::Fence(_))));
    lease.begin_close(BootTime(2));
    lease.end_close(BootTime(3));
    assert_eq!(lease.poll(BootTime(500)), None, "what was closed in time does not flip");
}

#[test]
fn what_could_not_be_made_durable_is_taken_back_unless_it_has_latched() {
    let mut lease = armed(1, 100);
    let before = *lease.hold();
    lease.arm(BootTime(10), serving(), ask(2, 900)).unwrap();
    let made = *lease.hold();
    let mut latched = lease.clone();
    latched.poll(BootTime(900));
    latched.undo(BootTime(901), &made, before);
    assert_eq!(fence(&latched).k, Some(RolloutId(2)));
    lease.undo(BootTime(20), &made, before);
    assert_eq!((lease.rollout(), deadline(&lease)), (Some(RolloutId(1)), Some(BootTime(100))));
}

#[test]
fn an_opening_waits_until_the_fence_has_ended() {
    let mut lease = armed(1, 100);
    lease.poll(BootTime(100));
    lease.fence_ended(BootTime(101));
    assert_eq!(lease.begin_open(BootTime(101), next()), Err(LeaseRefusal::Fenced));
    lease.fence_dark(BootTime(102));
    assert_eq!(lease.begin_open(BootTime(102), next()), Err(LeaseRefusal::Fenced));
    lease.fence_ended(BootTime(103));
    assert_eq!(lease.begin_open(BootTime(103), next()), Ok(()));
}

#[test]
fn what_is_armed_may_be_started_again_in_its_epoch_and_keeps_its_deadline() {
    let mut lease = armed(1, 100);
    assert_eq!(lease.begin_open(BootTime(5), serving().unwrap()), Ok(()));
    assert_eq!(deadline(&lease), Some(BootTime(100)));
    assert_eq!(lease.begin_open(BootTime(5), next()), Err(LeaseRefusal::Armed(RolloutId(1))));
}

#[test]
fn a_halt_fences_what_is_free_armed_or_decided_and_only_resume_lifts_it() {
    let mut decided = Lease::new();
    decided.arm(BootTime(0), serving(), fast(1, 900, 500, 50)).unwrap();
    decided.decide(BootTime(1), RolloutId(1), BootTime(500), next()).unwrap();
    for mut lease in [Lease::new(), armed(1, 100), decided] {
        lease.halt(BootTime(50), UnixTime(7), "test");
        assert_eq!(fence(&lease).cause, FenceCause::Halted);
        lease.fence_dark(BootTime(51));
        lease.fence_ended(BootTime(52));
        for open in [serving().unwrap(), next()] {
            assert_eq!(lease.begin_open(BootTime(60), open), Err(LeaseRefusal::Halted));
        }
        assert_eq!(lease.arm(BootTime(60), serving(), ask(9, 90)), Err(LeaseRefusal::Halted));
        let first = lease.halted().unwrap().id;
        // Another one in the same millisecond, or with a clock that was set back: the first one's end does not end it.
        lease.halt(BootTime(60), UnixTime(3), "another");
        assert_eq!(lease.halted().map(|halt| halt.reason.as_str()), Some("test"));
        assert_eq!(lease.resume(first), Err(LeaseRefusal::Halted));
        let second = lease.halted().unwrap().id;
        assert!(second > first);
        assert_eq!((lease.resume(second), lease.resume(second)), (Ok(Change::Made), Ok(Change::None)));
        assert_eq!(lease.may_serve(), Err(LeaseRefusal::Fenced), "resuming serves nothing");
        assert_eq!(lease.begin_open(BootTime(61), next()), Ok(()));
        assert_eq!(lease.may_serve(), Ok(()));
    }
}

#[test]
fn a_restart_takes_up_what_runs_and_latches_what_does_not() {
    let recover = |lease: &Lease, of: u8, now| {
        Lease::recovered(Found::Record(Box::new(lease.record(&boot(1)))), &boot(of), None, BootTime(now))
    };
    let running = armed(1, 100);
    assert_eq!(recover(&running, 1, 99).hold(), running.hold());
    assert_eq!(fence(&recover(&running, 1, 100)).cause, FenceCause::DeadlinePassed);
    assert_eq!(fence(&recover(&running, 2, 5)).cause, FenceCause::Rebooted);
    assert_eq!(*recover(&Lease::new(), 2, 5).hold(), LeaseState::Free);

    let mut decided = Lease::new();
    decided.arm(BootTime(0), serving(), fast(1, 900, 500, 50)).unwrap();
    decided.decide(BootTime(1), RolloutId(1), BootTime(500), next()).unwrap();
    assert_eq!(recover(&decided, 1, 499).hold(), decided.hold());
    assert_eq!(fence(&recover(&decided, 1, 2000)).cause, FenceCause::FlipMissed);
    assert_eq!(fence(&recover(&decided, 2, 1)).cause, FenceCause::Rebooted);

    let mut fenced = armed(1, 100);
    fenced.poll(BootTime(100));
    fenced.fence_dark(BootTime(101));
    assert_eq!(recover(&fenced, 1, 200).hold(), fenced.hold());
    let after = fence(&recover(&fenced, 2, 5));
    assert_eq!((after.cause, after.begun_boot_ms), (FenceCause::DeadlinePassed, BootTime(5)));

    let lost = Lease::recovered(Found::Unreadable, &boot(1), Some(halt()), BootTime(5));
    assert_eq!((fence(&lost).cause, lost.may_serve()), (FenceCause::RecordLost, Err(LeaseRefusal::Halted)));
}

#[derive(Debug, Clone)]
enum Step {
    Arm { k: u64, ahead: u64, flip: Option<(u64, u64)> },
    Renew { k: u64, ahead: u64 },
    Disarm { k: u64 },
    Decide { k: u64 },
    BeginClose,
    EndClose,
    Open,
    Poll,
    Dark,
    Ended,
    Halt,
    Resume,
    Restart,
    Reboot,
}

fn step() -> impl Strategy<Value = Step> {
    let k = 1..4_u64;
    prop_oneof![
        3 => (k.clone(), 1..60_u64, proptest::option::of((1..80_u64, 0..10_u64)))
            .prop_map(|(k, ahead, flip)| Step::Arm { k, ahead, flip }),
        4 => (k.clone(), 0..60_u64).prop_map(|(k, ahead)| Step::Renew { k, ahead }),
        1 => k.clone().prop_map(|k| Step::Disarm { k }),
        2 => k.prop_map(|k| Step::Decide { k }),
        1 => Just(Step::BeginClose),
        1 => Just(Step::EndClose),
        2 => Just(Step::Open),
        4 => Just(Step::Poll),
        2 => Just(Step::Dark),
        1 => Just(Step::Ended),
        1 => Just(Step::Halt),
        1 => Just(Step::Resume),
        1 => Just(Step::Restart),
        1 => Just(Step::Reboot),
    ]
}

/// What an independent account of the accepted requests says: until when the right to serve lasts.
#[derive(Debug, Default)]
struct Account {
    /// The latest deadline that was ever accepted, for which rollout, and the cap on it.
    deadline: Option<(u64, u64, u64)>,
    decided: bool,
    halted: bool,
    boot: u8,
}

#[expect(clippy::too_many_lines, reason = "one arm for each kind of step")]
fn take(lease: &mut Lease, account: &mut Account, now: u64, step: &Step) {
    let at = BootTime(now);
    match *step {
        Step::Arm { k, ahead, flip } => {
            let ask = match flip {
                Some((t, epsilon)) => fast(k, now + ahead, now + t, epsilon),
                None => ask(k, now + ahead),
            };
            if lease.arm(at, serving(), ask) == Ok(Change::Made) {
                let cap = flip.map_or(u64::MAX, |(t, epsilon)| (now + t).saturating_sub(epsilon));
                account.deadline = Some((k, (now + ahead).min(cap), cap));
                account.decided = false;
            }
        }
        Step::Renew { k, ahead } => {
            let (before, accepted) = (*lease.hold(), lease.renew(at, RolloutId(k), BootTime(now + ahead)));
            match (&mut account.deadline, accepted) {
                (Some((of, deadline, cap)), Ok(())) => {
                    assert_eq!(*of, k, "renewed for another rollout");
                    assert!(*deadline > now, "renewed after the deadline");
                    *deadline = (*deadline).max((now + ahead).min(*cap));
                }
                (None, Ok(())) => panic!("renewed what was not armed"),
                (_, Err(_)) if matches!(before, LeaseState::Fenced(_)) => assert_eq!(*lease.hold(), before),
                (_, Err(_)) => {}
            }
        }
        Step::Disarm { k } => {
            if lease.disarm(at, RolloutId(k)) == Ok(Change::Made) {
                account.deadline = None;
            }
        }
        Step::Decide { k } => {
            let LeaseState::Armed(Armed { flip: Some(flip), .. }) = *lease.hold() else { return };
            if lease.decide(at, RolloutId(k), flip.at_boot_ms, next()) == Ok(Change::Made) {
                let (of, _, cap) = account.deadline.expect("what is decided was armed");
                assert!(of == k && now < cap, "decided too late or for another rollout");
                account.decided = true;
            }
        }
        Step::BeginClose => drop(lease.begin_close(at)),
        Step::EndClose => {
            lease.end_close(at);
            if *lease.hold() == LeaseState::Free {
                account.deadline = None;
            }
        }
        Step::Open => {
            let opens = lease.begin_open(at, next()).is_ok();
            assert!(!(opens && account.halted), "opened while halted");
            if opens {
                account.deadline = None;
            }
        }
        Step::Poll => match lease.poll(at) {
            Some(Duty::Flip(decided)) => {
                assert!(account.decided && decided.at_boot_ms.0 <= now, "flipped early or undecided");
                lease.flip_failed(at);
            }
            Some(Duty::Fence(_) | Duty::EndFence(_)) | None => {}
        },
        Step::Dark => lease.fence_dark(at),
        Step::Ended => lease.fence_ended(at),
        Step::Halt => {
            lease.halt(at, UnixTime(7), "test");
            account.halted = true;
        }
        Step::Resume => {
            let id = lease.halted().map_or(HaltId(0), |halt| halt.id);
            lease.resume(id).unwrap();
            account.halted = false;
        }
        Step::Restart => {
            let found = Found::Record(Box::new(lease.record(&boot(account.boot))));
            *lease = Lease::recovered(found, &boot(account.boot), lease.halted().cloned(), at);
        }
        Step::Reboot => {
            let found = Found::Record(Box::new(lease.record(&boot(account.boot))));
            account.boot = (account.boot + 1) % 100;
            *lease = Lease::recovered(found, &boot(account.boot), lease.halted().cloned(), at);
            assert!(!matches!(lease.hold(), LeaseState::Armed(_) | LeaseState::Decided(_)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nobody_serves_beyond_the_last_deadline_that_was_accepted(
        steps in proptest::collection::vec((step(), 0..25_u64), 1..60)
    ) {
        let (mut lease, mut account, mut now) = (Lease::new(), Account::default(), 0);
        for (step, pause) in steps {
            now += pause;
            let before = lease.clone();
            take(&mut lease, &mut account, now, &step);
            prop_assert_eq!(lease.halted().is_some(), account.halted);
            if let (LeaseState::Fenced(_), false) = (before.hold(), matches!(step, Step::Open)) {
                prop_assert!(matches!(lease.hold(), LeaseState::Fenced(_)), "{step:?} lifted a fence");
            }
            let mut seen = lease.clone();
            seen.poll(BootTime(now));
            match (account.deadline, account.decided) {
                (Some((_, deadline, _)), false) if deadline <= now => {
                    prop_assert_eq!(seen.may_serve().is_ok(), false, "serves beyond {}", deadline);
                }
                (Some((_, deadline, _)), false) if matches!(lease.hold(), LeaseState::Armed(_)) => {
                    prop_assert_eq!(lease.due(), Some(BootTime(deadline)), "the timer is set to the deadline");
                }
                (Some(_) | None, _) => {}
            }
        }
    }
}
