//! Whoever changes a deployed tree is found out, whatever the change: the gate is shut, the file is named, and a
//! deployment repairs it.

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use muster_model::{Blocker, Digest};

use crate::harness::{Artifact, Fleet, Host, Output, artifact};

/// The host that is tampered with.
const VICTIM: usize = 3;

/// One way to change a tree.
struct Tampering {
    what: &'static str,
    change: fn(&Path),
    /// The path in the tree that is named; empty for the tree itself.
    path: &'static str,
    expected: &'static str,
    measured: &'static str,
}

const TAMPERINGS: [Tampering; 9] = [
    Tampering {
        what: "a byte changed, with size and times as they were",
        change: |tree| {
            let file = tree.join("bin/server");
            let before = fs::metadata(&file).unwrap();
            let mut bytes = fs::read(&file).unwrap();
            bytes[3] ^= 1;
            fs::write(&file, bytes).unwrap();
            let times = FileTimes::new()
                .set_accessed(before.accessed().unwrap())
                .set_modified(before.modified().unwrap());
            File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
            let after = fs::metadata(&file).unwrap();
            assert_eq!((before.len(), before.mtime_nsec()), (after.len(), after.mtime_nsec()));
        },
        path: "bin/server",
        expected: "sha256:",
        measured: "sha256:",
    },
    Tampering {
        what: "a file's mode changed",
        change: |tree| fs::set_permissions(tree.join("bin/server"), Permissions::from_mode(0o775)).unwrap(),
        path: "bin/server",
        expected: "0755",
        measured: "0775",
    },
    Tampering {
        what: "a folder's mode changed",
        change: |tree| fs::set_permissions(tree.join("lib"), Permissions::from_mode(0o777)).unwrap(),
        path: "lib",
        expected: "0755",
        measured: "0777",
    },
    Tampering {
        what: "a file added",
        change: |tree| fs::write(tree.join("lib/extra.so"), "more").unwrap(),
        path: "lib/extra.so",
        expected: "nothing",
        measured: "file",
    },
    Tampering {
        what: "an empty folder added",
        change: |tree| fs::create_dir(tree.join("tmp")).unwrap(),
        path: "tmp",
        expected: "nothing",
        measured: "dir",
    },
    Tampering {
        what: "a file removed",
        change: |tree| fs::remove_file(tree.join("conf/server.toml")).unwrap(),
        path: "conf/server.toml",
        expected: "file",
        measured: "nothing",
    },
    Tampering {
        what: "a symlink retargeted to an identical file",
        change: |tree| {
            fs::remove_file(tree.join("lib/current.so")).unwrap();
            symlink("same.so", tree.join("lib/current.so")).unwrap();
        },
        path: "lib/current.so",
        expected: "real.so",
        measured: "same.so",
    },
    Tampering {
        what: "a folder swapped for a symlink to an identical copy",
        change: |tree| {
            let copy = elsewhere(tree);
            fs::create_dir_all(&copy).unwrap();
            fs::copy(tree.join("conf/server.toml"), copy.join("server.toml")).unwrap();
            fs::remove_dir_all(tree.join("conf")).unwrap();
            symlink(&copy, tree.join("conf")).unwrap();
        },
        path: "conf",
        expected: "dir",
        measured: "symlink",
    },
    Tampering {
        what: "the whole tree swapped for a symlink to an identical copy",
        change: |tree| {
            let copy = elsewhere(tree);
            fs::rename(tree, &copy).unwrap();
            symlink(&copy, tree).unwrap();
        },
        path: "",
        expected: "dir",
        measured: "something else",
    },
];

/// A path beside all releases, on the same file system.
fn elsewhere(tree: &Path) -> PathBuf {
    let folder = tree.ancestors().nth(4).unwrap();
    let copies = fs::read_dir(folder).unwrap().count();
    folder.join(format!("copy-{copies}"))
}

fn tree() -> Artifact {
    let tree = artifact(&[
        ("bin/server", "#!/bin/sh\necho one\n"),
        ("conf/server.toml", "port = 1\n"),
        ("lib/real.so", "code"),
        ("lib/same.so", "code"),
    ]);
    symlink("real.so", tree.path().join("lib/current.so")).unwrap();
    tree
}

impl Tampering {
    /// The path as it is named where the tree is at `tree`.
    fn place(&self, tree: &Path) -> String {
        if self.path.is_empty() { tree.to_str().unwrap().to_owned() } else { self.path.to_owned() }
    }

    /// Only the victim is named, with the path and both values.
    #[track_caller]
    fn expect_named(&self, output: &Output, victim: &Host, place: &str) {
        let found = output.expect_blocker("mismatch", victim.name(), place);
        let (expected, measured) = (found.expected.unwrap_or_default(), found.measured.unwrap_or_default());
        let said =
            expected.contains(self.expected) && measured.contains(self.measured) && expected != measured;
        assert!(said, "{}: {output}", self.what);
        let named =
            |blocker: &Blocker| blocker.host.as_ref().is_some_and(|host| host.as_str() == victim.name());
        assert!(output.blockers().iter().all(named), "{}: {output}", self.what);
    }

