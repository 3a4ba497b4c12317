//! Entries: what was done, when, by whom, and which signed documents say so.

use std::collections::BTreeMap;
use std::fmt;

use muster_model::{Digest, FleetName, HostName, RolloutId, UnixTime};
use serde::{Deserialize, Serialize};

/// The longest entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 64 << 10;

/// The most hosts that an entry names; of more, the signed document that it names says which.
pub const HOSTS_NAMED_MAX: usize = 200;

/// What the documents of an entry call an order's envelope.
pub const ORDER_DOCUMENT: &str = "order";

/// What they call a root document.
pub const ROOT_DOCUMENT: &str = "root";

const FORMAT: &str = "muster.audit-entry/1";

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The log began. It names the last known checkpoint of the log before it, if there was one.
    Began,
    /// A coordinator began to lead a fleet.
    Lead,
    /// A root document is in force: one that was applied, or that the coordinator found in force when it started.
    Root,
    /// A roster was applied.
    Roster,
    /// Override: an operator stated that hosts serve nothing any more.
    Fence,
    /// Override: an operator settled that a host's identity belongs to one machine.
    Readmit,
    /// A release was made known.
    Release,
    /// An order was given to its fleet.
    Order,
    /// An order was kept until enough operators have signed it.
    Propose,
    /// A key signed an order or a root document.
    Approval,
    /// An operator took an order back that waited for approvals.
    Cancel,
    /// What was asked for was refused.
    Refusal,
    /// Calls were made that the caller's role may not make.
    Denied,
    /// Override: an operator gave a rollout up.
    Abort,
    /// Override: a host told that something was started on it without a coordinator, by a break-glass token.
    BreakGlass,
    /// The operators have settled what a host started without a coordinator.
    SettleGlass,
    /// Override: an operator had all hosts stop.
    Halt,
    /// Override: the coordinator's state was restored, and may have forgotten what came after the backup.
    Restore,
    /// A token was made with which a host can enrol.
    Token,
    /// A host enrolled.
    Enrol,
    /// A certificate was issued in place of one that has expired, or a person's was renewed.
    Certificate,
    /// A certificate was revoked.
    Revoke,
    /// Override: an operator revoked all certificates of a host.
    Evict,
    /// Something happened that looks like theft. As an override it stays in the status until somebody has looked at it.
    Alarm,
    /// Override: the operators have mandated a new coordinator, which is rebuilt from the hosts.
    Rebuild,
    /// A fleet reached another phase.
    Phase,
    /// A rollout ended.
    Ended,
    /// A host told that what it serves has changed on its disk, or that it is right again.
    Drift,
    /// An override was looked at and found to be in order.
    Reconcile,
}

