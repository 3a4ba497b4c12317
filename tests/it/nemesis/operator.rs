//! What sensible people do after something went wrong: they mend the machines and go by the status. No state is deleted.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::acts;
use super::lab::Lab;
use super::plan::{Fault, Order};
use super::tally::{Ended, Tally};
use crate::harness::{Host, Observer, Output, wait_until};

/// Longer than everything takes that a fleet does by itself: leases, waits, and the pauses before agents connect again.
const PATIENCE: Duration = Duration::from_secs(60);

/// For so long whoever looks at blockers waits whether they go away, between any two things that are done about them.
const PATIENCE_WITH_BLOCKERS: Duration = Duration::from_secs(5);

/// What a fleet serves once all is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) epoch: u64,
    pub(super) version: String,
    pub(super) last_k: u64,
}

/// Mends every machine: whatever a plan did is over, and whatever has died is started, as systemd does.
pub(super) fn mend(lab: &Lab) {
    for machine in 0..lab.machines() {
        acts::end(lab, &Fault::FillDisk(machine));
        acts::end(lab, &Fault::SetClock(machine, 0));
        lab.place(machine).machine.join();
    }
    for (_, daemon) in lab.daemons() {
        daemon.signal_if_running(Signal::CONT);
    }
    start_what_has_died(lab);
}

/// Waits until all hosts are connected. Meanwhile whatever dies is started, as systemd does.
#[track_caller]
pub(super) fn wait_connected(lab: &Lab) {
    let hosts = lab.fleet.hosts().len();
    wait_until(&format!("{hosts} hosts are connected"), PATIENCE, || {
        start_what_has_died(lab);
        let status = lab.fleet.json(&["status"]);
        (status.code == 0 && status.json()["hosts_connected"] == hosts).then_some(())
    });
}

fn start_what_has_died(lab: &Lab) {
    for (_, daemon) in lab.daemons() {
        if !daemon.is_running() {
            daemon.wait_until_gone();
            daemon.start(&[]);
        }
    }
}

/// Brings a mended fleet to where nothing is in the way of anything, and all are seen to serve what it says.
#[track_caller]
pub(super) fn settle(lab: &Lab, observer: &Observer, tally: &Tally) -> Settled {
    let begun = Instant::now();
    let mut last_remedy = begun;
    loop {
        let status = lab.fleet.json(&["status", "--check"]);
        if let Some(settled) = settled(lab, &status) {
            observer.wait_all_serve(&settled.version);
            return settled;
        }
        assert!(begun.elapsed() < PATIENCE, "the fleet does not settle: {status}");
        start_what_has_died(lab);
        let Ok(status) = serde_json::from_str::<Value>(&status.stdout) else { continue };
        if last_remedy.elapsed() > PATIENCE_WITH_BLOCKERS {
            for remedy in remedies(&status) {
                tally.remedy(remedy.name());
                apply(lab, &remedy, &status);
                last_remedy = Instant::now();
            }
        }
    }
}

/// What people do because the status says so.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Remedy {
    /// `muster abort`, of a rollout that does not come to a decision.
    Abort,
    /// `muster resume`, of a fleet that was halted, or a host of it.
    Resume,
    /// As `muster explain start-failed` says: another flip.
    FlipElsewhere,
    /// As `muster explain guard-failed` says: the guard is started anew.
    RestartGuard(usize),
}

impl Remedy {
    const fn name(&self) -> &'static str {
        match self {
            Self::Abort => "aborted",
            Self::Resume => "resumed",
            Self::FlipElsewhere => "flipped elsewhere",
            Self::RestartGuard(_) => "guard restarted",
        }
    }
}

