use muster_model::External;

use super::*;
use crate::testing::{MEASURING, Sandbox, TWO, chmod, host, mutable};

fn sealed(tree: &Path, manifest: &Manifest) -> Seal {
    let (measurement, seal) = seal(tree, manifest, &MEASURING, &Progress::default()).expect("a measurement");
    seal.unwrap_or_else(|| panic!("{:?}", measurement.differences))
}

#[test]
fn a_seal_survives_its_file_and_notices_damage() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let seal = sealed(&sandbox.src(), &manifest);
    let file = sandbox.dir.path().join("seal");
    seal.write(&file).expect("written");
    assert_eq!(Seal::read(&file).expect("a seal"), seal);
    assert_eq!(seal.manifest(), manifest.digest());
    seal.check(&sandbox.src(), TWO).expect("unbroken");

    let good = fs::read(&file).expect("bytes");
    for at in [0, 20, good.len() / 2, good.len() - 1] {
        let mut damaged = good.clone();
        damaged[at] ^= 4;
        fs::write(&file, damaged).expect("damaged");
        assert!(matches!(Seal::read(&file), Err(ArtifactError::SealFile { .. })), "{at}");
    }
    fs::write(&file, &good[..good.len() - 9]).expect("cut");
    assert!(matches!(Seal::read(&file), Err(ArtifactError::SealFile { .. })));
    assert!(matches!(Seal::read(&sandbox.dir.path().join("none")), Err(ArtifactError::Io { .. })));
}

#[test]
fn a_tree_that_differs_is_not_sealed() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    sandbox.file("extra", 0o644, b"");
    let (measurement, seal) =
        seal(&sandbox.src(), &manifest, &MEASURING, &Progress::default()).expect("measured");
    assert!(!measurement.matches() && seal.is_none());
}

#[test]
fn writing_the_same_bytes_again_breaks_the_seal() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let seal = sealed(&sandbox.src(), &manifest);
    sandbox.file("bin/server", 0o755, b"the server");
    let Err(ArtifactError::SealBroken { differences, count: 1, .. }) = seal.check(&sandbox.src(), TWO) else {
        panic!("the seal held");
    };
    assert_eq!(
        (differences[0].path.to_string().as_str(), differences[0].kind),
        ("bin/server", DifferenceKind::Touched)
    );
}

#[test]
fn another_folder_or_none_is_told_apart() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let tree = sandbox.install(&manifest).tree;
    let seal = sealed(&tree, &manifest);
    assert!(matches!(seal.check(&sandbox.src(), TWO), Err(ArtifactError::Replaced { .. })));
    fs::remove_dir_all(&tree).expect("removed");
    assert!(matches!(seal.check(&tree, TWO), Err(ArtifactError::TreeMissing { .. })));
}

#[test]
fn services_may_write_where_the_release_says() {
    let sandbox = Sandbox::with_tree();
    sandbox.folder("var", 0o700);
    let manifest = sandbox.pack(mutable(&["lib/cache", "pid", "var"]));
    let tree = sandbox.install(&manifest).tree;
    let seal = sealed(&tree, &manifest);
    fs::write(tree.join("pid"), b"1").expect("a file");
    fs::write(tree.join("lib/cache"), b"1").expect("a file");
    fs::write(tree.join("var/x"), b"1").expect("a file");
    seal.check(&tree, TWO).expect("unbroken");
    fs::write(tree.join("lib/other"), b"1").expect("a file");
    assert!(matches!(seal.check(&tree, TWO), Err(ArtifactError::SealBroken { count: 1, .. })));
    fs::remove_file(tree.join("lib/other")).expect("removed");
    seal.check(&tree, TWO).expect("unbroken again");
    chmod(&tree.join("var"), 0o777);
    assert!(matches!(seal.check(&tree, TWO), Err(ArtifactError::SealBroken { count: 1, .. })));
}

#[test]
fn the_host_around_the_tree_is_sealed_too() {
    let sandbox = Sandbox::with_tree();
    let there = |name: &str| sandbox.dir.path().join(name);
    let external = |name: &str, check| External { path: host(&there(name)), check };
    let rules = TreeRules {
        absent: vec![host(&there("old"))],
        external: vec![external("conf", ExternalCheck::Uniform), external("run", ExternalCheck::Present)],
        mutable: Vec::new(),
    };
    fs::write(there("conf"), b"x").expect("a file");
    fs::create_dir(there("run")).expect("a folder");
    let manifest = sandbox.pack(rules);
    let seal = sealed(&sandbox.src(), &manifest);
    fs::write(there("run/pid"), b"1").expect("a file");
    seal.check(&sandbox.src(), TWO).expect("a present path may change");
    fs::write(there("old"), b"x").expect("a file");
    assert!(matches!(seal.check(&sandbox.src(), TWO), Err(ArtifactError::SealBroken { count: 1, .. })));
    fs::remove_file(there("old")).expect("removed");
    fs::write(there("conf"), b"y").expect("a file");
    assert!(matches!(seal.check(&sandbox.src(), TWO), Err(ArtifactError::SealBroken { count: 1, .. })));
}

/// Seals have not changed where the kernel seals nothing, so that an older guard and agent go on reading them.
#[test]
fn a_seal_without_the_kernels_digests_is_as_it_was_before_there_were_any() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let without = sealed(&sandbox.src(), &manifest);
    assert!(!without.is_verity(), "nobody seals a source tree");
    let mut json = serde_json::to_value(&without).expect("JSON");
    assert!(json.get("verity").is_none());
    json["verity"] = serde_json::json!({ "bin/server": Digest::of(b"verity") });
    let with: Seal = serde_json::from_value(json).expect("a seal");
    assert!(with.is_verity() && with != without);
    // It asks the kernel, which has sealed nothing here.
    let Err(ArtifactError::SealBroken { differences, count: 1, .. }) = with.check(&sandbox.src(), TWO) else {
        panic!("the seal held");
    };
    assert_eq!(differences[0].path.to_string(), "bin/server");
    assert_eq!(differences[0].measured, "not sealed with fs-verity");
}