impl Kind {
    /// All kinds.
    pub const ALL: &'static [Self] = &[
        Self::Began,
        Self::Lead,
        Self::Root,
        Self::Roster,
        Self::Fence,
        Self::Readmit,
        Self::Release,
        Self::Order,
        Self::Propose,
        Self::Approval,
        Self::Cancel,
        Self::Refusal,
        Self::Denied,
        Self::Abort,
        Self::BreakGlass,
        Self::SettleGlass,
        Self::Halt,
        Self::Restore,
        Self::Token,
        Self::Enrol,
        Self::Certificate,
        Self::Revoke,
        Self::Evict,
        Self::Alarm,
        Self::Rebuild,
        Self::Phase,
        Self::Ended,
        Self::Drift,
        Self::Reconcile,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Began => "began",
            Self::Lead => "lead",
            Self::Root => "root",
            Self::Roster => "roster",
            Self::Fence => "fence",
            Self::Readmit => "readmit",
            Self::Release => "release",
            Self::Order => "order",
            Self::Propose => "propose",
            Self::Approval => "approval",
            Self::Cancel => "cancel",
            Self::Refusal => "refusal",
            Self::Denied => "denied",
            Self::Abort => "abort",
            Self::BreakGlass => "break-glass",
            Self::SettleGlass => "settle-glass",
            Self::Halt => "halt",
            Self::Restore => "restore",
            Self::Token => "token",
            Self::Enrol => "enrol",
            Self::Certificate => "certificate",
            Self::Revoke => "revoke",
            Self::Evict => "evict",
            Self::Alarm => "alarm",
            Self::Rebuild => "rebuild",
            Self::Phase => "phase",
            Self::Ended => "ended",
            Self::Drift => "drift",
            Self::Reconcile => "reconcile",
        }
    }

    /// Whether a person stepped in where evidence or the protocol would have decided: such an entry stays in the status
    /// until somebody has looked at it.
    #[must_use]
    pub const fn is_override(self) -> bool {
        match self {
            Self::Fence
            | Self::Readmit
            | Self::Abort
            | Self::BreakGlass
            | Self::Halt
            | Self::Restore
            | Self::Evict
            | Self::Alarm
            | Self::Rebuild => true,
            Self::Began
            | Self::Lead
            | Self::Root
            | Self::Roster
            | Self::Release
            | Self::Order
            | Self::Propose
            | Self::Approval
            | Self::Cancel
            | Self::Refusal
            | Self::Denied
            | Self::Token
            | Self::Enrol
            | Self::Certificate
            | Self::Revoke
            | Self::Phase
            | Self::Ended
            | Self::Drift
            | Self::SettleGlass
            | Self::Reconcile => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One entry. Its bytes, compact JSON on one line, are a leaf of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    format: String,
    /// Its place in the log, from 0.
    pub entry: u64,
    /// When, in milliseconds since 1970 on the coordinator's clock.
    pub at_unix_ms: UnixTime,
    /// What it is about.
    pub kind: Kind,
    /// The fleet, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetName>,
    /// Who: the identity in a certificate, or the public key that signed.
    pub who: String,
    /// The rollout, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// The hosts, if it is about some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostName>,
    /// What it rests on: digests of signed envelopes, and of manifests, by what they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub documents: BTreeMap<String, Digest>,
    /// The version of the root document, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_version: Option<u64>,
    /// Of a reconciliation: the entry that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconciles: Option<u64>,
    /// Of a beginning: the last checkpoint that is known of the log before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// The rest, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Why a leaf is not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// More bytes than any entry has.
    #[error("it has {len} bytes; at most {ENTRY_BYTES_MAX} are read")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// Not of the shape, or not on one line.
    #[error("it is not an entry: {reason}")]
    Syntax {
        /// What the parser said.
        reason: String,
    },
    /// The entry of another place.
    #[error("it says that it is entry {found}")]
    Place {
        /// What it says.
        found: u64,
    },
}

impl Entry {
    /// An entry about `kind` by `who`; its place is settled when it is appended.
    #[must_use]
    pub fn new(kind: Kind, who: impl Into<String>, at: UnixTime) -> Self {
        Self {
            format: FORMAT.to_owned(),
            entry: 0,
            at_unix_ms: at,
            kind,
            fleet: None,
            who: who.into(),
            rollout: None,
            hosts: Vec::new(),
            documents: BTreeMap::new(),
            root_version: None,
            reconciles: None,
            previous: None,
            detail: String::new(),
        }
    }

    /// At this place of the log.
    #[must_use]
    pub const fn at_place(mut self, place: u64) -> Self {
        self.entry = place;
        self
    }

    /// About this fleet.
    #[must_use]
    pub fn of_fleet(mut self, fleet: &FleetName) -> Self {
        self.fleet = Some(fleet.clone());
        self
    }

    /// About this rollout.
    #[must_use]
    pub const fn of_rollout(mut self, k: RolloutId) -> Self {
        self.rollout = Some(k);
        self
    }

    /// About these hosts; very many are counted, not named.
    #[must_use]
    pub fn of_hosts<'a>(mut self, hosts: impl IntoIterator<Item = &'a HostName>) -> Self {
        let mut hosts = hosts.into_iter();
        self.hosts = hosts.by_ref().take(HOSTS_NAMED_MAX).cloned().collect();
        let unnamed = hosts.count();
        if unnamed > 0 {
            self.detail = format!("and {unnamed} more hosts");
        }
        self
    }

    /// Resting on this document.
    #[must_use]
    pub fn with(mut self, what: &str, digest: Digest) -> Self {
        self.documents.insert(what.to_owned(), digest);
        self
    }

    /// About the root document of this version, by the digest of what was signed: the same document may come in envelopes
    /// with other signatures.
    #[must_use]
    pub fn of_root(mut self, version: u64, payload: Digest) -> Self {
        self.root_version = Some(version);
        self.with(ROOT_DOCUMENT, payload)
    }

    /// Cut to a length at which an entry stays far below its limit.
    #[must_use]
    pub fn saying(mut self, detail: impl Into<String>) -> Self {
        const DETAIL_BYTES_MAX: usize = 2048;
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        self.detail = detail;
        self
    }

    /// The bytes of the leaf. They have no newline, as JSON escapes it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an entry has string keys and no failing serialisers")
    }

    /// Reads the leaf at `place`.
    pub fn parse(bytes: &[u8], place: u64) -> Result<Self, EntryError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLarge { len: bytes.len() });
        }
        let syntax = |reason: String| EntryError::Syntax { reason };
        if bytes.contains(&b'\n') {
            return Err(syntax("it is on more than one line".to_owned()));
        }
        let entry: Self = serde_json::from_slice(bytes).map_err(|error| syntax(error.to_string()))?;
        if entry.format != FORMAT {
            return Err(syntax(format!("its format is `{}`; this program reads `{FORMAT}`", entry.format)));
        }
        if entry.entry != place {
            return Err(EntryError::Place { found: entry.entry });
        }
        Ok(entry)
    }
}

