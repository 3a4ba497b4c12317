//! The store of tests and simulations: the same contract, nothing on a disk.

use crate::chain::{check_head, check_payload, entries_after, read_start, snapshot_after};
use crate::{AnchorPayload, Head, Position, Records, Store, StoreError, StoredRecord};

/// A chain in memory. What it calls durable survives only as long as the value, which is what a simulated
/// crash keeps.
#[derive(Debug, Clone, Default)]
pub struct MemStore {
    records: Vec<StoredRecord>,
}

impl MemStore {
    /// A store without records.
    #[must_use]
    pub const fn new() -> Self {
        Self { records: Vec::new() }
    }

    fn end(&self) -> Head {
        self.records.last().map_or_else(Head::genesis, StoredRecord::head)
    }
}

impl Store for MemStore {
    fn position(&self) -> Position {
        Position::durable_at(self.end())
    }

    fn first_seq(&self) -> u64 {
        self.records.first().map_or(1, |record| record.seq)
    }

    fn confirm(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn append(
        &mut self,
        expected: Head,
        bodies: &[Vec<u8>],
        payload: AnchorPayload<'_>,
    ) -> Result<Position, StoreError> {
        check_head(expected, self.end())?;
        check_payload(payload)?;
        self.records.extend(entries_after(expected, bodies)?);
        Ok(self.position())
    }

    fn compact(
        &mut self,
        expected: Head,
        snapshot: &[u8],
        payload: AnchorPayload<'_>,
    ) -> Result<Position, StoreError> {
        check_head(expected, self.end())?;
        check_payload(payload)?;
        self.records = vec![snapshot_after(expected, snapshot)?];
        Ok(self.position())
    }

    fn read_from(&self, from: u64) -> Result<Records<'_>, StoreError> {
        let from = read_start(from, self.first_seq())?;
        Ok(Box::new(self.records.iter().filter(move |record| record.seq >= from).cloned().map(Ok)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        crate::conformance::check(MemStore::new);
    }
}
