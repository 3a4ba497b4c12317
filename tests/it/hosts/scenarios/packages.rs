//! What the packages do to a host.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::harness::{PATIENCE, wait_until};
use crate::hosts::server::Server;
use crate::hosts::site::{APP_PORT, Site, WEB, WEB_PORT, install};

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
        site.coordinator.property("muster-coordinator", "StatusText").contains("leads app, web").then_some(())
    });
    // What an operator does on the host needs no key of the agent's.
    assert!(host.must("muster-agent status web").contains("permit   none"));
    // A stranger on the host may not ask the guard.
    let refused = host.run("setpriv --reuid=nobody --clear-groups muster-agent status web");
    assert_ne!(refused.code, 0, "{refused}");
}

/// Guard and agent go on in the new version, and every question in between is answered.
pub(super) fn upgrade(site: &Site<'_>) {
    let host = site.host(1);
    let serving = host.serves(WEB_PORT).expect("it serves");
    let before = ["muster-guard", "muster-agent"].map(|unit| host.property(unit, "MainPID"));
    while_it_serves(host, WEB_PORT, &serving, || upgrade_to(host, "two"));
    let after = ["muster-guard", "muster-agent"].map(|unit| host.property(unit, "MainPID"));
    assert!(before[0] != after[0] && before[1] != after[1], "both run anew: {before:?} {after:?}");
    site.wait_connected();
    upgrade_to(host, "one");
    site.wait_connected();
}

/// The guard's death would be the service's, so it goes on as it is, and the package says so.
pub(super) fn upgrade_under_the_guards_service(site: &Site<'_>) {
    let host = site.host(8);
    let serving = host.serves(APP_PORT).expect("it serves");
    let (guard, service) = (host.property("muster-guard", "MainPID"), host.must("pgrep -x server"));
    let said = while_it_serves(host, APP_PORT, &serving, || upgrade_to(host, "two"));
    assert!(said.contains("the guard goes on in the old version"), "{said}");
    assert!(said.contains("app has a service that would end with the guard"), "{said}");
    assert_eq!(host.property("muster-guard", "MainPID"), guard);
    assert_eq!(host.must("pgrep -x server"), service);
    site.wait_connected();
    upgrade_to(host, "one");
    site.wait_connected();
}

pub(super) fn removal(site: &Site<'_>) {
    let host = site.host(2);
    let serving = host.serves(WEB_PORT).expect("it serves");
    while_it_serves(host, WEB_PORT, &serving, || host.must("apt-get remove --yes muster-agent"));
    assert_ne!(host.run("systemctl is-active muster-guard muster-agent").code, 0);
    assert_eq!(host.serves(WEB_PORT).as_deref(), Some(serving.as_str()));
    install(host, &["muster-agent"]);
    site.wait_connected();
    wait_until("it is heard again", PATIENCE, || {
        host.must("muster-agent status web").contains("lease    none").then_some(())
    });
    site.muster(&format!("status --fleet {WEB}")).expect_code(0);
}

fn upgrade_to(host: &Server, which: &str) -> String {
    let done = host.run(&format!(
        "apt-get install --yes --allow-downgrades --no-install-recommends /packages/{which}/muster-agent_*.deb 2>&1"
    ));
    done.expect_code(0).stdout
}

/// Does something, and asks the service all the while.
#[track_caller]
fn while_it_serves<T: Send>(host: &Server, port: u16, release: &str, act: impl FnOnce() -> T + Send) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut answers = 0_u32;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(host.serves(port).as_deref(), Some(release), "after {answers} answers");
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
