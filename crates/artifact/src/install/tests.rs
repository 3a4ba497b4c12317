use std::os::unix::fs::{MetadataExt as _, symlink};

use muster_model::TreeRules;

use super::*;
use crate::testing::{Sandbox, chmod, measured, mutable};
use crate::{Durability, Plan, plan};

#[test]
fn a_release_is_installed_once_and_kept() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let first = sandbox.install(&manifest);
    assert_eq!((first.how, first.measurement.digest), (How::Fresh, manifest.digest()));
    assert_eq!(first.tree, sandbox.releases().join(manifest.digest().hex()));
    let inode = fs::metadata(&first.tree).expect("a tree").ino();
    let second = sandbox.try_install(&manifest).expect("installed");
    assert_eq!((second.how, second.measurement.digest), (How::Kept, manifest.digest()));
    assert_eq!(fs::metadata(&first.tree).expect("a tree").ino(), inode);
    assert_eq!(sandbox.leftovers(), [""; 0]);
}

#[test]
fn many_entries_take_the_other_way_of_syncing() {
    let sandbox = Sandbox::with_tree();
    for i in 0..200 {
        sandbox.file(&format!("lib/{i:03}"), 0o644, format!("{}", i % 50).as_bytes());
    }
    let manifest = sandbox.pack(TreeRules::default());
    assert_eq!(plan(&manifest, &sandbox.store).expect("a plan").missing.len(), 53, "each content once");
    assert_eq!(sandbox.install(&manifest).measurement.files, 203);
}

#[test]
fn folders_without_write_permission_are_installed_repaired_and_removed() {
    let sandbox = Sandbox::with_tree();
    chmod(&sandbox.src().join("lib/deep"), 0o555);
    chmod(&sandbox.src().join("lib"), 0o555);
    let manifest = sandbox.pack(TreeRules::default());
    let tree = sandbox.install(&manifest).tree;
    chmod(&tree.join("bin/server"), 0o700);
    assert_eq!(sandbox.try_install(&manifest).expect("installed").how, How::Repaired);
    assert_eq!(sandbox.leftovers(), [""; 0]);
    remove_release(&sandbox.releases(), manifest.digest()).expect("removed");
    remove_release(&sandbox.releases(), manifest.digest()).expect("removed already");
    assert_eq!(fs::read_dir(sandbox.releases()).expect("a folder").count(), 0);
}

#[test]
fn repair_replaces_what_differs_and_keeps_what_the_service_wrote() {
    let sandbox = Sandbox::with_tree();
    sandbox.folder("var", 0o700);
    let manifest = sandbox.pack(mutable(&["lib/cache", "var"]));
    let tree = sandbox.install(&manifest).tree;
    let link = sandbox.dir.path().join("current");
    symlink(&tree, &link).expect("a symlink");

    fs::write(tree.join("var/data"), b"precious").expect("a file");
    fs::write(tree.join("lib/cache"), b"warm").expect("a file");
    fs::write(tree.join("extra"), b"powerpeg").expect("a file");
    fs::remove_file(tree.join("bin/server")).expect("removed");
    chmod(&tree.join("var"), 0o755);

    let repaired = sandbox.try_install(&manifest).expect("repaired");
    assert_eq!((repaired.how, repaired.measurement.digest), (How::Repaired, manifest.digest()));
    assert_eq!(fs::read(link.join("var/data")).expect("data"), b"precious");
    assert_eq!(fs::read(link.join("lib/cache")).expect("data"), b"warm");
    assert!(!tree.join("extra").exists());
    assert_eq!(sandbox.leftovers(), [""; 0]);
}

#[test]
fn a_symlink_or_a_shut_folder_in_the_place_of_a_tree_is_replaced() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let tree = sandbox.install(&manifest).tree;
    fs::rename(&tree, sandbox.dir.path().join("moved")).expect("moved");
    symlink(sandbox.dir.path().join("moved"), &tree).expect("a symlink");
    assert_eq!(sandbox.try_install(&manifest).expect("installed").how, How::Repaired);
    assert!(fs::symlink_metadata(&tree).expect("a tree").is_dir());
    assert!(
        measured(&sandbox.dir.path().join("moved"), &manifest).matches(),
        "what the symlink led to is left alone"
    );

    chmod(&tree.join("bin"), 0o000);
    assert_eq!(sandbox.try_install(&manifest).expect("installed").how, How::Repaired);
    assert_eq!(sandbox.leftovers(), [""; 0]);
}

