//! One agent against a scripted coordinator: real TLS, real files, a real guard for links.

mod roots;
mod scripted;
mod tired;

use std::sync::Arc;
use std::time::Duration;

use muster_model::*;
use muster_proto::v1::agent_frame::Body as FromAgent;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_proto::{convert, v1};
use muster_trust::{KeyAlgorithm, SigningKey, assemble_evidence, sign, verify_attestation};

use crate::Parts;
use scripted::{Session, World, code, fleet, write};
use tired::{First, Tired};

fn nonce_root(nonce: &[u8]) -> MerkleTree {
    MerkleTree::new([nonce])
}

/// Steps 4 and 5: the envelope of the host's attestation.
async fn attested(session: &mut Session, k: u64, release: Digest) -> Vec<u8> {
    let to = release.as_bytes().to_vec();
    session.say(ToAgent::Propose(v1::Propose { k, to })).await;
    let FromAgent::Fresh(fresh) = session.hear().await else { panic!("no nonce") };
    let tree = nonce_root(&fresh.nonce);
    let attest = ToHost::Attest {
        k: RolloutId(k),
        to: release,
        nonce_root: tree.root(),
        proof: tree.proof(0).expect("there is one leaf"),
    };
    session.say(convert::to_agent(attest)).await;
    let FromAgent::Attested(attested) = session.hear().await else { panic!("no attestation") };
    attested.envelope
}

/// Step 7: the documents of a rollout of one host.
fn documents(world: &World, k: u64, from: Option<Digest>, to: &Manifest, attestation: &[u8]) -> Documents {
    let (_, roster, roster_digest) = world.roster();
    let now = muster_daemon::unix_time();
    let reference = RosterRef { digest: roster_digest, revision: RosterRevision(1), hosts: 1 };
    let flip =
        Flip { from, to: to.digest(), mode: FlipMode::Strict, on_failure: OnFailure::Hold, max_lapsed: 0 };
    let validity = now..UnixTime(now.0 + 60_000);
    let order = Order::new(fleet(), RolloutId(k), reference, flip, validity).unwrap();
    Documents {
        order: world.put(sign(&order, &[&world.keys.operator]).unwrap().raw().to_vec()),
        release: world.put(world.signed_release(to, &world.keys.release)),
        roster: world.put(roster),
        evidence: world.put(assemble_evidence(&[attestation])),
    }
}

/// Step 7: the host verifies and arms.
async fn arm(session: &mut Session, k: u64, documents: Documents) {
    session.say(convert::to_agent(ToHost::Prepare { k: RolloutId(k), epoch: Epoch(k), documents })).await;
    assert_eq!(session.hear().await, FromAgent::Prepared(v1::Prepared { k }));
    session.say(ToAgent::Arm(v1::Arm { k, instant_unix_ms: None })).await;
    assert_eq!(session.hear().await, FromAgent::Armed(v1::Armed { k }));
}

/// Deploys the first release, and has the host arm for it.
async fn first_armed(world: &World, session: &mut Session) -> Manifest {
    let one = world.release(&[("a", b"one")]);
    session.deploy(world.deploy(1, &one, &world.keys.release)).await;
    let envelope = attested(session, 1, one.digest()).await;
    arm(session, 1, documents(world, 1, None, &one, &envelope)).await;
    one
}

/// Closes for the first release, and answers with what opens it.
async fn first_closed(session: &mut Session, one: &Manifest) -> v1::Open {
    session.say(ToAgent::Close(v1::Close { k: 1 })).await;
    let FromAgent::Closed(closed) = session.hear().await else { panic!("not closed") };
    let release = one.digest().as_bytes().to_vec();
    v1::Open { k: 1, epoch: 1, release, secrets: revealed(&closed.secret) }
}

