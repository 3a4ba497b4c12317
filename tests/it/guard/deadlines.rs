//! Deadlines over supervised services: whatever happens to the client, the keeper or the guard, nothing is served beyond
//! them.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use muster_guard::{
    Armed, Fence, FenceCause, FlipTime, HookConfig, KillScope, LeaseState, Opened, Watch, boot_time,
};
use muster_model::{BootTime, RolloutId};

use super::*;

const K: RolloutId = RolloutId(9);

/// What a fence may take here: far more than it does, and far less than what would hold it up.
const FENCE_BOUND: Duration = Duration::from_secs(5);

/// Longer than any test takes.
const FAR_MS: u64 = 600_000;

/// Ends by nothing but SIGKILL.
const STUBBORN: &str = r#"trap "" TERM; touch "$OUT/up"; while :; do sleep 0.05; done"#;

fn ahead(ms: u64) -> BootTime {
    boot_time().after(Duration::from_millis(ms))
}

fn armed(deadline: BootTime) -> Armed {
    Armed { k: K, epoch: EPOCH, deadline_boot_ms: deadline, flip: None }
}

fn await_fence(watch: &mut Watch) -> Fence {
    loop {
        if let Event::Fenced { fence, .. } = watch.next().unwrap().unwrap() {
            return fence;
        }
    }
}

fn assert_in_time(fence: Fence, deadline: BootTime) {
    let dark = fence.dark_boot_ms.unwrap();
    assert_eq!((fence.k, fence.cause, fence.due_boot_ms), (Some(K), FenceCause::DeadlinePassed, deadline));
    assert!(deadline <= fence.begun_boot_ms && fence.begun_boot_ms <= dark);
    assert!(dark.since(deadline) < FENCE_BOUND, "dark {:?} after the deadline", dark.since(deadline));
}

impl Host {
    fn arm(&self, ahead_ms: u64) -> BootTime {
        let deadline = ahead(ahead_ms);
        self.client.arm(&self.fleet, armed(deadline)).unwrap();
        deadline
    }

    fn assert_dark(&self) {
        let state = self.state();
        assert!(state.is_closed() && !self.link_exists(), "{state:?}");
    }
}

#[test]
fn a_family_that_hides_is_fenced_at_the_deadline() {
    let host = Host::new(FAMILY);
    let main = host.open_until_up();
    host.await_family();
    let mut watch = host.client.watch().unwrap();
    let deadline = host.arm(400);
    assert!(is_alive(main));
    let fence = await_fence(&mut watch);
    assert!(host.tagged().is_empty() && !is_alive(main), "none may be alive once it is told");
    assert_in_time(fence, deadline);
    host.assert_dark();

    let error = host.client.renew(&host.fleet, K, ahead(FAR_MS)).unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::Fenced), "{error}");
    assert!(host.client.disarm(&host.fleet, K).unwrap().fenced().is_some());
    host.assert_dark();
    assert_eq!(host.open().lease, LeaseState::Free);
}

#[test]
fn a_service_that_is_about_to_be_started_again_has_a_deadline_too() {
    let host = Host::with(PLAIN, |service| service.restart_delay_ms = 30_000);
    let main = host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    kill(main, Signal::KILL);
    until("the guard waits to start it again", || {
        matches!(host.state().service, Some(ServiceState::Restarting { .. }))
    });
    let deadline = host.arm(400);
    assert!(matches!(host.state().lease, LeaseState::Armed(_)));
    assert_in_time(await_fence(&mut watch), deadline);
    // Nothing is waited for any more: it does not come back without a lease.
    host.assert_dark();
    assert!(matches!(host.state().service, Some(ServiceState::Stopped)));
}

