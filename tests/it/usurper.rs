//! A coordinator that has been taken over, with its key, its certificate, its log and one operator's key, against all hosts of
//! a fleet of three: it tries every power of its row of the threat model, each host refuses with the reason, and all
//! go on serving.

use std::fs;

use muster_model::{
    BootId, Code, Digest, Document as _, MerkleTree, Order, RolloutId, Roster, RosterRef, RosterRevision,
    Secret, Withdrawal, Withdrawn,
};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body as FromAgent;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_trust::{Authentic, Signer, SigningKey, assemble_evidence, sign};
use serde_json::Value;

use crate::harness::audit::Log;
use crate::harness::forgery::{order, release, strangers_key};
use crate::harness::impostor::{Endless, Impostor};
use crate::harness::{Caller, Fleet, Operators, artifact, now, signed, until};

const HOSTS: [&str; 3] = ["host-1", "host-2", "host-3"];

/// A fleet that has served release one and serves release two, has three, and is in the hands of an impostor.
struct Usurped {
    fleet: Fleet,
    impostor: Impostor,
    two: Digest,
    three: Digest,
    roster: Authentic<Roster>,
    /// The only operator whose key was stolen.
    alice: SigningKey,
    bob: SigningKey,
    /// The order by which the fleet went to release one.
    old_order: Vec<u8>,
}

/// What is shown to the hosts in PREPARE.
struct Papers {
    order: Vec<u8>,
    release: Vec<u8>,
    roster: Vec<u8>,
    evidence: Vec<u8>,
}

impl Usurped {
    fn begin() -> Self {
        let fleet = Fleet::up(HOSTS.len());
        let tree = artifact(&[("lib/a", "a")]);
        fleet.release(&tree, "1.0");
        let old_order = order_of_the_last_flip(&fleet);
        tree.write("lib/a", "b");
        let two = fleet.release(&tree, "2.0").parse().unwrap();
        tree.write("lib/a", "c");
        let three = fleet.push(&tree, "3.0").parse().unwrap();
        fleet.json(&["deploy", "3.0"]).expect_code(0);
        let bob = Operators::demand_two(&fleet).bobs_key;
        let roster = Caller::operator(&fleet).roster();
        let alice = fleet.operator_key();
        let roster = fleet.trust_root().verify_roster(&roster, now()).unwrap();
        let impostor = Impostor::replace(&fleet);
        for host in HOSTS {
            impostor
                .hear_from(host, "that it joins", |body| matches!(body, FromAgent::Join(_)).then_some(()));
        }
        impostor.say(ToAgent::Joined(v1::Joined { next_token: vec![9; 32] }));
        for host in HOSTS {
            let confirmed = |body| matches!(body, FromAgent::Confirmed(_)).then_some(());
            impostor.hear_from(host, "that it has joined", confirmed);
        }
        Self { fleet, impostor, two, three, roster, alice, bob, old_order }
    }

    fn roster_ref(&self) -> RosterRef {
        let roster = self.roster.document();
        let hosts = u32::try_from(roster.hosts().len()).unwrap();
        RosterRef { digest: self.roster.payload_digest(), revision: roster.revision(), hosts }
    }

    fn order(&self, k: u64) -> Order {
        order(k, self.roster_ref(), Some(self.two), self.three)
    }

    /// Steps 4 and 5: the attestations of all hosts, which are honest.
    fn attest(&self, k: u64) -> Vec<Vec<u8>> {
        self.impostor.say(ToAgent::Propose(v1::Propose { k, to: self.three.as_bytes().to_vec() }));
        let nonces = HOSTS.map(|host| {
            self.impostor.hear_from(host, "a fresh nonce", |body| {
                let FromAgent::Fresh(fresh) = body else { return None };
                Some(fresh.nonce)
            })
        });
        let nonces = MerkleTree::new(nonces.iter().map(Vec::as_slice));
        for (index, host) in HOSTS.into_iter().enumerate() {
            let proof = nonces.proof(index).unwrap();
            let attest = v1::Attest {
                k,
                to: self.three.as_bytes().to_vec(),
                nonce_root: nonces.root().as_bytes().to_vec(),
                proof_index: proof.index,
                proof_size: proof.size,
                proof_path: proof.path.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
            };
            self.impostor.say_to(host, ToAgent::Attest(attest));
        }
        let attested = HOSTS.map(|host| {
            self.impostor.hear_from(host, "what it attests", |body| {
                let FromAgent::Attested(attested) = body else { return None };
                Some(attested.envelope)
            })
        });
        attested.into()
    }

