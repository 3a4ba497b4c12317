//! The Knight replay is the product's demo and its most important regression test.

use std::time::{Duration, Instant};

use crate::harness::run;

/// It takes under half a minute at a reader's pace; without pauses on a busy machine this is ample.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn the_knight_replay_ends_as_it_should() {
    let temporary = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let told = run(&["dev", "demo", "--pace", "fast"], &[("TMPDIR", temporary.path().to_str().unwrap())]);
    let told = told.expect_code(0);
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    for line in [
        "$ muster check --release 2012.08.01-rlp",
        "host-missing at host-8",
        "mismatch at host-8, lib/rlp.sh",
        "all 8 serve 2012.07.01",
        "all 8 serve 2012.08.01-rlp",
        "dark window",
        "All 6 steps ended as they should",
    ] {
        assert!(told.stdout.contains(line), "no `{line}`: {told}");
    }
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_replay_that_goes_wrong_names_the_step_and_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let environment =
        [("MUSTER_DEMO_SABOTAGE", "skip-repair"), ("TMPDIR", temporary.path().to_str().unwrap())];
    let told = run(&["dev", "demo", "--pace", "fast", "--output", "json"], &environment).expect_code(1);
    assert!(told.text_at("/error").contains("step 4"), "{told}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "nothing is left behind");
}
