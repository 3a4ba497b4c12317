//! Opening: comparing what the database holds with what the anchor says was acknowledged.

use std::fs;
use std::path::{Path, PathBuf};

use crate::anchor::{Anchor, FoundAnchor, OtherSlot};
use crate::disk::Disk;
use crate::lock::Lock;
use crate::log::{Log, LogError};
use crate::{
    AnchorFault, AnchorPayload, AnchoredPayload, ChainFault, Damage, Head, RecordKind, SledStore, StoreError,
    StoredRecord,
};

const DATABASE: &str = "db";
const ANCHOR: &str = "anchor";
const LOCK: &str = "lock";

/// How many damaged databases are kept before a start refuses: a disk that makes so many is not to be trusted.
const DAMAGED_MAX: usize = 16;

/// What to do with a database that lost acknowledged records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Refuse to open: the state exists nowhere else, and an operator restores a backup (coordinator).
    Refuse,
    /// Put the database aside and go on from the anchor, with the loss on record: peers hold the rest (agent).
    Salvage,
}

/// How to open a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What to do with a damaged database.
    pub policy: Policy,
    /// How many bytes of pages sled keeps in memory.
    pub cache_bytes_max: u64,
}

impl Options {
    /// For a coordinator: refuses damage.
    #[must_use]
    pub const fn coordinator() -> Self {
        Self { policy: Policy::Refuse, cache_bytes_max: 16 << 20 }
    }

    /// For an agent: salvages damage, and keeps the memory small.
    #[must_use]
    pub const fn agent() -> Self {
        Self { policy: Policy::Salvage, cache_bytes_max: 1 << 20 }
    }
}

/// An open store, and what was found.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: SledStore,
    /// What was found.
    pub recovery: Recovery,
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was ever acknowledged: a new store.
    Fresh,
    /// Database and anchor agree.
    Clean,
    /// The database had more than was acknowledged, as a kill between the two writes leaves it. The records are
    /// verified, durable and acknowledged now; nobody was told of them before.
    AdoptedTail {
        /// How many records there are past the anchor's.
        records: u64,
    },
    /// The database did not hold what was acknowledged. It lies aside, and the chain goes on from the anchor with a
    /// record of kind [`RecordKind::HistoryLost`]. Said again by every open until a record follows that one.
    HistoryLost {
        /// What had been acknowledged, as far as the anchor knows.
        anchored: Head,
        /// The caller's state from the anchor; older than `anchored` if its number is smaller.
        payload: Option<AnchoredPayload>,
        /// What was found instead of the history.
        damage: Damage,
        /// Where the damaged database lies, if there was any.
        aside: Option<PathBuf>,
    },
}

/// Opens the store in `dir`.
pub(crate) fn open(dir: &Path, options: Options, disk: &Disk) -> Result<Opened, StoreError> {
    disk.create_folder(dir)?;
    let lock = Lock::acquire(&dir.join(LOCK))?;
    let path = dir.join(ANCHOR);
    let place = Place { dir, options, disk };
    let damaged = |fault| StoreError::AnchorMissing { path: path.clone(), fault };
    match Anchor::find(&path, disk)? {
        FoundAnchor::Valid(anchor, other) => place.recover(anchor, other, lock),
        FoundAnchor::Damaged => Err(damaged(AnchorFault::BothSlotsDamaged)),
        FoundAnchor::Absent if place.database_exists()? => Err(damaged(AnchorFault::Missing)),
        FoundAnchor::Absent => {
            // The anchor comes first, so that a database without one always means that it was lost.
            let anchor = Anchor::create(&path, Head::genesis(), disk)?;
            place.begin(anchor, lock)
        }
    }
}

/// Builds a store from records that were verified elsewhere; `dir` is empty and nobody else's.
pub(crate) fn build(
    dir: &Path,
    options: Options,
    records: impl Iterator<Item = Result<StoredRecord, StoreError>>,
) -> Result<Head, StoreError> {
    /// How many records sled may hold unwritten.
    const UNWRITTEN_MAX: usize = 1000;
    let disk = Disk::default();
    let mut log = Place { dir, options, disk: &disk }.create_database()?;
    let mut head = Head::genesis();
    for (index, record) in records.enumerate() {
        let record = record?;
        log.insert(&record)?;
        head = record.head();
        if index % UNWRITTEN_MAX == UNWRITTEN_MAX - 1 {
            log.make_durable()?;
        }
    }
    log.make_durable()?;
    Anchor::create(&dir.join(ANCHOR), head, &disk)?;
    Ok(head)
}

/// What a look at the whole chain found.
struct Chain {
    head: Head,
    base: Option<Base>,
    anchored: Anchored,
}

