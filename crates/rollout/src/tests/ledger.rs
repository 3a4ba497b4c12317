//! The disk of a guard in the simulated world: the record of its lease, and its halt beside it.

use muster_guard::Halt;
use muster_guard::lease::{Found, LeaseRecord};

use super::random::SplitMix64;

/// What a record has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Survives {
    /// The guard, within this boot: it stays in the page cache.
    Process,
    /// The machine.
    PowerCut,
}

/// What a guard keeps. A record is replaced as a whole, by renaming.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    /// What a process reads.
    lease: Option<Vec<u8>>,
    /// What is there in any case after the power was cut.
    synced: Option<Vec<u8>>,
    /// What may be there instead: written since, oldest first.
    unsynced: Vec<Vec<u8>>,
    /// Written and removed durably, always.
    pub(super) halt: Option<Halt>,
}

impl Ledger {
    /// Writes the record, unless that is what was written last.
    pub(super) fn write(&mut self, record: &LeaseRecord, survives: Survives) {
        let bytes = serde_json::to_vec(record).expect("a record can be written");
        let is_known = self.lease.as_ref() == Some(&bytes);
        match survives {
            Survives::Process if is_known => return,
            Survives::Process => self.unsynced.push(bytes.clone()),
            Survives::PowerCut => {
                self.synced = Some(bytes.clone());
                self.unsynced.clear();
            }
        }
        self.lease = Some(bytes);
    }

    /// What a guard finds that starts.
    pub(super) fn read(&self) -> Found {
        match &self.lease {
            None => Found::Nothing,
            Some(bytes) => serde_json::from_slice(bytes).map_or(Found::Unreadable, Found::Record),
        }
    }

    /// The power goes: of what was not synced any may be there, or the name of it and not all of its bytes. Says whether
    /// the last word was lost.
    pub(super) fn lose_power(&mut self, random: &mut SplitMix64) -> bool {
        let mut kept = std::mem::take(&mut self.unsynced);
        if kept.is_empty() {
            return false;
        }
        let newest = self.lease.take();
        let at = random.index(kept.len() + 2);
        self.lease = if at == 0 {
            self.synced.clone()
        } else if at <= kept.len() {
            Some(kept.swap_remove(at - 1))
        } else {
            let mut torn = kept.swap_remove(at - 2);
            torn.truncate(random.index(torn.len()));
            Some(torn)
        };
        self.synced.clone_from(&self.lease);
        self.lease != newest
    }
}
