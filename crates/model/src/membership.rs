//! How a host belongs to a fleet: hosts that are set aside, and what a host makes of that itself.

use std::cmp::Ordering;

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
    /// The revision that set this machine (this name with this key) aside; it has been since then. Nothing in an entry from before hosts
    /// gave their own word: none is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<RosterRevision>,
    /// Whether the operators state that it is off, so that no word of its own is asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fenced: bool,
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
    pub(crate) fn check_all(
        what: &str,
        list: &[Self],
        hosts_max: usize,
        revision: RosterRevision,
    ) -> Result<(), DocumentError> {
        let invalid = |reason: String| Err(DocumentError::Invalid { kind: "roster", reason });
        if list.len() > hosts_max {
            return invalid(format!(
                "it lists {} {what} hosts; at most {hosts_max} are supported",
                list.len()
            ));
        }
        check_names("roster", &format!("{what} "), list.iter().map(|it| &it.name))?;
        let is_of_then = |it: &&Self| it.since.is_none_or(|since| (1..=revision.0).contains(&since.0));
        if let Some(host) = list.iter().find(|it| !is_of_then(it)) {
            return invalid(format!(
                "{} is {what} since a revision that is none up to {revision}",
                host.name
            ));
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

/// Checks that each host of a list is in it once, and that they are sorted; `what` says in a word which list it is, if that is needed.
pub(crate) fn check_names<'a>(
    kind: &'static str,
    what: &str,
    names: impl Iterator<Item = &'a HostName>,
) -> Result<(), DocumentError> {
    let invalid = |reason: String| Err(DocumentError::Invalid { kind, reason });
    let mut before: Option<&HostName> = None;
    for name in names {
        match before.map(|before| (before, before.cmp(name))) {
            Some((_, Ordering::Equal)) => return invalid(format!("the {what}host {name} is listed twice")),
            Some((first, Ordering::Greater)) => {
                return invalid(format!("the {what}hosts are not sorted: {name} comes after {first}"));
            }
            Some((_, Ordering::Less)) | None => before = Some(name),
        }
    }
    Ok(())
}
