//! Each mistake that is planted is found, in the smallest space that shows it.

use super::config::{CALM, Clock, Config, Fault, Mistake, Pace};
use super::properties::{P1, P5_GRANTS};
use super::runs::expect_broken;

/// A host is cut off, and time passes.
const CUT_OFF: Config =
    Config { ticks: 3, clock: Clock::WhileDecided, faults: 1, kinds: &[Fault::Cut], ..CALM };

#[test]
fn w_one_tick_short() {
    let name = "w_one_tick_short";
    expect_broken(Config { name, mistake: Some(Mistake::WOneTickShort), ticks: 2, ..CUT_OFF }, P1);
}

#[test]
fn lease_counted_from_receipt() {
    let name = "lease_counted_from_receipt";
    let mistake = Some(Mistake::LeaseCountedFromReceipt);
    expect_broken(
        Config { name, mistake, ticks: 4, clock: Clock::Always, faults: 0, renewals: 1, ..CUT_OFF },
        P1,
    );
}

#[test]
fn deposed_leader_grants_without_reading() {
    let name = "deposed_leader_grants_without_reading";
    let mistake = Some(Mistake::DeposedLeaderGrantsWithoutReading);
    let config = Config {
        name,
        mistake,
        ticks: 2,
        clock: Clock::Always,
        renewals: 1,
        kinds: &[Fault::TakeOver],
        ..CUT_OFF
    };
    expect_broken(config, P5_GRANTS);
}

#[test]
fn new_leader_skips_the_wait() {
    let name = "new_leader_skips_the_wait";
    let mistake = Some(Mistake::NewLeaderSkipsTheWait);
    expect_broken(Config { name, mistake, ticks: 0, kinds: &[Fault::Stop], ..CUT_OFF }, P1);
}

#[test]
fn service_starts_at_boot() {
    let name = "service_starts_at_boot";
    let mistake = Some(Mistake::ServiceStartsAtBoot);
    expect_broken(Config { name, mistake, kinds: &[Fault::Reboot], ..CUT_OFF }, P1);
}

#[test]
fn closed_acknowledged_before_down() {
    let name = "closed_acknowledged_before_down";
    let mistake = Some(Mistake::ClosedAcknowledgedBeforeDown);
    expect_broken(Config { name, mistake, drain: Pace::Later, ..CALM }, P1);
}

#[test]
fn stale_admit_accepted() {
    let name = "stale_admit_accepted";
    let mistake = Some(Mistake::StaleAdmitAccepted);
    let kinds = &[Fault::Reboot, Fault::Copy];
    expect_broken(Config { name, mistake, faults: 2, kinds, drain: Pace::Later, ..CALM }, P1);
}

#[test]
fn stale_disarm_accepted() {
    let name = "stale_disarm_accepted";
    let mistake = Some(Mistake::StaleDisarmAccepted);
    let kinds = &[Fault::Abort, Fault::Copy];
    expect_broken(Config { name, mistake, faults: 2, kinds, rollouts: 2, ..CUT_OFF }, P1);
}

#[test]
fn armed_not_durable() {
    let name = "armed_not_durable";
    let mistake = Some(Mistake::ArmedNotDurable);
    expect_broken(Config { name, mistake, kinds: &[Fault::Restart], ..CUT_OFF }, P1);
}

#[test]
fn close_cancels_the_deadline_before_the_drain_is_done() {
    let name = "close_cancels_the_deadline_before_the_drain_is_done";
    let mistake = Some(Mistake::CloseCancelsTheDeadlineBeforeTheDrainIsDone);
    expect_broken(Config { name, mistake, faults: 0, drain: Pace::Later, ..CUT_OFF }, P1);
}

#[test]
fn removed_as_closed_after_an_open_was_offered() {
    let name = "removed_as_closed_after_an_open_was_offered";
    let mistake = Some(Mistake::RemovedAsClosedAfterAnOpenWasOffered);
    let config = Config { name, mistake, ticks: 0, rollouts: 2, removals: 1, ..CUT_OFF };
    expect_broken(config, P1);
}

#[test]
fn removed_as_lapsed_after_a_disarm_was_offered() {
    let name = "removed_as_lapsed_after_a_disarm_was_offered";
    let mistake = Some(Mistake::RemovedAsLapsedAfterADisarmWasOffered);
    let kinds = &[Fault::Cut, Fault::Abort];
    let config = Config { name, mistake, ticks: 0, faults: 2, kinds, rollouts: 2, removals: 1, ..CUT_OFF };
    expect_broken(config, P1);
}
