//! Hosts that go down, come back, or hang.

use std::thread;

use crate::harness::{PATIENCE, wait_until};
use crate::hosts::server::Server;
use crate::hosts::site::{APP, APP_PORT, Site, WEB, WEB_PORT};

/// A reboot takes it away.
const DROP_IN: &str = "/run/systemd/system/muster-agent.service.d";

/// The link is gone after a reboot, and comes back when the host has been heard.
pub(super) fn reboot(site: &Site<'_>) {
    let host = site.host(5);
    let serving = host.serves(WEB_PORT).expect("it serves");
    host.must("systemctl disable --quiet muster-agent");
    host.shut_down();
    host.boot();
    host.must("systemctl is-active muster-guard nginx");
    assert_eq!(host.serves(WEB_PORT), None, "nobody has admitted it");
    host.run("systemctl start app");
    assert_eq!(host.serves(APP_PORT), None, "nobody has admitted it");
    host.must("systemctl enable --quiet --now muster-agent");
    site.wait_all_serve(WEB_PORT, &serving);
    site.wait_all_serve(APP_PORT, "2");
}

pub(super) fn power_off(site: &Site<'_>) {
    let host = site.host(6);
    let serving = host.serves(WEB_PORT).expect("it serves");
    host.power_off();
    let missing = site.muster("check --release 1 --timeout 3s").expect_code(11);
    missing.expect_blocker("host-missing", host.name(), "");
    host.boot();
    site.wait_all_serve(WEB_PORT, &serving);
    site.wait_all_serve(APP_PORT, "2");
    site.wait_connected();
}

/// Whatever comes of the flip, no two releases are served at one time, and all hosts end in the same one.
pub(super) fn power_off_in_a_flip(site: &Site<'_>) {
    let host = site.host(5);
    let before = host.serves(WEB_PORT).expect("it serves");
    site.release(WEB, "3", "echo 3 > release.txt");
    site.muster("deploy 3").expect_code(0);
    thread::scope(|scope| {
        let flip = scope.spawn(|| site.muster("flip 3 --output text 2>&1"));
        // The rollout is under way, however far it is.
        wait_until("the rollout begins", PATIENCE, || {
            let phase = site.muster("status").json()["phase"].as_str().unwrap_or_default().to_owned();
            (phase != "settled" || flip.is_finished()).then_some(())
        });
        host.power_off();
        while !flip.is_finished() {
            assert_one_release(site, WEB_PORT);
        }
    });
    assert_one_release(site, WEB_PORT);
    host.boot();
    site.wait_connected();
    wait_until("all hosts serve the same", 3 * PATIENCE, || {
        let served: Vec<_> = site.hosts.iter().map(|host| host.serves(WEB_PORT)).collect();
        (served.iter().all(|it| it.is_some() && *it == served[0])).then_some(())
    });
    let now = host.serves(WEB_PORT).expect("it serves");
    assert!(now == before || now == "3", "{now}");
}

/// The host has promised to stop, and is told to; its agent dies before it does. What was served there is not started after the boot, by
/// nobody, and the host opens with the others' release.
pub(super) fn reboot_while_armed(site: &Site<'_>) {
    let host = site.host(5);
    site.muster(&format!("deploy 1 --fleet {APP}")).expect_code(0);
    let_agent_die_at(site, host, "agent.close.before-guard");
    thread::scope(|scope| {
        let flip = scope.spawn(|| site.muster(&format!("flip 1 --fleet {APP}")));
        wait_until_dead(host);
        assert!(host.must(&format!("muster-agent status {APP}")).contains("lease    armed"));
        host.power_off();
        host.boot();
        host.run("systemctl start app");
        while !flip.is_finished() {
            assert_one_release(site, APP_PORT);
        }
        flip.join().unwrap().expect_code(0);
    });
    site.wait_all_serve(APP_PORT, "1");
    site.flip(APP, "2");
    site.assert_all_serve(APP_PORT, "2");
}

