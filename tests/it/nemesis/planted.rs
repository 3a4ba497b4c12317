//! Machines that break an assumption of docs/safety.md: the observer must see what comes of it, in this very set-up.

use rustix::process::Signal;

use super::lab::Lab;
use super::plan::When;
use super::watch::Watch;
use crate::harness::{Cut, Network, Observer};

/// The host that breaks it.
const VICTIM: usize = 2;

/// Cuts a host off once it is armed, does this to it, and flips over it. Panics unless two releases are seen.
fn seen_with(rates_ppm: &[i64], worse: impl Fn(&Lab) + Sync + Send) {
    Network::room(|network| {
        let lab = Lab::new(network, rates_ppm);
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
    seen_with(&[0; 4], |lab| lab.fleet.host(VICTIM).guard.signal_if_running(Signal::STOP));
}

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn a_clock_that_runs_at_a_third_is_seen_to_break_p1() {
    let mut rates_ppm = [0; 4];
    rates_ppm[VICTIM] = -666_667;
    seen_with(&rates_ppm, |_| {});
}
