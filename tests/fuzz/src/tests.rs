//! Replays the corpus that the fuzzers left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;

use crate::frames::REQUESTS;
use crate::{TARGETS, Verdict};

/// The most that is committed of all corpora together.
const FILES_MAX: usize = 240;
const BYTES_MAX: usize = 300 << 10;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// The files of a target's corpus, with their names.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = fuzz().join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read =
        |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
    entries.map(|entry| read(entry.unwrap().path())).collect()
}

#[test]
fn every_file_of_the_corpus_keeps_the_properties_of_its_target() {
    let (mut files, mut bytes) = (0, 0);
    for target in TARGETS {
        let corpus = corpus(target.name);
        let mut taken = 0;
        for (name, input) in &corpus {
            let caught = std::panic::catch_unwind(|| (target.run)(input));
            let verdict = caught.unwrap_or_else(|_| panic!("fuzz/corpus/{}/{name}", target.name));
            taken += usize::from(verdict == Verdict::Taken);
            bytes += input.len();
        }
        assert!(taken > 0, "no file of {} is taken: its properties are never looked at", target.name);
        assert!(taken < corpus.len(), "no file of {} is refused", target.name);
        files += corpus.len();
    }
    assert!(files <= FILES_MAX && bytes <= BYTES_MAX, "{files} files with {bytes} bytes: run `cmin`");
}

#[test]
fn every_target_has_a_fuzzer_and_every_folder_a_target() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for target in targets {
        let fuzzer = fs::read_to_string(fuzz().join(format!("fuzz_targets/{target}.rs"))).unwrap();
        assert!(fuzzer.contains(&format!("muster_fuzz::run(\"{target}\"")), "{target}");
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
    }
}

#[test]
fn every_request_of_the_descriptors_is_read() {
    let descriptors = prost_types::FileDescriptorSet::decode(muster_proto::DESCRIPTORS).unwrap();
    let of_ours = descriptors.file.iter().filter(|file| file.package() == "fleet.v1");
    let services = of_ours.flat_map(|file| &file.service);
    let asked: BTreeSet<&str> = services
        .flat_map(|service| &service.method)
        .map(|method| method.input_type().rsplit('.').next().unwrap())
        .collect();
    let read: BTreeSet<&str> = REQUESTS.iter().map(|(name, _)| *name).collect();
    assert!(asked.len() > 20);
    assert_eq!(read, asked);
}
