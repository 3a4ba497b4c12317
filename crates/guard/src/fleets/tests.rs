//! Link fleets, without a socket.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Instant;

use muster_model::HostName;
use tempfile::TempDir;

use super::*;
use crate::config::{FleetConfig, GuardConfig, HooksConfig};
use crate::protocol::{DriverKind, LinkState};

struct Bench {
    folder: TempDir,
    settings: Settings,
    fleet: FleetName,
}

const EPOCH: Epoch = Epoch(3);

/// Longer than anything takes that works, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must become true.
#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

impl Bench {
    fn new() -> Self {
        let private = Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let fleet = FleetName::new("smars").unwrap();
        let at = folder.path().join("fleets/smars");
        for digest in [one(), two()] {
            let release = at.join("releases").join(digest.hex());
            DirBuilder::new().recursive(true).mode(0o700).create(release).unwrap();
        }
        let config = GuardConfig {
            host: HostName::new("host-1").unwrap(),
            state_dir: folder.path().to_owned(),
            socket: folder.path().join("guard.sock"),
            exec_shim: None,
            allowed_uids: Vec::new(),
            fleets: vec![FleetConfig {
                name: fleet.clone(),
                link: at.join("current"),
                releases: at.join("releases"),
                driver: Driver::Link,
                hooks: HooksConfig::default(),
            }],
        };
        Self { folder, settings: config.validate().unwrap(), fleet }
    }

    fn guard(&self) -> InProcess {
        InProcess::new(&self.settings).unwrap()
    }

