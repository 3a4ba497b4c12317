//! The seal: what makes it cheap to see that a tree is still the one that was measured.
//!
//! A seal holds the metadata of every entry as it was when its bytes were read. Writing to a file, replacing
//! it, or setting its mode or times gives it a new change time, which no ordinary system call can set back.
//! So a check asks for metadata only, and still sees everything that goes through the file system. It does
//! not see a disk that changes by itself, nor a write through a mapping that was made and dirtied before the
//! measurement: the full measurement that follows a flip does.
//!
//! Where the kernel has sealed every file with fs-verity, a seal holds its digests as well, and a check asks for them: then a file cannot
//! be another one whatever its metadata says, and what the disk makes of it by itself cannot be read.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_model::{
    Difference, DifferenceKind, Digest, EntryPath, ExternalCheck, HostPath, Manifest, Place, TreeRules,
};
use serde::{Deserialize, Serialize};

use crate::durable::replace_file;
use crate::measure::{DIFFERENCES_MAX, Links, MeasureOptions, Measurement, host_stamp, measure_walk};
use crate::walk::{FileVerity, Found, FoundKind, Reading, Stamp, Walk, Walked};
use crate::{ArtifactError, Assured, Progress, VerityUse, handle, pool};

const MAGIC: &str = "muster.seal/1";
/// File times advance with the kernel's tick, 10 ms at the slowest; two changes within one tick look alike.
const TICK: Duration = Duration::from_millis(20);

/// The metadata of a tree that was measured and found as expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    manifest: Digest,
    root: Stamp,
    entries: Vec<(EntryPath, Stamp)>,
    /// What the release names outside the tree, as it was found.
    host: Vec<(HostPath, Option<Stamp>)>,
    rules: TreeRules,
    /// The digests of all files by fs-verity, where the kernel has sealed all of them. Seals from before this have none, and older
    /// agents read none that has some: they measure again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    verity: BTreeMap<EntryPath, Digest>,
}

/// Measures a tree in full and seals it if it is as expected.
pub fn seal(
    tree: &Path,
    expected: &Manifest,
    options: &MeasureOptions,
    progress: &Progress,
) -> Result<(Measurement, Option<Seal>), ArtifactError> {
    let begun = now_ns();
    // After this pause a change to what has been read gets a time that differs from any that was there
    // before.
    std::thread::sleep(TICK);
    let (mut measurement, walked) = measure_walk(tree, expected, options, progress)?;
    let host = host_stamps(expected.rules());
    let meanwhile = begun..=now_ns();
    let changed = walked.found.iter().filter(|found| meanwhile.contains(&found.stamp.ctime_ns));
    let changed = changed.filter(|found| !matches!(found.kind, FoundKind::Mutable(_)));
    let changed = changed.filter(|found| !holds_mutable(&expected.rules().mutable, &found.path));
    measurement.add(
        changed.map(|found| touched(&found.path, "unchanged", "changed while it was measured")).collect(),
    );
    if !measurement.matches() {
        return Ok((measurement, None));
    }
    let verity = kernels_digests(&measurement, &walked);
    let seal = Seal {
        manifest: expected.digest(),
        root: walked.root,
        entries: sealed(expected, walked),
        host,
        rules: expected.rules().clone(),
        verity,
    };
    Ok((measurement, Some(seal)))
}

impl Seal {
    /// The manifest of the sealed tree.
    #[must_use]
    pub const fn manifest(&self) -> Digest {
        self.manifest
    }

    /// What the measurement was worth that was sealed.
    #[must_use]
    pub fn is_verity(&self) -> bool {
        !self.verity.is_empty()
    }

