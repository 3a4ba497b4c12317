//! The histories find what they look for: each mistake that is planted in the simulator is caught.

use super::history::{Failure, explain, search};
use super::world::Mistake;

const HISTORIES: u64 = 2_000;

fn caught(mistake: Mistake) -> Failure {
    search(Some(mistake), 0..HISTORIES).expect_err("no history has caught the mistake")
}

#[test]
fn closed_before_dark_is_caught() {
    let failure = caught(Mistake::ClosedBeforeDark);
    assert!(failure.violation.starts_with("P4"), "{failure:?}");
}

#[test]
fn armed_not_durable_is_caught() {
    caught(Mistake::ArmedNotDurable);
}

#[test]
fn starting_at_boot_is_caught() {
    let failure = caught(Mistake::StartsAtBoot);
    assert!(failure.violation.starts_with("P11"), "{failure:?}");
}

#[test]
fn close_not_repeated_is_caught() {
    let failure = caught(Mistake::CloseNotRepeated);
    assert!(failure.violation.starts_with("stuck"), "{failure:?}");
}

#[test]
fn stale_admit_is_caught() {
    let failure = caught(Mistake::StaleAdmit);
    assert!(failure.violation.starts_with("P11"), "{failure:?}");
}

#[test]
fn stray_disarm_is_caught() {
    caught(Mistake::StrayDisarm);
}

#[test]
fn host_speaking_before_writing_is_caught() {
    let failure = caught(Mistake::HostSpeaksBeforeWriting);
    assert!(failure.violation.starts_with("P7"), "{failure:?}");
}

#[test]
fn coordinator_speaking_before_writing_is_caught() {
    let failure = caught(Mistake::CoordinatorSpeaksBeforeWriting);
    assert!(failure.violation.starts_with("P7"), "{failure:?}");
}

#[test]
fn a_wait_that_is_too_short_is_caught() {
    let failure = caught(Mistake::WaitTooShort);
    assert!(failure.violation.starts_with("P4") || failure.violation.starts_with("P1"), "{failure:?}");
}

#[test]
fn a_leader_that_skips_the_wait_is_caught() {
    let failure = caught(Mistake::WaitSkippedAtTakeOver);
    assert!(failure.violation.starts_with("P4") || failure.violation.starts_with("P1"), "{failure:?}");
}

#[test]
fn a_lease_that_counts_from_the_receipt_is_caught() {
    let failure = caught(Mistake::LeaseFromReceipt);
    assert!(failure.violation.starts_with("P5"), "{failure:?}");
}

#[test]
fn a_close_that_cancels_the_deadline_is_caught() {
    let failure = caught(Mistake::CloseCancelsDeadline);
    assert!(failure.violation.starts_with("P4") || failure.violation.starts_with("P1"), "{failure:?}");
}

#[test]
fn a_host_that_is_removed_after_an_offer_is_caught() {
    let failure = caught(Mistake::RemovedAfterOffer);
    assert!(failure.violation.starts_with("P1"), "{failure:?}");
}

#[test]
fn a_deposed_leader_that_grants_without_reading_is_caught() {
    let failure = caught(Mistake::GrantWithoutReading);
    assert!(failure.violation.starts_with("P5"), "{failure:?}");
}

#[test]
fn a_record_that_is_claimed_to_be_durable_before_its_sync_is_caught() {
    let failure = caught(Mistake::DurableBeforeSync);
    assert!(failure.violation.starts_with("P7"), "{failure:?}");
}

#[test]
fn a_tree_that_is_not_looked_at_is_caught() {
    let failure = caught(Mistake::TreesNotLookedAt);
    assert!(failure.violation.starts_with("P8"), "{failure:?}");
}

#[test]
fn a_time_of_day_that_is_further_off_than_attested_is_caught() {
    let failure = caught(Mistake::TimeOfDayOff);
    assert!(failure.violation.starts_with("P13"), "{failure:?}");
}

#[test]
fn a_guard_that_does_not_take_its_lease_up_is_caught() {
    let failure = caught(Mistake::LeaseNotTakenUp);
    assert!(failure.violation.starts_with("P4") || failure.violation.starts_with("P1"), "{failure:?}");
}

#[test]
fn a_timer_that_never_fires_is_caught() {
    let failure = caught(Mistake::TimerForgotten);
    assert!(failure.violation.starts_with("P12"), "{failure:?}");
}

#[test]
fn a_host_that_takes_the_answer_to_an_earlier_closing_for_its_last_is_caught() {
    let failure = caught(Mistake::ClosingsNotToldApart);
    assert!(failure.violation.starts_with("P7"), "{failure:?}");
}

#[test]
fn forged_open_is_refused_by_every_host() {
    match search(Some(Mistake::ForgedOpen), 0..HISTORIES) {
        Ok(coverage) => assert!(coverage.opens_forged > 0, "{coverage:?}"),
        Err(failure) => panic!("a forged OPEN did harm: {}", explain(&failure, Some(Mistake::ForgedOpen))),
    }
}
