//! Machines that break an assumption of docs/safety.md: the observer must see what comes of it, in this very set-up.

use std::time::Duration;

use rustix::process::Signal;

use super::acts;
use super::lab::{FAST_VERSIONS, Lab, SKEW_MAX, TIMING};
use super::plan::{Order, When};
use super::watch::Watch;
use crate::harness::{ClockOff, Cut, FastFlip, Network, Observer, Seen};

/// The host that breaks it.
const VICTIM: usize = 2;

/// Cuts a host off once it is armed, does this to it, and flips over it. Panics unless two releases are seen.
fn seen_with(clocks: &[ClockOff], worse: impl Fn(&Lab) + Sync + Send) {
    Network::room(|network| {
        let lab = Lab::new(network, clocks);
        let (observer, watch) = (Observer::of_services(&lab.fleet), Watch::begin(&lab.fleet));
        observer.wait_all_serve("2");
        let victim = lab.fleet.host(VICTIM);
        // It is armed, and dies before it closes: its guard alone is what stops it.
        lab.fleet.let_die_at(&victim, "agent.close.before-guard");
        watch.order(2);
        let others: Vec<_> =
            lab.fleet.hosts().into_iter().filter(|host| host.name() != victim.name()).collect();
        let flip = lab.fleet.flip_while("3", || {
            assert!(watch.wait(When::Decided));
            lab.place(VICTIM).machine.cut(Cut::Both);
            worse(&lab);
            observer.wait_serve(&others, "3");
        });
        assert_eq!(flip.code, 18, "{flip}");
        let seen = observer.finish();
        assert!(seen.violates(["2", "3"]), "{seen:?}");
    });
}

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn a_guard_that_is_suspended_for_longer_than_the_wait_is_seen_to_break_p1() {
    seen_with(&[ClockOff::default(); 4], |lab| lab.fleet.host(VICTIM).guard.signal_if_running(Signal::STOP));
}

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn a_clock_that_runs_at_a_third_is_seen_to_break_p1() {
    let mut clocks = [ClockOff::default(); 4];
    clocks[VICTIM].rate_ppm = -666_667;
    seen_with(&clocks, |_| {});
}

/// What is seen of an undisturbed flip in fast mode, from the second version to [`FAST_VERSIONS`], where the time of day of two hosts is so far off.
fn seen_of_fast_flip_with(first_ms: i64, victim_ms: i64) -> Seen {
    Network::room(|network| {
        let mut clocks = [ClockOff::default(); 4];
        (clocks[1].time_ms, clocks[VICTIM].time_ms) = (first_ms, victim_ms);
        let lab = Lab::new(network, &clocks);
        let observer = Observer::of_services(&lab.fleet);
        observer.wait_all_serve("2");
        let fast = FastFlip::ordered(FAST_VERSIONS[0], SKEW_MAX);
        acts::order(&lab, Order::FlipFast, "2").expect_code(0);
        observer.wait_all_serve(FAST_VERSIONS[0]);
        observer.finish_after(&[fast.over()])
    })
}

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn a_time_of_day_that_is_further_off_than_stated_is_seen_to_break_the_skew_of_fast_mode() {
    let off_ms = 2 * i64::try_from(SKEW_MAX.as_millis()).unwrap();
    let seen = seen_of_fast_flip_with(0, -off_ms);
    assert!(seen.violates(["2", FAST_VERSIONS[0]]), "{seen:?}");
}

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn times_of_day_that_are_as_far_off_as_stated_are_seen_to_keep_the_skew_of_fast_mode() {
    let error_ms = i64::try_from(TIMING.clock_error_ms).unwrap();
    let seen = seen_of_fast_flip_with(error_ms, -error_ms);
    seen.expect_one_release_at_a_time();
    // Hosts that are twice as far apart as each is off serve both releases for most of that time.
    assert!(seen.skew > Duration::from_millis(TIMING.clock_error_ms), "{seen:?}");
}
