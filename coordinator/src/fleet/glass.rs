//! What hosts tell of break-glass tokens, for the audit log: once for each use, also where it was settled before it was heard of.

use std::collections::BTreeSet;

use muster_audit::{Entry, Kind};
use muster_model::{BrokenGlass, Digest, FleetName, HostName};
use muster_rollout::fleet::Event;

use crate::audit::AuditHandle;

/// The most uses of one host that are written by one leader: whatever a host says fills no log.
const USES_MAX: usize = 2 * BrokenGlass::KEPT_MAX;

/// What this leader has written of. A later one writes again of what hosts still keep: better twice than never.
#[derive(Default)]
pub(super) struct GlassNotes(BTreeSet<(HostName, Digest)>);

impl GlassNotes {
    /// The entries for what a joining host says, as far as it is news.
    pub(super) fn take(&mut self, audit: &AuditHandle, fleet: &FleetName, event: &Event) -> Vec<Entry> {
        let Event::Joining { host, report, .. } = event else { return Vec::new() };
        let entry = |used: &BrokenGlass| {
            let settled = if used.settled { "; operators have settled it" } else { "" };
            let said = format!(
                "epoch {} was started without a coordinator at {} ms since 1970, by the host's clock: {}{settled}",
                used.epoch, used.at_unix_ms.0, used.reason
            );
            let entry = audit.own_entry(Kind::BreakGlass).of_fleet(fleet).of_hosts([host]);
            entry.with("token", used.id).with("manifest", used.release).saying(said)
        };
        report.standing.glass.iter().filter(|used| self.is_news(host, used.id)).map(entry).collect()
    }

    fn is_news(&mut self, host: &HostName, id: Digest) -> bool {
        self.0.iter().filter(|(known, _)| known == host).count() < USES_MAX
            && self.0.insert((host.clone(), id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_use_is_written_once_and_a_host_that_makes_them_up_fills_no_log() {
        let mut notes = GlassNotes::default();
        let host = |name| HostName::new(name).unwrap();
        let id = |number: usize| Digest::of(&number.to_be_bytes());
        assert!(notes.is_news(&host("host-1"), id(1)));
        assert!(!notes.is_news(&host("host-1"), id(1)));
        assert!(notes.is_news(&host("host-2"), id(1)));
        let news = (0..10_000).filter(|number| notes.is_news(&host("host-1"), id(*number))).count();
        assert_eq!(news + 1, USES_MAX);
        assert!(notes.is_news(&host("host-2"), id(2)), "others are heard all the same");
    }
}