/// What the status asks for, if it asks for anything. As long as hosts are missing it asks for patience.
fn remedies(status: &Value) -> Vec<Remedy> {
    if ["preparing", "arming"].iter().any(|phase| status["phase"] == *phase) {
        return vec![Remedy::Abort];
    }
    if status["phase"] == "decided" || status["hosts_connected"] != status["hosts_total"] {
        return Vec::new();
    }
    if status["halted_since_rollout"].is_u64() {
        let slow = slow_to_fence(&status["last_end"]);
        return slow.chain([Remedy::Resume]).collect();
    }
    let blockers = status["blockers"].as_array().into_iter().flatten();
    let remedy = |blocker: &Value| match blocker["code"].as_str()? {
        "start-failed" => Some(Remedy::FlipElsewhere),
        "guard-failed" => restart_guard(blocker),
        // The fleet was resumed and this host was not: its agent died meanwhile.
        "halted" => Some(Remedy::Resume),
        _ => None,
    };
    let mut remedies: Vec<Remedy> = blockers.filter_map(remedy).collect();
    remedies.dedup();
    remedies
}

fn apply(lab: &Lab, remedy: &Remedy, status: &Value) {
    match remedy {
        Remedy::Abort => drop(lab.fleet.json(&["abort"])),
        Remedy::Resume => drop(lab.fleet.json(&["resume", "--timeout", "10s"])),
        Remedy::FlipElsewhere => {
            drop(acts::order(lab, Order::Flip, status["serving"]["version"].as_str().unwrap_or_default()));
        }
        Remedy::RestartGuard(host) => {
            let guard = lab.fleet.host(*host).guard;
            guard.kill_if_running();
            guard.wait_until_gone();
            start_what_has_died(lab);
        }
    }
}

fn settled(lab: &Lab, status: &Output) -> Option<Settled> {
    if status.code != 0 {
        return None;
    }
    let status = status.json();
    let (epoch, hosts) = (&status["epoch"], status["hosts"].as_array()?);
    let all = hosts.iter().all(|host| host["connected"] == true && host["serving_epoch"] == *epoch);
    (status["phase"] == "settled" && all && hosts.len() == lab.machines() - 1).then(|| Settled {
        epoch: epoch.as_u64().unwrap(),
        version: status["serving"]["version"].as_str().unwrap().to_owned(),
        last_k: status["last_rollout"].as_u64().unwrap(),
    })
}

/// How a rollout ended, by what was settled before and after, and by its receipt.
#[track_caller]
pub(super) fn ended(lab: &Lab, before: &Settled, after: &Settled) -> Ended {
    assert!(after.epoch >= before.epoch && after.last_k >= before.last_k, "{before:?} {after:?}");
    if after.last_k == before.last_k {
        return Ended::Refused;
    }
    if after.epoch == before.epoch {
        return Ended::Aborted;
    }
    let settled = (before.epoch + 1..=after.epoch).filter_map(|epoch| settled_as(lab, epoch, after.epoch));
    settled.max().unwrap_or(Ended::Settled)
}

/// Verifies the receipt of an epoch with nothing but the root document, and says how that one settled. One that was halted
/// or followed by another one before it had settled has none; the newest has.
#[track_caller]
fn settled_as(lab: &Lab, epoch: u64, newest: u64) -> Option<Ended> {
    let (file, root) = (lab.fleet.scratch().join("receipt.json"), lab.fleet.dir().join("root.json"));
    let file = file.to_str().unwrap();
    let show = || lab.fleet.json(&["receipt", "show", "--epoch", &epoch.to_string(), "--out", file]);
    let mut shown = show();
    // A disk that was full may have kept it back, and the next attempt is still to come.
    if epoch == newest && shown.code == 11 {
        shown = wait_until("the newest receipt is made", PATIENCE, || Some(show()).filter(|it| it.code == 0));
    }
    if epoch < newest && shown.code == 11 {
        shown.expect_blocker("release-unknown", "", "");
        return None;
    }
    let mode = shown.expect_code(0).text_at("/mode");
    let verified =
        lab.fleet.json(&["receipt", "verify", file, "--root", root.to_str().unwrap()]).expect_code(0);
    fs::remove_file(file).unwrap();
    let has_lapsed = !verified.json()["lapsed"].as_array().unwrap().is_empty();
    Some(match mode.as_str() {
        "fast" => Ended::SettledFast,
        _ if has_lapsed => Ended::OverLapsed,
        _ => Ended::Settled,
    })
}

