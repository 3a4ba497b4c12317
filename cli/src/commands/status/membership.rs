//! Hosts that do not count, and the roster that does not hold yet.

use muster_model::UnixTime;
use muster_proto::convert::ConvertError;
use muster_proto::v1;
use serde::Serialize;

use super::host::{HostView, Served};
use crate::clock::date_text;
use crate::output::{Page, Tone};

/// A host that is parked.
#[derive(Debug, Serialize)]
pub(super) struct Parked {
    #[serde(flatten)]
    pub(super) host: HostView,
    reason: String,
    since: String,
}

/// A host that has left for good.
#[derive(Debug, Serialize)]
pub(super) struct Retired {
    host: String,
    reason: String,
    since: String,
}

/// The roster that was handed in and does not hold yet.
#[derive(Debug, Serialize)]
pub(super) struct Coming {
    revision: u64,
    awaited: Vec<String>,
    joining: Vec<String>,
}

impl Parked {
    pub(super) fn new(wire: v1::HostStatus, served: &Served) -> Result<Self, ConvertError> {
        let v1::SetAside { reason, since_unix_ms, .. } = wire.parked.clone().unwrap_or_default();
        let since = date_text(UnixTime(since_unix_ms));
        Ok(Self { host: HostView::new(wire, served)?, reason, since })
    }

    pub(super) fn print(&self, page: &mut Page) {
        let text = format_args!(
            "{} since {}, connected: {}; {}",
            self.host.host,
            self.since,
            self.host.connection_text(),
            self.reason
        );
        page.labelled(Tone::Warning, "parked", text);
    }
}

impl Retired {
    pub(super) fn new(wire: v1::SetAside) -> Self {
        let since = date_text(UnixTime(wire.since_unix_ms));
        Self { host: wire.host, reason: wire.reason, since }
    }

    pub(super) fn print(&self, page: &mut Page) {
        page.line(format_args!("retired  {} since {}: {}", self.host, self.since, self.reason));
    }
}

impl Coming {
    pub(super) fn new(wire: v1::ComingRoster) -> Self {
        Self { revision: wire.revision, awaited: wire.awaited, joining: wire.joining }
    }

    pub(super) fn print(&self, page: &mut Page) {
        let waits = match self.awaited.as_slice() {
            [] => "holds once the rollout is over".to_owned(),
            hosts => format!("waits for {} to close; nothing is flipped before", hosts.join(", ")),
        };
        let joins = match self.joining.as_slice() {
            [] => String::new(),
            hosts => format!("; joining: {}", hosts.join(", ")),
        };
        let text = format_args!("revision {} {waits}{joins}", self.revision);
        page.labelled(Tone::Warning, "coming", text);
    }
}
