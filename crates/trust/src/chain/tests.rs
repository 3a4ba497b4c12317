use muster_model::UnixTime;
use tempfile::TempDir;

use super::*;
use crate::dsse::Signature;
use crate::fixture::{
    FlipParts, NOW, ROOT_EXPIRES, fleet_name, key, manifest, release, role_keys, root, roster, signed,
    trust_root,
};

/// The key of `trust_root`, and those that follow it in these tests.
const FIRST: u8 = 100;
const SECOND: u8 = 110;
const THIRD: u8 = 120;

/// A root of this version whose only root key is `own`, signed by `keys`.
fn next(version: u64, own: u8, keys: &[u8]) -> Vec<u8> {
    signed(&root(version, role_keys(1, &[own])), keys).raw().to_vec()
}

/// The second and third version, each with another key.
fn successors() -> [Vec<u8>; 2] {
    [next(2, SECOND, &[FIRST, SECOND]), next(3, THIRD, &[SECOND, THIRD])]
}

struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("roots")
    }

    /// Starts with the first root pinned.
    fn start(&self) -> RootChain {
        RootChain::open(trust_root(), &self.folder()).unwrap()
    }
}

fn version(chain: &RootChain) -> u64 {
    chain.in_force().root().version
}

#[test]
fn successors_are_followed_one_by_one_and_outlive_a_restart() {
    let machine = Machine::new();
    let chain = machine.start();
    for (raw, expected) in successors().iter().zip(2..) {
        assert!(
            matches!(chain.succeed(raw).unwrap(), Succession::Taken(root) if root.root().version == expected)
        );
        assert_eq!(chain.succeed(raw).unwrap(), Succession::Known, "relayed once more");
        assert_eq!(version(&machine.start()), expected);
    }
    let versions: Vec<u64> = chain.all().iter().map(|root| root.root().version).collect();
    assert_eq!(versions, [1, 2, 3]);
}

#[test]
fn a_write_that_was_cut_short_leaves_the_old_root() {
    let machine = Machine::new();
    machine.start();
    fs::write(machine.folder().join(".2.new"), b"{\"payload\":").unwrap();
    let chain = machine.start();
    assert_eq!(version(&chain), 1);
    chain.succeed(&successors()[0]).unwrap();
    assert_eq!(version(&machine.start()), 2);
}

#[test]
fn what_cannot_be_kept_is_not_used() {
    let machine = Machine::new();
    let chain = machine.start();
    fs::remove_dir(machine.folder()).unwrap();
    let error = chain.succeed(&successors()[0]).unwrap_err();
    assert!(matches!(error, TrustError::RootFile { action: "write", .. }), "{error}");
    assert_eq!(version(&chain), 1);
}

/// An attacker offers a root that was in force once, and whose keys it has by now.
#[test]
fn attack_rollback() {
    let machine = Machine::new();
    let chain = machine.start();
    for raw in successors() {
        chain.succeed(&raw).unwrap();
    }
    // The keys that were left behind sign whatever version they like.
    for number in [1, 2, 3, 4] {
        for keys in [&[FIRST][..], &[SECOND], &[FIRST, SECOND]] {
            let offered = chain.succeed(&next(number, FIRST, keys));
            // The first root itself is no news, and changes nothing either.
            assert!(!matches!(offered, Ok(Succession::Taken(_))), "version {number} by {keys:?}");
        }
    }
    // Even those in force do not lead back.
    for number in [1, 2, 3] {
        let error = chain.succeed(&next(number, 66, &[THIRD, 66])).unwrap_err();
        assert!(matches!(error, TrustError::RootVersion { present: 3, found } if found == number), "{error}");
    }
    assert_eq!(version(&chain), 3);
    assert_eq!(version(&machine.start()), 3);
    // Nor does a restart with the first one pinned, or with one that was never followed here.
    assert_eq!(version(&machine.start()), 3);
    let stranger = TrustRoot::pin(&next(2, FIRST, &[FIRST])).unwrap();
    let error = RootChain::open(stranger, &machine.folder()).unwrap_err();
    assert!(matches!(error, TrustError::RootChain { .. }), "{error}");
}

