//! What is kept of a lease on disk: the record of the deadline, and the halt beside it.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_model::{HaltId, UnixTime};

use crate::error::GuardError;
use crate::lease::LeaseRecord;
use crate::log::log;
use crate::protocol::Halt;
use crate::record::RecordFile;

/// What a record has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survives {
    /// The guard, within this boot.
    Process,
    /// The machine.
    PowerCut,
}

/// The two files of one fleet.
pub(crate) struct Ledger {
    lease: RecordFile<LeaseRecord>,
    halt: RecordFile<Halt>,
    halts: Mutex<()>,
    /// Held while the lease is written, so that the last word is written last.
    written: Mutex<Option<(LeaseRecord, Survives)>>,
}

impl Ledger {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            lease: RecordFile::new(folder.join("lease.json")),
            halt: RecordFile::new(folder.join("halted.json")),
            halts: Mutex::new(()),
            written: Mutex::new(None),
        }
    }

    pub(crate) fn read(&self) -> Result<Option<LeaseRecord>, GuardError> {
        self.lease.read()
    }

    /// The file itself is the halt; what it says is for people.
    pub(crate) fn halted(&self) -> Result<Option<Halt>, GuardError> {
        match self.halt.read() {
            Err(error @ GuardError::Corrupt { .. }) => {
                log!("{}; halted all the same", error.chain());
                Ok(Some(unknown_halt("the record of the halt is unreadable")))
            }
            other => other,
        }
    }

    /// The same where the disk does not say: then the fleet is halted.
    pub(crate) fn halted_or_unknown(&self) -> Option<Halt> {
        self.halted().unwrap_or_else(|error| {
            log!("{}; halted all the same", error.chain());
            Some(unknown_halt("whether it was halted cannot be read"))
        })
    }

    /// Writes what `current` says once it is this writer's turn, unless that is what was written last.
    pub(crate) fn write(
        &self,
        current: impl FnOnce() -> LeaseRecord,
        survives: Survives,
    ) -> Result<(), GuardError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let record = current();
        if let Some((last, survived)) = &*written
            && *last == record
            && (*survived == survives || *survived == Survives::PowerCut)
        {
            return Ok(());
        }
        // A writing that fails half-way leaves it open what is on the disk.
        *written = None;
        match survives {
            Survives::Process => self.lease.write_for_this_boot(&record)?,
            Survives::PowerCut => self.lease.write(&record)?,
        }
        *written = Some((record, survives));
        Ok(())
    }

    /// Held by whoever changes the record of halts, so that it says in the end what the lease does.
    pub(crate) fn halts(&self) -> MutexGuard<'_, ()> {
        self.halts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn halt(&self, halt: &Halt) -> Result<(), GuardError> {
        self.halt.write(halt)
    }

    pub(crate) fn resume(&self) -> Result<(), GuardError> {
        self.halt.remove().map(drop)
    }
}

fn unknown_halt(reason: &str) -> Halt {
    Halt { id: HaltId(0), at_unix_ms: UnixTime(0), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use muster_model::BootId;

    use super::*;
    use crate::protocol::LeaseState;

    #[test]
    fn a_halt_is_a_halt_whatever_its_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(folder.path());
        assert_eq!(ledger.halted().unwrap(), None);
        for text in ["", "{}", "{\"id\":1,\"at_unix_ms\":1,\"reason\":\"x\"}"] {
            std::fs::write(folder.path().join("halted.json"), text).unwrap();
            assert!(ledger.halted().unwrap().is_some(), "{text}");
        }
        ledger.resume().unwrap();
        ledger.resume().unwrap();
        assert_eq!(ledger.halted().unwrap(), None);
    }

    #[test]
    fn the_same_word_is_written_once_and_again_if_it_must_survive_more() {
        let folder = tempfile::tempdir().unwrap();
        let (ledger, path) = (Ledger::new(folder.path()), folder.path().join("lease.json"));
        let boot_id = BootId::new("00000000-0000-4000-8000-000000000001").unwrap();
        let record = || LeaseRecord { boot_id: boot_id.clone(), hold: LeaseState::Free, flipped: None };
        let writes = |survives| {
            let before = path.exists();
            ledger.write(record, survives).unwrap();
            let wrote = path.exists();
            let _ = std::fs::remove_file(&path);
            wrote && !before
        };
        assert!(writes(Survives::Process));
        assert!(!writes(Survives::Process));
        assert!(writes(Survives::PowerCut));
        assert!(!writes(Survives::Process) && !writes(Survives::PowerCut));
    }
}
