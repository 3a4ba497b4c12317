use proptest::prelude::*;

use super::*;
use crate::PathError;

const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const GOOD: &str = concat!(
    r#"{"format":"muster.manifest/1","entries":4,"bytes":3,"absent":["/usr/bin/powerpeg"],"#,
    r#""external":[{"path":"/etc/app.conf","check":"uniform"},{"path":"/usr/sbin/nginx","check":"digest","#,
    r#""digest":"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}],"#,
    r#""mutable":["cache","var"],"variants":[]}"#,
    "\n",
    r#"{"path":"bin","type":"dir","mode":"0755"}"#,
    "\n",
    r#"{"path":"bin/run","type":"symlink","target":"server"}"#,
    "\n",
    r#"{"path":"bin/server","type":"file","mode":"0755","size":3,"#,
    r#""digest":"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}"#,
    "\n",
    r#"{"path":"var","type":"dir","mode":"0700"}"#,
    "\n",
);

fn path(text: &str) -> EntryPath {
    EntryPath::from_text(text).expect("a path")
}

fn host(text: &str) -> HostPath {
    HostPath::from_text(text).expect("a path")
}

fn dir(text: &str) -> Entry {
    Entry { path: path(text), kind: EntryKind::Dir { mode: Mode(0o755) } }
}

fn file(text: &str, content: &[u8]) -> Entry {
    let kind = EntryKind::File { mode: Mode(0o644), size: content.len() as u64, digest: Digest::of(content) };
    Entry { path: path(text), kind }
}

fn link(text: &str, target: &str) -> Entry {
    Entry {
        path: path(text),
        kind: EntryKind::Symlink { target: LinkTarget::from_text(target).expect("a target") },
    }
}

fn made(entries: Vec<Entry>) -> Result<Manifest, ManifestError> {
    Manifest::new(entries, TreeRules::default())
}

#[test]
fn the_encoding_is_fixed() {
    let manifest = Manifest::parse(GOOD.as_bytes()).expect("a manifest");
    assert_eq!(manifest.to_bytes(), GOOD.as_bytes());
    assert_eq!(manifest.digest(), Digest::of(GOOD.as_bytes()));
    assert_eq!((manifest.entries().len(), manifest.total_bytes(), manifest.files().count()), (4, 3, 1));
    assert_eq!(
        manifest.entry(&path("bin/server")).map(|entry| entry.kind.to_string()),
        Some(format!("file, mode 0755, 3 bytes, {ABC}"))
    );
    assert_eq!(manifest.entry(&path("bin/other")), None);
    assert_eq!(manifest.rules().external[0].check, ExternalCheck::Uniform);
}

#[test]
fn order_of_construction_does_not_matter() {
    let entries = vec![dir("a"), file("a-b", b"1"), file("a/b", b"2"), link("z", "a")];
    let mut reversed = entries.clone();
    reversed.reverse();
    let manifest = made(entries).expect("a manifest");
    assert_eq!(made(reversed).map(|other| other.digest()), Ok(manifest.digest()));
    let order: Vec<_> = manifest.entries().iter().map(|entry| entry.path.to_string()).collect();
    assert_eq!(order, ["a", "a-b", "a/b", "z"], "by bytes, not by components");
}

/// Replaces one part of the good manifest, and expects the manifest to be refused by this name.
#[track_caller]
fn refused(from: &str, to: &str, expected: fn(&ManifestError) -> bool) {
    assert!(GOOD.contains(from), "{from} is not in the good manifest");
    let error = Manifest::parse(GOOD.replacen(from, to, 1).as_bytes()).expect_err(to);
    assert!(expected(&error), "{to}: {error:?}");
}

