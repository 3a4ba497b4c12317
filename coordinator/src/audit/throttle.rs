//! What whoever has a certificate can cause as often as they like, written down at a bounded rate.
//!
//! The first few in a minute have an entry each. The rest is counted by caller, and one entry at the minute's end says how
//! many there were: a flood cannot fill the disk, and cannot hide that it was one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_audit::{Entry, Kind};
use muster_model::Refusal;
use muster_store::StoreError;
use tokio::time::Instant;

use super::{AuditHandle, refusal_entry};

const WINDOW: Duration = Duration::from_secs(60);
/// How many have an entry of their own in each window.
const WRITTEN_MAX: u32 = 8;
/// How many callers are counted apart from all others.
const CALLERS_NAMED_MAX: usize = 16;
/// How much is kept of the name of a call, which is whatever the caller has sent.
const CALL_CHARS_MAX: usize = 120;

/// Entries of one kind, at a bounded rate. A clone shares the counts.
#[derive(Clone)]
pub(crate) struct Throttle {
    audit: AuditHandle,
    kind: Kind,
    /// What is counted, in the plural.
    what: &'static str,
    length: Duration,
    window: Arc<Mutex<Window>>,
}

/// What happened in the present window.
#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    written: u32,
    counted: Counted,
}

#[derive(Debug, Default)]
struct Counted {
    by_caller: BTreeMap<String, u64>,
    by_others: u64,
}

/// What becomes of one that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It has an entry of its own.
    Written,
    /// It is the first that is only counted: at this time the count is written.
    FirstCounted(Instant),
    /// It is counted with others.
    Counted,
}

impl Throttle {
    pub(crate) fn new(audit: AuditHandle, kind: Kind, what: &'static str) -> Self {
        Self { audit, kind, what, length: WINDOW, window: Arc::default() }
    }

    /// A call was denied. It is told without waiting for the disk: nothing was done.
    pub(crate) fn denied(&self, who: &str, call: &str) {
        if self.is_written(who) {
            let call: String = call.chars().take(CALL_CHARS_MAX).collect();
            let (audit, entry) = (self.audit.clone(), self.audit.entry(self.kind, who).saying(call));
            tokio::spawn(async move { audit.note(vec![entry]).await });
        }
    }

    /// Something was refused to a caller whose role may ask for it. Unless it is counted, it is written before it is told.
    pub(crate) async fn refused(&self, who: &str, asked: &str, refusal: &Refusal) -> Result<(), StoreError> {
        if self.is_written(who) {
            self.audit.write(vec![refusal_entry(&self.audit, who, asked, refusal, None)]).await?;
        }
        Ok(())
    }

    fn is_written(&self, who: &str) -> bool {
        match self.lock().take(who, Instant::now(), self.length) {
            Fate::Written => true,
            Fate::Counted => false,
            Fate::FirstCounted(end) => {
                let throttle = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(end).await;
                    let summary = throttle.summary();
                    throttle.audit.note(vec![summary]).await;
                });
                false
            }
        }
    }

    fn summary(&self) -> Entry {
        let counted = std::mem::take(&mut *self.lock()).counted;
        self.audit.own_entry(self.kind).saying(counted.told(self.what, self.length))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn take(&mut self, who: &str, now: Instant, length: Duration) -> Fate {
        let has_counted = !self.counted.is_empty();
        let began = match self.began {
            // A window in which something was counted ends when the count is taken out of it.
            Some(began) if has_counted || now.duration_since(began) < length => began,
            Some(_) | None => {
                *self = Self { began: Some(now), ..Self::default() };
                now
            }
        };
        if self.written < WRITTEN_MAX {
            self.written += 1;
            return Fate::Written;
        }
        self.counted.take(who);
        if has_counted { Fate::Counted } else { Fate::FirstCounted(began + length) }
    }
}

impl Counted {
    fn is_empty(&self) -> bool {
        self.by_caller.is_empty()
    }

    fn take(&mut self, who: &str) {
        if let Some(count) = self.by_caller.get_mut(who) {
            *count += 1;
        } else if self.by_caller.len() < CALLERS_NAMED_MAX {
            self.by_caller.insert(who.to_owned(), 1);
        } else {
            self.by_others += 1;
        }
    }

    fn told(&self, what: &str, length: Duration) -> String {
        let all = self.by_caller.values().sum::<u64>() + self.by_others;
        let mut text = format!("{all} more {what} within {} s, which have no entries:", length.as_secs());
        let mut by_caller: Vec<_> = self.by_caller.iter().collect();
        by_caller.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (at, (who, count)) in by_caller.into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(text, "{comma} {count} of {who}").expect("a string takes everything");
        }
        if self.by_others > 0 {
            write!(text, ", {} of others", self.by_others).expect("a string takes everything");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_has_few_entries_and_none_of_it_is_lost_from_the_count() {
        let (mut window, start) = (Window::default(), Instant::now());
        for _ in 0..WRITTEN_MAX {
            assert_eq!(window.take("ann", start, WINDOW), Fate::Written);
        }
        assert_eq!(window.take("ann", start, WINDOW), Fate::FirstCounted(start + WINDOW));
        for i in 0..1000 {
            assert_eq!(
                window.take(&format!("bot-{}", i % 100), start + WINDOW, WINDOW),
                Fate::Counted,
                "{i}"
            );
        }
        assert_eq!(window.counted.by_caller.len(), CALLERS_NAMED_MAX);
        let told = std::mem::take(&mut window).counted.told("calls", WINDOW);
        assert!(
            told.starts_with("1001 more calls within 60 s, which have no entries: 10 of bot-0,"),
            "{told}"
        );
        assert!(told.contains(" 1 of ann,") && told.ends_with(", 850 of others"), "{told}");
        assert_eq!(window.take("ann", start + WINDOW, WINDOW), Fate::Written, "a new window");
    }

    #[tokio::test]
    async fn what_was_counted_is_in_the_log_once_the_time_is_over() {
        let place = crate::testing::Place::new();
        let (shared, _drivers) = place.open();
        let length = Duration::from_millis(500);
        let throttle = Throttle { length, ..Throttle::new(shared.audit.clone(), Kind::Denied, "calls") };
        let before = shared.audit.checkpoint().checkpoint().size;
        for _ in 0..WRITTEN_MAX + 100 {
            throttle.denied("bot", "/a/call");
        }
        let mut published = shared.audit.published.clone();
        let all = published.wait_for(|it| it.checkpoint.checkpoint().size > before + u64::from(WRITTEN_MAX));
        let patience = Duration::from_secs(30);
        drop(tokio::time::timeout(patience, all).await.expect("the count is written").unwrap());
        let entries = shared.audit.read(before).await.unwrap();
        let counted: Vec<_> = entries.iter().filter(|it| it.ends_with(b" 100 of bot\"}")).collect();
        assert_eq!((entries.len(), counted.len()), (WRITTEN_MAX as usize + 1, 1));
    }

    #[test]
    fn who_stays_below_the_rate_has_an_entry_each_time() {
        let (mut window, start) = (Window::default(), Instant::now());
        for i in 0..100 {
            let now = start + WINDOW * i / WRITTEN_MAX;
            assert_eq!(window.take("ann", now, WINDOW), Fate::Written, "{i}");
        }
    }
}
