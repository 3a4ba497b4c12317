//! Root documents that a coordinator relays, and those that it makes up.

use muster_model::{RoleKeys, Root, SigningRole, UnixTime};
use muster_proto::v1;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_trust::{KeyAlgorithm, Signer, SigningKey, sign};

use super::scripted::{World, code};

fn new_key() -> SigningKey {
    SigningKey::generate(KeyAlgorithm::Ed25519).unwrap()
}

/// A root of this version: `root` is its root key, `release` signs releases. Signed by `signers`.
fn successor(
    world: &World,
    version: u64,
    root: &SigningKey,
    release: &SigningKey,
    signers: &[&SigningKey],
) -> v1::RootSuccessor {
    let keys = |key: &SigningKey| RoleKeys { threshold: 1, keys: vec![key.public().clone()] };
    let roles = [
        (SigningRole::Root, keys(root)),
        (SigningRole::Release, keys(release)),
        (SigningRole::Operator, keys(&world.keys.operator)),
    ];
    let expires = UnixTime(muster_daemon::unix_time().0 + 3_600_000);
    let root = Root::new(version, expires, roles.into_iter().collect()).unwrap();
    let signers: Vec<_> = signers.iter().map(|key| *key as &dyn Signer).collect();
    v1::RootSuccessor { version, envelope: sign(&root, &signers).unwrap().raw().to_vec() }
}

fn roots(successors: Vec<v1::RootSuccessor>) -> ToAgent {
    ToAgent::Roots(v1::Roots { successors })
}

#[tokio::test]
async fn a_relayed_root_is_followed_for_good_and_a_forged_one_never() {
    let mut world = World::new().await;
    let agent = world.start();
    let (mut session, _) = world.joined(1).await;
    let release = world.release(&[("a", b"first")]);
    let (thief, next) = (new_key(), new_key());
    let genuine = successor(&world, 2, &world.keys.root, &next, &[&world.keys.root]);

    // The coordinator would like its own key to count, whatever it calls the version.
    let own = |version| successor(&world, version, &thief, &thief, &[&thief]);
    let ahead = successor(&world, 3, &world.keys.root, &thief, &[&world.keys.root]);
    let mut mislabelled = own(2);
    mislabelled.version = u64::MAX;
    let garbage = v1::RootSuccessor { version: 2, envelope: b"{".to_vec() };
    for forged in [own(1), own(2), own(u64::MAX), ahead, mislabelled, garbage] {
        session.say(roots(vec![forged])).await;
        let ended = session.deploy(world.deploy(1, &release, &thief)).await;
        assert_eq!(code(&ended.refusal), "signature-invalid");
    }
    let kept = world.folder.path().join("roots");
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 0, "nothing forged is kept");

    session.say(roots(vec![genuine])).await;
    let ended = session.deploy(world.deploy(2, &release, &next)).await;
    assert_eq!(ended.refusal, None);
    assert!(kept.join("2.json").is_file());
    let ended = session.deploy(world.deploy(3, &release, &world.keys.release)).await;
    assert_eq!(code(&ended.refusal), "signature-invalid", "the key was removed");
    agent.stop().await;

    // After a restart nothing is relayed, and an older one is no way back.
    let agent = world.start();
    let (mut session, _) = world.joined(2).await;
    let back = successor(&world, 2, &world.keys.root, &world.keys.release, &[&world.keys.root]);
    session.say(roots(vec![back])).await;
    let ended = session.deploy(world.deploy(4, &release, &world.keys.release)).await;
    assert_eq!(code(&ended.refusal), "signature-invalid");
    assert_eq!(session.deploy(world.deploy(5, &release, &next)).await.refusal, None);
    agent.stop().await;
}
