//! Orders that wait for approvals, or to be begun.

use muster_model::{Digest, UnixTime};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use serde::Serialize;

use crate::clock::date_text;
use crate::output::{Page, Tone};
use crate::view::ReleaseView;

/// One order, as the coordinator tells of it; `muster order show` verifies it.
#[derive(Debug, Serialize)]
pub(super) struct WaitingOrder {
    order: Digest,
    rollout: u64,
    to: Option<ReleaseView>,
    approvals: u32,
    threshold: u32,
    expires: String,
    /// The revision of the roster that it is bound to, if that does not hold any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    outdated_roster_revision: Option<u64>,
}

impl WaitingOrder {
    pub(super) fn new(wire: &v1::WaitingOrder) -> Result<Self, ConvertError> {
        Ok(Self {
            order: convert::digest("id", &wire.id)?,
            rollout: wire.k,
            to: ReleaseView::optional(wire.to.as_ref())?,
            approvals: wire.approvals,
            threshold: wire.threshold,
            expires: date_text(UnixTime(wire.expires_unix_ms)),
            outdated_roster_revision: wire.outdated_roster_revision,
        })
    }
}

/// They are in nobody's way.
pub(super) fn print(waiting: &[WaitingOrder], page: &mut Page) {
    if waiting.is_empty() {
        return;
    }
    page.toned(Tone::Warning, "orders that wait:");
    for WaitingOrder { order, rollout, to, approvals, threshold, expires, outdated_roster_revision } in
        waiting
    {
        let version = to.as_ref().map_or("RELEASE", |to| &to.version);
        let to = to.as_ref().map_or_else(|| "an unknown release".to_owned(), ToString::to_string);
        if let Some(revision) = outdated_roster_revision {
            let order = order.short();
            page.line(format_args!(
                "  {order}, rollout {rollout} to {to}: cannot be begun, as it is for revision {revision} of the roster and \
                 another one came"
            ));
            page.line(format_args!("    next: muster order cancel {order}, then muster flip {version} anew"));
            continue;
        }
        page.line(format_args!(
            "  {}, rollout {rollout} to {to}: {approvals} of {threshold} approvals, until {expires}",
            order.short()
        ));
    }
    if waiting.iter().any(|order| order.outdated_roster_revision.is_none()) {
        page.line("  next: muster order show ID, then muster approve ID");
    }
    page.gap();
}
