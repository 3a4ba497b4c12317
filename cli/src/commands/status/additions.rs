//! The hosts that joiners have added, and how many more they may.

use muster_proto::v1;
use serde::Serialize;

use crate::output::{Page, counted};

/// The most hosts that a line names.
const NAMED_MAX: usize = 8;

#[derive(Debug, Serialize)]
pub(super) struct Additions {
    /// The revision that operators have signed last.
    base_revision: u64,
    hosts: Vec<String>,
    /// How many more may be added.
    room: u32,
}

impl Additions {
    pub(super) fn new(wire: v1::RosterAdditions) -> Self {
        let v1::RosterAdditions { base_revision, hosts, room } = wire;
        Self { base_revision, hosts, room }
    }

    pub(super) fn print(&self, page: &mut Page) {
        let room = counted(self.room, "host");
        if self.hosts.is_empty() {
            page.line(format_args!("joiners  may add {room}"));
            return;
        }
        let named = self.hosts.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = self.hosts.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let base = self.base_revision;
        page.line(format_args!("joiners  added {named}{more} to revision {base} of the operators, may add {room}"));
    }
}