    /// Papers that are all in order.
    fn papers(&self, k: u64, attestations: &[Vec<u8>]) -> Papers {
        Papers {
            order: sign(&self.order(k), &[&self.alice as &dyn Signer, &self.bob]).unwrap().raw().to_vec(),
            release: signed(&release("3.0", self.three), &self.fleet.release_key()),
            roster: self.roster.raw().to_vec(),
            evidence: assemble_evidence(attestations),
        }
    }

    fn prepare(&self, k: u64, papers: &Papers) {
        let hold = |bytes: &[u8]| self.impostor.hold(bytes).as_bytes().to_vec();
        self.impostor.say(ToAgent::Prepare(v1::Prepare {
            k,
            epoch: 3,
            order: hold(&papers.order),
            release: hold(&papers.release),
            roster: hold(&papers.roster),
            evidence: hold(&papers.evidence),
        }));
    }

    /// Every host refuses with this code and these words, and serves what it served.
    #[track_caller]
    fn all_refuse(&self, code: Code, words: &str) {
        for host in HOSTS {
            self.refuses(host, code, words);
        }
        self.fleet.assert_all_serve(&self.two.to_string());
    }

    #[track_caller]
    fn refuses(&self, host: &str, code: Code, words: &str) {
        let refusal = self.impostor.hear_from(host, &format!("that it refuses: {code}, {words}"), |body| {
            let FromAgent::Refused(refused) = body else { return None };
            refused.refusal
        });
        let blocker = &refusal.blockers[0];
        assert_eq!(blocker.code, code.as_str(), "{host}: {refusal:?}");
        assert!(blocker.detail.contains(words), "{host}: no `{words}`: {refusal:?}");
    }

    /// Shows papers in which one thing was changed.
    #[track_caller]
    fn try_papers(&self, k: u64, code: Code, words: &str, change: impl FnOnce(&[Vec<u8>], Papers) -> Papers) {
        let attestations = self.attest(k);
        self.prepare(k, &change(&attestations, self.papers(k, &attestations)));
        self.all_refuse(code, words);
    }

    /// What operators sign who believe that host-3 is set aside since `since`, with the order for it, and these words of hosts.
    fn without_host_3(
        &self,
        k: u64,
        since: RosterRevision,
        attested: &[Vec<u8>],
        words: &[Vec<u8>],
    ) -> Papers {
        let present = self.roster.document();
        let [first, second, third] = present.hosts() else { panic!("three hosts") };
        let parked = Withdrawn {
            name: third.name.clone(),
            attestation_key: third.attestation_key.clone(),
            reason: "a fan rattles".to_owned(),
            since_unix_ms: now(),
            since: Some(since),
            fenced: false,
        };
        let (fleet, revision) = (present.fleet().clone(), present.revision().next());
        let roster = Roster::new(fleet, revision, present.policy(), vec![first.clone(), second.clone()])
            .and_then(|roster| roster.setting_aside(vec![parked], Vec::new()))
            .unwrap();
        let digest = Digest::of(&roster.to_bytes());
        let order = order(k, RosterRef { digest, revision, hosts: 2 }, Some(self.two), self.three);
        let operators: [&dyn Signer; 2] = [&self.alice, &self.bob];
        Papers {
            order: sign(&order, &operators).unwrap().raw().to_vec(),
            roster: sign(&roster, &operators).unwrap().raw().to_vec(),
            evidence: assemble_evidence(&[&attested[..2], words].concat()),
            ..self.papers(k, attested)
        }
    }

    /// That host-3 has closed by a revision, as this key says.
    fn word_of_host_3(&self, revision: RosterRevision, key: &SigningKey) -> Vec<u8> {
        let host = self.roster.document().hosts()[2].name.clone();
        let boot = BootId::new("0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").unwrap();
        let fleet = self.roster.document().fleet().clone();
        signed(&Withdrawal::new(fleet, host, revision, RolloutId(2), boot, now()), key)
    }

