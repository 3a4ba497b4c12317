//! The tests whose names begin with `verity_` need a file system with fs-verity; `tests/verity/run` boots a kernel that has one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use muster_model::TreeRules;
use rustix::fs::FileType;

use super::*;
use crate::testing::{INSTALLING, MEASURING, Sandbox, chmod, measured, path};
use crate::walk::{Found, Stamp};
use crate::{
    Deployed, How, InstallOptions, MeasureOptions, Progress, Seal, install, measure, remove_release, seal,
};

const STAMP: Stamp = Stamp { device: 1, inode: 2, mode: 0o100_644, size: 3, mtime_ns: 4, ctime_ns: 5 };

fn walked(files: &[(&str, FileVerity)]) -> Walked {
    let file = |(name, verity): &(&str, FileVerity)| Found {
        path: path(name),
        kind: FoundKind::File { digest: Some(Digest::of(b"content")), verity: *verity, note: None },
        stamp: STAMP,
    };
    let mut found: Vec<Found> = files.iter().map(file).collect();
    // Neither is a file of the release.
    for (name, kind) in [
        ("bin", FoundKind::Dir),
        ("link", FoundKind::Symlink { target: b"bin".to_vec() }),
        ("log", FoundKind::Mutable(FileType::RegularFile)),
    ] {
        found.push(Found { path: path(name), kind, stamp: STAMP });
    }
    Walked { root: STAMP, found, beyond: Vec::new() }
}

#[test]
fn a_tree_counts_as_sealed_if_every_file_of_it_does() {
    let sealed = FileVerity::Sealed(Digest::of(b"verity"));
    let of = |files: &[(&str, FileVerity)]| assured(&walked(files), VerityUse::WherePossible);
    assert_eq!(of(&[("a", sealed), ("b", sealed)]), Assured::Verity);
    for (other, why) in [
        (FileVerity::Unsupported, Shortfall::Unsupported),
        (FileVerity::Failed(Errno::ACCESS), Shortfall::Failed(path("b"), Errno::ACCESS)),
        (FileVerity::Unsealed, Shortfall::Unsealed(path("b"))),
        (FileVerity::Another, Shortfall::Another(path("b"))),
        (FileVerity::Unasked, Shortfall::Unsealed(path("b"))),
    ] {
        assert_eq!(of(&[("a", sealed), ("b", other), ("c", sealed)]), Assured::Sha256(why));
    }
    // What was found to be so goes before what nobody has asked any more.
    let asked = of(&[("a", FileVerity::Unasked), ("b", FileVerity::Unsupported)]);
    assert_eq!(asked, Assured::Sha256(Shortfall::Unsupported));
    assert_eq!(of(&[]), Assured::Sha256(Shortfall::NoFile));
    assert_eq!(assured(&walked(&[("a", sealed)]), VerityUse::Off), Assured::Sha256(Shortfall::Off));
}

#[test]
fn what_is_said_of_it() {
    let said = |why| Assured::Sha256(why).to_string();
    assert_eq!(said(Shortfall::Unsupported), "sha256 (this filesystem has no fs-verity)");
    assert_eq!(said(Shortfall::Unsealed(path("bin/web"))), "sha256 (bin/web is not sealed with fs-verity)");
    assert_eq!(said(Shortfall::Off), "sha256 (fs-verity is switched off here)");
    assert_eq!(Assured::Verity.to_string(), "verity");
}

/// What every kernel can do: without fs-verity a release is installed and measured as ever, and says why it is not more.
#[test]
fn a_file_system_without_it_is_as_good_as_ever_and_says_so() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let installed = sandbox.install(&manifest);
    let (_, sealed) = seal(&installed.tree, &manifest, &MEASURING, &Progress::default()).expect("measured");
    let sealed = sealed.expect("sealed");
    match &installed.measurement.assured {
        // Where this runs on a file system that has it, the tests below say more.
        Assured::Verity => assert!(sealed.is_verity()),
        Assured::Sha256(why) => {
            assert_eq!(*why, Shortfall::Unsupported);
            assert!(!sealed.is_verity());
        }
    }
    let off = MeasureOptions { verity: VerityUse::Off, ..MEASURING };
    let measurement = measure(&installed.tree, &manifest, &off, &Progress::default()).expect("measured");
    assert_eq!(measurement.assured, Assured::Sha256(Shortfall::Off));
    assert!(sandbox.leftovers().is_empty(), "{:?}", sandbox.leftovers());
}

/// A release whose files have modes that keep their owner from writing as well.
fn read_only() -> (Sandbox, Manifest) {
    let sandbox = Sandbox::with_tree();
    sandbox.file("lib/locked", 0o444, b"nobody writes here");
    let manifest = sandbox.pack(TreeRules::default());
    sandbox.fill(&manifest);
    (sandbox, manifest)
}

#[test]
#[ignore = "needs a file system with fs-verity: tests/verity/run makes one"]
fn verity_an_installed_release_is_sealed_and_nobody_writes_to_it() {
    for jobs in [1, 2] {
        let (sandbox, manifest) = read_only();
        let options =
            InstallOptions { jobs: std::num::NonZeroUsize::new(jobs).expect("not 0"), ..INSTALLING };
        let installed =
            install(&sandbox.store, &manifest, &sandbox.releases(), &options, &Progress::default())
                .expect("installed");
        assert_eq!(installed.measurement.assured, Assured::Verity);
        assert!(installed.measurement.matches() && installed.how == How::Fresh);
        let server = installed.tree.join("bin/server");
        let refused = fs::write(&server, "the swerve").expect_err("it is sealed");
        assert_eq!(refused.raw_os_error(), Some(Errno::PERM.raw_os_error()));
        assert_eq!(
            fs::metadata(installed.tree.join("lib/locked")).expect("there").permissions().mode() & 0o777,
            0o444
        );
        assert!(sandbox.leftovers().is_empty(), "{:?}", sandbox.leftovers());
        // Sealed once: a second installation keeps it.
        assert_eq!(sandbox.try_install(&manifest).expect("kept").how, How::Kept);
        remove_release(&sandbox.releases(), manifest.digest()).expect("a sealed tree can be removed");
        assert!(!installed.tree.exists());
    }
}