#[test]
fn renewals_keep_a_service_alive_and_an_end_to_them_fences_it() {
    let host = Host::new(PLAIN);
    let main = host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    let first = host.arm(600);
    let mut deadline = first;
    while boot_time() < first.after(Duration::from_millis(300)) {
        deadline = ahead(600);
        host.client.renew(&host.fleet, K, deadline).unwrap();
        let error = host.client.renew(&host.fleet, RolloutId(10), ahead(FAR_MS)).unwrap_err();
        assert_eq!(error.code(), Some(RefusalCode::Armed), "{error}");
        assert!(is_alive(main));
    }
    assert_in_time(await_fence(&mut watch), deadline);
    assert!(!is_alive(main));
}

/// The environment by which this test starts itself as the client that is then stopped or killed.
const CLIENT_OF: &str = "MUSTER_TEST_CLIENT_OF";

#[test]
fn an_armed_service_is_fenced_whatever_becomes_of_the_client() {
    if let Some(socket) = std::env::var_os(CLIENT_OF) {
        return be_a_client(Path::new(&socket));
    }
    for signal in [Signal::STOP, Signal::KILL] {
        let host = Host::new(STUBBORN);
        let main = host.open_until_up();
        let mut watch = host.client.watch().unwrap();
        let name = "guard::deadlines::an_armed_service_is_fenced_whatever_becomes_of_the_client";
        let mut client = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CLIENT_OF, host.path("run/guard.sock"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the client has armed", || matches!(host.state().lease, LeaseState::Armed(_)));
        kill(client.id().try_into().unwrap(), signal);
        let fence = await_fence(&mut watch);
        assert_in_time(fence, fence.due_boot_ms);
        assert!(!is_alive(main));
        host.assert_dark();
        client.kill().unwrap();
        client.wait().unwrap();
    }
}

/// Arms, renews once, and then waits for a closing that would take longer than the lease.
fn be_a_client(socket: &Path) {
    let client = GuardClient::new(socket);
    let fleet = FleetName::new("smars").unwrap();
    client.arm(&fleet, armed(ahead(1_000))).unwrap();
    client.renew(&fleet, K, ahead(1_500)).unwrap();
    let _watch = client.watch().unwrap().count();
}

#[test]
fn requests_that_block_hold_no_fence_up() {
    let host = Host::with_config(STUBBORN, |config, _| {
        let script = r#"touch "$OUT/quiescing"; exec sleep 600"#;
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        config.fleets[0].hooks.quiesce = Some(HookConfig { command, timeout_ms: FAR_MS });
    });
    let main = host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    // A request that does not end, and connections that do not finish theirs.
    let halves: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = UnixStream::connect(host.path("run/guard.sock")).unwrap();
            stream.write_all(&[0, 0, 1, 0, b'{']).unwrap();
            stream
        })
        .collect();
    std::thread::scope(|scope| {
        let quiescing = scope.spawn(|| host.client.quiesce(&host.fleet));
        until("the hook runs", || host.path("quiescing").exists());
        let deadline = host.arm(500);
        assert_in_time(await_fence(&mut watch), deadline);
        assert!(!is_alive(main));
        host.assert_dark();
        let error = quiescing.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("cut short"), "{error}");
    });
    drop(halves);
}

#[test]
fn a_drain_ends_before_the_deadline_that_runs() {
    let host = Host::new(STUBBORN);
    let main = host.open_until_up();
    let deadline = host.arm(1_500);
    let closed = host.client.close(&host.fleet, Some(Duration::from_secs(60))).unwrap();
    assert!(closed.is_closed() && !is_alive(main));
    assert!(boot_time().since(deadline) < FENCE_BOUND, "the drain went on beyond the deadline");
    // On a machine that is slow enough the fence comes first; then the deadline has not been lifted.
    match closed.lease {
        LeaseState::Free => {}
        LeaseState::Fenced(fence) => assert_in_time(fence, deadline),
        LeaseState::Armed(_) | LeaseState::Decided(_) => panic!("{closed:?}"),
    }
}

#[test]
fn a_deadline_that_passes_during_a_drain_fences() {
    let host = Host::new(STUBBORN);
    let main = host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    // A keeper that is stopped neither asks the service nor kills it.
    kill(parent(main).unwrap(), Signal::STOP);
    let deadline = host.arm(1_000);
    let closed = host.client.close(&host.fleet, Some(Duration::from_secs(60))).unwrap();
    let fence = await_fence(&mut watch);
    assert_in_time(fence, deadline);
    assert!(closed.is_closed() && !is_alive(main));
    assert_eq!(closed.fenced().map(|fence| fence.due_boot_ms), Some(deadline), "the closing lifts nothing");
}

