//! Real hosts: Debian with systemd in containers of their own, on a network of their own, with the packages installed by apt.
//!
//! `tests/hosts/run` prepares what this needs, and runs it. Everything that is made here lives in namespaces and control groups that go
//! with the test. A power-off is the death of every process of a host at one moment; what it had written is in the page cache of the
//! machine below, so a lost write is not part of it.

mod document;
mod scenarios;
mod server;
mod site;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::harness::Network;
use site::Site;

/// All scenarios together, building the fleet included.
const DURATION_MAX: Duration = Duration::from_secs(600);

/// Runs those scenarios only whose names contain this, or one of several that have `|` between them.
const ONLY_VARIABLE: &str = "MUSTER_HOSTS_ONLY";

#[test]
#[ignore = "needs root, systemd-nspawn and what `tests/hosts/run` prepares: run that"]
fn eight_real_hosts() {
    let begun = Instant::now();
    let failed = Network::room(|network| {
        let site = Site::build(network);
        say(&format!("eight hosts are enrolled after {:.1} s", begun.elapsed().as_secs_f64()));
        run_all(&site)
    });
    let took = begun.elapsed();
    say(&format!("{:.1} s in all", took.as_secs_f64()));
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
    assert!(took < DURATION_MAX, "it took {took:?}");
}

/// One after the other, as they share the fleet; each leaves it as it found it. One that fails need not keep the next from its turn.
fn run_all(site: &Site<'_>) -> Vec<&'static str> {
    let only = std::env::var(ONLY_VARIABLE).unwrap_or_default();
    let mut failed = Vec::new();
    for (name, scenario) in scenarios::ALL {
        if !only.split('|').any(|part| name.contains(part)) && !scenarios::NEEDED.contains(name) {
            continue;
        }
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| scenario(site)));
        let took = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => say(&format!("ok      {took:5.1} s  {name}")),
            Err(_) => {
                say(&format!("FAILED  {took:5.1} s  {name}"));
                failed.push(*name);
            }
        }
    }
    failed
}

/// Told as it happens, and not only when the test has ended.
#[expect(clippy::print_stderr, reason = "whoever waits ten minutes wants to see how far it is")]
fn say(line: &str) {
    eprintln!("hosts: {line}");
}
