//! What was started on hosts without a coordinator.

use muster_model::{BrokenGlass, Digest, PublicKey};
use serde::Serialize;

use super::host::HostView;
use crate::clock::date_text;
use crate::output::{Page, Tone, printable};

/// One use of a token.
#[derive(Debug, Serialize)]
pub(super) struct GlassView {
    token: Digest,
    /// By the host's clock.
    at: String,
    release: Digest,
    epoch: u64,
    reason: String,
    signers: Vec<PublicKey>,
    settled: bool,
}

impl GlassView {
    pub(super) fn new(used: BrokenGlass) -> Self {
        Self {
            token: used.id,
            at: date_text(used.at_unix_ms),
            release: used.release,
            epoch: used.epoch.0,
            reason: used.reason,
            signers: used.signers,
            settled: used.settled,
        }
    }
}

/// What nobody has settled.
pub(super) fn print(hosts: &[HostView], page: &mut Page) {
    for host in hosts {
        for used in host.broken_glass.iter().filter(|used| !used.settled) {
            let signers = used.signers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let text = format!(
                "{}: epoch {} was started without a coordinator at {}, by the token {}, signed by {signers}: {}",
                host.host,
                used.epoch,
                used.at,
                used.token,
                printable(&used.reason)
            );
            page.labelled(Tone::Bad, "broken glass", text);
        }
    }
}
