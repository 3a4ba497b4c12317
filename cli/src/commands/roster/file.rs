//! A roster as people write it, before it is signed.

use muster_model::{
    BootGatePolicy, DocumentError, FleetName, HostName, Member, Policy, PublicKey, Roster, RosterRevision,
};
use serde::{Deserialize, Serialize};

/// The TOML file that `roster draft` writes and `roster apply` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RosterFile {
    /// The fleet.
    pub(crate) fleet: FleetName,
    /// The revision; the next one if not said. Saying it makes sure that nobody else was faster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<u64>,
    /// What the fleet accepts of its hosts.
    #[serde(default)]
    pub(crate) policy: PolicyFile,
    /// The hosts.
    #[serde(default, rename = "host")]
    pub(crate) hosts: Vec<HostFile>,
}

/// What the fleet accepts of its hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyFile {
    /// `required` or `optional`.
    #[serde(default)]
    pub(crate) boot_gate: BootGatePolicy,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostFile {
    /// Its name.
    pub(crate) name: HostName,
    /// The key that signs its attestations.
    pub(crate) attestation_key: PublicKey,
}

impl RosterFile {
    /// The roster with this revision.
    pub(crate) fn to_roster(&self, revision: RosterRevision) -> Result<Roster, DocumentError> {
        let members = self
            .hosts
            .iter()
            .map(|host| Member { name: host.name.clone(), attestation_key: host.attestation_key.clone() });
        let policy = Policy { boot_gate: self.policy.boot_gate };
        Roster::new(self.fleet.clone(), revision, policy, members.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_survives_writing_and_mistakes_are_named() {
        let file = RosterFile {
            fleet: FleetName::new("demo").unwrap(),
            revision: None,
            policy: PolicyFile { boot_gate: BootGatePolicy::Optional },
            hosts: vec![HostFile {
                name: HostName::new("host-1").unwrap(),
                attestation_key: PublicKey::Ed25519([1; 32]),
            }],
        };
        let text = toml::to_string(&file).unwrap();
        insta::assert_snapshot!(text, @r#"
        fleet = "demo"

        [policy]
        boot_gate = "optional"

        [[host]]
        name = "host-1"
        attestation_key = "ed25519:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
        "#);
        assert_eq!(toml::from_str::<RosterFile>(&text).unwrap(), file);
        assert_eq!(file.to_roster(RosterRevision(1)).unwrap().hosts().len(), 1);
        let none = RosterFile { hosts: vec![], ..file };
        assert!(none.to_roster(RosterRevision(1)).is_err(), "an empty roster");
        assert!(toml::from_str::<RosterFile>(&text.replace("boot_gate", "bootgate")).is_err());
    }
}