    fn key_of(&self, number: usize) -> SigningKey {
        SigningKey::read(&self.fleet.host(number).folder().join("attestation.key")).unwrap()
    }

    fn open(&self, host: &str, k: u64, secrets: &[u8]) {
        let (release, secrets) = (self.three.as_bytes().to_vec(), secrets.to_vec().into());
        self.impostor.say_to(host, ToAgent::Open(v1::Open { k, epoch: 3, release, secrets }));
    }

    fn closes(&self, host: &str, k: u64) -> Vec<u8> {
        self.impostor.say_to(host, ToAgent::Close(v1::Close { k }));
        self.impostor.hear_from(host, "that it is closed", |body| {
            let FromAgent::Closed(closed) = body else { return None };
            Some([vec![1], closed.secret].concat())
        })
    }
}

fn order_of_the_last_flip(fleet: &Fleet) -> Vec<u8> {
    let path = fleet.scratch().join("flip.json");
    fleet.json(&["receipt", "show", "--out", path.to_str().unwrap()]).expect_code(0);
    let receipt: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    serde_json::to_vec(&receipt["order"]).unwrap()
}

fn deploys_unsigned_code(usurped: &Usurped) {
    let Usurped { impostor, .. } = usurped;
    let evil = impostor.hold(b"evil");
    let release_envelope = signed(&release("4.0", evil), &strangers_key());
    impostor.say(ToAgent::Deploy(v1::Deploy { request: 1, release_envelope, manifest_size: 4 }));
    for host in HOSTS {
        let ended = impostor.hear_from(host, "how the deployment ended", |body| {
            let FromAgent::DeployEnded(ended) = body else { return None };
            ended.refusal
        });
        assert_eq!(ended.blockers[0].code, Code::SignatureInvalid.as_str(), "{ended:?}");
        assert!(ended.blockers[0].detail.contains("signed by 0 of 1 release keys"), "{ended:?}");
    }
}

#[test]
fn a_coordinator_that_was_taken_over_tries_each_of_its_powers_and_every_host_refuses() {
    let usurped = Usurped::begin();
    let Usurped { fleet, impostor, two, three, alice, bob, roster, .. } = &usurped;

    deploys_unsigned_code(&usurped);
    // Too few approvals: the one key that was stolen.
    let needs_two = "order is signed by 1 of 3 operator keys and needs 2";
    usurped.try_papers(3, Code::SignatureInvalid, needs_two, |_, it| Papers {
        order: signed(&usurped.order(3), alice),
        ..it
    });
    // N - 1 attestations.
    usurped.try_papers(4, Code::BadAttestation, "2 attestations for 3 hosts", |attested, it| Papers {
        evidence: assemble_evidence(&attested[..2]),
        ..it
    });
    // A roster of fewer hosts, with an order for it.
    let members = roster.document().hosts()[..2].to_vec();
    let (name, policy) = (roster.document().fleet().clone(), roster.document().policy());
    let shrunk = Roster::new(name, roster.document().revision().next(), policy, members).unwrap();
    let reference =
        RosterRef { digest: Digest::of(&shrunk.to_bytes()), revision: shrunk.revision(), hosts: 2 };
    let needs_two = "roster is signed by 1 of 3 operator keys and needs 2";
    usurped.try_papers(5, Code::SignatureInvalid, needs_two, |attested, it| Papers {
        roster: signed(&shrunk, alice),
        order: sign(&order(5, reference, Some(*two), *three), &[alice as &dyn Signer, bob])
            .unwrap()
            .raw()
            .to_vec(),
        evidence: assemble_evidence(&attested[..2]),
        ..it
    });
    // A forged attestation, by somebody's key and by another host's.
    let host_1 = SigningKey::read(&fleet.host(1).folder().join("attestation.key")).unwrap();
    for (k, key) in [(6, &strangers_key()), (7, &host_1)] {
        let not_its_key = "attestation of host-3 is not signed by the key";
        usurped.try_papers(k, Code::BadAttestation, not_its_key, |attested, it| {
            let document = muster_trust::Envelope::parse(&attested[2]).unwrap();
            let document = muster_model::Attestation::parse(document.payload()).unwrap();
            let forged = [attested[0].clone(), attested[1].clone(), signed(&document, key)];
            Papers { evidence: assemble_evidence(&forged), ..it }
        });
    }
    // An attestation of another rollout, with its real signature.
    let earlier = usurped.attest(8);
    usurped.try_papers(9, Code::StaleAttestation, "host-3 attested something else", |attested, it| {
        let replayed = [attested[0].clone(), attested[1].clone(), earlier[2].clone()];
        Papers { evidence: assemble_evidence(&replayed), ..it }
    });
    // Back by an order of former times, under its own number and under a new one.
    impostor.say(ToAgent::Propose(v1::Propose { k: 1, to: three.as_bytes().to_vec() }));
    usurped.all_refuse(Code::StaleRollout, "");
    usurped.try_papers(10, Code::SignatureInvalid, "order is signed by", |_, it| Papers {
        order: usurped.old_order.clone(),
        ..it
    });
    // One release's order with another's papers.
    usurped.try_papers(11, Code::OrderInvalid, "", |_, it| Papers {
        release: signed(&release("2.0", *two), &fleet.release_key()),
        ..it
    });
    opens_one_host_while_others_serve(&usurped, 12);

    // Another history than the hosts have seen.
    let mut log = Log::of(fleet);
    log.entries.truncate(4);
    impostor.say(ToAgent::AuditShown(log.shown(None)));
    impostor.say(ToAgent::Propose(v1::Propose { k: 13, to: two.as_bytes().to_vec() }));
    for host in HOSTS {
        usurped.refuses(host, Code::AuditRewritten, "");
    }
    fleet.assert_all_serve(&three.to_string());
}

