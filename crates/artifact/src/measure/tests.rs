use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_model::{DifferenceKind, External, ExternalCheck, TreeRules};
use proptest::prelude::*;

use super::*;
use crate::testing::{MEASURING, Sandbox, at, chmod, grow, host, measured, mutable, seeds};

/// Changes a byte and puts size and times back, as somebody with something to hide would.
fn tamper_quietly(file: &Path) {
    let before = fs::metadata(file).expect("the file");
    let mut content = fs::read(file).expect("the content");
    content[0] ^= 1;
    chmod(file, 0o600);
    fs::write(file, content).expect("written");
    let times = fs::FileTimes::new().set_modified(before.modified().expect("a time"));
    fs::File::options().write(true).open(file).and_then(|file| file.set_times(times)).expect("times");
    fs::set_permissions(file, before.permissions()).expect("a mode");
}

#[test]
fn each_tampering_is_found_by_name() {
    type Tampering = fn(&Path);
    let cases: [(&str, DifferenceKind, Tampering); 13] = [
        ("bin/server", DifferenceKind::Content, |tree| tamper_quietly(&tree.join("bin/server"))),
        ("bin/server", DifferenceKind::Size, |tree| {
            fs::write(tree.join("bin/server"), b"x").expect("written")
        }),
        ("bin/server", DifferenceKind::Mode, |tree| chmod(&tree.join("bin/server"), 0o777)),
        ("bin/server", DifferenceKind::Mode, |tree| chmod(&tree.join("bin/server"), 0o4755)),
        ("lib/deep", DifferenceKind::Mode, |tree| chmod(&tree.join("lib/deep"), 0o755)),
        ("lib/deep/data", DifferenceKind::Missing, |tree| {
            fs::remove_file(tree.join("lib/deep/data")).expect("removed");
        }),
        ("lib", DifferenceKind::Missing, |tree| fs::remove_dir_all(tree.join("lib")).expect("removed")),
        ("lib/deep/new", DifferenceKind::Extra, |tree| {
            fs::write(tree.join("lib/deep/new"), b"").expect("made")
        }),
        ("new", DifferenceKind::Extra, |tree| fs::create_dir_all(tree.join("new/deep")).expect("made")),
        ("bin/run", DifferenceKind::Target, |tree| {
            fs::remove_file(tree.join("bin/run")).expect("removed");
            symlink("../lib/empty", tree.join("bin/run")).expect("a symlink");
        }),
        ("lib", DifferenceKind::Type, |tree| {
            fs::rename(tree.join("lib"), tree.with_extension("moved")).expect("moved");
            symlink(tree.with_extension("moved"), tree.join("lib")).expect("a symlink");
        }),
        ("lib/empty", DifferenceKind::Type, |tree| {
            fs::remove_file(tree.join("lib/empty")).expect("removed");
            rustix::fs::mkfifoat(rustix::fs::CWD, tree.join("lib/empty"), 0o644.into()).expect("a FIFO");
        }),
        ("lib/empty", DifferenceKind::Type, |tree| {
            fs::remove_file(tree.join("lib/empty")).expect("removed");
            fs::create_dir(tree.join("lib/empty")).expect("a folder");
            fs::write(tree.join("lib/empty/x"), b"").expect("a file");
        }),
    ];
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    for (place, kind, tampering) in cases {
        let tree = sandbox.install(&manifest).tree;
        let before = measured(&tree, &manifest);
        assert_eq!((before.digest, before.matches()), (manifest.digest(), true));
        assert_eq!((before.entries, before.files, before.bytes), (8, 3, 300_010));
        tampering(&tree);
        let after = measured(&tree, &manifest);
        assert_ne!(after.digest, manifest.digest(), "{place} {kind:?}");
        let found: Vec<_> = after
            .differences
            .iter()
            .map(|difference| (difference.path.to_string(), difference.kind))
            .collect();
        assert_eq!(found, [(place.to_owned(), kind)]);
        assert_eq!(after.difference_count, 1);
        let alone = MeasureOptions { jobs: NonZeroUsize::MIN, ..MEASURING };
        let alone = measure(&tree, &manifest, &alone, &Progress::default()).expect("a measurement");
        assert_eq!((alone.digest, &alone.differences), (after.digest, &after.differences));
    }
}

#[test]
fn what_is_no_tree_is_an_error_and_not_a_mismatch() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let look = |tree: &Path| measure(tree, &manifest, &MEASURING, &Progress::default());
    assert!(matches!(look(&sandbox.dir.path().join("none")), Err(ArtifactError::TreeMissing { .. })));
    let link = sandbox.dir.path().join("link");
    symlink(sandbox.src(), &link).expect("a symlink");
    assert!(matches!(look(&link), Err(ArtifactError::NotATree { .. })));
    assert!(look(&sandbox.src()).expect("a measurement").matches());
}

