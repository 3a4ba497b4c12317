//! What was seen, when; and whether it can have been.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::fast::{FastFlip, Skew};
use super::{Outcome, SIGHT, Seen, Span};

/// More changes than any test makes.
const STRETCHES_MAX: usize = 100_000;

/// All looks at all hosts. Looks in a row with one outcome are kept as a stretch: of a run only the first and the last
/// look matter, because every look between them lies within the time for which it is proven anyway.
#[derive(Debug)]
pub(super) struct Record {
    hosts: Vec<HostRecord>,
}

#[derive(Debug)]
struct HostRecord {
    host: String,
    stretches: Vec<Stretch>,
    /// The last look that told something.
    last: Option<Span>,
    /// The longest time from the beginning of a look to the end of the next one that told something.
    longest: Duration,
    /// All such times together, and how many there were.
    total: Duration,
    times: u32,
    /// Of these, together, those for which the host was out of sight.
    out_of_sight: Duration,
    looks: u64,
    unknown: u64,
}

/// Looks in a row with one outcome, which is never that they told nothing.
#[derive(Debug)]
struct Stretch {
    outcome: Outcome,
    first: Span,
    last: Span,
}

/// Everything that was seen of one run of one release on one host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) host: &'a str,
    pub(super) release: &'a str,
    run: &'a str,
    pub(super) first: Span,
    pub(super) last: Span,
}

/// Two releases that were served together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    /// Host and release of either.
    pub(super) served: [(String, String); 2],
    /// There is an instant within this span at which both were served.
    pub(super) within: Span,
}

impl Record {
    /// A record of hosts that were not looked at yet.
    pub(super) fn of(hosts: impl Iterator<Item = String>) -> Self {
        Self { hosts: hosts.map(HostRecord::new).collect() }
    }

    /// One more look at a host, later than all others at it.
    pub(super) fn push(&mut self, index: usize, span: Span, outcome: Outcome) {
        self.hosts[index].push(span, outcome);
    }

    /// Whether the last look that told something showed this release, at every host that is asked for.
    pub(super) fn all_serve(&self, release: &str, is_asked_for: impl Fn(&str) -> bool) -> bool {
        self.hosts.iter().filter(|host| is_asked_for(&host.host)).all(|host| {
            let last = host.stretches.last().map(|stretch| &stretch.outcome);
            matches!(last, Some(Outcome::Serves { release: served, .. }) if served == release)
        })
    }

    /// How many looks there were at each host.
    pub(super) fn looks(&self) -> Vec<u64> {
        self.hosts.iter().map(|host| host.looks).collect()
    }

    /// Two releases that were certainly served at one instant, on two hosts or on one.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.judge(&[]).0
    }

    /// The same, where no flip in fast mode allows it; and for how long at most two were where one does.
    pub(super) fn judge(&self, fast: &[FastFlip]) -> (Option<Violation>, Duration) {
        let runs = self.runs();
        let skews: Vec<Skew<'_>> = fast.iter().filter_map(|flip| Skew::of(flip, &runs)).collect();
        let allowed = |one: &Run<'_>, two: &Run<'_>| {
            skews.iter().find_map(|skew| skew.allows(one, two).or_else(|| skew.allows(two, one)))
        };
        let pairs =
            runs.iter().enumerate().flat_map(|(n, one)| runs[n + 1..].iter().map(move |two| (one, two)));
        let (mut violation, mut longest) = (None, Duration::ZERO);
        for (one, two) in pairs {
            let Some(within) = one.together(two).filter(|_| one.release != two.release) else { continue };
            match allowed(one, two) {
                Some(skew) => longest = longest.max(skew),
                None => {
                    let served = [one, two].map(|it| (it.host.to_owned(), it.release.to_owned()));
                    violation.get_or_insert(Violation { served, within });
                }
            }
        }
        (violation, longest)
    }

    /// Two releases that were served together for this long, while the record lasts, are a violation for certain.
    fn blind(&self) -> Duration {
        2 * self.hosts.iter().map(|host| host.longest).max().unwrap_or_default()
    }

    /// The same for the mean time between looks, at the host that was looked at least.
    fn usually_blind(&self) -> Duration {
        let means = self.hosts.iter().map(|host| host.total.checked_div(host.times).unwrap_or_default());
        2 * means.max().unwrap_or_default()
    }

    /// For how much of the time some host was out of sight, of 1.
    fn out_of_sight(&self) -> f64 {
        let looked_at = self.hosts.iter().filter(|host| !host.total.is_zero());
        looked_at.map(|host| host.out_of_sight.div_duration_f64(host.total)).fold(0.0, f64::max)
    }

    /// Everything that can be told of the record.
    pub(super) fn seen(&self, conflicts: Vec<String>, fast: &[FastFlip]) -> Seen {
        let (violation, skew) = self.judge(fast);
        let all = self.runs();
        let releases = all.iter().map(|run| run.release).collect::<BTreeSet<_>>().len();
        let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for run in &all {
            runs.entry(run.host.to_owned()).or_default().push(run.release.to_owned());
        }
        Seen {
            releases,
            runs,
            blind: self.blind(),
            usually_blind: self.usually_blind(),
            out_of_sight: self.out_of_sight(),
            skew,
            looks: self.looks().into_iter().min().unwrap_or_default(),
            unknown: self.hosts.iter().map(|host| host.unknown).sum(),
            conflicts,
            violation,
        }
    }

    /// All runs, each host's in the order in which they were first seen.
    fn runs(&self) -> Vec<Run<'_>> {
        self.hosts.iter().flat_map(HostRecord::runs).collect()
    }
}