/// A whole flip of the one host.
async fn flip(world: &World, session: &mut Session, k: u64, from: Option<Digest>, to: &Manifest) {
    let envelope = attested(session, k, to.digest()).await;
    let attestation = verify_attestation(&envelope, &world.roster().0).unwrap();
    assert!(attestation.document().matches());
    arm(session, k, documents(world, k, from, to, &envelope)).await;
    session.say(ToAgent::Close(v1::Close { k })).await;
    let FromAgent::Closed(closed) = session.hear().await else { panic!("not closed") };
    assert_eq!(world.current(), None, "nothing is served between");
    let release = to.digest().as_bytes().to_vec();
    session.say(ToAgent::Open(v1::Open { k, epoch: k, release, secrets: revealed(&closed.secret) })).await;
    let FromAgent::Serving(serving) = session.hear().await else { panic!("not serving") };
    assert!(serving.epoch == k && serving.at_boot_ms >= closed.at_boot_ms);
    assert_eq!(session.hear().await, FromAgent::Measured(v1::Measured { epoch: k }));
    assert_eq!(world.current(), Some(world.tree(to.digest())));
}

/// The closing secret of a fleet of one, as OPEN carries it.
fn revealed(secret: &[u8]) -> prost::bytes::Bytes {
    [&[1], secret].concat().into()
}

