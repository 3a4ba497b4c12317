//! What a hostile coordinator may try, one that has the real one's certificate and address: no host installs what its
//! fleet's release key did not sign, and none serves what was not ordered, deployed, attested and proven closed.

use std::fs;

use muster_model::{Code, Digest, MerkleProof, MerkleTree, Order, RosterRef};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body as FromAgent;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_trust::assemble_evidence;

use crate::harness::forgery::{self, order, release, strangers_key, unsigned};
use crate::harness::impostor::Impostor;
use crate::harness::{Caller, Fleet, PATIENCE, artifact, now, signed, wait_until};

/// What the agent says of a deployment that it did not carry out.
#[track_caller]
fn not_deployed(impostor: &Impostor, request: u64, code: Code, text: &str) {
    let ended = impostor.hear("how the deployment ended", |body| match body {
        FromAgent::DeployEnded(ended) if ended.request == request => Some(ended),
        _ => None,
    });
    let blockers = ended.refusal.unwrap_or_else(|| panic!("it was deployed, though `{text}`")).blockers;
    let named = |blocker: &v1::Blocker| blocker.code == code.as_str() && blocker.detail.contains(text);
    assert!(blockers.iter().any(named), "no {code} with `{text}`: {blockers:?}");
    assert!(blockers.iter().all(|blocker| blocker.host.as_deref() == Some("host-1")), "{blockers:?}");
}

fn wait_for_join(impostor: &Impostor) {
    impostor.hear("that it joins", |body| matches!(body, FromAgent::Join(_)).then_some(()));
}