#[test]
fn hostile_headers_are_refused_by_name() {
    use ManifestError as E;
    refused("manifest/1", "manifest/2", |e| matches!(e, E::Format { found } if found == "muster.manifest/2"));
    refused(r#""variants":[]"#, r#""variants":[],"owner":"root""#, |e| {
        matches!(e, E::Syntax { line: 1, .. })
    });
    refused(r#","variants":[]"#, "", |e| matches!(e, E::Syntax { line: 1, .. }));
    refused(r#""variants":[]"#, r#""variants":[{}]"#, |e| matches!(e, E::VariantsUnsupported));
    refused(r#""entries":4"#, r#""entries":5"#, |e| matches!(e, E::EntriesStated { stated: 5, found: 4 }));
    refused(r#""entries":4"#, r#""entries":1000001"#, |e| {
        matches!(e, E::TooManyEntries { entries: 1_000_001 })
    });
    refused(r#""bytes":3"#, r#""bytes":4"#, |e| matches!(e, E::BytesStated { stated: 4, found: 3 }));
    refused(r#""bytes":3"#, r#""bytes":3 "#, |e| matches!(e, E::NotCanonical { line: 1 }));
    refused("[\"/usr/bin/powerpeg\"]", "[\"usr\"]", |e| {
        matches!(e, E::RulePath { list: RuleList::Absent, source: PathError::Relative { .. } })
    });
    refused("/etc/app.conf", "/etc/../app.conf", |e| {
        matches!(e, E::RulePath { list: RuleList::External, source: PathError::Dot { .. } })
    });
    refused("/etc/app.conf", "/usr/bin/powerpeg", |e| matches!(e, E::AbsentExternal { .. }));
    refused("/etc/app.conf", "/usr/bin/powerpeg/x", |e| matches!(e, E::AbsentExternal { .. }));
    refused("/etc/app.conf", "/usr/sbin/nginx", |e| {
        matches!(e, E::RulesUnsorted { list: RuleList::External, .. })
    });
    refused("uniform", "mostly", |e| matches!(e, E::ExternalCheck { .. }));
    refused("uniform", "digest", |e| matches!(e, E::ExternalCheck { digest: None, .. }));
    refused(r#"["cache","var"]"#, r#"["var","cache"]"#, |e| {
        matches!(e, E::RulesUnsorted { list: RuleList::Mutable, .. })
    });
    refused(r#"["cache","var"]"#, r#"["var","var"]"#, |e| matches!(e, E::RulesUnsorted { .. }));
    refused(r#"["cache","var"]"#, r#"["var","var/log"]"#, |e| matches!(e, E::MutableNested { .. }));
    refused(r#"["cache","var"]"#, r#"["no/where"]"#, |e| matches!(e, E::MutableParent { .. }));
    refused(r#"["cache","var"]"#, r#"["bin"]"#, |e| matches!(e, E::MutableEntry { .. }));
    refused(r#"["cache","var"]"#, r#"["bin/server"]"#, |e| matches!(e, E::MutableEntry { .. }));
    refused(r#"["cache","var"]"#, r#"["bin/run/x"]"#, |e| matches!(e, E::MutableParent { .. }));
    refused(r#"["cache","var"]"#, r#"["/var"]"#, |e| {
        matches!(e, E::RulePath { list: RuleList::Mutable, source: PathError::Absolute { .. } })
    });
}

#[test]
fn hostile_entries_are_refused_by_name() {
    use ManifestError as E;
    let source = |e: &E, name: fn(&PathError) -> bool| matches!(e, E::Path { source, .. } if name(source));
    assert!(source(&parse_path("../x"), |e| matches!(e, PathError::Dot { .. })));
    assert!(source(&parse_path("/x"), |e| matches!(e, PathError::Absolute { .. })));
    assert!(source(&parse_path(""), |e| matches!(e, PathError::Empty)));
    assert!(source(&parse_path("w//x"), |e| matches!(e, PathError::EmptyComponent { .. })));
    assert!(source(&parse_path("w%0a"), |e| matches!(e, PathError::Escape { .. })));
    refused("bin/server\"", "bin/run\"", |e| matches!(e, E::Duplicate { line: 4, .. }));
    refused("bin/server\"", "a\"", |e| matches!(e, E::Unsorted { line: 4, .. }));
    refused("bin/server\"", "lib/server\"", |e| matches!(e, E::NoParent { line: 4, .. }));
    refused("bin/server\"", "bin/run/server\"", |e| matches!(e, E::UnderSymlink { line: 4, .. }));
    refused("bin/server\"", "bin/run/deep/server\"", |e| matches!(e, E::UnderSymlink { line: 4, .. }));
    refused("\"server\"", "\"run\"", |e| matches!(e, E::LinkCycle { line: 3, .. }));
    refused("\"target\":\"server\"", "\"target\":\"\"", |e| matches!(e, E::Path { line: 3, .. }));
    refused("\"0755\",\"size\"", "\"4755\",\"size\"", |e| {
        matches!(e, E::SpecialMode { line: 4, bits: 0o4755, .. })
    });
    refused("\"0755\",\"size\"", "\"755\",\"size\"", |e| matches!(e, E::Syntax { line: 4, .. }));
    refused("\"size\":3", "\"size\":9223372036854775808", |e| matches!(e, E::FileTooLarge { line: 4, .. }));
    refused("\"size\":3", "\"size\":1099511627777", |e| matches!(e, E::TreeTooLarge { line: 4, .. }));
    refused("\"size\":3", "\"size\":-3", |e| matches!(e, E::Syntax { line: 4, .. }));
    refused("\"size\":3", "\"size\":3.0", |e| matches!(e, E::Syntax { line: 4, .. }));
    refused("\"size\":3,", "", |e| matches!(e, E::Syntax { line: 4, .. }));
    refused("\"size\":3", "\"size\":3,\"owner\":0", |e| matches!(e, E::Syntax { line: 4, .. }));
    refused("\"size\":3", "\"size\":3,\"size\":3", |e| matches!(e, E::Syntax { line: 4, .. }));
    refused("\"size\":3", "\"size\": 3", |e| matches!(e, E::NotCanonical { line: 4 }));
    refused("\"type\":\"dir\"", "\"type\":\"fifo\"", |e| matches!(e, E::Syntax { line: 2, .. }));
    refused("\"mode\":\"0700\"}\n", "\"mode\":\"0700\"}", |e| matches!(e, E::CutOff { line: 5 }));
    refused("\"mode\":\"0700\"}\n", "\"mode\":\"0700\"}\n\n", |e| matches!(e, E::Syntax { line: 6, .. }));
    refused("\"bin/server\"", "\"bin\\u002fserver\"", |e| matches!(e, E::NotCanonical { line: 4 }));
    assert!(matches!(Manifest::parse(b""), Err(E::CutOff { line: 1 })));
    assert!(matches!(Manifest::parse(b"\xff\n"), Err(E::Syntax { line: 1, .. })));
}

fn parse_path(text: &str) -> ManifestError {
    Manifest::parse(GOOD.replacen("\"var\",\"type\"", &format!("\"{text}\",\"type\""), 1).as_bytes())
        .expect_err("a bad path")
}

#[test]
fn limits_and_parents_hold_for_made_manifests_too() {
    use ManifestError as E;
    assert!(matches!(made(vec![file("a", b""), file("a/b", b"")]), Err(E::UnderFile { .. })));
    assert!(matches!(made(vec![dir("a"), dir("a")]), Err(E::Duplicate { .. })));
    let huge = |name: &str| Entry {
        path: path(name),
        kind: EntryKind::File { mode: Mode(0o644), size: MAX_TREE_BYTES / 2 + 1, digest: Digest::of(b"") },
    };
    assert!(made(vec![huge("a")]).is_ok());
    assert!(matches!(made(vec![huge("a"), huge("b")]), Err(E::TreeTooLarge { line: 3, .. })));
    let rules = TreeRules {
        absent: (0..=MAX_RULES).map(|i| host(&format!("/x/{i}"))).collect(),
        ..TreeRules::default()
    };
    assert!(matches!(Manifest::new(vec![], rules), Err(E::TooManyRules { list: RuleList::Absent, .. })));
}

#[test]
fn symlinks_are_followed_on_paper_as_linux_would() {
    let cycle = |entries| matches!(made(entries), Err(ManifestError::LinkCycle { .. }));
    assert!(cycle(vec![link("a", "b"), link("b", "a")]));
    assert!(cycle(vec![dir("d"), link("d/a", "../e/a"), link("e", "d")]));
    assert!(cycle(vec![dir("d"), link("d/x", "x/y")]));
    assert!(!cycle(vec![dir("d"), link("d/up", "..")]), "a folder seen twice is not a circle");
    assert!(!cycle(vec![link("a", "nowhere/../a")]), "what is not there ends the walk");

    let chain = |len: usize| {
        (0..len).map(|i| link(&format!("l{i:02}"), &format!("l{:02}", i + 1))).collect::<Vec<_>>()
    };
    assert!(!cycle(chain(MAX_LINKS)));
    assert!(cycle(chain(MAX_LINKS + 1)));

    let out = made(vec![
        link("abs", "/etc/passwd"),
        dir("d"),
        link("d/in", "../file"),
        link("d/out", "../../file"),
        link("d/via", "out/more"),
        file("file", b"x"),
    ])
    .expect("a manifest");
    let out: Vec<_> = out.links_out().iter().map(|entry| entry.path.to_string()).collect();
    assert_eq!(out, ["abs", "d/out", "d/via"]);
}

#[test]
fn diff_names_what_changed() {
    let old =
        made(vec![dir("bin"), file("bin/a", b"1"), file("bin/b", b"1"), link("l", "bin/a")]).expect("old");
    let mut entries = vec![dir("bin"), file("bin/a", b"2"), file("bin/c", b"1"), file("l", b"")];
    entries[0].kind = EntryKind::Dir { mode: Mode(0o700) };
    let rules = TreeRules { absent: vec![host("/opt/old")], ..TreeRules::default() };
    let new = Manifest::new(entries, rules).expect("new");
    let lines: Vec<_> = diff(&old, &new)
        .iter()
        .map(|change| change.to_string().split(" (").next().unwrap().to_owned())
        .collect();
    assert_eq!(
        lines,
        ["+ /opt/old is now absent", "~ bin: mode", "~ bin/a: content", "- bin/b", "+ bin/c", "~ l: type"]
    );
    assert_eq!(diff(&old, &old), []);
    let json = serde_json::to_value(&diff(&old, &new)[1]).expect("JSON");
    assert_eq!((&json["change"], &json["new"]["mode"]), (&"modified".into(), &"0700".into()));
}

#[test]
fn differences_travel_as_json_and_read_well() {
    let difference = Difference {
        path: Place::Tree(path("bin/server")),
        kind: DifferenceKind::Mode,
        expected: "0755".to_owned(),
        measured: "0777".to_owned(),
    };
    let json = serde_json::to_string(&difference).expect("JSON");
    assert_eq!(json, r#"{"path":"bin/server","kind":"mode","expected":"0755","measured":"0777"}"#);
    assert_eq!(serde_json::from_str::<Difference>(&json).expect("a difference"), difference);
    assert_eq!(difference.to_string(), "bin/server has other permissions: expected 0755, measured 0777");
    assert_eq!(serde_json::from_str::<Place>("\"/etc\"").expect("a place"), Place::Host(host("/etc")));
}

fn trees() -> impl Strategy<Value = Vec<Entry>> {
    let name = proptest::collection::vec(1..=255_u8, 1..6).prop_map(|bytes| {
        bytes.into_iter().map(|byte| if byte == b'/' { b'_' } else { byte }).collect::<Vec<_>>()
    });
    let kind = prop_oneof![
        (0..=0o777_u16).prop_map(|mode| EntryKind::Dir { mode: Mode(mode) }),
        (0..=0o777_u16, 0..1_000_000_u64, any::<[u8; 32]>()).prop_map(|(mode, size, digest)| {
            EntryKind::File { mode: Mode(mode), size, digest: Digest::from_bytes(digest) }
        }),
        proptest::collection::vec(1..=255_u8, 1..12).prop_map(|target| EntryKind::Symlink {
            target: LinkTarget::from_bytes(&target).expect("no NUL")
        }),
    ];
    proptest::collection::vec((any::<prop::sample::Index>(), name, kind), 0..24).prop_map(|parts| {
        let mut entries: Vec<Entry> = Vec::new();
        for (parent, name, kind) in parts {
            let folders: Vec<_> = std::iter::once(None)
                .chain(
                    entries
                        .iter()
                        .filter(|entry| matches!(entry.kind, EntryKind::Dir { .. }))
                        .map(|entry| Some(entry.path.clone())),
                )
                .collect();
            let parent = parent.get(&folders).clone();
            if let Ok(path) = EntryPath::child(parent.as_ref(), &name)
                && entries.iter().all(|entry| entry.path != path)
            {
                entries.push(Entry { path, kind });
            }
        }
        entries
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn manifests_round_trip(entries in trees()) {
        match made(entries.clone()) {
            Ok(manifest) => {
                let bytes = manifest.to_bytes();
                prop_assert_eq!(Manifest::parse(&bytes), Ok(manifest.clone()));
                prop_assert_eq!(manifest.digest(), Digest::of(&bytes));
                prop_assert_eq!(manifest.entries().len(), entries.len());
            }
            Err(error) => prop_assert!(matches!(error, ManifestError::LinkCycle { .. }), "{error:?}"),
        }
    }

    #[test]
    fn a_flipped_byte_is_refused_or_another_manifest(at in any::<prop::sample::Index>(), mask in 1..=255_u8) {
        let mut bytes = GOOD.as_bytes().to_vec();
        bytes[at.index(GOOD.len())] ^= mask;
        if let Ok(manifest) = Manifest::parse(&bytes) {
            prop_assert_eq!(manifest.to_bytes(), bytes);
            prop_assert_ne!(manifest.digest(), Digest::of(GOOD.as_bytes()));
        }
    }
}