#[test]
fn a_replacement_that_was_cut_short_is_ended_without_loss() {
    let sandbox = Sandbox::with_tree();
    sandbox.folder("var", 0o700);
    let manifest = sandbox.pack(mutable(&["var"]));
    let tree = sandbox.install(&manifest).tree;
    let place = swap::Place { releases: &sandbox.releases(), digest: manifest.digest() };

    // Killed right after the exchange: the data is still in the old tree, beside the new one.
    fs::write(tree.join("var/data"), b"precious").expect("a file");
    let built =
        build::build(&sandbox.store, &manifest, &place, &crate::testing::INSTALLING, &Progress::default());
    swap::exchange(&place, &built.expect("a tree")).expect("exchanged");
    assert!(!tree.join("var/data").exists());
    clean_leftovers(&sandbox.releases()).expect("cleaned");
    assert_eq!(sandbox.try_install(&manifest).expect("installed").how, How::Kept);
    assert_eq!(fs::read(tree.join("var/data")).expect("data"), b"precious");
    assert_eq!(sandbox.leftovers(), [""; 0]);

    // Killed right before it: the name already says that it may hold data, and the new tree has none.
    let built =
        build::build(&sandbox.store, &manifest, &place, &crate::testing::INSTALLING, &Progress::default());
    fs::rename(built.expect("a tree"), place.unused_name(".swap-").expect("a name")).expect("renamed");
    assert_eq!(sandbox.try_install(&manifest).expect("installed").how, How::Kept);
    assert_eq!(fs::read(tree.join("var/data")).expect("data"), b"precious");
    assert_eq!(sandbox.leftovers(), [""; 0]);

    // Both trees have data: nothing is thrown away.
    let built =
        build::build(&sandbox.store, &manifest, &place, &crate::testing::INSTALLING, &Progress::default());
    swap::exchange(&place, &built.expect("a tree")).expect("exchanged");
    fs::write(tree.join("var/data"), b"newer").expect("a file");
    sandbox.try_install(&manifest).expect("installed");
    assert_eq!(fs::read(tree.join("var/data")).expect("data"), b"newer");
    let [kept] = &sandbox.leftovers()[..] else { panic!("{:?}", sandbox.leftovers()) };
    assert_eq!(fs::read(sandbox.releases().join(kept).join("var/data")).expect("data"), b"precious");
}

#[test]
fn nothing_is_installed_from_missing_or_damaged_blobs() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    assert!(matches!(sandbox.try_install(&manifest), Err(ArtifactError::BlobMissing { .. })));
    sandbox.fill(&manifest);

    let digest = Digest::of(b"the server");
    let blob = sandbox.dir.path().join("blobs").join(&digest.hex()[..2]).join(digest.hex());
    for damage in [b"thE server".as_slice(), b"the serve"] {
        fs::remove_file(&blob).expect("removed");
        fs::write(&blob, damage).expect("damaged");
        let error = sandbox.try_install(&manifest).expect_err("damaged");
        assert!(
            matches!(error, ArtifactError::Damaged { digest: d, .. } | ArtifactError::WrongSize { digest: d, .. } if d == digest),
            "{error}"
        );
    }
    assert_eq!(fs::read_dir(sandbox.releases()).expect("a folder").count(), 0, "nothing half-installed");

    sandbox.store.remove(digest).expect("removed");
    let Plan { missing, bytes } = plan(&manifest, &sandbox.store).expect("a plan");
    assert_eq!((missing, bytes), (vec![(digest, 10)], 10));
    let mut writer = sandbox.store.writer(digest, 10, Durability::Each).expect("a writer");
    writer.write(b"the server").expect("written");
    writer.finish().expect("the blob");
    assert_eq!(sandbox.try_install(&manifest).expect("installed").how, How::Fresh);
}

#[test]
fn a_plan_names_the_largest_first() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let sizes: Vec<_> =
        plan(&manifest, &sandbox.store).expect("a plan").missing.iter().map(|(_, size)| *size).collect();
    assert_eq!(sizes, [300_000, 10, 0]);
}

#[test]
fn only_unfinished_trees_are_leftovers() {
    let sandbox = Sandbox::with_tree();
    clean_leftovers(&sandbox.releases()).expect("nothing to clean");
    let manifest = sandbox.pack(TreeRules::default());
    let tree = sandbox.install(&manifest).tree;
    let half = sandbox.releases().join(format!(".tmp-{}-abc", manifest.digest().hex()));
    fs::create_dir_all(half.join("bin")).expect("folders");
    fs::write(half.join("bin/server"), b"the ser").expect("a file");
    chmod(&half.join("bin"), 0o500);
    clean_leftovers(&sandbox.releases()).expect("cleaned");
    assert!(!half.exists() && measured(&tree, &manifest).matches());
}

#[test]
fn the_owner_is_the_one_named() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    sandbox.fill(&manifest);
    let me = fs::metadata(sandbox.src()).expect("a folder");
    let root = me.uid() == 0;
    let owner =
        if root { Owner { uid: 12_345, gid: 12_346 } } else { Owner { uid: me.uid(), gid: me.gid() } };
    let options = InstallOptions { owner: Some(owner), ..crate::testing::INSTALLING };
    let tree = install(&sandbox.store, &manifest, &sandbox.releases(), &options, &Progress::default())
        .expect("installed")
        .tree;
    for name in ["", "bin", "bin/server", "bin/run"] {
        let found = fs::symlink_metadata(tree.join(name)).expect("an entry");
        assert_eq!((found.uid(), found.gid()), (owner.uid, owner.gid), "{name}");
    }
}