#[test]
fn nothing_is_installed_that_is_not_what_the_release_key_signed() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    let key = fleet.release_key();
    let impostor = Impostor::replace(&fleet);
    wait_for_join(&impostor);
    let mut requests = 0;
    let mut deploy = |release_envelope: Vec<u8>, manifest_size: u64| {
        requests += 1;
        impostor.say(ToAgent::Deploy(v1::Deploy { request: requests, release_envelope, manifest_size }));
        requests
    };

    let manifest = |digest: Digest, size: u64| {
        let header = format!(
            r#"{{"format":"muster.manifest/1","entries":1,"bytes":{size},"absent":[],"external":[],"mutable":[],"variants":[]}}"#
        );
        let line = format!(r#"{{"path":"evil","type":"file","mode":"0755","size":{size},"digest":"{digest}"}}"#);
        format!("{header}\n{line}\n").into_bytes()
    };
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
    for (version, bytes) in [("longer", &b"expected and more"[..]), ("shorter", b"exp"), ("other", b"ex-ected")] {
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

/// The papers of a rollout.
#[derive(Clone)]
struct Papers {
    order: Vec<u8>,
    release: Vec<u8>,
    roster: Vec<u8>,
    /// Instead of what the host attests.
    evidence: Option<Vec<u8>>,
}

/// The refusal that the agent answers with.
#[track_caller]
fn refused(impostor: &Impostor) -> v1::Refusal {
    impostor.hear("that it refuses", |body| match body {
        FromAgent::Refused(refused) => refused.refusal,
        _ => None,
    })
}

#[track_caller]
fn expect_refused(impostor: &Impostor, code: Code) {
    let refusal = refused(impostor);
    assert_eq!(refusal.blockers[0].code, code.as_str(), "{refusal:?}");
}

/// Takes the host as far as it goes with these papers: proposes, lets it attest, and shows it the papers.
fn prepare(impostor: &Impostor, k: u64, to: Digest, papers: &Papers) {
    let nonce = propose(impostor, k, to);
    let tree = MerkleTree::new([nonce.as_slice()]);
    attest(impostor, k, to, tree.root(), tree.proof(0).unwrap());
    let attested = impostor.hear("what it attests", |body| match body {
        FromAgent::Attested(attested) => Some(attested.envelope),
        _ => None,
    });
    let evidence = papers.evidence.clone().unwrap_or_else(|| assemble_evidence(&[attested]));
    let hold = |bytes: &[u8]| impostor.hold(bytes).as_bytes().to_vec();
    impostor.say(ToAgent::Prepare(v1::Prepare {
        k,
        epoch: 2,
        order: hold(&papers.order),
        release: hold(&papers.release),
        roster: hold(&papers.roster),
        evidence: hold(&evidence),
    }));
}

fn propose(impostor: &Impostor, k: u64, to: Digest) -> Vec<u8> {
    impostor.say(ToAgent::Propose(v1::Propose { k, to: to.as_bytes().to_vec() }));
    impostor.hear("a fresh nonce", |body| match body {
        FromAgent::Fresh(fresh) => Some(fresh.nonce),
        _ => None,
    })
}

fn attest(impostor: &Impostor, k: u64, to: Digest, root: Digest, proof: MerkleProof) {
    impostor.say(ToAgent::Attest(v1::Attest {
        k,
        to: to.as_bytes().to_vec(),
        nonce_root: root.as_bytes().to_vec(),
        proof_index: proof.index,
        proof_size: proof.size,
        proof_path: proof.path.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
    }));
}

#[test]
fn nothing_is_served_that_was_not_ordered_attested_and_proven_closed() {
    let fleet = Fleet::up(1);
    let tree = artifact(&[("lib/a", "a")]);
    let one: Digest = fleet.release(&tree, "1.0").parse().unwrap();
    tree.write("lib/a", "b");
    let two: Digest = fleet.push(&tree, "2.0").parse().unwrap();
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    let roster_envelope = Caller::operator(&fleet).roster();
    let roster = fleet.trust_root().verify_roster(&roster_envelope, now()).unwrap();
    let reference = RosterRef { digest: roster.payload_digest(), revision: roster.document().revision(), hosts: 1 };
    let (operator, releaser, stranger) = (fleet.operator_key(), fleet.release_key(), strangers_key());
    let host = fleet.host(1);
    let serves = |digest: Digest| host.serves() == Some(digest.to_string());

    let impostor = Impostor::replace(&fleet);
    wait_for_join(&impostor);
    let bytes = |digest: Digest| digest.as_bytes().to_vec();
    let open = |k, epoch, release, secret: &[u8]| {
        impostor.say(ToAgent::Open(v1::Open { k, epoch, release: bytes(release), secrets: secret.to_vec().into() }));
    };
    // Before a session has begun.
    open(2, 2, two, &[0; 32]);
    expect_refused(&impostor, Code::StaleSession);
    impostor.say_in_term(0, ToAgent::Joined(v1::Joined { next_token: vec![9; 32] }));
    expect_refused(&impostor, Code::StaleTerm);
    impostor.say(ToAgent::Joined(v1::Joined { next_token: vec![9; 32] }));
    impostor.hear("that it has joined", |body| matches!(body, FromAgent::Confirmed(_)).then_some(()));

    // Straight to what the host should only do at the end.
    open(2, 2, two, &[0; 32]);
    refused(&impostor);
    impostor.say(ToAgent::Arm(v1::Arm { k: 2 }));
    refused(&impostor);
    impostor.say(ToAgent::Close(v1::Close { k: 2 }));
    refused(&impostor);
    impostor.say(ToAgent::Admit(v1::Admit { epoch: 2, release: bytes(two), nonce: vec![0; 32] }));
    refused(&impostor);
    impostor.say(ToAgent::Propose(v1::Propose { k: 1, to: bytes(two) }));
    expect_refused(&impostor, Code::StaleRollout);
    // A root that its own nonce is not in could be of another day.
    propose(&impostor, 2, two);
    let yesterday = MerkleTree::new([&[1; 32][..]]);
    attest(&impostor, 2, two, yesterday.root(), yesterday.proof(0).unwrap());
    expect_refused(&impostor, Code::StaleAttestation);
    assert!(serves(one));

    let signed_order = |order: Order| signed(&order, &operator);
    let good = |k| Papers {
        order: signed_order(order(k, reference, Some(one), two)),
        release: signed(&release("2.0", two), &releaser),
        roster: roster_envelope.clone(),
        evidence: None,
    };
    let orders = |k| {
        let elsewhere = RosterRef { digest: Digest::of(b"another"), ..reference };
        let right = order(k, reference, Some(one), two);
        [
            (signed(&right, &stranger), Code::SignatureInvalid),
            (unsigned(&signed_order(right)), Code::SignatureInvalid),
            (signed_order(order(k + 1, reference, Some(one), two)), Code::OrderInvalid),
            (signed_order(order(k, reference, Some(two), one)), Code::OrderInvalid),
            (signed_order(order(k, reference, None, two)), Code::OrderStale),
            (signed_order(order(k, elsewhere, Some(one), two)), Code::RosterChanged),
        ]
    };
    let releases = [
        (signed(&release("2.0", two), &stranger), Code::SignatureInvalid),
        (signed(&release("2.0", one), &releaser), Code::OrderInvalid),
    ];
    let rosters = [(signed(&**roster.document(), &stranger), Code::SignatureInvalid)];
    let evidence = [(b"{}\n".to_vec(), Code::BadAttestation), (Vec::new(), Code::BadAttestation)];
    // A host takes each rollout's number once over one stream.
    let mut k = 2;
    let mut tried = |papers: &dyn Fn(u64) -> (Papers, Code)| {
        k += 1;
        let (papers, code) = papers(k);
        prepare(&impostor, k, two, &papers);
        expect_refused(&impostor, code);
        impostor.say(ToAgent::Arm(v1::Arm { k }));
        refused(&impostor);
        assert!(serves(one), "{code}");
    };
    for index in 0..orders(1).len() {
        tried(&|k| {
            let (order, code) = orders(k)[index].clone();
            (Papers { order, ..good(k) }, code)
        });
    }
    for (release, code) in &releases {
        tried(&|k| (Papers { release: release.clone(), ..good(k) }, *code));
    }
    for (roster, code) in &rosters {
        tried(&|k| (Papers { roster: roster.clone(), ..good(k) }, *code));
    }
    for (evidence, code) in &evidence {
        tried(&|k| (Papers { evidence: Some(evidence.clone()), ..good(k) }, *code));
    }
    let k = k + 1;

    // With all papers in order the host closes, and opens only for whoever knows the secret that it gave away by closing.
    prepare(&impostor, k, two, &good(k));
    impostor.hear("that it is prepared", |body| matches!(body, FromAgent::Prepared(_)).then_some(()));
    open(k, 2, two, &[0; 32]);
    refused(&impostor);
    impostor.say(ToAgent::Arm(v1::Arm { k }));
    impostor.hear("that it is armed", |body| matches!(body, FromAgent::Armed(_)).then_some(()));
    open(k, 2, two, &[0; 32]);
    refused(&impostor);
    assert!(serves(one), "an armed host goes on serving");
    impostor.say(ToAgent::Close(v1::Close { k }));
    let secret = impostor.hear("that it is closed", |body| match body {
        FromAgent::Closed(closed) => Some(closed.secret),
        _ => None,
    });
    assert_eq!(host.serves(), None, "a closed host serves nothing");
    for wrong in [&[0; 32][..], &[], &[secret.clone(), secret.clone()].concat()] {
        open(k, 2, two, wrong);
        expect_refused(&impostor, Code::ClosingUnproven);
        assert_eq!(host.serves(), None);
    }
    open(k, 2, one, &secret);
    refused(&impostor);
    assert_eq!(host.serves(), None, "what was ordered is what it opens");
    open(k, 2, two, &secret);
    impostor.hear("that it serves", |body| matches!(body, FromAgent::Serving(_)).then_some(()));
    assert!(serves(two));

    // The real coordinator learns from the host that the world has moved on, and does not lead on an old record.
    drop(impostor);
    fleet.coordinator().start(&[]);
    wait_until("the real coordinator refuses to lead", PATIENCE, || {
        let status = fleet.json(&["status"]);
        let known = status.code == 0 && status.stdout.contains("rolled-back-coordinator");
        known.then_some(())
    });
    fleet.json(&["flip", "1.0"]).expect_code(12).expect_blocker("rolled-back-coordinator", "host-1", "");
    assert!(serves(two));
}
