//! The hooks of a fleet: when they run, what they are told, and that none of them can hold anything up.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use muster_guard::{Armed, HealthCheck, HealthConfig, HookConfig, HttpCheck, boot_time};
use muster_model::RolloutId;

use super::*;

const FAR_MS: u64 = 600_000;

/// Says which hook it is and what it was told.
fn note(folder: &Path) -> HookConfig {
    let script = format!(
        "echo \"$MUSTER_HOOK k=$MUSTER_ROLLOUT e=$MUSTER_EPOCH pid=$MUSTER_PID $PWD\" >> {}/notes",
        folder.display()
    );
    shell(&script, 10_000)
}

fn shell(script: &str, timeout_ms: u64) -> HookConfig {
    HookConfig { command: ["sh", "-c", script].map(str::to_owned).to_vec(), timeout_ms }
}

fn notes(host: &Host) -> Vec<String> {
    fs::read_to_string(host.path("notes")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn health(check: HealthCheck) -> HealthConfig {
    HealthConfig { check, timeout_ms: 1_000, interval_ms: 10, retries: 5 }
}

fn failed_hook(event: Event) -> (String, String) {
    let Event::HookFailed { hook, detail, .. } = event else { panic!("{event:?}") };
    (hook, detail)
}

#[test]
fn hooks_run_in_their_order_in_the_release_and_are_told_what_is_known() {
    let host = Host::with_config(PLAIN, |config, folder| {
        let note = || Some(note(folder));
        config.fleets[0].hooks = HooksConfig {
            quiesce: note(),
            unquiesce: note(),
            before_close: note(),
            stop: Some(shell(&format!("{}; kill -INT $MUSTER_PID", note().unwrap().command[2]), 10_000)),
            on_fence: note(),
            after_open: note(),
            rehearse: note(),
            health: Some(health(HealthCheck::Command(note().unwrap().command))),
        };
    });
    let main = host.open_until_up();
    host.client.quiesce(&host.fleet).unwrap();
    host.client.unquiesce(&host.fleet).unwrap();
    let arm = |ahead_ms| Armed {
        k: RolloutId(9),
        epoch: EPOCH,
        deadline_boot_ms: boot_time().after(Duration::from_millis(ahead_ms)),
        flip: None,
    };
    host.client.arm(&host.fleet, arm(FAR_MS)).unwrap();
    host.client.close(&host.fleet, None).unwrap();
    host.client.open(&host.fleet, EPOCH, digest()).unwrap();
    host.client.arm(&host.fleet, arm(100)).unwrap();
    until("the fence has ended", || host.state().fenced().is_some_and(|fence| fence.ended_boot_ms.is_some()));

    let release = host.path("fleets/smars/releases").join(digest().hex());
    let expected = [
        "health k= e=5 pid=".to_owned(),
        "after_open k= e=5 pid=".to_owned(),
        "quiesce k= e=5 pid=".to_owned(),
        "unquiesce k= e=5 pid=".to_owned(),
        "before_close k=9 e=5 pid=".to_owned(),
        format!("stop k=9 e=5 pid={main}"),
        "health k= e=5 pid=".to_owned(),
        "after_open k= e=5 pid=".to_owned(),
        "on_fence k=9 e=5 pid=".to_owned(),
    ]
    .map(|line| format!("{line} {}", release.canonicalize().unwrap().display()));
    assert_eq!(notes(&host), expected);
}

#[test]
fn a_hook_that_hangs_is_killed_with_its_family_and_stops_nothing() {
    let hang =
        r#"sh -c 'trap "" TERM; while :; do sleep 0.05; done' "$TAG-hook" & while :; do sleep 0.05; done"#;
    let host = Host::with_config(PLAIN, |config, _| {
        config.fleets[0].hooks = HooksConfig {
            quiesce: Some(shell(hang, 300)),
            before_close: Some(shell(hang, 300)),
            on_fence: Some(shell(hang, 300)),
            ..HooksConfig::default()
        };
    });
    host.open_until_up();
    let mut watch = host.client.watch().unwrap();
    let error = host.client.quiesce(&host.fleet).unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::HookFailed), "{error}");
    assert!(error.to_string().contains("took too long"), "{error}");
    assert!(host.tagged().iter().all(|pid| !cmdline(*pid).contains("-hook")));

    let closed = host.client.close(&host.fleet, Some(Duration::from_secs(60))).unwrap();
    assert!(closed.is_closed());
    assert_eq!(failed_hook(watch.next().unwrap().unwrap()).0, "before_close");
    host.open();
    let halted = host.client.halt(&host.fleet, "test").unwrap();
    assert!(halted.fenced().is_some_and(|fence| fence.ended_boot_ms >= fence.dark_boot_ms));
    assert!(matches!(watch.next().unwrap().unwrap(), Event::Fenced { .. }), "the fence waits for no hook");
    assert_eq!(failed_hook(watch.next().unwrap().unwrap()).0, "on_fence");
    assert!(host.tagged().is_empty());
}

