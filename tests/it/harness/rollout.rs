//! A fleet on its way from one release to another: where to begin, and what to wait for.

use std::thread;

use muster_model::Code;
use serde_json::Value;

use super::{Fleet, Host, Output, PATIENCE, until, versioned, wait_until};

impl Fleet {
    /// A fleet that serves the first of the digests as `1`, with the second deployed as `2`.
    #[track_caller]
    pub(crate) fn serving(hosts: usize) -> (Self, [String; 2]) {
        Self::up(hosts).with_two_releases()
    }

    /// The same of one that is up: it serves `1`, and has `2` deployed.
    #[track_caller]
    pub(crate) fn with_two_releases(self) -> (Self, [String; 2]) {
        let first = self.release(&versioned("1"), "1");
        let second = self.push(&versioned("2"), "2");
        self.json(&["deploy", "2"]).expect_code(0);
        (self, [first, second])
    }

    /// Flips, and meanwhile does this. The flip is waited for without haste: whoever is halted or dead comes back.
    pub(crate) fn flip_while(&self, version: &str, meanwhile: impl FnOnce()) -> Output {
        self.flip_so_while(&[version], meanwhile)
    }

    /// The same, with further arguments.
    pub(crate) fn flip_so_while(&self, arguments: &[&str], meanwhile: impl FnOnce()) -> Output {
        thread::scope(|scope| {
            let flip = scope.spawn(|| self.json(&[&["flip"], arguments, &["--timeout", "90s"]].concat()));
            meanwhile();
            flip.join().unwrap()
        })
    }

    /// Starts a host's agent again so that it dies at this point.
    #[track_caller]
    pub(crate) fn let_die_at(&self, host: &Host, point: &str) {
        let hosts = self.hosts().len();
        host.agent.kill();
        self.wait_connected(hosts - 1);
        host.agent.start(&[("MUSTER_CRASH_AT", point)]);
        self.wait_connected(hosts);
    }

    /// Starts the coordinator again so that it dies at this point.
    #[track_caller]
    pub(crate) fn let_coordinator_die_at(&self, point: &str) {
        let coordinator = self.coordinator();
        coordinator.kill();
        coordinator.start(&[("MUSTER_CRASH_AT", point)]);
        self.wait_connected(self.hosts().len());
    }

    /// Waits until the status shows this phase.
    #[track_caller]
    pub(crate) fn wait_phase(&self, phase: &str) {
        until(&format!("the fleet is {phase}"), || {
            let status = self.json(&["status"]);
            status.code == 0 && status.text_at("/phase") == phase
        });
    }

    /// Waits until the status names this of a host.
    #[track_caller]
    pub(crate) fn wait_named(&self, host: &Host, code: Code) {
        until(&format!("the status names {code} at {}", host.name()), || {
            let status = self.json(&["status"]);
            status.code == 0 && status.names(host, code)
        });
    }

    /// Waits until the fleet is settled on a release, all links lead to it, and nothing is in the way of anything.
    #[track_caller]
    pub(crate) fn wait_settled(&self, digest: &str) {
        wait_until(&format!("the fleet is settled on {digest}"), PATIENCE, || {
            let status = self.json(&["status", "--check"]);
            if status.code != 0 {
                return None;
            }
            let status = status.json();
            let all = self.hosts().iter().all(|host| host.serves().as_deref() == Some(digest));
            (all && status["phase"] == "settled" && status["serving"]["digest"] == digest).then_some(())
        });
    }

    /// How the last rollout ended, as anyone can ask later.
    #[track_caller]
    pub(crate) fn last_end(&self) -> Value {
        self.json(&["status"]).expect_code(0).json()["last_end"].clone()
    }
}
