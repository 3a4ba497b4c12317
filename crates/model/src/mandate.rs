//! The mandate: the operators' signed statement that a coordinator of a new incarnation leads a fleet.

use serde::{Deserialize, Serialize};

use crate::document::{check_format, parse_json, to_json};
use crate::{Document, DocumentError, DocumentKind, FleetName, HostName, Incarnation, Roster, RosterRef};

const FORMAT: &str = "muster.mandate/1";

/// That the coordinator of one incarnation leads a fleet, after the one before was lost or set back.
///
/// A host obeys a coordinator of a later incarnation than the one that it has obeyed only with this. Without it, whoever
/// has a coordinator's certificate could claim the highest incarnation there is, and no host would hear another again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mandate {
    format: String,
    /// The fleet.
    pub fleet: FleetName,
    /// The life of the database that speaks from now on.
    pub incarnation: Incarnation,
    /// The roster in force: the hosts that must be heard before the coordinator leads.
    pub roster: RosterRef,
    /// Hosts that need not be heard: the operators state that their machines are off or wiped. Sorted.
    pub fenced: Vec<HostName>,
    /// Why there is a new coordinator, and how it is known that the machines are off.
    pub reason: String,
}

impl Mandate {
    /// The longest reason, in bytes.
    pub const REASON_BYTES_MAX: usize = 400;

    /// Makes a mandate and checks it; `fenced` may come in any order.
    pub fn new(
        fleet: FleetName,
        incarnation: Incarnation,
        roster: RosterRef,
        mut fenced: Vec<HostName>,
        reason: String,
    ) -> Result<Self, DocumentError> {
        fenced.sort();
        let mandate = Self { format: FORMAT.to_owned(), fleet, incarnation, roster, fenced, reason };
        mandate.check()?;
        Ok(mandate)
    }

    fn check(&self) -> Result<(), DocumentError> {
        let invalid = |reason: String| Err(DocumentError::Invalid { kind: "mandate", reason });
        if self.incarnation.0 == 0 {
            return invalid("no coordinator has the incarnation 0".to_owned());
        }
        if self.roster.hosts == 0 || self.roster.hosts as usize > Roster::HOSTS_MAX {
            return invalid(format!("no roster has {} hosts", self.roster.hosts));
        }
        if self.fenced.len() >= self.roster.hosts as usize {
            return invalid("with all hosts off there is nobody to hear".to_owned());
        }
        if self.fenced.windows(2).any(|pair| pair[0] >= pair[1]) {
            return invalid("the hosts that are off are not sorted, or listed twice".to_owned());
        }
        if self.reason.trim().is_empty() || self.reason.len() > Self::REASON_BYTES_MAX {
            return invalid(format!("it needs a reason of at most {} bytes", Self::REASON_BYTES_MAX));
        }
        Ok(())
    }
}

impl Document for Mandate {
    const KIND: DocumentKind = DocumentKind::Mandate;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let mandate: Self = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &mandate.format, FORMAT)?;
        mandate.check()?;
        Ok(mandate)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Digest, RosterRevision};

    use super::*;

    fn mandate(
        incarnation: u64,
        hosts: u32,
        fenced: &[&str],
        reason: &str,
    ) -> Result<Mandate, DocumentError> {
        let roster = RosterRef { digest: Digest::of(b"roster"), revision: RosterRevision(3), hosts };
        let fenced = fenced.iter().map(|name| HostName::new(name).expect("a name")).collect();
        let fleet = FleetName::new("smars").expect("a name");
        Mandate::new(fleet, Incarnation(incarnation), roster, fenced, reason.to_owned())
    }

    #[test]
    fn a_mandate_names_its_coordinator_its_roster_and_who_is_off() {
        let good = mandate(7, 3, &["host-3", "host-1"], "the disk burned").expect("valid");
        assert_eq!(good.fenced[0].as_str(), "host-1");
        assert_eq!(Mandate::parse(&good.to_bytes()), Ok(good.clone()));
        let unsorted = String::from_utf8(good.to_bytes()).expect("JSON").replace("host-1", "host-9");
        assert!(Mandate::parse(unsorted.as_bytes()).is_err());
        for bad in [
            mandate(0, 3, &[], "lost"),
            mandate(7, 0, &[], "lost"),
            mandate(7, 2, &["host-1", "host-2"], "lost"),
            mandate(7, 3, &["host-1", "host-1"], "lost"),
            mandate(7, 3, &[], " "),
        ] {
            assert!(matches!(bad, Err(DocumentError::Invalid { kind: "mandate", .. })), "{bad:?}");
        }
    }
}
