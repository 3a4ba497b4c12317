//! What the packages do to a host.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::harness::{PATIENCE, wait_until};
use crate::hosts::server::Server;
use crate::hosts::site::{APP, APP_PORT, Site, TOOL_PORT, WEB, WEB_PORT, install};

use super::power;

pub(super) fn the_agent_is_nobody(site: &Site<'_>) {
    let host = site.host(1);
    let process = host.property("muster-agent", "MainPID");
    assert_eq!(host.must(&format!("stat --format=%U /proc/{process}")), "muster");
    for key in ["agent.key", "attestation.key"] {
        assert_eq!(host.must(&format!("stat --format='%U %a' /etc/muster/{key}")), "root 600");
    }
    wait_until("the unit shows that the agent is connected", PATIENCE, || {
        host.property("muster-agent", "StatusText").contains("web: connected").then_some(())
    });
    assert!(host.property("muster-guard", "StatusText").contains("answers on /run/muster/guard.sock"));
    wait_until("the unit shows what the coordinator leads", PATIENCE, || {
        site.coordinator
            .property("muster-coordinator", "StatusText")
            .contains("leads app, tool, web")
            .then_some(())
    });
    // What an operator does on the host needs no key of the agent's.
    assert!(host.must("muster-agent status web").contains("permit   none"));
    // A stranger on the host may not ask the guard.
    let refused = host.run("setpriv --reuid=nobody --clear-groups muster-agent status web");
    assert_ne!(refused.code, 0, "{refused}");
}

/// Guard and agent go on in the new version, and every question in between is answered by the process that was there before.
pub(super) fn upgrade(site: &Site<'_>) {
    let host = site.host(1);
    let serving = host.serves(WEB_PORT).expect("it serves");
    let pids = |units: [&str; 2]| units.map(|unit| host.property(unit, "MainPID"));
    let (before, app) = (pids(["muster-guard", "muster-agent"]), host.property("app", "MainPID"));
    while_it_serves(host, &[(WEB_PORT, &serving), (APP_PORT, "2")], || upgrade_to(host, "two"));
    let after = pids(["muster-guard", "muster-agent"]);
    assert!(before[0] != after[0] && before[1] != after[1], "both run anew: {before:?} {after:?}");
    assert_eq!(host.property("app", "MainPID"), app);
    site.wait_connected();
    upgrade_to(host, "one");
    site.wait_connected();
}

/// The guard's death would be the service's, so it goes on as it is, and the package says so.
pub(super) fn upgrade_under_the_guards_service(site: &Site<'_>) {
    let host = site.host(8);
    let guard = host.property("muster-guard", "MainPID");
    let service = host.must("pgrep -x -f './server 8081'");
    let said = while_it_serves(host, &[(TOOL_PORT, "2"), (APP_PORT, "2")], || upgrade_to(host, "two"));
    assert!(said.contains("the guard goes on in the old version"), "{said}");
    assert!(said.contains("tool has a service that would end with the guard"), "{said}");
    assert_eq!(host.property("muster-guard", "MainPID"), guard);
    assert_eq!(host.must("pgrep -x -f './server 8081'"), service);
    site.wait_connected();
    upgrade_to(host, "one");
    site.wait_connected();
}

/// What is served goes on, and can be started again without anybody to ask. What is installed again begins with the next boot, too.
pub(super) fn removal(site: &Site<'_>) {
    let host = site.host(2);
    let serving = host.serves(WEB_PORT).expect("it serves");
    let all = [(WEB_PORT, serving.as_str()), (APP_PORT, "2")];
    while_it_serves(host, &all, || host.must("apt-get remove --yes muster-agent"));
    assert_ne!(host.run("systemctl is-active muster-guard muster-agent").code, 0);
    host.must("systemctl restart app");
    wait_until("the unit serves again", PATIENCE, || {
        (host.serves(APP_PORT).as_deref() == Some("2")).then_some(())
    });
    assert_eq!(host.serves(WEB_PORT).as_deref(), Some(serving.as_str()));
    install(host, &["muster-agent"]);
    for unit in ["muster-guard", "muster-agent"] {
        assert_eq!(host.run(&format!("systemctl is-enabled {unit}")).stdout.trim(), "enabled", "{unit}");
    }
    site.wait_connected();
    wait_until("the fleet has no blockers", PATIENCE, || {
        (site.muster(&format!("status --fleet {WEB}")).code == 0).then_some(())
    });
    site.wait_all_serve(APP_PORT, "2");
}

/// The guard would fence if it ended, so apt says why it does not remove it, and nothing has changed.
pub(super) fn removal_while_armed(site: &Site<'_>) {
    let host = site.host(3);
    site.muster(&format!("deploy 1 --fleet {APP}")).expect_code(0);
    power::let_agent_die_at(site, host, "agent.close.before-guard");
    let service = host.property("app", "MainPID");
    thread::scope(|scope| {
        let flip = scope.spawn(|| site.muster(&format!("flip 1 --fleet {APP}")));
        power::wait_until_dead(host);
        let refused = host.run("apt-get remove --yes muster-agent 2>&1");
        assert_ne!(refused.code, 0, "{refused}");
        assert!(refused.stdout.contains("not removed, as the guard would fence"), "{refused}");
        assert!(refused.stdout.contains(&format!("{APP} is armed")), "it says which fleet: {refused}");
        assert_eq!(host.property("app", "MainPID"), service, "the service is as it was");
        assert_eq!(
            host.must("dpkg-query --show --showformat='${db:Status-Status}' muster-agent"),
            "installed"
        );
        host.must("systemctl is-active muster-guard");
        power::let_agent_live(host);
        flip.join().unwrap().expect_code(0);
    });
    site.wait_all_serve(APP_PORT, "1");
    site.flip(APP, "2");
    site.assert_all_serve(APP_PORT, "2");
}

fn upgrade_to(host: &Server, which: &str) -> String {
    let done = host.run(&format!(
        "apt-get install --yes --allow-downgrades --no-install-recommends /packages/{which}/muster-agent_*.deb 2>&1"
    ));
    done.expect_code(0).stdout
}

/// Does something, and asks the services all the while.
#[track_caller]
pub(super) fn while_it_serves<T: Send>(
    host: &Server,
    all: &[(u16, &str)],
    act: impl FnOnce() -> T + Send,
) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut answers = 0_u32;
            while !done.load(Ordering::Relaxed) {
                for (port, release) in all {
                    assert_eq!(host.serves(*port).as_deref(), Some(*release), "after {answers} answers");
                }
                answers += 1;
            }
            answers
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        done.store(true, Ordering::Relaxed);
        let answers = asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(answers > 3, "it was asked {answers} times only");
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
