//! How a rollout ended, for people and scripts.

use muster_model::{Blocker, FleetName, FlipMode, RolloutId};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use muster_proto::v1::rollout_end::Outcome as Wire;
use serde::Serialize;

use super::Verb;
use super::order::Halted;
use crate::clock::span_text;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};
use crate::view::ReleaseView;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// Every host serves what it served before.
    Unchanged,
    /// Decided, but not all hosts are through.
    Pending,
    /// All N hosts serve the release and have measured it again.
    Flipped,
    /// The same, where going back was what was asked.
    RolledBack,
    /// Some hosts serve nothing.
    Dark,
}

/// What is reported.
#[derive(Debug, Serialize)]
pub(super) struct Ended {
    pub(super) fleet: FleetName,
    pub(super) outcome: Outcome,
    pub(super) release: ReleaseView,
    pub(super) from: Option<ReleaseView>,
    pub(super) rollout: u64,
    pub(super) epoch: u64,
    pub(super) hosts: usize,
    pub(super) mode: FlipMode,
    pub(super) dark_window: Option<DarkWindow>,
    pub(super) solo: bool,
    pub(super) blockers: Vec<Blocker>,
    pub(super) exit_code: Exit,
    #[serde(skip)]
    verb: Verb,
    #[serde(skip)]
    halted: Halted,
}

/// How long nobody served; in fast mode, where nobody waits for anybody, only how far apart hosts flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct DarkWindow {
    /// At most so long, on the coordinator's clock; none in fast mode.
    bound_ms: Option<u64>,
    /// So long on the hosts' clock, if all share one.
    measured_ms: Option<u64>,
    /// From the first host that served to the last.
    spread_ms: u64,
}

/// What was known before the rollout began.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) fleet: FleetName,
    pub(super) halted: Halted,
    /// The number of the order.
    pub(super) k: RolloutId,
    pub(super) mode: FlipMode,
    pub(super) release: ReleaseView,
    pub(super) from: Option<ReleaseView>,
    pub(super) hosts: usize,
    pub(super) solo: bool,
}

impl Ended {
    /// What the coordinator says of the end.
    pub(super) fn new(start: Start, verb: Verb, end: v1::RolloutEnd) -> Result<Self, ConvertError> {
        let blockers = convert::blockers(end.blockers.clone())?;
        let Start { fleet, halted, k, mode, release, from, hosts, solo } = start;
        let (outcome, exit_code) = match end.outcome() {
            // The fleet went back by itself: the rollout that ended is the one after. What was asked for did not come about.
            Wire::Flipped if end.k > k.0 => (Outcome::RolledBack, Exit::Aborted),
            Wire::Flipped => (verb.success(), Exit::Proven),
            Wire::Unchanged => (Outcome::Unchanged, Exit::of_blockers(&blockers)),
            // Nothing is known to have changed for good: whoever asks again gets the answer.
            Wire::Pending | Wire::Unspecified => (Outcome::Pending, Exit::TimedOut),
            Wire::Dark => (Outcome::Dark, Exit::Dark),
        };
        Ok(Self {
            fleet,
            outcome,
            release,
            from,
            rollout: end.k,
            epoch: end.epoch,
            hosts,
            mode,
            dark_window: end.dark_window.map(|window| DarkWindow {
                bound_ms: (mode == FlipMode::Strict).then_some(window.bound_ms),
                measured_ms: window.measured_ms,
                spread_ms: window.spread_ms,
            }),
            solo,
            blockers,
            exit_code,
            verb,
            halted,
        })
    }

    fn headline(&self) -> String {
        let Self { fleet, release, hosts, epoch, rollout, .. } = self;
        match self.outcome {
            Outcome::Flipped if self.verb == Verb::Resume => {
                format!("{fleet} serves {release} again on {hosts} of {hosts} hosts, epoch {epoch}")
            }
            Outcome::Flipped => {
                format!("{fleet} serves {release} on {hosts} of {hosts} hosts, epoch {epoch}")
            }
            Outcome::RolledBack if self.exit_code == Exit::Aborted => {
                let from =
                    self.from.as_ref().map_or_else(|| "what it served".to_owned(), ToString::to_string);
                format!(
                    "too many hosts did not start {release}: {fleet} went back to {from} on {hosts} of {hosts} hosts, \
                     epoch {epoch}"
                )
            }
            Outcome::RolledBack => {
                format!("{fleet} is back at {release} on {hosts} of {hosts} hosts, epoch {epoch}")
            }
            Outcome::Unchanged if self.halted == Halted::Yes => {
                format!("nothing has changed: what was halted of {fleet} stays halted")
            }
            Outcome::Unchanged => goes_on_serving(fleet, self.from.as_ref()),
            Outcome::Pending => format!(
                "rollout {rollout} to {release} is decided and goes on, but not all hosts are through; \
                 `muster status` shows them"
            ),
            Outcome::Dark => format!("some hosts of {fleet} serve nothing; the others serve {release}"),
        }
    }
}

