//! Services that systemd runs, and the gate before them.

use std::time::Instant;

use crate::harness::{PATIENCE, wait_until};
use crate::hosts::say;
use crate::hosts::site::{APP, APP_PORT, Site};

/// systemd starts it again as its unit says, and the gate lets it.
pub(super) fn crash(site: &Site<'_>) {
    let host = site.host(3);
    let before = host.property("app", "MainPID");
    host.must(&format!("kill -KILL {before}"));
    wait_until("another process serves", PATIENCE, || {
        let now = host.property("app", "MainPID");
        (now != before && host.serves(APP_PORT).as_deref() == Some("2")).then_some(())
    });
}

/// Somebody turns the link back by hand and restarts the unit: systemd asks, and is told no.
pub(super) fn old_code(site: &Site<'_>) {
    let host = site.host(4);
    let link = format!("/run/muster/fleets/{APP}/current");
    let (old, new) = (digest_of(site, "1"), digest_of(site, "2"));
    let turn_to =
        |digest: &str| host.must(&format!("ln -sfn /var/lib/muster/fleets/{APP}/releases/{digest} {link}"));
    let led_to = host.must(&format!("readlink {link}"));
    turn_to(&old);
    host.run("systemctl restart app");
    for _ in 0..20 {
        assert_ne!(host.serves(APP_PORT).as_deref(), Some("1"), "old code runs");
    }
    let said = host.must("journalctl --unit app --no-pager | tail -20");
    assert!(said.contains("not started: the link does not lead to"), "{said}");
    assert!(led_to.contains(&new), "{led_to}");
    host.must(&format!("ln -sfn {led_to} {link} && systemctl start app"));
    wait_until("the fleet's release is served", PATIENCE, || {
        (host.serves(APP_PORT).as_deref() == Some("2")).then_some(())
    });
}

/// The tree is put right by deploying again; the process that still runs from the file that is gone does not pass for it.
pub(super) fn replaced_program(site: &Site<'_>) {
    let host = site.host(5);
    let tree = format!("/var/lib/muster/fleets/{APP}/releases/{}", digest_of(site, "2"));
    host.must(&format!(
        "cp /packages/server-1 {tree}/other && chmod 755 {tree}/other && mv {tree}/other {tree}/server"
    ));
    let checked = site.muster(&format!("check --release 2 --fleet {APP}")).expect_code(10);
    checked.expect_blocker("mismatch", host.name(), "server");
    site.muster(&format!("deploy 2 --fleet {APP}")).expect_code(0);
    site.muster(&format!("check --release 2 --fleet {APP}")).expect_code(0);
    host.must("systemctl restart app");
    site.wait_all_serve(APP_PORT, "2");
}

/// Nothing is served from the end of the command on, whoever starts it and after a reboot too, until an order resumes it.
pub(super) fn halt(site: &Site<'_>) {
    let begun = Instant::now();
    site.muster(&format!("halt {APP} --reason test --yes")).expect_code(0);
    let took = begun.elapsed();
    say(&format!("          halted after {} ms, the command included", took.as_millis()));
    assert!(site.hosts.iter().all(|host| host.serves(APP_PORT).is_none()));
    let host = site.host(6);
    host.run("systemctl start app");
    assert_eq!(host.serves(APP_PORT), None, "it is halted");
    host.shut_down();
    host.boot();
    site.wait_connected();
    host.run("systemctl start app");
    assert_eq!(host.serves(APP_PORT), None, "it is halted after a reboot, too");
    site.muster(&format!("resume --fleet {APP}")).expect_code(0);
    site.wait_all_serve(APP_PORT, "2");
}

/// The name of a release's folder.
#[track_caller]
pub(super) fn digest_of(site: &Site<'_>, version: &str) -> String {
    let shown = site.muster(&format!("release show {version} --fleet {APP}")).expect_code(0);
    shown.text_at("/digest").trim_start_matches("sha256:").to_owned()
}
