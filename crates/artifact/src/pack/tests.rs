use std::fs;
use std::os::unix::net::UnixListener;

use proptest::prelude::*;

use super::*;
use crate::testing::{Sandbox, grow, mutable, path, seeds};

fn unpackable(sandbox: &Sandbox) -> (String, UnpackableKind) {
    match sandbox.try_pack(TreeRules::default()) {
        Err(ArtifactError::Unpackable { mut found, count: 1, .. }) => {
            let Unpackable { path, kind } = found.remove(0);
            (path, kind)
        }
        other => panic!("{other:?}"),
    }
}

fn mkfifo(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o644.into()).expect("a FIFO");
}

#[test]
fn a_tree_is_listed_as_it_is() {
    let sandbox = Sandbox::with_tree();
    let manifest = sandbox.pack(TreeRules::default());
    let lines: Vec<_> =
        manifest.entries().iter().map(|entry| format!("{} {}", entry.path, entry.kind.type_name())).collect();
    assert_eq!(
        lines,
        [
            "bin dir",
            "bin/run symlink",
            "bin/server file",
            "lib dir",
            "lib/deep dir",
            "lib/deep/data file",
            "lib/empty file",
            "lib/up symlink"
        ]
    );
    let server = manifest.entry(&path("bin/server")).expect("an entry");
    assert_eq!(
        server.kind.to_string(),
        format!("file, mode 0755, 10 bytes, {}", muster_model::Digest::of(b"the server"))
    );
    assert_eq!(manifest.total_bytes(), 300_010);
}

#[test]
fn what_cannot_be_reproduced_is_refused_with_a_way_on() {
    let sandbox = Sandbox::with_tree();
    let there = |name: &str| sandbox.src().join(name);

    mkfifo(&there("fifo"));
    assert_eq!(unpackable(&sandbox), ("fifo".into(), UnpackableKind::Special("FIFO")));
    fs::remove_file(there("fifo")).expect("removed");

    let socket = UnixListener::bind(there("lib/socket")).expect("a socket");
    assert_eq!(unpackable(&sandbox), ("lib/socket".into(), UnpackableKind::Special("socket")));
    drop(socket);
    fs::remove_file(there("lib/socket")).expect("removed");

    for (name, mode) in [("bin/server", 0o4755), ("bin/server", 0o2755), ("lib", 0o2755), ("lib", 0o1755)] {
        crate::testing::chmod(&there(name), mode);
        assert_eq!(unpackable(&sandbox), (name.into(), UnpackableKind::SpecialMode(mode)));
        crate::testing::chmod(&there(name), 0o755);
    }

    let deep = vec!["d"; muster_model::MAX_DEPTH + 1].join("/");
    fs::create_dir_all(there(&deep)).expect("folders");
    let (folder, kind) = unpackable(&sandbox);
    assert_eq!(folder.len(), deep.len() - 2);
    assert!(matches!(kind, UnpackableKind::Path(_)), "{kind:?}");
    fs::remove_dir_all(there("d")).expect("removed");

    let said =
        Unpackable { path: "bin/server".into(), kind: UnpackableKind::SpecialMode(0o4755) }.to_string();
    assert!(said.contains("bin/server") && said.contains("chmod"), "{said}");
    sandbox.pack(TreeRules::default());
}

#[test]
fn file_capabilities_are_refused_where_they_can_be_set() {
    let sandbox = Sandbox::with_tree();
    let server = sandbox.src().join("bin/server");
    // Version 2, effective, cap_net_bind_service.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    match rustix::fs::setxattr(&server, "security.capability", &capability, rustix::fs::XattrFlags::empty()) {
        Ok(()) => {
            assert_eq!(unpackable(&sandbox), ("bin/server".into(), UnpackableKind::Capabilities));
        }
        // Only root may set them; everybody else packs the tree.
        Err(_) => assert_eq!(sandbox.pack(TreeRules::default()).entries().len(), 8),
    }
}

