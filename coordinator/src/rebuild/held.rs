//! The rosters that held under the coordinator that was lost, or may have, from whichever hosts have kept them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, HostName, Membership, Roster, RosterRevision, Verified};
use muster_rollout::gate;
use muster_rollout::rebuild::{Before, Testimony};
use muster_trust::{Authentic, ENVELOPE_BYTES_MAX};

use super::gather::Sources;
use crate::fleet::blocking;
use crate::status::{blob_code, chain};

/// How long one host may take to send the roster that it claims to keep.
const ROSTER_TIMEOUT: Duration = Duration::from_secs(5);

type Found = Arc<Verified<Roster>>;

/// The rosters that were found.
#[derive(Debug, Default)]
pub(crate) struct Rosters {
    /// The last that held, if it is to be known.
    held: Option<Found>,
    /// Later ones that only hosts keep which do not serve.
    later: Vec<Found>,
}

/// Rosters that hosts claim to keep, the newest first, each with a host that does.
type Kept = Vec<(RosterRevision, Digest, HostName)>;

/// The same, by who keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Those who serve with the others: they were shown no roster that did not hold.
    by_members: Kept,
    /// Those who were left out. They were shown the roster that does so before it held, if it ever did.
    by_others: Kept,
}

/// What hosts claim to keep. Where nobody keeps a roster who serves, all that are kept count: whoever is listed too many is only asked
/// for.
pub(super) fn claims(told: &BTreeMap<HostName, Testimony>) -> Claims {
    let of = |is_member: bool| -> Kept {
        let wanted = told.iter().filter(|(_, it)| (it.membership == Membership::Member) == is_member);
        let mut kept: Kept =
            wanted.filter_map(|(host, it)| Some((it.roster_revision, it.roster?, host.clone()))).collect();
        kept.sort_by(|a, b| b.cmp(a));
        kept
    };
    let (by_members, by_others) = (of(true), of(false));
    if by_members.is_empty() {
        Claims { by_members: by_others, by_others: Kept::new() }
    } else {
        Claims { by_members, by_others }
    }
}

impl Rosters {
    /// Whether one of them has this host serve.
    pub(super) fn list(&self, host: &HostName) -> bool {
        self.held.iter().chain(&self.later).any(|roster| roster.position(host).is_some())
    }

    /// What the hosts are judged by under the roster that the mandate names.
    pub(super) fn before<T>(&self, mandated: &Roster, judge: impl FnOnce(Before<'_>) -> T) -> T {
        let later: Vec<&Roster> = self.later.iter().map(|it| &***it).collect();
        judge(Before { held: self.held.as_ref().map_or(mandated, |it| it), later: &later })
    }
}

impl Sources {
    /// The newest roster that members keep, or the one that the coordinator's own disk knows if that is newer; and those after it that
    /// others keep. One that a host keeps and does not send now, or that does not verify yet, is waited for, if it may be newer: whom it
    /// has serve is not to be forgotten.
    pub(super) async fn rosters(
        self,
        claims: Claims,
        former: Option<(RosterRevision, Digest)>,
    ) -> Result<Rosters, Blocker> {
        let held = self.held(claims.by_members, former).await?;
        let known = held.as_ref().map(|it| it.revision());
        let mut later = Vec::new();
        let mut owed = BTreeMap::new();
        for (revision, digest, host) in claims.by_others {
            if known >= Some(revision) || later.iter().any(|(found, _)| *found == digest) {
                continue;
            }
            match self.kept_by(&host, revision, digest).await {
                Ok(roster) => {
                    owed.remove(&digest);
                    later.push((digest, roster));
                }
                Err(blocker) => _ = owed.entry(digest).or_insert(blocker),
            }
        }
        match owed.into_values().next() {
            Some(blocker) => Err(blocker),
            None => Ok(Rosters { held, later: later.into_iter().map(|(_, roster)| roster).collect() }),
        }
    }

    async fn held(
        &self,
        kept: Kept,
        former: Option<(RosterRevision, Digest)>,
    ) -> Result<Option<Found>, Blocker> {
        let mut search = Search::default();
        for (revision, digest, host) in kept {
            if search.knows(revision) {
                break;
            }
            search.found(revision, self.kept_by(&host, revision, digest).await);
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

    /// The roster that this host claims to keep.
    async fn kept_by(
        &self,
        host: &HostName,
        revision: RosterRevision,
        digest: Digest,
    ) -> Result<Found, Blocker> {
        let read = self.read(host, digest, ENVELOPE_BYTES_MAX as u64);
        let read = tokio::time::timeout(ROSTER_TIMEOUT, read).await;
        let bytes = read.unwrap_or_else(|_| Err(gate::missing(host)))?;
        self.of_fleet(&bytes).ok_or_else(|| {
            tracing::warn!(fleet = %self.fleet, %host, "the roster that it keeps does not verify");
            unverified(host, revision)
        })
    }

    fn of_fleet(&self, bytes: &[u8]) -> Option<Found> {
        let roster = self.roots.verify_roster_history(bytes).ok().map(Authentic::into_document)?;
        (*roster.fleet() == self.fleet).then(|| Arc::new(roster))
    }
}

/// What was found so far, and the newest that was not.
#[derive(Debug, Default)]
struct Search {
    newest: Option<Found>,
    owed: Option<(RosterRevision, Blocker)>,
}

impl Search {
    /// Whether a roster of this revision, or a later one, was found.
    fn knows(&self, revision: RosterRevision) -> bool {
        self.newest.as_ref().is_some_and(|it| it.revision() >= revision)
    }

    fn found(&mut self, revision: RosterRevision, found: Result<Found, Blocker>) {
        match found {
            Ok(roster) if !self.knows(roster.revision()) => self.newest = Some(roster),
            Ok(_) => {}
            Err(blocker) if self.owed.as_ref().is_none_or(|(owed, _)| *owed < revision) => {
                self.owed = Some((revision, blocker));
            }
            Err(_) => {}
        }
    }

    fn ends(self) -> Result<Option<Found>, Blocker> {
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