#[test]
fn differences_are_bounded_and_counted() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    for i in 0..200 {
        sandbox.file(&format!("extra-{i:03}"), 0o644, b"");
    }
    let measurement = measured(&sandbox.src(), &manifest);
    assert_eq!((measurement.differences.len(), measurement.difference_count), (DIFFERENCES_MAX, 200));
    assert_eq!(measurement.differences[63].path.to_string(), "extra-063");
    assert_eq!(measurement.files, 203);
}

#[test]
fn the_host_around_the_tree_counts() {
    let sandbox = Sandbox::with_tree();
    let there = |name: &str| sandbox.dir.path().join(name);
    let digest = Digest::of(b"nginx");
    let external = |name: &str, check| External { path: host(&there(name)), check };
    let rules = TreeRules {
        absent: vec![host(&there("powerpeg"))],
        external: vec![
            external("nginx", ExternalCheck::Digest { digest }),
            external("conf", ExternalCheck::Uniform),
            external("device", ExternalCheck::Present),
        ],
        mutable: Vec::new(),
    };
    fs::write(there("nginx"), b"nginx").expect("a file");
    fs::write(there("conf"), b"alike").expect("a file");
    fs::create_dir(there("device")).expect("a folder");
    let manifest = sandbox.pack(rules);
    let look = || measured(&sandbox.src(), &manifest);
    let good = look();
    assert!(good.matches() && good.digest == manifest.digest() && good.uniform.is_some(), "{good:?}");

    fs::write(there("conf"), b"other").expect("a file");
    let other = look();
    assert!(other.matches() && other.digest == manifest.digest(), "only the fleet can tell");
    assert_ne!(other.uniform, good.uniform);

    let differs = |kind: DifferenceKind, name: &str| {
        let found = look();
        assert_ne!(found.digest, manifest.digest(), "{name}");
        assert_eq!(found.differences.len(), 1);
        assert_eq!(
            (found.differences[0].kind, &found.differences[0].path),
            (kind, &muster_model::Place::Host(host(&there(name))))
        );
    };
    symlink("nowhere", there("powerpeg")).expect("a symlink");
    differs(DifferenceKind::Absent, "powerpeg");
    fs::remove_file(there("powerpeg")).expect("removed");
    fs::write(there("nginx"), b"apache").expect("a file");
    differs(DifferenceKind::External, "nginx");
    fs::write(there("nginx"), b"nginx").expect("a file");
    fs::remove_file(there("conf")).expect("removed");
    differs(DifferenceKind::External, "conf");
    fs::create_dir(there("conf")).expect("a folder");
    differs(DifferenceKind::External, "conf");
    fs::remove_dir(there("conf")).expect("removed");
    fs::write(there("conf"), b"alike").expect("a file");
    fs::remove_dir(there("device")).expect("removed");
    differs(DifferenceKind::External, "device");
    fs::create_dir(there("device")).expect("a folder");
    assert_eq!((look().digest, look().uniform), (good.digest, good.uniform));
}

#[test]
fn mutable_paths_are_not_measured_but_listed_folders_are() {
    let sandbox = Sandbox::with_tree();
    sandbox.folder("var", 0o700);
    let manifest = sandbox.pack(mutable(&["cache", "var"]));
    let tree = sandbox.install(&manifest).tree;
    fs::write(tree.join("cache"), b"x").expect("a file");
    fs::create_dir(tree.join("var/log")).expect("a folder");
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.join("var/fifo"), 0o644.into()).expect("a FIFO");
    let good = measured(&tree, &manifest);
    assert_eq!((good.digest, good.matches()), (manifest.digest(), true), "{:?}", good.differences);

    chmod(&tree.join("var"), 0o777);
    assert_eq!(measured(&tree, &manifest).differences[0].kind, DifferenceKind::Mode);
    fs::remove_dir_all(tree.join("var")).expect("removed");
    assert_eq!(measured(&tree, &manifest).differences[0].kind, DifferenceKind::Missing);
    symlink("/tmp", tree.join("var")).expect("a symlink");
    let found = measured(&tree, &manifest);
    assert_eq!((found.differences[0].kind, found.digest != manifest.digest()), (DifferenceKind::Type, true));
}

