//! A host whose time of day is wrong.

use crate::harness::{ClockOff, Clocks, PATIENCE, wait_until};
use crate::hosts::server::Server;
use crate::hosts::site::{APP, APP_PORT, Site, WEB, WEB_PORT};

const HOUR_S: i64 = 3600;

/// Deadlines are on another clock, so what is served goes on and the host stays in touch. Orders are not valid at its time: it refuses them by
/// name, and nobody flips. Set right, it takes part.
///
/// The machines share the kernel's clock, so what its agent and guard read is put before libc.
pub(super) fn an_hour_off(site: &Site<'_>) {
    let host = site.host(6);
    let serving = host.serves(WEB_PORT).expect("it serves");
    let clock = Clocks::build(&site.ground.packages).clock(host.name(), ClockOff::default());
    let environment: String = clock
        .environment_in("/packages")
        .iter()
        .map(|(name, value)| format!("Environment=\\\"{name}={value}\\\"\\n"))
        .collect();
    for unit in UNITS {
        host.must(&format!(
            "mkdir -p /run/systemd/system/{unit}.service.d && \
             printf \"[Service]\\n{environment}\" > /run/systemd/system/{unit}.service.d/clock.conf"
        ));
    }
    host.must(RESTART);
    site.wait_connected();
    site.muster(&format!("deploy 1 --fleet {APP}")).expect_code(0);

    for seconds in [-HOUR_S, HOUR_S] {
        clock.step(seconds);
        let refused = site.muster(&format!("flip 1 --fleet {APP}"));
        assert_ne!(refused.code, 0, "{seconds}: {refused}");
        refused.expect_blocker("order-expired", host.name(), "");
        site.assert_all_serve(APP_PORT, "2");
        site.assert_all_serve(WEB_PORT, &serving);
        // A new guard, and a new connection, at the wrong time.
        host.must(RESTART);
        if seconds < 0 {
            wait_left_out(site, host);
            clock.step(0);
        }
        site.wait_connected();
        site.assert_all_serve(WEB_PORT, &serving);
    }

    clock.step(0);
    site.flip(APP, "1");
    site.assert_all_serve(APP_PORT, "1");
    for unit in UNITS {
        host.must(&format!("rm -r /run/systemd/system/{unit}.service.d/clock.conf"));
    }
    host.must(RESTART);
    site.wait_connected();
    site.flip(APP, "2");
    site.assert_all_serve(APP_PORT, "2");
    wait_until("the fleet has no blockers", PATIENCE, || {
        (site.muster(&format!("status --check --fleet {WEB}")).code == 0).then_some(())
    });
}

const UNITS: [&str; 2] = ["muster-guard", "muster-agent"];

const RESTART: &str = "systemctl daemon-reload && systemctl restart muster-guard muster-agent";

/// The certificates of this fleet are younger than its clock: it says so, and is a host that is missing.
#[track_caller]
fn wait_left_out(site: &Site<'_>, host: &Server) {
    wait_until("the agent's log says why it does not connect", PATIENCE, || {
        let log = host.must("journalctl --unit muster-agent --no-pager --output cat | tail -20");
        log.contains("not valid yet").then_some(())
    });
    let refused = site.muster(&format!("flip 1 --fleet {APP}"));
    assert_ne!(refused.code, 0, "{refused}");
    refused.expect_blocker("host-missing", host.name(), "");
}
