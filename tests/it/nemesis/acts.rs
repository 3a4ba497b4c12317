//! Doing what a plan says, while a rollout goes on.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::lab::{FAST_VERSIONS, Lab, VERSIONS};
use super::operator;
use super::plan::{Act, Daemon, Fault, Order, Rollout, When};
use super::tally::Tally;
use super::watch::Watch;
use crate::harness::{FLEET, Output};

/// Longer than an undisturbed rollout takes, and than most faults last.
pub(super) const FLIP_TIMEOUT: Duration = Duration::from_secs(12);

/// How long an order is given anew that was refused.
const INSISTENCE: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_millis(200);

/// Orders a rollout and meanwhile does what the plan says. When this returns all faults are over, but for processes that have died.
pub(super) fn go(
    lab: &Lab,
    watch: &Watch,
    rollout: &Rollout,
    served: &str,
    last_k: u64,
    tally: &Tally,
) -> Output {
    let (before, meanwhile): (Vec<&Act>, Vec<&Act>) =
        rollout.acts.iter().partition(|act| act.when == When::Before);
    let (points, before): (Vec<&Act>, Vec<&Act>) =
        before.into_iter().partition(|act| matches!(act.fault, Fault::DieAt(..)));
    for act in &points {
        operator::wait_connected(lab);
        inflict(lab, &act.fault, served);
    }
    watch.order(last_k);
    for act in &before {
        tally.fault(&act.fault);
        inflict(lab, &act.fault, served);
    }
    thread::scope(|scope| {
        for act in before {
            scope.spawn(|| {
                thread::sleep(act.lasts);
                end(lab, &act.fault);
            });
        }
        for act in points {
            scope.spawn(|| revive_after_death(lab, watch, act, tally));
        }
        for act in meanwhile {
            scope.spawn(|| {
                if !watch.wait(act.when) {
                    return tally.missed();
                }
                thread::sleep(act.delay);
                tally.fault(&act.fault);
                inflict(lab, &act.fault, served);
                thread::sleep(act.lasts);
                end(lab, &act.fault);
            });
        }
        let ordered = insist(lab, watch, rollout.order, served);
        watch.over();
        ordered
    })
}

/// Gives the order again and again until a rollout begins, for a while: whoever is refused tries again.
fn insist(lab: &Lab, watch: &Watch, wanted: Order, served: &str) -> Output {
    let deadline = Instant::now() + INSISTENCE;
    loop {
        let ordered = order(lab, wanted, served);
        if ordered.code == 0 || watch.has_begun() || Instant::now() >= deadline {
            return ordered;
        }
        thread::sleep(RETRY);
    }
}

/// Gives the order, and waits for what becomes of it.
pub(super) fn order(lab: &Lab, order: Order, served: &str) -> Output {
    let release = next(served, 1);
    let what: &[&str] = match order {
        Order::Flip => &["flip", release],
        Order::FlipWithoutLapse => &["flip", release, "--max-lapsed", "0"],
        Order::FlipFast => &["flip", next_in_fast_mode(served), "--mode", "fast"],
        Order::Rollback => &["rollback"],
    };
    let timeout = format!("{}s", FLIP_TIMEOUT.as_secs());
    lab.fleet.json(&[what, &["--timeout", &timeout]].concat())
}

/// What a flip in fast mode is to.
pub(super) fn next_in_fast_mode(served: &str) -> &'static str {
    FAST_VERSIONS[usize::from(served == FAST_VERSIONS[0])]
}

/// Another version than the one that is served.
fn next(served: &str, further: usize) -> &'static str {
    let index = VERSIONS.iter().position(|version| *version == served).unwrap_or_default();
    VERSIONS[(index + further) % VERSIONS.len()]
}

fn inflict(lab: &Lab, fault: &Fault, served: &str) {
    match fault {
        Fault::Kill(daemon) => lab.daemon(*daemon).kill_if_running(),
        Fault::DieAt(Daemon::Coordinator, point) => lab.fleet.let_coordinator_die_at(point),
        Fault::DieAt(Daemon::Agent(host) | Daemon::Guard(host), point) => {
            lab.fleet.let_die_at(&lab.fleet.host(*host), point);
        }
        Fault::Suspend(daemon) => lab.daemon(*daemon).signal_if_running(Signal::STOP),
        Fault::KillService(host) => lab.kill_service(*host),
        Fault::CutOff(machines, cut) => machines.iter().for_each(|it| lab.place(*it).machine.cut(*cut)),
        Fault::FillDisk(machine) => lab.disk(*machine).fill(),
        Fault::SetClock(machine, hours) => lab.place(*machine).clock.step(hours * 3600),
        Fault::Abort => drop(lab.fleet.json(&["abort"])),
        Fault::Halt => {
            drop(lab.fleet.json(&["halt", FLEET, "--reason", "nemesis", "--yes", "--timeout", "5s"]));
        }
        Fault::SecondFlip => drop(lab.fleet.json(&["flip", next(served, 2), "--timeout", "5s"])),
    }
}

/// Ends a fault, as whoever is responsible for a machine does, with what that machine does by itself.
pub(super) fn end(lab: &Lab, fault: &Fault) {
    match fault {
        Fault::Kill(daemon) | Fault::DieAt(daemon, _) => revive(lab, *daemon),
        Fault::Suspend(daemon) => lab.daemon(*daemon).signal_if_running(Signal::CONT),
        Fault::CutOff(machines, _) => machines.iter().for_each(|it| lab.place(*it).machine.join()),
        Fault::FillDisk(machine) => lab.disk(*machine).empty(),
        Fault::SetClock(machine, _) => lab.place(*machine).clock.step(0),
        Fault::Halt => drop(lab.fleet.json(&["resume", "--timeout", "10s"])),
        Fault::KillService(_) | Fault::Abort | Fault::SecondFlip => {}
    }
}

/// Starts a daemon again that has died.
fn revive(lab: &Lab, daemon: Daemon) {
    let daemon = lab.daemon(daemon);
    if !daemon.is_running() {
        daemon.wait_until_gone();
        daemon.start(&[]);
    }
}

/// Waits until a daemon has died at its point or the rollout is over, and starts it again, without the point.
fn revive_after_death(lab: &Lab, watch: &Watch, act: &Act, tally: &Tally) {
    let Fault::DieAt(which, _) = act.fault else { unreachable!("only these have points") };
    let daemon = lab.daemon(which);
    while daemon.is_running() && !watch.is_over() {
        thread::sleep(Watch::PAUSE);
    }
    if daemon.is_running() {
        tally.missed();
        daemon.kill_if_running();
    } else {
        tally.fault(&act.fault);
        thread::sleep(act.lasts);
    }
    revive(lab, which);
}
