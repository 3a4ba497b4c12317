//! What this host has seen of the coordinator's audit log: the fleet is the witness.
//!
//! Before a session begins the coordinator shows its newest checkpoint, with proof that it continues the one that this host has
//! seen last. If it does not, the host goes on serving what it serves and takes part in no rollout, until an operator has settled
//! it on the host. Whether a log is believed is worked out in `crates/audit`; here is where it is kept, and what follows.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use muster_audit::{Offer, PROOF_LEN_MAX, Remembered, WitnessFault, judge};
use muster_model::{Code, HostName, Incarnation, PublicKey, Refusal, RolloutId, ToHost, UnixTime};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use serde::{Deserialize, Serialize};

use crate::{AgentError, refusal};

const FILE: &str = "witness.json";
const FORMAT: &str = "muster.witness/1";

/// Settlements that are kept, the newest last.
const SETTLED_MAX: usize = 16;

/// The file of one fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    format: String,
    /// The last checkpoint that was believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<Remembered>,
    /// Why the log is not believed any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    distrust: Option<String>,
    /// What operators have settled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    settled: Vec<Settled>,
}

/// That an operator had this host begin anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settled {
    at_unix_ms: UnixTime,
    reason: String,
    before: Option<Remembered>,
}

/// What one fleet's driver knows of the audit log.
#[derive(Debug)]
pub(crate) struct Witness {
    path: PathBuf,
    host: HostName,
    pinned: Option<PublicKey>,
    content: Content,
    /// What was shown and not judged yet.
    shown: Option<Offer>,
    /// With whom the session is, once it has begun.
    session: Option<Incarnation>,
}

/// What is to be durable before the session begins.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    content: Content,
}

impl Witness {
    /// Reads what was seen before.
    pub(crate) fn open(
        folder: &Path,
        host: &HostName,
        pinned: Option<PublicKey>,
    ) -> Result<Self, AgentError> {
        let path = folder.join(FILE);
        let content = read(&path)?;
        Ok(Self { path, host: host.clone(), pinned, content, shown: None, session: None })
    }

    /// A session is asked for: nothing was shown in it yet.
    pub(crate) fn begin_session(&mut self) -> Result<(), AgentError> {
        self.content = read(&self.path)?;
        (self.shown, self.session) = (None, None);
        Ok(())
    }

    /// What the coordinator is told when a session is asked for.
    pub(crate) fn seen(&self) -> Option<v1::AuditSeen> {
        let Remembered { incarnation, size, root, .. } = self.content.seen.as_ref()?;
        Some(v1::AuditSeen { incarnation: incarnation.0, size: *size, root: root.as_bytes().to_vec() })
    }

    /// The coordinator has shown its log: what is then to be kept, if a session has begun and that is anything new.
    pub(crate) fn show(&mut self, offer: Offer) -> Option<Kept> {
        self.shown = Some(offer);
        self.session.and_then(|incarnation| self.judge(incarnation))
    }

    /// A session begins with a coordinator of this incarnation: what is then to be kept, if that is anything new.
    ///
    /// Once a log is not believed, none is until that is settled: one that is put back in order has been out of order.
    pub(crate) fn judge(&mut self, incarnation: Incarnation) -> Option<Kept> {
        let shown = self.shown.take();
        let has_begun = self.session.replace(incarnation).is_some();
        if has_begun && shown.is_none() {
            // It was judged when the session began: whoever says so twice shows nothing new.
            return None;
        }
        if self.content.distrust.is_some() {
            return None;
        }
        let seen = self.content.seen.as_ref();
        let before = self.content.clone();
        match judge(seen, self.pinned.as_ref(), incarnation, shown.as_ref()) {
            Ok(seen) => self.content.seen = seen,
            // Of a coordinator that was replaced the host believes nothing anyway, and the one that replaced it is not to blame.
            Err(WitnessFault::Earlier { .. }) => return None,
            Err(fault) => {
                let distrust = refusal::chain(&fault);
                tracing::error!(host = %self.host, distrust, "the audit log is not believed: no rollout until that is settled");
                self.content.distrust = Some(distrust);
            }
        }
        (self.content != before).then(|| Kept { path: self.path.clone(), content: self.content.clone() })
    }