/// The overrides that nobody has looked at yet, by their place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenOverrides(BTreeMap<u64, Entry>);

impl OpenOverrides {
    /// Takes the next entry into account.
    pub fn take(&mut self, entry: &Entry) {
        if entry.kind.is_override() {
            self.0.insert(entry.entry, entry.clone());
        }
        if let Some(reconciled) = entry.reconciles {
            self.0.remove(&reconciled);
        }
    }

    /// Whether this entry is an override that is still open.
    #[must_use]
    pub fn contains(&self, entry: u64) -> bool {
        self.0.contains_key(&entry)
    }

    /// The open ones of a fleet and those that are about no fleet, oldest first.
    pub fn of_fleet<'a>(&'a self, fleet: &'a FleetName) -> impl Iterator<Item = &'a Entry> {
        self.0.values().filter(move |entry| entry.fleet.as_ref().is_none_or(|it| it == fleet))
    }

    /// The open one at this place.
    #[must_use]
    pub fn get(&self, entry: u64) -> Option<&Entry> {
        self.0.get(&entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(name: &str) -> FleetName {
        FleetName::new(name).unwrap()
    }

    fn halt(place: u64, name: &str) -> Entry {
        let entry = Entry::new(Kind::Halt, "spiffe://a/operator/ann", UnixTime(5)).of_fleet(&fleet(name));
        Entry { entry: place, ..entry.saying("a\nb") }
    }

    #[test]
    fn an_entry_is_one_strict_line_of_one_place() {
        let entry = halt(7, "demo").of_rollout(RolloutId(3)).with("order", Digest::of(b"o"));
        let bytes = entry.to_bytes();
        assert!(!bytes.contains(&b'\n'));
        assert_eq!(Entry::parse(&bytes, 7), Ok(entry));
        assert_eq!(Entry::parse(&bytes, 8), Err(EntryError::Place { found: 7 }));
        let text = String::from_utf8(bytes).unwrap();
        for wrong in [
            text.replace("/1\"", "/2\""),
            text.replace("halt", "hold"),
            text.replace("detail", "details"),
            format!("{text}\n"),
            format!("{text} {}", "x".repeat(ENTRY_BYTES_MAX)),
        ] {
            assert!(Entry::parse(wrong.as_bytes(), 7).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_override_stays_open_until_it_is_reconciled() {
        let mut open = OpenOverrides::default();
        open.take(&halt(0, "demo"));
        open.take(&halt(1, "other"));
        open.take(&Entry { entry: 2, ..Entry::new(Kind::Restore, "nobody", UnixTime(6)) });
        let of_demo: Vec<u64> = open.of_fleet(&fleet("demo")).map(|it| it.entry).collect();
        assert_eq!(of_demo, [0, 2], "one that is about no fleet is every fleet's");
        let settled =
            Entry { entry: 3, reconciles: Some(0), ..Entry::new(Kind::Reconcile, "ann", UnixTime(7)) };
        open.take(&settled);
        assert!(!open.contains(0) && open.contains(1) && !open.contains(3));
    }

    #[test]
    fn words_are_those_of_the_json_and_large_entries_fit() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("\"{kind}\""));
        }
        let hosts: Vec<HostName> =
            (0..20_000).map(|i| HostName::new(&format!("{i:0>63}")).unwrap()).collect();
        let entry = Entry::new(Kind::Fence, "x".repeat(300), UnixTime(1)).of_hosts(&hosts);
        assert_eq!((entry.hosts.len(), entry.detail.as_str()), (HOSTS_NAMED_MAX, "and 19800 more hosts"));
        let entry = entry.saying("\u{1}".repeat(100_000));
        assert!(entry.to_bytes().len() < ENTRY_BYTES_MAX / 2, "{}", entry.to_bytes().len());
    }
}
