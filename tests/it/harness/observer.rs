//! An observer that shares no code with the product: it reads what every host's link really leads to, and knows one rule.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::Fleet;

/// Watches all links of a fleet until it is asked.
pub(crate) struct Observer {
    stop: Arc<AtomicBool>,
    watching: Option<JoinHandle<Seen>>,
}

/// What an observer saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// How often each link was read.
    pub(crate) rounds: u64,
    /// How many different releases were served at one time or another.
    pub(crate) releases: usize,
    /// Two hosts that served different releases at one instant.
    pub(crate) violation: Option<String>,
}

/// One link, as it was read once. The same identity twice means that it was there all the time in between: a link is
/// never changed, only removed and made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    identity: (u64, i64, i64),
    release: PathBuf,
}

impl Observer {
    /// Begins to watch.
    pub(crate) fn of(fleet: &Fleet) -> Self {
        let links: Vec<PathBuf> = fleet.hosts().iter().map(super::Host::link).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let watching = std::thread::spawn(move || watch(&links, &stopping));
        Self { stop, watching: Some(watching) }
    }

    /// Ends watching. Panics if P1 did not hold.
    #[track_caller]
    pub(crate) fn expect_one_release_at_a_time(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let watching = self.watching.take().unwrap();
        let seen = watching.join().unwrap();
        assert_eq!(seen.violation, None, "P1: two hosts served different releases");
        assert!(seen.rounds > 10, "the observer hardly looked: {seen:?}");
        seen
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(links: &[PathBuf], stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut releases: Vec<PathBuf> = Vec::new();
    let mut last: Vec<Option<Link>> = vec![None; links.len()];
    // What was read of others since the last look at each link: they were served while it was, if it is still there.
    let mut meanwhile: Vec<Vec<PathBuf>> = vec![Vec::new(); links.len()];
    while !stop.load(Ordering::Relaxed) {
        for (index, path) in links.iter().enumerate() {
            let now = read(path);
            let others = std::mem::take(&mut meanwhile[index]);
            if let Some(link) = now.as_ref().filter(|link| last[index].as_ref() == Some(link))
                && let Some(other) = others.into_iter().find(|other| *other != link.release)
            {
                let text =
                    format!("{} led to {:?} while another led to {other:?}", path.display(), link.release);
                seen.violation.get_or_insert(text);
            }
            if let Some(link) = &now {
                if !releases.contains(&link.release) {
                    releases.push(link.release.clone());
                }
                for (other, list) in meanwhile.iter_mut().enumerate() {
                    if other != index && !list.contains(&link.release) {
                        list.push(link.release.clone());
                    }
                }
            }
            last[index] = now;
        }
        seen.rounds += 1;
        std::thread::yield_now();
    }
    seen.releases = releases.len();
    seen
}

fn read(path: &PathBuf) -> Option<Link> {
    let before = fs::symlink_metadata(path).ok()?;
    let release = fs::read_link(path).ok()?;
    let after = fs::symlink_metadata(path).ok()?;
    let identity = |it: &fs::Metadata| (it.ino(), it.ctime(), it.ctime_nsec());
    (identity(&before) == identity(&after)).then(|| Link { identity: identity(&after), release })
}