    /// Why this host takes part in no rollout.
    pub(crate) fn distrust(&self) -> Option<Refusal> {
        let distrust = self.content.distrust.as_ref()?;
        Some(refusal::at(&self.host, Code::AuditRewritten, distrust.clone()))
    }

    /// What is said against a message that would take this host further into a rollout. What it has promised already it keeps.
    pub(crate) fn objection(&self, message: &ToHost) -> Option<(RolloutId, Refusal)> {
        let k = match message {
            ToHost::Propose { k, .. }
            | ToHost::Attest { k, .. }
            | ToHost::Prepare { k, .. }
            | ToHost::Arm { k, .. } => *k,
            ToHost::Joined { .. }
            | ToHost::Probe { .. }
            | ToHost::Grant { .. }
            | ToHost::Set { .. }
            | ToHost::Halt { .. }
            | ToHost::Close { .. }
            | ToHost::Open { .. }
            | ToHost::Disarm { .. }
            | ToHost::Admit { .. }
            | ToHost::Refuse { .. } => return None,
        };
        Some((k, self.distrust()?))
    }
}

impl Kept {
    /// Whether it says that the log is not believed.
    pub(crate) const fn tells_distrust(&self) -> bool {
        self.content.distrust.is_some()
    }

    /// Makes it durable. The folder is not synced: after a power cut the host may remember an earlier checkpoint, from which
    /// the log must be continued as well.
    pub(crate) fn write(self) -> Result<(), AgentError> {
        let failed = |action| {
            let path = self.path.clone();
            move |source| AgentError::Witness { action, path, source }
        };
        let bytes = serde_json::to_vec(&self.content).expect("it has string keys and no failing serialisers");
        let new = self.path.with_extension("new");
        File::create(&new)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_data()))
            .map_err(failed("write"))?;
        fs::rename(&new, &self.path).map_err(failed("replace"))
    }
}

/// What a coordinator shows, as it came.
pub(crate) fn offer(shown: v1::AuditShown) -> Result<Offer, ConvertError> {
    let invalid = |field, reason: String| ConvertError::Invalid { field, reason };
    if shown.proof.len() > PROOF_LEN_MAX {
        return Err(invalid("proof", format!("more than {PROOF_LEN_MAX} digests")));
    }
    Ok(Offer {
        checkpoint: shown.checkpoint,
        key: shown.key.parse().map_err(|error| invalid("key", format!("{error}")))?,
        proof: shown.proof.iter().map(|it| convert::digest("proof", it)).collect::<Result<_, _>>()?,
    })
}

/// What was seen, in words.
pub(crate) fn told(folder: &Path) -> Result<String, AgentError> {
    let content = read(&folder.join(FILE))?;
    let mut lines = vec![match &content.seen {
        Some(Remembered { incarnation, size, root, key }) => {
            format!("seen     {size} entries, incarnation {incarnation}, {root}\nkey      {key}")
        }
        None => "seen     nothing yet".to_owned(),
    }];
    lines.extend(content.distrust.as_ref().map(|why| format!("DISTRUST {why}")));
    lines.extend(
        content.settled.iter().map(|it| format!("settled  at {} ms: {}", it.at_unix_ms.0, it.reason)),
    );
    Ok(lines.join("\n"))
}

/// Has the host begin anew with the log that it is shown next.
pub(crate) fn accept(folder: &Path, reason: &str, now: UnixTime) -> Result<(), AgentError> {
    let path = folder.join(FILE);
    let mut content = read(&path)?;
    let settled = Settled { at_unix_ms: now, reason: reason.to_owned(), before: content.seen.take() };
    content.distrust = None;
    content.settled.push(settled);
    let dropped = content.settled.len().saturating_sub(SETTLED_MAX);
    content.settled.drain(..dropped);
    Kept { path, content }.write()
}

