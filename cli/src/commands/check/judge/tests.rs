use muster_model::{
    Assurance, BootGate, BootId, ClockState, Commitment, Epoch, FleetName, HostFacts, Member, Policy,
    RosterRevision, Scope,
};
use muster_trust::{KeyAlgorithm, Signer, SigningKey, sign, verify};

use super::*;

const ASKED: UnixTime = UnixTime(1_800_000_000_000);

struct Fleet {
    keys: Vec<SigningKey>,
    roster: Verified<Roster>,
}

fn host(index: usize) -> HostName {
    HostName::new(&format!("host-{}", index + 1)).unwrap()
}

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

/// What a host says; each test changes what it is about.
#[derive(Clone)]
struct Says {
    host: HostName,
    purpose: Purpose,
    compared: Comparable,
    measured: UnixTime,
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
        let roster = verify(signed.raw(), &role).unwrap().into_document();
        Self { keys, roster }
    }

    fn judge(&self) -> Judge<'_> {
        Judge::new(Question {
            roster: &self.roster,
            manifest: digest(1),
            asked: ASKED,
            max_age_ms: 0,
            wanted: Wanted::Measurement,
        })
    }

    fn says(&self, index: usize) -> Says {
        Says {
            host: host(index),
            purpose: Purpose::Check,
            compared: Comparable {
                manifest: digest(1),
                measured: digest(1),
                files: 3,
                bytes: 99,
                uniform: None,
            },
            measured: ASKED,
        }
    }

    fn signed(&self, says: Says, key: &dyn Signer) -> v1::CheckHost {
        let facts = HostFacts {
            epoch: Epoch(1),
            serving: None,
            boot_id: BootId::new("01234567-89ab-cdef-0123-456789abcdef").unwrap(),
            scope: Scope::Link,
            boot_gate: BootGate::None,
            clock: ClockState::Steady,
            clock_error_ms: None,
            fence_ms: Some(40),
            drain_ms: 0,
            assurance: Assurance::Sha256,
            agent_version: "0.1.0".to_owned(),
            agent_config: digest(3),
            measured_unix_ms: says.measured,
            elapsed_ms: 5,
        };
        let fleet = FleetName::new("demo").unwrap();
        let host = says.host.to_string();
        let attestation = Attestation::new(fleet, says.host, says.purpose, digest(7), says.compared, facts);
        let envelope = sign(&attestation, &[key]).unwrap().raw().to_vec();
        v1::CheckHost { host, envelope: Some(envelope), ..v1::CheckHost::default() }
    }

    fn answer(&self, index: usize) -> v1::CheckHost {
        self.signed(self.says(index), &self.keys[index])
    }

    /// The verdict when host 2 answers `second` and the others what they should.
    fn with_second(&self, second: v1::CheckHost) -> Verdict {
        let mut judge = self.judge();
        for index in 0..self.keys.len() {
            let answer = if index == 1 { second.clone() } else { self.answer(index) };
            judge.hear(answer).unwrap();
        }
        judge.close(finished()).unwrap()
    }
}

/// A coordinator that finds everything in order.
fn finished() -> v1::CheckFinished {
    v1::CheckFinished { hosts: 3, identical: 3, roster_revision: 2, ..v1::CheckFinished::default() }
}

fn codes(verdict: &Verdict) -> Vec<Code> {
    verdict.blockers().iter().map(|blocker| blocker.code).collect()
}

#[test]
fn n_identical_attestations_open_the_gate() {
    let fleet = Fleet::new(3);
    let verdict = fleet.with_second(fleet.answer(1));
    assert_eq!((verdict.identical(), verdict.exit()), (3, Exit::Proven));
    assert_eq!(verdict.hosts[0].files, 3);
}

#[test]
fn no_praise_of_the_coordinator_replaces_an_attestation() {
    let fleet = Fleet::new(3);
    let mut judge = fleet.judge();
    judge.hear(fleet.answer(0)).unwrap();
    judge.hear(v1::CheckHost { host: "host-2".to_owned(), ..v1::CheckHost::default() }).unwrap();
    let verdict = judge.close(finished()).unwrap();
    assert_eq!(codes(&verdict), [Code::HostSilent, Code::HostSilent]);
    assert_eq!((verdict.identical(), verdict.exit()), (1, Exit::Missing));
}

#[test]
fn nothing_heard_is_never_a_success() {
    let fleet = Fleet::new(1);
    assert_eq!(fleet.judge().close(finished()).unwrap().exit(), Exit::Missing);
    assert_eq!(Verdict { hosts: vec![], fleet: vec![] }.exit(), Exit::Internal);
}

