//! What has changed on the disk is not started, whether or not anybody was there to notice.

use std::fs;

use crate::harness::{PATIENCE, wait_until};
use crate::hosts::say;
use crate::hosts::server::Server;
use crate::hosts::site::{APP, APP_PORT, Site};

use super::units::digest_of;

/// Puts a program with one more byte into the place of the released one, as nobody writes to one that runs.
const CHANGE: &str = "cp server other && printf x >> other && chmod 755 other && mv other server";

/// A byte is changed while the host is off, and another while its agent is away.
pub(super) fn changed_unseen(site: &Site<'_>) {
    let host = site.host(7);
    let tree = tree(site);
    host.shut_down();
    let program = host.disk().join(tree.trim_start_matches('/')).join("server");
    let mut bytes = fs::read(&program).unwrap();
    bytes.push(b'x');
    fs::write(&program, bytes).unwrap();
    host.boot();
    wait_named(site, host, "mismatch");
    host.run("systemctl start app");
    assert_eq!(host.serves(APP_PORT), None, "what has changed runs after a boot");
    repair(site);

    host.must(&format!("systemctl stop muster-agent && cd {tree} && {CHANGE}"));
    assert_eq!(host.serves(APP_PORT).as_deref(), Some("2"), "what runs goes on");
    host.run("systemctl restart app");
    assert_eq!(host.serves(APP_PORT), None, "what has changed runs, with nobody there to notice");
    let said = host.must("journalctl --unit app --no-pager | tail -20");
    assert!(said.contains("not started: the release has changed on the disk"), "{said}");
    host.must("systemctl start muster-agent");
    wait_named(site, host, "mismatch");
    repair(site);
}

/// The gate can say neither yes nor no, until systemd has given up. That is not for good.
pub(super) fn unknown_gate(site: &Site<'_>) {
    let host = site.host(7);
    host.must("systemctl stop muster-guard && mv /etc/muster/guard.toml /etc/muster/guard.toml.away");
    host.must(&format!("kill -KILL {}", host.property("app", "MainPID")));
    wait_until("systemd gives up", PATIENCE, || {
        (host.property("app", "ActiveState") == "failed").then_some(())
    });
    assert_eq!(host.serves(APP_PORT), None);
    host.must("mv /etc/muster/guard.toml.away /etc/muster/guard.toml && systemctl start muster-guard");
    site.wait_all_serve(APP_PORT, "2");
}

/// The host's own file says that what has changed is to be stopped.
pub(super) fn fenced(site: &Site<'_>) {
    let host = site.host(7);
    host.must(&format!(
        "cp -p /etc/muster/agent.toml /root/agent.toml && \
         sed -i 's/^name = \"{APP}\"$/&\\non_drift = \"fence\"/' /etc/muster/agent.toml && \
         grep -q on_drift /etc/muster/agent.toml && systemctl restart muster-agent"
    ));
    site.wait_connected();
    host.must(&format!("cd {} && {CHANGE}", tree(site)));
    wait_until("it is stopped", PATIENCE, || host.serves(APP_PORT).is_none().then_some(()));
    wait_named(site, host, "it was stopped for that");
    let told = host
        .must("journalctl --unit muster-agent --no-pager --output cat | grep -o 'are told by .*' | tail -1");
    say(&format!("          changes {told}"));
    assert!(told.contains("fanotify") || told.contains("inotify"), "{told}");
    host.run("systemctl start app");
    assert_eq!(host.serves(APP_PORT), None, "it is fenced");
    repair(site);
    host.must("mv /root/agent.toml /etc/muster/agent.toml && systemctl restart muster-agent");
    site.wait_connected();
}

fn tree(site: &Site<'_>) -> String {
    format!("/var/lib/muster/fleets/{APP}/releases/{}", digest_of(site, "2"))
}

#[track_caller]
fn wait_named(site: &Site<'_>, host: &Server, word: &str) {
    wait_until(&format!("the status names {word} at {}", host.name()), PATIENCE, || {
        let status = site.muster(&format!("status --fleet {APP}")).json();
        let named =
            status["hosts"].as_array()?.iter().find(|it| it["host"] == host.name())?["blockers"].to_string();
        named.contains(word).then_some(())
    });
}

/// The release that is served is deployed once more.
#[track_caller]
fn repair(site: &Site<'_>) {
    site.muster(&format!("deploy 2 --fleet {APP}")).expect_code(0);
    site.wait_all_serve(APP_PORT, "2");
}