fn read(path: &Path) -> Result<Content, AgentError> {
    let failed = |source| AgentError::Witness { action: "read", path: path.to_owned(), source };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Content {
                format: FORMAT.to_owned(),
                seen: None,
                distrust: None,
                settled: Vec::new(),
            });
        }
        Err(error) => return Err(failed(error)),
    };
    let damaged = |reason: String| failed(io::Error::new(io::ErrorKind::InvalidData, reason));
    let content: Content = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if content.format != FORMAT {
        return Err(damaged(format!("its format is `{}`; this program reads `{FORMAT}`", content.format)));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use muster_audit::{Checkpoint, Edge, SignedCheckpoint, origin};
    use muster_model::{Digest, MerkleTree, Token};
    use muster_trust::{KeyAlgorithm, SigningKey};

    use super::*;

    const LIFE: Incarnation = Incarnation(3);

    fn offer_of(entries: &[&str], key: &SigningKey) -> Offer {
        let mut edge = Edge::new();
        entries.iter().for_each(|it| edge.append(MerkleTree::leaf_hash(it.as_bytes()), |_, _, _| {}));
        let checkpoint = Checkpoint { origin: origin("a", LIFE), size: edge.size(), root: edge.root() };
        let checkpoint = SignedCheckpoint::sign(checkpoint, key).unwrap().to_bytes();
        let proof = entries.get(1).map(|it| MerkleTree::leaf_hash(it.as_bytes()));
        Offer {
            checkpoint,
            key: muster_trust::Signer::public(key).clone(),
            proof: proof.into_iter().collect(),
        }
    }

    fn session(folder: &Path, offer: Option<Offer>) -> Witness {
        let mut witness = Witness::open(folder, &HostName::new("host-1").unwrap(), None).unwrap();
        witness.begin_session().unwrap();
        assert!(offer.is_none_or(|offer| witness.show(offer).is_none()), "no session has begun");
        witness.judge(LIFE).into_iter().for_each(|kept| kept.write().unwrap());
        witness
    }

    #[test]
    fn a_host_keeps_to_what_it_has_seen_until_an_operator_settles_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let key = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
        let propose = ToHost::Propose { k: RolloutId(4), to: Digest::of(b"to") };
        assert_eq!(session(folder, None).seen(), None, "a coordinator from before there were logs");
        session(folder, Some(offer_of(&["a"], &key)));
        let grown = session(folder, Some(offer_of(&["a", "b"], &key)));
        assert_eq!(grown.seen().unwrap().size, 2);
        assert!(grown.objection(&propose).is_none());

        let proven = |offer: Offer| Offer { proof: Vec::new(), ..offer };
        let mut later = session(folder, Some(proven(offer_of(&["a", "b"], &key))));
        assert!(later.distrust().is_none());
        assert!(later.show(proven(offer_of(&["a", "b"], &key))).is_none(), "nothing new");
        assert!(later.judge(LIFE).is_none(), "a session that is said to begin twice");
        assert!(later.show(proven(offer_of(&["b", "a"], &key))).is_some() && later.distrust().is_some());

        let cut = session(folder, Some(offer_of(&["a"], &key)));
        let (k, refusal) = cut.objection(&propose).unwrap();
        assert_eq!((k, refusal.code()), (RolloutId(4), Some(Code::AuditRewritten)));
        assert!(cut.objection(&ToHost::Close { k }).is_none(), "what it has promised it keeps");
        assert!(cut.objection(&ToHost::Joined { next: Token::from_bytes([0; 32]) }).is_none());
        let put_back = session(folder, Some(offer_of(&["a", "b"], &key)));
        assert!(put_back.distrust().is_some(), "it has been out of order");
        assert!(told(folder).unwrap().contains("DISTRUST"));

        accept(folder, "the disk was set back", UnixTime(5)).unwrap();
        let anew = session(folder, Some(offer_of(&["x"], &key)));
        assert!(anew.distrust().is_none());
        assert!(told(folder).unwrap().contains("the disk was set back"));
        assert!(session(folder, None).distrust().is_some(), "a log that is withheld");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_and_no_fresh_start() {
        let folder = tempfile::tempdir().unwrap();
        for damaged in ["", "{}", "{\"format\":\"muster.witness/2\"}"] {
            fs::write(folder.path().join(FILE), damaged).unwrap();
            assert!(Witness::open(folder.path(), &HostName::new("host-1").unwrap(), None).is_err());
        }
    }
}
