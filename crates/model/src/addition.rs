//! The addition: hosts that a delegated key adds to what the operators have signed, and nothing else.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::document::{check_format, parse_json, to_json};
use crate::membership::check_names;
use crate::{
    Digest, Document, DocumentError, DocumentKind, FleetName, HostName, HostPlace, Joiners, Member, Roster,
    RosterRevision,
};

const FORMAT: &str = "muster.addition/1";

/// A roster that a joiner's key has made longer.
///
/// It holds the envelope of the roster that the operators have signed last, and every host that was added since, so that it is
/// verified from the root alone. It has no place for anything but hosts, so that it cannot take one away, change a key or the policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addition {
    format: String,
    fleet: FleetName,
    revision: RosterRevision,
    follows: Digest,
    added: Vec<Member>,
    base: Embedded,
}

/// What a roster has beyond what the operators have signed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Additions {
    /// The payload's digest of the roster that the operators have signed.
    pub base: Digest,
    /// Its revision.
    pub base_revision: RosterRevision,
    /// The digest of the roster whose place this one takes: the base, or an addition to it.
    pub follows: Digest,
    /// All hosts that were added since the base, sorted by name.
    pub hosts: Vec<Member>,
}

/// Why hosts cannot be added like this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdditionError {
    /// What it builds on is for another fleet.
    #[error("it adds to a roster of {base}, and is for {fleet}")]
    ForeignBase {
        /// The fleet that it is for.
        fleet: FleetName,
        /// The fleet of the roster in it.
        base: FleetName,
    },
    /// The joiners' keys are for other fleets.
    #[error("the root lets joiners add no hosts to {fleet}")]
    Fleet {
        /// The fleet.
        fleet: FleetName,
    },
    /// A revision that cannot come about by adding hosts one by one.
    #[error(
        "it is revision {found}, and with {added} more hosts revision {base} of the operators leads to {} at most",
        .base.0.saturating_add(*.added as u64)
    )]
    Revision {
        /// Its revision.
        found: RosterRevision,
        /// The revision of the operators' roster.
        base: RosterRevision,
        /// How many hosts were added since.
        added: usize,
    },
    /// The first addition does not follow the roster that it builds on.
    #[error("it follows another roster than the one of the operators that is in it")]
    Follows,
    /// A host that is there already. Its key would be another, or its place a second one.
    #[error("{host} is in the roster of the operators already")]
    Listed {
        /// The host.
        host: HostName,
    },
    /// A host that operators have taken out.
    #[error("{host} {standing}, and only the operators take it back")]
    Aside {
        /// The host.
        host: HostName,
        /// How, in words.
        standing: &'static str,
    },
    /// More hosts than may be.
    #[error(
        "it makes {hosts} hosts of the fleet, and the root lets joiners go to {max}; have operators sign a roster"
    )]
    TooMany {
        /// How many there would be.
        hosts: usize,
        /// How many may be.
        max: u32,
    },
    /// The operators' roster does not say when it was signed.
    #[error(
        "revision {base} of the operators does not say when it was signed; have it signed anew with `muster roster apply`"
    )]
    Undated {
        /// The revision of the operators' roster.
        base: RosterRevision,
    },
    /// The operators' roster is too old to be added to.
    #[error(
        "revision {base} of the operators was signed {} hours ago, and the root lets joiners add to one of {} hours at \
         most; have it signed anew with `muster roster apply`",
        .age.as_secs() / 3600, .age_max.as_secs() / 3600
    )]
    TooOld {
        /// The revision of the operators' roster.
        base: RosterRevision,
        /// How old it is.
        age: Duration,
        /// How old it may be.
        age_max: Duration,
    },
    /// The hosts do not make a roster.
    #[error("what it makes is no roster")]
    Roster(#[source] DocumentError),
}

/// Why a roster may not take the place of another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// Something later than what it builds on has been seen.
    #[error("it adds to revision {base} of the operators, and revision {held} has been seen")]
    StaleBase {
        /// What it adds to.
        base: RosterRevision,
        /// What has been seen.
        held: RosterRevision,
    },
    /// The operators signed it without knowing who was added.
    #[error(
        "it is revision {found}, and revision {held} with added hosts has been seen; sign it as a later one"
    )]
    NotLater {
        /// Its revision.
        found: RosterRevision,
        /// What has been seen.
        held: RosterRevision,
    },
    /// A machine that served by the roster before is said to be set aside since before that.
    #[error(
        "it has {host} set aside since before revision {kept}, in which it serves; draft it anew from the roster in force \
         (with this version of `muster`)"
    )]
    ServedSince {
        /// The host.
        host: HostName,
        /// The revision that has it serve.
        kept: RosterRevision,
    },
    /// A machine that is set aside is said to be so since before the roster before says.
    #[error(
        "revision {kept} has {host} set aside since {since}, and this one since before; draft it anew from the roster in force"
    )]
    SetAsideLater {
        /// The host.
        host: HostName,
        /// Since when it is.
        since: RosterRevision,
        /// The revision that says so.
        kept: RosterRevision,
    },
    /// A host that was added would be gone, or have another key.
    #[error("{host} was added in revision {held}, and only the operators can take it away or change its key")]
    Dropped {
        /// The host.
        host: HostName,
        /// The revision that has it.
        held: RosterRevision,
    },
}

