//! The last roster that held under the coordinator that was lost, from whichever host has kept it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, HostName, Membership, Roster, RosterRevision, Verified};
use muster_rollout::gate;
use muster_rollout::rebuild::Testimony;
use muster_trust::{Authentic, ENVELOPE_BYTES_MAX};

use super::gather::Sources;
use crate::fleet::blocking;
use crate::status::{blob_code, chain};

/// How long one host may take to send the roster that it claims to keep.
const ROSTER_TIMEOUT: Duration = Duration::from_secs(5);

/// The last roster that held, if it is to be known.
pub(super) type Before = Option<Arc<Verified<Roster>>>;

/// Rosters that hosts claim to keep, the newest first, each with a host that does.
pub(super) type Kept = Vec<(RosterRevision, Digest, HostName)>;

/// The rosters that hosts keep who serve with the others: they were shown none that did not hold. Whom a roster leaves out was shown it
/// before it did, if it ever did.
///
/// Where no such host keeps one, all that are kept count: whoever is listed too many is only asked for.
pub(super) fn kept(told: &BTreeMap<HostName, Testimony>) -> Kept {
    let of = |is_wanted: fn(&Testimony) -> bool| -> Kept {
        let wanted = told.iter().filter(|(_, it)| is_wanted(it));
        wanted.filter_map(|(host, it)| Some((it.roster_revision, it.roster?, host.clone()))).collect()
    };
    let mut kept = of(|it| it.membership == Membership::Member);
    if kept.is_empty() {
        kept = of(|_| true);
    }
    kept.sort_by(|a, b| b.cmp(a));
    kept
}

impl Sources {
    /// The newest of these rosters, or the one that the coordinator's own disk knows if that is newer. One that a host keeps and does not
    /// send now, or that does not verify yet, is waited for, if it may be newer: whom it has serve is not to be forgotten.
    pub(super) async fn held(
        self,
        kept: Kept,
        former: Option<(RosterRevision, Digest)>,
    ) -> Result<Before, Blocker> {
        let mut search = Search::default();
        for (revision, digest, host) in kept {
            if search.knows(revision) {
                break;
            }
            let read = self.read(&host, digest, ENVELOPE_BYTES_MAX as u64);
            let read = tokio::time::timeout(ROSTER_TIMEOUT, read).await;
            let read = read.unwrap_or_else(|_| Err(gate::missing(&host)));
            let found = read.and_then(|bytes| {
                self.of_fleet(&bytes).ok_or_else(|| {
                    tracing::warn!(fleet = %self.fleet, %host, "the roster that it keeps does not verify");
                    unverified(&host, revision)
                })
            });
            search.found(revision, found);
        }
        if let Some((revision, digest)) = former.filter(|(revision, _)| !search.knows(*revision)) {
            let documents = self.documents.clone();
            let bytes = blocking(&self.machine, move || documents.read(digest)).await;
            let found = bytes.map_err(|error| Blocker::fleet(blob_code(&error), chain(&error)));
            let found = found.and_then(|bytes| {
                self.of_fleet(&bytes).ok_or_else(|| {
                    let detail = format!(
                        "revision {revision} of the roster, which was in force here, does not verify"
                    );
                    Blocker::fleet(Code::SignatureInvalid, detail)
                })
            });
            search.found(revision, found);
        }
        search.ends()
    }

    fn of_fleet(&self, bytes: &[u8]) -> Option<Arc<Verified<Roster>>> {
        let roster = self.roots.verify_roster_history(bytes).ok().map(Authentic::into_document)?;
        (*roster.fleet() == self.fleet).then(|| Arc::new(roster))
    }
}

/// What was found so far, and the newest that was not.
#[derive(Debug, Default)]
struct Search {
    newest: Before,
    owed: Option<(RosterRevision, Blocker)>,
}

impl Search {
    /// Whether a roster of this revision, or a later one, was found.
    fn knows(&self, revision: RosterRevision) -> bool {
        self.newest.as_ref().is_some_and(|it| it.revision() >= revision)
    }

    fn found(&mut self, revision: RosterRevision, found: Result<Arc<Verified<Roster>>, Blocker>) {
        match found {
            Ok(roster) if !self.knows(roster.revision()) => self.newest = Some(roster),
            Ok(_) => {}
            Err(blocker) if self.owed.as_ref().is_none_or(|(owed, _)| *owed < revision) => {
                self.owed = Some((revision, blocker));
            }
            Err(_) => {}
        }
    }

    fn ends(self) -> Result<Before, Blocker> {
        match self.owed {
            Some((revision, blocker)) if self.newest.as_ref().is_none_or(|it| it.revision() < revision) => {
                Err(blocker)
            }
            Some(_) | None => Ok(self.newest),
        }
    }
}

/// It may be of operators whom a later root has named, and list hosts that nobody else knows of.
fn unverified(host: &HostName, revision: RosterRevision) -> Blocker {
    let detail = format!(
        "it has seen revision {revision} of the roster, and the roster that it keeps does not verify by the roots that are known \
         here: apply the roots that were signed since (`muster root apply`); if there are none, have its machine switched off, and \
         state that it is off"
    );
    Blocker::host(Code::SignatureInvalid, host, detail)
}

#[cfg(test)]
mod tests;
