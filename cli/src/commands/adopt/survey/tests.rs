use muster_model::{
    Assurance, BootGate, BootId, ClockState, Comparable, Entry, EntryKind, EntryPath, Epoch, FleetName,
    HostFacts, Member, Mode, Policy, RosterRevision, Scope, TreeRules,
};
use muster_trust::{KeyAlgorithm, SigningKey, sign, verify};

use super::*;

const ASKED: UnixTime = UnixTime(1_800_000_000_000);

struct Fleet {
    keys: Vec<SigningKey>,
    roster: Verified<Roster>,
}

fn host(index: usize) -> HostName {
    HostName::new(&format!("host-{}", index + 1)).unwrap()
}

/// A tree with files of these names.
fn tree(names: &[&str]) -> Manifest {
    let entry = |name: &&str| Entry {
        path: EntryPath::from_text(name).unwrap(),
        kind: EntryKind::File {
            mode: Mode::new(0o644).unwrap(),
            size: 1,
            digest: Digest::of(name.as_bytes()),
        },
    };
    Manifest::new(names.iter().map(entry).collect(), TreeRules::default()).unwrap()
}

impl Fleet {
    fn new(hosts: usize) -> Self {
        let keys: Vec<_> = (0..hosts).map(|_| SigningKey::generate(KeyAlgorithm::Ed25519).unwrap()).collect();
        let member = |(index, key): (usize, &SigningKey)| Member {
            name: host(index),
            attestation_key: key.public().clone(),
        };
        let members = keys.iter().enumerate().map(member).collect();
        let fleet = FleetName::new("demo").unwrap();
        let roster = Roster::new(fleet, RosterRevision(2), Policy::default(), members).unwrap();
        let operator = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
        let signed = sign(&roster, &[&operator]).unwrap();
        let role = muster_model::RoleKeys { threshold: 1, keys: vec![operator.public().clone()] };
        Self { keys, roster: verify(signed.raw(), &role).unwrap().into_document() }
    }

    /// What the coordinator relays of a host that has this tree and signs with `key`.
    fn says(
        &self,
        index: usize,
        tree: &Manifest,
        purpose: Purpose,
        (key, at): (usize, UnixTime),
    ) -> v1::CheckHost {
        let facts = HostFacts {
            epoch: Epoch(0),
            serving: None,
            boot_id: BootId::new("01234567-89ab-cdef-0123-456789abcdef").unwrap(),
            scope: Scope::Link,
            boot_gate: BootGate::None,
            clock: ClockState::Steady,
            clock_error_ms: None,
            fence_ms: None,
            drain_ms: 0,
            assurance: Assurance::Sha256,
            agent_version: "0.1.0".to_owned(),
            agent_config: Digest::of(b"config"),
            measured_unix_ms: at,
            elapsed_ms: 5,
        };
        let digest = tree.digest();
        let compared = Comparable { manifest: digest, measured: digest, files: 1, bytes: 1, uniform: None };
        let fleet = FleetName::new("demo").unwrap();
        let attestation =
            Attestation::new(fleet, host(index), purpose, Digest::of(b"nonce"), compared, facts);
        let envelope = sign(&attestation, &[&self.keys[key]]).unwrap().raw().to_vec();
        v1::CheckHost { host: host(index).to_string(), envelope: Some(envelope), ..v1::CheckHost::default() }
    }

    fn honest(&self, index: usize, tree: &Manifest) -> v1::CheckHost {
        self.says(index, tree, Purpose::Adoption, (index, ASKED))
    }
}

fn finished() -> v1::AdoptFinished {
    v1::AdoptFinished { roster_revision: 2, blockers: vec![] }
}

fn relayed(manifest: &Manifest, bytes: &[u8]) -> v1::AdoptManifest {
    v1::AdoptManifest { digest: manifest.digest().as_bytes().to_vec(), part: bytes.to_vec(), is_last: true }
}

fn codes(blockers: &[Blocker]) -> Vec<(Code, Option<HostName>)> {
    blockers.iter().map(|blocker| (blocker.code, blocker.host.clone())).collect()
}

#[test]
fn hosts_are_grouped_and_the_smaller_groups_compared_with_the_largest() {
    let fleet = Fleet::new(3);
    let (usual, odd) = (tree(&["a", "b"]), tree(&["a", "c"]));
    let mut survey = Survey::new(&fleet.roster, ASKED);
    for (index, tree) in [&odd, &usual, &usual].into_iter().enumerate() {
        survey.hear(fleet.honest(index, tree)).unwrap();
    }
    let bytes = odd.to_bytes();
    let (first, second) = bytes.split_at(9);
    survey.hear_manifest(relayed(&usual, &usual.to_bytes())).unwrap();
    survey.hear_manifest(relayed(&odd, first)).unwrap();
    survey.hear_manifest(relayed(&odd, second)).unwrap();
    let (groups, blockers) = survey.close(finished()).unwrap();
    assert_eq!((&groups[0].hosts, &groups[1].hosts), (&vec![host(1), host(2)], &vec![host(0)]));
    assert_eq!((groups[1].changes_total, groups[1].changes.as_ref().unwrap().len()), (2, 2));
    assert_eq!(codes(&blockers), [(Code::Mismatch, Some(host(0)))]);
}

#[test]
fn a_coordinator_makes_up_no_answer_and_no_manifest() {
    let fleet = Fleet::new(2);
    let (tree, other) = (tree(&["a"]), tree(&["b"]));
    let old = UnixTime(ASKED.0 - CLOCK_SKEW_MS_MAX - 1);
    for (second, code) in [
        (fleet.says(1, &tree, Purpose::Adoption, (0, ASKED)), Code::BadAttestation),
        (fleet.says(1, &tree, Purpose::Check, (1, ASKED)), Code::StaleAttestation),
        (fleet.says(1, &tree, Purpose::Adoption, (1, old)), Code::StaleAttestation),
        (v1::CheckHost { host: host(1).to_string(), ..fleet.honest(0, &tree) }, Code::BadAttestation),
        (v1::CheckHost { host: host(1).to_string(), ..v1::CheckHost::default() }, Code::HostSilent),
    ] {
        let mut survey = Survey::new(&fleet.roster, ASKED);
        survey.hear(fleet.honest(0, &tree)).unwrap();
        survey.hear(second).unwrap();
        let (groups, blockers) = survey.close(finished()).unwrap();
        assert_eq!(groups[0].hosts, [host(0)]);
        assert_eq!(codes(&blockers), [(code, Some(host(1)))]);
    }

    // Manifests that are not what their digest says tell nothing.
    let mut survey = Survey::new(&fleet.roster, ASKED);
    survey.hear(fleet.honest(0, &tree)).unwrap();
    survey.hear(fleet.honest(1, &other)).unwrap();
    survey.hear_manifest(relayed(&tree, &tree.to_bytes())).unwrap();
    survey.hear_manifest(relayed(&other, &tree.to_bytes())).unwrap();
    let (groups, blockers) = survey.close(v1::AdoptFinished { roster_revision: 3, ..finished() }).unwrap();
    assert!(groups[1].changes.is_none());
    let mut found = codes(&blockers);
    found.sort();
    assert_eq!(found, [(Code::Mismatch, Some(host(1))), (Code::RosterChanged, None)]);
}