/// Once before the flip is decided, and once after it: whatever comes of it, the host starts nothing that the others do not serve.
pub(super) fn power_off_armed_and_closed(site: &Site<'_>) {
    let host = site.host(6);
    for point in ["agent.armed.before-ack", "agent.closed.persisted"] {
        site.muster(&format!("deploy 1 --fleet {APP}")).expect_code(0);
        let_agent_die_at(site, host, point);
        let flipped = thread::scope(|scope| {
            let flip = scope.spawn(|| site.muster(&format!("flip 1 --fleet {APP}")));
            wait_until_dead(host);
            let lease = host.must(&format!("muster-agent status {APP}"));
            assert_eq!(
                lease.contains("lease    armed"),
                point == "agent.armed.before-ack",
                "{point}: {lease}"
            );
            host.power_off();
            host.boot();
            while !flip.is_finished() {
                assert_one_release(site, APP_PORT);
            }
            flip.join().unwrap().code == 0
        });
        assert!(flipped || point == "agent.armed.before-ack", "what is decided is completed");
        site.wait_connected();
        site.wait_all_serve(APP_PORT, if flipped { "1" } else { "2" });
        if flipped {
            site.flip(APP, "2");
        }
        site.assert_all_serve(APP_PORT, "2");
    }
}

/// It has come up, nobody has admitted it, and it loses its power again.
pub(super) fn power_off_dark(site: &Site<'_>) {
    let host = site.host(6);
    let serving = host.serves(WEB_PORT).expect("it serves");
    host.must("systemctl disable --quiet muster-agent");
    for boot in ["first", "second"] {
        host.power_off();
        host.boot();
        host.must("systemctl is-active muster-guard nginx");
        host.run("systemctl start app");
        assert_eq!((host.serves(WEB_PORT), host.serves(APP_PORT)), (None, None), "the {boot} boot");
    }
    host.must("systemctl enable --quiet --now muster-agent");
    site.wait_all_serve(WEB_PORT, &serving);
    site.wait_all_serve(APP_PORT, "2");
}

/// Starts a host's agent again so that it dies at this point and stays dead until the next boot, or [`let_agent_live`].
#[track_caller]
pub(super) fn let_agent_die_at(site: &Site<'_>, host: &Server, point: &str) {
    host.must(&format!(
        "mkdir -p {DROP_IN} && \
         printf '[Service]\\nEnvironment=MUSTER_CRASH_AT={point}\\nRestart=no\\n' > {DROP_IN}/crash.conf && \
         systemctl daemon-reload && systemctl restart muster-agent"
    ));
    site.wait_connected();
}

#[track_caller]
pub(super) fn let_agent_live(host: &Server) {
    host.must(&format!("rm -r {DROP_IN} && systemctl daemon-reload && systemctl restart muster-agent"));
}

#[track_caller]
pub(super) fn wait_until_dead(host: &Server) {
    wait_until("the agent dies", PATIENCE, || {
        (host.property("muster-agent", "ActiveState") == "failed").then_some(())
    });
}

/// All that is served at about one time. A host that is asked later may have gone on; what it has left is not served anywhere then.
#[track_caller]
fn assert_one_release(site: &Site<'_>, port: u16) {
    let look = || site.hosts.iter().filter_map(|host| host.serves(port)).collect::<Vec<_>>();
    let first = look();
    // Two looks: one that straddles the flip sees both releases, and then the second sees the new one only.
    let second = look();
    let is_one = |served: &[String]| served.iter().all(|release| *release == served[0]);
    assert!(is_one(&first) || is_one(&second), "{first:?} {second:?}");
}

/// A daemon that does not come round is killed by systemd; what is served goes on.
pub(super) fn watchdog(site: &Site<'_>) {
    let host = site.host(2);
    let serving = host.serves(WEB_PORT).expect("it serves");
    let daemons = [(host, "muster-guard"), (host, "muster-agent"), (&site.coordinator, "muster-coordinator")];
    for (server, unit) in daemons {
        let drop_in = format!("/run/systemd/system/{unit}.service.d");
        server.must(&format!(
            "mkdir -p {drop_in} && printf '[Service]\nWatchdogSec=2\n' > {drop_in}/short.conf && \
             systemctl daemon-reload && systemctl restart {unit}"
        ));
        let before = server.property(unit, "MainPID");
        server.must(&format!("kill -STOP {before}"));
        wait_until(&format!("{unit} is started again"), PATIENCE, || {
            let now = server.property(unit, "MainPID");
            (now != before && now != "0" && server.property(unit, "ActiveState") == "active").then_some(())
        });
        assert_eq!(server.property(unit, "NRestarts"), "1");
        assert_eq!(host.serves(WEB_PORT).as_deref(), Some(serving.as_str()));
        server.must(&format!("rm -r {drop_in} && systemctl daemon-reload && systemctl restart {unit}"));
    }
    site.wait_connected();
}