impl HostRecord {
    fn new(host: String) -> Self {
        Self {
            host,
            stretches: Vec::new(),
            last: None,
            longest: Duration::ZERO,
            total: Duration::ZERO,
            times: 0,
            out_of_sight: Duration::ZERO,
            looks: 0,
            unknown: 0,
        }
    }

    fn push(&mut self, span: Span, outcome: Outcome) {
        self.looks += 1;
        if outcome == Outcome::Unknown {
            self.unknown += 1;
            return;
        }
        if let Some(last) = self.last.replace(span) {
            assert!(last.end <= span.start && span.start <= span.end, "the looks are out of order");
            let time = span.end - last.start;
            self.longest = self.longest.max(time);
            self.total += time;
            self.times += 1;
            if time > SIGHT {
                self.out_of_sight += time;
            }
        }
        match self.stretches.last_mut().filter(|stretch| stretch.outcome == outcome) {
            Some(stretch) => stretch.last = span,
            None => self.stretches.push(Stretch { outcome, first: span, last: span }),
        }
        assert!(self.stretches.len() <= STRETCHES_MAX, "{} changes without end", self.host);
    }

    /// A run may have been lost from sight and seen again: it was there all the time.
    fn runs(&self) -> Vec<Run<'_>> {
        let mut runs: Vec<Run<'_>> = Vec::new();
        for Stretch { outcome, first, last } in &self.stretches {
            let Outcome::Serves { release, run } = outcome else { continue };
            match runs.iter_mut().find(|it| (it.release, it.run) == (release, run)) {
                Some(known) => known.last = *last,
                None => runs.push(Run { host: &self.host, release, run, first: *first, last: *last }),
            }
        }
        runs
    }
}

impl Run<'_> {
    /// At every instant of this span the run certainly served: it did so at some instant before it, and after it.
    fn certain(&self) -> Option<Span> {
        let span = Span { start: self.first.end, end: self.last.start };
        (span.start <= span.end).then_some(span)
    }

    /// A span that holds an instant at which both certainly served.
    fn together(&self, other: &Self) -> Option<Span> {
        let (mine, theirs) = (self.certain(), other.certain());
        let both = mine.zip(theirs).and_then(|(mine, theirs)| mine.common(theirs));
        let within = |certain: Option<Span>, looks: [Span; 2]| {
            certain.and_then(|certain| looks.into_iter().find(|look| certain.holds(*look)))
        };
        both.or_else(|| within(mine, [other.first, other.last]))
            .or_else(|| within(theirs, [self.first, self.last]))
    }
}

impl Span {
    fn common(self, other: Self) -> Option<Self> {
        let common = Self { start: self.start.max(other.start), end: self.end.min(other.end) };
        (common.start <= common.end).then_some(common)
    }

