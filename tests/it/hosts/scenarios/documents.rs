//! What the documents say, held against real hosts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::harness::{PATIENCE, wait_until};
use crate::hosts::document::{Block, Document, Names, Place};
use crate::hosts::say;
use crate::hosts::server::Server;
use crate::hosts::site::{APP, APP_PORT, CONTEXT, NEW, Site, WEB, link_packages};

/// What the document's reader calls the new host and its fleet.
const NAMES: &Names<'static> = &[("shop", APP), ("host-1", HOST)];
const HOST: &str = "host-9";

/// From a machine with nothing on it to a host that has attested and serves, and out of the fleet again.
pub(super) fn installation(site: &Site<'_>) {
    let document = Document::read();
    mean(site, APP);
    let host = site.spare(NEW, HOST);
    host.boot();
    link_packages(&host, "one");
    host.write("/root/root.json", &site.coordinator.must("cat /srv/muster/root.json"));

    let begun = Instant::now();
    let commands = join(site, &host, &document);
    let took = begun.elapsed().as_secs_f64();
    say(&format!("          {commands} commands, {took:.1} s"));
    assert_eq!(commands, document.commands_of_one_more());
    assert_attested(site, &host);

    release(site, &document);
    assert_eq!(host.serves(APP_PORT).as_deref(), Some("1"), "it is flipped with the others");

    link_packages(&host, "two");
    follow(site, &host, &document.section(Document::UPGRADE), NAMES);
    assert!(host.must("dpkg-query --show muster-agent").contains("0.1.0-2"));
    assert_eq!(host.serves(APP_PORT).as_deref(), Some("1"), "what is served goes on");
    wait_until("all are connected", PATIENCE, || (site.connected(APP) == 9).then_some(()));
    follow(site, &host, &document.section(Document::REMOVAL), NAMES);
    assert_eq!(host.serves(APP_PORT), None, "it is out of the fleet");
    assert_ne!(host.run("command -v muster-agent").code, 0, "it is removed");
    let wanted = "find /etc/systemd/system -name 'muster-*'";
    assert_ne!(host.must(wanted), "", "the package may come back");
    host.must("apt-get purge --yes muster-agent");
    assert_eq!(host.must(wanted), "", "nothing wants what is gone for good");

    site.flip(APP, "2");
    site.assert_all_serve(APP_PORT, "2");
    mean(site, WEB);
}

/// Which fleet is meant when none is named.
#[track_caller]
fn mean(site: &Site<'_>, fleet: &str) {
    site.coordinator.must(&format!("sed -i 's/^fleet = .*/fleet = \"{fleet}\"/' {CONTEXT}"));
}

/// The sections that a further host takes; answers how many commands they are.
#[track_caller]
fn join(site: &Site<'_>, host: &Server, document: &Document) -> usize {
    let mut commands = 0;
    let (mut token, mut pin) = (String::new(), String::new());
    for block in document.section(Document::HOST) {
        commands += block.commands;
        match block.place {
            Place::Coordinator => {
                let shown = block.run(&site.coordinator, NAMES, "");
                token = shown.lines().next().unwrap().to_owned();
                pin = shown.split_once("--ca-pin ").unwrap().1.split_whitespace().next().unwrap().to_owned();
            }
            Place::Host => {
                block.run(
                    host,
                    &[NAMES, &[("--ca-pin sha256:…", &format!("--ca-pin {pin}"))]].concat(),
                    &token,
                );
            }
        }
    }
    let served = [NAMES, &[("1.0", "2")]].concat();
    for (title, names) in [(Document::ROSTER, NAMES), (Document::ONE_MORE, &served)] {
        commands += follow(site, host, &document.section(title), names);
    }
    commands
}

/// The first release of a fleet, beside those that this one has had.
#[track_caller]
fn release(site: &Site<'_>, document: &Document) {
    site.coordinator.must(
        "mkdir /root/build && cp /packages/server-1 /root/build/server && echo 1.0 > /root/build/version",
    );
    for block in document.section(Document::RELEASE) {
        block.run(&site.coordinator, NAMES, "");
    }
}

/// Answers how many commands they were.
#[track_caller]
fn follow(site: &Site<'_>, host: &Server, blocks: &[Block], names: &Names<'_>) -> usize {
    for block in blocks {
        let on = match block.place {
            Place::Coordinator => &site.coordinator,
            Place::Host => host,
        };
        block.run(on, names, "");
    }
    blocks.iter().map(|block| block.commands).sum()
}

#[track_caller]
fn assert_attested(site: &Site<'_>, host: &Server) {
    let checked = site.muster(&format!("check --release 2 --fleet {APP}")).expect_code(0).json();
    assert_eq!(checked["hosts"], 9, "{checked:#}");
    let row = |of: &serde_json::Value, list: &str| {
        let found = of[list].as_array().unwrap().iter().find(|row| row["host"] == host.name());
        found.unwrap_or_else(|| panic!("{} is not in {list}: {of:#}", host.name())).clone()
    };
    assert_eq!(row(&checked, "results")["identical"], true, "{checked:#}");
    let status = site.muster(&format!("status --fleet {APP}")).expect_code(0).json();
    let shown = row(&status, "hosts");
    assert_eq!(shown["connected"], true, "{shown:#}");
    assert_eq!(shown["serving"]["version"], "2", "{shown:#}");
    assert_eq!(shown["blockers"], serde_json::json!([]), "{shown:#}");
    wait_until("the new host serves", PATIENCE, || {
        (host.serves(APP_PORT).as_deref() == Some("2")).then_some(())
    });
    assert!(host.property("app", "ExecCondition").contains("muster-guard permit"), "it has its start gate");
}

/// Each unit's figure, and each item that is open, are in the document, and nothing else is.
pub(super) fn hardening(site: &Site<'_>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hardening.md");
    let document = fs::read_to_string(path).unwrap();
    let host = site.host(1);
    for (unit, on) in
        [("muster-coordinator", &site.coordinator), ("muster-agent", host), ("muster-guard", host)]
    {
        let rating = on.must(&format!("systemd-analyze security --no-pager {unit}.service | tail -1"));
        let (_, rating) = rating.split_once(&format!("for {unit}.service: ")).expect("a rating");
        let rating = rating.split(' ').next().unwrap();
        let (_, table) = document
            .split_once(&format!("\n## `{unit}`: {rating}\n"))
            .unwrap_or_else(|| panic!("docs/hardening.md does not say that {unit} is rated {rating}"));
        let said: BTreeSet<String> = table.split("\n## ").next().unwrap().lines().filter_map(row).collect();
        let real: serde_json::Value =
            serde_json::from_str(&on.must(&format!("systemd-analyze security --json=short {unit}.service")))
                .unwrap();
        let open =
            real.as_array().unwrap().iter().filter_map(|item| {
                Some(format!("{} {}", item["name"].as_str()?, item["exposure"].as_str()?))
            });
        assert_eq!(said, open.collect(), "{unit}: what docs/hardening.md says, and what is");
    }
}

/// The item and the exposure of a line of a table; nothing if it is none, or gives no reason.
fn row(line: &str) -> Option<String> {
    let cells = line.strip_prefix("| `")?.strip_suffix(" |")?;
    let (item, rest) = cells.split_once("` | ")?;
    let (exposure, reason) = rest.split_once(" | ")?;
    (!reason.is_empty()).then(|| format!("{} {exposure}", item.replace("\\|", "|")))
}
