//! The rules of the house that neither the compiler nor clippy knows.

use std::fs;
use std::path::{Path, PathBuf};

/// The longest file, in lines without its tests.
const FILE_LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` with this ending, `target` and hidden folders left out.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {ending} below {}", folder.display());
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the root").display().to_string()
}

fn is_test(path: &Path) -> bool {
    let path = relative(path);
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.contains("/fixture")
}

/// The lines of a file before its unit tests.
fn without_tests(text: &str) -> Vec<&str> {
    text.lines()
        .take_while(|line| *line != "#[cfg(test)]" || !text.contains("#[cfg(test)]\nmod tests {"))
        .collect()
}

#[test]
fn files_stay_short() {
    let long: Vec<String> = files(root(), ".rs")
        .into_iter()
        .filter(|path| !is_test(path))
        .filter_map(|path| {
            let text = fs::read_to_string(&path).expect("UTF-8");
            let lines = without_tests(&text).len();
            (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines", relative(&path)))
        })
        .collect();
    assert!(long.is_empty(), "files over {FILE_LINES_MAX} lines without their tests: {long:#?}");
}

/// The names in `[dependencies]` of a crate's manifest, development dependencies left out.
fn dependencies(krate: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("a manifest");
    let manifest: toml::Table = text.parse().expect("TOML");
    let table = manifest["dependencies"].as_table().expect("a table");
    table.keys().cloned().collect()
}

#[test]
fn pure_crates_know_no_io() {
    let forbidden = [
        "aws-lc-rs",
        "getrandom",
        "nix",
        "prost",
        "rand",
        "rustix",
        "rustls",
        "sled",
        "tempfile",
        "time",
        "tokio",
        "tonic",
        "tracing",
    ];
    for krate in ["crates/audit", "crates/model", "crates/rollout"] {
        for name in dependencies(krate) {
            assert!(!forbidden.contains(&name.as_str()), "{krate} depends on {name}");
        }
        for path in files(&root().join(krate).join("src"), ".rs") {
            if is_test(&path) {
                continue;
            }
            let text = fs::read_to_string(&path).expect("UTF-8");
            for word in ["std::fs", "std::net", "std::env", "Instant::now", "SystemTime::now", "std::process"]
            {
                assert!(!without_tests(&text).join("\n").contains(word), "{} uses {word}", relative(&path));
            }
        }
    }
}

#[test]
fn dependencies_point_down() {
    let allowed: &[(&str, &[&str])] = &[
        ("crates/model", &[]),
        ("crates/rollout", &["model"]),
        ("crates/artifact", &["fsverity", "model"]),
        ("crates/trust", &["model"]),
        ("crates/audit", &["model", "trust"]),
        ("crates/store", &["model"]),
        ("crates/mtls", &["model"]),
        ("crates/config", &[]),
        ("crates/daemon", &["model"]),
        ("crates/fsverity", &[]),
        ("crates/systemd", &[]),
        ("crates/guard", &["artifact", "config", "model", "systemd"]),
        ("proto", &["model"]),
        (
            "agent",
            &[
                "artifact", "audit", "config", "daemon", "guard", "model", "mtls", "proto", "rollout",
                "store", "trust",
            ],
        ),
        (
            "coordinator",
            &["artifact", "audit", "config", "daemon", "model", "mtls", "proto", "rollout", "store", "trust"],
        ),
        ("cli", &["artifact", "audit", "guard", "model", "mtls", "proto", "trust"]),
    ];
    for (krate, below) in allowed {
        for name in dependencies(krate) {
            if let Some(name) = name.strip_prefix("muster-") {
                assert!(below.contains(&name), "{krate} must not depend on {name}");
            }
        }
    }
}

#[test]
fn each_library_has_one_home() {
    let homes: &[(&str, &str)] = &[
        ("sled", "crates/store"),
        ("rustls", "crates/mtls"),
        ("tokio-rustls", "crates/mtls"),
        ("rcgen", "crates/mtls"),
        ("zbus", "crates/systemd"),
    ];
    for manifest in files(root(), "Cargo.toml") {
        let folder = relative(manifest.parent().expect("a folder"));
        if folder.is_empty() || folder.starts_with("fuzz") {
            continue;
        }
        for (library, home) in homes {
            let text = fs::read_to_string(&manifest).expect("UTF-8");
            let table: toml::Table = text.parse().expect("TOML");
            let uses = table
                .get("dependencies")
                .and_then(|it| it.as_table())
                .is_some_and(|it| it.contains_key(*library));
            assert!(!uses || folder == *home, "{folder} depends on {library}, whose home is {home}");
        }
    }
}

/// Whether a crate may have unsafe code is said in its manifest: a crate that goes by the lints of the workspace may not.
#[test]
fn what_the_compiler_cannot_check_is_in_one_file() {
    for manifest in files(root(), "Cargo.toml") {
        let folder = relative(manifest.parent().expect("a folder"));
        if folder.starts_with("fuzz") {
            continue;
        }
        let text = fs::read_to_string(&manifest).expect("UTF-8");
        let table: toml::Table = text.parse().expect("TOML");
        let follows = table["lints"].get("workspace").is_some_and(|it| it.as_bool() == Some(true));
        assert!(follows || folder == "crates/fsverity", "{folder} has lints of its own");
    }
    let allowed = concat!("uns", "afe_code");
    for path in files(root(), ".rs") {
        let text = fs::read_to_string(&path).expect("UTF-8");
        let name = relative(&path);
        assert!(name == "crates/fsverity/src/calls.rs" || !text.contains(allowed), "{name} has {allowed}");
    }
    // Its other lints are those of the workspace.
    let lints = |file: &str, path: &[&str]| {
        let text = fs::read_to_string(root().join(file)).expect("UTF-8");
        let mut table: toml::Table = text.parse().expect("TOML");
        for key in path {
            table = table[*key].as_table().expect("a table").clone();
        }
        let rust = table["rust"].as_table().expect("a table").clone();
        let others: toml::Table = rust.into_iter().filter(|(lint, _)| lint != allowed).collect();
        (others, table["clippy"].clone(), table["rustdoc"].clone())
    };
    assert_eq!(lints("crates/fsverity/Cargo.toml", &["lints"]), lints("Cargo.toml", &["workspace", "lints"]));
}

#[test]
fn generated_types_stay_at_the_edges() {
    for krate in ["crates", "src"] {
        for path in files(&root().join(krate), ".rs") {
            let text = fs::read_to_string(&path).expect("UTF-8");
            assert!(!text.contains("muster_proto"), "{} uses generated types", relative(&path));
        }
    }
}

#[test]
fn proofs_are_made_in_one_place() {
    let homes = [("Durable::assert", "crates/store/"), ("Verified::assert", "crates/trust/")];
    for path in files(root(), ".rs") {
        let name = relative(&path);
        if is_test(&path) || name == "crates/model/src/proof.rs" {
            continue;
        }
        let text = fs::read_to_string(&path).expect("UTF-8");
        for (call, home) in homes {
            let code: Vec<&str> = without_tests(&text)
                .into_iter()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            assert!(name.starts_with(home) || !code.join("\n").contains(call), "{name} calls {call}");
        }
    }
}

#[test]
fn the_map_names_every_crate() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    for manifest in files(root(), "Cargo.toml") {
        let folder = relative(manifest.parent().expect("a folder"));
        assert!(
            folder.is_empty() || map.contains(&format!("`{folder}`")),
            "ARCHITECTURE.md does not name {folder}"
        );
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimple", "mented!")];
    let ignored = concat!("#[ig", "nore");
    // Tests that need more than a compiler are run by .ci/run, and say how to run them.
    let reason = concat!("#[ig", "nore = \"needs ");
    for path in files(root(), ".rs") {
        let text = fs::read_to_string(&path).expect("UTF-8");
        for mark in marks {
            assert!(!text.contains(mark), "{} contains {mark}", relative(&path));
        }
        assert_eq!(text.matches(ignored).count(), text.matches(reason).count(), "{}", relative(&path));
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The names of the tests of a module of this binary; nothing if there is no such module.
fn tests_of(module: &str) -> Option<Vec<String>> {
    let folder = root().join("tests/it");
    let main = fs::read_to_string(folder.join("main.rs")).expect("UTF-8");
    if !main.lines().any(|line| line == format!("mod {module};")) {
        return None;
    }
    let below = folder.join(module);
    let below = if below.is_dir() { files(&below, ".rs") } else { Vec::new() };
    let mut tests = Vec::new();
    for path in below.into_iter().chain([folder.join(format!("{module}.rs"))]) {
        let text = fs::read_to_string(&path).expect("UTF-8");
        for marked in text.split("#[test]\n").skip(1) {
            let name = marked.lines().find_map(|line| line.trim().strip_prefix("fn ")?.split('(').next());
            tests.extend(name.map(str::to_owned));
        }
    }
    Some(tests)
}

/// Whether this names tests that exist: a module, or `module::test`, whose end may be left out as `…`.
fn names_tests(named: &str) -> bool {
    let (module, test) = named.split_once("::").unwrap_or((named, ""));
    let Some(tests) = tests_of(module) else { return false };
    match test.strip_suffix('…') {
        Some(beginning) => tests.iter().any(|test| test.starts_with(beginning)),
        None => test.is_empty() && !tests.is_empty() || tests.iter().any(|it| it == test),
    }
}

/// The rows of the tables in some lines, without their heads, each split into its cells.
fn rows<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Vec<&'a str>> {
    let table = lines.filter(|line| line.starts_with("| ") || line.starts_with("|--"));
    let rows: Vec<&str> = table.collect();
    let is_head = |at: usize| rows.get(at + 1).is_some_and(|next| next.starts_with("|--"));
    let bodies = rows.iter().enumerate().filter(|(at, row)| !row.starts_with("|--") && !is_head(*at));
    bodies.map(|(_, row)| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn each_row_of_the_threat_model_names_its_tests() {
    assert!(names_tests("tidy::each_row_of_…") && names_tests("tidy") && !names_tests("tidy::each_row_of_"));
    assert!(!names_tests("nowhere") && !names_tests("tidy::nowhere_…"));
    let model = fs::read_to_string(root().join("docs/security.md")).expect("UTF-8");
    let (_, model) = model.split_once("\n## Threat model\n").expect("a threat model");
    let (model, _) = model.split_once("\n**Attacks on signed documents.**").expect("attacks behind it");
    let threats = fs::read_to_string(root().join("tests/it/threats.rs")).expect("UTF-8");
    let own = |named: &str| names_tests(named) || names_tests(&format!("threats::{named}"));
    let rows_of_model = rows(model.lines()).into_iter().map(|row| (row[0], quoted(row[3])));
    let rows_of_tests = rows(threats.lines().filter_map(|line| line.strip_prefix("//! ")))
        .into_iter()
        .map(|row| (row[0], quoted(row[1])));
    let all: Vec<(&str, Vec<&str>)> = rows_of_model.chain(rows_of_tests).collect();
    assert!(all.len() > 20, "both tables were read: {all:#?}");
    for (row, named) in &all {
        assert!(!named.is_empty(), "the row `{row}` names no test");
        for named in named {
            assert!(own(named), "the row `{row}` names `{named}`, which is no test here");
        }
    }
}
