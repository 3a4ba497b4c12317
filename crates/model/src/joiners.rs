//! The delegated keys that may add hosts, and how far they may go.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{AdditionError, FleetName, RoleKeys, Roster, RosterRevision, UnixTime};

/// Keys that may add hosts to rosters without operators, within limits that the root's keys have signed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joiners {
    /// The keys and how many of them must sign. None has another role.
    pub role: RoleKeys,
    /// The fleets that they may add to.
    pub fleets: FleetScope,
    /// The most hosts that a roster may have by what they add.
    pub hosts_max: u32,
    /// How long after the operators have signed a roster hosts may be added to it, in milliseconds.
    pub base_age_ms_max: u64,
}

/// Which fleets are meant. All of them are named as such: a forgotten list means none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FleetScope {
    /// Every fleet, those that are still to come included.
    All,
    /// These.
    Named(BTreeSet<FleetName>),
}

impl FleetScope {
    /// The most fleets that are named.
    pub const NAMED_MAX: usize = 256;

    /// Whether this fleet is meant.
    #[must_use]
    pub fn include(&self, fleet: &FleetName) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(fleet),
        }
    }
}

impl Joiners {
    /// The longest time that a roster may be added to, in milliseconds: five years.
    pub const BASE_AGE_MS_MAX: u64 = 5 * 366 * 24 * 3600 * 1000;

    /// How many more hosts may be added to this roster; none if it is not one of their fleets.
    #[must_use]
    pub fn room(&self, roster: &Roster) -> u32 {
        if !self.fleets.include(roster.fleet()) {
            return 0;
        }
        let hosts = u32::try_from(roster.hosts().len()).unwrap_or(u32::MAX);
        self.hosts_max.saturating_sub(hosts)
    }

    /// Whether the operators have signed what `roster` builds on recently enough for hosts to be added now. What is in force already
    /// stays so, however old it grows.
    pub fn check_age(&self, roster: &Roster, now: UnixTime) -> Result<(), AdditionError> {
        let base: RosterRevision =
            roster.additions().map_or_else(|| roster.revision(), |additions| additions.base_revision);
        let issued = roster.issued_unix_ms().ok_or(AdditionError::Undated { base })?;
        let age_ms = now.0.saturating_sub(issued.0);
        if age_ms > self.base_age_ms_max {
            let (age, age_max) = (Duration::from_millis(age_ms), Duration::from_millis(self.base_age_ms_max));
            return Err(AdditionError::TooOld { base, age, age_max });
        }
        Ok(())
    }

    /// What is wrong with it, if anything; what its keys must not be is for the root.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.role.check("joiner")?;
        if self.hosts_max == 0 || self.hosts_max as usize > Roster::HOSTS_MAX {
            return Err(format!(
                "the joiners may go to {} hosts; write 1 to {}",
                self.hosts_max,
                Roster::HOSTS_MAX
            ));
        }
        if self.base_age_ms_max == 0 || self.base_age_ms_max > Self::BASE_AGE_MS_MAX {
            return Err(format!(
                "{} ms is no time for which joiners may add to a roster",
                self.base_age_ms_max
            ));
        }
        match &self.fleets {
            FleetScope::Named(names) if names.is_empty() || names.len() > FleetScope::NAMED_MAX => Err(
                format!("the joiners may add to {} fleets; name 1 to {}", names.len(), FleetScope::NAMED_MAX),
            ),
            FleetScope::Named(_) | FleetScope::All => Ok(()),
        }
    }
}