    /// Looks at the metadata of every entry, and for entries that should not be there; and asks the kernel for the digests of files that
    /// it has sealed. Reads no file.
    pub fn check(&self, tree: &Path, jobs: NonZeroUsize) -> Result<(), ArtifactError> {
        let progress = Progress::default();
        let walk = Walk {
            reading: Reading::Metadata,
            mutable: &self.rules.mutable,
            jobs: pool::worthwhile(jobs, self.entries.len(), 0),
            pace: None,
            verity: if self.verity.is_empty() { VerityUse::Off } else { VerityUse::WherePossible },
            progress: &progress,
        };
        let walked = walk.run(handle::open_tree(tree)?, tree)?;
        // The root's times need no look: what came or went in it shows among the entries.
        if (self.root.device, self.root.inode) != (walked.root.device, walked.root.inode) {
            return Err(ArtifactError::Replaced { path: tree.to_owned() });
        }
        let mut differences = self.compare(&walked);
        differences.extend(self.compare_host());
        if differences.is_empty() {
            return Ok(());
        }
        let count = differences.len() as u64;
        differences.sort_unstable();
        differences.truncate(DIFFERENCES_MAX);
        Err(ArtifactError::SealBroken { path: tree.to_owned(), differences, count })
    }

    /// Writes the seal durably, with a checksum.
    pub fn write(&self, path: &Path) -> Result<(), ArtifactError> {
        let body = serde_json::to_vec(self).expect("a seal has string keys and no failing serialisers");
        let header = format!("{MAGIC} {}\n", Digest::of(&body));
        replace_file(path, &[header.as_bytes(), &body])
    }

    /// Reads a seal. A damaged one is an error: the tree has to be measured again.
    pub fn read(path: &Path) -> Result<Self, ArtifactError> {
        let bytes = fs::read(path).map_err(|error| ArtifactError::io("read", path, error))?;
        let refused =
            |reason: &str| ArtifactError::SealFile { path: PathBuf::from(path), reason: reason.to_owned() };
        let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| refused("it has no header"))?;
        let (header, body) = (&bytes[..end], &bytes[end + 1..]);
        if header != format!("{MAGIC} {}", Digest::of(body)).as_bytes() {
            return Err(refused("its header or checksum is wrong"));
        }
        serde_json::from_slice(body).map_err(|error| refused(&error.to_string()))
    }

    fn compare(&self, walked: &Walked) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut sealed = self.entries.iter().peekable();
        for found in &walked.found {
            while let Some((path, _)) = sealed.next_if(|(path, _)| *path < found.path) {
                differences.push(difference(path, DifferenceKind::Missing, "what was measured", "nothing"));
            }
            match sealed.next_if(|(path, _)| *path == found.path) {
                Some((path, stamp)) => differences.extend(self.compare_entry(path, stamp, found)),
                None if matches!(found.kind, FoundKind::Mutable(_)) => {}
                None => {
                    differences.push(difference(&found.path, DifferenceKind::Extra, "nothing", "something"))
                }
            }
        }
        let missing =
            sealed.map(|(path, _)| difference(path, DifferenceKind::Missing, "what was measured", "nothing"));
        differences.extend(missing);
        let beyond = walked.beyond.iter();
        differences.extend(
            beyond
                .map(|(path, error)| difference(path, DifferenceKind::Extra, "nothing", &error.to_string())),
        );
        differences
    }

    fn compare_entry(&self, path: &EntryPath, sealed: &Stamp, found: &Found) -> Option<Difference> {
        if let FoundKind::Unreadable(why) = &found.kind {
            return Some(difference(path, DifferenceKind::Unreadable, "what was measured", why));
        }
        match self.verity.get(path) {
            Some(digest) => compare_sealed(path, sealed, *digest, found),
            None if self.is_same(path, sealed, &found.stamp) => None,
            None => Some(touched(path, &describe(sealed), &describe(&found.stamp))),
        }
    }

    /// A folder that holds a mutable path changes its times and size when that comes or goes, and so does a
    /// mutable folder.
    fn is_same(&self, path: &EntryPath, sealed: &Stamp, found: &Stamp) -> bool {
        if sealed == found {
            return true;
        }
        let is_mutable = self.rules.mutable.binary_search(path).is_ok();
        (is_mutable || holds_mutable(&self.rules.mutable, path))
            && (sealed.device, sealed.inode, sealed.mode) == (found.device, found.inode, found.mode)
    }

    fn compare_host(&self) -> Vec<Difference> {
        let now = host_stamps(&self.rules);
        let pairs = self
            .host
            .iter()
            .zip(now)
            .filter(|((path, sealed), (now_path, now))| path != now_path || sealed != now);
        pairs
            .map(|((path, sealed), (_, now))| Difference {
                path: Place::Host(path.clone()),
                kind: DifferenceKind::Touched,
                expected: sealed.as_ref().map_or_else(|| "nothing".to_owned(), describe),
                measured: now.as_ref().map_or_else(|| "nothing".to_owned(), describe),
            })
            .collect()
    }
}

