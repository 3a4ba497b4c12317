//! How a host belongs to a fleet: hosts that are set aside, and what a host makes of that itself.

use serde::{Deserialize, Serialize};

use crate::{DocumentError, HostName, Member, PublicKey, RosterRevision, UnixTime};

/// A host of a roster that does not serve, and is no part of N.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawn {
    /// The host.
    pub name: HostName,
    /// The key that signed its attestations, and signs them again if it comes back.
    pub attestation_key: PublicKey,
    /// Why, for people.
    pub reason: String,
    /// Milliseconds since 1970 when the operators decided so.
    pub since_unix_ms: UnixTime,
}

/// Where a roster has a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostPlace {
    /// It serves with the others, and counts.
    Serving,
    /// It serves nothing, and may be asked back.
    Parked,
    /// It has left for good.
    Retired,
}

/// Whether a host serves with the others, by the rosters that it has verified itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Membership {
    /// It does, as its mode says.
    #[default]
    Member,
    /// This revision of the roster does not have it serve. It serves nothing until a later one does.
    Excluded(RosterRevision),
    /// A later roster has it serve again, and it was not admitted since. It serves nothing.
    Returned,
}

impl Membership {
    /// Whether it serves with the others.
    #[must_use]
    pub const fn is_member(&self) -> bool {
        matches!(self, Self::Member)
    }
}

impl Withdrawn {
    /// The longest reason, in bytes.
    pub const REASON_BYTES_MAX: usize = 400;

    /// The same host, as one that serves.
    #[must_use]
    pub fn member(&self) -> Member {
        Member { name: self.name.clone(), attestation_key: self.attestation_key.clone() }
    }

    /// Checks a list of them, which is called `what`.
    pub(crate) fn check_all(what: &str, list: &[Self], hosts_max: usize) -> Result<(), DocumentError> {
        let invalid = |reason: String| Err(DocumentError::Invalid { kind: "roster", reason });
        if list.len() > hosts_max {
            return invalid(format!(
                "it lists {} {what} hosts; at most {hosts_max} are supported",
                list.len()
            ));
        }
        for pair in list.windows(2) {
            if pair[0].name == pair[1].name {
                return invalid(format!("the {what} host {} is listed twice", pair[0].name));
            }
            if pair[0].name > pair[1].name {
                let (first, second) = (&pair[0].name, &pair[1].name);
                return invalid(format!("the {what} hosts are not sorted: {second} comes after {first}"));
            }
        }
        let max = Self::REASON_BYTES_MAX;
        let is_short = |reason: &str| !reason.trim().is_empty() && reason.len() <= max;
        match list.iter().find(|host| !is_short(&host.reason)) {
            Some(host) => {
                invalid(format!("that {} is {what} needs a reason of at most {max} bytes", host.name))
            }
            None => Ok(()),
        }
    }
}