/// With everything in order, so that nothing but the secrets of the others is missing: one host is closed, and told to open
/// while two serve. In the end all are closed and open, which shows that it was nothing else that kept it shut.
fn opens_one_host_while_others_serve(usurped: &Usurped, k: u64) {
    let Usurped { fleet, impostor, two, three, .. } = usurped;
    let attested = usurped.attest(k);
    usurped.prepare(k, &usurped.papers(k, &attested));
    for host in HOSTS {
        let prepared = |body| matches!(body, FromAgent::Prepared(_)).then_some(());
        impostor.hear_from(host, "that it is prepared", prepared);
    }
    impostor.say(ToAgent::Arm(v1::Arm { k, instant_unix_ms: None }));
    for host in HOSTS {
        impostor
            .hear_from(host, "that it is armed", |body| matches!(body, FromAgent::Armed(_)).then_some(()));
    }
    let first = usurped.closes("host-1", k);
    let made_up = [vec![1], vec![0; 32]].concat();
    // The others' commitments are in their attestations, but this order lets nobody lapse.
    let lapsed = |envelope: &[u8]| {
        let envelope = muster_trust::Envelope::parse(envelope).unwrap();
        let attestation = muster_model::Attestation::parse(envelope.payload()).unwrap();
        let muster_model::Purpose::Rollout { commitment, .. } = attestation.purpose else {
            panic!("{attestation:?}")
        };
        [vec![0], commitment.0.as_bytes().to_vec()].concat()
    };
    for secrets in [
        [first.clone(), made_up.clone(), made_up].concat(),
        [first.clone(), lapsed(&attested[1]), lapsed(&attested[2])].concat(),
        [first.clone(), first.clone(), first.clone()].concat(),
        first.clone(),
    ] {
        usurped.open("host-1", k, &secrets);
        usurped.refuses("host-1", Code::ClosingUnproven, "");
        let served = fleet.hosts().iter().map(crate::harness::Host::serves).collect::<Vec<_>>();
        assert_eq!(served, [None, Some(two.to_string()), Some(two.to_string())]);
    }
    let secrets = [first, usurped.closes("host-2", k), usurped.closes("host-3", k)].concat();
    assert_eq!(secrets.len(), HOSTS.len() * (1 + Secret::from_bytes([0; 32]).as_bytes().len()));
    for host in HOSTS {
        usurped.open(host, k, &secrets);
        impostor
            .hear_from(host, "that it serves", |body| matches!(body, FromAgent::Serving(_)).then_some(()));
    }
    fleet.assert_all_serve(&three.to_string());
}

