//! Hosts that were set up by hand, before Muster came.

use crate::harness::Output;
use crate::hosts::site::{APP, APP_PORT, Site};

/// What the service's folder holds on every host.
const FILL: &str =
    "mkdir -p conf && cp /packages/server-1 server && echo 0 > conf/level && echo power-peg > conf/flag";

/// The fleet of [`APP`], which has served nothing yet: the odd one is named path by path, a release made from the others puts it right, and
/// the first flip takes the service over.
pub(super) fn one_of_eight_differs(site: &Site<'_>) {
    site.each(&site.hosts, |host| {
        host.must(&format!("mkdir -p /opt/{APP} && cd /opt/{APP} && {FILL}"));
        host.must(&format!(
            "sed -i 's|^name = \"{APP}\"$|&\\nadopt_from = \"/opt/{APP}\"|' /etc/muster/agent.toml && \
             grep -q adopt_from /etc/muster/agent.toml && systemctl restart muster-agent"
        ));
    });
    let odd = site.host(5);
    odd.must(&format!("cd /opt/{APP} && echo 1 > conf/level && rm conf/flag && echo left > old-server"));
    site.wait_connected();

    let adopted = site.muster(&format!("adopt {APP}")).expect_code(10);
    let seven: Vec<&str> =
        site.hosts.iter().map(|host| host.name()).filter(|name| *name != odd.name()).collect();
    assert_eq!(adopted.json()["groups"][0]["hosts"], serde_json::json!(seven), "{adopted}");
    assert_eq!(adopted.json()["groups"][1]["hosts"], serde_json::json!([odd.name()]), "{adopted}");
    assert_eq!(changed(&adopted), ["conf/flag", "conf/level", "old-server"], "{adopted}");
    adopted.expect_blocker("mismatch", odd.name(), "");

    let release = site.release(APP, "0", FILL);
    assert_eq!(adopted.text_at("/groups/0/digest"), release, "what the seven have is the release");
    let deployed = site.muster(&format!("deploy 0 --fleet {APP}")).expect_code(0);
    for host in deployed.json()["results"].as_array().unwrap() {
        let fetched = host["fetched_bytes"].as_u64().unwrap();
        assert_eq!(fetched > 0, host["host"] == odd.name(), "only what differs is fetched: {deployed}");
    }
    let checked = site.muster(&format!("check --release 0 --fleet {APP}")).expect_code(0);
    assert_eq!((&checked.json()["identical"], &checked.json()["hosts"]), (&8.into(), &8.into()));
    // The folder that it came from is nobody's but its owner's.
    odd.must(&format!("grep -q 1 /opt/{APP}/conf/level && test -e /opt/{APP}/old-server"));
    assert!(site.hosts.iter().all(|host| host.serves(APP_PORT).is_none()), "nothing is started by that");

    // Copied from what was deployed, it is what all the others are.
    let tree = format!("/var/lib/muster/fleets/{APP}/releases/{}", release.trim_start_matches("sha256:"));
    odd.must(&format!("rm -r /opt/{APP} && cp -a {tree} /opt/{APP}"));
    let equal = site.muster(&format!("adopt {APP}")).expect_code(0);
    assert_eq!((&equal.json()["identical"], equal.text_at("/groups/0/digest")), (&true.into(), release));

    site.muster(&format!("flip 0 --fleet {APP}")).expect_code(0);
    site.assert_all_serve(APP_PORT, "1");
    site.each(&site.hosts, |host| {
        host.must("sed -i '/^adopt_from/d' /etc/muster/agent.toml && systemctl restart muster-agent");
    });
    site.wait_connected();
}

/// The paths in which the odd one differs.
#[track_caller]
fn changed(adopted: &Output) -> Vec<String> {
    let changes = adopted.json()["groups"][1]["changes"].as_array().cloned().unwrap_or_default();
    changes.iter().map(|change| change["path"].as_str().unwrap().to_owned()).collect()
}