    pub(super) fn holds(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { served: [(one, first), (two, second)], within: Span { start, end } } = self;
        write!(
            f,
            "{one} served {first} while {two} served {second}, between {start:?} and {end:?} of the clock"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at hosts, one line each: host, beginning and end in milliseconds, and what was seen: a release and its
    /// run, `-` for nothing or `?` for no answer.
    fn record(looks: &[(usize, [u64; 2], &str)]) -> Record {
        let mut record = Record::of(["x", "y", "z"].into_iter().map(str::to_owned));
        for (host, [start, end], seen) in looks {
            let outcome = match *seen {
                "-" => Outcome::Nothing,
                "?" => Outcome::Unknown,
                run => Outcome::Serves { release: run[..1].to_owned(), run: run.to_owned() },
            };
            record.push(*host, span(*start, *end), outcome);
        }
        record
    }

    fn span(start: u64, end: u64) -> Span {
        Span { start: Duration::from_millis(start), end: Duration::from_millis(end) }
    }

    #[track_caller]
    fn violated(looks: &[(usize, [u64; 2], &str)], within: Span) {
        let violation = record(looks).violation();
        assert_eq!(violation.map(|it| it.within), Some(within), "{looks:?}");
        // It is the same rule whoever is called x.
        let mirrored: Vec<_> = looks.iter().map(|(host, look, seen)| (1 - *host, *look, *seen)).collect();
        assert_eq!(record(&mirrored).violation().map(|it| it.within), Some(within), "{mirrored:?}");
    }

    #[track_caller]
    fn kept(looks: &[(usize, [u64; 2], &str)]) {
        assert_eq!(record(looks).violation(), None, "{looks:?}");
    }

    #[test]
    fn a_look_within_the_time_of_another_run_is_a_violation() {
        violated(&[(0, [0, 1], "a1"), (1, [1, 2], "b1"), (0, [2, 3], "a1")], span(1, 2));
        // As well if it lost sight of the run meanwhile.
        violated(&[(0, [0, 1], "a1"), (0, [1, 2], "?"), (1, [3, 4], "b1"), (0, [5, 6], "a1")], span(3, 4));
        violated(&[(0, [0, 1], "a1"), (0, [1, 2], "-"), (1, [3, 4], "b1"), (0, [5, 6], "a1")], span(3, 4));
    }

    #[test]
    fn times_of_two_runs_that_overlap_are_a_violation() {
        // No look lies within the time of the other run.
        let looks = [(0, [0, 10], "a1"), (1, [9, 15], "b1"), (0, [20, 31], "a1"), (1, [30, 40], "b1")];
        violated(&looks, span(15, 20));
    }

    #[test]
    fn looks_that_only_touch_prove_nothing() {
        // Served in turn, as far as anyone can tell: a look tells of some instant of its time.
        kept(&[(0, [0, 5], "a1"), (1, [3, 8], "b1")]);
        kept(&[(0, [0, 1], "a1"), (0, [2, 9], "a1"), (1, [3, 4], "b1"), (1, [10, 11], "b1")]);
        kept(&[(0, [0, 1], "a1"), (1, [1, 4], "b1"), (0, [3, 5], "a1")]);
    }

    #[test]
    fn a_run_that_ended_is_not_the_one_that_came_after_it() {
        kept(&[(0, [0, 1], "a1"), (1, [2, 3], "b1"), (0, [4, 5], "a2")]);
        kept(&[(0, [0, 1], "a1"), (0, [2, 3], "-"), (1, [4, 5], "b1"), (1, [6, 7], "-"), (0, [8, 9], "a2")]);
    }

    #[test]
    fn one_release_on_all_hosts_and_a_flip_of_all_keep_the_rule() {
        let flip = [
            (0, [0, 1], "a1"),
            (1, [0, 1], "a7"),
            (0, [2, 3], "a1"),
            (1, [2, 3], "a7"),
            (0, [4, 5], "-"),
            (1, [4, 5], "?"),
            (0, [6, 7], "b2"),
            (1, [6, 7], "b8"),
            (0, [8, 9], "b2"),
            (1, [8, 9], "b8"),
        ];
        kept(&flip);
        let seen = record(&flip).seen(Vec::new(), &[]);
        assert_eq!((seen.releases, seen.unknown, seen.looks), (2, 1, 0), "z was not looked at");
        assert_eq!(seen.runs["x"], ["a", "b"]);
        assert_eq!(seen.runs["y"], ["a", "b"]);
        assert_eq!(seen.blind, Duration::from_millis(10), "y was out of sight from 2 to 7");
        let mean = Duration::from_millis(11) / 3;
        assert_eq!(seen.usually_blind, 2 * mean, "y was out of sight from 0 to 3, 2 to 7 and 6 to 9");
    }

    #[test]
    fn two_releases_on_one_host_are_a_violation_too() {
        let looks = [(0, [0, 1], "a1"), (0, [2, 3], "b1"), (0, [4, 5], "a1")];
        assert_eq!(record(&looks).violation().map(|it| it.within), Some(span(2, 3)));
    }

    /// The release `b` is flipped to in fast mode, from 10 to 90, and may be served for 30 beside the one before.
    fn fast() -> FastFlip {
        FastFlip { to: "b".to_owned(), within: span(10, 90), skew_max: Duration::from_millis(30) }
    }

    /// A release from its first look to its last one, with one between them.
    fn stretch(host: usize, run: &str, [start, end]: [u64; 2]) -> [(usize, [u64; 2], &str); 3] {
        [(host, [start, start + 1], run), (host, [start + 2, end - 2], run), (host, [end - 1, end], run)]
    }

    #[test]
    fn a_flip_in_fast_mode_allows_its_skew_from_its_first_host_on_and_no_more() {
        let flip = |old: [u64; 2], new: [u64; 2]| [stretch(0, "a1", old), stretch(1, "b1", new)].concat();
        let judged = |looks: &[_]| record(looks).judge(&[fast()]);
        let ms = Duration::from_millis;
        assert_eq!(judged(&flip([0, 52], [20, 80])), (None, ms(30)), "seen to serve at 51, from 21 on");
        assert!(judged(&flip([0, 53], [20, 80])).0.is_some(), "for longer than stated");
        assert!(judged(&flip([0, 32], [5, 80])).0.is_some(), "it was served before the order");
        assert!(judged(&flip([0, 100], [90, 120])).0.is_some(), "it was opened after the flip was over");
        assert!(judged(&flip([20, 40], [20, 80])).0.is_none(), "what was served before may start again");
        // The first host counts, and not each by itself; nor is its end a new beginning.
        let again = [flip([0, 25], [60, 90]), stretch(0, "a2", [66, 80]).to_vec()].concat();
        assert_eq!(judged(&again), (None, ms(18)), "from 61 to 79");
        let third = [again, stretch(2, "b9", [20, 30]).to_vec()].concat();
        assert!(judged(&third).0.is_some());
    }

    #[test]
    fn a_flip_in_fast_mode_allows_nothing_but_its_own_release_beside_another_host() {
        let judged = |looks: &[_]| record(looks).judge(&[fast()]).0.is_some();
        let other = [stretch(0, "a1", [0, 40]), stretch(1, "c1", [20, 80])].concat();
        assert!(judged(&other), "another release came");
        let one_host = [(0, [0, 1], "a1"), (0, [20, 21], "b1"), (0, [22, 23], "a1")];
        assert!(judged(&one_host), "one host serves one release at any time");
        let back = [stretch(0, "b1", [20, 60]), stretch(1, "a1", [30, 80])].concat();
        assert!(judged(&back), "whichever of the two came first");
    }

    /// However two runs lie beside each other: what is found was so, and what lasted as long as the blind time is found.
    #[test]
    fn nothing_is_made_up_and_nothing_long_is_missed() {
        const LOOKS_UNTIL: u64 = 60;
        for (pace, phase) in [(2, 0), (3, 1), (5, 2), (7, 5)] {
            for end_of_a in 10..40 {
                for start_of_b in 10..40 {
                    let mut looks = Vec::new();
                    for start in (0..LOOKS_UNTIL).step_by(pace) {
                        let look = [start, start + 1];
                        // Whoever serves at the beginning of a look is the one that answers.
                        looks.push((0, look, if start < end_of_a { "a1" } else { "-" }));
                        let later = [start + phase, start + phase + 1];
                        looks.push((1, later, if later[0] >= start_of_b { "b1" } else { "-" }));
                    }
                    let record = record(&looks);
                    let together = Duration::from_millis(end_of_a.saturating_sub(start_of_b));
                    let found = record.violation().is_some();
                    assert!(!found || !together.is_zero(), "a until {end_of_a}, b from {start_of_b}");
                    assert!(found || together <= record.blind(), "a until {end_of_a}, b from {start_of_b}");
                }
            }
        }
    }
}