#[test]
fn a_rehearsal_holds_nothing_up() {
    let mut host = Host::with_config(PLAIN, |config, _| {
        let hang = r#"touch "$OUT/hung"; while :; do sleep 0.05; done"#;
        config.fleets[0].hooks.rehearse = Some(shell(hang, FAR_MS));
    });
    host.open_until_up();
    let (client, fleet) = (GuardClient::new(&host.path("run/guard.sock")), host.fleet.clone());
    let rehearsing = std::thread::spawn(move || client.rehearse(&fleet, digest()));
    until("the self-test runs", || host.path("hung").exists());
    let busy = host.client.rehearse(&host.fleet, digest()).unwrap_err();
    assert_eq!(busy.code(), Some(muster_guard::RefusalCode::Busy));
    assert!(host.state().serves(EPOCH, digest()), "what is served goes on");
    host.client.halt(&host.fleet, "fire").unwrap();
    assert!(!host.state().serves(EPOCH, digest()), "a halt does not wait");
    assert!(!rehearsing.is_finished());
    assert_eq!(host.kill_guard(Signal::TERM).code(), Some(0));
    assert!(rehearsing.join().unwrap().is_err(), "and an end of the guard cuts it short");
}

#[test]
fn a_hook_dies_with_its_guard() {
    let mut host = Host::with_config(PLAIN, |config, _| {
        let hang =
            r#"setsid sh -c 'trap "" TERM; touch "$OUT/hung"; while :; do sleep 0.05; done' "$TAG-hook""#;
        config.fleets[0].hooks.quiesce = Some(shell(hang, FAR_MS));
    });
    host.open_until_up();
    let client = GuardClient::new(&host.path("run/guard.sock"));
    let fleet = host.fleet.clone();
    let asking = std::thread::spawn(move || client.quiesce(&fleet));
    until("the hook runs", || host.path("hung").exists());
    host.kill_guard(Signal::KILL);
    assert!(asking.join().unwrap().is_err());
    until("nothing is left of the hook", || host.tagged().is_empty());
}

#[test]
fn what_a_hook_writes_is_bounded_and_its_last_words_are_told() {
    let flood = "yes muster | head -c 30000000; echo last words >&2; exit 3";
    let host = Host::with_config(PLAIN, |config, _| {
        config.fleets[0].hooks.quiesce = Some(shell(flood, 60_000));
    });
    host.open_until_up();
    let error = host.client.quiesce(&host.fleet).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("exit code 3") && text.contains("last words"), "{text}");
    assert!(text.len() < 16 * 1024);
    let size =
        |name: &str| fs::metadata(host.path("state/fleets/smars").join(name)).map_or(0, |found| found.len());
    let (new, old) = (size("hooks.log"), size("hooks.log.1"));
    assert!(new > 0 && old > 0 && new <= 10 << 20 && old <= 10 << 20, "{new} {old}");
}

#[test]
fn a_hook_that_cannot_be_run_says_so() {
    let host = Host::with_config(PLAIN, |config, _| {
        let command = vec!["./bin/nothing".to_owned()];
        config.fleets[0].hooks.quiesce = Some(HookConfig { command, timeout_ms: 5_000 });
    });
    host.open_until_up();
    let error = host.client.quiesce(&host.fleet).unwrap_err();
    assert!(error.to_string().contains("cannot execute ./bin/nothing"), "{error}");
    assert_eq!(host.client.unquiesce(&host.fleet).unwrap().open, host.state().open, "no hook, no failure");
}

fn healthy_host(script: &str, check: HealthCheck) -> Host {
    Host::with_config(script, |config, _| config.fleets[0].hooks.health = Some(health(check)))
}

#[test]
fn a_service_that_is_not_healthy_is_not_open() {
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let command = |script: &str| HealthCheck::Command(shell(script, 1).command);
    for (check, word) in [
        (command("echo not yet; exit 7"), "not yet"),
        (HealthCheck::Tcp(nobody), "cannot connect"),
        (HealthCheck::Http(HttpCheck { address: nobody, path: "/".to_owned() }), "cannot connect"),
    ] {
        let host = healthy_host(PLAIN, check);
        let error = host.client.open(&host.fleet, EPOCH, digest()).unwrap_err();
        assert_eq!(error.code(), Some(RefusalCode::Unhealthy), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(host.state().is_closed() && !host.link_exists());
    }
}

#[test]
fn a_service_that_becomes_healthy_is_open() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let host = healthy_host(PLAIN, HealthCheck::Tcp(address));
    assert!(host.open().serves(EPOCH, digest()));
    let counting = r#"echo x >> "$OUT/tries"; test $(wc -l < "$OUT/tries") -ge 3"#;
    let host = healthy_host(PLAIN, HealthCheck::Command(shell(counting, 1).command));
    assert!(host.open().serves(EPOCH, digest()));
    assert_eq!(fs::read_to_string(host.path("tries")).unwrap().lines().count(), 3);
}

#[test]
fn a_service_that_ends_while_its_health_is_awaited_has_exited() {
    let script = r#"until test -e "$OUT/checked"; do sleep 0.01; done; exit 0"#;
    let check = HealthCheck::Command(shell(r#"touch "$OUT/checked"; exec sleep 600"#, 1).command);
    let host = Host::with_config(script, |config, _| {
        config.fleets[0].hooks.health = Some(HealthConfig { timeout_ms: 60_000, ..health(check) });
    });
    let error = host.client.open(&host.fleet, EPOCH, digest()).unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::ServiceExited), "{error}");
    assert!(host.state().is_closed());
}