#[tokio::test]
async fn a_host_is_flipped_restarted_and_flipped_again() {
    let mut world = World::new().await;
    let agent = world.start();
    let (mut session, join) = world.joined(1).await;
    assert_eq!((join.token, join.last_k, join.serving_epoch), (None, 0, None));
    let one = world.release(&[("bin/server", b"one"), ("etc/conf", b"same")]);
    let two = world.release(&[("bin/server", b"two"), ("etc/conf", b"same")]);
    for release in [&one, &two] {
        let ended = session.deploy(world.deploy(1, release, &world.keys.release)).await;
        assert_eq!((ended.refusal, ended.files), (None, 2));
    }
    flip(&world, &mut session, 1, None, &one).await;
    agent.stop().await;
    assert_eq!(world.current(), Some(world.tree(one.digest())), "service goes on without an agent");

    let agent = world.start();
    let (mut session, join) = world.joined(2).await;
    assert_eq!((join.token, join.last_k, join.serving_epoch), (Some(vec![1; 32]), 1, Some(1)));
    assert!(join.journal_seq > 0 && !join.history_lost);
    flip(&world, &mut session, 2, Some(one.digest()), &two).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_fence_that_was_slow_once_is_tried_again_and_told_anew() {
    const SLOW_MS: u64 = 60_000;
    let mut world = World::new().await;
    let parts = world.parts();
    let guard = Arc::new(Tired::new(Arc::clone(&parts.guard), SLOW_MS, First::Fenced));
    let agent = World::start_with(Parts { guard, drill_again: Duration::from_millis(200), ..parts });
    let (_first, _) = world.joined(1).await;
    // Nobody has to start anything: the agent ends the session that rests on the slow one.
    let (mut session, _) = world.joined(2).await;
    let one = world.release(&[("a", b"one")]);
    session.deploy(world.deploy(1, &one, &world.keys.release)).await;
    let envelope = attested(&mut session, 1, one.digest()).await;
    let attestation = verify_attestation(&envelope, &world.roster().0).unwrap();
    assert!(attestation.document().facts.fence_ms.unwrap() < SLOW_MS / 2);
    agent.stop().await;
}

#[tokio::test]
async fn an_opening_that_came_while_a_fence_was_not_complete_is_asked_for_again() {
    let mut world = World::new().await;
    let parts = world.parts();
    let guard = Arc::new(Tired::new(Arc::clone(&parts.guard), 1, First::Fenced));
    let agent = World::start_with(Parts { guard, ..parts });
    let (mut session, _) = world.joined(1).await;
    let one = first_armed(&world, &mut session).await;
    let open = first_closed(&mut session, &one).await;
    session.say(ToAgent::Open(open.clone())).await;
    let FromAgent::Dark(dark) = session.hear().await else { panic!("not dark") };
    assert_eq!(code(&dark.refusal), "lease-expired");
    // Nobody has to do anything: a coordinator offers again what a session that begins lacks.
    let (mut session, join) = world.joined(2).await;
    assert_eq!((join.last_k, join.serving_epoch), (1, None));
    session.say(ToAgent::Open(open)).await;
    assert!(matches!(session.hear().await, FromAgent::Serving(_)));
    agent.stop().await;
}

#[tokio::test]
async fn a_halt_does_not_wait_for_an_opening_that_takes_its_time() {
    let mut world = World::new().await;
    let parts = world.parts();
    let guard = Arc::new(Tired::new(Arc::clone(&parts.guard), 1, First::Endless));
    let agent = World::start_with(Parts { guard: Arc::clone(&guard) as _, ..parts });
    let (mut session, _) = world.joined(1).await;
    let one = first_armed(&world, &mut session).await;
    let open = first_closed(&mut session, &one).await;
    session.say(ToAgent::Open(open)).await;
    guard.begun.notified().await;
    session.say(ToAgent::Halt(v1::Halt { k: 1 })).await;
    let FromAgent::Dark(dark) = session.hear().await else { panic!("not dark") };
    assert_eq!(code(&dark.refusal), "halted");
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_ends_while_armed_is_still_armed_afterwards() {
    let mut world = World::new().await;
    let agent = world.start();
    let (mut session, _) = world.joined(1).await;
    let one = first_armed(&world, &mut session).await;
    agent.stop().await;

    let agent = world.start();
    let (mut session, join) = world.joined(2).await;
    let mode = convert::mode_from_wire(&join.mode.unwrap()).unwrap();
    assert_eq!((mode, join.last_k), (HostMode::Armed(RolloutId(1), Epoch(0)), 1));
    let open = first_closed(&mut session, &one).await;
    // Without its secret it stays closed.
    session.say(ToAgent::Open(v1::Open { secrets: revealed(&[0; 32]), ..open.clone() })).await;
    let FromAgent::Refused(refused) = session.hear().await else { panic!("not refused") };
    assert_eq!(code(&refused.refusal), "closing-unproven");
    session.say(ToAgent::Open(open)).await;
    assert!(matches!(session.hear().await, FromAgent::Serving(_)));
    agent.stop().await;
}

#[tokio::test]
async fn a_deployment_verifies_resumes_and_repairs() {
    let mut world = World::new().await;
    let agent = world.start();
    let (mut session, _) = world.joined(1).await;
    let big = vec![7; 3 << 20];
    let release = world.release(&[("a", b"first"), ("b/c", b"second"), ("empty", b""), ("big", &big)]);
    let stranger = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
    let ended = session.deploy(world.deploy(1, &release, &stranger)).await;
    assert_eq!(code(&ended.refusal), "signature-invalid");
    assert!(world.downloads.lock().unwrap().is_empty(), "nothing is fetched for a release that is not ours");
    assert_eq!(code(&session.check(release.digest(), Digest::of(b"?")).await.refusal), "not-deployed");

    // One blob is missing, then damaged, then there.
    let second = Digest::of(b"second");
    let ours = || world.deploy(2, &release, &world.keys.release);
    world.blobs.lock().unwrap().remove(&second);
    assert_eq!(code(&session.deploy(ours()).await.refusal), "blob-missing");
    world.blobs.lock().unwrap().insert(second, b"sEcond".to_vec());
    assert_eq!(code(&session.deploy(ours()).await.refusal), "blob-damaged");
    world.blobs.lock().unwrap().insert(second, b"much too long".to_vec());
    assert_eq!(code(&session.deploy(ours()).await.refusal), "blob-damaged");
    assert!(!world.tree(release.digest()).exists(), "nothing half-installed");
    world.put(b"second".to_vec());
    let ended = session.deploy(ours()).await;
    assert_eq!(
        (&ended.refusal, ended.files, ended.manifest),
        (&None, 4, release.digest().as_bytes().to_vec())
    );
    let fetches = |digest| world.downloads.lock().unwrap().iter().filter(|it| **it == digest).count();
    assert_eq!((fetches(Digest::of(&big)), fetches(release.digest())), (1, 1), "what has arrived stays");

    // A tampered tree is named, and repaired by deploying again; a stored blob that went bad is fetched again.
    let challenge = Digest::of(b"challenge");
    let checked = session.check(release.digest(), challenge).await;
    let attestation = verify_attestation(&checked.envelope.unwrap(), &world.roster().0).unwrap();
    assert!(attestation.document().matches() && attestation.document().challenge == challenge);
    let tree = world.tree(release.digest());
    write(&tree.join("a"), "First");
    write(&tree.join("more"), "?");
    let checked = session.check(release.digest(), challenge).await;
    let blockers = checked.refusal.unwrap().blockers;
    let named: Vec<_> = blockers.iter().map(|it| (it.code.as_str(), it.path.as_deref().unwrap())).collect();
    assert_eq!((named, checked.envelope), (vec![("mismatch", "a"), ("mismatch", "more")], None));
    let hex = Digest::of(b"first").hex();
    let stored = world.folder.path().join("blobs").join(&hex[..2]).join(&hex);
    std::fs::remove_file(&stored).unwrap();
    write(&stored, "FIRST");
    assert_eq!(session.deploy(ours()).await.refusal, None);
    assert!(session.check(release.digest(), challenge).await.envelope.is_some());
    agent.stop().await;
}

#[tokio::test]
async fn a_tree_that_was_copied_by_hand_is_measured_like_any_other() {
    let mut world = World::new().await;
    let agent = world.start();
    let (mut session, _) = world.joined(1).await;
    let release = world.release(&[("a", b"first"), ("b", b"second")]);
    let tree = world.tree(release.digest());
    std::fs::create_dir(&tree).unwrap();
    write(&tree.join("a"), "first");
    let checked = session.check(release.digest(), Digest::of(b"challenge")).await;
    let blocker = &checked.refusal.unwrap().blockers[0];
    assert_eq!((blocker.code.as_str(), blocker.path.as_deref()), ("mismatch", Some("b")));
    agent.stop().await;
}

#[tokio::test]
async fn a_refused_session_is_asked_for_again_over_the_same_stream() {
    let mut world = World::new().await;
    let agent = world.start();
    let mut session = world.session().await;
    for _ in 0..2 {
        assert!(matches!(session.hear().await, FromAgent::Join(_)));
        let refusal = Refusal::of(Code::HostNotInRoster, "not yet").into();
        session.say(ToAgent::Refuse(v1::Refuse { refusal: Some(refusal) })).await;
    }
    session.join(1).await;
    // What belongs to another fleet is refused, and what makes no sense ends the stream.
    session.say_to("other", ToAgent::Arm(v1::Arm { k: 1, instant_unix_ms: None })).await;
    let FromAgent::Refused(refused) = session.hear().await else { panic!("not refused") };
    assert_eq!(code(&refused.refusal), "fleet-unknown");
    session.say(ToAgent::Propose(v1::Propose { k: 1, to: vec![0; 5] })).await;
    assert!(session.has_ended().await);
    let (_session, join) = world.joined(2).await;
    assert_eq!(join.token, Some(vec![1; 32]));
    agent.stop().await;
}

#[tokio::test]
async fn a_host_that_lost_its_history_is_dark_before_it_joins() {
    let mut world = World::new().await;
    let agent = world.start();
    let (mut session, _) = world.joined(1).await;
    let one = world.release(&[("a", b"one")]);
    session.deploy(world.deploy(1, &one, &world.keys.release)).await;
    flip(&world, &mut session, 1, None, &one).await;
    agent.stop().await;
    std::fs::remove_dir_all(world.fleet_folder().join("journal/db")).unwrap();

    let agent = world.start();
    let mut session = world.session().await;
    let FromAgent::Join(join) = session.hear().await else { panic!("no join") };
    assert!(join.history_lost);
    assert_eq!((join.last_k, join.serving_epoch, world.current()), (1, None, None));
    agent.stop().await;
}
