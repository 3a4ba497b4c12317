//! What a flip in fast mode allows to be seen, and no more.

use std::time::Duration;

use super::record::Run;
use super::{Span, monotonic};

/// A flip in fast mode, as whoever orders it knows of it. While it goes on its release comes in no other way.
#[derive(Debug, Clone)]
pub(crate) struct FastFlip {
    pub(super) to: String,
    /// From before it was ordered until nothing was under way any more.
    pub(super) within: Span,
    pub(super) skew_max: Duration,
}

/// What was seen of such a flip.
#[derive(Debug)]
pub(super) struct Skew<'a> {
    flip: &'a FastFlip,
    /// By when at the latest the first host served the release.
    begun: Duration,
}

impl FastFlip {
    /// One to this release, which is ordered from now on. Once the first host has opened it, others may serve what was
    /// served before for so long.
    pub(crate) fn ordered(to: &str, skew_max: Duration) -> Self {
        let within = Span { start: monotonic(), end: Duration::MAX };
        Self { to: to.to_owned(), within, skew_max }
    }

    /// It is over: its release was opened by now, or will not be because of it.
    pub(crate) fn over(mut self) -> Self {
        self.within.end = monotonic();
        self
    }

    fn opened(&self, run: &Run<'_>) -> bool {
        run.release == self.to && self.within.holds(run.first)
    }
}

impl<'a> Skew<'a> {
    /// Nothing, if no host was seen to open the release because of this flip.
    pub(super) fn of(flip: &'a FastFlip, runs: &[Run<'_>]) -> Option<Self> {
        let opened = runs.iter().filter(|run| flip.opened(run));
        opened.map(|run| run.first.end).min().map(|begun| Self { flip, begun })
    }

    /// How long after the first host had opened the release another one certainly still served `old`, if that was
    /// beside this `new` run of it, and not longer than stated. They are of two releases.
    pub(super) fn allows(&self, old: &Run<'_>, new: &Run<'_>) -> Option<Duration> {
        let is_one_of_each = self.flip.opened(new) && old.host != new.host;
        let skew = old.last.start.saturating_sub(self.begun);
        (is_one_of_each && skew <= self.flip.skew_max).then_some(skew)
    }
}
