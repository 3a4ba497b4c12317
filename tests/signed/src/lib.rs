//! The signed documents of one flip, for tests and benchmarks that need real ones.
//!
//! It says what a flip is made of, once; whose keys sign it, and how many hosts there are, is for who asks. It never runs in
//! production: what does makes its documents from what happened.

use muster_model::{
    Assurance, Attestation, BootGate, BootId, ClockState, Comparable, Digest, Document, Epoch, FleetName,
    Flip, FlipMode, HostFacts, HostName, Member, OnFailure, Order, Policy, PublicKey, Purpose, Release,
    RolloutId, Roster, RosterRef, RosterRevision, Scope, Secret, UnixTime,
};
use muster_trust::{Authentic, SigningKey, TrustRoot, assemble_evidence, sign, verify_evidence};

/// When all of it is verified.
pub const NOW: UnixTime = UnixTime(1_000_000);

/// What is flipped, by whom.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The fleet, and all that is in the release.
    pub release: Release,
    /// The rollout.
    pub k: RolloutId,
    /// The revision of the roster.
    pub revision: RosterRevision,
    /// The epoch that all hosts are in.
    pub epoch: Epoch,
    /// The files of the release, and their bytes.
    pub size: (u64, u64),
    /// How many hosts may lapse.
    pub max_lapsed: u32,
    /// When the order ends.
    pub order_ends: UnixTime,
    /// The hosts in the order of their names, each with the key that it attests with and its closing secret.
    pub hosts: Vec<Host>,
}

/// One host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// The key that it attests with.
    pub key: PublicKey,
    /// What it discloses once it has closed. Not secret at all here.
    pub secret: Secret,
}

/// The documents, as everybody verifies them.
#[derive(Debug)]
pub struct SignedFlip {
    /// The order.
    pub order: Authentic<Order>,
    /// The roster.
    pub roster: Authentic<Roster>,
    /// The release.
    pub release: Authentic<Release>,
    /// Each host's attestation, in the order of the roster.
    pub attestations: Vec<Authentic<Attestation>>,
}

impl Plan {
    /// The fleet.
    #[must_use]
    pub const fn fleet(&self) -> &FleetName {
        &self.release.fleet
    }

    /// Who is in the fleet.
    ///
    /// # Panics
    /// Where the plan is of no fleet that can be: without hosts, or with one twice.
    #[must_use]
    pub fn roster(&self) -> Roster {
        let member = |host: &Host| Member { name: host.name.clone(), attestation_key: host.key.clone() };
        let members = self.hosts.iter().map(member).collect();
        Roster::new(self.fleet().clone(), self.revision, Policy::default(), members)
            .expect("the hosts of a plan are a roster")
    }

    /// The order to flip to the release, as the fleet's first.
    ///
    /// # Panics
    /// Where the plan's times or its hosts are none of an order.
    #[must_use]
    pub fn order(&self) -> Order {
        let hosts = u32::try_from(self.hosts.len()).expect("a roster is small");
        let digest = Digest::of(&self.roster().to_bytes());
        let roster = RosterRef { digest, revision: self.revision, hosts };
        let flip = Flip {
            from: None,
            to: self.release.manifest,
            mode: FlipMode::Strict,
            on_failure: OnFailure::Hold,
            max_lapsed: self.max_lapsed,
        };
        Order::new(self.fleet().clone(), self.k, roster, flip, UnixTime(0)..self.order_ends)
            .expect("the order of a plan is one")
    }

    /// What one of the hosts attests.
    #[must_use]
    pub fn attestation(&self, host: &Host) -> Attestation {
        let (manifest, (files, bytes)) = (self.release.manifest, self.size);
        let boot_id = BootId::new("0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").expect("it is the id of a boot");
        Attestation::new(
            self.fleet().clone(),
            host.name.clone(),
            Purpose::Rollout { k: self.k, commitment: host.secret.commitment() },
            Digest::of(b"all nonces"),
            Comparable { manifest, measured: manifest, files, bytes, uniform: None },
            HostFacts {
                epoch: self.epoch,
                serving: Some(manifest),
                boot_id,
                scope: Scope::Process,
                boot_gate: BootGate::Volatile,
                clock: ClockState::Steady,
                clock_error_ms: Some(3),
                fence_ms: Some(40),
                drain_ms: 0,
                assurance: Assurance::Sha256,
                agent_version: "0.1.0".to_owned(),
                agent_config: Digest::of(b"configuration"),
                measured_unix_ms: NOW,
                elapsed_ms: 5,
            },
        )
    }

    /// Has `key` sign roster, release and order, and each host its own attestation.
    ///
    /// # Panics
    /// Where the root does not let `key` sign that alone, or a key is not that of its host.
    #[must_use]
    pub fn sign(&self, root: &TrustRoot, key: &SigningKey, hosts: &[&SigningKey]) -> SignedFlip {
        const SIGNS: &str = "a key in memory signs";
        const HOLDS: &str = "what was signed so is verified";
        let lines: Vec<Vec<u8>> = self
            .hosts
            .iter()
            .zip(hosts)
            .map(|(host, key)| sign(&self.attestation(host), &[*key]).expect(SIGNS).raw().to_vec())
            .collect();
        let roster = root.verify_roster(sign(&self.roster(), &[key]).expect(SIGNS).raw(), NOW).expect(HOLDS);
        let release = sign(&self.release, &[key]).expect(SIGNS);
        SignedFlip {
            order: root.verify_order(sign(&self.order(), &[key]).expect(SIGNS).raw(), NOW).expect(HOLDS),
            release: root.verify_release(release.raw(), self.fleet(), NOW).expect(HOLDS),
            attestations: verify_evidence(&assemble_evidence(&lines), roster.document())
                .expect(HOLDS)
                .attestations,
            roster,
        }
    }
}
