//! What a hostile coordinator may try, one that has the real one's certificate and address: no host installs what its
//! fleet's release key did not sign, and none serves what was not ordered, deployed, attested and proven closed.

use std::fs;

use muster_model::{Code, Digest, MerkleTree, Order, Roster, RosterRef};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body as FromAgent;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_trust::{Authentic, Signer, assemble_evidence, sign};

use crate::harness::forgery::{self, order, release, strangers_key, unsigned};
use crate::harness::impostor::Impostor;
use crate::harness::{Caller, Fleet, Operators, PATIENCE, artifact, now, signed, wait_until};

/// What the agent says of a deployment that it did not carry out.
#[track_caller]
fn not_deployed(impostor: &Impostor, request: u64, code: Code, text: &str) {
    let ended = impostor.hear("how the deployment ended", |body| {
        let FromAgent::DeployEnded(ended) = body else { return None };
        (ended.request == request).then_some(ended)
    });
    let blockers = ended.refusal.unwrap_or_else(|| panic!("it was deployed, though `{text}`")).blockers;
    let named = |blocker: &v1::Blocker| blocker.code == code.as_str() && blocker.detail.contains(text);
    assert!(blockers.iter().any(named), "no {code} with `{text}`: {blockers:?}");
    assert!(blockers.iter().all(|blocker| blocker.host.as_deref() == Some("host-1")), "{blockers:?}");
}

#[test]
fn nothing_is_installed_that_is_not_what_the_release_key_signed() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let key = fleet.release_key();
    let impostor = Impostor::replace(&fleet);
    impostor.hear("that it joins", |body| matches!(body, FromAgent::Join(_)).then_some(()));
    let mut requests = 0;
    let mut deploy = |release_envelope: Vec<u8>, manifest_size: u64| {
        requests += 1;
        impostor.say(ToAgent::Deploy(v1::Deploy { request: requests, release_envelope, manifest_size }));
        requests
    };

    let manifest = |digest, size| forgery::manifest_of("evil", size, digest);
    let evil = impostor.hold(b"evil");
    let good = manifest(evil, 4);
    let (name, size) = (impostor.hold(&good), good.len() as u64);
    let other_fleet = muster_model::Release { fleet: "other".parse().unwrap(), ..release("2.0", name) };
    for (envelope, text) in [
        (signed(&release("2.0", name), &strangers_key()), "signed by 0 of 1 release keys"),
        (signed(&release("2.0", name), &fleet.operator_key()), "signed by 0 of 1 release keys"),
        (unsigned(&signed(&release("2.0", name), &key)), "0 signatures"),
        (signed(&other_fleet, &key), "is for the fleet other"),
        (Vec::new(), "release"),
    ] {
        let request = deploy(envelope, size);
        not_deployed(&impostor, request, Code::SignatureInvalid, text);
    }
    // Signed, as by a release key that has been stolen: the host's own limits and rules hold nevertheless.
    for (text, manifest) in forgery::hostile_manifests() {
        let name = impostor.hold(&manifest);
        let request = deploy(signed(&release("2.0", name), &key), manifest.len() as u64);
        not_deployed(&impostor, request, Code::Unsupported, text);
    }
    let envelope = signed(&release("2.0", name), &key);
    let request = deploy(envelope.clone(), 257 << 20);
    not_deployed(&impostor, request, Code::Unsupported, "269484032 bytes");
    let request = deploy(envelope.clone(), size - 1);
    not_deployed(&impostor, request, Code::BlobDamaged, "is longer than");
    impostor.hold_as(name, &manifest(evil, 5));
    let request = deploy(envelope, size);
    not_deployed(&impostor, request, Code::BlobDamaged, &name.to_string());

    // Blobs that are not what the manifest says.
    for (version, bytes) in
        [("longer", &b"expected and more"[..]), ("shorter", b"exp"), ("other", b"ex-ected")]
    {
        let blob = Digest::of_parts(&[version.as_bytes(), b"expected"]);
        impostor.hold_as(blob, bytes);
        let manifest = manifest(blob, 8);
        let name = impostor.hold(&manifest);
        let request = deploy(signed(&release("2.0", name), &key), manifest.len() as u64);
        not_deployed(&impostor, request, Code::BlobDamaged, &blob.to_string());
    }
    let manifest = manifest(Digest::of(b"nowhere"), 7);
    let name = impostor.hold(&manifest);
    let request = deploy(signed(&release("2.0", name), &key), manifest.len() as u64);
    not_deployed(&impostor, request, Code::BlobMissing, "");

    let releases = fs::read_dir(fleet.host(1).tree(&one).parent().unwrap()).unwrap();
    assert_eq!(releases.count(), 1, "nothing but the first release was ever installed");
    fleet.assert_all_serve(&one);
    drop(impostor);
    fleet.coordinator().start(&[]);
    fleet.wait_connected(1);
    let two = fleet.release(&artifact(&[("lib/a", "b")]), "2.0");
    fleet.assert_all_serve(&two);
}