    /// Changes the tree. `check` then refuses and names the file in all three formats.
    #[track_caller]
    fn is_found_out(&self, fleet: &Fleet, digest: &str) {
        let victim = fleet.host(VICTIM);
        let place = self.place(&victim.tree(digest));
        (self.change)(&victim.tree(digest));
        let check = ["check", "--release", digest];
        let checked = fleet.json(&check).expect_code(10);
        assert_eq!(checked.text_at("/gate"), "shut");
        self.expect_named(&checked, &victim, &place);

        let named = format!("mismatch at {}, {place}: ", victim.name());
        let text = fleet.muster(&check).expect_code(10);
        assert!(text.stdout.contains(&named), "{}: {text}", self.what);
        let junit = fleet.muster(&[&check[..], &["--output", "junit"]].concat()).expect_code(10);
        let case = format!("<testcase name=\"{}\" classname=\"demo\">", victim.name());
        for part in
            ["tests=\"3\" skipped=\"0\" failures=\"1\"", &case, &format!("<failure message=\"{named}")]
        {
            assert!(junit.stdout.contains(part), "{}: no {part}: {junit}", self.what);
        }
    }
}

/// A deployment repairs the tree from the blobs that are there, and a check proves it.
#[track_caller]
fn assert_repairable(fleet: &Fleet, digest: &str) {
    let deployed = fleet.json(&["deploy", digest]).expect_code(0);
    let rows = deployed.json()["results"].as_array().unwrap().clone();
    assert!(rows.iter().all(|row| row["fetched_bytes"] == 0), "its blobs were all there: {deployed}");
    fleet.json(&["check", "--release", digest]).expect_code(0);
}

#[test]
fn every_tampering_with_a_deployed_release_shuts_the_gate_and_is_repaired() {
    let fleet = Fleet::up(3);
    let tree = tree();
    let one = fleet.release(&tree, "1.0");
    tree.write("bin/server", "#!/bin/sh\necho two\n");
    let two = fleet.push(&tree, "2.0");
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    for tampering in &TAMPERINGS {
        tampering.is_found_out(&fleet, &two);
        let flip = fleet.json(&["flip", "2.0"]).expect_code(10);
        assert_eq!(flip.text_at("/outcome"), "unchanged", "{}", tampering.what);
        let victim = fleet.host(VICTIM);
        tampering.expect_named(&flip, &victim, &tampering.place(&victim.tree(&two)));
        fleet.assert_all_serve(&one);
        assert_repairable(&fleet, &two);
    }
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two);
}

#[test]
fn tampering_with_what_is_served_is_found_by_a_check_and_repaired_in_place() {
    let fleet = Fleet::up(3);
    let tree = tree();
    let one = fleet.release(&tree, "1.0");
    for tampering in &TAMPERINGS {
        tampering.is_found_out(&fleet, &one);
        fleet.assert_all_serve(&one);
        assert_repairable(&fleet, &one);
        fleet.assert_all_serve(&one);
    }
    tree.write("bin/server", "#!/bin/sh\necho two\n");
    let two = fleet.release(&tree, "2.0");
    fleet.assert_all_serve(&two);
    fleet.json(&["rollback"]).expect_code(0);
    fleet.assert_all_serve(&one);
}

/// Where a store keeps a blob.
fn blob(store: &Path, bytes: &str) -> PathBuf {
    let hex = Digest::of(bytes.as_bytes()).hex();
    store.join(&hex[..2]).join(hex)
}

/// Turns one bit of a blob, which stays as long as it was.
fn damage(blob: &Path) {
    let mut bytes = fs::read(blob).unwrap();
    bytes[0] ^= 1;
    fs::set_permissions(blob, Permissions::from_mode(0o600)).unwrap();
    fs::write(blob, bytes).unwrap();
}

#[test]
fn a_blob_that_is_damaged_in_the_coordinators_store_reaches_no_host() {
    let fleet = Fleet::up(3);
    let tree = tree();
    let one = fleet.release(&tree, "1.0");
    tree.write("lib/new.so", "new code");
    let two = fleet.push(&tree, "2.0");
    damage(&blob(&fleet.dir().join("coordinator/state/blobs"), "new code"));

    let refused = fleet.json(&["deploy", "2.0"]).expect_code(10);
    for host in fleet.hosts() {
        let blocker = refused.expect_blocker("blob-damaged", host.name(), "");
        assert!(blocker.detail.contains(&Digest::of(b"new code").to_string()), "{refused}");
        assert!(!host.tree(&two).exists(), "{} has half a release", host.name());
    }
    assert_eq!(refused.json()["deployed"], 0, "{refused}");
    fleet.json(&["flip", "2.0"]).expect_code(10).expect_blocker("not-deployed", "host-1", "");
    fleet.assert_all_serve(&one);

    // Whoever has the tree pushes it again, and the damaged blob is replaced.
    let pushed = fleet.json(&["release", "push", tree.argument(), "--version", "2.0"]).expect_code(0);
    assert_eq!(
        (pushed.json()["existed"].clone(), pushed.json()["uploaded"].clone()),
        (true.into(), 1.into())
    );
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two);
}

#[test]
fn a_blob_that_is_damaged_in_a_hosts_store_is_fetched_again() {
    let fleet = Fleet::up(3);
    let tree = tree();
    fleet.release(&tree, "1.0");
    damage(&blob(&fleet.host(VICTIM).folder().join("blobs"), "code"));
    tree.write("lib/new.so", "new code");
    let two = fleet.push(&tree, "2.0");
    let deployed = fleet.json(&["deploy", "2.0"]).expect_code(0);
    let fetched = |host: &str| {
        let rows = deployed.json()["results"].as_array().unwrap().clone();
        rows.iter().find(|row| row["host"] == host).unwrap()["fetched_bytes"].as_u64().unwrap()
    };
    assert_eq!(fetched("host-3"), fetched("host-1") + "code".len() as u64, "{deployed}");
    fleet.json(&["check", "--release", "2.0"]).expect_code(0);
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two);
}
