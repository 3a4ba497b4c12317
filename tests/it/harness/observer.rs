//! An observer that shares no code with the product. It asks every host, again and again, what it serves; it knows one
//! rule, P1: no instant at which two hosts serve different releases.
//!
//! It asks in one of two ways: [`Observer::of`] reads what the hosts' links lead to, [`Observer::of_services`] asks the
//! hosts' [`Service`]s over TCP. Both write one [`Record`], and the evaluation is the record's.
//!
//! # What it can miss
//! A look takes a while, and proves what was served at *some* instant of that while. Two looks that find the same
//! **run** (one process, or one link that was not made anew) prove that it was served all the time between them.
//! P1 is violated if two such times overlap, or if a look at one host lies within such a time of another. So the
//! observer never reports what was not, and misses what was too short for it: with `G` the longest time from the
//! beginning of a look at a host to the end of the next one that told something, two releases that are served together
//! for less than `2G` may go unseen, and any longer time is found. `2G` is measured and printed with every result, and
//! beside it the same for the mean instead of the longest time, which is what usually held. Both grow with the load of
//! the machine, and with every look that was not answered: whoever cuts networks gives the services an address that
//! stays reachable.
//!
//! A process that is halted counts as serving: it has the address, and may go on at any instant.
//!
//! # Flips in fast mode
//! Such a flip does not promise P1: hosts flip at one instant by their own clocks, and for a while both releases are served.
//! Whoever orders one says so with a [`FastFlip`], and from the first look that finds its release no other host may serve what
//! was served before for longer than the skew that is stated. For any other two releases, at any other time, and on
//! one host, P1 holds as ever.

mod fast;
mod http;
mod link;
mod record;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use self::http::HttpProbe;
use self::link::LinkProbe;
use self::record::{Record, Violation};
use super::{Fleet, Host, until};

pub(crate) use self::fast::FastFlip;
pub(crate) use self::http::Service;

/// Between two looks at one link: it costs three system calls.
const LINK_PAUSE: Duration = Duration::from_micros(200);

/// Between two questions to one service.
const HTTP_PAUSE: Duration = Duration::from_millis(2);

/// With so many more looks at every host, two runs that go on beside each other are proven to.
const LOOKS_AFTERWARDS: u64 = 4;

/// Fewer looks at a host than this, and nothing was observed.
const LOOKS_MIN: u64 = 10;

/// An observer that needs longer from one look to the end of the next one has lost sight of a host.
const SIGHT: Duration = Duration::from_millis(50);

/// One way to see what one host serves.
trait Probe: Send + 'static {
    fn look(&mut self) -> Outcome;
}

/// What one look at one host showed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// The host serves this release, in this run of it.
    Serves { release: String, run: String },
    /// The host serves nothing.
    Nothing,
    /// There was no answer, or none that makes sense: it tells nothing.
    Unknown,
}

/// From before a look, or whatever it is, until after it, in `CLOCK_MONOTONIC`: nobody sets that clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: Duration,
    end: Duration,
}

/// Watches all hosts of a fleet until it is asked.
pub(crate) struct Observer {
    record: Arc<Mutex<Record>>,
    watchers: Vec<Watcher>,
    /// Files in which services say that they found another one alive.
    conflicts: Vec<PathBuf>,
}

/// A thread that looks at one host until the sender is gone.
struct Watcher {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

/// What an observer saw.
#[derive(Debug)]
pub(crate) struct Seen {
    /// How many different releases were served at one time or another.
    pub(crate) releases: usize,
    /// The release of each run of each host, in order.
    pub(crate) runs: BTreeMap<String, Vec<String>>,
    /// Two releases that were served together for less than this may not have been seen.
    pub(crate) blind: Duration,
    /// The same for the mean time between looks instead of the longest.
    pub(crate) usually_blind: Duration,
    /// For how much of the time it had lost sight of a host, of 1: of the host for which it is most.
    pub(crate) out_of_sight: f64,
    /// For how long at most two releases were seen together in a flip in fast mode that allows it.
    pub(crate) skew: Duration,
    /// How many looks there were at the host that was looked at least.
    pub(crate) looks: u64,
    /// How many looks told nothing.
    pub(crate) unknown: u64,
    /// What services said that found another one alive.
    pub(crate) conflicts: Vec<String>,
    violation: Option<Violation>,
}

impl Observer {
    /// Begins to watch the links of a fleet.
    pub(crate) fn of(fleet: &Fleet) -> Self {
        let probes = fleet.hosts().into_iter().map(|host| (host.name().to_owned(), LinkProbe(host.link())));
        Self::watch(probes.collect(), LINK_PAUSE)
    }