/// A host that serves release one in epoch 1, has release two, and is in the hands of an impostor.
struct Siege {
    fleet: Fleet,
    impostor: Impostor,
    one: Digest,
    two: Digest,
    roster: Authentic<Roster>,
}

/// The papers of a rollout.
struct Papers {
    order: Vec<u8>,
    release: Vec<u8>,
    roster: Vec<u8>,
    /// Instead of what the host attests.
    evidence: Option<Vec<u8>>,
}

impl Siege {
    fn begin() -> Self {
        Self::begin_with(|_| ())
    }

    /// The same, with what its operators do before.
    fn begin_with(before: impl FnOnce(&Fleet)) -> Self {
        let fleet = Fleet::up(1);
        let tree = artifact(&[("lib/a", "a")]);
        let one = fleet.release(&tree, "1.0").parse().unwrap();
        tree.write("lib/a", "b");
        let two = fleet.push(&tree, "2.0").parse().unwrap();
        fleet.json(&["deploy", "2.0"]).expect_code(0);
        before(&fleet);
        let roster = fleet.trust_root().verify_roster(&Caller::operator(&fleet).roster(), now()).unwrap();
        let impostor = Impostor::replace(&fleet);
        impostor.hear("that it joins", |body| matches!(body, FromAgent::Join(_)).then_some(()));
        Self { fleet, impostor, one, two, roster }
    }

    /// Begins a session, which the host takes from whoever has a coordinator's certificate.
    fn joined() -> Self {
        Self::begin().join()
    }

    fn join(self) -> Self {
        let siege = self;
        siege.impostor.say(ToAgent::Joined(v1::Joined { next_token: vec![9; 32] }));
        let confirmed = |body| matches!(body, FromAgent::Confirmed(_)).then_some(());
        siege.impostor.hear("that it has joined", confirmed);
        siege
    }

    fn serving(&self) -> Option<Digest> {
        self.fleet.host(1).serves().map(|digest| digest.parse().unwrap())
    }

    fn roster_ref(&self) -> RosterRef {
        let revision = self.roster.document().revision();
        RosterRef { digest: self.roster.payload_digest(), revision, hosts: 1 }
    }

    /// Papers that are all in order, for rollout `k` from release one to release two.
    fn papers(&self, k: u64) -> Papers {
        Papers {
            order: signed(&order(k, self.roster_ref(), Some(self.one), self.two), &self.fleet.operator_key()),
            release: signed(&release("2.0", self.two), &self.fleet.release_key()),
            roster: self.roster.raw().to_vec(),
            evidence: None,
        }
    }

    fn open(&self, k: u64, release: Digest, secrets: &[u8]) {
        const REVEALED: &[u8] = &[1];
        let secrets = secrets.chunks(32).flat_map(|secret| [REVEALED, secret].concat()).collect::<Vec<u8>>();
        let (release, secrets) = (release.as_bytes().to_vec(), secrets.into());
        self.impostor.say(ToAgent::Open(v1::Open { k, epoch: 2, release, secrets }));
    }

    fn arm(&self, k: u64) {
        self.impostor.say(ToAgent::Arm(v1::Arm { k, instant_unix_ms: None }));
    }

    /// What the host answers instead of doing what it was told.
    #[track_caller]
    fn refused(&self) -> v1::Refusal {
        self.impostor.hear("that it refuses", |body| {
            let FromAgent::Refused(refused) = body else { return None };
            refused.refusal
        })
    }

    #[track_caller]
    fn expect_refused(&self, code: Code) {
        let refusal = self.refused();
        assert_eq!(refusal.blockers[0].code, code.as_str(), "{refusal:?}");
    }

    fn propose(&self, k: u64) -> Vec<u8> {
        self.impostor.say(ToAgent::Propose(v1::Propose { k, to: self.two.as_bytes().to_vec() }));
        self.impostor.hear("a fresh nonce", |body| {
            let FromAgent::Fresh(fresh) = body else { return None };
            Some(fresh.nonce)
        })
    }