/// What is said where nothing came about.
pub(super) fn goes_on_serving(fleet: &FleetName, from: Option<&ReleaseView>) -> String {
    match from {
        Some(from) => format!("nothing has changed: {fleet} goes on serving {from}"),
        None => format!("nothing has changed: {fleet} still serves nothing"),
    }
}

impl Report for Ended {
    const SCHEMA: &'static str = "muster.flip/1";

    fn print(&self, page: &mut Page) {
        let tone = match self.outcome {
            Outcome::Flipped | Outcome::RolledBack if self.exit_code == Exit::Proven => Tone::Good,
            Outcome::Flipped | Outcome::RolledBack => Tone::Bad,
            Outcome::Pending => Tone::Warning,
            Outcome::Unchanged | Outcome::Dark => Tone::Bad,
        };
        page.toned(tone, self.headline());
        if let Some(window) = &self.dark_window {
            window.print(page);
        }
        if self.solo {
            page.labelled(Tone::Warning, "solo mode", "the order was signed by one operator alone");
        }
        page.blockers(&self.blockers);
    }
}

impl DarkWindow {
    fn print(&self, page: &mut Page) {
        let spread = span_text(self.spread_ms);
        let Some(bound_ms) = self.bound_ms else {
            let text = format_args!("first to last host {spread}; in between two releases were served");
            page.labelled(Tone::Warning, "skew", text);
            return;
        };
        let bound = span_text(bound_ms);
        let measured = match self.measured_ms {
            Some(measured_ms) => format!(" ({} on the hosts' own clock)", span_text(measured_ms)),
            None => String::new(),
        };
        page.line(format_args!("dark window: at most {bound}{measured}; first to last host {spread}"));
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{Code, Digest, HostName};

    use super::*;
    use crate::output::json;

    fn start() -> Start {
        let release =
            |byte| ReleaseView { version: format!("1.{byte}.0"), digest: Digest::from_bytes([byte; 32]) };
        Start {
            fleet: FleetName::new("demo").unwrap(),
            halted: Halted::No,
            k: RolloutId(5),
            mode: FlipMode::Strict,
            release: release(2),
            from: Some(release(1)),
            hosts: 8,
            solo: true,
        }
    }

    fn ended(verb: Verb, outcome: Wire, blockers: Vec<Blocker>) -> Ended {
        let end = v1::RolloutEnd {
            k: 5,
            outcome: outcome.into(),
            epoch: 3,
            blockers: blockers.into_iter().map(Into::into).collect(),
            dark_window: (outcome == Wire::Flipped).then_some(v1::DarkWindow {
                bound_ms: 131,
                measured_ms: Some(96),
                spread_ms: 12,
            }),
            release: None,
        };
        Ended::new(start(), verb, end).unwrap()
    }

    #[test]
    fn each_outcome_has_its_exit_code() {
        let mismatch = Blocker::host(Code::Mismatch, &HostName::new("host-5").unwrap(), "differs");
        for (verb, wire, blockers, outcome, exit) in [
            (Verb::Flip, Wire::Flipped, vec![], Outcome::Flipped, Exit::Proven),
            (Verb::Rollback, Wire::Flipped, vec![], Outcome::RolledBack, Exit::Proven),
            (Verb::Flip, Wire::Unchanged, vec![mismatch.clone()], Outcome::Unchanged, Exit::Mismatch),
            (Verb::Flip, Wire::Unchanged, vec![], Outcome::Unchanged, Exit::Internal),
            (Verb::Flip, Wire::Pending, vec![], Outcome::Pending, Exit::TimedOut),
            (Verb::Flip, Wire::Unspecified, vec![], Outcome::Pending, Exit::TimedOut),
            (Verb::Rollback, Wire::Dark, vec![mismatch], Outcome::Dark, Exit::Dark),
        ] {
            let ended = ended(verb, wire, blockers);
            assert_eq!((ended.outcome, ended.exit_code), (outcome, exit), "{wire:?}");
        }
    }

    #[test]
    fn people_are_told_the_dark_window_and_that_one_person_signed() {
        let mut page = Page::new(false);
        ended(Verb::Flip, Wire::Flipped, vec![]).print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        demo serves 1.2.0 (sha256:0202020202020202020202020202020202020202020202020202020202020202) on 8 of 8 hosts, epoch 3
        dark window: at most 131ms (96ms on the hosts' own clock); first to last host 12ms
        solo mode: the order was signed by one operator alone
        ");
    }

    #[test]
    fn an_abort_says_what_goes_on_being_served() {
        let aborted = Blocker::fleet(Code::AbortedByOperator, "by spiffe://muster.local/operator/alice");
        let mut page = Page::new(false);
        let ended = ended(Verb::Flip, Wire::Unchanged, vec![aborted]);
        assert_eq!(ended.exit_code, Exit::Aborted);
        ended.print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        nothing has changed: demo goes on serving 1.1.0 (sha256:0101010101010101010101010101010101010101010101010101010101010101)
        solo mode: the order was signed by one operator alone
          aborted-by-operator: by spiffe://muster.local/operator/alice
          next (aborted-by-operator): nothing; run `muster flip` again when it is wanted
        ");
    }

    #[test]
    fn a_fleet_that_went_back_by_itself_is_no_success() {
        let end = v1::RolloutEnd { k: 6, outcome: Wire::Flipped.into(), epoch: 4, ..Default::default() };
        let ended = Ended::new(start(), Verb::Flip, end).unwrap();
        assert_eq!((ended.outcome, ended.exit_code), (Outcome::RolledBack, Exit::Aborted));
        assert!(ended.headline().contains("went back to 1.1.0"), "{}", ended.headline());
    }

    #[test]
    fn fast_mode_reports_its_skew_and_no_dark_window() {
        let start = Start { mode: FlipMode::Fast, ..start() };
        let window = v1::DarkWindow { bound_ms: 0, measured_ms: None, spread_ms: 7 };
        let end = v1::RolloutEnd {
            k: 5,
            outcome: Wire::Flipped.into(),
            dark_window: Some(window),
            ..v1::RolloutEnd::default()
        };
        let mut page = Page::new(false);
        Ended::new(start, Verb::Flip, end).unwrap().print(&mut page);
        let text = page.into_text();
        assert!(
            text.contains("\nskew: first to last host 7ms; in between two releases were served\n"),
            "{text}"
        );
        assert!(!text.contains("dark window"), "{text}");
    }

    #[test]
    fn what_is_halted_stays_so_until_it_is_resumed() {
        let of = |outcome: Wire| {
            let start = Start { halted: Halted::Yes, ..start() };
            let end = v1::RolloutEnd { k: 5, outcome: outcome.into(), ..v1::RolloutEnd::default() };
            Ended::new(start, Verb::Resume, end).unwrap().headline()
        };
        assert_eq!(of(Wire::Unchanged), "nothing has changed: what was halted of demo stays halted");
        assert!(of(Wire::Flipped).contains("again on 8 of 8 hosts"));
    }

    #[test]
    fn scripts_find_outcome_and_exit_code() {
        insta::assert_snapshot!(json(Ended::SCHEMA, &ended(Verb::Rollback, Wire::Flipped, vec![])), @r#"
        {
          "schema": "muster.flip/1",
          "fleet": "demo",
          "outcome": "rolled_back",
          "release": {
            "version": "1.2.0",
            "digest": "sha256:0202020202020202020202020202020202020202020202020202020202020202"
          },
          "from": {
            "version": "1.1.0",
            "digest": "sha256:0101010101010101010101010101010101010101010101010101010101010101"
          },
          "rollout": 5,
          "epoch": 3,
          "hosts": 8,
          "mode": "strict",
          "dark_window": {
            "bound_ms": 131,
            "measured_ms": 96,
            "spread_ms": 12
          },
          "solo": true,
          "blockers": [],
          "exit_code": 0
        }
        "#);
    }
}
