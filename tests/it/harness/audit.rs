//! A coordinator's audit log in a test's hands, with the key that signs it: what somebody can do who has taken the coordinator over.

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;

use muster_audit::{Checkpoint, Edge, Entry, Nodes, SignedCheckpoint, consistency_proof, incarnation_of};
use muster_model::{Digest, MerkleTree};
use muster_proto::v1;
use muster_trust::SigningKey;

use super::Fleet;

/// The log of the coordinator's present life, as its files hold it. The coordinator is not running.
pub(crate) struct Log {
    dir: PathBuf,
    key: SigningKey,
    origin: String,
    /// The leaves. A test may change them, and then sign what it made of them.
    pub(crate) entries: Vec<Vec<u8>>,
}

impl Log {
    /// Reads the log of a fleet's coordinator.
    #[track_caller]
    pub(crate) fn of(fleet: &Fleet) -> Self {
        let coordinator = fleet.dir().join("coordinator");
        let key = SigningKey::read(&coordinator.join("audit.key")).unwrap();
        let lives = fs::read_dir(coordinator.join("state/audit")).unwrap().flatten();
        let lives = lives.filter_map(|it| Some((it.file_name().to_str()?.parse::<u64>().ok()?, it.path())));
        let (_, dir) = lives.max().unwrap();
        let bytes = fs::read(dir.join("entries")).unwrap();
        let whole = bytes.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
        let slots = fs::read(dir.join("checkpoint")).unwrap();
        let origin = String::from_utf8_lossy(&slots).lines().next().unwrap().to_owned();
        assert!(incarnation_of(&origin).is_some(), "{origin}");
        Self { entries: whole.map(<[u8]>::to_vec).collect(), dir, key, origin }
    }

    /// The file of entries.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join("entries")
    }

    /// The entries, read.
    pub(crate) fn parsed(&self) -> Vec<Entry> {
        self.entries.iter().zip(0..).map(|(bytes, place)| Entry::parse(bytes, place).unwrap()).collect()
    }

    /// Numbers entries anew that were cut out, moved or put in.
    pub(crate) fn renumber(&mut self) {
        for (bytes, place) in self.entries.iter_mut().zip(0_u64..) {
            let mut entry: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(bytes).unwrap();
            entry.insert("entry".to_owned(), place.into());
            *bytes = serde_json::to_vec(&entry).unwrap();
        }
    }

    /// Writes what was made of it, with a checkpoint over it: to the coordinator this is its log.
    pub(crate) fn write(&self) {
        let lines: Vec<u8> = self.entries.iter().flat_map(|it| [it.as_slice(), b"\n"].concat()).collect();
        fs::write(self.file(), lines).unwrap();
        let mut page = self.signed().to_bytes();
        page.resize(8192, 0);
        fs::write(self.dir.join("checkpoint"), page).unwrap();
    }

    /// What a host is shown that has seen this.
    pub(crate) fn shown(&self, seen: Option<&v1::AuditSeen>) -> v1::AuditShown {
        let old = seen.map_or(0, |seen| seen.size);
        let Ok(proof) = consistency_proof(self, old, self.entries.len() as u64);
        v1::AuditShown {
            checkpoint: self.signed().to_bytes(),
            key: self.key.public().to_string(),
            proof: proof.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
        }
    }

    fn signed(&self) -> SignedCheckpoint {
        let edge = edge_of(&self.entries);
        let checkpoint = Checkpoint { origin: self.origin.clone(), size: edge.size(), root: edge.root() };
        SignedCheckpoint::sign(checkpoint, &self.key).unwrap()
    }
}

impl Nodes for Log {
    type Error = Infallible;

    fn node(&self, level: u32, index: u64) -> Result<Digest, Infallible> {
        let begin = usize::try_from(index << level).unwrap();
        Ok(edge_of(&self.entries[begin..begin + (1 << level)]).root())
    }
}

fn edge_of(entries: &[Vec<u8>]) -> Edge {
    let mut edge = Edge::new();
    entries.iter().for_each(|entry| edge.append(MerkleTree::leaf_hash(entry), |_, _, _| {}));
    edge
}
