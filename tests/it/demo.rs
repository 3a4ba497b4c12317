//! The Knight replay is the product's demo and its most important regression test.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{program, run};

/// It takes under a minute at a reader's pace; without pauses on a busy machine this is ample.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long a local fleet waits for a silent host: its lease of 2 s and a fence of 2 s, on the worst of clocks.
const WAIT_MS: u64 = 4900;

#[test]
fn the_knight_replay_ends_as_it_should() {
    let temporary = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let arguments = ["dev", "demo", "--pace", "fast", "--output", "json"];
    let told = run(&arguments, &[("TMPDIR", temporary.path().to_str().unwrap())]).expect_code(0);
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    for line in [
        "$ muster check --release 2012.08.01-rlp",
        "  │   host-missing at host-8",
        "  │   mismatch at host-8, lib/rlp.sh",
        "all 8 serve 2012.07.01",
        "all 8 serve 2012.08.01-rlp",
        "dark window",
        "fenced, as the deadline passed",
        "the seven others serve 2012.08.02-rlp, and host-5 nothing",
        "all 8 serve 2012.08.02-rlp",
        "  │   approval-missing: 1 of 2 operators",
        "bob$ muster approve",
        "elsewhere$ muster receipt verify flip.receipt --root root.json",
        "attestation of host-8",
    ] {
        assert!(told.stderr.contains(line), "no `{line}`: {told}");
    }
    assert_eq!(
        (&told.json()["steps"], &told.json()["flipped_bit"]),
        (&9.into(), &"attestation of host-8".into())
    );
    // Its lease of 2 s ran out, and its guard took no longer than it may; only then did the others go on.
    let figure = |name: &str| told.json()["cut_off"][name].as_u64().unwrap();
    let (fenced, carried_on) = (figure("fenced_after_ms"), figure("carried_on_after_ms"));
    assert!(
        fenced < carried_on && carried_on >= WAIT_MS,
        "fenced after {fenced}, on after {carried_on}: {told}"
    );
    // Whoever watches sees why the gate is shut, each time that it is.
    let (before, _) = told.stderr.split_once("── 7.").unwrap();
    let refusals = before.matches("└ exit code 1").count();
    let reasons = before.lines().filter(|line| line.starts_with("  │   next (")).count();
    assert_eq!((refusals, reasons), (5, 5), "{told}");
    // One operator alone was refused and nothing moved; with the second the same command went through.
    let (_, two) = told.stderr.split_once("── 8.").unwrap();
    let order =
        ["exit code 12", "all 8 serve 2012.08.02-rlp", "bob$ muster approve", "all 8 serve 2012.07.01"];
    let places: Vec<Option<usize>> = order.iter().map(|text| two.find(text)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}: {told}");
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

#[test]
fn a_replay_that_is_interrupted_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let mut replay = Command::new(program("muster"))
        .args(["dev", "demo", "--pace", "fast"])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(replay.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("── 2.")), "the replay ended early");
    kill_process(Pid::from_child(&replay), Signal::INT).unwrap();
    assert!(!lines.any(|line| line.contains("── 4.")), "the replay went on");
    assert_eq!(replay.wait().unwrap().code(), Some(17));
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "nothing is left behind");
    let path = temporary.path().as_os_str().as_encoded_bytes();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let is_ours = command.windows(path.len()).any(|window| window == path);
        assert!(!is_ours, "left running: {}", String::from_utf8_lossy(&command));
    }
}
