//! Real processes that die: at every durable step, and by SIGKILL at any time.
//!
//! The test binary runs itself with [`CHILD`] set; that process tells each acknowledged head on its standard
//! output, as the last thing before it goes on.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use muster_model::Digest;

use super::faults::life;
use super::*;
use crate::sled_store::faults::{Fault, Faults};

const CHILD: &str = "MUSTER_STORE_CHILD";
const FOLDER: &str = "MUSTER_STORE_FOLDER";
const KILLS: u64 = 24;
const STEPS_MAX: u64 = 400;

/// The child's side: it does nothing unless the tests below start it.
#[test]
fn child() {
    let (Ok(mode), Ok(folder)) = (std::env::var(CHILD), std::env::var(FOLDER)) else { return };
    let folder = PathBuf::from(folder);
    match mode.parse() {
        Ok(step) => {
            let (disk, _) = Faults::at(step, Fault::Abort);
            life(&folder, &disk, &mut acknowledge).unwrap();
            tell("done");
        }
        Err(_) => append_for_ever(&folder),
    }
}

fn append_for_ever(folder: &Path) {
    let (mut store, _) = open(folder, REFUSE);
    for turn in 0_u64.. {
        let bodies = vec![turn.to_be_bytes().repeat(40); 1 + (turn % 3) as usize];
        let position = if turn % 11 == 10 {
            store.compact(store.head(), b"snapshot", AnchorPayload::Keep)
        } else {
            store.append(store.head(), &bodies, AnchorPayload::Replace(&turn.to_be_bytes()))
        };
        acknowledge(position.unwrap().head);
    }
}

fn acknowledge(head: Head) {
    tell(&format!("ack {} {}", head.seq, head.hash));
}

fn tell(line: &str) {
    let mut output = io::stdout().lock();
    // The test harness writes its own words without a line's end.
    write!(output, "\n{line}\n").unwrap();
    output.flush().unwrap();
}

fn start(mode: &str, folder: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sled_store::tests::crash::child", "--nocapture", "--test-threads=1"])
        .env(CHILD, mode)
        .env(FOLDER, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

/// The head that a whole line acknowledges; a line that the kill has cut is not one.
fn acknowledged(line: &str) -> Option<Head> {
    let (seq, hash) = line.strip_prefix("ack ")?.strip_suffix('\n')?.split_once(' ')?;
    Some(Head { seq: seq.parse().unwrap(), hash: hash.parse::<Digest>().unwrap() })
}

fn last_acknowledged(output: &str) -> Option<Head> {
    output.split_inclusive('\n').filter_map(acknowledged).next_back()
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(1);
    for kill in 0..KILLS {
        let (mut child, mut output) = start("for ever", dir.path());
        let mut read = String::new();
        for _ in 0..=dice.below(60) {
            while acknowledged(read.split_inclusive('\n').next_back().unwrap_or_default()).is_none() {
                assert_ne!(output.read_line(&mut read).unwrap(), 0, "the child ended by itself: {read}");
            }
            assert_ne!(output.read_line(&mut read).unwrap(), 0, "the child ended by itself: {read}");
        }
        child.kill().unwrap();
        output.read_to_string(&mut read).unwrap();
        child.wait().unwrap();
        let head = last_acknowledged(&read).expect("at least one line was read");
        let (store, recovery) = open(dir.path(), REFUSE);
        assert!(contains(&store, head), "kill {kill}: {head:?} is gone, {recovery:?}");
        assert!(store.head().seq >= head.seq);
        assert!(matches!(recovery, Recovery::Clean | Recovery::AdoptedTail { .. }), "{recovery:?}");
    }
}

#[test]
fn a_process_may_die_at_every_step() {
    for step in 0..STEPS_MAX {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("store");
        let (mut child, mut output) = start(&step.to_string(), &dir);
        let mut read = String::new();
        output.read_to_string(&mut read).unwrap();
        let status = child.wait().unwrap();
        if read.contains("\ndone\n") {
            assert!(status.success() && step > 50, "{status}: {read}");
            return;
        }
        assert!(!status.success(), "step {step}: {read}");
        let head = last_acknowledged(&read).unwrap_or_else(Head::genesis);
        let (mut store, recovery) = open(&dir, REFUSE);
        assert!(contains(&store, head), "step {step}: {head:?} is gone, {recovery:?}");
        assert!(!matches!(recovery, Recovery::HistoryLost { .. }), "step {step}");
        append(&mut store, b"on we go");
    }
    panic!("more than {STEPS_MAX} steps");
}
