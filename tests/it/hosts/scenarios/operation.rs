//! Deploying and flipping, and what gets in its way.

use crate::harness::{PATIENCE, wait_until};
use crate::hosts::site::{APP, APP_PORT, CLONE, Site, TOOL, TOOL_PORT, WEB, WEB_PORT, install};

const FILL_1: &str = "mkdir -p lib && echo 1 > release.txt && echo power-peg > lib/smars.sh";
const FILL_2: &str =
    "mkdir -p lib && echo 2 > release.txt && echo smars > lib/smars.sh && echo rlp > lib/rlp.sh";

pub(super) fn first_flip(site: &Site<'_>) {
    site.release(WEB, "1", FILL_1);
    assert!(site.hosts.iter().all(|host| host.serves(WEB_PORT).is_none()), "nothing is served yet");
    site.flip(WEB, "1");
    site.assert_all_serve(WEB_PORT, "1");
    let status = site.muster("status").expect_code(0);
    assert_eq!(status.json()["hosts_connected"], 8);
}

/// Seven hosts are given the release as it should be; the eighth is off, and somebody copies it there by hand and misses a file.
pub(super) fn a_missed_host_shuts_the_gate(site: &Site<'_>) {
    let digest = site.release(WEB, "2", FILL_2);
    let folder = format!("/var/lib/muster/fleets/{WEB}/releases/{}", digest.trim_start_matches("sha256:"));
    let missed = site.host(8);
    missed.must("systemctl stop muster-agent");
    site.muster("deploy 2 --timeout 5s").expect_code(11).expect_blocker("host-missing", "host-8", "");

    missed.must(&format!(
        "mkdir -p {folder}/lib && cd {folder} && echo 2 > release.txt && echo smars > lib/smars.sh && \
         chown -R muster: . && systemctl start muster-agent"
    ));
    site.wait_connected();
    let refused = site.muster("flip 2").expect_code(10);
    refused.expect_blocker("mismatch", "host-8", "lib/rlp.sh");
    site.assert_all_serve(WEB_PORT, "1");

    site.flip(WEB, "2");
    site.assert_all_serve(WEB_PORT, "2");
}

/// The guard has systemd run what the release brings, in a unit of its own.
pub(super) fn a_service_of_systemd(site: &Site<'_>) {
    for release in ["1", "2"] {
        let digest = site.release(APP, release, &format!("cp /packages/server-{release} server"));
        site.flip(APP, release);
        site.assert_all_serve(APP_PORT, release);
        for host in &site.hosts {
            let process = host.property("app", "MainPID");
            let program = host.must(&format!("readlink /proc/{process}/exe"));
            assert!(program.contains(digest.trim_start_matches("sha256:")), "{}: {program}", host.name());
        }
    }
}

pub(super) fn a_service_of_the_guard(site: &Site<'_>) {
    for release in ["1", "2"] {
        site.release(TOOL, release, &format!("cp /packages/server-{release} server && echo tool > name"));
        site.flip(TOOL, release);
        for host in site.tool_hosts() {
            assert_eq!(host.serves(TOOL_PORT).as_deref(), Some(release), "{}", host.name());
            let groups = host.must("cat /proc/$(pgrep -x -f './server 8081')/cgroup");
            assert!(groups.contains("muster-guard.service/muster-"), "a group of its own: {groups}");
            let precious = host.must("cat /proc/$(pgrep -x -f './server 8081')/oom_score_adj");
            assert_eq!(precious.trim(), "0", "only the guard is spared when memory runs out");
        }
    }
}

/// The disk of a host's state takes no more: the release is refused there, and what is served goes on.
pub(super) fn full_disk(site: &Site<'_>) {
    let host = site.host(3);
    let serving = host.serves(WEB_PORT).expect("it serves");
    host.must(
        "systemctl stop muster-agent && cp -a /var/lib/muster /var/lib/muster.kept && \
         mount -t tmpfs -o size=24m,mode=0755 tmpfs /var/lib/muster && cp -a /var/lib/muster.kept/. /var/lib/muster/ && \
         chown muster: /var/lib/muster && systemctl start muster-agent",
    );
    site.wait_connected();
    site.release(WEB, "big", "echo big > release.txt && head -c 40000000 /dev/urandom > data");
    let refused = site.muster("deploy big");
    assert_ne!(refused.code, 0, "{refused}");
    assert!(refused.stdout.contains("host-3") || refused.stderr.contains("host-3"), "{refused}");
    assert_ne!(site.muster("flip big").code, 0);
    site.assert_all_serve(WEB_PORT, &serving);

    // What the agent has promised meanwhile goes back to the larger disk: an older journal would be noticed.
    host.must(
        "systemctl stop muster-agent && rm -rf /var/lib/muster.kept && cp -a /var/lib/muster /var/lib/muster.kept && \
         umount /var/lib/muster && rm -rf /var/lib/muster && mv /var/lib/muster.kept /var/lib/muster && \
         systemctl start muster-agent",
    );
    site.wait_connected();
    site.assert_all_serve(WEB_PORT, &serving);
}

/// Two machines with one identity: neither is believed until an operator says which one it is.
pub(super) fn clone(site: &Site<'_>) {
    let (original, clone) = (site.host(4), site.spare(CLONE, "host-4b"));
    clone.boot();
    install(&clone, &["muster-agent"]);
    let copy = original.must("tar -C / -cf - etc/muster var/lib/muster var/lib/muster-guard etc/systemd/system/app.service | base64 -w0");
    clone.write("/root/copy", &copy);
    clone.must("base64 -d /root/copy | tar -C / -xf - && systemctl start muster-guard muster-agent");
    for fleet in [WEB, APP] {
        wait_until(&format!("the clone is noticed in {fleet}"), PATIENCE, || {
            site.muster(&format!("status --fleet {fleet}")).stdout.contains("duplicate-host").then_some(())
        });
    }
    assert_ne!(site.muster("flip 1").code, 0, "nothing flips meanwhile");
    clone.power_off();

    for fleet in [WEB, APP] {
        site.muster(&format!("host readmit host-4 --fleet {fleet}")).expect_code(0);
    }
    site.wait_connected();
    wait_until("the fleet has no blockers", PATIENCE, || (site.muster("status").code == 0).then_some(()));
}
