//! Settlements as they are made, signed and looked at.

use std::path::{Path, PathBuf};

use muster_model::{Digest, Document as _, FleetName, GlassSettlement, HostName};
use muster_trust::{Envelope, GlassSettlementProposal, Signer, TrustRoot, add_signature};
use serde::Serialize;

use crate::clock::unix_time;
use crate::commands::Env;
use crate::commands::order::Approvals;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};
use crate::output::{Page, Report, counted, printable};

/// Whether these bytes claim to be a settlement. That they are is for the signatures.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    Envelope::parse(bytes)
        .is_ok_and(|envelope| envelope.payload_type() == GlassSettlement::KIND.payload_type())
}

/// Reads a settlement that some operator has signed, and maybe not enough of them.
pub(super) fn review(
    root: &TrustRoot,
    file: &Path,
    bytes: &[u8],
) -> Result<GlassSettlementProposal, CliError> {
    let doing = format!("read the settlement {}", file.display());
    root.review_glass_settlement(bytes, unix_time()).map_err(CliError::trust(doing))
}

/// What somebody is about to sign.
pub(super) fn announce(env: &Env, settlement: &GlassSettlement) {
    let GlassSettlement { fleet, host, tokens, reason, .. } = settlement;
    let uses = counted(tokens.len(), "start");
    env.ui.say(format_args!(
        "{uses} of {host} without a coordinator is settled, and it takes part in rollouts of {fleet} again: {}",
        printable(reason)
    ));
}

/// Adds a signature to a settlement in a file.
pub(super) fn sign(
    env: &Env,
    root: &TrustRoot,
    key: &dyn Signer,
    bytes: &[u8],
    file: PathBuf,
) -> Result<Exit, CliError> {
    let held = review(root, &file, bytes)?;
    announce(env, &held.document);
    let doing = format!("sign {}", file.display());
    let signed = add_signature::<GlassSettlement>(&held.envelope, key).map_err(CliError::trust(doing))?;
    let proposal = review(root, &file, signed.raw())?;
    write(&file, proposal.envelope.raw(), 0o644, Existing::Replace)?;
    env.ui.report(&SettlementView::new(root, &proposal, file))?;
    Ok(Exit::Proven)
}

/// A settlement with the signatures so far.
#[derive(Debug, Serialize)]
pub(super) struct SettlementView {
    fleet: FleetName,
    host: HostName,
    tokens: Vec<Digest>,
    reason: String,
    approvals: Approvals,
    complete: bool,
    file: PathBuf,
}

impl SettlementView {
    pub(super) fn new(root: &TrustRoot, proposal: &GlassSettlementProposal, file: PathBuf) -> Self {
        let GlassSettlement { fleet, host, tokens, reason, .. } = proposal.document.clone();
        Self {
            fleet,
            host,
            tokens,
            reason,
            approvals: Approvals::by_root(root.root(), &proposal.signers),
            complete: proposal.missing(root) == 0,
            file,
        }
    }
}

impl Report for SettlementView {
    const SCHEMA: &'static str = "muster.break-glass-settlement/1";

    fn print(&self, page: &mut Page) {
        page.line(format_args!(
            "settles  what {} of {} started without a coordinator",
            self.host, self.fleet
        ));
        self.tokens.iter().for_each(|token| page.line(format_args!("token    {token}")));
        page.line(format_args!("because  {}", printable(&self.reason)));
        self.approvals.print(page);
        let file = self.file.display();
        if self.complete {
            page.line(format_args!("Next: muster break-glass settle --settlement {file}"));
        } else {
            page.line(format_args!(
                "Next: give {file} to who must still sign: `muster break-glass sign {file}`"
            ));
        }
    }
}