/// An attacker replays a root of long ago to a machine that was provisioned late.
#[test]
fn attack_rollback_by_provisioning() {
    let machine = Machine::new();
    let [second, third] = successors();
    let pinned = trust_root().succeed(&second).unwrap();
    RootChain::open(pinned, &machine.folder()).unwrap().succeed(&third).unwrap();
    let error = RootChain::open(trust_root(), &machine.folder()).unwrap_err();
    assert!(matches!(error, TrustError::RootGap { kept: 3, missing: 2, .. }), "{error}");
    let pinned_anew = trust_root().succeed(&second).unwrap().succeed(&third).unwrap();
    assert_eq!(version(&RootChain::open(pinned_anew, &machine.folder()).unwrap()), 3);
}

/// An attacker with the present keys jumps ahead, so that no honest successor is ever taken again.
#[test]
fn attack_fast_forward() {
    let machine = Machine::new();
    let chain = machine.start();
    for number in [3, 4, u64::MAX] {
        let error = chain.succeed(&next(number, FIRST, &[FIRST])).unwrap_err();
        assert!(matches!(error, TrustError::RootVersion { present: 1, found } if found == number), "{error}");
    }
    chain.succeed(&successors()[0]).unwrap();
    assert_eq!(version(&chain), 2);
}

/// An attacker keeps the successor back until the root in force means nothing any more.
#[test]
fn attack_freeze() {
    let machine = Machine::new();
    let chain = machine.start();
    let flip = FlipParts::new().sign();
    let late = UnixTime(ROOT_EXPIRES.0 + 1);
    let error = chain.in_force().verify_order(flip.order.raw(), late).unwrap_err();
    assert!(matches!(error, TrustError::RootExpired { version: 1, .. }), "{error}");
    for verb in ["root edit", "root sign", "root apply"] {
        assert!(error.to_string().contains(verb), "{error}");
    }
    chain.succeed(&successors()[0]).unwrap();
    assert_eq!(version(&chain), 2, "and the way out stays open");
}

/// An attacker combines what was signed at different times: each part is genuine, the whole never was.
#[test]
fn attack_mix_and_match() {
    let machine = Machine::new();
    let chain = machine.start();
    let [second, third] = successors();
    // The signatures of one version under the content of another.
    let (honest, other) = (Envelope::parse(&second).unwrap(), root(2, role_keys(1, &[66])));
    let grafted =
        Envelope::new(honest.payload_type(), other.to_bytes(), honest.signatures().to_vec()).unwrap();
    assert!(matches!(chain.succeed(grafted.raw()), Err(TrustError::Threshold { signed: 0, .. })));
    // Half of what the old root wants and half of what the new one wants are no whole.
    let mut two_of_two = root(2, role_keys(2, &[SECOND, THIRD]));
    assert!(chain.succeed(signed(&two_of_two, &[FIRST, SECOND]).raw()).is_err());
    two_of_two.version = 3;
    chain.succeed(&second).unwrap();
    assert!(chain.succeed(signed(&two_of_two, &[FIRST, SECOND, SECOND]).raw()).is_err());
    chain.succeed(&third).unwrap();

    // An old release under a new root, by a key that was removed.
    let genuine = signed(&release(&fleet_name(), manifest()), &[101]);
    let verify =
        |chain: &RootChain| chain.in_force().verify_release(genuine.raw(), &fleet_name(), NOW).map(drop);
    verify(&chain).unwrap();
    let mut without = root(4, role_keys(1, &[THIRD]));
    without.roles.insert(SigningRole::Release, role_keys(1, &[111]));
    chain.succeed(signed(&without, &[THIRD]).raw()).unwrap();
    let error = verify(&chain).unwrap_err();
    assert!(matches!(error, TrustError::Threshold { role: "release", signed: 0, .. }), "{error}");
}

