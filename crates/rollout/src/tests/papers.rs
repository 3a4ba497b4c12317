//! The signed documents of a simulated fleet.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_model::{
    Digest, Document, FleetName, HostName, Member, Policy, PublicKey, Release, Roster, RosterRevision,
    Secrets, Timing, UnixTime, Verified, Version,
};

/// A roster with the digests that documents refer to.
#[derive(Debug, Clone)]
pub(super) struct SignedRoster {
    pub(super) roster: Arc<Verified<Roster>>,
    pub(super) digest: Digest,
    pub(super) envelope: Digest,
}

pub(super) fn fleet_name() -> FleetName {
    FleetName::new("smars").expect("a name")
}

pub(super) fn host_name(number: usize) -> HostName {
    HostName::new(&format!("host-{number}")).expect("a name")
}

/// Closing secrets as a leader keeps them: one after the other.
pub(super) fn secrets_in(bytes: &[u8]) -> Secrets {
    Secrets::from_bytes(bytes).expect("32 bytes for each secret")
}

pub(super) fn release(at: usize) -> Verified<Release> {
    Verified::assert(Release {
        fleet: fleet_name(),
        version: Version::new(&format!("{}.0", at + 1)).expect("a version"),
        manifest: Digest::of(format!("release {at}").as_bytes()),
        builder: None,
        source_revision: None,
        created_unix_ms: UnixTime(0),
        expires_unix_ms: None,
        flags: BTreeMap::new(),
    })
}

/// Short leases, so that histories see many of them end.
pub(super) fn policy() -> Policy {
    Policy { timing: Timing::with_lease(300, 50), ..Policy::default() }
}

pub(super) fn signed_roster(revision: u64, hosts: usize) -> SignedRoster {
    let members = (1..=hosts)
        .map(|number| Member {
            name: host_name(number),
            attestation_key: PublicKey::Ed25519([u8::try_from(number).expect("few hosts"); 32]),
        })
        .collect();
    let roster = Roster::new(fleet_name(), RosterRevision(revision), policy(), members);
    let roster = roster.expect("unique names and keys");
    let digest = Digest::of(&roster.to_bytes());
    let envelope = Digest::of_parts(&[b"envelope", digest.as_bytes()]);
    SignedRoster { roster: Arc::new(Verified::assert(roster)), digest, envelope }
}