#[test]
fn a_drain_may_be_shorter_or_longer_than_configured() {
    let host = Host::with(STUBBORN, |service| service.stop_timeout_ms = 600_000);
    let main = host.open_until_up();
    assert!(host.client.close(&host.fleet, Some(Duration::ZERO)).unwrap().is_closed());
    assert!(!is_alive(main));
    let error = host.client.close(&host.fleet, Some(Duration::from_secs(3600))).unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::BadRequest), "{error}");
}

#[test]
fn killing_the_guard_while_armed_kills_the_service_and_the_deadline_is_taken_up() {
    let mut host = Host::new(PLAIN);
    let main = host.open_until_up();
    let deadline = host.arm(5_000);
    host.kill_guard(Signal::KILL);
    until("the service is gone", || !is_alive(main));
    host.restart_guard();
    assert_eq!(host.state().lease, LeaseState::Armed(armed(deadline)));
    assert_eq!(host.state().service, Some(ServiceState::Stopped));
    let mut watch = host.client.watch().unwrap();
    assert_in_time(await_fence(&mut watch), deadline);
    host.assert_dark();
}

#[test]
fn a_guard_that_comes_back_after_the_deadline_is_dark_when_it_answers() {
    let mut host = Host::new(PLAIN);
    host.open_until_up();
    let deadline = host.arm(500);
    host.kill_guard(Signal::KILL);
    until("the deadline has passed", || boot_time() > deadline);
    host.restart_guard();
    host.assert_dark();
    let state = host.state();
    assert_eq!(state.fenced().map(|fence| (fence.k, fence.due_boot_ms)), Some((Some(K), deadline)));
    assert!(host.open().serves(EPOCH, digest()));
}

#[test]
fn stopping_the_guard_while_armed_fences() {
    let mut host = Host::new(PLAIN);
    let main = host.open_until_up();
    host.arm(FAR_MS);
    assert_eq!(host.kill_guard(Signal::TERM).code(), Some(0));
    assert!(!is_alive(main) && !host.link_exists());
    host.restart_guard();
    assert_eq!(host.state().fenced().map(|fence| fence.cause), Some(FenceCause::GuardStopped));
}

#[test]
fn a_decided_service_is_replaced_at_its_time() {
    let host = Host::new(r#"touch "$OUT/up"; echo "$MUSTER_EPOCH" >> "$OUT/epochs"; exec sleep 600"#);
    let to = Opened { epoch: EPOCH.next(), digest: Digest::of(b"next") };
    let release = host.path("fleets/smars/releases").join(to.digest.hex());
    fs::create_dir(&release).unwrap();
    fs::copy(host.path("fleets/smars/releases").join(digest().hex()).join("run"), release.join("run"))
        .unwrap();
    let old = host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    let at = ahead(700);
    let flip = FlipTime { at_boot_ms: at, epsilon_ms: 20 };
    host.client.arm(&host.fleet, Armed { flip: Some(flip), ..armed(ahead(FAR_MS)) }).unwrap();
    host.client.decide(&host.fleet, K, at, to).unwrap();
    let error = host.client.disarm(&host.fleet, K).unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::Decided), "{error}");
    while boot_time() < at {
        assert!(is_alive(old) || boot_time() >= at, "stopped before its time");
    }
    let Event::Flipped { flip, .. } = watch.next().unwrap().unwrap() else { panic!("no flip") };
    assert_eq!((flip.from.unwrap().epoch, flip.to, flip.at_boot_ms), (EPOCH, to, at));
    assert!(at <= flip.closed_boot_ms && flip.closed_boot_ms <= flip.opened_boot_ms);
    let state = host.state();
    assert!(state.serves(to.epoch, to.digest) && !is_alive(old), "{state:?}");
    assert_eq!((state.lease, state.flipped), (LeaseState::Free, Some(flip)));
    until("both have run", || fs::read_to_string(host.path("epochs")).is_ok_and(|text| text == "5\n6\n"));
}