#[test]
#[ignore = "needs a file system with fs-verity: tests/verity/run makes one"]
fn verity_a_tree_from_before_is_sealed_where_it_is() {
    let (sandbox, manifest) = read_only();
    let off = InstallOptions { verity: VerityUse::Off, ..INSTALLING };
    let installed = install(&sandbox.store, &manifest, &sandbox.releases(), &off, &Progress::default())
        .expect("installed");
    assert_eq!(installed.measurement.assured, Assured::Sha256(Shortfall::Off));
    let (_, before) = seal(&installed.tree, &manifest, &MEASURING, &Progress::default()).expect("measured");
    let kept = sandbox.try_install(&manifest).expect("installed");
    assert_eq!((kept.how, kept.measurement.assured), (How::Kept, Assured::Verity));
    // For the kernel that is a change, so that the tree is measured and sealed again before it is started.
    let before = before.expect("sealed").check(&installed.tree, MEASURING.jobs);
    assert!(matches!(before, Err(ArtifactError::SealBroken { count: 4, .. })), "{before:?}");
    let (_, after) = seal(&installed.tree, &manifest, &MEASURING, &Progress::default()).expect("measured");
    after.expect("sealed").check(&installed.tree, MEASURING.jobs).expect("unbroken");
}

#[test]
#[ignore = "needs a file system with fs-verity: tests/verity/run makes one"]
fn verity_a_file_that_is_not_sealed_or_in_another_way_is_told() {
    let (sandbox, manifest) = read_only();
    let tree = sandbox.try_install(&manifest).expect("installed").tree;
    // The same bytes in a file of their own.
    let server = tree.join("bin/server");
    let copy = |content: &str| {
        fs::remove_file(&server).expect("removed");
        fs::write(&server, content).expect("written");
        chmod(&server, 0o755);
    };
    copy("the server");
    let measurement = measured(&tree, &manifest);
    assert!(measurement.matches());
    assert_eq!(measurement.assured, Assured::Sha256(Shortfall::Unsealed(path("bin/server"))));
    // Sealed by somebody else, with a salt.
    let sealed = std::process::Command::new("fsverity")
        .args(["enable", "--salt=abcd"])
        .arg(&server)
        .status()
        .expect("fsverity");
    assert!(sealed.success());
    let measurement = measured(&tree, &manifest);
    assert!(measurement.matches());
    assert_eq!(measurement.assured, Assured::Sha256(Shortfall::Another(path("bin/server"))));
    // It cannot be repaired in place, and is as good as any file.
    assert_eq!(sandbox.try_install(&manifest).expect("kept").how, How::Kept);
    copy("the swerve");
    let repaired = sandbox.try_install(&manifest).expect("repaired");
    assert_eq!((repaired.how, repaired.measurement.assured), (How::Repaired, Assured::Verity));
}

/// What only the kernel's digest can tell: the metadata is as it was, for the file is the same one, and its times go forward alone.
#[test]
#[ignore = "needs a file system with fs-verity: tests/verity/run makes one"]
fn verity_a_seal_goes_by_the_kernels_digest_and_reads_nothing() {
    let (sandbox, manifest) = read_only();
    let tree = sandbox.try_install(&manifest).expect("installed").tree;
    let (_, sealed) = seal(&tree, &manifest, &MEASURING, &Progress::default()).expect("measured");
    let sealed = sealed.expect("sealed");
    assert!(sealed.is_verity());
    let file = sandbox.dir.path().join("seal");
    sealed.write(&file).expect("written");
    let sealed = Seal::read(&file).expect("read");
    let server = tree.join("bin/server");
    // Touched, and what it was.
    chmod(&server, 0o700);
    assert!(matches!(sealed.check(&tree, MEASURING.jobs), Err(ArtifactError::SealBroken { count: 1, .. })));
    chmod(&server, 0o755);
    sealed.check(&tree, MEASURING.jobs).expect("its bytes are what they were");
    // The start gate asks for no manifest, and therefore for no byte.
    let deployed = Deployed {
        release: manifest.digest(),
        tree: tree.clone(),
        seal: file,
        blobs: crate::BlobStore::of_another(&sandbox.dir.path().join("nothing")),
    };
    deployed.check(&MEASURING).expect("its seal holds");
    // Another file, sealed or not.
    for is_sealed in [false, true] {
        fs::remove_file(&server).expect("removed");
        fs::write(&server, "the swerve").expect("written");
        chmod(&server, 0o755);
        if is_sealed {
            muster_fsverity::enable(File::open(&server).expect("opened")).expect("sealed");
        }
        let Err(ArtifactError::SealBroken { differences, .. }) = sealed.check(&tree, MEASURING.jobs) else {
            panic!("another file is what was sealed");
        };
        assert!(differences.iter().any(|it| it.path.to_string() == "bin/server"), "{differences:?}");
        assert!(deployed.check(&MEASURING).is_err());
    }
}