/// The record that a chain is read from, if it is not the first ever.
#[derive(Debug, Clone, Copy)]
struct Base {
    kind: RecordKind,
    before: Head,
}

impl Base {
    const fn seq(self) -> u64 {
        self.before.seq + 1
    }
}

/// Whether the chain contains the anchored head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Anchored {
    Held,
    NotHeld,
}

/// What follows from the comparison.
enum Verdict {
    Agrees { log: Log, chain: Chain },
    Damaged(Damage),
}

struct Place<'a> {
    dir: &'a Path,
    options: Options,
    disk: &'a Disk,
}

impl Place<'_> {
    fn recover(&self, anchor: Anchor, other: OtherSlot, lock: Lock) -> Result<Opened, StoreError> {
        match self.judge(anchor.head(), other)? {
            Verdict::Agrees { log, chain } => adopt(log, anchor, &chain, lock),
            // Nothing was acknowledged yet, and nothing acknowledged is lost: a start that was cut short.
            Verdict::Damaged(_) if anchor.head() == Head::genesis() && other == OtherSlot::Valid => {
                self.put_aside(0)?;
                self.begin(anchor, lock)
            }
            Verdict::Damaged(damage) => match self.options.policy {
                Policy::Refuse => Err(StoreError::HistoryDamaged {
                    dir: self.dir.to_owned(),
                    anchored: anchor.head(),
                    damage,
                }),
                Policy::Salvage => self.salvage(anchor, damage, lock),
            },
        }
    }

    /// Case (i) is [`Verdict::Agrees`]: the chain holds the anchor's number and hash, and the rest verifies.
    /// Case (ii) is [`Verdict::Damaged`].
    fn judge(&self, anchored: Head, other: OtherSlot) -> Result<Verdict, StoreError> {
        if !self.database_exists()? {
            return Ok(Verdict::Damaged(Damage::Missing));
        }
        let log = match Log::open(&self.database(), self.options.cache_bytes_max, self.disk) {
            Ok(log) => log,
            Err(LogError::System(error)) => return Err(error),
            Err(LogError::Damaged(damage)) => return Ok(Verdict::Damaged(damage)),
        };
        let found = match walk(&log, anchored) {
            Ok(chain) => match compare(&chain, anchored, other) {
                None => return Ok(Verdict::Agrees { log, chain }),
                Some(damage) => Ok(Verdict::Damaged(damage)),
            },
            // Its checksum holds, so that this is no damage: a downgrade must not put the history aside.
            Err(LogError::Damaged(Damage::Record { fault, .. })) if fault.is_newer() => {
                Err(StoreError::Newer { path: self.database() })
            }
            Err(LogError::Damaged(damage)) => Ok(Verdict::Damaged(damage)),
            Err(LogError::System(error)) => Err(error),
        };
        log.close_damaged();
        found
    }

    /// Creates the database of a store in which nothing was ever acknowledged.
    fn begin(&self, anchor: Anchor, lock: Lock) -> Result<Opened, StoreError> {
        let log = self.create_database()?;
        Ok(Opened { store: SledStore::assemble(log, anchor, 1, lock), recovery: Recovery::Fresh })
    }

    /// Begins a new database that goes on from the anchor. Cut short at any point, the next start finds the
    /// database missing or too short and begins again, or finds the new record past the anchor and adopts it.
    fn salvage(&self, mut anchor: Anchor, damage: Damage, lock: Lock) -> Result<Opened, StoreError> {
        let anchored = anchor.head();
        let payload = anchor.payload().cloned();
        let aside = self.put_aside(anchored.seq)?;
        tracing::error!(
            dir = %self.dir.display(), record = anchored.seq, %damage, aside = ?aside,
            "the database lost acknowledged records; going on from the anchor"
        );
        let mut log = self.create_database()?;
        let body = payload.as_ref().map_or_else(Vec::new, |payload| payload.bytes.clone());
        let record = StoredRecord::after(anchored, RecordKind::HistoryLost, body);
        log.insert(&record)?;
        log.make_durable()?;
        anchor.advance(record.head(), AnchorPayload::Keep)?;
        let store = SledStore::assemble(log, anchor, record.seq, lock);
        Ok(Opened { store, recovery: Recovery::HistoryLost { anchored, payload, damage, aside } })
    }

    /// Renames the database, if there is one, to a name that is free.
    fn put_aside(&self, seq: u64) -> Result<Option<PathBuf>, StoreError> {
        if !self.database_exists()? {
            return Ok(None);
        }
        let count = self.count_damaged()?;
        if count >= DAMAGED_MAX {
            return Err(StoreError::TooManyDamaged { dir: self.dir.to_owned(), count });
        }
        let name = format!("{DATABASE}.damaged-{seq}");
        let numbered = (2..=DAMAGED_MAX + 1).map(|number| self.dir.join(format!("{name}-{number}")));
        let aside = std::iter::once(self.dir.join(&name))
            .chain(numbered)
            .find(|path| !path.exists())
            .expect("there are more names than databases");
        self.disk.rename(&self.database(), &aside)?;
        Ok(Some(aside))
    }

    fn count_damaged(&self) -> Result<usize, StoreError> {
        let read = |source| StoreError::io("read", self.dir, source);
        let prefix = format!("{DATABASE}.damaged-");
        let mut count = 0;
        for entry in fs::read_dir(self.dir).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            count += usize::from(name.to_string_lossy().starts_with(&prefix));
        }
        Ok(count)
    }

    fn create_database(&self) -> Result<Log, StoreError> {
        let path = self.database();
        Log::open(&path, self.options.cache_bytes_max, self.disk).map_err(|error| match error {
            LogError::System(error) => error,
            LogError::Damaged(damage) => {
                StoreError::Database { action: "create", path, source: damage.into() }
            }
        })
    }

    fn database(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    fn database_exists(&self) -> Result<bool, StoreError> {
        let path = self.database();
        path.try_exists().map_err(|source| StoreError::io("find", &path, source))
    }
}