#[test]
fn a_halt_cuts_an_opening_short_and_survives_the_guard() {
    let mut host = Host::with_config(PLAIN, |config, _| {
        let command = ["sleep", "600"].map(str::to_owned).to_vec();
        config.fleets[0].hooks.health = Some(muster_guard::HealthConfig {
            check: muster_guard::HealthCheck::Command(command),
            timeout_ms: 60_000,
            interval_ms: 1,
            retries: 1_000,
        });
    });
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| host.client.open(&host.fleet, EPOCH, digest()));
        until("the service is up", || host.path("up").exists());
        let main = host.state().service;
        let halted = host.client.halt(&host.fleet, "test").unwrap();
        assert!(main.is_some_and(ServiceState::may_be_alive) && halted.halted.is_some());
        let error = opening.join().unwrap().unwrap_err();
        assert_eq!(error.code(), Some(RefusalCode::Halted), "{error}");
    });
    host.assert_dark();
    host.kill_guard(Signal::KILL);
    host.restart_guard();
    let halted = host.state().halted.unwrap();
    assert_eq!(halted.reason, "test");
    let error = host.client.open(&host.fleet, EPOCH, digest()).unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::Halted), "{error}");
    let resumed = host.client.resume(&host.fleet, halted.id).unwrap();
    assert!(resumed.halted.is_none() && resumed.is_closed());
}

#[test]
fn a_drill_measures_a_fence_and_leaves_the_service_alone() {
    let host = Host::new(PLAIN);
    let main = host.open_until_up();
    let began = Instant::now();
    let drill = host.client.drill(&host.fleet, 3).unwrap();
    let took = began.elapsed();
    assert_eq!((drill.runs, drill.on_fence_ms_max), (3, 0));
    assert!(matches!(drill.kill, Some(KillScope::Cgroup | KillScope::Keeper)), "{drill:?}");
    assert!(
        drill.fence_ms >= 1 && u128::from(drill.fence_ms) <= took.as_millis() + 1,
        "{drill:?} in {took:?}"
    );
    assert!(host.state().serves(EPOCH, digest()) && host.main_pid() == main);
    let mark = format!("MUSTER_RUN_ID={}-", host.guard.id());
    let of_drill = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        cmdline(*pid).contains("drill-service") && String::from_utf8_lossy(&environ).contains(&mark)
    };
    let left: Vec<_> = living().into_iter().filter(of_drill).collect();
    assert!(left.is_empty(), "{left:?}");
    let kept = host.path("state/fleets/smars");
    let names: Vec<_> = fs::read_dir(kept).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().ends_with(".run.json")), "{names:?}");
    assert!(!host.path("fleets/smars/.current.drill").exists());
}

#[test]
fn one_fleet_does_not_wait_for_another() {
    let host = Host::with_config(STUBBORN, |config, folder| {
        let at = folder.join("fleets/other");
        fs::create_dir_all(at.join("releases").join(digest().hex())).unwrap();
        config.fleets.push(FleetConfig {
            name: FleetName::new("other").unwrap(),
            link: at.join("current"),
            releases: at.join("releases"),
            driver: Driver::Link,
            hooks: HooksConfig::default(),
        });
    });
    let main = host.open_until_up();
    let other = FleetName::new("other").unwrap();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| host.client.close(&host.fleet, Some(Duration::from_secs(120))));
        until("the service drains", || host.state().open.is_none());
        assert!(host.client.open(&other, EPOCH, digest()).unwrap().serves(EPOCH, digest()));
        assert!(host.client.close(&other, None).unwrap().is_closed());
        assert!(is_alive(main) && !closing.is_finished());
        host.client.halt(&host.fleet, "enough").unwrap();
        assert!(closing.join().unwrap().unwrap().is_closed());
    });
}