/// RUSTSEC-2020-0024, for both thresholds of a succession.
#[test]
fn attack_duplicate_signatures() {
    let machine = Machine::new();
    let pinned = TrustRoot::pin(signed(&root(1, role_keys(2, &[1, 2])), &[1, 2]).raw()).unwrap();
    let chain = RootChain::open(pinned, &machine.folder()).unwrap();
    let next = root(2, role_keys(2, &[1, 2]));
    let once = signed(&next, &[1]);
    let renamed = Signature { keyid: Some("another".to_owned()), sig: once.signatures()[0].sig.clone() };
    let signatures = [once.signatures(), &[renamed]].concat();
    let twice = Envelope::new(once.payload_type(), once.payload().to_vec(), signatures).unwrap();
    for envelope in [signed(&next, &[1, 1]), twice] {
        let error = chain.succeed(envelope.raw()).unwrap_err();
        assert!(matches!(error, TrustError::Threshold { signed: 1, threshold: 2, .. }), "{error}");
    }
    chain.succeed(signed(&next, &[1, 2]).raw()).unwrap();
}

/// Somebody fills the disk, or has a machine verify for ever.
#[test]
fn attack_endless_root() {
    let machine = Machine::new();
    let chain = machine.start();
    let mut huge = next(2, SECOND, &[FIRST, SECOND]);
    huge.resize(ROOT_BYTES_MAX + 1, b' ');
    assert!(matches!(chain.succeed(&huge), Err(TrustError::Envelope { .. })));
    assert!(kept_versions(&machine.folder()).unwrap().is_empty());
}

#[test]
fn a_file_that_was_tampered_with_ends_the_start() {
    let machine = Machine::new();
    let chain = machine.start();
    for raw in successors() {
        chain.succeed(&raw).unwrap();
    }
    let second = machine.folder().join("2.json");
    fs::write(&second, next(2, 66, &[66])).unwrap();
    let error = RootChain::open(trust_root(), &machine.folder()).unwrap_err();
    assert!(matches!(&error, TrustError::RootChain { path, .. } if *path == second), "{error}");
    fs::remove_file(&second).unwrap();
    let error = RootChain::open(trust_root(), &machine.folder()).unwrap_err();
    assert!(matches!(error, TrustError::RootGap { missing: 2, .. }), "{error}");
}

#[test]
fn what_happened_stays_verified() {
    let machine = Machine::new();
    let chain = machine.start();
    let flip = FlipParts::new().sign();
    let mut without = root(2, role_keys(1, &[SECOND]));
    without.roles.insert(SigningRole::Operator, role_keys(1, &[111]));
    chain.succeed(signed(&without, &[FIRST, SECOND]).raw()).unwrap();
    assert!(chain.in_force().verify_roster(flip.roster.raw(), NOW).is_err());
    let kept: Authentic<muster_model::Roster> =
        chain.verify_history(SigningRole::Operator, flip.roster.raw()).unwrap();
    assert_eq!(kept.raw(), flip.roster.raw());
    let forged = signed(&roster(&fleet_name(), 3), &[66]);
    let error =
        chain.verify_history::<muster_model::Roster>(SigningRole::Operator, forged.raw()).unwrap_err();
    assert!(matches!(error, TrustError::Threshold { .. }), "{error}");
}

#[test]
fn a_proposal_tells_who_has_signed() {
    let present = trust_root();
    let proposed = root(2, role_keys(2, &[SECOND, THIRD]));
    let public = |byte| key(byte).public().clone();
    let review = present.review(&signed(&proposed, &[SECOND, SECOND, 66])).unwrap();
    assert_eq!((review.by_present, review.by_next), (vec![], vec![public(SECOND)]));
    let review = present.review(&signed(&proposed, &[FIRST])).unwrap();
    assert_eq!((review.by_present, review.by_next), (vec![public(FIRST)], vec![]));
    assert_eq!(review.root, proposed);
    let skipping = signed(&root(3, role_keys(1, &[FIRST])), &[FIRST]);
    assert!(matches!(present.review(&skipping), Err(TrustError::RootVersion { .. })));
}