#[test]
fn a_coordinator_that_was_taken_over_cannot_say_for_a_host_that_it_has_withdrawn() {
    let usurped = Usurped::begin();
    let since = usurped.roster.document().revision().next();
    let before = usurped.roster.document().revision();
    let not_its_key = "withdrawal of host-3 is not signed by the key";
    let unproven = "nothing proves that all hosts have closed";
    // Operators were told that it has closed, and signed that it is parked. It was shown nothing, and serves.
    for (k, words, said) in [
        (3, vec![], unproven),
        (4, vec![usurped.word_of_host_3(since, &strangers_key())], not_its_key),
        (5, vec![usurped.word_of_host_3(since, &usurped.key_of(1))], not_its_key),
        // Its own word, of a time when it was set aside before.
        (6, vec![usurped.word_of_host_3(before, &usurped.key_of(3))], unproven),
        (7, vec![usurped.word_of_host_3(since.next(), &usurped.key_of(3))], unproven),
    ] {
        let attested = usurped.attest(k);
        usurped.prepare(k, &usurped.without_host_3(k, since, &attested, &words));
        usurped.all_refuse(Code::NotWithdrawn, said);
    }
    // It was nothing else that kept it shut.
    let attested = usurped.attest(8);
    let word = usurped.word_of_host_3(since, &usurped.key_of(3));
    usurped.prepare(8, &usurped.without_host_3(8, since, &attested, &[word]));
    for host in &HOSTS[..2] {
        let prepared = |body| matches!(body, FromAgent::Prepared(_)).then_some(());
        usurped.impostor.hear_from(host, "that it is prepared", prepared);
    }
    usurped.refuses(HOSTS[2], Code::HostNotInRoster, "");
}

#[test]
fn operators_who_were_shown_an_older_roster_sign_none_that_a_host_goes_on_to() {
    let usurped = Usurped::begin();
    // In the roster that all keep host-3 serves. The one that operators were shown has it set aside, as it was before; its word of then
    // is real.
    let since = usurped.roster.document().revision();
    let attested = usurped.attest(3);
    let word = usurped.word_of_host_3(since, &usurped.key_of(3));
    let papers = usurped.without_host_3(3, since, &attested, &[word]);
    usurped.prepare(3, &papers);
    usurped.all_refuse(Code::RosterChanged, "in which it serves");
    let roster = usurped.impostor.hold(&papers.roster).as_bytes().to_vec();
    usurped.impostor.say(ToAgent::RosterShown(v1::RosterShown { roster }));
    for host in usurped.fleet.hosts() {
        until("it does not keep the roster", || host.agent.log().contains("a roster is not kept"));
    }
    usurped.fleet.assert_all_serve(&usurped.two.to_string());
}

#[test]
fn a_blob_store_that_never_ends_a_download_fills_no_disk_and_holds_no_host_up() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let key = fleet.release_key();
    let impostor = Impostor::replace(&fleet);
    impostor.hear("that it joins", |body| matches!(body, FromAgent::Join(_)).then_some(()));
    let blobs = fleet.host(1).folder().join("blobs");
    for (request, how, code, words) in [
        (1, Endless::Flood, Code::BlobDamaged, "which has 100000"),
        (2, Endless::Empty, Code::BlobDamaged, "a chunk with nothing in it"),
        (3, Endless::Drip, Code::TimedOut, "bytes came in 1"),
    ] {
        impostor.never_end(how);
        let blob = Digest::of(format!("{how:?}").as_bytes());
        let manifest = crate::harness::forgery::manifest_of("evil", 100_000, blob);
        let name = impostor.hold(&manifest);
        let release_envelope = signed(&release("2.0", name), &key);
        let manifest_size = manifest.len() as u64;
        impostor.say(ToAgent::Deploy(v1::Deploy { request, release_envelope, manifest_size }));
        let ended = impostor.hear("how the deployment ended", |body| {
            let FromAgent::DeployEnded(ended) = body else { return None };
            (ended.request == request).then_some(ended.refusal.unwrap())
        });
        assert_eq!(ended.blockers[0].code, code.as_str(), "{how:?}: {ended:?}");
        assert!(ended.blockers[0].detail.contains(words), "{how:?}: {ended:?}");
        assert!(!blobs.join(&blob.hex()[..2]).join(blob.hex()).exists());
        let incoming = fs::read_dir(blobs.join("incoming")).unwrap().count();
        assert_eq!(incoming, 0, "{how:?}: nothing is left of it");
    }
    fleet.assert_all_serve(&one);
}
