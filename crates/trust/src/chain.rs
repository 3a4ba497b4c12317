//! The roots that a machine has followed, kept so that it never goes back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use muster_model::{Digest, Document, Roster, SigningRole};

use crate::root::ROOT_BYTES_MAX;
use crate::{Authentic, Envelope, TrustError, TrustRoot, verify};

const FILE_SUFFIX: &str = ".json";

/// The roots from the pinned one to the one in force. Whoever verifies asks for the one in force each time.
///
/// The successors are kept in a folder, each in a file with its version's number, and verified again at every start. A
/// successor is durable before anything is verified by it, so that no restart brings an older root back.
#[derive(Debug)]
pub struct RootChain {
    folder: PathBuf,
    /// By version, without gaps; never empty.
    roots: RwLock<Vec<Arc<TrustRoot>>>,
    /// Held while a successor is written.
    succeeding: Mutex<()>,
}

/// What came of a root that was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Succession {
    /// It is in force now, and for good.
    Taken(Arc<TrustRoot>),
    /// It was followed before.
    Known,
}

impl RootChain {
    /// Begins with the pinned root and follows the successors that `folder` keeps, which is made if it does not exist.
    ///
    /// A root that was pinned anew may be later than some that are kept, and never earlier than the first of them.
    pub fn open(pinned: TrustRoot, folder: &Path) -> Result<Self, TrustError> {
        fs::create_dir_all(folder).map_err(file("create", folder))?;
        let kept = kept_versions(folder)?;
        let (mut version, mut newest) = (pinned.root().version, Arc::new(pinned));
        if kept.contains(&version) {
            // Another fleet's root must not be joined to this chain.
            let path = path_of(folder, version);
            if !is_same(&newest, &read(&path)?) {
                let source = Box::new(TrustError::RootFork { version });
                return Err(TrustError::RootChain { path, source });
            }
        }
        let mut roots = vec![Arc::clone(&newest)];
        let latest = kept.last().copied().unwrap_or(0);
        while version < latest {
            version += 1;
            if !kept.contains(&version) {
                let folder = folder.to_owned();
                return Err(TrustError::RootGap { folder, kept: latest, missing: version });
            }
            let path = path_of(folder, version);
            let next = newest.succeed(&read(&path)?);
            newest =
                next.map(Arc::new).map_err(|source| TrustError::RootChain { path, source: source.into() })?;
            roots.push(Arc::clone(&newest));
        }
        Ok(Self { folder: folder.to_owned(), roots: RwLock::new(roots), succeeding: Mutex::default() })
    }

    /// Puts back into `folder` a successor that a backup has held, unless there is one of its version. It is verified when
    /// the chain is opened.
    pub fn restore(folder: &Path, version: u64, raw: &[u8]) -> Result<(), TrustError> {
        fs::create_dir_all(folder).map_err(file("create", folder))?;
        if path_of(folder, version).exists() { Ok(()) } else { keep(folder, version, raw) }
    }

    /// The root in force.
    #[must_use]
    pub fn in_force(&self) -> Arc<TrustRoot> {
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(roots.last().expect("a chain begins with the pinned root"))
    }

    /// All roots that are known here, the pinned one first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<TrustRoot>> {
        self.roots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the next root, if the present one and it itself vouch for it: it is durable when this returns. Blocks.
    pub fn succeed(&self, raw: &[u8]) -> Result<Succession, TrustError> {
        let _succeeding = self.succeeding.lock().unwrap_or_else(PoisonError::into_inner);
        let judged = self.judge(raw)?;
        if let Succession::Taken(next) = &judged {
            keep(&self.folder, next.root().version, raw)?;
            self.roots.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(next));
        }
        Ok(judged)
    }

    /// What [`RootChain::succeed`] would make of this root at this moment. Nothing is taken.
    pub fn judge(&self, raw: &[u8]) -> Result<Succession, TrustError> {
        if self.all().iter().any(|root| is_same(root, raw)) {
            return Ok(Succession::Known);
        }
        self.in_force().succeed(raw).map(|next| Succession::Taken(Arc::new(next)))
    }

    /// Verifies what was signed in the past, by the latest root that vouches for it, expired or not. It is right for
    /// records, and never for what is to happen.
    pub fn verify_history<T: Document>(
        &self,
        role: SigningRole,
        raw: &[u8],
    ) -> Result<Authentic<T>, TrustError> {
        let by_present = match verify(raw, self.in_force().root().role(role)) {
            Ok(document) => return Ok(document),
            Err(error) => error,
        };
        let earlier = self.all().into_iter().rev().skip(1);
        earlier.filter_map(|root| verify(raw, root.root().role(role)).ok()).next().ok_or(by_present)
    }

    /// The same for a roster, with what joiners may have added to it.
    pub fn verify_roster_history(&self, raw: &[u8]) -> Result<Authentic<Roster>, TrustError> {
        let by_present = match self.in_force().verify_past_roster(raw) {
            Ok(roster) => return Ok(roster),
            Err(error) => error,
        };
        let earlier = self.all().into_iter().rev().skip(1);
        earlier.filter_map(|root| root.verify_past_roster(raw).ok()).next().ok_or(by_present)
    }
}

/// Whether `raw` holds the very document of `root`, by whatever signatures.
fn is_same(root: &TrustRoot, raw: &[u8]) -> bool {
    Envelope::parse_bounded(raw, ROOT_BYTES_MAX)
        .is_ok_and(|envelope| Digest::of(envelope.payload()) == root.authentic().payload_digest())
}

/// The versions that the folder has a file of, in order.
fn kept_versions(folder: &Path) -> Result<Vec<u64>, TrustError> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(folder).map_err(file("read", folder))? {
        let name = entry.map_err(file("read", folder))?.file_name();
        let version: Option<u64> =
            name.to_str().and_then(|name| name.strip_suffix(FILE_SUFFIX)?.parse().ok());
        versions.extend(version);
    }
    versions.sort_unstable();
    Ok(versions)
}

fn path_of(folder: &Path, version: u64) -> PathBuf {
    folder.join(format!("{version}{FILE_SUFFIX}"))
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    let mut bytes = Vec::new();
    let opened = File::open(path).map_err(file("open", path))?;
    // One byte more than is accepted, so that too much does not look like enough.
    opened.take(ROOT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(file("read", path))?;
    Ok(bytes)
}

/// Writes a root so that after a crash it is either whole or not there.
fn keep(folder: &Path, version: u64, raw: &[u8]) -> Result<(), TrustError> {
    let path = path_of(folder, version);
    let unfinished = folder.join(format!(".{version}.new"));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&unfinished)
        .and_then(|mut file| file.write_all(raw).and_then(|()| file.sync_all()));
    written.map_err(file("write", &unfinished))?;
    fs::rename(&unfinished, &path).map_err(file("create", &path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file("make durable", folder))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrustError + use<> {
    let path = path.to_owned();
    move |source| TrustError::RootFile { action, path, source }
}

#[cfg(test)]
mod tests;