    /// Asks for an attestation with the only nonce of this tree as the host's own.
    fn attest(&self, k: u64, nonces: &MerkleTree) {
        let proof = nonces.proof(0).unwrap();
        self.impostor.say(ToAgent::Attest(v1::Attest {
            k,
            to: self.two.as_bytes().to_vec(),
            nonce_root: nonces.root().as_bytes().to_vec(),
            proof_index: proof.index,
            proof_size: proof.size,
            proof_path: proof.path.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
        }));
    }

    /// Proposes, lets the host attest, and shows it the papers.
    fn prepare(&self, k: u64, papers: &Papers) {
        self.attest(k, &MerkleTree::new([self.propose(k).as_slice()]));
        let attested = self.impostor.hear("what it attests", |body| {
            let FromAgent::Attested(attested) = body else { return None };
            Some(attested.envelope)
        });
        let evidence = papers.evidence.clone().unwrap_or_else(|| assemble_evidence(&[attested]));
        let hold = |bytes: &[u8]| self.impostor.hold(bytes).as_bytes().to_vec();
        self.impostor.say(ToAgent::Prepare(v1::Prepare {
            k,
            epoch: 2,
            order: hold(&papers.order),
            release: hold(&papers.release),
            roster: hold(&papers.roster),
            evidence: hold(&evidence),
        }));
    }
}

#[test]
fn a_host_does_nothing_out_of_turn() {
    let siege = Siege::begin();
    let Siege { impostor, one, two, .. } = &siege;
    // Before a session has begun, and from a leader that is over.
    siege.open(2, *two, &[0; 32]);
    siege.expect_refused(Code::StaleSession);
    impostor.say_in_term(0, ToAgent::Joined(v1::Joined { next_token: vec![9; 32] }));
    siege.expect_refused(Code::StaleTerm);
    impostor.say(ToAgent::Joined(v1::Joined { next_token: vec![9; 32] }));
    impostor.hear("that it has joined", |body| matches!(body, FromAgent::Confirmed(_)).then_some(()));

    // What comes at the end of a rollout, without its beginning.
    siege.open(2, *two, &[0; 32]);
    siege.refused();
    siege.arm(2);
    siege.refused();
    impostor.say(ToAgent::Close(v1::Close { k: 2 }));
    siege.refused();
    impostor.say(ToAgent::Admit(v1::Admit {
        epoch: 2,
        release: two.as_bytes().to_vec(),
        nonce: vec![0; 32],
    }));
    siege.refused();
    // A rollout that is over.
    impostor.say(ToAgent::Propose(v1::Propose { k: 1, to: two.as_bytes().to_vec() }));
    siege.expect_refused(Code::StaleRollout);
    // A root that the host's own nonce is not in could be of another day.
    siege.propose(2);
    siege.attest(2, &MerkleTree::new([&[1; 32][..]]));
    siege.expect_refused(Code::StaleAttestation);
    assert_eq!(siege.serving(), Some(*one));
}

#[test]
fn a_host_believes_no_papers_that_the_right_keys_did_not_sign_or_that_do_not_fit() {
    let siege = Siege::joined();
    let (one, two, stranger) = (siege.one, siege.two, strangers_key());
    let (operator, releaser) = (siege.fleet.operator_key(), siege.fleet.release_key());
    let here = siege.roster_ref();
    let elsewhere = RosterRef { digest: Digest::of(b"another"), ..here };
    let ordered = |order: Order| signed(&order, &operator);
    type Forgery<'a> = (&'a dyn Fn(u64, Papers) -> Papers, Code);
    let forgeries: [Forgery<'_>; 11] = [
        (
            &|k, it| Papers { order: signed(&order(k, here, Some(one), two), &stranger), ..it },
            Code::SignatureInvalid,
        ),
        (&|_, it| Papers { order: unsigned(&it.order), ..it }, Code::SignatureInvalid),
        (&|_, it| Papers { release: signed(&release("2.0", two), &stranger), ..it }, Code::SignatureInvalid),
        (
            &|_, it| Papers { roster: signed(&**siege.roster.document(), &stranger), ..it },
            Code::SignatureInvalid,
        ),
        (&|k, it| Papers { order: ordered(order(k + 1, here, Some(one), two)), ..it }, Code::OrderInvalid),
        (&|k, it| Papers { order: ordered(order(k, here, Some(two), one)), ..it }, Code::OrderInvalid),
        (&|k, it| Papers { order: ordered(order(k, here, None, two)), ..it }, Code::OrderStale),
        (&|k, it| Papers { order: ordered(order(k, elsewhere, Some(one), two)), ..it }, Code::RosterChanged),
        (&|_, it| Papers { release: signed(&release("2.0", one), &releaser), ..it }, Code::OrderInvalid),
        (&|_, it| Papers { evidence: Some(b"{}\n".to_vec()), ..it }, Code::BadAttestation),
        (&|_, it| Papers { evidence: Some(Vec::new()), ..it }, Code::BadAttestation),
    ];
    // A host takes the number of a rollout once over one stream.
    for (k, (forge, code)) in (2..).zip(forgeries) {
        siege.prepare(k, &forge(k, siege.papers(k)));
        siege.expect_refused(code);
        siege.arm(k);
        siege.refused();
        assert_eq!(siege.serving(), Some(one), "{code}");
    }
}

