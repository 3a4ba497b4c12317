//! The hosts that joiners have added, and how many more they may.

use muster_proto::v1;
use serde::Serialize;

use crate::output::{Page, counted};
use crate::view::listed;

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
        let (added, base) = (listed(&self.hosts), self.base_revision);
        page.line(format_args!("joiners  added {added} to revision {base} of the operators, may add {room}"));
    }
}