#[test]
fn private_keys_and_ways_out_are_warned_of() {
    let sandbox = Sandbox::with_tree();
    sandbox.file(
        "lib/tls.key",
        0o600,
        b"# mine\n-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\n",
    );
    sandbox.file("lib/id_ed25519", 0o600, b"whatever");
    sandbox.file("lib/cert.pem", 0o644, b"-----BEGIN CERTIFICATE-----\n");
    sandbox.link("out", "../elsewhere");
    let packed = sandbox.try_pack(TreeRules::default()).expect("a packed tree");
    let warnings: Vec<_> =
        packed.warnings.iter().map(|warning| (warning.path.to_string(), &warning.kind)).collect();
    let out = WarningKind::LeadsOut { target: LinkTarget::from_text("../elsewhere").expect("a target") };
    assert_eq!(
        warnings,
        [
            ("lib/id_ed25519".into(), &WarningKind::PrivateKey),
            ("lib/tls.key".into(), &WarningKind::PrivateKey),
            ("out".into(), &out)
        ]
    );
    let strict = PackOptions {
        rules: TreeRules::default(),
        outside_links: OutsideLinks::Refuse,
        jobs: crate::testing::TWO,
    };
    let refused = pack(&sandbox.src(), &strict, &Progress::default()).expect_err("refused");
    assert!(refused.to_string().contains("`out` points to `../elsewhere`"), "{refused}");
}

#[test]
fn mutable_paths_are_noted_and_not_entered() {
    let sandbox = Sandbox::with_tree();
    sandbox.folder("var", 0o700);
    mkfifo(&sandbox.src().join("var/fifo"));
    sandbox.file("cache", 0o600, b"x");
    let manifest = sandbox.pack(mutable(&["cache", "later", "var"]));
    assert_eq!(manifest.entry(&path("var")).expect("the folder").kind.to_string(), "dir, mode 0700");
    assert_eq!(manifest.entries().len(), 9);
}

#[test]
fn names_are_bytes() {
    let sandbox = Sandbox::new();
    let name = std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9\n");
    fs::write(sandbox.src().join::<&std::ffi::OsStr>(name), b"x").expect("a file");
    let manifest = sandbox.pack(TreeRules::default());
    assert_eq!(manifest.entries()[0].path.to_string(), "caf%E9%0A");
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let sandbox = Sandbox::new();
    fs::remove_dir(sandbox.src()).expect("removed");
    assert!(matches!(sandbox.try_pack(TreeRules::default()), Err(ArtifactError::TreeMissing { .. })));
    fs::write(sandbox.src(), b"a file").expect("a file");
    assert!(matches!(sandbox.try_pack(TreeRules::default()), Err(ArtifactError::NotATree { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_digest_depends_on_nothing_but_the_tree(seeds in seeds()) {
        let one = Sandbox::new();
        grow(&one.src(), &seeds);
        let Ok(packed) = one.try_pack(TreeRules::default()) else { return Ok(()) };
        let manifest = packed.manifest;

        // The same tree made in another order, with other times and hard links, walked by one thread.
        let two = Sandbox::new();
        for entry in manifest.entries().iter().filter(|entry| matches!(entry.kind, EntryKind::Dir { .. })) {
            fs::create_dir(crate::testing::at(&two.src(), &entry.path)).expect("a folder");
        }
        for entry in manifest.entries().iter().rev() {
            let (from, to) = (crate::testing::at(&one.src(), &entry.path), crate::testing::at(&two.src(), &entry.path));
            match &entry.kind {
                EntryKind::Dir { mode } => crate::testing::chmod(&to, u32::from(mode.bits())),
                EntryKind::File { .. } => fs::hard_link(from, to).expect("a link"),
                EntryKind::Symlink { .. } => {
                    std::os::unix::fs::symlink(fs::read_link(from).expect("a target"), to).expect("a symlink");
                }
            }
        }
        let options =
            PackOptions { rules: TreeRules::default(), outside_links: OutsideLinks::Warn, jobs: NonZeroUsize::MIN };
        let again = pack(&two.src(), &options, &Progress::default()).expect("a packed tree").manifest;
        prop_assert_eq!(again.digest(), manifest.digest());
    }
}