    /// Begins to watch the services of a fleet that [`Service::fleet`] has started.
    pub(crate) fn of_services(fleet: &Fleet) -> Self {
        let files: Vec<_> =
            fleet.hosts().iter().map(|host| (host.name().to_owned(), Service::file(host))).collect();
        let probes = files.iter().map(|(host, file)| (host.clone(), HttpProbe::of(file)));
        let mut observer = Self::watch(probes.collect(), HTTP_PAUSE);
        observer.conflicts = files.iter().map(|(_, file)| Service::conflicts(file)).collect();
        observer
    }

    /// A thread for each host: one that does not answer does not keep the looks at the others.
    fn watch<P: Probe>(probes: Vec<(String, P)>, pause: Duration) -> Self {
        let hosts = probes.iter().map(|(host, _)| host.clone());
        let record = Arc::new(Mutex::new(Record::of(hosts)));
        let watch = |(index, (_, mut probe)): (usize, (String, P))| {
            let (stop, stopped) = channel();
            let record = Arc::clone(&record);
            let thread = std::thread::spawn(move || {
                loop {
                    let start = monotonic();
                    let outcome = probe.look();
                    let span = Span { start, end: monotonic() };
                    record.lock().unwrap().push(index, span, outcome);
                    if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            });
            Watcher { stop, thread }
        };
        let watchers = probes.into_iter().enumerate().map(watch).collect();
        Self { record, watchers, conflicts: Vec::new() }
    }

    /// Waits until every host was seen to serve this release, at its last look that told something.
    #[track_caller]
    pub(crate) fn wait_all_serve(&self, release: &str) {
        until(&format!("all are seen to serve {release}"), || self.record().all_serve(release, |_| true));
    }

    /// The same for these hosts, and until all hosts were looked at often enough afterwards for the record to tell what
    /// was served together with it.
    #[track_caller]
    pub(crate) fn wait_serve(&self, hosts: &[Host], release: &str) {
        let is_one = |name: &str| hosts.iter().any(|host| host.name() == name);
        until(&format!("some are seen to serve {release}"), || self.record().all_serve(release, is_one));
        let before = self.record().looks();
        until("all are looked at again", || {
            let now = self.record().looks();
            now.iter().zip(&before).all(|(now, before)| *now >= before + LOOKS_AFTERWARDS)
        });
    }

    /// Ends watching, and says what was seen.
    #[track_caller]
    pub(crate) fn finish(self) -> Seen {
        self.finish_after(&[])
    }

    /// The same, where these flips were in fast mode, and all others were not.
    #[track_caller]
    pub(crate) fn finish_after(mut self, fast: &[FastFlip]) -> Seen {
        for Watcher { stop, thread } in std::mem::take(&mut self.watchers) {
            drop(stop);
            thread.join().unwrap();
        }
        let conflicts = self.conflicts.iter().filter_map(|file| fs::read_to_string(file).ok());
        let conflicts =
            conflicts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let seen = self.record().seen(conflicts, fast);
        seen.print();
        seen
    }

    /// Ends watching. Panics if P1 did not hold.
    #[track_caller]
    pub(crate) fn expect_one_release_at_a_time(self) -> Seen {
        self.expect_one_release_but_for(&[])
    }

    /// Ends watching. Panics if P1 did not hold, but for what these flips in fast mode allow.
    #[track_caller]
    pub(crate) fn expect_one_release_but_for(self, fast: &[FastFlip]) -> Seen {
        let seen = self.finish_after(fast);
        seen.expect_one_release_at_a_time();
        seen
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }
}

impl Seen {
    /// Whether these two releases were seen to be served together.
    pub(crate) fn violates(&self, releases: [&str; 2]) -> bool {
        let served = |violation: &Violation| {
            let mut served = violation.served.each_ref().map(|(_, release)| release.as_str());
            served.sort_unstable();
            served == releases
        };
        self.violation.as_ref().is_some_and(served)
    }

    /// Panics if two releases that were seen together were so at another time than allowed, or for too long.
    #[track_caller]
    pub(crate) fn expect_one_release_at_a_time(&self) {
        if let Some(violation) = &self.violation {
            panic!("P1: {violation}");
        }
        assert!(self.conflicts.is_empty(), "a service was started beside another one: {:?}", self.conflicts);
        assert!(self.looks > LOOKS_MIN, "the observer hardly looked: {self:?}");
    }

    #[expect(clippy::print_stderr, reason = "how much the observer can miss belongs to every result")]
    fn print(&self) {
        let Self { looks, unknown, blind, usually_blind, skew, .. } = self;
        eprintln!(
            "observer: at least {looks} looks at each host, {unknown} without an answer; two releases served together \
             for less than {blind:.1?}, usually {usually_blind:.1?}, could have been missed; in fast mode they were for \
             {skew:.1?} at most"
        );
    }
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}
