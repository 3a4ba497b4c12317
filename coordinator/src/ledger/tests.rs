use std::fs::File;
use std::io::Write as _;

use muster_model::{Blocker, Code, Leadership, RolloutId, Roster, RosterRef, RosterRevision, Term};
use muster_proto::v1;
use muster_rollout::fleet::{ComingRoster, MissedRoster, Offers, Outcome, Phase, RECORD_FORMAT};

use super::*;

fn often() -> NonZeroU64 {
    NonZeroU64::new(4).unwrap()
}

fn open(dir: &Path) -> Ledger {
    Ledger::open(dir, Documents::open(dir).unwrap(), Incarnation(7), often()).unwrap()
}

fn fleet() -> FleetName {
    FleetName::new("smars").unwrap()
}

/// A release whose envelope lies beside the chain.
fn release(ledger: &Ledger, version: &str) -> ReleaseEntry {
    let envelope = Digest::of(version.as_bytes());
    ledger.documents().put(envelope, version.as_bytes()).unwrap();
    ReleaseEntry {
        fleet: fleet(),
        version: Version::new(version).unwrap(),
        manifest: Digest::of(format!("the manifest of {version}").as_bytes()),
        envelope,
        manifest_bytes: 1,
        files: 1,
        bytes: 1,
    }
}

fn add(ledger: &mut Ledger, versions: std::ops::Range<u32>) {
    for version in versions {
        let release = release(ledger, &version.to_string());
        assert_eq!(ledger.add_release(release, None).unwrap(), None);
    }
}

fn versions(history: &History) -> Vec<&str> {
    history.releases.iter().map(|release| release.version.as_str()).collect()
}

/// A backup of the ledger in a file, as the coordinator writes it.
fn backed_up(ledger: &Ledger, file: &Path) {
    let mut file = File::create(file).unwrap();
    let (bytes, names) = crate::backup::database(ledger).unwrap();
    let roots = [v1::RootSuccessor { version: 2, envelope: b"a root".to_vec() }];
    let contents =
        crate::backup::Contents { ledger: &bytes, checkpoint: b"", roots: &roots, documents: &names };
    crate::backup::write(&contents, ledger.documents(), &mut file).unwrap();
    file.flush().unwrap();
}

#[test]
fn a_backup_of_a_chain_that_was_cut_back_restores() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(&folder.path().join("state"));
    add(&mut ledger, 0..9);
    assert!(ledger.snapshot.is_some() && ledger.store.first_seq() > 1, "it was not cut back");
    let backup = folder.path().join("backup.tar");
    backed_up(&ledger, &backup);

    let restored = folder.path().join("restored");
    crate::restore(&backup, &restored).unwrap();
    assert_eq!(std::fs::read(restored.join("roots/2.json")).unwrap(), b"a root");
    let again = open(&restored);
    let history = again.state().fleets[&fleet()].history();
    assert_eq!(versions(&history), ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
    assert!(again.state().incarnation > ledger.state().incarnation);
}

#[test]
fn a_chain_that_was_cut_back_reads_as_before() {
    let folder = tempfile::tempdir().unwrap();
    for turn in 0..4 {
        let mut ledger = open(folder.path());
        assert_eq!(ledger.state().incarnation, Incarnation(7));
        add(&mut ledger, turn * 3..turn * 3 + 3);
        let histories = ledger.histories();
        let history = histories.borrow()[&fleet()].clone();
        assert_eq!(history.releases, ledger.state().fleets[&fleet()].history().releases);
        assert_eq!(history.releases.len(), (turn as usize + 1) * 3);
    }
    let ledger = open(folder.path());
    assert_eq!(ledger.histories().borrow()[&fleet()].releases.len(), 12, "it is published before any append");
}

#[test]
fn a_version_and_a_manifest_are_taken_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(folder.path());
    add(&mut ledger, 1..2);
    let known = release(&ledger, "1");
    let same_version = ReleaseEntry { manifest: Digest::of(b"another"), ..known.clone() };
    let same_manifest = ReleaseEntry { version: Version::new("2").unwrap(), ..known.clone() };
    for other in [known.clone(), same_version, same_manifest] {
        assert_eq!(ledger.add_release(other, None).unwrap(), Some(known.clone()));
    }
    assert_eq!(versions(&ledger.state().fleets[&fleet()].history()), ["1"]);
}

#[test]
fn an_end_with_more_reasons_than_a_record_takes_is_kept_in_short() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(folder.path());
    let blocker = |number| Blocker::fleet(Code::NotDeployed, format!("{number} {}", "\u{1}".repeat(200)));
    let end = End {
        k: RolloutId(1),
        to: Digest::of(b"release"),
        outcome: Outcome::Unchanged,
        epoch: Epoch(0),
        blockers: (0..20_000).map(blocker).collect(),
        dark_window: None,
    };
    ledger.append(vec![Entry::ended(&fleet(), &end)]).unwrap();
    let kept = ledger.state().fleets[&fleet()].history().last_end.unwrap();
    assert_eq!(kept.blockers[0], end.blockers[0]);
    let last = kept.blockers.last().unwrap();
    let left_out = end.blockers.len() - (kept.blockers.len() - 1);
    assert!(last.detail.contains(&left_out.to_string()), "{last}");
}

