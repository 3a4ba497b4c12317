//! The signed documents of a simulated fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_model::{
    Addition, Digest, Document, FleetName, FleetScope, HostName, Joiners, Member, Policy, PublicKey, Release,
    RoleKeys, Roster, RosterRevision, Secrets, Timing, UnixTime, Verified, Version, Withdrawn,
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

/// The key that a host attests with.
pub(super) fn key_of(name: &HostName) -> PublicKey {
    let number = name.as_str().rsplit('-').next().and_then(|number| number.parse::<u8>().ok());
    PublicKey::Ed25519([number.expect("few hosts, with numbers"); 32])
}

pub(super) fn signed_roster(revision: u64, hosts: usize) -> SignedRoster {
    signed_roster_of(revision, hosts, &BTreeSet::new())
}

/// A roster with hosts 1 to `hosts`, some of which it parks.
pub(super) fn signed_roster_of(revision: u64, hosts: usize, parked: &BTreeSet<usize>) -> SignedRoster {
    signed_roster_after(None, revision, hosts, parked, &BTreeSet::new())
}

/// The same after another: who is parked there is so since then, and stays stated to be off.
pub(super) fn signed_roster_after(
    before: Option<&Roster>,
    revision: u64,
    hosts: usize,
    parked: &BTreeSet<usize>,
    fenced: &BTreeSet<HostName>,
) -> SignedRoster {
    let aside = |number: usize| {
        let name = host_name(number);
        let known = before.and_then(|before| before.parked_host(&name));
        Withdrawn {
            attestation_key: key_of(&name),
            reason: "a fan rattles".to_owned(),
            since_unix_ms: UnixTime(1),
            since: known.map_or(Some(RosterRevision(revision)), |known| known.since),
            fenced: fenced.contains(&name) || known.is_some_and(|known| known.fenced),
            name,
        }
    };
    let (parked, serving): (Vec<usize>, Vec<usize>) = (1..=hosts).partition(|number| parked.contains(number));
    let members = serving.into_iter().map(member).collect();
    let roster = Roster::new(fleet_name(), RosterRevision(revision), policy(), members)
        .and_then(|roster| roster.setting_aside(parked.into_iter().map(aside).collect(), Vec::new()));
    let roster = roster.expect("unique names and keys");
    let digest = Digest::of(&roster.to_bytes());
    SignedRoster::of(roster, digest)
}

/// What a joiner's key makes of the operators' `base`: `added` are all hosts that it has more.
pub(super) fn added_roster(
    base: &SignedRoster,
    follows: Digest,
    revision: u64,
    added: &[usize],
) -> SignedRoster {
    let added = added.iter().map(|number| member(*number)).collect();
    let addition =
        Addition::new(fleet_name(), RosterRevision(revision), follows, "{}", added).expect("valid");
    let limits = Joiners {
        role: RoleKeys { threshold: 1, keys: vec![PublicKey::Ed25519([255; 32])] },
        fleets: FleetScope::All,
        hosts_max: 100,
        base_age_ms_max: 1,
    };
    let roster = addition.onto(&base.roster, base.digest, &limits).expect("within its limits");
    SignedRoster::of(roster, Digest::of(&addition.to_bytes()))
}

fn member(number: usize) -> Member {
    Member { name: host_name(number), attestation_key: key_of(&host_name(number)) }
}

impl SignedRoster {
    /// The same with another key for a host.
    pub(super) fn with_key_of_host(&self, number: usize, key: u8) -> Self {
        let text = String::from_utf8(self.roster.to_bytes()).expect("JSON");
        let other = PublicKey::Ed25519([key; 32]).to_string();
        let text = text.replace(&key_of(&host_name(number)).to_string(), &other);
        let roster = Roster::parse(text.as_bytes()).expect("a roster");
        Self::of(roster, Digest::of(text.as_bytes()))
    }

    fn of(roster: Roster, digest: Digest) -> Self {
        let envelope = Digest::of_parts(&[b"envelope", digest.as_bytes()]);
        Self { roster: Arc::new(Verified::assert(roster)), digest, envelope }
    }
}