#[test]
fn an_attestation_that_proves_nothing_here_is_refused_by_name() {
    let fleet = Fleet::new(3);
    let says = fleet.says(1);
    let key = &fleet.keys[1];
    let rollout = Purpose::Rollout { k: muster_model::RolloutId(1), commitment: Commitment(digest(5)) };
    let other_release = Comparable { manifest: digest(9), measured: digest(9), ..says.compared.clone() };
    let old = UnixTime(ASKED.0 - CLOCK_SKEW_MS_MAX - 1);
    for (wrong, code) in [
        (fleet.signed(says.clone(), &fleet.keys[0]), Code::BadAttestation),
        (fleet.signed(Says { purpose: rollout, ..says.clone() }, key), Code::StaleAttestation),
        (fleet.signed(Says { compared: other_release, ..says.clone() }, key), Code::StaleAttestation),
        (fleet.signed(Says { measured: old, ..says.clone() }, key), Code::StaleAttestation),
        (v1::CheckHost { host: "host-2".to_owned(), ..fleet.answer(0) }, Code::BadAttestation),
        (v1::CheckHost { envelope: Some(b"{}".to_vec()), ..fleet.answer(1) }, Code::BadAttestation),
    ] {
        let verdict = fleet.with_second(wrong);
        assert_eq!(codes(&verdict), [code]);
        assert_eq!((verdict.identical(), verdict.exit()), (2, Exit::of_code(code)));
        assert_eq!(verdict.hosts[1].measured, None);
    }
}

#[test]
fn a_mismatch_is_seen_even_if_the_coordinator_keeps_silent_about_it() {
    let fleet = Fleet::new(3);
    let says = fleet.says(1);
    let differs = Comparable { measured: digest(2), ..says.compared.clone() };
    let verdict = fleet.with_second(fleet.signed(Says { compared: differs, ..says }, &fleet.keys[1]));
    assert_eq!(codes(&verdict), [Code::Mismatch]);
    let blocker = &verdict.hosts[1].blockers[0];
    assert_eq!(blocker.measured.as_deref(), Some(digest(2).to_string().as_str()));
    assert_eq!(verdict.exit(), Exit::Mismatch);
}

#[test]
fn the_file_that_the_coordinator_names_is_kept() {
    let fleet = Fleet::new(3);
    let says = fleet.says(1);
    let differs = Comparable { measured: digest(2), ..says.compared.clone() };
    let named = Blocker {
        path: Some("bin/server".to_owned()),
        ..Blocker::host(Code::Mismatch, &host(1), "is missing")
    };
    let answer = fleet.signed(Says { compared: differs, ..says }, &fleet.keys[1]);
    let verdict = fleet.with_second(v1::CheckHost { blockers: vec![named.clone().into()], ..answer });
    assert_eq!(verdict.blockers(), [named]);
}

#[test]
fn hosts_that_disagree_on_uniform_paths_are_named() {
    let fleet = Fleet::new(3);
    let says = fleet.says(1);
    let other = Comparable { uniform: Some(digest(4)), ..says.compared.clone() };
    let verdict = fleet.with_second(fleet.signed(Says { compared: other, ..says }, &fleet.keys[1]));
    assert_eq!(codes(&verdict), [Code::NotUniform]);
    assert_eq!(verdict.blockers()[0].host, Some(host(1)));
}

#[test]
fn whatever_the_coordinator_objects_to_shuts_the_gate() {
    let fleet = Fleet::new(2);
    let mut judge = fleet.judge();
    judge.hear(fleet.answer(0)).unwrap();
    judge.hear(fleet.answer(1)).unwrap();
    judge.hear(v1::CheckHost { host: "stranger".to_owned(), ..v1::CheckHost::default() }).unwrap();
    let objection = Blocker::host(Code::DuplicateHost, &host(0), "twice");
    let verdict = judge
        .close(v1::CheckFinished { roster_revision: 3, blockers: vec![objection.into()], ..finished() })
        .unwrap();
    assert_eq!(codes(&verdict), [Code::HostNotInRoster, Code::DuplicateHost, Code::RosterChanged]);
    assert_eq!(verdict.identical(), 1);
    assert_ne!(verdict.exit(), Exit::Proven);
}

#[test]
fn a_rehearsal_counts_as_one_and_as_nothing_else() {
    let fleet = Fleet::new(2);
    let verdict_of = |wanted: Wanted, purposes: [Purpose; 2]| {
        let mut judge = Judge::new(Question { wanted, ..fleet.judge().question });
        for (index, purpose) in purposes.into_iter().enumerate() {
            let says = Says { purpose, ..fleet.says(index) };
            judge.hear(fleet.signed(says, &fleet.keys[index])).unwrap();
        }
        judge.close(finished()).unwrap()
    };
    let rehearsed = Purpose::Rehearsal { took_ms: 70 };
    let passed = verdict_of(Wanted::Rehearsal, [rehearsed; 2]);
    assert_eq!((passed.exit(), passed.hosts[1].rehearsal_ms), (Exit::Proven, Some(70)));
    for (wanted, second) in [
        (Wanted::Rehearsal, Purpose::Check),
        (Wanted::Rehearsal, Purpose::Adoption),
        (Wanted::Measurement, rehearsed),
        (Wanted::Measurement, Purpose::Adoption),
    ] {
        let first = if wanted == Wanted::Rehearsal { rehearsed } else { Purpose::Check };
        let verdict = verdict_of(wanted, [first, second]);
        assert_eq!(codes(&verdict), [Code::StaleAttestation], "{wanted:?} {second:?}");
        assert_eq!((verdict.identical(), verdict.hosts[1].rehearsal_ms), (1, None));
    }
}
