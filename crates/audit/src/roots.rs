//! The root documents that go along with a log.
//!
//! Nothing is believed of them but what follows from a root that is trusted already: each must be signed by the thresholds
//! of the one before it and of itself, as on any host.

use std::collections::BTreeMap;

use muster_trust::{TrustError, TrustRoot};

use crate::export::ExportFault;

/// The most root documents of one export.
pub const EXPORT_ROOTS_MAX: usize = 1024;

/// The roots that are trusted, and those among the offered ones that follow from them. Of what comes before all that is trusted
/// nothing is believed.
pub fn follow_roots(
    trusted: impl IntoIterator<Item = TrustRoot>,
    offered: &[Vec<u8>],
) -> Result<Vec<TrustRoot>, ExportFault> {
    let mut known: BTreeMap<u64, TrustRoot> =
        trusted.into_iter().map(|root| (root.root().version, root)).collect();
    for (place, raw) in (1..).zip(offered) {
        let wrong = |source| ExportFault::RootDocument { place, source };
        let root = TrustRoot::pin(raw).map_err(wrong)?;
        let version = root.root().version;
        if let Some(trusted) = known.get(&version) {
            if trusted.authentic().payload_digest() != root.authentic().payload_digest() {
                return Err(wrong(TrustError::RootFork { version }));
            }
            continue;
        }
        let before = version.checked_sub(1).and_then(|before| known.get(&before));
        if let Some(before) = before {
            let next = before.succeed(raw).map_err(wrong)?;
            known.insert(version, next);
        }
    }
    Ok(known.into_values().collect())
}
