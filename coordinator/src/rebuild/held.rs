//! The last roster that held under the coordinator that was lost, from whichever host has kept it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{Digest, HostName, Membership, Roster, RosterRevision, Verified};
use muster_rollout::rebuild::Testimony;
use muster_trust::{Authentic, ENVELOPE_BYTES_MAX};

use super::gather::Sources;
use crate::fleet::blocking;

/// How long one host may take to send the roster that it claims to keep.
const ROSTER_TIMEOUT: Duration = Duration::from_secs(5);

/// Rosters that hosts claim to keep, the newest first, each with a host that does.
pub(super) type Kept = Vec<(RosterRevision, Digest, HostName)>;

/// The rosters that hosts keep who serve with the others: they were shown none that did not hold. Whom a roster leaves out was shown it
/// before it did, if it ever did.
pub(super) fn kept(told: &BTreeMap<HostName, Testimony>) -> Kept {
    let members = told.iter().filter(|(_, it)| it.membership == Membership::Member);
    let all = members.filter_map(|(host, it)| Some((it.roster_revision, it.roster?, host.clone())));
    let mut kept: Kept = all.collect();
    kept.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    kept.dedup_by_key(|(_, digest, _)| *digest);
    kept
}

impl Sources {
    /// The newest of these rosters that is to be had and verifies, or else the one that the coordinator's own disk knows.
    pub(super) async fn held(self, kept: Kept, former: Option<Digest>) -> Option<Arc<Verified<Roster>>> {
        for (revision, digest, host) in kept {
            let read = self.read(&host, digest, ENVELOPE_BYTES_MAX as u64);
            match tokio::time::timeout(ROSTER_TIMEOUT, read).await {
                Ok(Ok(bytes)) => {
                    if let Some(roster) = self.of_fleet(&bytes).filter(|it| it.revision() == revision) {
                        return Some(roster);
                    }
                    tracing::warn!(fleet = %self.fleet, %host, "the roster that it keeps is not what it says");
                }
                Ok(Err(blocker)) => {
                    tracing::warn!(fleet = %self.fleet, %blocker, "a roster is not to be had there");
                }
                Err(_) => {
                    tracing::warn!(fleet = %self.fleet, %host, "it does not send the roster that it keeps")
                }
            }
        }
        let (documents, digest) = (self.documents.clone(), former?);
        let bytes = blocking(&self.machine, move || documents.read(digest)).await.ok()?;
        self.of_fleet(&bytes)
    }

    fn of_fleet(&self, bytes: &[u8]) -> Option<Arc<Verified<Roster>>> {
        let roster = self.roots.verify_roster_history(bytes).ok().map(Authentic::into_document)?;
        (*roster.fleet() == self.fleet).then(|| Arc::new(roster))
    }
}