impl Addition {
    /// The most hosts that are added before operators sign a roster.
    pub const HOSTS_MAX: usize = 1_000;

    /// Makes an addition of hosts to what is in force, to be signed by joiners. `base` is the envelope of the operators' roster,
    /// `present` what it and the additions since have made of it, `digest` that one's digest.
    pub fn after(
        present: &Roster,
        digest: Digest,
        base: &str,
        mut added: Vec<Member>,
    ) -> Result<Self, DocumentError> {
        added.extend(present.additions().into_iter().flat_map(|additions| additions.hosts.iter().cloned()));
        let revision = present.revision().next();
        Self::new(present.fleet().clone(), revision, digest, base, added)
    }

    /// Makes an addition; `added` may come in any order.
    pub fn new(
        fleet: FleetName,
        revision: RosterRevision,
        follows: Digest,
        base: &str,
        mut added: Vec<Member>,
    ) -> Result<Self, DocumentError> {
        added.sort_by(|a, b| a.name.cmp(&b.name));
        let base = Embedded::read(base)?;
        let addition = Self { format: FORMAT.to_owned(), fleet, revision, follows, added, base };
        addition.check()?;
        Ok(addition)
    }

    /// The fleet.
    #[must_use]
    pub const fn fleet(&self) -> &FleetName {
        &self.fleet
    }

    /// The revision of the roster that it makes.
    #[must_use]
    pub const fn revision(&self) -> RosterRevision {
        self.revision
    }

    /// The envelope of the operators' roster, as they signed it.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base.0
    }

    /// All hosts that were added since, sorted by name.
    #[must_use]
    pub fn added(&self) -> &[Member] {
        &self.added
    }

    /// The roster that this makes of `base`, which is the one in it: the same with more hosts, and nothing else.
    pub fn onto(
        &self,
        base: &Roster,
        base_digest: Digest,
        limits: &Joiners,
    ) -> Result<Roster, AdditionError> {
        let base_revision = base.revision();
        if self.fleet != *base.fleet() {
            let (fleet, base) = (self.fleet.clone(), base.fleet().clone());
            return Err(AdditionError::ForeignBase { fleet, base });
        }
        if !limits.fleets.include(&self.fleet) {
            return Err(AdditionError::Fleet { fleet: self.fleet.clone() });
        }
        // Each step adds a host. Without this bound a single signature could use up all revisions there are.
        let steps = self.revision.0.saturating_sub(base_revision.0);
        if steps == 0 || steps > self.added.len() as u64 {
            let (found, added) = (self.revision, self.added.len());
            return Err(AdditionError::Revision { found, base: base_revision, added });
        }
        if steps == 1 && self.follows != base_digest {
            return Err(AdditionError::Follows);
        }
        for Member { name, .. } in &self.added {
            let host = || name.clone();
            match base.place(name) {
                None => {}
                Some(HostPlace::Serving) => return Err(AdditionError::Listed { host: host() }),
                Some(HostPlace::Parked) => {
                    return Err(AdditionError::Aside { host: host(), standing: "is parked" });
                }
                Some(HostPlace::Retired) => {
                    return Err(AdditionError::Aside { host: host(), standing: "has retired" });
                }
            }
        }
        let hosts = base.hosts().len() + self.added.len();
        if hosts > limits.hosts_max as usize {
            return Err(AdditionError::TooMany { hosts, max: limits.hosts_max });
        }
        let additions =
            Additions { base: base_digest, base_revision, follows: self.follows, hosts: self.added.clone() };
        base.clone().lengthened(self.revision, additions).map_err(AdditionError::Roster)
    }

    fn check(&self) -> Result<(), DocumentError> {
        let invalid = |reason: String| Err(DocumentError::Invalid { kind: "addition", reason });
        if self.added.is_empty() {
            return invalid("it adds no host".to_owned());
        }
        if self.added.len() > Self::HOSTS_MAX {
            let (found, max) = (self.added.len(), Self::HOSTS_MAX);
            return invalid(format!("it adds {found} hosts; at most {max}, before operators sign a roster"));
        }
        check_names("addition", "added ", self.added.iter().map(|it| &it.name))
    }
}

impl Document for Addition {
    const KIND: DocumentKind = DocumentKind::Addition;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let addition: Self = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &addition.format, FORMAT)?;
        addition.check()?;
        Ok(addition)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// JSON inside of JSON, byte by byte as it was written: it is verified by its own signatures.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Embedded(String);

impl Embedded {
    fn read(text: &str) -> Result<Self, DocumentError> {
        let raw = serde_json::from_str::<&RawValue>(text)
            .map_err(|error| DocumentError::Syntax { kind: "addition", reason: error.to_string() })?;
        Ok(Self(raw.get().to_owned()))
    }
}

impl Serialize for Embedded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).expect("it was read as JSON");
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Embedded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(|raw| Self(raw.get().to_owned()))
    }
}

#[cfg(test)]
mod tests;