#[test]
fn a_folder_swapped_under_the_walk_leads_nowhere_else() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let tree = sandbox.install(&manifest).tree;
    let decoy = sandbox.dir.path().join("decoy");
    fs::create_dir_all(decoy.join("deep")).expect("folders");
    fs::write(decoy.join("secret"), b"not yours").expect("a file");
    fs::write(decoy.join("deep/secret"), b"not yours").expect("a file");
    let secret = Digest::of(b"not yours").to_string();

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (lib, aside) = (tree.join("lib"), sandbox.dir.path().join("aside"));
            while !done.load(Ordering::Relaxed) {
                fs::rename(&lib, &aside).expect("moved");
                symlink(&decoy, &lib).expect("a symlink");
                fs::remove_file(&lib).expect("removed");
                fs::rename(&aside, &lib).expect("moved back");
            }
        });
        let looks: Vec<_> =
            (0..200).map(|_| measure(&tree, &manifest, &MEASURING, &Progress::default())).collect();
        done.store(true, Ordering::Relaxed);
        for look in looks {
            let look = look.expect("a measurement");
            assert_eq!(look.matches(), look.digest == manifest.digest());
            let names = look.differences.iter().map(ToString::to_string).collect::<String>();
            assert!(!names.contains("secret") && !names.contains(&secret), "{names}");
        }
    });
    assert!(measured(&tree, &manifest).matches());
}

#[test]
fn a_pace_is_kept() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let slow = MeasureOptions { bytes_per_second_max: NonZeroU64::new(3_000_000), ..MEASURING };
    let measurement = measure(&sandbox.src(), &manifest, &slow, &Progress::default()).expect("a measurement");
    assert!(measurement.matches() && measurement.elapsed >= Duration::from_millis(99), "{measurement:?}");
}

#[test]
fn progress_counts_what_was_read() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let progress = Progress::default();
    measure(&sandbox.src(), &manifest, &MEASURING, &progress).expect("a measurement");
    assert_eq!((progress.files(), progress.bytes()), (3, 300_010));
}

#[derive(Debug, Clone)]
enum Tampering {
    Content,
    Mode,
    Remove,
    Add,
    Retarget,
}

fn tamperings() -> impl Strategy<Value = Tampering> {
    prop_oneof![
        Just(Tampering::Content),
        Just(Tampering::Mode),
        Just(Tampering::Remove),
        Just(Tampering::Add),
        Just(Tampering::Retarget)
    ]
}

/// Does one thing to one entry; false where it does not apply.
fn tamper(tree: &Path, entry: &muster_model::Entry, tampering: &Tampering) -> bool {
    use muster_model::EntryKind;
    let place = at(tree, &entry.path);
    match (tampering, &entry.kind) {
        (Tampering::Content, EntryKind::File { size: 1.., .. }) => tamper_quietly(&place),
        (Tampering::Mode, EntryKind::Dir { mode } | EntryKind::File { mode, .. }) => {
            chmod(&place, u32::from(mode.bits() ^ 0o001));
        }
        (Tampering::Remove, EntryKind::Dir { .. }) => fs::remove_dir_all(&place).expect("removed"),
        (Tampering::Remove, _) => fs::remove_file(&place).expect("removed"),
        (Tampering::Add, EntryKind::Dir { .. }) => fs::write(place.join("added......"), b"").expect("added"),
        (Tampering::Retarget, EntryKind::Symlink { .. }) => {
            fs::remove_file(&place).expect("removed");
            symlink("retargeted.....", &place).expect("a symlink");
        }
        _ => return false,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn trees_survive_installing_and_no_tampering_goes_unseen(
        seeds in seeds(),
        victim in any::<prop::sample::Index>(),
        tampering in tamperings(),
    ) {
        let sandbox = Sandbox::new();
        grow(&sandbox.src(), &seeds);
        let Ok(packed) = sandbox.try_pack(TreeRules::default()) else { return Ok(()) };
        let manifest = packed.manifest;
        let tree = sandbox.install(&manifest).tree;
        let (before, seal) =
            crate::seal(&tree, &manifest, &MEASURING, &Progress::default()).expect("a measurement");
        prop_assert_eq!(before.digest, manifest.digest());
        let seal = seal.expect("a seal of a matching tree");
        prop_assert!(seal.check(&tree, NonZeroUsize::MIN).is_ok());

        let entry = victim.get(manifest.entries());
        if tamper(&tree, entry, &tampering) {
            let after = measured(&tree, &manifest);
            prop_assert!(!after.matches() && after.digest != manifest.digest());
            let named = after.differences.iter().any(|difference| {
                let muster_model::Place::Tree(found) = &difference.path else { return false };
                *found == entry.path || found.is_below(&entry.path)
            });
            prop_assert!(named, "{:?}", after.differences);
            let broken = seal.check(&tree, crate::testing::TWO);
            prop_assert!(matches!(broken, Err(ArtifactError::SealBroken { .. })), "{:?}", broken);
        }
    }
}
