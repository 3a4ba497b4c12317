//! A coordinator on another machine.

use crate::harness::{Output, PATIENCE, wait_until};
use crate::hosts::server::Server;
use crate::hosts::site::{APP, APP_PORT, NEW_COORDINATOR, Site, TOOL, WEB, WEB_PORT, install};

use super::packages::while_it_serves;

/// The backup, the coordinator's folder (its certificate, the issuing authority, the audit log's key) and the operator's.
const CARRIED: &str = "srv/state.tar etc/muster/coordinator srv/muster";

/// The old machine is lost. A new one has the backup and the old one's name; hosts find it there, and go on serving while the operators
/// mandate it. The next release is then flipped as ever.
pub(super) fn coordinator_moves(site: &Site<'_>) {
    let old = &site.coordinator;
    let new = site.spare(NEW_COORDINATOR, "coordinator-2");
    let host = site.host(1);
    let web = host.serves(WEB_PORT).expect("it serves");
    old.must("muster backup --out /srv/state.tar");
    let carried = old.must(&format!("tar -C / -cf - {CARRIED} | base64 -w0"));
    let served = [(WEB_PORT, web.as_str()), (APP_PORT, "2")];
    while_it_serves(host, &served, || {
        old.power_off();
        new.boot();
        install(&new, &["muster-coordinator", "muster"]);
        // The name leads to the new machine now, for itself and the operator as well.
        site.each(site.hosts.iter().chain([&new]), |host| {
            host.must(&format!(
                "sed -i 's/^.* muster.example$/{} muster.example/' /etc/hosts",
                new.address()
            ));
        });
        move_to(&new, &carried);
        let refused = muster(&new, &format!("flip 1 --fleet {APP}"));
        let is_named = ["rebuilding", "unmandated"].iter().any(|code| refused.stdout.contains(code));
        assert!(refused.code != 0 && is_named, "nobody has mandated it: {refused}");
        for fleet in [WEB, APP, TOOL] {
            let rebuilt =
                muster(&new, &format!("coordinator rebuild --fleet {fleet} --reason moved --timeout 90s"));
            rebuilt.expect_code(0);
        }
    });

    wait_until("all are connected", 3 * PATIENCE, || {
        (muster(&new, &format!("status --fleet {APP}")).json()["hosts_connected"] == 8).then_some(())
    });
    // The hosts have kept the tree; a new release comes over the network.
    muster(&new, &format!("flip 1 --fleet {APP}")).expect_code(0);
    site.assert_all_serve(APP_PORT, "1");
    new.must("mkdir -p /srv/trees/moved && echo moved > /srv/trees/moved/release.txt");
    muster(&new, &format!("release push /srv/trees/moved --fleet {WEB} --version moved")).expect_code(0);
    muster(&new, &format!("deploy moved --fleet {WEB}")).expect_code(0);
    muster(&new, &format!("flip moved --fleet {WEB}")).expect_code(0);
    site.assert_all_serve(WEB_PORT, "moved");
    for fleet in [WEB, APP, TOOL] {
        muster(&new, &format!("status --check --fleet {fleet}")).expect_code(0);
    }
}

/// The coordinator that is installed there becomes the one that was carried.
fn move_to(new: &Server, carried: &str) {
    new.write("/root/carried", carried);
    new.must(
        "base64 -d /root/carried | tar -C / -xf - && test -f /etc/muster/coordinator/audit.key && \
         muster restore /srv/state.tar --state /var/lib/muster-coordinator && \
         chown -R muster-coordinator: /etc/muster/coordinator /var/lib/muster-coordinator && \
         systemctl start muster-coordinator",
    );
}

fn muster(on: &Server, line: &str) -> Output {
    on.run(&format!("muster {line} --output json"))
}
