//! The last roster that held under the coordinator that was lost, from whichever host has kept it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Digest, HostName, Membership, Roster, RosterRevision, Verified};
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
pub(super) fn kept(told: &BTreeMap<HostName, Testimony>) -> Kept {
    let members = told.iter().filter(|(_, it)| it.membership == Membership::Member);
    let all = members.filter_map(|(host, it)| Some((it.roster_revision, it.roster?, host.clone())));
    let mut kept: Kept = all.collect();
    kept.sort_by(|a, b| b.cmp(a));
    kept
}

impl Sources {
    /// The newest of these rosters, or else the one that the coordinator's own disk knows. One that a host keeps and does not send now
    /// is waited for, if it may be newer: whom it has serve is not to be forgotten.
    pub(super) async fn held(self, kept: Kept, former: Option<Digest>) -> Result<Before, Blocker> {
        let mut newest: Before = None;
        let mut owed: Option<(RosterRevision, Blocker)> = None;
        let is_older =
            |newest: &Before, revision| newest.as_ref().is_some_and(|it| it.revision() >= revision);
        for (revision, digest, host) in kept {
            if is_older(&newest, revision) {
                break;
            }
            let read = self.read(&host, digest, ENVELOPE_BYTES_MAX as u64);
            let read = tokio::time::timeout(ROSTER_TIMEOUT, read).await;
            match read.unwrap_or_else(|_| Err(gate::missing(&host))) {
                Ok(bytes) => match self.of_fleet(&bytes) {
                    Some(roster) if !is_older(&newest, roster.revision()) => newest = Some(roster),
                    Some(_) => {}
                    None => {
                        tracing::warn!(fleet = %self.fleet, %host, "the roster that it keeps does not verify");
                    }
                },
                Err(blocker) => {
                    owed.get_or_insert((revision, blocker));
                }
            }
        }
        if let Some((_, blocker)) = owed.filter(|(revision, _)| !is_older(&newest, *revision)) {
            return Err(blocker);
        }
        if newest.is_some() {
            return Ok(newest);
        }
        let Some(digest) = former else { return Ok(None) };
        let documents = self.documents.clone();
        let bytes = blocking(&self.machine, move || documents.read(digest)).await;
        let bytes = bytes.map_err(|error| Blocker::fleet(blob_code(&error), chain(&error)))?;
        Ok(self.of_fleet(&bytes))
    }

    fn of_fleet(&self, bytes: &[u8]) -> Option<Arc<Verified<Roster>>> {
        let roster = self.roots.verify_roster_history(bytes).ok().map(Authentic::into_document)?;
        (*roster.fleet() == self.fleet).then(|| Arc::new(roster))
    }
}