/// Of a file that the kernel has sealed its digest decides, and not its times: whoever sets them back or puts another one in its place
/// does not get that digest, and one that was only touched, or written anew as it was, is what was measured.
fn compare_sealed(path: &EntryPath, sealed: &Stamp, digest: Digest, found: &Found) -> Option<Difference> {
    let FoundKind::File { verity, .. } = &found.kind else {
        return Some(touched(path, &describe(sealed), &describe(&found.stamp)));
    };
    if (sealed.mode, sealed.size) != (found.stamp.mode, found.stamp.size) {
        return Some(touched(path, &describe(sealed), &describe(&found.stamp)));
    }
    let measured = match verity {
        FileVerity::Sealed(found) if *found == digest => return None,
        FileVerity::Sealed(found) => format!("fs-verity {found}"),
        FileVerity::Another => "sealed with other parameters of fs-verity".to_owned(),
        FileVerity::Unsealed | FileVerity::Unsupported => "not sealed with fs-verity".to_owned(),
        FileVerity::Failed(error) => format!("no fs-verity digest: {error}"),
        FileVerity::Unasked => "nobody has asked for its fs-verity digest".to_owned(),
    };
    Some(touched(path, &format!("fs-verity {digest}"), &measured))
}

/// What the kernel says of all files, if the measurement has borne it out.
fn kernels_digests(measurement: &Measurement, walked: &Walked) -> BTreeMap<EntryPath, Digest> {
    let files = walked.found.iter().filter_map(|found| {
        let FoundKind::File { verity: FileVerity::Sealed(digest), .. } = &found.kind else { return None };
        Some((found.path.clone(), *digest))
    });
    match &measurement.assured {
        Assured::Verity => files.collect(),
        Assured::Sha256(_) => BTreeMap::new(),
    }
}

/// What is at an unlisted mutable path is not sealed: it may come and go.
fn sealed(expected: &Manifest, walked: Walked) -> Vec<(EntryPath, Stamp)> {
    let listed =
        |found: &Found| !matches!(found.kind, FoundKind::Mutable(_)) || expected.entry(&found.path).is_some();
    walked.found.into_iter().filter(listed).map(|found| (found.path, found.stamp)).collect()
}

/// The metadata of all paths on the host that the rules name, in a fixed order. Of a path that need only be
/// present its presence alone is kept. What cannot be examined counts as something else than what was sealed.
fn host_stamps(rules: &TreeRules) -> Vec<(HostPath, Option<Stamp>)> {
    let unknown = Stamp { device: u64::MAX, inode: 0, mode: 0, size: 0, mtime_ns: 0, ctime_ns: 0 };
    let present = Stamp { device: 0, ..unknown };
    let absent = rules.absent.iter().map(|path| (path, Links::Keep, false));
    let external = rules
        .external
        .iter()
        .map(|external| (&external.path, Links::Follow, external.check == ExternalCheck::Present));
    absent
        .chain(external)
        .map(|(path, links, presence)| {
            let stamp = host_stamp(path, links).unwrap_or(Some(unknown));
            (path.clone(), if presence { stamp.map(|_| present) } else { stamp })
        })
        .collect()
}

/// Whether a mutable path lies directly in this folder.
fn holds_mutable(mutable: &[EntryPath], folder: &EntryPath) -> bool {
    mutable.iter().any(|path| path.parent().as_ref() == Some(folder))
}

fn touched(path: &EntryPath, expected: &str, measured: &str) -> Difference {
    difference(path, DifferenceKind::Touched, expected, measured)
}

fn difference(path: &EntryPath, kind: DifferenceKind, expected: &str, measured: &str) -> Difference {
    Difference {
        path: Place::Tree(path.clone()),
        kind,
        expected: expected.to_owned(),
        measured: measured.to_owned(),
    }
}

fn describe(stamp: &Stamp) -> String {
    let Stamp { inode, mode, size, ctime_ns, .. } = stamp;
    format!("inode {inode}, mode {mode:o}, {size} bytes, changed at {ctime_ns}")
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
