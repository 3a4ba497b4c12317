//! What a verified receipt proves, in a few lines.

use muster_model::{Assurance, Attestation, Digest, FleetName, FlipMode, HostName, PublicKey};
use muster_trust::{TrustRoot, VerifiedReceipt};
use serde::Serialize;

use crate::orders::added;
use crate::output::{Page, Report, Tone};
use crate::view::{ReleaseView, listed};

/// What is reported of a verified receipt.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    fleet: FleetName,
    rollout: u64,
    from: Option<Digest>,
    release: ReleaseView,
    mode: FlipMode,
    roster_revision: u64,
    hosts: usize,
    /// Those of them that no operator has signed for in a roster, but a joiner.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    added_hosts: Vec<HostName>,
    /// Hosts of the roster that served nothing, and so took no part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parked: Vec<HostName>,
    ordered_by: Vec<PublicKey>,
    lapsed: Vec<HostName>,
    /// How many hosts attested files that their kernels had sealed.
    #[serde(skip_serializing_if = "is_zero")]
    verity_hosts: usize,
    root_version: u64,
    /// Whether the present root would not vouch for it any more.
    earlier_root: bool,
    solo: bool,
    verified: bool,
}

impl Summary {
    /// Of a receipt that the root of version `root_version` vouches for.
    pub(super) fn of(receipt: &VerifiedReceipt, root_version: u64, present: &TrustRoot) -> Self {
        let (order, release) = (receipt.order().document(), receipt.release().document());
        Self {
            fleet: order.fleet.clone(),
            rollout: order.counter.0,
            from: order.from,
            release: ReleaseView { version: release.version.to_string(), digest: release.manifest },
            mode: order.mode,
            roster_revision: order.roster_revision.0,
            hosts: receipt.attestations().len(),
            added_hosts: added(receipt.roster().document()),
            parked: receipt.roster().document().parked().iter().map(|it| it.name.clone()).collect(),
            ordered_by: receipt.order().signers().to_vec(),
            lapsed: receipt.lapsed().to_vec(),
            verity_hosts: verity_hosts(receipt.attestations().iter().map(|it| &**it.document())),
            root_version,
            earlier_root: root_version < present.root().version,
            solo: receipt.is_solo(),
            // A receipt that does not verify is an error and never a summary.
            verified: true,
        }
    }
}

/// How many of the attestations are of files that the kernel had sealed.
fn verity_hosts<'a>(attestations: impl Iterator<Item = &'a Attestation>) -> usize {
    attestations.filter(|it| it.facts.assurance == Assurance::Verity).count()
}

/// Nothing where each host has read and hashed every byte, and no more: that much is proven of every receipt.
fn assurance_text(verity: usize, hosts: usize) -> Option<String> {
    match verity {
        0 => None,
        all if all == hosts => {
            Some("assurance: verity, the kernels of all hosts had sealed every file".to_owned())
        }
        some => Some(format!("assurance: verity on {some} of {hosts} hosts, sha256 on the others")),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Report for Summary {
    const SCHEMA: &'static str = "muster.receipt-summary/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, rollout, release, hosts, roster_revision, .. } = self;
        page.toned(
            Tone::Good,
            format_args!("proven: rollout {rollout} took all {hosts} hosts of {fleet} to {release}"),
        );
        match self.from {
            Some(from) => page.line(format_args!("from {from}, under roster revision {roster_revision}")),
            None => {
                page.line(format_args!("the fleet's first release, under roster revision {roster_revision}"))
            }
        }
        if !self.added_hosts.is_empty() {
            page.line(format_args!("of these a joiner had added {}", listed(&self.added_hosts)));
        }
        match self.mode {
            FlipMode::Strict => page.line("in strict mode: at no instant were two releases served"),
            FlipMode::Fast => {
                let text = "all hosts at one instant of their own clocks; for a moment two releases may have been served";
                page.labelled(Tone::Warning, "fast mode", text);
            }
        }
        if let Some(text) = assurance_text(self.verity_hosts, *hosts) {
            page.line(text);
        }
        for key in &self.ordered_by {
            page.line(format_args!("ordered by {key}"));
        }
        for host in &self.parked {
            page.line(format_args!("without  {host}, which was parked"));
        }
        for host in &self.lapsed {
            let text = format_args!("only the coordinator's clock says that {host} had stopped serving");
            page.labelled(Tone::Warning, "lapsed", text);
        }
        if self.earlier_root {
            let text = format!(
                "only root version {} vouches for it: keys that signed it may no longer sign",
                self.root_version
            );
            page.labelled(Tone::Warning, "earlier root", text);
        }
        if self.solo {
            page.labelled(Tone::Warning, "solo mode", "one person alone could have signed for some role");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_attestations_are_worth_is_said_where_it_is_more_than_ever() {
        assert_eq!(assurance_text(0, 3), None);
        assert_eq!(
            assurance_text(2, 3).as_deref(),
            Some("assurance: verity on 2 of 3 hosts, sha256 on the others")
        );
        assert!(assurance_text(3, 3).is_some_and(|it| it.contains("all hosts")));
    }
}