#[test]
fn a_host_counts_operators_and_not_signatures() {
    let mut bobs_key = None;
    let siege = Siege::begin_with(|fleet| bobs_key = Some(Operators::demand_two(fleet).bobs_key)).join();
    let (alice, bob) = (siege.fleet.operator_key(), bobs_key.unwrap());
    let (root_key, releaser) = (strangers_key(), siege.fleet.release_key());
    let ordered = |k: u64| order(k, siege.roster_ref(), Some(siege.one), siege.two);
    let by = |k: u64, keys: &[&dyn Signer]| sign(&ordered(k), keys).unwrap().raw().to_vec();
    type Forgery<'a> = &'a dyn Fn(u64) -> Vec<u8>;
    let forgeries: [Forgery<'_>; 4] = [
        &|k| by(k, &[&alice]),
        &|k| forgery::signed_twice(&by(k, &[&alice])),
        &|k| by(k, &[&bob, &bob]),
        &|k| by(k, &[&alice, &root_key, &releaser]),
    ];
    let mut k = 2;
    for forge in forgeries {
        siege.prepare(k, &Papers { order: forge(k), ..siege.papers(k) });
        let refusal = siege.refused();
        let (code, detail) = (&refusal.blockers[0].code, &refusal.blockers[0].detail);
        assert_eq!(code, Code::SignatureInvalid.as_str(), "{refusal:?}");
        assert!(detail.contains("order is signed by 1 of 3 operator keys and needs 2"), "{detail}");
        siege.arm(k);
        siege.refused();
        assert_eq!(siege.serving(), Some(siege.one));
        k += 1;
    }
    siege.prepare(k, &Papers { order: by(k, &[&bob, &alice]), ..siege.papers(k) });
    siege.impostor.hear("that it is prepared", |body| matches!(body, FromAgent::Prepared(_)).then_some(()));
}

#[test]
fn a_closed_host_opens_for_whoever_knows_what_it_gave_away_by_closing() {
    let siege = Siege::joined();
    let (impostor, one, two) = (&siege.impostor, siege.one, siege.two);
    siege.prepare(2, &siege.papers(2));
    impostor.hear("that it is prepared", |body| matches!(body, FromAgent::Prepared(_)).then_some(()));
    siege.open(2, two, &[0; 32]);
    siege.refused();
    siege.arm(2);
    impostor.hear("that it is armed", |body| matches!(body, FromAgent::Armed(_)).then_some(()));
    siege.open(2, two, &[0; 32]);
    siege.refused();
    assert_eq!(siege.serving(), Some(one), "an armed host goes on serving");

    impostor.say(ToAgent::Close(v1::Close { k: 2 }));
    let secret = impostor.hear("that it is closed", |body| {
        let FromAgent::Closed(closed) = body else { return None };
        Some(closed.secret)
    });
    assert_eq!(siege.serving(), None, "a closed host serves nothing");
    for wrong in [&[0; 32][..], &[], &secret.repeat(2)] {
        siege.open(2, two, wrong);
        siege.expect_refused(Code::ClosingUnproven);
        assert_eq!(siege.serving(), None);
    }
    siege.open(2, one, &secret);
    siege.refused();
    assert_eq!(siege.serving(), None, "what was ordered is what it opens");
    siege.open(2, two, &secret);
    impostor.hear("that it serves", |body| matches!(body, FromAgent::Serving(_)).then_some(()));
    assert_eq!(siege.serving(), Some(two));

    // The real coordinator learns from the host that the world has moved on, and does not lead on an old record.
    let Siege { fleet, impostor, .. } = siege;
    drop(impostor);
    fleet.coordinator().start(&[]);
    wait_until("the real coordinator refuses to lead", PATIENCE, || {
        let status = fleet.json(&["status"]);
        (status.code == 0 && status.stdout.contains("rolled-back-coordinator")).then_some(())
    });
    let refused = fleet.json(&["flip", "2.0"]).expect_code(12);
    refused.expect_blocker("rolled-back-coordinator", "host-1", "");
    fleet.assert_all_serve(&two.to_string());
}
