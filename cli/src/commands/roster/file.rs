//! A roster as people write it, before it is signed.

use muster_model::{
    BootGatePolicy, ClockPolicy, DocumentError, FleetName, HostName, Member, Policy, PublicKey, Roster,
    RosterRevision, Timing, Withdrawn,
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
    /// Hosts that serve nothing, and may be asked back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) parked: Vec<Withdrawn>,
    /// Hosts that have left for good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) retired: Vec<Withdrawn>,
}

/// What the fleet accepts of its hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyFile {
    /// `required` or `optional`.
    #[serde(default)]
    pub(crate) boot_gate: BootGatePolicy,
    /// `steady` or `any`.
    #[serde(default)]
    pub(crate) clock: ClockPolicy,
    /// The times that a flip rests on.
    #[serde(default)]
    pub(crate) timing: TimingFile,
}

/// The times that a flip rests on; what is not said is the usual, and the wait the shortest that is safe with the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TimingFile {
    /// How long an armed host serves on without being heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease_ms: Option<u64>,
    /// How long fencing may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fence_ms: Option<u64>,
    /// How far the rate of a clock may be off, in parts per million.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate_error_ppm: Option<u64>,
    /// How long a silent host is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wait_ms: Option<u64>,
    /// How far a host's time of day may be off in fast mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clock_error_ms: Option<u64>,
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

/// A wait that nobody stated is rounded up to this, for people to read.
const WAIT_STEP_MS: u64 = 100;

impl RosterFile {
    /// The roster with this revision.
    pub(crate) fn to_roster(&self, revision: RosterRevision) -> Result<Roster, DocumentError> {
        let members = self
            .hosts
            .iter()
            .map(|host| Member { name: host.name.clone(), attestation_key: host.attestation_key.clone() });
        Roster::new(self.fleet.clone(), revision, self.policy.to_policy(), members.collect())?
            .setting_aside(self.parked.clone(), self.retired.clone())
    }
}

impl PolicyFile {
    fn to_policy(self) -> Policy {
        let Self { boot_gate, clock, timing } = self;
        Policy { boot_gate, clock, timing: timing.to_timing() }
    }
}

impl From<Policy> for PolicyFile {
    fn from(policy: Policy) -> Self {
        let Policy { boot_gate, clock, timing } = policy;
        Self { boot_gate, clock, timing: timing.into() }
    }
}

impl TimingFile {
    fn to_timing(self) -> Timing {
        let usual = Timing::default();
        let timing = Timing {
            lease_ms: self.lease_ms.unwrap_or(usual.lease_ms),
            fence_ms: self.fence_ms.unwrap_or(usual.fence_ms),
            rate_error_ppm: self.rate_error_ppm.unwrap_or(usual.rate_error_ppm),
            wait_ms: usual.wait_ms,
            clock_error_ms: self.clock_error_ms.unwrap_or(usual.clock_error_ms),
        };
        let says_what_it_follows_from = [self.lease_ms, self.fence_ms, self.rate_error_ppm];
        let wait_ms = match self.wait_ms {
            Some(wait_ms) => wait_ms,
            None if says_what_it_follows_from.iter().all(Option::is_none) => usual.wait_ms,
            None => timing.wait_ms_min().checked_next_multiple_of(WAIT_STEP_MS).unwrap_or(u64::MAX),
        };
        Timing { wait_ms, ..timing }
    }
}

