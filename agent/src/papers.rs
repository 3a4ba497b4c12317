//! The documents that this host keeps: the newest roster, and what its last rollouts rested on.
//!
//! A coordinator that was lost without a backup is rebuilt from them. All of them were verified before they are kept, and
//! whoever reads them verifies them again. Nothing here decides what is served.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_model::{Digest, Documents, Epoch, RolloutId, RosterRevision, Secrets};
use muster_rollout::fleet::Papers as Named;
use muster_rollout::rebuild::{Kept, Testimony};
use serde::{Deserialize, Serialize};

const INDEX: &str = "index.json";
const FORMAT: &str = "muster.papers/1";

/// Rollouts whose documents are kept: what is served, what was served before, and what is being prepared.
const ROLLOUTS_MAX: usize = 3;

/// How much of a document is sent at once: it fits into a frame.
pub(crate) const PART_BYTES_MAX: usize = 128 << 10;

/// The documents of one fleet.
#[derive(Debug)]
pub(crate) struct Papers {
    folder: PathBuf,
    index: Mutex<Index>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    format: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    roster: Option<KeptRoster>,
    /// By number.
    #[serde(default)]
    rollouts: Vec<Kept>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptRoster {
    revision: RosterRevision,
    envelope: Digest,
}

/// What a rollout rests on, verified.
pub(crate) struct Verified<'a> {
    pub(crate) k: RolloutId,
    pub(crate) to: Digest,
    pub(crate) documents: Documents,
    pub(crate) closing: muster_model::Closing,
    /// Order, release, roster and evidence.
    pub(crate) bytes: [&'a [u8]; 4],
}

impl Papers {
    /// Opens the folder. An index that cannot be read is begun anew: what it lists serves nobody but a lost coordinator.
    pub(crate) fn open(folder: &Path) -> Self {
        let empty = || Index { format: FORMAT.to_owned(), roster: None, rollouts: Vec::new() };
        let read = fs::read(folder.join(INDEX)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let index = read.filter(|index: &Index| index.format == FORMAT).unwrap_or_else(empty);
        Self { folder: folder.to_owned(), index: Mutex::new(index) }
    }

    /// Adds what is kept here to what the host tells.
    pub(crate) fn complete(&self, testimony: Testimony) -> Testimony {
        let index = self.lock();
        Testimony {
            roster: index.roster.map(|roster| roster.envelope),
            kept: index.rollouts.clone(),
            ..testimony
        }
    }

    /// Keeps a rollout's documents. Blocks.
    pub(crate) fn keep(&self, verified: &Verified<'_>) -> io::Result<()> {
        let Documents { order, release, roster, evidence } = verified.documents;
        let mut index = self.lock();
        for (name, bytes) in [order, release, roster, evidence].into_iter().zip(verified.bytes) {
            self.put(name, bytes)?;
        }
        let kept = Kept {
            k: verified.k,
            to: verified.to,
            papers: Named { order, release, roster },
            evidence,
            closing: verified.closing,
            secrets: None,
        };
        let mut next = index.clone();
        next.rollouts.retain(|known| known.k != kept.k);
        next.rollouts.push(kept);
        next.rollouts.sort_by_key(|known| known.k);
        // What was served before is of more use than a rollout that was given up.
        while next.rollouts.len() > ROLLOUTS_MAX {
            let newest = next.rollouts.len() - 1;
            let given_up = next.rollouts[..newest].iter().position(|known| known.secrets.is_none());
            next.rollouts.remove(given_up.unwrap_or(0));
        }
        self.replace(&mut index, next)
    }

    /// Keeps the closing secrets that this host was opened with, beside the rollout whose hosts had committed to them. Blocks.
    pub(crate) fn keep_secrets(&self, release: Digest, secrets: &Secrets) -> io::Result<()> {
        let mut index = self.lock();
        let mut next = index.clone();
        let fits = |known: &&mut Kept| {
            known.to == release
                && known.closing.is_proven_by(secrets, u32::try_from(secrets.lapsed()).unwrap_or(u32::MAX))
        };
        let Some(opened) = next.rollouts.iter_mut().rev().find(fits) else { return Ok(()) };
        let name = Digest::of(secrets.as_bytes());
        self.put(name, secrets.as_bytes())?;
        opened.secrets = Some(name);
        self.replace(&mut index, next)
    }

    /// Keeps a roster, unless a newer one is kept. Blocks.
    pub(crate) fn keep_roster(
        &self,
        revision: RosterRevision,
        envelope: Digest,
        bytes: &[u8],
    ) -> io::Result<()> {
        let mut index = self.lock();
        if index.roster.is_some_and(|known| known.revision > revision || known.envelope == envelope) {
            return Ok(());
        }
        self.put(envelope, bytes)?;
        let next = Index { roster: Some(KeptRoster { revision, envelope }), ..index.clone() };
        self.replace(&mut index, next)
    }

    /// The envelope of the roster that is kept. Blocks.
    pub(crate) fn roster(&self) -> Option<Vec<u8>> {
        let kept = self.lock().roster?;
        fs::read(self.path(kept.envelope)).ok()
    }

    /// The revision of the roster that is kept.
    pub(crate) fn roster_revision(&self) -> Option<RosterRevision> {
        self.lock().roster.map(|kept| kept.revision)
    }

    /// Whether this is the roster that is kept.
    pub(crate) fn has_roster(&self, envelope: Digest) -> bool {
        self.lock().roster.is_some_and(|known| known.envelope == envelope)
    }

    /// The same, if it is the one with this name. Blocks.
    pub(crate) fn roster_named(&self, envelope: Digest) -> Option<Vec<u8>> {
        self.has_roster(envelope).then(|| self.roster()).flatten()
    }

    /// Whether a release is one that a kept rollout led to.
    pub(crate) fn led_to(&self, release: Digest) -> bool {
        self.lock().rollouts.iter().any(|known| known.to == release)
    }

    /// A part of a document, and the size of the whole. Blocks.
    pub(crate) fn read(&self, name: Digest, offset: u64) -> io::Result<(u64, Vec<u8>)> {
        let is_named = self.lock().names().contains(&name);
        if !is_named {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        part_of(&self.path(name), offset)
    }

    fn put(&self, name: Digest, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        if path.exists() {
            return Ok(());
        }
        replace_file(&path, bytes)
    }

    /// Writes the index, and then removes what it names no more.
    fn replace(&self, index: &mut Index, next: Index) -> io::Result<()> {
        if *index == next {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&next).expect("it has string keys and no failing serialisers");
        replace_file(&self.folder.join(INDEX), &bytes)?;
        let (before, after) = (index.names(), next.names());
        *index = next;
        for name in before.difference(&after) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_file(self.path(*name));
        }
        Ok(())
    }

    fn path(&self, name: Digest) -> PathBuf {
        self.folder.join(name.hex())
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn names(&self) -> BTreeSet<Digest> {
        let of_rollout = |it: &Kept| {
            let Named { order, release, roster } = it.papers;
            [order, release, roster, it.evidence].into_iter().chain(it.secrets)
        };
        let rosters = self.roster.iter().map(|roster| roster.envelope);
        self.rollouts.iter().flat_map(of_rollout).chain(rosters).collect()
    }
}

/// The closing secrets that the host was shown, until it has opened with them.
#[derive(Debug)]
pub(crate) struct ShownSecrets {
    pub(crate) epoch: Epoch,
    pub(crate) release: Digest,
    pub(crate) secrets: Secrets,
}

fn part_of(path: &Path, offset: u64) -> io::Result<(u64, Vec<u8>)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(offset))?;
    let mut part = Vec::new();
    file.take(PART_BYTES_MAX as u64).read_to_end(&mut part)?;
    Ok((size, part))
}

/// Writes a file so that after a crash it is either whole or as it was.
fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    File::create(&new).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_data()))?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use muster_model::{Closing, Closure, Secret};

    use super::*;

    fn keep(papers: &Papers, k: u64, secret: Secret) -> [Digest; 4] {
        let texts = ["order", "release", "roster", "evidence"].map(|what| format!("{what} {k}").into_bytes());
        let [order, release, roster, evidence] = [0, 1, 2, 3].map(|at: usize| Digest::of(&texts[at]));
        let verified = Verified {
            k: RolloutId(k),
            to: Digest::of(b"tree"),
            documents: Documents { order, release, roster, evidence },
            closing: Closing::of_commitments([&secret.commitment()]),
            bytes: [&texts[0], &texts[1], &texts[2], &texts[3]],
        };
        papers.keep(&verified).unwrap();
        [order, release, roster, evidence]
    }

    #[test]
    fn what_was_opened_outlives_what_was_given_up_and_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let papers = Papers::open(folder.path());
        let secret = |k: u8| Secret::from_bytes([k; 32]);
        let first = keep(&papers, 1, secret(1));
        let revealed: Secrets = [Closure::Revealed(secret(1))].into_iter().collect();
        papers.keep_secrets(Digest::of(b"tree"), &revealed).unwrap();
        let second = keep(&papers, 2, secret(2));
        for k in 3..=5 {
            keep(&papers, k, secret(3));
        }
        papers.keep_roster(RosterRevision(2), Digest::of(b"r2"), b"r2").unwrap();
        papers.keep_roster(RosterRevision(1), Digest::of(b"r1"), b"r1").unwrap();

        let papers = Papers::open(folder.path());
        let kept: Vec<_> = papers.lock().rollouts.iter().map(|it| it.k.0).collect();
        assert_eq!(kept, [1, 4, 5]);
        assert_eq!(papers.lock().rollouts[0].secrets, Some(Digest::of(revealed.as_bytes())));
        assert_eq!(papers.read(first[3], 4).unwrap(), (10, b"ence 1".to_vec()));
        assert!(papers.read(second[0], 0).is_err(), "it was given up, and is gone");
        assert!(!papers.path(second[0]).exists());
        assert_eq!(papers.roster_named(Digest::of(b"r2")).as_deref(), Some(&b"r2"[..]));
        assert_eq!(papers.roster_named(Digest::of(b"r1")), None);
    }
}