    fn guard_in_boot(&self, boot: &str) -> Fleets {
        Fleets::open(&self.settings, BootId::new(boot).unwrap(), &(Arc::new(|_| {}) as Events)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("fleets/smars").join(name)
    }
}

fn one() -> Digest {
    Digest::of(b"one")
}

fn two() -> Digest {
    Digest::of(b"two")
}

#[test]
fn opens_closes_and_does_neither_twice() {
    let bench = Bench::new();
    let guard = bench.guard();
    let closed = guard.close(&bench.fleet, None).unwrap();
    assert!(closed.is_closed());
    assert_eq!((closed.driver, closed.generation), (DriverKind::Link, 0));

    let open = guard.open(&bench.fleet, EPOCH, one()).unwrap();
    assert!(open.serves(EPOCH, one()));
    assert_eq!(guard.open(&bench.fleet, EPOCH, one()).unwrap(), open);
    assert_eq!(guard.status(&bench.fleet).unwrap(), open);
    assert!(bench.path("current").is_dir());

    for (epoch, digest) in [(EPOCH, two()), (Epoch(4), one())] {
        let error = guard.open(&bench.fleet, epoch, digest).unwrap_err();
        assert!(matches!(error, GuardError::NotClosed { .. }), "{error}");
        assert_eq!(guard.status(&bench.fleet).unwrap(), open);
    }
    let closed = guard.close(&bench.fleet, None).unwrap();
    assert!(closed.is_closed() && closed.generation > open.generation);
    assert_eq!(guard.close(&bench.fleet, None).unwrap(), closed);
    assert!(guard.open(&bench.fleet, Epoch(4), two()).unwrap().serves(Epoch(4), two()));
}

#[test]
fn refuses_by_name_and_changes_nothing() {
    let bench = Bench::new();
    let guard = bench.guard();
    let other = FleetName::new("other").unwrap();
    assert!(matches!(guard.open(&other, EPOCH, one()), Err(GuardError::UnknownFleet { .. })));
    let missing = Digest::of(b"three");
    assert!(matches!(guard.open(&bench.fleet, EPOCH, missing), Err(GuardError::ReleaseMissing { .. })));
    assert!(guard.status(&bench.fleet).unwrap().is_closed());
    assert!(!bench.path("permit.json").exists());
}

#[test]
fn whatever_takes_the_links_place_is_named_and_kept() {
    let bench = Bench::new();
    let guard = bench.guard();
    fs::create_dir(bench.path("current")).unwrap();
    fs::write(bench.path("current/precious"), "x").unwrap();
    assert!(matches!(guard.open(&bench.fleet, EPOCH, one()), Err(GuardError::LinkObstructed { .. })));
    assert!(matches!(guard.close(&bench.fleet, None), Err(GuardError::LinkObstructed { .. })));
    assert!(bench.path("current/precious").exists());
    assert!(!bench.path("permit.json").exists());

    fs::remove_dir_all(bench.path("current")).unwrap();
    fs::write(bench.path("current"), "x").unwrap();
    assert!(matches!(guard.open(&bench.fleet, EPOCH, one()), Err(GuardError::LinkObstructed { .. })));

    fs::remove_file(bench.path("current")).unwrap();
    symlink("/usr", bench.path("current")).unwrap();
    assert!(matches!(guard.open(&bench.fleet, EPOCH, one()), Err(GuardError::NotClosed { .. })));
    assert!(guard.close(&bench.fleet, None).unwrap().is_closed());
}

#[test]
fn a_link_that_went_is_seen_and_made_again_on_request() {
    let bench = Bench::new();
    let guard = bench.guard();
    guard.open(&bench.fleet, EPOCH, one()).unwrap();
    fs::remove_file(bench.path("current")).unwrap();
    let state = guard.status(&bench.fleet).unwrap();
    assert_eq!(state.link, LinkState::Absent);
    assert!(state.open.is_some() && !state.serves(EPOCH, one()));
    assert!(guard.open(&bench.fleet, EPOCH, one()).unwrap().serves(EPOCH, one()));

    fs::remove_file(bench.path("current")).unwrap();
    symlink(format!("releases/{}", two().hex()), bench.path("current")).unwrap();
    assert!(matches!(guard.open(&bench.fleet, EPOCH, one()), Err(GuardError::NotClosed { .. })));
}

#[test]
fn a_restart_in_the_same_boot_keeps_what_was_permitted() {
    let bench = Bench::new();
    bench.guard().open(&bench.fleet, EPOCH, one()).unwrap();
    assert!(bench.guard().status(&bench.fleet).unwrap().serves(EPOCH, one()));
}

#[test]
fn a_reboot_revokes_before_anyone_can_ask() {
    let bench = Bench::new();
    let (first, second) = ("00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002");
    bench.guard_in_boot(first).open(&bench.fleet, EPOCH, one()).unwrap();
    assert!(bench.guard_in_boot(first).status(&bench.fleet).unwrap().serves(EPOCH, one()));
    let guard = bench.guard_in_boot(second);
    assert!(!bench.path("current").exists() && !bench.path("permit.json").exists());
    assert!(guard.status(&bench.fleet).unwrap().is_closed());
}

#[test]
fn a_link_without_a_readable_permit_does_not_survive_a_start() {
    let bench = Bench::new();
    for spoil in ["", "{\"boot_id\":", "{}"] {
        bench.guard().open(&bench.fleet, EPOCH, one()).unwrap();
        fs::write(bench.path("permit.json"), spoil).unwrap();
        assert!(bench.guard().status(&bench.fleet).unwrap().is_closed(), "{spoil}");
    }
    bench.guard().open(&bench.fleet, EPOCH, one()).unwrap();
    fs::remove_file(bench.path("permit.json")).unwrap();
    assert!(bench.guard().status(&bench.fleet).unwrap().is_closed());
}

#[test]
fn a_permit_spoilt_while_open_permits_nothing_and_can_be_closed() {
    let bench = Bench::new();
    let guard = bench.guard();
    guard.open(&bench.fleet, EPOCH, one()).unwrap();
    fs::write(bench.path("permit.json"), "x").unwrap();
    assert!(matches!(guard.status(&bench.fleet), Err(GuardError::Corrupt { .. })));
    assert!(guard.close(&bench.fleet, None).unwrap().is_closed());
}

#[test]
fn one_guard_for_each_state_folder() {
    let bench = Bench::new();
    let first = bench.guard();
    assert!(matches!(InProcess::new(&bench.settings), Err(GuardError::AlreadyRunning { .. })));
    drop(first);
    drop(bench.guard());
}

#[test]
fn going_down_opens_nothing() {
    let bench = Bench::new();
    let guard = bench.guard_in_boot("00000000-0000-4000-8000-000000000001");
    guard.open(&bench.fleet, EPOCH, one()).unwrap();
    guard.shut_down().unwrap();
    assert!(guard.status(&bench.fleet).unwrap().serves(EPOCH, one()));
    guard.close(&bench.fleet, None).unwrap();
    assert!(matches!(guard.open(&bench.fleet, EPOCH, one()), Err(GuardError::ShuttingDown)));
}

mod deadlines;
mod ties;

#[test]
fn a_request_whose_asker_is_gone_opens_and_arms_nothing() {
    let bench = Bench::new();
    let guard = bench.guard();
    let open = || guard.open(&bench.fleet, EPOCH, one());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(theirs);
    let refused = crate::asker::on_behalf_of(&ours, open).unwrap_err();
    assert!(matches!(refused, GuardError::AskerGone { .. }), "{refused}");
    assert!(guard.status(&bench.fleet).unwrap().is_closed());
    assert!(open().unwrap().serves(EPOCH, one()));
    let deadline = crate::timer::boot_time().after(Duration::from_secs(60));
    let ask = Armed { k: RolloutId(1), epoch: EPOCH, deadline_boot_ms: deadline, flip: None };
    let refused = crate::asker::on_behalf_of(&ours, || guard.arm(&bench.fleet, ask)).unwrap_err();
    assert!(matches!(refused, GuardError::AskerGone { .. }), "{refused}");
    assert_eq!(guard.status(&bench.fleet).unwrap().lease, crate::LeaseState::Free);
    // Whoever asked for it or not: closing takes the right to serve away.
    assert!(crate::asker::on_behalf_of(&ours, || guard.close(&bench.fleet, None)).unwrap().is_closed());
}

#[test]
fn a_fleet_that_cannot_be_recovered_is_fenced_and_keeps_no_guard_from_starting() {
    let bench = Bench::new();
    let guard = bench.guard();
    guard.open(&bench.fleet, EPOCH, one()).unwrap();
    drop(guard);
    assert!(bench.path("current").exists());
    let record = bench.path("lease.json");
    let _ = fs::remove_file(&record);
    fs::create_dir(&record).unwrap();
    let guard = bench.guard();
    until("what is not known to be permitted ends", || !bench.path("current").exists());
    let state = guard.status(&bench.fleet).unwrap();
    assert_eq!(state.fenced().map(|fence| fence.cause), Some(crate::FenceCause::RecordLost));
}

#[test]
fn a_full_disk_at_the_start_of_a_guard_stops_nothing() {
    let bench = Bench::new();
    let guard = bench.guard();
    guard.open(&bench.fleet, EPOCH, one()).unwrap();
    drop(guard);
    // Where the next record would be written, nothing can be.
    let next = bench.path("lease.next");
    let _ = fs::remove_file(&next);
    fs::create_dir(&next).unwrap();
    let guard = bench.guard();
    let state = guard.status(&bench.fleet).unwrap();
    assert!(state.serves(EPOCH, one()) && state.fenced().is_none(), "{state:?}");
}