/// An ordinary flip succeeds at once after all that. Only where a machine was so busy that a fence took too long when it was
/// tried, it is tried anew first: with its guard.
#[track_caller]
pub(super) fn flip_undisturbed(lab: &Lab, observer: &Observer, served: &Settled, tally: &Tally) -> Settled {
    const ATTEMPTS: u64 = 5;
    for attempt in 1..=ATTEMPTS {
        let flip = acts::order(lab, Order::FlipWithoutLapse, &served.version);
        let slow: Vec<Remedy> = slow_to_fence(&flip.json()).collect();
        if slow.is_empty() || attempt == ATTEMPTS {
            flip.expect_code(0);
        }
        for remedy in &slow {
            tally.remedy(remedy.name());
            apply(lab, remedy, &Value::Null);
        }
        let settled = settle(lab, observer, tally);
        if slow.is_empty() {
            assert_eq!(
                (settled.epoch, settled.last_k),
                (served.epoch + 1, served.last_k + attempt),
                "{settled:?}"
            );
            return settled;
        }
    }
    unreachable!("the last attempt succeeds or panics")
}

fn slow_to_fence(status: &Value) -> impl Iterator<Item = Remedy> {
    let blockers = status["blockers"].as_array().into_iter().flatten();
    blockers.filter(|blocker| blocker["code"] == "fence-too-slow").filter_map(restart_guard)
}

/// The guard of the host that a blocker names.
fn restart_guard(blocker: &Value) -> Option<Remedy> {
    Some(Remedy::RestartGuard(blocker["host"].as_str()?.strip_prefix("host-")?.parse().ok()?))
}

/// Every host's journal says the same of the last rollout, as the fleet does. Nobody may be running.
#[track_caller]
pub(super) fn assert_journals_tell(lab: &Lab, settled: &Settled) {
    for host in lab.fleet.hosts() {
        let record = newest_record(&host);
        let told = (record["last_k"].as_u64(), record["mode"]["serve"]["epoch"].as_u64());
        assert_eq!(told, (Some(settled.last_k), Some(settled.epoch)), "{}: {record}", host.name());
        assert_eq!(record["history"], "whole", "{}", host.name());
    }
}

/// A journal's anchor has two slots, each with a number of its own and the host's whole record; the higher one counts.
#[track_caller]
fn newest_record(host: &Host) -> Value {
    const SLOT_BYTES: usize = 4096;
    const NUMBER_AT: usize = 12;
    const RECORD: &[u8] = br#"{"format""#;
    let bytes = fs::read(host.link().with_file_name("journal").join("anchor")).unwrap();
    let slot = |slot: &[u8]| {
        let number = u64::from_be_bytes(*slot[NUMBER_AT..].first_chunk()?);
        let start = slot.windows(RECORD.len()).position(|window| window == RECORD)?;
        let record =
            serde_json::Deserializer::from_slice(&slot[start..]).into_iter::<Value>().next()?.ok()?;
        Some((number, record))
    };
    bytes.chunks(SLOT_BYTES).filter_map(slot).max_by_key(|(number, _)| *number).unwrap().1
}

/// No daemon has panicked, and how often guards have fenced.
#[track_caller]
pub(super) fn read_logs(lab: &Lab) -> usize {
    let logs = lab.daemons().into_iter().map(|(name, daemon)| (name, daemon.log()));
    let count = |(name, log): (String, String)| {
        let panic = log.lines().find(|line| line.contains("panicked at"));
        assert_eq!(panic, None, "{name}");
        log.matches(": fenced, as the deadline passed").count()
    };
    logs.map(count).sum()
}