/// Acknowledges what the database holds, which nobody was told of, and ends an interrupted compaction.
fn adopt(mut log: Log, mut anchor: Anchor, chain: &Chain, lock: Lock) -> Result<Opened, StoreError> {
    let anchored = anchor.head();
    let recovery = match chain.base {
        // Nothing was appended since, so that nobody has taken note of the loss yet, or not durably.
        Some(base) if base.kind == RecordKind::HistoryLost && base.seq() == chain.head.seq => {
            Recovery::HistoryLost {
                anchored: base.before,
                payload: anchor.payload().cloned(),
                damage: Damage::FoundEarlier,
                aside: None,
            }
        }
        Some(_) | None if chain.head == anchored => Recovery::Clean,
        Some(_) | None => Recovery::AdoptedTail { records: chain.head.seq - anchored.seq },
    };
    if chain.head != anchored {
        // A killed process leaves its tail in the page cache only.
        log.make_durable()?;
        anchor.advance(chain.head, AnchorPayload::Keep)?;
    }
    let first_seq = chain.base.map_or(1, Base::seq);
    let store = SledStore::assemble(log, anchor, first_seq, lock);
    store.remove_compacted()?;
    Ok(Opened { store, recovery })
}

/// Verifies the chain from its end back to the newest base, or to the first record.
fn walk(log: &Log, anchored: Head) -> Result<Chain, LogError> {
    let broken = |seq, fault| LogError::Damaged(Damage::Record { seq, fault });
    let mut found = Anchored::NotHeld;
    let mut head = None;
    // What the record before the one just looked at has to be.
    let mut start = None;
    let mut base = None;
    for seq in (1..=log.last_seq()?.unwrap_or(0)).rev() {
        let record = log.record(seq)?;
        if start.is_some_and(|start| start != record.head()) {
            return Err(broken(seq + 1, ChainFault::Link));
        }
        if record.head() == anchored {
            found = Anchored::Held;
        }
        head.get_or_insert(record.head());
        start = Some(record.previous());
        if record.kind.is_base() {
            base = Some(Base { kind: record.kind, before: record.previous() });
            break;
        }
    }
    let start = start.unwrap_or_else(Head::genesis);
    if base.is_none() && start != Head::genesis() {
        return Err(broken(1, ChainFault::Link));
    }
    // A base states the head that it follows: an anchor that is one record behind is held by it.
    if start == anchored {
        found = Anchored::Held;
    }
    Ok(Chain { head: head.unwrap_or(start), base, anchored: found })
}

/// What the chain lacks, if anything.
fn compare(chain: &Chain, anchored: Head, other: OtherSlot) -> Option<Damage> {
    match (chain.anchored, other) {
        (Anchored::NotHeld, _) if chain.head.seq < anchored.seq => {
            Some(Damage::Shorter { end: chain.head.seq })
        }
        (Anchored::NotHeld, _) => Some(Damage::Differs),
        // A slot is overwritten only after the database holds, durably, more than the other slot speaks of. So a
        // damaged slot, torn or rotten, proves that there was more than the valid one says; a chain that ends
        // there has lost it, and it may have been acknowledged.
        (Anchored::Held, OtherSlot::Damaged) if chain.head == anchored => Some(Damage::BehindDamagedSlot),
        (Anchored::Held, OtherSlot::Valid | OtherSlot::Damaged) => None,
    }
}
