//! The overrides that nobody has looked at yet.

use muster_model::UnixTime;
use muster_proto::v1;
use serde::Serialize;

use crate::clock::date_text;
use crate::output::{Page, Tone};

/// How many are shown; all of them are in the JSON.
const SHOWN_MAX: usize = 8;

/// One override, as the audit log has it.
#[derive(Debug, Serialize)]
pub(super) struct OpenOverride {
    entry: u64,
    kind: String,
    at: String,
    who: String,
    detail: String,
}

impl OpenOverride {
    pub(super) fn new(wire: v1::OpenOverride) -> Self {
        let v1::OpenOverride { entry, kind, at_unix_ms, who, detail } = wire;
        Self { entry, kind, at: date_text(UnixTime(at_unix_ms)), who, detail }
    }
}

/// They are in nobody's way, and stay until somebody has looked at them.
pub(super) fn print(open: &[OpenOverride], page: &mut Page) {
    if open.is_empty() {
        return;
    }
    page.toned(Tone::Warning, "overrides that nobody has reconciled:");
    for OpenOverride { entry, kind, at, who, detail } in open.iter().take(SHOWN_MAX) {
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        page.line(format_args!("  entry {entry}, {kind} by {who} at {at}{detail}"));
    }
    if open.len() > SHOWN_MAX {
        page.line(format_args!("  … and {} more (all of them with --output json)", open.len() - SHOWN_MAX));
    }
    page.line("  next: muster audit reconcile ENTRY --reason TEXT, once you have looked at it");
    page.gap();
}