#[test]
fn the_record_of_the_largest_fleet_fits() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(folder.path());
    let roster = RosterRef { digest: Digest::of(b"roster"), revision: RosterRevision(1), hosts: 20_000 };
    let name = |number| HostName::new(&format!("{number:05}-{}", "x".repeat(57))).unwrap();
    let record = FleetRecord {
        format: RECORD_FORMAT,
        fleet: fleet(),
        leadership: Leadership { incarnation: Incarnation(7), term: Term(1) },
        revision: 1,
        roster,
        roster_envelope: Digest::of(b"envelope"),
        last_k: RolloutId(0),
        epoch: Epoch(0),
        serving: None,
        previous: None,
        phase: Phase::Settled,
        halted: None,
        offers: Offers::Only((0..Roster::HOSTS_MAX).map(name).collect()),
        completed: None,
        coming: Some(ComingRoster {
            roster,
            envelope: Digest::of(b"next"),
            fenced: (0..Roster::HOSTS_MAX).map(name).collect(),
        }),
        joining: (0..Roster::HOSTS_MAX).map(name).collect(),
        missed: vec![MissedRoster {
            revision: RosterRevision(1),
            envelope: Digest::of(b"before"),
            hosts: BTreeSet::new(),
        }],
    };
    // Nothing is offered to whoever is still told that it was left out.
    let half = Roster::HOSTS_MAX / 2;
    let mut told = record.clone();
    told.revision += 1;
    told.offers = Offers::Only((half..Roster::HOSTS_MAX).map(name).collect());
    told.missed[0].hosts = (0..half).map(name).collect();
    for record in [record, told] {
        ledger.record(&fleet(), &[Record::Fleet(Box::new(record))]).unwrap();
    }
    drop(ledger);
    assert!(open(folder.path()).state().fleets[&fleet()].record.is_some());
}

#[test]
fn a_full_disk_keeps_its_name_on_the_way_to_the_operator() {
    let source = || std::io::Error::from_raw_os_error(28);
    let full = ArtifactError::NoSpace { doing: "write", path: "blobs/x".into(), source: source() };
    let full = document_failed("write a document to", full);
    assert_eq!(crate::status::not_stored(&full).code(), Some(Code::NoSpace));
    let broken = ArtifactError::Io { doing: "write", path: "blobs/x".into(), source: source() };
    let broken = document_failed("write a document to", broken);
    assert_eq!(crate::status::not_stored(&broken).code(), Some(Code::StoreFailed));
}

#[test]
fn orders_that_wait_outlive_a_cut_and_a_backup() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut ledger = open(&state);
    let order = |ledger: &Ledger, name: &str| {
        let envelope = Digest::of(name.as_bytes());
        ledger.documents().put(envelope, name.as_bytes()).unwrap();
        OrderEntry {
            fleet: fleet(),
            id: Digest::of(format!("signed {name}").as_bytes()),
            envelope,
            contingency: Some(envelope),
            counter: RolloutId(3),
            to: Digest::of(b"release"),
            expires_unix_ms: UnixTime(9),
            signers: vec![PublicKey::Ed25519([1; 32])],
            proposed_by: "alice".to_owned(),
            proposed_unix_ms: UnixTime(1),
            cancelled_by: None,
            roster: None,
        }
    };
    let (one, two) = (order(&ledger, "one"), order(&ledger, "two"));
    let keep = |it: &OrderEntry| vec![Entry::Order(Box::new(it.clone()))];
    ledger.append(keep(&one)).unwrap();
    ledger.append(keep(&two)).unwrap();
    let approved = OrderEntry { signers: vec![PublicKey::Ed25519([2; 32]); 2], ..one.clone() };
    ledger.append(keep(&approved)).unwrap();
    let orders = |ledger: &Ledger| ledger.state().fleets[&fleet()].history().orders.to_vec();
    assert_eq!(orders(&ledger), [approved.clone(), two.clone()]);
    ledger.append(vec![Entry::OrdersDropped { fleet: fleet(), orders: BTreeSet::from([two.id]) }]).unwrap();
    add(&mut ledger, 0..5);
    assert!(ledger.snapshot.is_some(), "it was not cut back");
    assert!(ledger.named_documents().contains(&one.envelope), "a backup holds its envelope");
    drop(ledger);
    assert_eq!(orders(&open(&state)).first(), Some(&approved));
    let backup = folder.path().join("backup.tar");
    backed_up(&open(&state), &backup);
    let restored = folder.path().join("restored");
    crate::restore(&backup, &restored).unwrap();
    let again = open(&restored);
    assert_eq!(orders(&again), [approved]);
    assert_eq!(again.documents().read(one.envelope).unwrap(), b"one");
}

#[test]
fn the_word_of_a_host_outlives_a_cut_and_a_new_life() {
    let folder = tempfile::tempdir().unwrap();
    let word = |revision| WithdrawalRecord {
        format: RECORD_FORMAT,
        host: HostName::new("host-3").unwrap(),
        attestation_key: PublicKey::Ed25519([3; 32]),
        roster_revision: RosterRevision(revision),
        envelope: format!("{{\"revision\":{revision}}}"),
    };
    let mut ledger = open(folder.path());
    for revision in [2, 5] {
        ledger.record(&fleet(), &[Record::Withdrawal(word(revision))]).unwrap();
    }
    add(&mut ledger, 0..9);
    drop(ledger);
    let mut ledger = open(folder.path());
    let known =
        |ledger: &Ledger| ledger.state().fleets[&fleet()].withdrawals.values().cloned().collect::<Vec<_>>();
    assert_eq!(known(&ledger), [word(5)]);
    ledger.append(vec![Entry::Incarnation(Incarnation(8))]).unwrap();
    assert_eq!(known(&ledger), [word(5)]);
}