impl From<Timing> for TimingFile {
    fn from(timing: Timing) -> Self {
        let Timing { lease_ms, fence_ms, rate_error_ppm, wait_ms, clock_error_ms } = timing;
        Self {
            lease_ms: Some(lease_ms),
            fence_ms: Some(fence_ms),
            rate_error_ppm: Some(rate_error_ppm),
            wait_ms: Some(wait_ms),
            clock_error_ms: Some(clock_error_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(policy: PolicyFile) -> RosterFile {
        RosterFile {
            fleet: FleetName::new("demo").unwrap(),
            revision: None,
            policy,
            hosts: vec![HostFile {
                name: HostName::new("host-1").unwrap(),
                attestation_key: PublicKey::Ed25519([1; 32]),
            }],
            parked: Vec::new(),
            retired: Vec::new(),
        }
    }

    #[test]
    fn hosts_that_are_set_aside_survive_writing() {
        let aside = |name: &str, key| Withdrawn {
            name: HostName::new(name).unwrap(),
            attestation_key: PublicKey::Ed25519([key; 32]),
            reason: "a fan rattles".to_owned(),
            since_unix_ms: muster_model::UnixTime(1_700_000_000_000),
            since: None,
            fenced: false,
        };
        let file = RosterFile {
            parked: vec![aside("host-2", 2)],
            retired: vec![aside("host-3", 3)],
            ..file(PolicyFile::default())
        };
        let text = toml::to_string(&file).unwrap();
        assert!(text.contains("[[parked]]\nname = \"host-2\""), "{text}");
        assert_eq!(toml::from_str::<RosterFile>(&text).unwrap(), file);
        let roster = file.to_roster(RosterRevision(2)).unwrap();
        assert_eq!((roster.hosts().len(), roster.parked().len(), roster.retired().len()), (1, 1, 1));
    }

    #[test]
    fn a_draft_survives_writing_and_mistakes_are_named() {
        let policy = Policy {
            boot_gate: BootGatePolicy::Optional,
            clock: ClockPolicy::Any,
            timing: Timing::with_lease(2000, 500),
        };
        let file = file(policy.into());
        let text = toml::to_string(&file).unwrap();
        insta::assert_snapshot!(text, @r#"
        fleet = "demo"

        [policy]
        boot_gate = "optional"
        clock = "any"

        [policy.timing]
        lease_ms = 2000
        fence_ms = 500
        rate_error_ppm = 100000
        wait_ms = 3100
        clock_error_ms = 10

        [[host]]
        name = "host-1"
        attestation_key = "ed25519:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
        "#);
        assert_eq!(toml::from_str::<RosterFile>(&text).unwrap(), file);
        let roster = file.to_roster(RosterRevision(1)).unwrap();
        assert_eq!((roster.hosts().len(), roster.policy()), (1, policy));
        let none = RosterFile { hosts: vec![], ..file };
        assert!(none.to_roster(RosterRevision(1)).is_err(), "an empty roster");
        for field in ["boot_gate", "clock =", "lease_ms"] {
            let mistyped = text.replace(field, &format!("x{field}"));
            assert!(toml::from_str::<RosterFile>(&mistyped).is_err(), "{field}");
        }
    }

    #[test]
    fn the_wait_follows_from_the_rest_unless_it_is_stated() {
        let timing = |text: &str| toml::from_str::<TimingFile>(text).unwrap().to_timing();
        assert_eq!(timing(""), Timing::default());
        assert_eq!(timing("clock_error_ms = 3").wait_ms, Timing::default().wait_ms);
        assert_eq!(timing("lease_ms = 2000\nfence_ms = 500").wait_ms, 3100);
        assert_eq!(timing("lease_ms = 2000\nfence_ms = 500\nrate_error_ppm = 1000").wait_ms, 2600);
        assert_eq!(timing("lease_ms = 2000\nwait_ms = 60000").wait_ms, 60_000);
    }

    #[test]
    fn a_time_that_is_not_safe_is_refused_by_its_field() {
        for (text, field) in [
            ("wait_ms = 1000", "wait_ms is 1000"),
            ("lease_ms = 10", "lease_ms"),
            ("fence_ms = 0", "fence_ms"),
            ("lease_ms = 9223372036854775807", "lease_ms is 9223372036854775807"),
            ("rate_error_ppm = 900000", "rate_error_ppm is 900000"),
        ] {
            let timing = toml::from_str(text).unwrap();
            let error = file(PolicyFile { timing, ..PolicyFile::default() })
                .to_roster(RosterRevision(1))
                .expect_err(text)
                .to_string();
            assert!(error.contains(field), "{text}: {error}");
        }
    }
}
